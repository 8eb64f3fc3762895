//! The loader's one connection: it listens for the doorbell and runs the delta and the full load.
//!
//! Every wait for the database has a limit. After any error the session is to be dropped, never mended.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::ReadyChunks;
use postgres_protocol::escape::escape_identifier;
use tokio::sync::{Notify, oneshot};
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, Row, RowStream};

use super::rows::{self, Position};

const SESSION: &str = include_str!("../../sql/session.sql");
const HERE: &str = include_str!("../../sql/here.sql");
/// The delta; public so that a test can explain it.
pub const DELTA: &str = include_str!("../../sql/delta.sql");
const ENTRIES: &str = include_str!("../../sql/entries.sql");

/// Rows taken from the connection under one timer. The timer costs about as much as decoding a row.
const ROWS_AT_ONCE: usize = 256;
/// A view that sorts or aggregates gives its first row late; a full load may be silent this many times longer.
const FULL_LOAD_PATIENCE: u32 = 6;

/// Which database, and how long to wait for it.
#[derive(Clone)]
pub struct Database {
    /// Where and as whom.
    pub config: Config,
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
    Postgres(#[from] tokio_postgres::Error),
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
    let (client, mut connection) = dial(database).await?;
    tokio::spawn(async move { while poll_fn(|cx| connection.poll_message(cx)).await.is_some_and(|m| m.is_ok()) {} });
    Ok(client)
}

type Plain = Connection<tokio_postgres::Socket, tokio_postgres::tls::NoTlsStream>;

async fn dial(database: &Database) -> Result<(Client, Plain), ConnectError> {
    let connecting = database.config.connect(NoTls);
    let connected = tokio::time::timeout(database.timeout, connecting).await;
    Ok(connected.map_err(|_| ConnectError::Timeout(database.timeout))??)
}

/// A connection that listens.
pub struct Session {
    client: Client,
    timeout: Duration,
    closed: oneshot::Receiver<Option<tokio_postgres::Error>>,
}

impl Session {
    /// Connects, prepares the session and listens. `ring` is called for every announcement from then on, so a
    /// change after this returns either rings or is in the next read.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn open(database: &Database, ring: impl Fn() + Send + 'static) -> Result<Self, ConnectError> {
        let (client, mut connection) = dial(database).await?;
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
            // Nobody listening means that the session was dropped first.
            let _ = ended.send(end);
        });
        let listen = format!("{SESSION}; LISTEN {};", escape_identifier(&database.channel));
        let prepared = tokio::time::timeout(database.timeout, client.batch_execute(&listen)).await;
        prepared.map_err(|_| ConnectError::Timeout(database.timeout))??;
        Ok(Self { client, timeout: database.timeout, closed })
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
        let parameters = [(&since.snapshot, Type::TEXT), (&since.history, Type::TEXT)];
        self.stream(DELTA, parameters, self.timeout).await
    }

    /// Begins a transaction in which everything is of one moment; gives that moment.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn begin(&self) -> Result<Position, ReadError> {
        self.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let mut rows = self.stream(HERE, [], self.timeout).await?;
        let mut position = None;
        while let Some(chunk) = rows.next().await? {
            position = chunk.first().map(rows::position).transpose()?;
        }
        // `history` always has one row; none is what a closed connection looks like.
        position.ok_or(ReadError::Timeout(self.timeout))
    }

    /// Every row of the view.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn entries(&self) -> Result<Rows, ReadError> {
        self.stream(ENTRIES, [], self.timeout * FULL_LOAD_PATIENCE).await
    }

    /// Ends what [`Session::begin`] began.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn commit(&self) -> Result<(), ReadError> {
        self.execute("COMMIT").await
    }

    async fn execute(&self, statement: &str) -> Result<(), ReadError> {
        let done = tokio::time::timeout(self.timeout, self.client.batch_execute(statement)).await;
        Ok(done.map_err(|_| ReadError::Timeout(self.timeout))??)
    }

    /// One round trip: the statement is parsed, planned for just these values and run. A named statement would save
    /// its parsing and would not survive a pooler.
    async fn stream<const N: usize>(
        &self,
        statement: &str,
        parameters: [(&String, Type); N],
        timeout: Duration,
    ) -> Result<Rows, ReadError> {
        let started = tokio::time::timeout(timeout, self.client.query_typed_raw(statement, parameters)).await;
        let stream = started.map_err(|_| ReadError::Timeout(timeout))??;
        Ok(Rows { chunks: Box::pin(stream).ready_chunks(ROWS_AT_ONCE), timeout })
    }
}

/// Rows as they arrive.
pub struct Rows {
    chunks: ReadyChunks<std::pin::Pin<Box<RowStream>>>,
    timeout: Duration,
}

impl Rows {
    /// The next few rows; `None` after the last.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn next(&mut self) -> Result<Option<Vec<Row>>, ReadError> {
        let next = tokio::time::timeout(self.timeout, self.chunks.next()).await;
        let chunk = next.map_err(|_| ReadError::Timeout(self.timeout))?;
        Ok(chunk.map(|rows| rows.into_iter().collect::<Result<_, _>>()).transpose()?)
    }
}

/// Rings that have come since they were last looked at; many are one.
pub type Doorbell = Arc<Notify>;
