//! A network that can be broken: a TCP proxy between the program and a Postgres.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst};

use model_catalog::postgres::ephemeral::EphemeralPostgres;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// What becomes of bytes and of new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// All passes.
    Pass,
    /// Connections are taken and read, and nothing goes on, not even their end. One that was in this state stays
    /// silent for ever, as after a cable was pulled: what it swallowed is lost.
    Swallow,
    /// Nobody listens; what is open stays open.
    Refuse,
}

#[derive(Debug, Clone, Copy)]
struct Control {
    mode: Mode,
    cuts: u32,
}

struct Shared {
    control: watch::Sender<Control>,
    /// Bytes of answers that still pass before everything is cut; negative = no such limit.
    budget: AtomicI64,
    open: AtomicUsize,
    target: watch::Sender<PathBuf>,
}

/// The proxy; it ends with its test's runtime.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    /// A proxy before `server`.
    pub async fn before(server: &EphemeralPostgres) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            control: watch::Sender::new(Control { mode: Mode::Pass, cuts: 0 }),
            budget: AtomicI64::new(-1),
            open: AtomicUsize::new(0),
            target: watch::Sender::new(socket(server)),
        });
        tokio::spawn(accept(listener, port, Arc::clone(&shared)));
        Self { port, shared }
    }

    /// The address of `database` by way of this proxy.
    pub fn url(&self, database: &str) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname={database}", self.port)
    }

    /// What happens from now on.
    pub async fn set(&self, mode: Mode) {
        self.shared.control.send_modify(|control| control.mode = mode);
        // A listener is closed by a task that has to come to it first.
        if mode == Mode::Refuse {
            crate::support::until("nobody listens", || async {
                TcpStream::connect(("127.0.0.1", self.port)).await.is_err()
            })
            .await;
        }
    }

    /// New connections go to another server.
    pub fn point_to(&self, server: &EphemeralPostgres) {
        self.shared.target.send_replace(socket(server));
    }

    /// Cuts every connection there is.
    pub fn cut(&self) {
        self.shared.control.send_modify(|control| control.cuts += 1);
    }

    /// Lets so many more bytes of answers pass, and then cuts every connection once.
    pub fn cut_after(&self, bytes: i64) {
        self.shared.budget.store(bytes, SeqCst);
    }

    /// Whether what [`Proxy::cut_after`] asked for has happened.
    pub fn has_cut(&self) -> bool {
        self.shared.budget.load(SeqCst) < 0
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.shared.open.load(SeqCst)
    }
}

fn socket(server: &EphemeralPostgres) -> PathBuf {
    server.socket_directory().join(format!(".s.PGSQL.{}", server.port()))
}

async fn accept(mut listener: TcpListener, port: u16, shared: Arc<Shared>) {
    let mut control = shared.control.subscribe();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    tokio::spawn(connection(client, Arc::clone(&shared)));
                }
            }
            _ = control.changed() => {}
        }
        if control.borrow_and_update().mode == Mode::Refuse {
            drop(listener);
            control.wait_for(|control| control.mode != Mode::Refuse).await.unwrap();
            listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        }
    }
}

async fn reaches(control: &mut watch::Receiver<Control>, state: impl Fn(&Control) -> bool) {
    let _ = control.wait_for(|control| state(control)).await;
}

async fn connection(mut client: TcpStream, shared: Arc<Shared>) {
    let mut control = shared.control.subscribe();
    let cuts = control.borrow_and_update().cuts;
    shared.open.fetch_add(1, SeqCst);
    tokio::select! {
        () = forward(&mut client, &shared) => {}
        () = reaches(&mut control, move |control| control.cuts != cuts) => {}
    }
    shared.open.fetch_sub(1, SeqCst);
}

async fn forward(client: &mut TcpStream, shared: &Shared) {
    let mut control = shared.control.subscribe();
    let swallows = |control: &Control| control.mode == Mode::Swallow;
    if swallows(&control.borrow_and_update()) {
        return swallow(client).await;
    }
    let target = shared.target.borrow().clone();
    let Ok(mut server) = UnixStream::connect(target).await else { return };
    let (mut asked, mut answered) = (vec![0; 16 << 10], vec![0; 16 << 10]);
    loop {
        tokio::select! {
            biased;
            () = reaches(&mut control, swallows) => return swallow(client).await,
            read = client.read(&mut asked) => {
                let Ok(count @ 1..) = read else { return };
                if server.write_all(&asked[..count]).await.is_err() { return }
            }
            read = server.read(&mut answered) => {
                let Ok(count @ 1..) = read else { return };
                let budget = shared.budget.load(SeqCst);
                let passing = if budget < 0 { count } else { count.min(budget as usize) };
                if client.write_all(&answered[..passing]).await.is_err() { return }
                if budget >= 0 {
                    shared.budget.store(budget - passing as i64, SeqCst);
                    if passing < count {
                        shared.budget.store(-1, SeqCst);
                        shared.control.send_modify(|control| control.cuts += 1);
                        return;
                    }
                }
            }
        }
    }
}

/// Reads on, for ever: the other side is to see neither an end nor an error.
async fn swallow(client: &mut TcpStream) {
    let mut bytes = [0; 4096];
    while let Ok(1..) = client.read(&mut bytes).await {}
}
