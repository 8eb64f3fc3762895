//! `model-catalog pull` with a real catalog server, and a test hub and store to download from.

mod boot;
mod cache;
mod connections;
mod features;
mod files;
mod hostile;
mod hostile_servers;
pub mod hubs;
mod kills;
mod misbehaviour;
mod outages;
mod outputs;
mod probe;
mod shared;
mod tokens;
mod written_files;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use files::Files;
use sha2::{Digest, Sha256};

use crate::support::{Db, Server, TempFolder, WAIT_LIMIT};

const PROGRAM: &str = env!("CARGO_BIN_EXE_model-catalog");

/// The folder with the record and the journals.
const RECORD: [&str; 2] = [".model-catalog/record.json", ".model-catalog/record.lock"];

/// A machine with an empty models folder, and the hub and store it downloads from.
struct Machine {
    folder: TempFolder,
    /// Requires the token; its URL is HF_ENDPOINT.
    hub: Files,
    /// The target of the hub's redirects; it must not receive a token.
    store: Files,
    token: String,
    settings: Vec<(String, String)>,
    /// The user that runs the program.
    user: Option<u32>,
    flags: Vec<&'static str>,
}

/// A model: id, URL, save path, hash, size in 10^9 bytes.
type Row<'a> = (&'a str, &'a str, &'a str, Option<String>, Option<f64>);

/// The result of a run.
struct Boot {
    status: i32,
    output: String,
    log: String,
}

/// Deterministic bytes for a seed.
fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

/// The output of a coreutils checksum program for `content`.
fn sum(program: &str, content: &[u8]) -> String {
    let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), content).unwrap();
    let text = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    text.split(' ').next().unwrap().to_owned()
}

/// The key of a partial file: `content` is the hash as `KIND:DIGITS`, or the URL.
fn key(path: &str, content: &str) -> String {
    let digest = Sha256::digest(format!("{path}\0{content}"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()[..24].to_owned()
}

/// Adds a model; `hash` may be empty.
async fn add(db: &Db, id: &str, url: &str, path: &str, hash: &str, auth: bool, needs: &[&str]) {
    let insert = "INSERT INTO models (id, name, download_url, save_path, hash, auth_required, dependencies)
                  VALUES ($1, $1, $2, $3, nullif($4, ''), $5, to_jsonb($6::text[]))";
    db.client.execute(insert, &[&id, &url, &path, &hash, &auth, &needs]).await.unwrap();
}

/// The response of a catalog that has these models.
fn models_response(models: &[Row<'_>]) -> serde_json::Value {
    let model = |(id, url, path, hash, size): &Row<'_>| {
        serde_json::json!({"id": id, "download_url": url, "hash": hash, "file_size_gb": size, "auth_required": true,
                           "save_path": path})
    };
    let models: Vec<_> = models.iter().map(model).collect();
    serde_json::json!({"models": models, "not_found": [], "missing_dependencies": []})
}

impl Machine {
    /// A machine that needs these models.
    fn new(name: &str, needed: &str) -> Self {
        let folder = TempFolder::new(&format!("machine-{name}"));
        let token = format!("hf_{name}{:016x}", fastrand::u64(..));
        let (hub, store) = (Files::start(&token), Files::start(&token));
        let settings = [
            ("MACHINE_MODELS_NEEDED", needed),
            ("HF_TOKEN", &token),
            ("HF_ENDPOINT", &format!("http://{}/", hub.address)),
            ("MACHINE_MODELS_TRIES", "2"),
            ("MACHINE_MODELS_WAIT", "1"),
            ("TMPDIR", folder.to_str().unwrap()),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Self { folder, hub, store, token, settings, user: None, flags: Vec::new() }
    }

    fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(other, _)| other != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    fn catalog(&mut self, server: &Server) {
        self.set("CATALOG_URL", &format!("http://{}", server.address));
    }

    /// A catalog that always has these models.
    fn models_are(&mut self, models: &[Row<'_>]) {
        self.store.put("/api/models/batch", files::Way::Post(models_response(models).to_string()));
        self.set("CATALOG_URL", &format!("http://{}", self.store.address));
    }

    fn models(&self) -> PathBuf {
        self.folder.join("models")
    }

    fn spawn(&self, command: &[&str]) -> Child {
        self.pull(&[], command).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// The command line of `pull`, through another program if `prefix` is not empty.
    fn pull(&self, prefix: &[String], command: &[&str]) -> Command {
        let arguments = [prefix, &[PROGRAM.to_owned()]].concat();
        let mut boot = Command::new(&arguments[0]);
        boot.args(&arguments[1..]).arg("pull").args(&self.flags);
        if !command.is_empty() {
            boot.arg("--").args(command);
        }
        boot.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("MODELS_DIR", self.models());
        boot.envs(self.settings.iter().cloned()).current_dir("/");
        if let Some(user) = self.user {
            std::os::unix::process::CommandExt::uid(&mut boot, user);
        }
        boot.stdin(Stdio::null()).stdout(Stdio::piped());
        boot
    }

    /// Runs `pull`; checks that no token was exposed and no temporary folder is left.
    fn boot(&self, command: &[&str]) -> Boot {
        self.ended(self.spawn(command))
    }

    /// The same, but a boot that waits too long is killed, and then has no status. Its log must fit into a pipe.
    fn boot_in_time(&self, command: &[&str]) -> Boot {
        let mut boot = self.spawn(command);
        let deadline = Instant::now() + WAIT_LIMIT;
        while boot.try_wait().unwrap().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(3));
        }
        let _ = boot.kill();
        self.ended(boot)
    }

    /// The same through another program.
    fn boot_through(&self, prefix: &[&str]) -> Boot {
        let prefix: Vec<_> = prefix.iter().map(|&argument| argument.to_owned()).collect();
        self.ended(self.pull(&prefix, &[]).stderr(Stdio::piped()).spawn().unwrap())
    }

    fn ended(&self, boot: Child) -> Boot {
        let done = boot.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let boot =
            Boot { status: done.status.code().unwrap_or(-1), output: text(&done.stdout), log: text(&done.stderr) };
        self.hub.assert_no_leak();
        self.store.assert_no_leak();
        assert!(!boot.log.contains(&self.token), "the token was logged: {}", boot.log);
        let left: Vec<_> = std::fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("tmp.")), "{left:?} stayed");
        boot
    }

    fn put(&self, path: &str, content: &[u8]) {
        let path = self.models().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn read(&self, path: &str) -> Option<Vec<u8>> {
        std::fs::read(self.models().join(path)).ok()
    }

    /// All files in the models folder except the record, sorted.
    fn files(&self) -> Vec<String> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.file_type().unwrap().is_dir() {
                    true => walk(&entry.path(), found),
                    false => found.push(entry.path()),
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.models(), &mut found);
        let name = |path: &PathBuf| path.strip_prefix(self.models()).unwrap().to_string_lossy().into_owned();
        let mut names: Vec<_> = found.iter().map(name).filter(|name| !RECORD.contains(&&**name)).collect();
        names.sort_unstable();
        names
    }
}
