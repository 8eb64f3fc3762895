//! A TCP proxy between two servers: it can be turned off, connections can be cut, and its target can change.

use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A proxy; it ends with its test's runtime.
pub struct TcpProxy {
    /// `127.0.0.1:PORT` of the proxy.
    pub address: String,
    /// Where new connections go; `None` closes them at once.
    target: Arc<watch::Sender<Option<String>>>,
}

impl TcpProxy {
    /// A proxy in front of `target`.
    pub async fn new(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let target = Arc::new(watch::Sender::new(Some(target.to_owned())));
        let targets = Arc::clone(&target);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut changes = targets.subscribe();
                let target = changes.borrow_and_update().clone();
                tokio::spawn(async move {
                    let Some(target) = target else { return };
                    let Ok(mut server) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = changes.changed() => {}
                    }
                });
            }
        });
        Self { address, target }
    }

    /// The URL of a server behind it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Cuts every connection; new ones go to `target`, or are closed at once.
    pub fn point_to(&self, target: Option<&str>) {
        self.target.send_replace(target.map(str::to_owned));
    }
}
