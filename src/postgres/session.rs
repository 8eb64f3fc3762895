//! The loader's one connection: it listens for the doorbell and runs the delta and the full load.
//!
//! Every wait for the database has a limit. After any error the session is to be dropped, never mended.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::ReadyChunks;
use futures_util::{FutureExt, StreamExt};
use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio::sync::{OnceCell, oneshot};
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, CopyOutStream, Row, RowStream};
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow, Socket, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::address::Address;
use super::position::Position;
use super::rows;
use crate::catalog::store::SyncMode;

const SESSION: &str = include_str!("../../sql/session.sql");
const HERE: &str = include_str!("../../sql/here.sql");
/// The delta; public so that a test can explain it.
pub const DELTA: &str = include_str!("../../sql/delta.sql");
const ENTRIES: &str = include_str!("../../sql/entries.sql");

/// Rows taken from the connection under one timer. The timer costs about as much as decoding a row.
const ROWS_AT_ONCE: usize = 256;
/// A view that sorts or aggregates gives its first row late; a full load may be silent this many times longer.
const FULL_LOAD_PATIENCE: u32 = 6;
/// Asked for when connecting, and looked for afterwards: a pooler refuses it or loses it.
const MARK: &str = "-c model_catalog.direct=yes";
const PROBE: &str = "SELECT pg_catalog.current_setting('model_catalog.direct', true) = 'yes', \
                     pg_catalog.pg_is_in_recovery()";

/// Which database, and how long to wait for it.
#[derive(Debug, Clone)]
pub struct Database {
    /// Where and as whom.
    pub address: Address,
    /// The channel that changes are announced on.
    pub channel: String,
    /// Longest silence of the database within a connect or a statement.
    pub timeout: Duration,
}

/// Why no session could be had.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answered in time.
    #[error("the database did not answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// Refused, by the network or by Postgres.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
}

