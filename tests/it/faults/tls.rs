//! TLS and passwords of the connection to Postgres, with certificates made by the test.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use model_catalog::base::error_chain::chain;
use model_catalog::postgres::config::{DatabaseConfig, Environment};
use model_catalog::postgres::ephemeral::{EphemeralOptions, EphemeralPostgres};
use model_catalog::postgres::session;

use crate::cli::check::check_with;
use crate::support::consistency::{self, in_sync};
use crate::support::{Server, migrated, sql};

const PASSWORD: &str = "s3cret-hunter2";

/// A Postgres with TLS; the certificates are in its data directory.
struct TlsPostgres {
    postgres: EphemeralPostgres,
    client: tokio_postgres::Client,
}

impl TlsPostgres {
    /// `names` are the subjectAltName of its certificate, `rules` the TCP lines of its pg_hba.conf.
    async fn new(names: &str, rules: &str) -> Self {
        let tmpfs = PathBuf::from("/dev/shm");
        let parent = tmpfs.is_dir().then_some(tmpfs);
        let settings = vec![("fsync".to_owned(), "off".to_owned())];
        let postgres = EphemeralPostgres::start(EphemeralOptions { parent, loopback: true, settings }).unwrap();
        let client = migrated(&postgres.url("postgres")).await;
        let postgres = Self { postgres, client };
        for authority in ["ca", "other"] {
            let subject = format!("/CN={authority}");
            postgres.openssl(&["req", "-x509", "-nodes", "-days", "2", "-subj", &subject], authority);
        }
        let alternative = format!("subjectAltName={names}");
        postgres.openssl(&["req", "-nodes", "-subj", "/CN=server", "-addext", &alternative], "server");
        let folder = postgres.folder();
        let signed = Command::new("openssl")
            .current_dir(&folder)
            .args(["x509", "-req", "-in", "server.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"])
            .args(["-copy_extensions", "copy", "-days", "2", "-out", "server.crt"])
            .output()
            .unwrap();
        assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
        postgres.serve("server.crt", "server.key").await;
        let trusted = format!("local all all trust\n{rules}\n");
        std::fs::write(folder.join("pg_hba.conf"), trusted).unwrap();
        sql(&postgres.client, &format!("CREATE ROLE reader SUPERUSER LOGIN PASSWORD '{PASSWORD}'")).await;
        sql(&postgres.client, "ALTER SYSTEM SET ssl = on").await;
        sql(&postgres.client, "SELECT pg_reload_conf()").await;
        let ssl = "SHOW ssl";
        crate::support::until("TLS is on", || async { sql(&postgres.client, ssl).await.as_deref() == Some("on") })
            .await;
        postgres
    }

    async fn serve(&self, certificate: &str, key: &str) {
        let folder = self.folder();
        // Postgres requires that only its user can read the key.
        let owner = std::fs::metadata(&folder).unwrap();
        chown(folder.join(key), Some(owner.uid()), Some(owner.gid())).unwrap();
        std::fs::set_permissions(folder.join(key), std::fs::Permissions::from_mode(0o600)).unwrap();
        sql(&self.client, &format!("ALTER SYSTEM SET ssl_cert_file = '{certificate}'")).await;
        sql(&self.client, &format!("ALTER SYSTEM SET ssl_key_file = '{key}'")).await;
    }

    fn folder(&self) -> PathBuf {
        self.postgres.data_directory()
    }

