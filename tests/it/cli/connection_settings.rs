//! The settings of libpq, as the table in docs/configuration.md describes them.

use std::process::Command;
use std::time::Duration;

use model_catalog::postgres::config::{DatabaseConfig, Environment};

use crate::docs::CONFIGURATION;

fn parse(url: &str, variables: &[(&str, &str)]) -> Result<DatabaseConfig, String> {
    let find = |name: &str| variables.iter().find(|(variable, _)| *variable == name);
    let environment = Environment::new(|name| find(name).map(|(_, value)| (*value).to_owned()));
    let config = DatabaseConfig::parse(url, &environment, "model_catalog", Duration::from_secs(1));
    config.map_err(|error| error.to_string())
}

/// A value of each setting for which the support in the table holds, and one that is refused, if there is one.
fn values<'a>(setting: &str, root: &'a str) -> (&'a str, Option<&'a str>) {
    match setting {
        "host" => ("a,/tmp", None),
        "hostaddr" => ("127.0.0.1", Some("localhost")),
        "port" => ("6543", Some("none")),
        "passfile" | "sslpassword" | "sslkeylogfile" | "sslcrldir" => ("/nonexistent", None),
        "service" => ("", Some("missing")),
        "options" => ("-c jit=off", None),
        "target_session_attrs" => ("prefer-standby", Some("leader")),
        "load_balance_hosts" => ("random", Some("always")),
        "connect_timeout" | "keepalives_idle" | "keepalives_interval" | "keepalives_count" | "tcp_user_timeout" => {
            ("7", Some("soon"))
        }
        "keepalives" => ("0", Some("no")),
        "sslmode" => ("allow", Some("maybe")),
        "sslnegotiation" => ("postgres", Some("none")),
        "sslrootcert" => (root, Some("/nonexistent")),
        "sslcrl" | "sslcert" => ("", Some("/nonexistent")),
        "sslkey" => ("/nonexistent", None),
        "sslcertmode" => ("disable", Some("require")),
        "sslsni" | "gssdelegation" => ("0", None),
        "ssl_min_protocol_version" => ("TLSv1.1", Some("SSLv3")),
        "ssl_max_protocol_version" => ("TLSv1.2", Some("TLSv1.1")),
        "channel_binding" => ("disable", Some("maybe")),
        "client_encoding" => ("UTF8", Some("LATIN1")),
        "gssencmode" => ("prefer", Some("require")),
        "min_protocol_version" | "max_protocol_version" => ("3.0", None),
        "replication" => ("false", Some("database")),
        _ => ("x", None),
    }
}

#[test]
fn settings_are_supported_ignored_or_refused_as_documented() {
    let folder = crate::support::TempFolder::new("connection-settings");
    let root = folder.path("root.pem");
    let make =
        ["req", "-x509", "-nodes", "-subj", "/CN=root", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    let made = Command::new("openssl").args(make).args(["-keyout", &folder.path("root.key"), "-out", &root]).output();
    assert!(made.unwrap().status.success());
    let (_, table) = CONFIGURATION.split_once("| setting | variable | support |\n|---|---|---|\n").unwrap();
    let mut found = 0;
    for row in table.lines().take_while(|line| line.starts_with('|')) {
        let cells: Vec<_> = row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect();
        let [_, setting, variable, support, _] = &cells[..] else { panic!("{row}") };
        let (value, wrong) = values(setting, &root);
        let base = match setting.as_str() {
            "host" | "hostaddr" => "user=u".into(),
            "sslrootcert" => "host=h sslmode=verify-full".into(),
            "sslcrl" => format!("host=h sslmode=verify-full sslrootcert={root}"),
            "sslcert" => "host=h sslkey=/nonexistent".into(),
            _ => "host=h".to_owned(),
        };
        let verdict = |value: &str| {
            let pairs = parse(&format!("{base} {setting}='{value}'"), &[]).map(drop);
            if variable != "–" {
                let from_variable = parse(&base, &[(variable, value)]).map(drop);
                assert_eq!(pairs.is_ok(), from_variable.is_ok(), "{variable}: {pairs:?} {from_variable:?}");
                if let Err(error) = from_variable {
                    assert!(error.contains(variable) || setting == "service", "{variable}: {error}");
                    assert!(!error.contains("DATABASE_URL"), "{variable}: {error}");
                }
            }
            pairs
        };
        let accepted = verdict(value);
        assert_eq!(accepted.is_err(), support.starts_with("refused"), "{setting}: {accepted:?}");
        let refused = if let Some(wrong) = wrong { verdict(wrong) } else { accepted };
        if let Err(error) = refused {
            assert!(error.contains(setting), "{setting}: {error}");
        } else {
            assert_eq!(wrong, None, "{setting} accepts {wrong:?}");
        }
        found += 1;
    }
    assert!(found > 45, "{found}");
    let error = parse("host=h passwort=s3cret", &[]).unwrap_err();
    assert!(error.contains("unknown option") && !error.contains("s3cret"), "{error}");
}

#[test]
fn connection_strings_precede_services_and_these_precede_variables() {
    let folder = crate::support::TempFolder::new("services");
    let file = folder.path("services.conf");
    std::fs::write(
        &file,
        "# comment\n[other]\nhost=other\n\n[here]\nhost = service\nport=1\nuser=service\ndbname=service\n",
    )
    .unwrap();
    let variables =
        [("PGSERVICEFILE", &*file), ("PGSERVICE", "here"), ("PGDATABASE", "variable"), ("PGPASSWORD", "variable")];
    let config = parse("user=url", &variables).unwrap();
    let (user, database) = (config.driver.get_user(), config.driver.get_dbname());
    assert_eq!((config.address().as_str(), user, database), ("service:1", Some("url"), Some("service")));
    assert_eq!(config.driver.get_password(), Some(&b"variable"[..]));
    let config = parse("postgres://url/url?service=other&sslmode=disable", &variables).unwrap();
    assert_eq!((config.address().as_str(), config.driver.get_dbname()), ("url:5432", Some("url")));
    let error = parse("user=url service=missing", &variables).unwrap_err();
    assert!(error.contains("service missing") && error.contains(&file), "{error}");

    // Units are libpq's.
    let config = parse("host=h tcp_user_timeout=1500 keepalives_count=9 connect_timeout=3", &[]).unwrap();
    assert_eq!(config.driver.get_tcp_user_timeout(), Some(&Duration::from_millis(1500)));
    assert_eq!(config.driver.get_keepalives_retries(), Some(9));
    assert_eq!(config.driver.get_connect_timeout(), Some(&Duration::from_secs(3)));
}
