//! Servers that follow a file: exported, served by nginx, damaged, of another version, of other rules.

use std::process::{Command, Output};

use model_catalog::postgres::ephemeral::free_port;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::cli::import::run;
use crate::support::nginx::Nginx;
use crate::support::{Db, Server, TempFolder};

const TOKEN: &str = "s3cret-token";

fn export(db: &Db, path: &str) -> Output {
    let output = run(&["export", "--snapshot", path], &db.url, "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

async fn ready(edge: &Server) {
    edge.until("it is ready", |s| async move { s.get("/readyz").await.status == 200 }).await;
}

#[tokio::test]
async fn exported_snapshot_is_followed_and_equals_the_replicas() {
    let db = Db::lenient().await;
    for id in ["a", "b"] {
        db.add(id).await;
    }
    let folder = TempFolder::new("edge-files");
    let path = folder.path("catalog.jsonl");
    export(&db, &path);
    let edge = Server::edge(&format!("file://{path}"), &[]).await;
    ready(&edge).await;
    let replica = Server::start(&db).await;
    let revision = replica.get("/api/models/a").await.revision();
    assert_eq!(edge.get("/api/models/a").await.revision(), revision);
    assert_eq!(edge.get("/readyz").await.json()["source"], "upstream");
    // To standard output, it is the same but for the order of the lines and the position.
    let printed = String::from_utf8(export(&db, "-").stdout).unwrap();
    assert!(printed.contains(&revision) && printed.lines().count() == 4, "{printed}");

    db.sql("UPDATE models SET name = 'new'").await;
    export(&db, &path);
    edge.until_named("a", "new").await;
    let unchanged = "catalog_upstream_requests_total{outcome=\"unchanged\"}";
    let before = edge.metric(unchanged).await;
    edge.until("it polls on", |s| async move { s.metric(unchanged).await > before }).await;
    assert_eq!(edge.metric("catalog_refreshes_total{kind=\"upstream\",outcome=\"ok\"}").await, 2.0);
}

#[tokio::test]
async fn exported_snapshot_omits_rejected_rows_with_status_3() {
    let db = Db::lenient().await;
    db.add("a").await;
    db.sql("INSERT INTO models (id, name, download_url, save_path) VALUES ('b', 'b', 'https://example.org', '../b')")
        .await;
    let output = run(&["export", "--snapshot"], &db.url, "");
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().count() == 3 && text.contains(r#""rejected":{"b":"save_path"#), "{text}");
    let output = run(&["export", "--snapshot", "/nonexistent/catalog"], &db.url, "");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write /nonexistent/catalog: "));
}

/// The content with a valid checksum.
fn sealed(lines: &str) -> String {
    format!("{lines}{{\"checksum\":\"{:032x}\"}}\n", xxh3_128(lines.as_bytes()))
}

/// The file with its model's URL changed to a scheme that is not allowed, as if it had passed `rules`.
fn with_ftp_row(lines: &str, revision: &str, rules: &str) -> String {
    let (header, model) = lines.split_once('\n').unwrap();
    let model = model.replace("https://example.org", "ftp://example.org");
    let ftp_revision = format!("{:016x}", xxh3_64(model.trim_end().as_bytes()));
    sealed(&format!("{}\n{model}", header.replace(revision, &ftp_revision).replace("http,https", rules)))
}

#[tokio::test]
async fn unusable_files_are_refused_and_the_last_good_one_stays() {
    let db = Db::lenient().await;
    db.add("a").await;
    let folder = TempFolder::new("edge-files");
    let path = folder.path("catalog.jsonl");
    export(&db, &path);
    let good = std::fs::read_to_string(&path).unwrap();
    let (lines, _) = good.split_once("{\"checksum\"").unwrap();
    let edge = Server::edge(&format!("file://{path}"), &[]).await;
    ready(&edge).await;
    let revision = edge.get("/api/models/a").await.revision();
    let replace = |content: &str| {
        let new = folder.path("new");
        std::fs::write(&new, content).unwrap();
        std::fs::rename(&new, &path).unwrap();
    };
    for (content, reason) in [
        (good.replace("checkpoints", "checkpoint5"), "the checksum does not match"),
        (good[..good.len() / 2].to_owned(), "it is truncated"),
        (String::new(), "it is empty"),
        ("<!DOCTYPE html>\n<title>404</title>\n".into(), "the first line is not a header"),
        ("no line feed".into(), "it is truncated"),
        (sealed(&lines.replace("\"version\":2", "\"version\":99")), "version 99"),
        (with_ftp_row(lines, &revision, "http,https"), "1 of its models break a rule of this server, such as `a`"),
        (with_ftp_row(lines, &revision, "http,https,ftp"), "download_url has the scheme `ftp`"),
        (sealed(&lines.replace(&revision, "0123456789abcdef")), "the revision does not match"),
    ] {
        // A good file resets the backoff, which otherwise grows to 10 s.
        replace(&good);
        edge.until("it is in sync", |s| async move { s.metric("catalog_upstream_connected").await == 1.0 }).await;
        let refused = edge.metric("catalog_refreshes_total{kind=\"upstream\",outcome=\"error\"}").await;
        replace(&content);
        edge.until(reason, |s| async move {
            s.metric("catalog_refreshes_total{kind=\"upstream\",outcome=\"error\"}").await > refused
        })
        .await;
        assert_eq!(edge.get("/api/models/a").await.revision(), revision, "{reason}");
        assert_eq!(edge.get("/readyz").await.status, 200);
        edge.until("it retries", |s| async move { s.metric("catalog_upstream_connected").await == 0.0 }).await;
        edge.until(reason, |s| std::future::ready(s.logged(reason) > 0)).await;
        // A new server has no good one.
        let fresh = Server::edge(&format!("file://{path}"), &[]).await;
        fresh.until(reason, |s| std::future::ready(s.logged(reason) > 0)).await;
        assert_eq!(fresh.get("/readyz").await.status, 503, "{reason}");
    }
    std::fs::remove_file(&path).unwrap();
    edge.until("the file is missed", |s| std::future::ready(s.logged("it does not exist") > 0)).await;
    db.sql("UPDATE models SET name = 'good again'").await;
    export(&db, &path);
    edge.until_named("a", "good again").await;
}

#[tokio::test]
async fn equal_content_at_an_earlier_position_does_not_admit_older_content() {
    let db = Db::new().await;
    db.add("a").await;
    let folder = TempFolder::new("edge-files");
    let path = folder.path("catalog.jsonl");
    export(&db, &path);
    let text = std::fs::read_to_string(&path).unwrap();
    let (lines, _) = text.split_once("{\"checksum\"").unwrap();
    let (header, model) = lines.split_once('\n').unwrap();
    let as_of = header.split_once("\"as_of\":\"").unwrap().1.split('"').next().unwrap();
    let at = |xmax: u32, name: &str| {
        let model = model.replace("\"name\":\"a.safetensors\"", &format!("\"name\":\"{name}\""));
        let revision = format!("{:016x}", xxh3_64(model.trim_end().as_bytes()));
        let (before, after) = header.split_once("\"revision\":\"").unwrap();
        let header = format!("{before}\"revision\":\"{revision}{}", &after[16..]);
        let as_of = header.replace(&format!("\"as_of\":\"{as_of}\""), &format!("\"as_of\":\"{xmax}:{xmax}:\""));
        std::fs::write(folder.path("new"), sealed(&format!("{as_of}\n{model}"))).unwrap();
        std::fs::rename(folder.path("new"), &path).unwrap();
    };
    at(1_000_120, "later");
    let edge = Server::edge(&format!("file://{path}"), &[]).await;
    edge.until_named("a", "later").await;
    let accepted = "catalog_upstream_requests_total{outcome=\"changed\"}";
    let before = edge.metric(accepted).await;
    at(1_000_100, "later");
    edge.until("the same content is read", |s| async move { s.metric(accepted).await > before }).await;
    at(1_000_110, "earlier");
    edge.until("it is refused", |s| std::future::ready(s.logged("it is older than the catalog served") > 0)).await;
    assert_eq!(edge.field("a", "name").await, "later");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edges_with_stricter_rules_follow_an_upstream_until_a_row_breaks_one() {
    let db = Db::lenient().await;
    db.add("a").await;
    let loose = ("CATALOG_URL_SCHEMES", "http,https,ftp");
    let replica = Server::start_with(&db.url, &[loose]).await;
    let url = format!("http://{}", replica.address);
    let strict = [("CATALOG_URL_SCHEMES", "https")];
    let edge = Server::edge(&url, &strict).await;
    ready(&edge).await;
    assert_eq!(edge.get("/api/models/a").await.revision(), replica.get("/api/models/a").await.revision());

    db.sql("UPDATE models SET name = 'before' WHERE id = 'a'").await;
    edge.until_named("a", "before").await;
    let before = edge.get("/api/models/a").await.revision();
    db.sql("INSERT INTO models (id, name, download_url, save_path) VALUES ('ftp', 'x', 'ftp://example.org/x', 'x')")
        .await;
    let reason = "1 of its models break a rule of this server, such as `ftp`: download_url has the scheme `ftp`";
    edge.until(reason, |s| std::future::ready(s.logged(reason) > 0)).await;
    assert_eq!(replica.get("/api/models/ftp").await.status, 200);
    assert_eq!(edge.get("/api/models/ftp").await.status, 404);
    assert!(edge.metric("catalog_upstream_requests_total{outcome=\"refused\"}").await > 0.0);
    let fresh = Server::edge(&url, &strict).await;
    fresh.until(reason, |s| std::future::ready(s.logged(reason) > 0)).await;
    assert_eq!((fresh.get("/readyz").await.status, edge.get("/readyz").await.status), (503, 200));

    db.sql("DELETE FROM models WHERE id = 'ftp'").await;
    db.sql("UPDATE models SET name = 'corrected' WHERE id = 'a'").await;
    edge.until_named("a", "corrected").await;
    fresh.until_named("a", "corrected").await;
    assert_ne!(edge.get("/api/models/a").await.revision(), before);
}

/// A certificate for localhost, and the authority that signed it.
fn certificates(folder: &TempFolder) {
    let openssl = |arguments: &[&str]| {
        let made = Command::new("openssl").current_dir(folder.path("")).args(arguments).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    };
    let request = ["req", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    let authority = ["-x509", "-days", "2", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem"];
    openssl(&[&request[..], &authority].concat());
    let name = ["-subj", "/CN=server", "-addext", "subjectAltName=DNS:localhost"];
    openssl(&[&request[..], &name, &["-keyout", "server.key", "-out", "server.csr"]].concat());
    let sign = ["x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
    openssl(&[&sign[..], &["-copy_extensions", "copy", "-days", "2", "-out", "server.pem"]].concat());
}

/// An nginx that serves a folder by HTTPS to clients with the token; returns its port.
fn serve_by_https(folder: &TempFolder) -> (Nginx, u16) {
    let port = free_port().unwrap();
    let root = folder.path("");
    let config = format!(
        "daemon off; worker_processes 1; pid {root}pid; error_log {root}error.log; events {{}}
         http {{
           types {{ application/x-ndjson jsonl; }}
           access_log {root}access.log; client_body_temp_path {root}b; proxy_temp_path {root}p;
           fastcgi_temp_path {root}f; uwsgi_temp_path {root}u; scgi_temp_path {root}s;
           gzip on; gzip_types application/x-ndjson; gzip_min_length 1;
           server {{
             listen 127.0.0.1:{port} ssl; ssl_certificate {root}server.pem; ssl_certificate_key {root}server.key;
             if ($http_authorization != \"Bearer {TOKEN}\") {{ return 401; }}
             location / {{ root {root}; }}
           }}
         }}"
    );
    (Nginx::start(folder, &config, port), port)
}

#[tokio::test]
async fn edges_follow_a_file_of_nginx_over_https_with_a_token() {
    let db = Db::lenient().await;
    for number in 0..50 {
        db.add(&format!("model-{number}")).await;
    }
    let folder = TempFolder::new("edge-files");
    export(&db, &folder.path("catalog.jsonl"));
    certificates(&folder);
    let (_nginx, port) = serve_by_https(&folder);
    let url = format!("https://localhost:{port}/catalog.jsonl");

    let trusted = ("SSL_CERT_FILE", &*folder.path("ca.pem"));
    let edge = Server::edge(&url, &[trusted, ("CATALOG_UPSTREAM_TOKEN", TOKEN), ("CATALOG_LOG", "trace")]).await;
    ready(&edge).await;
    let replica = Server::start(&db).await;
    let revision = replica.get("/api/models/model-1").await.revision();
    assert_eq!(edge.get("/api/models/model-1").await.revision(), revision);
    let size = std::fs::metadata(folder.path("catalog.jsonl")).unwrap().len() as f64;
    let received = edge.metric("catalog_upstream_received_bytes_total").await;
    assert!(received > 0.0 && received < size / 3.0, "{received} of {size}: it was not compressed");
    let unchanged = "catalog_upstream_requests_total{outcome=\"unchanged\"}";
    edge.until("nginx says that nothing changed", |s| async move { s.metric(unchanged).await > 2.0 }).await;
    assert_eq!(edge.metric("catalog_upstream_received_bytes_total").await, received);

    db.sql("UPDATE models SET name = 'new'").await;
    export(&db, &folder.path("catalog.jsonl"));
    edge.until_named("model-1", "new").await;
    assert_eq!(edge.logged(TOKEN), 0, "{:#?}", edge.log());

    // Without the token, and without the certificate.
    for (settings, reason) in [
        (&[trusted, ("CATALOG_UPSTREAM_TOKEN", "another")][..], "401 Unauthorized: set CATALOG_UPSTREAM_TOKEN"),
        (&[("CATALOG_UPSTREAM_TOKEN", TOKEN), ("CATALOG_LOG", "trace")][..], "invalid peer certificate: UnknownIssuer"),
    ] {
        let edge = Server::edge(&url, settings).await;
        edge.until(reason, |s| std::future::ready(s.logged(reason) > 0)).await;
        assert_eq!((edge.get("/readyz").await.status, edge.logged(TOKEN), edge.logged("another")), (503, 0, 0));
    }
}

#[tokio::test]
async fn upstream_secrets_are_never_shown() {
    let url = "http://me:s3cret@127.0.0.1:1/catalog.jsonl?sig=s3cret";
    let edge = Server::edge(url, &[("CATALOG_UPSTREAM_TOKEN", "s3cret"), ("CATALOG_LOG", "trace")]).await;
    edge.until("the outage is logged", |s| std::future::ready(s.logged("the upstream is unavailable") > 0)).await;
    assert_eq!((edge.logged("s3cret"), edge.logged("http://127.0.0.1:1/catalog.jsonl: ") > 0), (0, true));
    for (upstream, token, named) in [
        ("s3://bucket/s3cret", "", "CATALOG_UPSTREAM"),
        ("http://a,s3cret", "", "number 2"),
        ("http://a", "s3cret\n", "CATALOG_UPSTREAM_TOKEN"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_model-catalog"));
        command.arg("serve").env_clear().env("CATALOG_UPSTREAM", upstream).env("CATALOG_UPSTREAM_TOKEN", token);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(named) && !text.contains("s3cret"), "{text}");
    }
    // One or the other.
    let mut command = Command::new(env!("CARGO_BIN_EXE_model-catalog"));
    command.arg("serve").env_clear().env("CATALOG_UPSTREAM", "http://a").env("DATABASE_URL", "host=a");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}
