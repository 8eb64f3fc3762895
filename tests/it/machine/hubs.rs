//! The hubs under their real names: a proxy with TLS and a test certificate stands in for them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::files::Way;
use super::{Machine, add, content, sum};
use crate::support::{Db, Server};

const NAMES: [&str; 8] = [
    "huggingface.co",
    "cas-bridge.xethub.hf.co",
    "hf.co",
    "civitai.com",
    "civitai.red",
    "cdn.huggingface.co",
    "huggingface.co.example.org",
    "example.org",
];

/// `host:port` and the token received there.
pub type Seen = Arc<Mutex<Vec<(String, Option<String>)>>>;

/// Makes the response to a request, from `host:port` and the path.
type Respond = dyn Fn(&str, &str) -> Vec<u8> + Send + Sync;

/// Stands in for every host. Returns the proxy's address; the certificate is in `folder`.
pub fn hubs(folder: &Path, respond: impl Fn(&str, &str) -> Vec<u8> + Send + Sync + 'static) -> (String, Seen) {
    let names = NAMES.map(|name| format!("DNS:{name}")).join(",");
    let generated = Command::new("openssl")
        .args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=hubs", "-newkey", "ec"])
        .args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", "key.pem", "-out", "certificate.pem"])
        .args(["-addext", &format!("subjectAltName={names}"), "-addext", "basicConstraints=critical,CA:FALSE"])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(generated.status.success(), "{}", String::from_utf8_lossy(&generated.stderr));
    let certificate = CertificateDer::from_pem_file(folder.join("certificate.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(versions.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap());

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let seen = Seen::default();
    let copy = Arc::clone(&seen);
    let respond: Arc<Respond> = Arc::new(respond);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (config, respond, seen) = (Arc::clone(&config), Arc::clone(&respond), Arc::clone(&copy));
            std::thread::spawn(move || drop(stand_in(stream.unwrap(), config, &*respond, &seen)));
        }
    });
    (address, seen)
}

fn stand_in(mut stream: TcpStream, config: Arc<ServerConfig>, respond: &Respond, seen: &Seen) -> std::io::Result<()> {
    let request = head(&mut stream)?;
    let host = request[0].split(' ').nth(1).unwrap_or_default().to_owned();
    stream.write_all(b"HTTP/1.1 200 x\r\n\r\n")?;
    let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
    let head_lines = head(&mut stream)?;
    let token = head_lines.iter().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        let bearer = name.eq_ignore_ascii_case("authorization").then(|| value.strip_prefix("Bearer "))?;
        bearer.map(str::to_owned)
    });
    let path = head_lines[0].split(' ').nth(1).unwrap_or_default();
    seen.lock().unwrap().push((host.clone(), token));
    stream.write_all(&respond(&host, path))?;
    stream.conn.send_close_notify();
    stream.flush()
}

/// A server whose `handler` may block; one request per connection.
pub fn serve(handler: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let handler = Arc::new(handler);
    let respond = |mut stream: TcpStream, handler: &dyn Fn(&str) -> Vec<u8>| -> std::io::Result<()> {
        let lines = head(&mut stream)?;
        let path = lines[0].split(' ').nth(1).unwrap_or_default();
        stream.write_all(&handler(path))
    };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let handler = Arc::clone(&handler);
            std::thread::spawn(move || drop(respond(stream.unwrap(), &*handler)));
        }
    });
    address
}

/// A response that closes the connection; `headers` are lines without their ends.
pub fn response(status: u16, headers: &[&str], body: &str) -> Vec<u8> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    format!("HTTP/1.1 {status} x\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}").into()
}

/// The first byte of a file of this size, in response to a request for it.
pub fn first_byte(bytes: u64) -> Vec<u8> {
    response(206, &[&format!("content-range: bytes 0-0/{bytes}")], "x")
}

