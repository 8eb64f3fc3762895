//! TLS and passwords on the way to Postgres, with certificates of our own.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use model_catalog::postgres::config::{DatabaseConfig, Environment};
use model_catalog::postgres::ephemeral::{EphemeralOptions, EphemeralPostgres};
use model_catalog::postgres::session;

use crate::cli::check::check_with;
use crate::support::witness::{self, in_step};
use crate::support::{Server, migrated, sql};

const PASSWORD: &str = "s3cret-hunter2";

/// A Postgres with TLS, and a folder (its data) with the certificates.
struct Secured {
    postgres: EphemeralPostgres,
    client: tokio_postgres::Client,
}

impl Secured {
    /// `names` are those of its certificate, `rules` its pg_hba.conf beyond the unix socket.
    async fn new(names: &str, rules: &str) -> Self {
        let tmpfs = PathBuf::from("/dev/shm");
        let parent = tmpfs.is_dir().then_some(tmpfs);
        let settings = vec![("fsync".to_owned(), "off".to_owned())];
        let postgres = EphemeralPostgres::start(EphemeralOptions { parent, loopback: true, settings }).unwrap();
        let client = migrated(&postgres.url("postgres")).await;
        let secured = Self { postgres, client };
        for authority in ["ca", "other"] {
            let subject = format!("/CN={authority}");
            secured.openssl(&["req", "-x509", "-nodes", "-days", "2", "-subj", &subject], authority);
        }
        let alternative = format!("subjectAltName={names}");
        secured.openssl(&["req", "-nodes", "-subj", "/CN=server", "-addext", &alternative], "server");
        let folder = secured.folder();
        let signed = Command::new("openssl")
            .current_dir(&folder)
            .args(["x509", "-req", "-in", "server.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"])
            .args(["-copy_extensions", "copy", "-days", "2", "-out", "server.crt"])
            .output()
            .unwrap();
        assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
        secured.serve("server.crt", "server.key").await;
        let trusted = format!("local all all trust\n{rules}\n");
        std::fs::write(folder.join("pg_hba.conf"), trusted).unwrap();
        sql(&secured.client, &format!("CREATE ROLE reader SUPERUSER LOGIN PASSWORD '{PASSWORD}'")).await;
        sql(&secured.client, "ALTER SYSTEM SET ssl = on").await;
        sql(&secured.client, "SELECT pg_reload_conf()").await;
        let ssl = "SHOW ssl";
        crate::support::until("TLS is on", || async { sql(&secured.client, ssl).await.as_deref() == Some("on") }).await;
        secured
    }

    async fn serve(&self, certificate: &str, key: &str) {
        let folder = self.folder();
        // Postgres wants its key to be its own and nobody else's.
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
        let mut made = Command::new("openssl");
        made.current_dir(self.folder()).args(arguments).args(key).args([&keyout, "-out", &out]);
        let made = made.output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    fn url(&self, host: &str, rest: &str) -> String {
        format!("postgres://reader:{PASSWORD}@{host}:{}/postgres?{rest}", self.postgres.port())
    }

    fn root(&self, name: &str) -> String {
        self.folder().join(name).display().to_string()
    }

    /// Whether a session is encrypted, or why there is none.
    async fn encrypted(&self, host: &str, rest: &str) -> Result<bool, String> {
        encrypted(&self.url(host, rest), &Environment::default()).await
    }
}

async fn encrypted(url: &str, environment: &Environment) -> Result<bool, String> {
    let timeout = Duration::from_secs(5);
    let database =
        DatabaseConfig::parse(url, environment, "model_catalog", timeout).map_err(|error| error.to_string())?;
    let client = session::connect(&database).await.map_err(|error| error.to_string())?;
    Ok(sql(&client, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await.as_deref() == Some("t"))
}

#[tokio::test]
async fn every_mode_demands_what_it_demands_of_libpq() {
    let either = Secured::new("DNS:localhost,IP:127.0.0.1", "host all all 127.0.0.1/32 scram-sha-256").await;
    let (ca, other) = (either.root("ca.pem"), either.root("other.pem"));
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
            let got = either.encrypted(host, &rest).await;
            assert_eq!(got.clone().ok(), expected, "{host} {rest}: {got:?}");
            assert!(expected.is_some() || got.clone().is_err_and(|why| why.contains("certificate")), "{got:?}");
        }
    }

    migrated(&either.postgres.url("postgres")).await;
    sql(&either.client, "GRANT USAGE ON SCHEMA model_catalog TO reader").await;
    sql(&either.client, "GRANT SELECT ON ALL TABLES IN SCHEMA model_catalog TO reader").await;
    let checked = check_with(&either.url("localhost", &format!("sslmode=verify-full&sslrootcert={ca}")), &[]);
    checked.clean();

    let system = either.url("localhost", "sslmode=verify-full&sslrootcert=system");
    drop(Server::start_with(&system, &[("SSL_CERT_FILE", &ca)]).await);

    sql(&either.client, "ALTER SYSTEM SET ssl_max_protocol_version = 'TLSv1.2'").await;
    sql(&either.client, "SELECT pg_reload_conf()").await;
    let full = either.url("localhost", &format!("sslmode=verify-full&sslrootcert={ca}"));
    crate::support::until("a session has the older protocol", async || {
        let client = crate::support::connect(&full).await;
        let version = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        sql(&client, version).await.as_deref() == Some("TLSv1.2")
    })
    .await;
    let tls = checked.findings.iter().find(|finding| finding["subject"] == "tls");
    assert!(tls.is_some_and(|tls| tls["text"].as_str().unwrap().starts_with("TLSv1.3, ")), "{checked:#?}");

