//! The unit under a systemd of its own: a container with this machine's `/usr` and network and nothing else of it, booted
//! by systemd-nspawn, in which the documented commands install the program.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use model_catalog::postgres::ephemeral::{EphemeralOptions, EphemeralPostgres};

use super::{free_port, place, text};
use crate::docs::block;
use crate::support::raw::Raw;
use crate::support::{migrated, plain, skip, until};

/// Where cgroups can be mounted: two hierarchies side by side, or the one of today.
const HIERARCHIES: [&str; 3] = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// A booted system; dropping it is like pulling the plug.
struct Machine {
    name: String,
    root: PathBuf,
    cgroups: Vec<PathBuf>,
    nspawn: Option<Child>,
    init: String,
}

impl Machine {
    /// Boots, or says why this machine can have no other within it.
    async fn boot() -> Result<Self, String> {
        if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
            return Err("only root may boot a container".into());
        }
        let unshared = Command::new("unshare").args(["--mount", "--pid", "--fork", "true"]).output().unwrap();
        if !unshared.status.success() {
            return Err(String::from_utf8_lossy(&unshared.stderr).into_owned());
        }
        let name = format!("model-catalog-{:x}", fastrand::u64(..));
        let root = std::env::temp_dir().join(&name);
        let mut machine = Self { root, name, cgroups: Vec::new(), nspawn: None, init: String::new() };
        // systemd would otherwise share the cgroups of whoever boots another one here at the same time.
        for hierarchy in HIERARCHIES.map(Path::new) {
            if hierarchy.join("cgroup.procs").exists() {
                let ours = hierarchy.join(&machine.name);
                std::fs::create_dir(&ours).map_err(|error| format!("{}: {error}", ours.display()))?;
                machine.cgroups.push(ours);
            }
        }
        if machine.cgroups.is_empty() {
            return Err("systemd needs cgroups, and none are mounted at /sys/fs/cgroup".into());
        }
        machine.furnish();
        machine.start().await;
        Ok(machine)
    }

    /// A root directory with what no `/usr` brings.
    fn furnish(&self) {
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
        // Empty, it is no first boot, at which systemd enables every unit of /usr.
        write("machine-id", "");
    }

    async fn start(&mut self) {
        let enter: String =
            self.cgroups.iter().map(|path| format!("echo $$ > {}/cgroup.procs; ", path.display())).collect();
        let mut command = Command::new("setpriv");
        // Whatever ends the test ends the machine: it is shut down.
        command.args(["--pdeathsig", "TERM", "sh", "-ec", &format!("{enter} exec systemd-nspawn \"$@\""), "sh"]);
        command.args(["--quiet", "--keep-unit", "--register=no", "--console=pipe", "--link-journal=no"]);
        command.args(["--resolv-conf=off", "--timezone=off", "--bind-ro=/usr", "--bind=+/local:/usr/local"]);
        command.arg(format!("--bind-ro={}:/source/target/release/model-catalog", env!("CARGO_BIN_EXE_model-catalog")));
        command.arg(format!("--bind-ro={}:/source/deploy", place("deploy").display()));
        command.arg(format!("--machine={}", self.name)).arg("--directory").arg(&self.root);
        command.args(["--boot", "systemd.unit=basic.target"]);
        let log = std::fs::File::create(self.log()).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.nspawn = Some(command.spawn().unwrap());
        let pid = self.nspawn.as_ref().unwrap().id();
        until("systemd runs", || {
            let ended = self.nspawn.as_mut().unwrap().try_wait().unwrap();
            let log = std::fs::read_to_string(self.log()).unwrap();
            assert!(ended.is_none(), "systemd-nspawn, which `make test-tools` installs, ended: {log}");
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            self.init = children.trim().to_owned();
            let name = std::fs::read_to_string(format!("/proc/{}/comm", self.init)).unwrap_or_default();
            std::future::ready(name == "systemd\n")
        })
        .await;
        until("it has booted", || std::future::ready(self.run("systemctl is-active --quiet basic.target").0)).await;
    }

    fn log(&self) -> PathBuf {
        self.root.join("console.log")
    }

    /// Runs a script inside, as root; gives whether it succeeded and what it said.
    fn run(&self, script: &str) -> (bool, String) {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init, "--mount", "--pid", "--uts", "--ipc", "--root", "--wd"]);
        let output = command.args(["timeout", "60", "bash", "-ec", script]).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.success(), said.trim_end().to_owned())
    }

    /// The same where it must succeed.
    fn sh(&self, script: &str) -> String {
        let (succeeded, said) = self.run(script);
        assert!(succeeded, "{script}: {said}\n{}", self.journal());
        said
    }

    fn journal(&self) -> String {
        self.run("journalctl --no-pager --output=cat --unit=model-catalog").1
    }

    /// A property of the unit, as systemd has it now.
    fn property(&self, name: &str) -> String {
        self.sh(&format!("systemctl show --value --property={name} model-catalog"))
    }

    async fn until(&self, property: &str, value: &str) {
        until(&format!("{property} is {value}"), || std::future::ready(self.property(property) == value)).await;
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.init.is_empty() {
            eprintln!("the unit's journal:\n{}", self.journal());
        }
        if let Some(nspawn) = &mut self.nspawn {
            // With the first of all processes inside end the others, and then nspawn; without nspawn they would not.
            let first = if self.init.is_empty() { nspawn.id().to_string() } else { self.init.clone() };
            let _ = Command::new("kill").args(["-KILL", &first]).status();
            let _ = nspawn.wait();
        }
        for cgroup in &self.cgroups {
            // The processes that were in it need a moment to be gone.
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

/// A cgroup is no tree of files: directories can be removed, from the innermost on, and nothing else.
fn remove_cgroup(path: &Path) {
    let inner = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    inner.filter(|path| path.is_dir()).for_each(|path| remove_cgroup(&path));
    let _ = std::fs::remove_dir(path);
}

/// The documented commands for systemd, with an address, a password and further settings in place of the examples.
fn installation(address: &str, password: &str, settings: &str) -> String {
    let mut commands = block(&["bash"], "systemctl daemon-reload");
    let url = format!("postgres://catalog_server@{address}/models");
    for (example, ours) in [
        ("postgres://catalog_server@db/models", format!("{url}\n{settings}")),
        ("db:5432:models:catalog_server:…", format!("{address}:models:catalog_server:{password}")),
    ] {
        assert!(commands.contains(example), "{commands}");
        commands = commands.replace(example, &ours);
    }
    format!("cd /source\n{commands}")
}

/// A Postgres that lets nobody in by TCP without a password.
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
async fn the_unit_starts_serves_drains_and_is_started_again() {
    let machine = match Machine::boot().await {
        Ok(machine) => machine,
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
    let [api, admin] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let settings = format!("CATALOG_ADDR={api}\nCATALOG_ADMIN_ADDR={admin}\nCATALOG_DRAIN_GRACE=1s");
    let ready = || std::net::TcpStream::connect(&admin).ok().map(|_| Raw::open(&admin).get("/readyz"));
    let status = || std::future::ready(ready().is_some_and(|reply| reply.status == 200));
    let serves = async || {
        until("it is ready", status).await;
        let reply = Raw::open(&api).get("/api/models/a");
        assert_eq!((reply.status, reply.text()), (200, plain("a")));
    };

    machine.sh(&installation(&format!("127.0.0.1:{}", postgres.port()), "not-in-environ", &settings));
    serves().await;
    looks_into_the_sandbox(&machine);

    // Killed, it comes back by itself.
    let first = machine.property("MainPID");
    machine.sh("systemctl kill --signal=KILL model-catalog");
    machine.until("NRestarts", "1").await;
    machine.until("SubState", "running").await;
    assert_ne!(machine.property("MainPID"), first);
    serves().await;

    // Stopped, it is not ready any more and goes on answering; that is no failure.
    let kept = &mut Raw::open(&api);
    assert_eq!(kept.get("/api/models/a").status, 200);
    machine.sh("systemctl stop --no-block model-catalog");
    until("it says that it goes", || std::future::ready(ready().is_some_and(|reply| reply.status == 503))).await;
    assert_eq!(kept.get("/api/models/a").status, 200);
    machine.until("ActiveState", "inactive").await;
    let end = ["Result", "ExecMainCode", "ExecMainStatus"].map(|name| machine.property(name));
    assert_eq!(end, ["success", "1", "0"], "{}", machine.journal());

    // Its state directory has kept the catalog: it serves without a database.
    drop((client, postgres));
    machine.sh("systemctl start model-catalog");
    serves().await;
    assert_eq!(ready().unwrap().json()["source"], "file");
    let state =
        machine.sh("stat -Lc '%a %u' /var/lib/model-catalog; stat -Lc '%u' /var/lib/model-catalog/catalog.snapshot");
    let words: Vec<_> = state.split_whitespace().collect();
    assert!(words[0] == "700" && words[1] != "0" && words[1] == words[2], "{state}");

    // Wrong settings stay wrong, and no restart is tried.
    machine.sh("systemctl stop model-catalog; echo CATALOG_POLL_INTERVAL=soon >> /etc/model-catalog/environment");
    machine.sh("systemctl start model-catalog");
    machine.until("ActiveState", "failed").await;
    assert_eq!([machine.property("ExecMainStatus"), machine.property("NRestarts")], ["2", "0"]);
    assert!(machine.journal().contains("CATALOG_POLL_INTERVAL"), "{}", machine.journal());
}

/// What the process has, as the kernel says; and that systemd scores it as documented.
fn looks_into_the_sandbox(machine: &Machine) {
    let pid = machine.property("MainPID");
    let status = machine.sh(&format!("cat /proc/{pid}/status"));
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    let user: u32 = field("Uid:").split_whitespace().next().unwrap().parse().unwrap();
    assert!((61184..=65519).contains(&user), "no user made for it: {status}");
    for capabilities in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(capabilities).trim_matches('0'), "", "{status}");
    }
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".into(), "2".into()), "{status}");
    for kind in ["mnt", "user", "uts"] {
        machine.sh(&format!("[ $(readlink /proc/{pid}/ns/{kind}) != $(readlink /proc/1/ns/{kind}) ]"));
    }
    let environment = machine.sh(&format!("tr '\\0' '\\n' < /proc/{pid}/environ"));
    assert!(environment.contains("PGPASSFILE=") && !environment.contains("not-in-environ"), "{environment}");
    // All that its user may write to; the temporary directories are its own.
    let find = "find / -path /proc -prune -o -path '/var/lib/private/*' -prune -print -o -writable '(' -type d -o -type f ')' -print";
    let inside = format!("nsenter --target {pid} --mount setpriv --reuid {user} --regid {user} --clear-groups");
    let (_, writable) = machine.run(&format!("{inside} {find} 2> /dev/null | sort"));
    assert_eq!(writable.replace('\n', " "), "/tmp /var/lib/private/model-catalog /var/tmp");
    let said = machine.sh("systemd-analyze security --no-pager model-catalog");
    let score = said.split("model-catalog.service: ").nth(1).and_then(|rest| rest.split(' ').next());
    let score = score.unwrap_or_else(|| panic!("{said}"));
    assert!(
        text("docs/deployment.md").contains(&format!("scores it {score} ")),
        "systemd scores the running unit {score}"
    );
}
