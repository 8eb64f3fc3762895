//! The files that `pull`, `export` and `probe` write, in directories where somebody else put links, pipes, folders and
//! endless files under their names.

use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use super::files::Way;
use super::{Machine, PROGRAM, content, key, sum};
use crate::support::{Db, preload};

const SIZE: usize = 50_000;

/// What is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trap {
    Link,
    Pipe,
    Folder,
    /// A sparse file of a terabyte.
    Endless,
}

const TRAPS: [Trap; 4] = [Trap::Link, Trap::Pipe, Trap::Folder, Trap::Endless];

impl Trap {
    fn put(self, path: &Path, precious: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        match self {
            Self::Link => symlink(precious, path).unwrap(),
            Self::Pipe => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
            Self::Folder => std::fs::create_dir(path).unwrap(),
            Self::Endless => std::fs::File::create(path).unwrap().set_len(1 << 40).unwrap(),
        }
    }
}

/// A machine that needs a file and a second one with the same content, which becomes a link.
fn machine(name: &str) -> Machine {
    let mut machine = Machine::new(name, "a,b");
    let file = content(1, SIZE);
    let url = machine.store.put("/a", Way::File(file.clone()));
    let hash = sum("sha256sum", &file);
    machine
        .models_are(&[("a", &url, "f/a", Some(hash.clone()), Some(0.01)), ("b", &url, "f/b", Some(hash), Some(0.01))]);
    std::fs::write(machine.folder.join("precious"), "precious").unwrap();
    machine
}

fn assert_precious(machine: &Machine, what: &str) {
    let text = std::fs::read_to_string(machine.folder.join("precious")).unwrap();
    assert_eq!(text, "precious", "{what}: a link was followed");
}

#[test]
fn nothing_in_the_models_folder_is_followed_or_waited_for() {
    let machine = machine("traps");
    let hash = format!("sha256:{}", sum("sha256sum", &content(1, SIZE)));
    let (a, b) = (key("f/a", &hash), key("f/b", &hash));
    let part = format!("f/.model-catalog-{a}.part");
    for name in [
        ".model-catalog/record.json",
        ".model-catalog/record.json.tmp",
        ".model-catalog/record.lock",
        &format!(".model-catalog/{a}.json"),
        &format!(".model-catalog/{a}.json.tmp"),
        &part,
        &format!("f/.model-catalog-{b}.part.link"),
    ] {
        for trap in TRAPS {
            let what = format!("{trap:?} at {name}");
            trap.put(&machine.models().join(name), &machine.folder.join("precious"));
            let boot = machine.boot_in_time(&[]);
            assert_precious(&machine, &what);
            // The download writes to no other name than this one.
            if name == part && trap != Trap::Endless {
                assert!(
                    boot.status == 1 && boot.log.contains("opening the partial file failed"),
                    "{what}: {}",
                    boot.log
                );
            } else {
                assert_eq!(boot.status, 0, "{what}: {}", boot.log);
                let files = ["f/a", "f/b"].map(|path| machine.read(path));
                assert!(files.iter().all(|file| *file == Some(content(1, SIZE))), "{what}: {}", boot.log);
            }
            std::fs::remove_dir_all(machine.models()).unwrap();
        }
    }
}

#[test]
fn reports_are_written_beside_whatever_is_in_the_way() {
    for trap in TRAPS {
        let mut machine = machine("reports");
        for (name, file) in [("MACHINE_MODELS_STATUS_FILE", "status"), ("MACHINE_MODELS_METRICS_FILE", "a.prom")] {
            let path = machine.folder.path(file);
            machine.set(name, &path);
            trap.put(Path::new(&format!("{path}.tmp")), &machine.folder.join("precious"));
        }
        let boot = machine.boot_in_time(&[]);
        assert_precious(&machine, &format!("{trap:?}"));
        assert!(boot.status == 0 && !boot.log.contains("cannot be written"), "{trap:?}: {}", boot.log);
        let read = |file: &str| std::fs::read_to_string(machine.folder.join(file)).unwrap();
        assert!(read("status").contains(r#""status":"complete""#), "{trap:?}: {}", read("status"));
        assert!(read("a.prom").contains("catalog_pull_seconds"), "{trap:?}: {}", read("a.prom"));
    }
}

#[test]
fn report_does_not_replace_a_pipe() {
    let mut machine = machine("replaced-pipe");
    let path = machine.folder.path("status");
    machine.set("MACHINE_MODELS_STATUS_FILE", &path);
    Trap::Pipe.put(Path::new(&path), &machine.folder.join("precious"));
    let boot = machine.boot_in_time(&[]);
    assert_eq!(boot.status, 0, "{}", boot.log);
    assert_eq!(boot.log.matches("the progress cannot be written to a file").count(), 1, "{}", boot.log);
    assert!(boot.log.contains("it is not a regular file"), "{}", boot.log);
    assert!(std::fs::metadata(&path).unwrap().file_type().is_fifo(), "{}", boot.log);
}

#[test]
fn command_starts_while_the_disk_of_a_report_hangs() {
    let mut machine = machine("hanging");
    let (path, release) = (machine.folder.path("status"), machine.folder.path("release"));
    let library = preload(
        &machine.folder,
        r#"
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        ssize_t write(int fd, const void *bytes, size_t size) {
            char link[64], path[4096] = "";
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            if (readlink(link, path, sizeof path - 1) > 0 && strstr(path, "/status."))
                while (access(getenv("RELEASE"), F_OK))
                    usleep(10000);
            return syscall(SYS_write, fd, bytes, size);
        }
        "#,
    );
    for (name, value) in [("MACHINE_MODELS_STATUS_FILE", &path), ("RELEASE", &release), ("LD_PRELOAD", &library)] {
        machine.set(name, value);
    }
    let boot = machine.boot_in_time(&["echo", "started"]);
    assert_eq!((boot.status, &*boot.output), (0, "started\n"), "{}", boot.log);
    assert!(boot.log.contains("the progress could not be written to a file in time"), "{}", boot.log);
}

#[tokio::test]
async fn exports_and_probe_metrics_are_written_beside_whatever_is_in_the_way() {
    let machine = machine("commands");
    let db = Db::new().await;
    db.add("model").await;
    for trap in TRAPS {
        for (arguments, file) in
            [(&["export"][..], "export.json"), (&["probe", "no-such-id", "--metrics-file"], "p.prom")]
        {
            let path = machine.folder.path(file);
            trap.put(Path::new(&format!("{path}.tmp")), &machine.folder.join("precious"));
            let mut command = Command::new("timeout");
            command.args(["30", PROGRAM]).args(arguments).arg(&path).env_clear().env("DATABASE_URL", &db.url);
            let output = command.stdin(Stdio::null()).output().unwrap();
            let what = format!("{trap:?} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            assert_precious(&machine, &what);
            assert!(std::fs::metadata(&path).is_ok_and(|file| file.is_file() && file.len() > 0), "{what}");
            std::fs::remove_file(&path).unwrap();
            let temporary = format!("{path}.tmp");
            if std::fs::remove_file(&temporary).is_err() {
                // The trap, unless it was removed as a leftover.
                let _ = std::fs::remove_dir(&temporary);
            }
        }
    }
}