/// Why a read of the database failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Nothing came for too long.
    #[error("the database was silent for {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// The connection or the statement failed.
    #[error("{}", describe(.0))]
    Postgres(#[source] tokio_postgres::Error),
    /// The view is not what it must be.
    #[error("{0}")]
    View(String),
    /// There is no view.
    #[error(
        "there is no view model_catalog.entries; define it, then call model_catalog.watch() for each table that it \
         reads and model_catalog.reload(), or let `model-catalog migrate` make the default table and view"
    )]
    NoView(#[source] tokio_postgres::Error),
    /// There is nothing of ours in this database.
    #[error("this database was not prepared: {}; run `model-catalog migrate`", describe(.0))]
    NotMigrated(#[source] tokio_postgres::Error),
}

impl ReadError {
    /// Whether the database is well and what it should hold is not: something is missing, forbidden or of another
    /// type (class 42), or a row's values are not what the view takes them for (class 22).
    #[must_use]
    pub fn is_about_the_schema(&self) -> bool {
        match self {
            Self::View(_) | Self::NoView(_) | Self::NotMigrated(_) => true,
            Self::Postgres(error) => error.code().is_some_and(|code| ["42", "22"].contains(&&code.code()[..2])),
            Self::Timeout(_) => false,
        }
    }
}

impl From<tokio_postgres::Error> for ReadError {
    fn from(error: tokio_postgres::Error) -> Self {
        let missing = error.as_db_error().filter(|error| *error.code() == SqlState::UNDEFINED_TABLE);
        // A message comes in the server's language, but the name in it is as we wrote it.
        let named = |name: &str| missing.is_some_and(|error| error.message().contains(name));
        match () {
            () if named("model_catalog.entries") => Self::NoView(error),
            () if named("model_catalog.") => Self::NotMigrated(error),
            () => Self::Postgres(error),
        }
    }
}

/// The error with what caused it: tokio-postgres' own text is no more than "db error".
pub fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let hint = db.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
        return format!("{}{hint} [{}]", db.message(), db.code().code());
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Connects and drives the connection on the current runtime.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(database: &Database) -> Result<Client, ConnectError> {
    let (client, connection) = dial(database, &database.address.config).await?;
    drive(connection, || {});
    Ok(client)
}

type Dialed = Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

async fn dial(database: &Database, config: &Config) -> Result<(Client, Dialed), ConnectError> {
    // Each host has its own limit for the connect; TLS and the password come on top.
    let limit = database.timeout * (database.address.hosts() + 1);
    let connect = async {
        match config.connect(database.address.tls.clone()).await {
            // As libpq does: a server that takes this user only without TLS says so after TLS is there.
            Err(error) if config.get_ssl_mode() == SslMode::Prefer && is_refused_by_rule(&error) => {
                let mut plain = config.clone();
                plain.ssl_mode(SslMode::Disable);
                plain.connect(database.address.tls.clone()).await.map_err(|_| error)
            }
            connected => connected,
        }
    };
    Ok(tokio::time::timeout(limit, connect).await.map_err(|_| ConnectError::Timeout(limit))??)
}

/// Whether no line of pg_hba.conf lets us in.
fn is_refused_by_rule(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
}

/// Runs a connection to its end, which the receiver is told; `ring` is called for every notification.
fn drive(mut connection: Dialed, ring: impl Fn() + Send + 'static) -> oneshot::Receiver<Option<tokio_postgres::Error>> {
    let (ended, closed) = oneshot::channel();
    tokio::spawn(async move {
        let end = loop {
            match poll_fn(|cx| connection.poll_message(cx)).await {
                Some(Ok(AsyncMessage::Notification(_))) => ring(),
                Some(Ok(_)) => {}
                Some(Err(error)) => break Some(error),
                None => break None,
            }
        };
        // Nobody listening means that the client was dropped first.
        let _ = ended.send(end);
    });
    closed
}

/// A connection that listens, as far as the database lets it.
pub struct Session {
    client: Client,
    timeout: Duration,
    follow: SyncMode,
    /// The delta, parsed once: that is two thirds of what it costs. A pooler would lose it between transactions.
    delta: OnceCell<Statement>,
    closed: oneshot::Receiver<Option<tokio_postgres::Error>>,
}

impl Session {
    /// Connects, prepares the session and listens. `ring` is called for every announcement from then on, so a
    /// change after this returns either rings or is in the next read.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn open(database: &Database, ring: impl Fn() + Send + 'static) -> Result<Self, ConnectError> {
        let (client, connection) = dial_marked(database).await?;
        let closed = drive(connection, ring);
        let timeout = database.timeout;
        let mut session = Self { client, timeout, follow: SyncMode::Polling, delta: OnceCell::new(), closed };
        let prepare = async {
            let probe = session.client.query_typed(PROBE, &[]).await?;
            let (direct, standby) = match probe.first() {
                Some(row) => (row.try_get::<_, Option<bool>>(0)?.unwrap_or(false), row.try_get(1)?),
                None => (false, false),
            };
            let (follow, listen) = match (direct, standby) {
                // What is set on a pooler's connection would stay there for the next client.
                (false, _) => return Ok(if standby { SyncMode::Standby } else { SyncMode::Polling }),
                (true, true) => (SyncMode::Standby, String::new()),
                (true, false) => (SyncMode::Live, format!("LISTEN {};", escape_identifier(&database.channel))),
            };
            session.client.batch_execute(&format!("{SESSION}{listen}")).await?;
            Ok::<_, tokio_postgres::Error>(follow)
        };
        let prepared = tokio::time::timeout(timeout, prepare).await;
        session.follow = prepared.map_err(|_| ConnectError::Timeout(timeout))??;
        Ok(session)
    }

    /// How far this connection lets the database be followed.
    #[must_use]
    pub fn follow(&self) -> SyncMode {
        self.follow
    }

    /// Names the session for `pg_stat_activity`. It is sent and not waited for: the statement after it goes out at
    /// once, and an answer that nobody takes is dropped. Not through a pooler, where the next client would bear the name.
    pub fn set_application_name(&self, name: &str) {
        let statement = format!("SET application_name = {}", escape_literal(name));
        let _ = self.client.batch_execute(&statement).now_or_never();
    }

    /// Waits until the connection is gone, and says why if it is known.
    pub async fn closed(&mut self) -> String {
        match (&mut self.closed).await {
            Ok(Some(error)) => describe(&error),
            Ok(None) | Err(_) => "the connection was closed".into(),
        }
    }

    /// Every change since `since`, one row each and at least one row; all of one moment. See [`rows::changed`].
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn delta(&self, since: &Position) -> Result<Rows, ReadError> {
        if self.follow != SyncMode::Live {
            let parameters = [(&since.snapshot, Type::TEXT), (&since.history, Type::TEXT)];
            return self.stream(DELTA, parameters, self.timeout).await;
        }
        // Not before it is needed: a view that is broken must count as a failed read.
        let prepare = || within(self.timeout, self.client.prepare_typed(DELTA, &[Type::TEXT, Type::TEXT]));
        let delta = self.delta.get_or_try_init(prepare).await?;
        let stream = self.client.query_raw(delta, [&since.snapshot, &since.history]);
        Ok(Rows::new(within(self.timeout, stream).await?, self.timeout))
    }

    /// Begins a transaction in which everything is of one moment; gives that moment.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn begin(&self) -> Result<Position, ReadError> {
        self.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        if self.follow != SyncMode::Live {
            self.execute(&SESSION.replace("\nSET ", "\nSET LOCAL ")).await?;
        }
        let mut rows = self.stream(HERE, [], self.timeout).await?;
        let mut position = None;
        while let Some(chunk) = rows.next().await? {
            position = chunk.first().map(rows::position).transpose()?;
        }
        // `history` always has one row; none is what a closed connection looks like.
        position.ok_or(ReadError::Timeout(self.timeout))
    }

    /// Every row of the view. See [`rows::copied`].
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn entries(&self) -> Result<Copied, ReadError> {
        copy(&self.client, "", self.timeout).await
    }

    /// Ends what [`Session::begin`] began.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn commit(&self) -> Result<(), ReadError> {
        self.execute("COMMIT").await
    }

    /// The rows of a question to the system's catalogs, as text. It is a transaction of its own, in which names without
    /// a schema are the system's and names are printed with their schemas.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn ask(&self, question: &str) -> Result<Vec<SimpleQueryRow>, ReadError> {
        // Several statements in one message are one transaction, through a pooler too.
        let question = format!("SET LOCAL search_path = pg_catalog; {question}");
        let messages = within(self.timeout, self.client.simple_query(&question)).await?;
        let row = |message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None };
        Ok(messages.into_iter().filter_map(row).collect())
    }

    async fn execute(&self, statement: &str) -> Result<(), ReadError> {
        within(self.timeout, self.client.batch_execute(statement)).await
    }

    /// One round trip: the statement is parsed, planned for just these values and run, without a name.
    async fn stream<const N: usize>(
        &self,
        statement: &str,
        parameters: [(&String, Type); N],
        timeout: Duration,
    ) -> Result<Rows, ReadError> {
        let stream = within(timeout, self.client.query_typed_raw(statement, parameters)).await?;
        Ok(Rows::new(stream, timeout))
    }
}