    fn openssl(&self, arguments: &[&str], name: &str) {
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout"];
        let (keyout, out) = (format!("{name}.key"), format!("{name}.pem"));
        let mut command = Command::new("openssl");
        command.current_dir(self.folder()).args(arguments).args(key).args([&keyout, "-out", &out]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn url(&self, host: &str, rest: &str) -> String {
        format!("postgres://reader:{PASSWORD}@{host}:{}/postgres?{rest}", self.postgres.port())
    }

    fn root(&self, name: &str) -> String {
        self.folder().join(name).display().to_string()
    }

    /// Whether a session is encrypted, or the error of connecting.
    async fn encrypted(&self, host: &str, rest: &str) -> Result<bool, String> {
        encrypted(&self.url(host, rest), &Environment::default()).await
    }
}

async fn encrypted(url: &str, environment: &Environment) -> Result<bool, String> {
    let timeout = Duration::from_secs(5);
    let database = DatabaseConfig::parse(url, environment, "model_catalog", timeout).map_err(|error| chain(&error))?;
    let client = session::connect(&database).await.map_err(|error| chain(&error))?;
    Ok(sql(&client, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await.as_deref() == Some("t"))
}

#[tokio::test]
async fn sslmode_verifies_as_libpq_does() {
    let server = TlsPostgres::new("DNS:localhost,IP:127.0.0.1", "host all all 127.0.0.1/32 scram-sha-256").await;
    let (ca, other) = (server.root("ca.pem"), server.root("other.pem"));
    for (rest, expected) in [
        ("sslmode=disable".to_owned(), Some(false)),
        (String::new(), Some(true)),
        ("sslmode=prefer".to_owned(), Some(true)),
        ("sslmode=require".to_owned(), Some(true)),
        (format!("sslmode=require&sslrootcert={ca}"), Some(true)),
        (format!("sslmode=require&sslrootcert={other}"), None),
        (format!("sslmode=verify-ca&sslrootcert={ca}"), Some(true)),
        (format!("sslmode=verify-ca&sslrootcert={other}"), None),
        (format!("sslmode=verify-full&sslrootcert={ca}"), Some(true)),
        (format!("sslmode=verify-full&sslrootcert={other}"), None),
    ] {
        for host in ["localhost", "127.0.0.1"] {
            let result = server.encrypted(host, &rest).await;
            assert_eq!(result.clone().ok(), expected, "{host} {rest}: {result:?}");
            assert!(
                expected.is_some() || result.clone().is_err_and(|error| error.contains("certificate")),
                "{result:?}"
            );
        }
    }

    migrated(&server.postgres.url("postgres")).await;
    sql(&server.client, "GRANT USAGE ON SCHEMA model_catalog TO reader").await;
    sql(&server.client, "GRANT SELECT ON ALL TABLES IN SCHEMA model_catalog TO reader").await;
    let checked = check_with(&server.url("localhost", &format!("sslmode=verify-full&sslrootcert={ca}")), &[]);
    checked.clean();

    let system = server.url("localhost", "sslmode=verify-full&sslrootcert=system");
    drop(Server::start_with(&system, &[("SSL_CERT_FILE", &ca)]).await);

    sql(&server.client, "ALTER SYSTEM SET ssl_max_protocol_version = 'TLSv1.2'").await;
    sql(&server.client, "SELECT pg_reload_conf()").await;
    let full = server.url("localhost", &format!("sslmode=verify-full&sslrootcert={ca}"));
    crate::support::until("sessions use TLS 1.2", async || {
        let client = crate::support::connect(&full).await;
        let version = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        sql(&client, version).await.as_deref() == Some("TLSv1.2")
    })
    .await;
    let tls = checked.findings.iter().find(|finding| finding["subject"] == "tls");
    assert!(tls.is_some_and(|tls| tls["text"].as_str().unwrap().starts_with("TLSv1.3, ")), "{checked:#?}");

    // Without TLS on the server, only `prefer` falls back to an unencrypted session.
    sql(&server.client, "ALTER SYSTEM SET ssl = off").await;
    sql(&server.client, "SELECT pg_reload_conf()").await;
    crate::support::until("TLS is off", || async {
        server.encrypted("localhost", "sslmode=prefer").await == Ok(false)
    })
    .await;
    assert!(server.encrypted("localhost", "sslmode=require").await.is_err());
}

#[tokio::test]
async fn sslmode_prefer_falls_back_when_pg_hba_rejects_tls() {
    let server = TlsPostgres::new("DNS:localhost", "hostnossl all all 127.0.0.1/32 scram-sha-256").await;
    assert_eq!(server.encrypted("localhost", "sslmode=prefer").await, Ok(false));
    let error = server.encrypted("localhost", "sslmode=require").await;
    assert!(error.clone().is_err_and(|error| error.contains("SSL encryption")), "{error:?}");
}

#[tokio::test]
async fn host_name_mismatch_fails_verify_full_only() {
    let server = TlsPostgres::new("DNS:db.example", "hostssl all all 127.0.0.1/32 scram-sha-256").await;
    let ca = server.root("ca.pem");
    assert_eq!(server.encrypted("localhost", &format!("sslmode=verify-ca&sslrootcert={ca}")).await, Ok(true));
    let error = server.encrypted("localhost", &format!("sslmode=verify-full&sslrootcert={ca}")).await;
    assert!(error.clone().is_err_and(|error| error.contains("not valid for name")), "{error:?}");
    // pg_hba.conf allows TLS only.
    let error = server.encrypted("localhost", "sslmode=disable").await;
    assert!(error.clone().is_err_and(|error| error.contains("no encryption")), "{error:?}");

    // A self-signed certificate, as in the manual of PostgreSQL, is its own authority.
    let self_signed =
        ["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"];
    server.openssl(&self_signed, "own");
    server.serve("own.pem", "own.key").await;
    sql(&server.client, "SELECT pg_reload_conf()").await;
    let own = server.root("own.pem");
    let verified = format!("sslmode=verify-ca&sslrootcert={own}");
    crate::support::until("the other certificate is in use", || async {
        server.encrypted("localhost", &format!("sslmode=verify-ca&sslrootcert={ca}")).await.is_err()
    })
    .await;
    assert_eq!(server.encrypted("localhost", &verified).await, Ok(true));
    // An expired certificate is refused even if it is pinned.
    let expired = ["-f", "2020-01-01 00:00:00", "openssl"];
    let mut old = Command::new("faketime");
    old.current_dir(server.folder()).args(expired).args([
        "req",
        "-x509",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]);
    old.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", "old.key", "-out", "old.pem"]);
    assert!(old.output().unwrap().status.success());
    server.serve("old.pem", "old.key").await;
    sql(&server.client, "SELECT pg_reload_conf()").await;
    let old = format!("sslmode=verify-ca&sslrootcert={}", server.root("old.pem"));
    crate::support::until("the expired certificate is refused", || async {
        server.encrypted("localhost", &old).await.is_err_and(|error| error.contains("expired"))
    })
    .await;
    server.serve("own.pem", "own.key").await;
    sql(&server.client, "SELECT pg_reload_conf()").await;
    crate::support::until("its own certificate is in use", || async {
        server.encrypted("localhost", &verified).await == Ok(true)
    })
    .await;
    let full = format!("sslmode=verify-full&sslrootcert={own}");
    assert_eq!(server.encrypted("localhost", &full).await, Ok(true));
    let error = server.encrypted("127.0.0.1", &full).await;
    assert!(error.clone().is_err_and(|error| error.contains("not valid for name")), "{error:?}");
}

#[tokio::test]
async fn passwords_from_every_source_work_and_are_never_shown() {
    let postgres = TlsPostgres::new("DNS:localhost,IP:127.0.0.1", "hostssl all all 127.0.0.1/32 scram-sha-256").await;
    consistency::add_pairs(&postgres.client, 1).await;
    let port = postgres.postgres.port();
    let (bare, own) = (format!("postgres://reader@localhost:{port}/postgres"), postgres.url("localhost", ""));
    let passfile = postgres.folder().join("passfile");
    std::fs::write(&passfile, format!("localhost:{port}:*:reader:{PASSWORD}\n")).unwrap();
    std::fs::set_permissions(&passfile, std::fs::Permissions::from_mode(0o600)).unwrap();
    let passfile = passfile.display().to_string();
    for (url, settings) in
        [(&own, vec![]), (&bare, vec![("PGPASSWORD", PASSWORD)]), (&bare, vec![("PGPASSFILE", &*passfile)])]
    {
        let server = Server::start_with(url, &settings).await;
        in_sync(&server, &postgres.client).await;
        assert_shows_no_password(&server).await;
    }

    let wrong = "another-s3cret-hunter2";
    let url = own.replace(PASSWORD, wrong);
    let server = Server::spawn(&url, &[("CATALOG_LOG", "debug")]).await;
    let message = "password authentication failed for user";
    server.until("the error is logged", |s| async move { s.logged(message) > 0 }).await;
    assert_eq!(server.get("/readyz").await.status, 503);
    assert_shows_no_password(&server).await;
    drop(server);
    let server = Server::spawn(&bare, &[("CATALOG_LOG", "debug")]).await;
    server.until("the error is logged", |s| async move { s.logged("password missing") > 0 }).await;
    assert_shows_no_password(&server).await;
    drop(server);

    // As by libpq, a file that others may read is ignored, until it is no longer so; that is logged once.
    let chmod = |mode| std::fs::set_permissions(&passfile, std::fs::Permissions::from_mode(mode)).unwrap();
    chmod(0o640);
    let server = Server::spawn(&bare, &[("PGPASSFILE", &*passfile)]).await;
    server.until("the error is logged", |s| async move { s.logged("password missing") > 0 }).await;
    chmod(0o600);
    in_sync(&server, &postgres.client).await;
    server.until_logged("password file ignored because others may read it: run chmod 0600", 1).await;
}

/// Passwords and certificates are replaced while the server runs; each new connection uses the current ones.
#[tokio::test]
async fn replaced_passwords_and_certificates_are_used_for_the_next_connection() {
    let postgres = TlsPostgres::new("DNS:localhost", "hostssl all all 127.0.0.1/32 scram-sha-256").await;
    consistency::add_pairs(&postgres.client, 1).await;
    let folder = postgres.folder();
    let (root, passfile) = (folder.join("root.crt"), folder.join("passfile"));
    std::fs::copy(folder.join("ca.pem"), &root).unwrap();
    let write_password = |password: &str| {
        std::fs::write(&passfile, format!("*:*:*:reader:{password}\n")).unwrap();
        std::fs::set_permissions(&passfile, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    write_password(PASSWORD);
    let url = format!("postgres://reader@localhost:{}/postgres?sslmode=verify-full", postgres.postgres.port());
    let settings = [("PGPASSFILE", passfile.to_str().unwrap()), ("PGSSLROOTCERT", root.to_str().unwrap())];
    let server = Server::start_with(&url, &settings).await;
    let reconnect = async || {
        let reader = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'reader'";
        sql(&postgres.client, &format!("{}; {reader}", consistency::bump(0))).await;
    };

    let new_password = "another-s3cret-hunter2";
    sql(&postgres.client, &format!("ALTER ROLE reader PASSWORD '{new_password}'")).await;
    reconnect().await;
    let refused = |s: &'_ Server| s.logged("password authentication failed") > 0;
    server.until("the old password is refused", |s| std::future::ready(refused(s))).await;
    write_password(new_password);
    in_sync(&server, &postgres.client).await;

    let self_signed =
        ["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"];
    postgres.openssl(&self_signed, "own");
    postgres.serve("own.pem", "own.key").await;
    sql(&postgres.client, "SELECT pg_reload_conf()").await;
    std::fs::remove_file(&root).unwrap();
    reconnect().await;
    let message = "the database rejects the connection; serving the last snapshot, retrying";
    let missing = format!("PGSSLROOTCERT: sslrootcert {}: ", root.display());
    server
        .until("the missing file is named", |s| {
            std::future::ready(s.log().iter().any(|line| line.contains(message) && line.contains(&missing)))
        })
        .await;
    assert_eq!(server.get("/api/models/pair-0-a").await.status, 200);
    let catalog = server.get("/api/catalog").await.json();
    assert!(catalog["sync_error"].as_str().is_some_and(|error| error.starts_with(&missing)), "{catalog}");
    std::fs::copy(folder.join("own.pem"), &root).unwrap();
    in_sync(&server, &postgres.client).await;
    assert_eq!(server.get("/api/catalog").await.json()["sync_error"], serde_json::Value::Null);
    assert_shows_no_password(&server).await;
}

async fn assert_shows_no_password(server: &Server) {
    for text in [server.log().concat(), server.get("/readyz").await.text(), server.get("/metrics").await.text()] {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

/// Runs openssl in the data directory.
fn openssl(server: &TlsPostgres, arguments: &str) {
    let mut command = Command::new("openssl");
    let output = command.current_dir(server.folder()).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn client_certificates_authenticate_and_revoked_servers_are_refused() {
    let server = TlsPostgres::new("DNS:localhost", "hostssl all all 127.0.0.1/32 cert").await;
    let file = |name: &str| server.root(name);
    server.openssl(&["req", "-nodes", "-subj", "/CN=reader"], "client");
    openssl(&server, "x509 -req -in client.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out client.crt");
    openssl(&server, "pkey -in client.key -aes256 -passout pass:x -out encrypted.key");
    for (name, mode) in [("client.key", 0o600), ("encrypted.key", 0o600)] {
        std::fs::set_permissions(file(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    std::fs::copy(file("client.key"), file("open.key")).unwrap();
    std::fs::set_permissions(file("open.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    sql(&server.client, "ALTER SYSTEM SET ssl_ca_file = 'ca.pem'").await;
    sql(&server.client, "SELECT pg_reload_conf()").await;

    let port = server.postgres.port();
    let url = |key: &str, rest: &str| {
        format!(
            "host=localhost port={port} user=reader dbname=postgres sslmode=verify-full sslrootcert={} sslcert={} \
             sslkey={} {rest}",
            file("ca.pem"),
            file("client.crt"),
            file(key)
        )
    };
    let own = url("client.key", "");
    let environment = Environment::default();
    crate::support::until("the certificate is accepted", || async { encrypted(&own, &environment).await == Ok(true) })
        .await;
    let without = own.split(" sslcert=").next().unwrap();
    let error = encrypted(without, &environment).await.unwrap_err();
    assert!(error.contains("requires a valid client certificate"), "{error}");
    let variables = [("PGSSLCERT", file("client.crt")), ("PGSSLKEY", file("client.key"))];
    let environment =
        Environment::new(|name| Some(variables.iter().find(|(variable, _)| *variable == name)?.1.clone()));
    assert_eq!(encrypted(without, &environment).await, Ok(true));
    let error = encrypted(&format!("{own} sslcertmode=disable"), &environment).await.unwrap_err();
    assert!(error.contains("requires a valid client certificate"), "{error}");
    for key in ["encrypted.key", "open.key", "absent.key"] {
        let error = encrypted(&url(key, ""), &environment).await.unwrap_err();
        let reason = match key {
            "encrypted.key" => "is encrypted, which is not supported",
            "open.key" => "chmod 0600",
            _ => "No such file",
        };
        assert!(error.contains(&format!("DATABASE_URL: sslkey {}", file(key))) && error.contains(reason), "{error}");
    }

    let configuration = "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\ncrlnumber=crlnumber\ndefault_md=sha256\n\
                         default_crl_days=2\n";
    for (name, content) in [("ca.cnf", configuration), ("index.txt", ""), ("crlnumber", "01\n")] {
        std::fs::write(file(name), content).unwrap();
    }
    let ca = "ca -config ca.cnf -keyfile ca.key -cert ca.pem";
    openssl(&server, &format!("{ca} -gencrl -out none.crl"));
    openssl(&server, &format!("{ca} -revoke server.crt"));
    openssl(&server, &format!("{ca} -gencrl -out revoked.crl"));
    let none = url("client.key", &format!("sslcrl={}", file("none.crl")));
    assert_eq!(encrypted(&none, &environment).await, Ok(true));
    let error = encrypted(&url("client.key", &format!("sslcrl={}", file("revoked.crl"))), &environment).await;
    assert!(error.clone().is_err_and(|error| error.contains("Revoked")), "{error:?}");

    // Versions of TLS.
    for (limits, version) in
        [("ssl_max_protocol_version=TLSv1.2", "TLSv1.2"), ("ssl_min_protocol_version=TLSv1.3", "TLSv1.3")]
    {
        let client = crate::support::connect(&url("client.key", limits)).await;
        let used = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        assert_eq!(sql(&client, used).await.as_deref(), Some(version));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn target_session_attrs_choose_the_server_as_libpq_does() {
    let primary = crate::support::start_postgres(&[("wal_level", "replica")]);
    let standby = EphemeralPostgres::standby_of(&primary).unwrap();
    let address = |server: &EphemeralPostgres| (server.socket_directory().display().to_string(), server.port());
    let ((primary, first), (standby, second)) = (address(&primary), address(&standby));
    let in_recovery = async |hosts: [(&str, u16); 2], role: &str| {
        let url = format!(
            "host={},{} port={},{} user=postgres dbname=postgres target_session_attrs={role}",
            hosts[0].0, hosts[1].0, hosts[0].1, hosts[1].1
        );
        let timeout = Duration::from_secs(20);
        let database = DatabaseConfig::parse(&url, &Environment::default(), "model_catalog", timeout).unwrap();
        let client = session::connect(&database).await.map_err(|error| chain(&error))?;
        Ok(sql(&client, "SELECT pg_is_in_recovery()").await.unwrap() == "t")
    };
    let (p, s) = ((&*primary, first), (&*standby, second));
    let none = ("/nonexistent", 1);
    let wrong: Result<bool, String> = Err("has the role that target_session_attrs demands".into());
    for (hosts, role, expected) in [
        ([p, s], "any", Ok(false)),
        ([s, p], "any", Ok(true)),
        ([s, p], "read-write", Ok(false)),
        ([p, s], "read-only", Ok(true)),
        ([s, p], "primary", Ok(false)),
        ([p, s], "standby", Ok(true)),
        ([p, s], "prefer-standby", Ok(true)),
        ([none, s], "prefer-standby", Ok(true)),
        ([none, p], "prefer-standby", Ok(false)),
        ([p, p], "prefer-standby", Ok(false)),
        ([p, p], "standby", wrong.clone()),
        ([s, s], "primary", wrong),
    ] {
        let found: Result<bool, String> = in_recovery(hosts, role).await;
        let same = match (&found, &expected) {
            (Err(found), Err(expected)) => found.contains(expected.as_str()),
            _ => found == expected,
        };
        assert!(same, "{role} {hosts:?}: {found:?}");
    }
}
