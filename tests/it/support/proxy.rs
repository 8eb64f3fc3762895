//! A TCP proxy between the program and Postgres that simulates network failures.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst};

use model_catalog::postgres::ephemeral::EphemeralPostgres;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream};
use tokio::sync::watch;

/// How bytes and new connections are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything is forwarded.
    Pass,
    /// Connections are accepted and read, and nothing is forwarded, not even the end of a stream. A connection that was
    /// in this state stays silent for ever, as after a pulled cable: its data is lost.
    Swallow,
    /// What clients send is not read from the connections that are open then; new ones are forwarded.
    Hold,
    /// New connections are refused; open ones continue.
    Refuse,
}

#[derive(Debug, Clone, Copy)]
struct Control {
    mode: Mode,
    cuts: u32,
}

struct Shared {
    control: watch::Sender<Control>,
    /// Bytes from the server to forward before all connections are cut; negative = no limit.
    budget: AtomicI64,
    open: AtomicUsize,
    target: watch::Sender<PathBuf>,
}

/// The proxy. It stops with the runtime of its test.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Starts a proxy in front of `server`.
    pub async fn before(server: &EphemeralPostgres) -> Self {
        let reserved = bind(0);
        let port = reserved.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            control: watch::Sender::new(Control { mode: Mode::Pass, cuts: 0 }),
            budget: AtomicI64::new(-1),
            open: AtomicUsize::new(0),
            target: watch::Sender::new(socket(server)),
        });
        tokio::spawn(accept(listen(port), reserved, Arc::clone(&shared)));
        Self { port, shared }
    }

    /// The URL of `database` through this proxy.
    pub fn url(&self, database: &str) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname={database}", self.port)
    }

    /// Changes the mode.
    pub async fn set(&self, mode: Mode) {
        self.shared.control.send_modify(|control| control.mode = mode);
        // The listener is closed by the accept task, which has to run first.
        if mode == Mode::Refuse {
            crate::support::until("connections are refused", || async {
                TcpStream::connect(("127.0.0.1", self.port)).await.is_err()
            })
            .await;
        }
    }

    /// New connections go to another server.
    pub fn point_to(&self, server: &EphemeralPostgres) {
        self.shared.target.send_replace(socket(server));
    }

    /// Cuts every open connection.
    pub fn cut(&self) {
        self.shared.control.send_modify(|control| control.cuts += 1);
    }

    /// Forwards `bytes` more bytes from the server, then cuts every connection once.
    pub fn cut_after(&self, bytes: i64) {
        self.shared.budget.store(bytes, SeqCst);
    }

    /// Whether the cut requested by [`Proxy::cut_after`] has happened.
    pub fn has_cut(&self) -> bool {
        self.shared.budget.load(SeqCst) < 0
    }

    /// The number of open connections.
    pub fn open(&self) -> usize {
        self.shared.open.load(SeqCst)
    }
}

fn socket(server: &EphemeralPostgres) -> PathBuf {
    server.socket_directory().join(format!(".s.PGSQL.{}", server.port()))
}

/// A socket that refuses connections until it listens. Several such sockets can have one port, of which one listens.
fn bind(port: u16) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(([127, 0, 0, 1], port).into()).unwrap();
    socket
}

fn listen(port: u16) -> TcpListener {
    bind(port).listen(1024).unwrap()
}

/// Accepts connections. `reserved` keeps the port while connections are refused, so that no other program gets it.
async fn accept(mut listener: TcpListener, reserved: TcpSocket, shared: Arc<Shared>) {
    let port = reserved.local_addr().unwrap().port();
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
            listener = listen(port);
        }
    }
}

async fn until_control(control: &mut watch::Receiver<Control>, state: impl Fn(&Control) -> bool) {
    let _ = control.wait_for(|control| state(control)).await;
}

async fn connection(mut client: TcpStream, shared: Arc<Shared>) {
    let mut control = shared.control.subscribe();
    let cuts = control.borrow_and_update().cuts;
    shared.open.fetch_add(1, SeqCst);
    tokio::select! {
        () = forward(&mut client, &shared) => {}
        () = until_control(&mut control, move |control| control.cuts != cuts) => {}
    }
    shared.open.fetch_sub(1, SeqCst);
}

async fn forward(client: &mut TcpStream, shared: &Shared) {
    let mut control = shared.control.subscribe();
    let swallows = |control: &Control| control.mode == Mode::Swallow;
    if swallows(&control.borrow_and_update()) {
        return swallow(client).await;
    }
    let is_new = control.borrow().mode == Mode::Hold;
    let target = shared.target.borrow().clone();
    let Ok(mut server) = UnixStream::connect(target).await else { return };
    let (mut from_client, mut from_server) = (vec![0; 16 << 10], vec![0; 16 << 10]);
    loop {
        let now = *control.borrow_and_update();
        if swallows(&now) {
            return swallow(client).await;
        }
        tokio::select! {
            biased;
            changed = control.changed() => if changed.is_err() { return },
            read = client.read(&mut from_client), if is_new || now.mode != Mode::Hold => {
                let Ok(count @ 1..) = read else { return };
                if server.write_all(&from_client[..count]).await.is_err() { return }
            }
            read = server.read(&mut from_server) => {
                let Ok(count @ 1..) = read else { return };
                let budget = shared.budget.load(SeqCst);
                let passing = if budget < 0 { count } else { count.min(budget as usize) };
                if client.write_all(&from_server[..passing]).await.is_err() { return }
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

/// Reads for ever, so that the client sees neither an end nor an error.
async fn swallow(client: &mut TcpStream) {
    let mut bytes = [0; 4096];
    while let Ok(1..) = client.read(&mut bytes).await {}
}
