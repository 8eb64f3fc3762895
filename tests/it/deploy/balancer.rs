//! The load balancer's configuration: a real HAProxy before two real servers, one of which is stopped or killed.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use hyper::Request;

use super::{free_port, text};
use crate::support::{Db, Server, until};

struct Balancer {
    child: Child,
    file: PathBuf,
    address: String,
}

impl Balancer {
    /// The shipped configuration, with the servers' addresses in the place of the containers' names.
    fn before(servers: [&Server; 2]) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let mut ours = text("deploy/compose/haproxy.cfg").replace("bind :8080", &format!("bind {address}"));
        for (server, name) in servers.into_iter().zip(["catalog-a:3000", "catalog-b:3000"]) {
            assert!(ours.contains(name));
            ours = ours.replace(name, &format!("{} port {}", server.address, admin_port(server)));
        }
        let file = std::env::temp_dir().join(format!("haproxy-{:x}.cfg", fastrand::u64(..)));
        std::fs::write(&file, ours).unwrap();
        let program = ["/usr/sbin/haproxy", "/usr/bin/haproxy"].into_iter().find(|path| std::fs::exists(path).unwrap());
        let mut command = Command::new(program.expect("no haproxy: `make test-tools` installs it"));
        command.arg("-db").arg("-f").arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
        Self { child: command.spawn().unwrap(), file, address }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.file);
    }
}

fn admin_port(server: &Server) -> String {
    let line = server.log().into_iter().find(|line| line.contains("operations are served apart")).unwrap();
    let address = serde_json::from_str::<serde_json::Value>(&line).unwrap()["address"].as_str().unwrap().to_owned();
    address.rsplit(':').next().unwrap().to_owned()
}

#[tokio::test]
async fn no_request_fails_while_a_replica_is_stopped_or_killed() {
    let db = Db::new().await;
    db.add("a").await;
    for signal in ["TERM", "KILL"] {
        // The admin port of its own is what is checked, so nobody can be ready by the API's port alone.
        let settings = [("CATALOG_ADMIN_ADDR", "127.0.0.1:0"), ("CATALOG_DRAIN_GRACE", "3s")];
        let [going, staying] = [Server::spawn(&db.url, &settings).await, Server::spawn(&db.url, &settings).await];
        for server in [&going, &staying] {
            server.until("it has a catalog", |s| async move { s.get("/api/models/a").await.status == 200 }).await;
        }
        let balancer = Balancer::before([&going, &staying]);
        let (answered, faults, enough) = (AtomicU32::new(0), AtomicU32::new(0), AtomicBool::new(false));
        let ask = async || {
            let batch = Request::post(format!("http://{}/api/models/batch", balancer.address));
            let reply = staying.send(batch.body(r#"{"model_ids":["a"]}"#.into()).unwrap()).await;
            (reply.status, reply.text())
        };
        until("the balancer listens", || async { std::net::TcpStream::connect(&balancer.address).is_ok() }).await;
        until("it has a replica", || async { ask().await.0 == 200 }).await;

        let asking = async {
            while !enough.load(Relaxed) {
                let (status, body) = ask().await;
                if status != 200 {
                    faults.fetch_add(1, Relaxed);
                    eprintln!("{signal}: {status} {body}");
                }
                answered.fetch_add(1, Relaxed);
            }
        };
        let ending = async {
            until("requests flow", || async { answered.load(Relaxed) > 20 }).await;
            going.signal(signal);
            until("it has ended", || async { going.exited().is_some() }).await;
            let then = answered.load(Relaxed);
            until("the other answers alone", || async { answered.load(Relaxed) > then + 50 }).await;
            enough.store(true, Relaxed);
        };
        tokio::join!(asking, ending);
        assert_eq!(faults.load(Relaxed), 0, "of {} requests, after SIG{signal}", answered.load(Relaxed));
    }
}