/// Every row of the view in the order of its ids, all of one moment. See [`rows::copied`].
///
/// # Errors
/// See [`ReadError`].
pub async fn entries_by_id(client: &Client, timeout: Duration) -> Result<Copied, ReadError> {
    copy(client, "ORDER BY e.id COLLATE \"C\"", timeout).await
}

async fn copy(client: &Client, order: &str, timeout: Duration) -> Result<Copied, ReadError> {
    let limit = timeout * FULL_LOAD_PATIENCE;
    let statement = within(timeout, client.prepare(ENTRIES)).await?;
    rows::check_types(&statement).map_err(ReadError::View)?;
    let copy = format!("COPY ({ENTRIES} {order}) TO STDOUT (FORMAT binary)");
    let stream = within(limit, client.copy_out(&copy)).await?;
    Ok(Copied { chunks: Box::pin(stream).ready_chunks(ROWS_AT_ONCE), timeout: limit, first: true })
}

/// A wait for the database, with its limit.
async fn within<T>(
    limit: Duration,
    wait: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, ReadError> {
    Ok(tokio::time::timeout(limit, wait).await.map_err(|_| ReadError::Timeout(limit))??)
}

/// Rows as they arrive.
pub struct Rows {
    chunks: ReadyChunks<Pin<Box<RowStream>>>,
    timeout: Duration,
}

impl Rows {
    fn new(stream: RowStream, timeout: Duration) -> Self {
        Self { chunks: Box::pin(stream).ready_chunks(ROWS_AT_ONCE), timeout }
    }

    /// The next few rows; `None` after the last.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn next(&mut self) -> Result<Option<Vec<Row>>, ReadError> {
        within(self.timeout, async { self.chunks.next().await.map(|rows| rows.into_iter().collect()).transpose() })
            .await
    }
}

/// Rows of a binary COPY as they arrive.
pub struct Copied {
    chunks: ReadyChunks<Pin<Box<CopyOutStream>>>,
    timeout: Duration,
    first: bool,
}

impl Copied {
    /// The next few rows, each in a message of its own; `None` after the last.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn next(&mut self) -> Result<Option<Vec<Bytes>>, ReadError> {
        let chunk = async { self.chunks.next().await.map(|rows| rows.into_iter().collect()).transpose() };
        let mut chunk: Option<Vec<Bytes>> = within(self.timeout, chunk).await?;
        for message in chunk.iter_mut().flatten().take(usize::from(self.first)) {
            *message = message.slice_ref(rows::without_header(message));
            self.first = false;
        }
        Ok(chunk)
    }
}

/// Dials with the mark, or without it where a pooler refuses it.
async fn dial_marked(database: &Database) -> Result<(Client, Dialed), ConnectError> {
    let plain = &database.address.config;
    let mut marked = plain.clone();
    marked.options(format!("{} {MARK}", plain.get_options().unwrap_or_default()));
    match dial(database, &marked).await {
        // PgBouncer's words, since its first release; it gives them the code of any protocol violation.
        Err(ConnectError::Postgres(error)) if describe(&error).contains("unsupported startup parameter") => {
            dial(database, plain).await
        }
        dialed => dialed,
    }
}