    // A server without TLS: only `prefer` does without.
    sql(&either.client, "ALTER SYSTEM SET ssl = off").await;
    sql(&either.client, "SELECT pg_reload_conf()").await;
    crate::support::until("TLS is off", || async {
        either.encrypted("localhost", "sslmode=prefer").await == Ok(false)
    })
    .await;
    assert!(either.encrypted("localhost", "sslmode=require").await.is_err());
}

#[tokio::test]
async fn prefer_does_without_where_the_rules_refuse_it() {
    let without = Secured::new("DNS:localhost", "hostnossl all all 127.0.0.1/32 scram-sha-256").await;
    assert_eq!(without.encrypted("localhost", "sslmode=prefer").await, Ok(false));
    let refused = without.encrypted("localhost", "sslmode=require").await;
    assert!(refused.clone().is_err_and(|why| why.contains("SSL encryption")), "{refused:?}");
}

#[tokio::test]
async fn a_name_that_is_not_the_certificates_stops_verify_full_alone() {
    let only = Secured::new("DNS:db.example", "hostssl all all 127.0.0.1/32 scram-sha-256").await;
    let ca = only.root("ca.pem");
    assert_eq!(only.encrypted("localhost", &format!("sslmode=verify-ca&sslrootcert={ca}")).await, Ok(true));
    let refused = only.encrypted("localhost", &format!("sslmode=verify-full&sslrootcert={ca}")).await;
    assert!(refused.clone().is_err_and(|why| why.contains("not valid for name")), "{refused:?}");
    // Only TLS comes in.
    let refused = only.encrypted("localhost", "sslmode=disable").await;
    assert!(refused.clone().is_err_and(|why| why.contains("no encryption")), "{refused:?}");

    // The certificate of PostgreSQL's own manual, signed by itself, is its own authority.
    let own =
        ["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"];
    only.openssl(&own, "own");
    only.serve("own.pem", "own.key").await;
    sql(&only.client, "SELECT pg_reload_conf()").await;
    let own = only.root("own.pem");
    let verified = format!("sslmode=verify-ca&sslrootcert={own}");
    crate::support::until("it shows the other one", || async {
        only.encrypted("localhost", &format!("sslmode=verify-ca&sslrootcert={ca}")).await.is_err()
    })
    .await;
    assert_eq!(only.encrypted("localhost", &verified).await, Ok(true));
    // Trusted or not, its time is over.
    let expired = ["-f", "2020-01-01 00:00:00", "openssl"];
    let mut old = Command::new("faketime");
    old.current_dir(only.folder()).args(expired).args([
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
    only.serve("old.pem", "old.key").await;
    sql(&only.client, "SELECT pg_reload_conf()").await;
    let old = format!("sslmode=verify-ca&sslrootcert={}", only.root("old.pem"));
    crate::support::until("the old one is refused", || async {
        only.encrypted("localhost", &old).await.is_err_and(|why| why.contains("expired"))
    })
    .await;
    only.serve("own.pem", "own.key").await;
    sql(&only.client, "SELECT pg_reload_conf()").await;
    crate::support::until("it shows its own", || async { only.encrypted("localhost", &verified).await == Ok(true) })
        .await;
    let full = format!("sslmode=verify-full&sslrootcert={own}");
    assert_eq!(only.encrypted("localhost", &full).await, Ok(true));
    let refused = only.encrypted("127.0.0.1", &full).await;
    assert!(refused.clone().is_err_and(|why| why.contains("not valid for name")), "{refused:?}");
}

#[tokio::test]
async fn passwords_come_in_every_way_and_never_show() {
    let secured = Secured::new("DNS:localhost,IP:127.0.0.1", "hostssl all all 127.0.0.1/32 scram-sha-256").await;
    witness::add_pairs(&secured.client, 1).await;
    let port = secured.postgres.port();
    let (bare, own) = (format!("postgres://reader@localhost:{port}/postgres"), secured.url("localhost", ""));
    let passfile = secured.folder().join("passfile");
    std::fs::write(&passfile, format!("localhost:{port}:*:reader:{PASSWORD}\n")).unwrap();
    std::fs::set_permissions(&passfile, std::fs::Permissions::from_mode(0o600)).unwrap();
    let passfile = passfile.display().to_string();
    for (url, settings) in
        [(&own, vec![]), (&bare, vec![("PGPASSWORD", PASSWORD)]), (&bare, vec![("PGPASSFILE", &*passfile)])]
    {
        let server = Server::start_with(url, &settings).await;
        in_step(&server, &secured.client).await;
        shows_nothing(&server).await;
    }

    let wrong = "another-s3cret-hunter2";
    let url = own.replace(PASSWORD, wrong);
    let server = Server::spawn(&url, &[("CATALOG_LOG", "debug")]).await;
    let said = "password authentication failed for user";
    server.until("it is said", |s| async move { s.logged(said) > 0 }).await;
    assert_eq!(server.get("/readyz").await.status, 503);
    shows_nothing(&server).await;
    drop(server);
    let server = Server::spawn(&bare, &[("CATALOG_LOG", "debug")]).await;
    server.until("it is said", |s| async move { s.logged("password missing") > 0 }).await;
    shows_nothing(&server).await;
}

async fn shows_nothing(server: &Server) {
    for text in [server.log().concat(), server.get("/readyz").await.text(), server.get("/metrics").await.text()] {
        assert!(!text.contains("hunter2"), "{text}");
    }
}
