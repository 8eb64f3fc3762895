//! A real nginx.

use std::fs::File;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{TempFolder, WAIT_LIMIT};

/// An nginx with a configuration of its own, which must contain `daemon off`.
pub struct Nginx(Child);

impl Nginx {
    /// Starts it with `config` in `folder`, and waits until it listens on `port`.
    pub fn start(folder: &TempFolder, config: &str, port: u16) -> Self {
        std::fs::write(folder.path("nginx.conf"), config).unwrap();
        let program = ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().find(|path| std::fs::exists(path).unwrap());
        let mut command = Command::new(program.expect("no nginx: `make test-tools` installs it"));
        command.args(["-c", &folder.path("nginx.conf"), "-e", "stderr"]);
        Self::spawn(command, folder, port)
    }

    /// The same with a command; its standard error goes to `stderr.log` in `folder`.
    pub fn spawn(mut command: Command, folder: &TempFolder, port: u16) -> Self {
        let log = folder.path("stderr.log");
        command.stdin(Stdio::null()).stderr(File::create(&log).unwrap()).process_group(0);
        let mut child = command.spawn().unwrap();
        let deadline = Instant::now() + WAIT_LIMIT;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = || std::fs::read_to_string(&log);
            assert!(child.try_wait().unwrap().is_none(), "nginx ended: {:?}", log());
            assert!(Instant::now() < deadline, "nginx does not listen: {:?}", log());
            std::thread::sleep(Duration::from_millis(3));
        }
        Self(child)
    }

    /// Sends a signal to all of its processes. They have a group of their own.
    pub fn signal(&self, name: &str) {
        let group = format!("-{}", self.0.id());
        assert!(Command::new("kill").args([&format!("-{name}"), "--", &group]).status().unwrap().success());
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        let _ = self.0.wait();
    }
}
