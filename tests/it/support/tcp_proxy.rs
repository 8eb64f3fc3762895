//! A TCP proxy between two servers: it can be turned off, connections can be cut, its target can change, and it counts
//! what it passes on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A proxy; it ends with its test's runtime.
pub struct TcpProxy {
    /// `127.0.0.1:PORT` of the proxy.
    pub address: String,
    /// Where new connections go; `None` closes them at once.
    target: Arc<watch::Sender<Option<String>>>,
    /// Bytes passed on, in both directions.
    transferred: Arc<AtomicU64>,
}

/// Passes on everything up to the end of `from`, and then the end.
async fn copy(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, transferred: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer).await? {
            0 => return to.shutdown().await,
            size => {
                transferred.fetch_add(size as u64, Relaxed);
                to.write_all(&buffer[..size]).await?;
            }
        }
    }
}

impl TcpProxy {
    /// A proxy in front of `target`.
    pub async fn new(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let target = Arc::new(watch::Sender::new(Some(target.to_owned())));
        let targets = Arc::clone(&target);
        let transferred = Arc::<AtomicU64>::default();
        let total = Arc::clone(&transferred);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut changes = targets.subscribe();
                let target = changes.borrow_and_update().clone();
                let total = Arc::clone(&total);
                tokio::spawn(async move {
                    let Some(target) = target else { return };
                    let Ok(mut server) = TcpStream::connect(target).await else { return };
                    let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
                    let requests = copy(from_client, to_server, &total);
                    let responses = copy(from_server, to_client, &total);
                    tokio::select! {
                        _ = async { tokio::try_join!(requests, responses) } => {}
                        _ = changes.changed() => {}
                    }
                });
            }
        });
        Self { address, target, transferred }
    }

    /// The URL of a server behind it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Bytes passed on so far, in both directions.
    pub fn transferred(&self) -> u64 {
        self.transferred.load(Relaxed)
    }

    /// Cuts every connection; new ones go to `target`, or are closed at once.
    pub fn point_to(&self, target: Option<&str>) {
        self.target.send_replace(target.map(str::to_owned));
    }
}
