//! The Dockerfile, tested without Docker or a registry: the program runs with the settings of the final stage, in a
//! read-only root directory that holds only the program and the libraries of the image, as the image's user and without
//! capabilities.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use model_catalog::postgres::ephemeral::{EphemeralOptions, EphemeralPostgres, free_port};

use super::text;
use crate::support::raw::Raw;
use crate::support::{TempFolder, migrated, skip, until};

/// Libraries of distroless/cc. The dynamic loader is there as well; its name depends on the architecture.
const LIBRARIES: [&str; 3] = ["libc.so.6", "libm.so.6", "libgcc_s.so.1"];

/// Name and arguments of each instruction of the last stage.
fn instructions() -> Vec<(String, String)> {
    let text = text("deploy/Dockerfile").replace("\\\n", " ");
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let all: Vec<_> = lines.filter_map(|line| line.split_once(' ')).map(|(a, b)| (a.into(), b.trim().into())).collect();
    let last = all.iter().rposition(|(name, _): &(String, String)| name == "FROM").unwrap();
    all[last..].to_vec()
}

fn instruction(name: &str) -> String {
    let found = instructions().into_iter().find(|(other, _)| other == name);
    found.unwrap_or_else(|| panic!("the final image has no {name}")).1
}

/// The arguments of an instruction in exec form; the shell form would need a shell in the image.
fn words(instruction: &str) -> Vec<String> {
    serde_json::from_str(instruction).unwrap_or_else(|error| panic!("{instruction}: {error}"))
}

/// A root directory with the program, its libraries and an empty state directory.
struct Root {
    path: TempFolder,
    variables: Vec<(String, String)>,
}

impl Root {
    fn new() -> Self {
        let path = TempFolder::new("root");
        let program = env!("CARGO_BIN_EXE_model-catalog");
        let listed = Command::new("ldd").arg(program).output().unwrap();
        let mut copies = vec![(PathBuf::from(program), PathBuf::from("usr/local/bin/model-catalog"))];
        for line in String::from_utf8(listed.stdout).unwrap().lines() {
            let file = line.split_whitespace().find(|word| word.starts_with('/'));
            let Some(file) = file else { continue };
            let name = Path::new(file).file_name().unwrap().to_str().unwrap();
            assert!(LIBRARIES.contains(&name) || name.starts_with("ld-linux"), "the image lacks {name}");
            copies.push((file.into(), file.trim_start_matches('/').into()));
        }
        for (from, to) in copies {
            let to = path.join(to);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(&from, &to).unwrap();
        }
        for directory in ["proc", "var/lib/model-catalog"] {
            std::fs::create_dir_all(path.join(directory)).unwrap();
        }
        let variables =
            instruction("ENV").split_whitespace().map(|pair| pair.split_once('=').unwrap()).map(owned).collect();
        Self { path, variables }
    }

    /// A command inside the root, read-only except for the state directory, as the image's user if this process is root.
    fn command(&self, arguments: &[String]) -> Command {
        let user = instruction("USER");
        let script = format!(
            "set -e; mount --make-rprivate /; mount --bind '{root}' '{root}'; mount -o remount,bind,ro '{root}'\n\
             mount -t tmpfs -o mode=0777 state '{root}/var/lib/model-catalog'; mount --rbind /proc '{root}/proc'\n\
             if [ -n \"$AS_ROOT\" ]; then as=--userspec={user}; fi\n\
             exec setpriv --no-new-privs --inh-caps=-all -- chroot $as '{root}' \"$@\"",
            root = self.path.display()
        );
        let mut command = Command::new("unshare");
        let root = is_root();
        command.arg("--mount").args((!root).then_some("--map-root-user"));
        command.args(["--", "sh", "-c", &script, "sh"]).args(arguments);
        command.env_clear().env("PATH", std::env::var("PATH").unwrap()).envs(root.then_some(("AS_ROOT", "1")));
        command.envs(self.variables.iter().cloned()).stdin(Stdio::null());
        command
    }

    fn set(&mut self, name: &str, value: &str) {
        self.variables.push((name.into(), value.into()));
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let entry = words(&instruction("ENTRYPOINT")).into_iter();
        self.command(&entry.chain(arguments.iter().map(ToString::to_string)).collect::<Vec<_>>()).output().unwrap()
    }
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn image_settings_run_in_a_read_only_root_as_the_image_user() {
    let mut root = Root::new();
    let version = root.run(&["--version"]);
    let errors = String::from_utf8_lossy(&version.stderr).into_owned();
    if is_unavailable(&errors) {
        return skip(&format!("a mount namespace cannot be created here: {errors}"));
    }
    assert!(version.status.success(), "{errors}");

    let postgres =
        EphemeralPostgres::start(EphemeralOptions { loopback: true, ..EphemeralOptions::default() }).unwrap();
    let client = migrated(&postgres.url("postgres")).await;
    client
        .batch_execute(
            "INSERT INTO models (id, name, download_url, save_path) VALUES ('a', 'a', 'https://e.org/a', 'a')",
        )
        .await
        .unwrap();
    let [api, admin] = [free_port(), free_port()].map(Result::unwrap);
    root.set("DATABASE_URL", &postgres.loopback_url("postgres"));
    root.set("CATALOG_ADDR", &format!("0.0.0.0:{api}"));
    root.set("CATALOG_ADMIN_ADDR", &format!("0.0.0.0:{admin}"));
    let mut command = words(&instruction("ENTRYPOINT"));
    command.extend(words(&instruction("CMD")));
    let server = Running(root.command(&command).spawn().unwrap());

    let health = words(instruction("HEALTHCHECK").split("CMD ").nth(1).unwrap());
    until("the image's health check succeeds", || {
        let output = root.command(&health).output().unwrap();
        std::future::ready(output.status.success())
    })
    .await;
    assert_eq!(Raw::open(&format!("127.0.0.1:{api}")).get("/api/models/a").status, 200);
    let writes = r#"catalog_snapshot_file_operations_total{operation="write",outcome="ok"} "#;
    until("the snapshot file is written", || {
        let metrics = Raw::open(&format!("127.0.0.1:{admin}")).get("/metrics").text();
        assert!(metrics.contains("process_start_time_seconds "), "{metrics}");
        std::future::ready(metrics.lines().any(|line| line.strip_prefix(writes).is_some_and(|count| count != "0")))
    })
    .await;

    let status = std::fs::read_to_string(format!("/proc/{}/status", server.0.id())).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!(field("NoNewPrivs:"), "1");
    if is_root() {
        let user = instruction("USER").split(':').next().unwrap().to_owned();
        assert!(field("Uid:").split_whitespace().all(|id| id == user), "{status}");
        assert_eq!(field("CapEff:").trim_start_matches('0'), "", "{status}");
    }
}

/// Whether `unshare` itself failed: without the right to create a namespace, or in a chroot whose root is not a mount
/// point.
fn is_unavailable(stderr: &str) -> bool {
    stderr.starts_with("unshare: ")
}

#[test]
fn only_failures_of_unshare_skip_the_test_of_the_image() {
    for message in [
        "unshare: unshare failed: Operation not permitted\n",
        "unshare: cannot change root filesystem propagation: Invalid argument\n",
    ] {
        assert!(is_unavailable(message), "{message}");
    }
    for message in ["", "chroot: failed to run command '/model-catalog': No such file or directory\n"] {
        assert!(!is_unavailable(message), "{message}");
    }
}