/// The redirect of a large file on Hugging Face, with the headers that describe it.
pub fn linked(location: &str, sha256: &str, bytes: u64) -> Vec<u8> {
    let tag = format!("x-linked-etag: \"{sha256}\"");
    response(302, &[&format!("location: {location}"), &tag, &format!("x-linked-size: {bytes}")], "")
}

/// The lines of a head, read byte by byte, so that nothing after it is consumed.
fn head(stream: &mut impl Read) -> std::io::Result<Vec<String>> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        bytes.push(byte[0]);
    }
    BufReader::new(&*bytes).lines().collect()
}

#[tokio::test]
async fn tokens_are_not_sent_to_similar_host_names() {
    let mut machine = Machine::new("hubs", "hub,case,short,shop,red,cdn,longer,port");
    let store = format!("http://{}", machine.store.address);
    let (proxy, seen) = hubs(&machine.folder, move |host, path| {
        response(302, &[&format!("location: {store}/{}{path}", host.to_ascii_lowercase())], "")
    });
    let db = Db::new().await;
    for (number, (id, url)) in [
        ("hub", "https://huggingface.co/a/resolve/main/x"),
        ("case", "https://HuggingFace.co:443/a"),
        ("shop", "https://civitai.com/api/download/models/1?type=Model&format=SafeTensor"),
        ("short", "https://hf.co/a/resolve/main/x"),
        ("red", "https://civitai.red/api/download/models/1"),
        ("cdn", "https://cdn.huggingface.co/a"),
        ("longer", "https://huggingface.co.example.org/a"),
        ("port", "https://huggingface.co:8443/a"),
    ]
    .into_iter()
    .enumerate()
    {
        let file = content(number as u64, 5_000);
        let parsed = url::Url::parse(url).unwrap();
        let host = format!("{}:{}", parsed.host_str().unwrap(), parsed.port_or_known_default().unwrap());
        machine.store.put(&format!("/{host}{}", parsed.path()), Way::File(file.clone()));
        // Without a hash, a redirect from https to http is refused.
        add(&db, id, url, id, &sum("sha256sum", &file), true, &[]).await;
    }
    let server = Server::start(&db).await;
    machine.catalog(&server);
    // It would replace the hub.
    machine.set("HF_ENDPOINT", "");
    let (hub, shop) = (machine.token.clone(), format!("{}c", machine.token));
    let certificate = machine.folder.join("certificate.pem").to_str().unwrap().to_owned();
    for (name, value) in [("CIVITAI_TOKEN", &shop), ("HTTPS_PROXY", &proxy), ("CURL_CA_BUNDLE", &certificate)] {
        machine.set(name, value);
    }
    let boot = machine.boot(&[]);
    assert_eq!(boot.status, 0, "{}", boot.log);
    let mut seen = std::mem::take(&mut *seen.lock().unwrap());
    seen.iter_mut().for_each(|(host, _)| host.make_ascii_lowercase());
    seen.sort();
    let expected = [
        ("cdn.huggingface.co:443", None),
        ("civitai.com:443", Some(shop.clone())),
        ("civitai.red:443", Some(shop)),
        ("hf.co:443", Some(hub.clone())),
        ("huggingface.co.example.org:443", None),
        ("huggingface.co:443", Some(hub.clone())),
        ("huggingface.co:443", Some(hub)),
        ("huggingface.co:8443", None),
    ];
    assert_eq!(seen, expected.map(|(host, token)| (host.to_owned(), token)), "{}", boot.log);
    let stored = machine.store.take_requests();
    assert!(!stored.is_empty() && stored.iter().all(|request| request.token.is_none()), "{stored:?}");
}

