//! The systemd unit in a container that systemd-nspawn boots. The container shares this machine's `/usr` and network and
//! nothing else; the documented commands install the program in it.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use model_catalog::postgres::ephemeral::{EphemeralOptions, EphemeralPostgres, free_port};

use super::{repository_path, text};
use crate::docs::block;
use crate::support::raw::Raw;
use crate::support::{migrated, model_json, skip, until};

/// Mount points of cgroups: the hybrid layout of cgroup v1 and v2, or cgroup v2 alone.
const HIERARCHIES: [&str; 3] = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// A booted container, which is killed on drop.
struct Container {
    name: String,
    root: PathBuf,
    cgroups: Vec<PathBuf>,
    nspawn: Option<Child>,
    init: String,
}

impl Container {
    /// Boots a container, or returns the reason why this machine can run none.
    async fn boot() -> Result<Self, String> {
        if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
            return Err("booting a container requires root".into());
        }
        let unshared = Command::new("unshare").args(["--mount", "--pid", "--fork", "true"]).output().unwrap();
        if !unshared.status.success() {
            return Err(String::from_utf8_lossy(&unshared.stderr).into_owned());
        }
        let name = format!("model-catalog-{:x}", fastrand::u64(..));
        let root = std::env::temp_dir().join(&name);
        let mut container = Self { root, name, cgroups: Vec::new(), nspawn: None, init: String::new() };
        // A cgroup of its own, or systemd would use the same cgroups as a container that another test boots meanwhile.
        for hierarchy in HIERARCHIES.map(Path::new) {
            if hierarchy.join("cgroup.procs").exists() {
                let cgroup = hierarchy.join(&container.name);
                std::fs::create_dir(&cgroup).map_err(|error| format!("{}: {error}", cgroup.display()))?;
                container.cgroups.push(cgroup);
            }
        }
        if container.cgroups.is_empty() {
            return Err("systemd needs cgroups, and none are mounted at /sys/fs/cgroup".into());
        }
        container.create_root();
        container.start().await;
        Ok(container)
    }

    /// Creates a root directory with everything that is not under `/usr`.
    fn create_root(&self) {
        for directory in ["etc/systemd/system", "usr", "local/bin", "source/target/release", "source/deploy"] {
            std::fs::create_dir_all(self.root.join(directory)).unwrap();
        }
        for directory in ["bin", "sbin", "lib", "lib64"] {
            symlink(Path::new("usr").join(directory), self.root.join(directory)).unwrap();
        }
        std::fs::write(self.root.join("source/target/release/model-catalog"), "").unwrap();
        let write = |name: &str, text: &str| std::fs::write(self.root.join("etc").join(name), text).unwrap();
        write("os-release", "ID=model-catalog\n");
        write("nsswitch.conf", "passwd: files systemd\ngroup: files systemd\n");
        write("passwd", "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/usr/sbin/nologin\n");
        write("group", "root:x:0:\nnogroup:x:65534:\n");
        // A missing machine-id means first boot, at which systemd enables every unit under /usr; an empty one does not.
        write("machine-id", "");
    }

    async fn start(&mut self) {
        let enter: String =
            self.cgroups.iter().map(|path| format!("echo $$ > {}/cgroup.procs; ", path.display())).collect();
        let mut command = Command::new("setpriv");
        // If the test process dies, the container is shut down.
        command.args(["--pdeathsig", "TERM", "sh", "-ec", &format!("{enter} exec systemd-nspawn \"$@\""), "sh"]);
        command.args(["--quiet", "--keep-unit", "--register=no", "--console=pipe", "--link-journal=no"]);
        command.args(["--resolv-conf=off", "--timezone=off", "--bind-ro=/usr", "--bind=+/local:/usr/local"]);
        command.arg(format!("--bind-ro={}:/source/target/release/model-catalog", env!("CARGO_BIN_EXE_model-catalog")));
        command.arg(format!("--bind-ro={}:/source/deploy", repository_path("deploy").display()));
        command.arg(format!("--machine={}", self.name)).arg("--directory").arg(&self.root);
        command.args(["--boot", "systemd.unit=basic.target"]);
        let log = std::fs::File::create(self.log()).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.nspawn = Some(command.spawn().unwrap());
        let pid = self.nspawn.as_ref().unwrap().id();
        until("systemd is running", || {
            let exited = self.nspawn.as_mut().unwrap().try_wait().unwrap();
            let log = std::fs::read_to_string(self.log()).unwrap();
            assert!(exited.is_none(), "systemd-nspawn, which `make test-tools` installs, exited: {log}");
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            self.init = children.trim().to_owned();
            let name = std::fs::read_to_string(format!("/proc/{}/comm", self.init)).unwrap_or_default();
            std::future::ready(name == "systemd\n")
        })
        .await;
        until("the container has booted", || {
            std::future::ready(self.run("systemctl is-active --quiet basic.target").0)
        })
        .await;
    }

    fn log(&self) -> PathBuf {
        self.root.join("console.log")
    }

    /// Runs a script in the container as root; returns whether it succeeded, and its output.
    fn run(&self, script: &str) -> (bool, String) {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init, "--mount", "--pid", "--uts", "--ipc", "--root", "--wd"]);
        let output = command.args(["timeout", "60", "bash", "-ec", script]).stdin(Stdio::null()).output().unwrap();
        let output_text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.success(), output_text.trim_end().to_owned())
    }

    /// Runs a script that must succeed, and returns its output.
    fn sh(&self, script: &str) -> String {
        let (succeeded, printed) = self.run(script);
        assert!(succeeded, "{script}: {printed}\n{}", self.journal());
        printed
    }

    fn journal(&self) -> String {
        self.run("journalctl --no-pager --output=cat --unit=model-catalog").1
    }

    /// The current value of a property of the unit.
    fn property(&self, name: &str) -> String {
        self.sh(&format!("systemctl show --value --property={name} model-catalog"))
    }

    async fn until(&self, property: &str, value: &str) {
        until(&format!("{property} is {value}"), || std::future::ready(self.property(property) == value)).await;
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.init.is_empty() {
            eprintln!("journal of the unit:\n{}", self.journal());
        }
        if let Some(nspawn) = &mut self.nspawn {
            // Killing the container's init ends its other processes and nspawn; killing nspawn would not.
            let init = if self.init.is_empty() { nspawn.id().to_string() } else { self.init.clone() };
            let _ = Command::new("kill").args(["-KILL", &init]).status();
            let _ = nspawn.wait();
        }
        for cgroup in &self.cgroups {
            // A cgroup can be removed only once its processes have exited.
            for _ in 0..1000 {
                remove_cgroup(cgroup);
                if !cgroup.exists() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        let _ = std::fs::remove_dir(Path::new("/run/systemd/nspawn/propagate").join(&self.name));
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// Removes a cgroup with its children. Files in cgroups cannot be removed, so `remove_dir_all` does not work.
fn remove_cgroup(path: &Path) {
    let inner = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    inner.filter(|path| path.is_dir()).for_each(|path| remove_cgroup(&path));
    let _ = std::fs::remove_dir(path);
}

/// The documented commands for systemd, with the test's address, password and settings in place of the examples.
fn installation(address: &str, password: &str, settings: &str) -> String {
    let mut commands = block(&["bash"], "enable --now model-catalog");
    let url = format!("postgres://catalog_server@{address}/models");
    for (example, replacement) in [
        ("postgres://catalog_server@db/models", format!("{url}\n{settings}")),
        ("db:5432:models:catalog_server:…", format!("{address}:models:catalog_server:{password}")),
    ] {
        assert!(commands.contains(example), "{commands}");
        commands = commands.replace(example, &replacement);
    }
    format!("cd /source\n{commands}")
}

#[tokio::test]
async fn cache_starts_in_its_sandbox() {
    let container = match Container::boot().await {
        Ok(container) => container,
        Err(reason) => return skip(&reason),
    };
    let port = free_port().unwrap();
    let documented = block(&["bash"], "enable --now model-cache");
    let commands = documented.replace(
        "systemctl daemon-reload",
        &format!("sed -i s/8800/{port}/ /etc/nginx/model-cache.conf && systemctl daemon-reload"),
    );
    assert!(commands != documented, "{documented}");
    let commands = commands.replace("apt-get install nginx\n", "test -x /usr/sbin/nginx\n");
    let certificates = "/etc/ssl/certs/ca-certificates.crt";
    std::fs::create_dir_all(container.root.join("etc/ssl/certs")).unwrap();
    std::fs::copy(certificates, container.root.join(certificates.trim_start_matches('/'))).unwrap();
    std::fs::write(container.root.join("etc/resolv.conf"), "nameserver 127.0.0.53\nnameserver fe80::1%eth0\n").unwrap();
    container.sh(&format!("cd /source\n{commands}"));
    let address = format!("127.0.0.1:{port}");
    let status = |path: &str| Raw::try_open(&address).map(|mut connection| connection.get(path).status);
    until("nginx responds", || std::future::ready(status("/livez") == Some(200))).await;
    assert_eq!(status(&format!("/sha256/{}", "0a".repeat(32))), Some(404));
    assert_eq!(container.sh("cat /run/model-cache/resolver.conf"), "resolver 127.0.0.53 ;");
    let state = container.sh("stat -Lc '%a %u' /var/cache/model-cache /var/log/model-cache/access.log");
    let words: Vec<_> = state.split_whitespace().collect();
    assert!(words[0] == "700" && words[1] != "0" && words[1] == words[3], "{state}");
    container.sh("systemctl stop model-cache; test $(systemctl show --value --property=Result model-cache) = success");
}

/// A Postgres that requires a password over TCP.
async fn postgres() -> EphemeralPostgres {
    let mut rules = std::env::temp_dir();
    rules.push(format!("hba-{:x}", fastrand::u64(..)));
    let mut file = std::fs::File::create(&rules).unwrap();
    file.write_all(b"local all all trust\nhost models catalog_server 127.0.0.1/32 scram-sha-256\n").unwrap();
    let settings = vec![("hba_file".into(), rules.to_str().unwrap().into())];
    let postgres =
        EphemeralPostgres::start(EphemeralOptions { loopback: true, settings, ..EphemeralOptions::default() }).unwrap();
    std::fs::remove_file(rules).unwrap();
    crate::support::connect(&postgres.url("postgres")).await.batch_execute("CREATE DATABASE models").await.unwrap();
    postgres
}

#[tokio::test]
async fn systemd_unit_starts_serves_drains_and_restarts() {
    let container = match Container::boot().await {
        Ok(container) => container,
        Err(reason) => return skip(&reason),
    };
    let postgres = postgres().await;
    let client = migrated(&postgres.url("models")).await;
    client
        .batch_execute(
            "CREATE ROLE catalog_server LOGIN PASSWORD 'not-in-environ';
             GRANT USAGE ON SCHEMA model_catalog TO catalog_server;
             GRANT SELECT ON ALL TABLES IN SCHEMA model_catalog TO catalog_server;
             INSERT INTO models (id, name, download_url, save_path)
             VALUES ('a', 'a.safetensors', 'https://example.org/a', 'checkpoints/a')",
        )
        .await
        .unwrap();
    let [api, admin] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{}", port.unwrap()));
    let settings = format!("CATALOG_ADDR={api}\nCATALOG_ADMIN_ADDR={admin}\nCATALOG_DRAIN_GRACE=5s");
    let ready = || Raw::try_open(&admin).map(|mut connection| connection.get("/readyz"));
    let status = || std::future::ready(ready().is_some_and(|reply| reply.status == 200));
    let assert_serves = async || {
        until("the server is ready", status).await;
        let reply = Raw::open(&api).get("/api/models/a");
        assert_eq!((reply.status, reply.text()), (200, model_json("a")));
    };

    container.sh(&installation(&format!("127.0.0.1:{}", postgres.port()), "not-in-environ", &settings));
    assert_serves().await;
    assert_sandboxed(&container);

    // systemd restarts it after a kill.
    let first = container.property("MainPID");
    container.sh("systemctl kill --signal=KILL model-catalog");
    container.until("NRestarts", "1").await;
    container.until("SubState", "running").await;
    assert_ne!(container.property("MainPID"), first);
    assert_serves().await;

    // On stop it reports not ready and serves on during the grace period; the result is success.
    let connection = &mut Raw::open(&api);
    assert_eq!(connection.get("/api/models/a").status, 200);
    container.sh("systemctl stop --no-block model-catalog");
    until("it reports that it is draining", || std::future::ready(ready().is_some_and(|reply| reply.status == 503)))
        .await;
    assert_eq!(connection.get("/api/models/a").status, 200);
    container.until("ActiveState", "inactive").await;
    let end = ["Result", "ExecMainCode", "ExecMainStatus"].map(|name| container.property(name));
    assert_eq!(end, ["success", "1", "0"], "{}", container.journal());

    // Its state directory holds the snapshot file, so it serves without a database.
    drop((client, postgres));
    container.sh("echo CATALOG_DRAIN_GRACE=0s >> /etc/model-catalog/environment; systemctl start model-catalog");
    assert_serves().await;
    assert_eq!(ready().unwrap().json()["source"], "file");
    let state =
        container.sh("stat -Lc '%a %u' /var/lib/model-catalog; stat -Lc '%u' /var/lib/model-catalog/catalog.snapshot");
    let words: Vec<_> = state.split_whitespace().collect();
    assert!(words[0] == "700" && words[1] != "0" && words[1] == words[2], "{state}");

    // systemd does not restart it after a configuration error.
    container.sh("systemctl stop model-catalog; echo CATALOG_POLL_INTERVAL=soon >> /etc/model-catalog/environment");
    container.sh("systemctl start model-catalog");
    container.until("ActiveState", "failed").await;
    assert_eq!([container.property("ExecMainStatus"), container.property("NRestarts")], ["2", "0"]);
    assert!(container.journal().contains("CATALOG_POLL_INTERVAL"), "{}", container.journal());
}

/// Privileges of the process according to the kernel, and the security score of systemd.
fn assert_sandboxed(container: &Container) {
    let pid = container.property("MainPID");
    let status = container.sh(&format!("cat /proc/{pid}/status"));
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    let user: u32 = field("Uid:").split_whitespace().next().unwrap().parse().unwrap();
    assert!((61184..=65519).contains(&user), "not a dynamic user: {status}");
    for capabilities in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(capabilities).trim_matches('0'), "", "{status}");
    }
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".into(), "2".into()), "{status}");
    for kind in ["mnt", "user", "uts"] {
        container.sh(&format!("[ $(readlink /proc/{pid}/ns/{kind}) != $(readlink /proc/1/ns/{kind}) ]"));
    }
    let environment = container.sh(&format!("tr '\\0' '\\n' < /proc/{pid}/environ"));
    assert!(environment.contains("PGPASSFILE=") && !environment.contains("not-in-environ"), "{environment}");
    // Everything that its user may write to; the temporary directories are private.
    let find = "find / -path /proc -prune -o -path '/var/lib/private/*' -prune -print -o -writable '(' -type d -o -type f ')' -print";
    let inside = format!("nsenter --target {pid} --mount setpriv --reuid {user} --regid {user} --clear-groups");
    let (_, writable) = container.run(&format!("{inside} {find} 2> /dev/null | sort"));
    assert_eq!(writable.replace('\n', " "), "/tmp /var/lib/private/model-catalog /var/tmp");
    let printed = container.sh("systemd-analyze security --no-pager model-catalog");
    let score = printed.split("model-catalog.service: ").nth(1).and_then(|rest| rest.split(' ').next());
    let score = score.unwrap_or_else(|| panic!("{printed}"));
    assert!(
        text("docs/deployment.md").contains(&format!("scores it {score} ")),
        "systemd scores the running unit {score}"
    );
}