#[tokio::test]
async fn redirect_from_https_to_http_needs_a_hash() {
    let mut machine = Machine::new("downgrade", "hashed,unhashed");
    let file = content(1, 5_000);
    let url = machine.store.put("/a", Way::File(file.clone()));
    let (proxy, _) = hubs(&machine.folder, move |_, _| response(302, &[&format!("location: {url}")], ""));
    let hash = sum("sha256sum", &file);
    let row = |id, hash| (id, "https://example.org/a", id, hash, None);
    machine.models_are(&[row("hashed", Some(hash)), row("unhashed", None)]);
    let certificate = machine.folder.path("certificate.pem");
    machine.set("HTTPS_PROXY", &proxy);
    machine.set("CURL_CA_BUNDLE", &certificate);
    let boot = machine.boot(&[]);
    assert_eq!((boot.status, machine.files()), (1, vec!["hashed".to_owned()]), "{}", boot.log);
    for line in [
        r#"missing model="unhashed" reason="example.org redirects from https to http, and the catalog has no hash"#,
        r#"a redirect from https to http: only the hash protects this file from="example.org" to="127.0.0.1""#,
    ] {
        assert!(boot.log.contains(line), "{line}: {}", boot.log);
    }
}

/// A SOCKS5 proxy that connects to `target`, whatever it is asked for; sends the names that it was asked for.
fn socks(target: String) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, (seen, names)) = (listener.local_addr().unwrap().to_string(), mpsc::channel());
    let proxy = move |mut client: TcpStream, seen: mpsc::Sender<String>| -> std::io::Result<()> {
        let mut greeting = [0; 2];
        client.read_exact(&mut greeting)?;
        client.read_exact(&mut vec![0; greeting[1].into()])?;
        client.write_all(&[5, 0])?;
        // CONNECT to a name of this length.
        let mut head = [0; 5];
        client.read_exact(&mut head)?;
        let mut name = vec![0; usize::from(head[4]) + 2];
        client.read_exact(&mut name)?;
        seen.send(String::from_utf8_lossy(&name[..name.len() - 2]).into_owned()).unwrap();
        client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
        let (mut server, mut requests) = (TcpStream::connect(&target)?, client.try_clone()?);
        let mut to_server = server.try_clone()?;
        std::thread::spawn(move || std::io::copy(&mut requests, &mut to_server));
        std::io::copy(&mut server, &mut client).map(drop)
    };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (proxy, seen) = (proxy.clone(), seen.clone());
            std::thread::spawn(move || drop(proxy(stream.unwrap(), seen)));
        }
    });
    (address, names)
}

#[test]
fn proxies_are_used_as_curl_uses_them() {
    let mut machine = Machine::new("proxies", "a");
    let file = content(1, 5_000);
    machine.store.put("http://files.invalid/a", Way::File(file.clone()));
    machine.store.put("/a", Way::File(file.clone()));
    machine.models_are(&[("a", "http://files.invalid/a", "a", Some(sum("sha256sum", &file)), None)]);
    let store = machine.store.address.clone();
    let (socks, names) = socks(store.clone());
    machine.set("NO_PROXY", "127.0.0.1");
    for (name, value) in [
        ("HTTP_PROXY", store.clone()),
        ("http_proxy", format!("user:word@{store}")),
        ("ALL_PROXY", format!("http://{store}/")),
        ("all_proxy", format!("socks5h://{socks}")),
    ] {
        machine.set(name, &value);
        let boot = machine.boot(&[]);
        assert!(boot.status == 0 && machine.read("a").as_ref() == Some(&file), "{name} {value}: {}", boot.log);
        assert!(!boot.log.contains("is ignored"), "{name} {value}: {}", boot.log);
        std::fs::remove_dir_all(machine.models()).unwrap();
        machine.settings.retain(|(other, _)| other != name);
    }
    assert_eq!(names.try_iter().next().as_deref(), Some("files.invalid"));
    machine.set("HTTPS_PROXY", "ftp://user:s3cret@proxy:3128");
    machine.set("all_proxy", "pr oxy");
    let boot = machine.boot(&[]);
    for name in ["HTTPS_PROXY", "all_proxy"] {
        assert!(boot.log.contains(&format!("{name} is ignored: it is not the URL of a proxy")), "{}", boot.log);
    }
    assert!(!boot.log.contains("s3cret") && !boot.log.contains("HTTP_PROXY is"), "{}", boot.log);
}
