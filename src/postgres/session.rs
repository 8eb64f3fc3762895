//! The loader's connection: it listens for notifications and runs the delta and the full read.
//!
//! Every wait for the database has a timeout. After an error the session must be dropped; it is not usable any more.

use std::future::poll_fn;
use std::time::Duration;

use futures_util::FutureExt;
use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client, SimpleQueryMessage, SimpleQueryRow, Statement};

use super::config::DatabaseConfig;
use super::copy::{CopyStream, Rows};
use super::error::{ConnectError, ReadError, with_timeout};
use super::position::Position;
use super::read::{Canceller, Limits, Read};
use super::rows::RowChunks;
use crate::base::error_chain::chain;

mod changes;
mod dial;

use dial::{DialedConnection, dial, dial_with_option};

const SESSION: &str = include_str!("../../sql/session.sql");
const POSITION: &str = include_str!("../../sql/position.sql");
const FLEET: &str = include_str!("../../sql/fleet.sql");
const STRUCTURE: &str = include_str!("../../sql/structure.sql");
const SOURCES: &str = include_str!("../../sql/sources.sql");
/// The delta; public so that a test can explain its plan.
pub const DELTA: &str = include_str!("../../sql/delta.sql");
/// The delta on a standby; public so that a test can explain its plan.
pub const STANDBY_DELTA: &str = include_str!("../../sql/delta_standby.sql");

const PROBE: &str = "SELECT pg_catalog.current_setting('model_catalog.direct', true) = 'yes', \
                     pg_catalog.pg_is_in_recovery(), pg_catalog.pg_postmaster_start_time()::text";

/// Settings of a direct connection outside of transactions: its prepared statements, above all the delta, are planned
/// once, because planning a delta of few changes takes several times as long as running it. Such a plan may have been
/// made when all tables were tiny, so it must neither scan a table as a whole nor sort what an index has in order.
/// Public for tests.
pub const PLANNED_ONCE: &str =
    "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_sort = off;";
/// Settings of its transactions, which can read much: statements are planned for their parameters and the current sizes
/// of tables. Plans that were made before are discarded.
const PLANNED_ANEW: &str = "SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_seqscan = on; \
                            SET LOCAL enable_sort = on; DISCARD PLANS";

/// How changes reach the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// The source notifies of every change.
    Live,
    /// Notifications are lost on the way: changes are read at intervals.
    Polling,
    /// The source is a read-only copy that sends no notifications: changes are read at intervals.
    Standby,
}

/// Connects, and drives the connection on the current runtime.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(database: &DatabaseConfig) -> Result<Client, ConnectError> {
    let (client, connection) = dial(database, &database.driver).await?;
    drive(connection, || {});
    Ok(client)
}

/// Drives a connection until it ends; returns the reason. Calls `on_notification` for every notification.
fn drive(
    mut connection: DialedConnection,
    on_notification: impl Fn() + Send + 'static,
) -> JoinHandle<Option<tokio_postgres::Error>> {
    tokio::spawn(async move {
        loop {
            match poll_fn(|cx| connection.poll_message(cx)).await {
                Some(Ok(AsyncMessage::Notification(_))) => on_notification(),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Some(error),
                None => return None,
            }
        }
    })
}

/// The limit of every statement on the server, in milliseconds.
fn statement_timeout(timeout: Duration) -> i32 {
    i32::try_from(Limits::of_full_read(timeout).total.as_millis()).unwrap_or(i32::MAX)
}

/// The statements that prepare a session.
fn settings(timeout: Duration) -> String {
    format!("{SESSION}\nSET statement_timeout = {};", statement_timeout(timeout))
}

/// What the first query of a session tells about the server.
struct Server {
    /// Whether the connection leads to one server session, and not through a pooler.
    direct: bool,
    standby: bool,
    /// When it was started.
    started: String,
    /// Why it refused to listen.
    listen_refused: Option<String>,
}

/// A connection that receives notifications if the database allows it.
pub struct Session {
    client: Client,
    database: DatabaseConfig,
    sync_mode: SyncMode,
    server: Server,
    /// The delta, parsed once, because parsing takes two thirds of its time. A pooler loses it between transactions.
    delta: OnceCell<Statement>,
    /// The fingerprint of the structure, likewise.
    structure: OnceCell<Statement>,
    canceller: Canceller,
    driver: JoinHandle<Option<tokio_postgres::Error>>,
}

impl Session {
    /// Connects, prepares the session and listens. Calls `on_notification` for every notification from then on, so a
    /// change that commits after this returns is either notified or visible to the next read.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn open(
        database: &DatabaseConfig,
        on_notification: impl Fn() + Send + 'static,
    ) -> Result<Self, ConnectError> {
        let (client, connection) = dial_with_option(database).await?;
        let driver = drive(connection, on_notification);
        let canceller =
            Canceller { token: client.cancel_token(), tls: database.tls.clone(), driver: driver.abort_handle() };
        let timeout = database.timeout;
        let prepared = tokio::time::timeout(timeout, prepare(&client, database)).await;
        let prepared = prepared.map_err(|_| ConnectError::timeout(database, timeout))?;
        let (sync_mode, server) = prepared.map_err(|source| ConnectError::refused(database, source))?;
        let (delta, structure) = (OnceCell::new(), OnceCell::new());
        Ok(Self { client, database: database.clone(), sync_mode, server, delta, structure, canceller, driver })
    }

    /// The client, for other statements.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// How this connection lets the loader follow the database.
    pub(crate) fn sync_mode(&self) -> SyncMode {
        self.sync_mode
    }

    /// Why a server that is no standby and connected directly refused to listen. Its changes are polled.
    pub(crate) fn listen_refused(&self) -> Option<&str> {
        self.server.listen_refused.as_deref()
    }

    /// Tries again to listen, if the server refused it. The next read must follow.
    pub(crate) async fn listen_again(&mut self) -> Result<(), ReadError> {
        if self.server.listen_refused.is_some() {
            let listening = listen(&self.client, &self.database.channel);
            self.server.listen_refused = with_timeout(self.database.timeout, listening).await?;
            if self.server.listen_refused.is_none() {
                self.sync_mode = SyncMode::Live;
            }
        }
        Ok(())
    }

    /// Whether the connection leads to one server session. A transaction pooler may run each transaction on another
    /// server, and shares its sessions with other clients.
    pub(crate) fn is_direct(&self) -> bool {
        self.server.direct
    }

    /// When the server was started, as a text to compare. Behind a pooler it is one of its servers.
    pub(crate) fn server_started(&self) -> &str {
        &self.server.started
    }

    /// Sets the name in `pg_stat_activity`. The statement is sent without waiting for its result, so that the next one
    /// follows at once. Must not be used through a pooler, whose next client would get the name.
    pub(crate) fn set_application_name(&self, name: &str) {
        let statement = format!("SET application_name = {}", escape_literal(name));
        let _ = self.client.batch_execute(&statement).now_or_never();
    }

    /// Waits until the connection is closed; returns the reason.
    pub(crate) async fn closed(&mut self) -> String {
        match (&mut self.driver).await {
            Ok(Some(error)) => chain(&error),
            Ok(None) | Err(_) => "the connection was closed".into(),
        }
    }

    /// Begins a transaction that reads from one snapshot; returns the position of that snapshot.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn begin(&self) -> Result<Position, ReadError> {
        self.begin_transaction().await?;
        let mut rows = self.stream(POSITION, [], self.database.timeout).await?;
        let mut position = None;
        while let Some(chunk) = rows.next().await? {
            position = chunk.first().map(Position::from_row).transpose()?;
        }
        // The view `history` always has one row; a closed connection looks like none.
        position.ok_or(ReadError::Timeout(self.database.timeout))
    }

    /// Begins a transaction that reads from one snapshot.
    pub(crate) async fn begin_transaction(&self) -> Result<(), ReadError> {
        let settings = if self.server.direct {
            PLANNED_ANEW.into()
        } else {
            let settings = settings(self.database.timeout);
            settings.replace("\nSET ", "\nSET LOCAL ").replace(", false)", ", true)")
        };
        self.execute(&format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {settings}")).await
    }

    /// Reads every row of the view.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn entries(&self) -> Result<CopyStream, ReadError> {
        self.copy(Rows::All).await
    }

    /// Reads every row of the view, ordered by the bytes of the ids. Begins a transaction that ends with the session;
    /// needs no right but that to read the view.
    pub(crate) async fn entries_by_id(&self) -> Result<CopyStream, ReadError> {
        self.begin_transaction().await?;
        self.copy(Rows::AllById).await
    }

    async fn copy(&self, rows: Rows<'_>) -> Result<CopyStream, ReadError> {
        CopyStream::open(&self.client, rows, self.start_read(Limits::of_full_read(self.database.timeout))).await
    }

    /// Reads the rows of the view with one of these ids, within `limit`.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn entries_of(&self, ids: &[&str], limit: Duration) -> Result<CopyStream, ReadError> {
        let limits = Limits { total: limit, ..Limits::of_full_read(self.database.timeout) };
        CopyStream::open(&self.client, Rows::Of(ids), self.start_read(limits)).await
    }

    /// Reads the servers that follow this database: one row each, as `sql/fleet.sql` describes.
    pub(crate) async fn fleet(&self) -> Result<RowChunks, ReadError> {
        self.stream(FLEET, [], self.database.timeout).await
    }

    /// A fingerprint of what the view depends on besides the rows of tables: see `sql/structure.sql`.
    pub(crate) async fn structure(&self) -> Result<String, ReadError> {
        let timeout = self.database.timeout;
        let mut rows = if self.server.direct {
            let mut read = self.read(timeout);
            let prepare = read.wait(self.client.prepare_typed(STRUCTURE, &[]));
            let statement = self.structure.get_or_try_init(|| prepare).await?;
            let stream = read.wait(self.client.query_raw(statement, [] as [&str; 0])).await?;
            RowChunks::new(stream, read)
        } else {
            self.stream(STRUCTURE, [], timeout).await?
        };
        let mut fingerprint = None;
        while let Some(chunk) = rows.next().await? {
            fingerprint = chunk.first().map(|row| row.try_get::<_, Option<String>>(0)).transpose()?;
        }
        // A closed connection looks like no row.
        fingerprint.map(Option::unwrap_or_default).ok_or(ReadError::Timeout(timeout))
    }

    /// The tables that the view reads, as `sql/sources.sql` describes. `ids` are rows of its `$ids$`.
    pub(crate) async fn sources(&self, ids: &[String]) -> Result<Vec<SimpleQueryRow>, ReadError> {
        let ids = [ids, &["(NULL, NULL, NULL)".into()]].concat().join(", ");
        self.query_system_catalog(&SOURCES.replace("$ids$", &ids)).await
    }

    /// The names of the tables with changes that go unnoticed: those that the view reads and no trigger watches, and
    /// those that the view seems to have lost when tables were swapped by renaming.
    pub(crate) async fn unwatched_tables(&self) -> Result<Vec<String>, ReadError> {
        let mut names = Vec::new();
        for row in self.sources(&[]).await? {
            let is = |column: &str, value: &str| row.get(column) == Some(value);
            let unwatched = row.get("name").filter(|_| is("watchable", "t") && is("watched", "f"));
            names.extend(unwatched.into_iter().chain(row.get("successor")).map(str::to_owned));
        }
        Ok(names)
    }

    /// The current position, from a transaction of its own.
    pub(crate) async fn position(&self) -> Result<Position, ReadError> {
        let position = self.begin().await?;
        self.commit().await?;
        Ok(position)
    }

    /// Ends the transaction of [`Session::begin`].
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn commit(&self) -> Result<(), ReadError> {
        self.execute("COMMIT").await
    }

    /// Runs a query on the system catalogs; returns its rows as text. It is a transaction of its own in which
    /// unqualified names are those of `pg_catalog`, and names are printed with their schemas.
    pub(crate) async fn query_system_catalog(&self, sql: &str) -> Result<Vec<SimpleQueryRow>, ReadError> {
        // Several statements in one message are one transaction, also through a pooler.
        let sql = format!(
            "SET LOCAL search_path = pg_catalog; SET LOCAL enable_seqscan = on; SET LOCAL enable_sort = on; {sql}"
        );
        let messages = with_timeout(self.database.timeout, self.client.simple_query(&sql)).await?;
        let row = |message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None };
        Ok(messages.into_iter().filter_map(row).collect())
    }

    async fn execute(&self, statement: &str) -> Result<(), ReadError> {
        with_timeout(self.database.timeout, self.client.batch_execute(statement)).await
    }

    /// Runs an unnamed statement in one round trip; it is planned for these very parameters.
    async fn stream<const N: usize>(
        &self,
        statement: &str,
        parameters: [&String; N],
        limit: Duration,
    ) -> Result<RowChunks, ReadError> {
        let mut read = self.read(limit);
        let parameters = parameters.map(|parameter| (parameter, Type::TEXT));
        let stream = read.wait(self.client.query_typed_raw(statement, parameters)).await?;
        Ok(RowChunks::new(stream, read))
    }

    fn read(&self, total: Duration) -> Read {
        self.start_read(Limits { silence: self.database.timeout, total })
    }

    fn start_read(&self, limits: Limits) -> Read {
        Read::start(&self.canceller, limits)
    }
}

/// Finds out what the connection supports and whether it is direct; prepares the session and listens unless a pooler is
/// in between.
async fn prepare(client: &Client, database: &DatabaseConfig) -> Result<(SyncMode, Server), tokio_postgres::Error> {
    let probe = client.query_typed(PROBE, &[]).await?;
    let mut server = match probe.first() {
        Some(row) => Server {
            direct: row.try_get::<_, Option<bool>>(0)?.unwrap_or(false),
            standby: row.try_get(1)?,
            started: row.try_get(2)?,
            listen_refused: None,
        },
        None => Server { direct: false, standby: false, started: String::new(), listen_refused: None },
    };
    // Settings made on a pooler's connection would stay there for its next client.
    if server.direct {
        client.batch_execute(&format!("{}\n{PLANNED_ONCE}", settings(database.timeout))).await?;
    }
    let mode = match (server.direct, server.standby) {
        (_, true) => SyncMode::Standby,
        (false, false) => SyncMode::Polling,
        (true, false) => {
            server.listen_refused = listen(client, &database.channel).await?;
            if server.listen_refused.is_none() { SyncMode::Live } else { SyncMode::Polling }
        }
    };
    Ok((mode, server))
}

/// Listens on the channel; returns the reason if the server refuses it.
async fn listen(client: &Client, channel: &str) -> Result<Option<String>, tokio_postgres::Error> {
    match client.batch_execute(&format!("LISTEN {}", escape_identifier(channel))).await {
        Ok(()) => Ok(None),
        Err(error) if error.as_db_error().is_some() => Ok(Some(chain(&error))),
        Err(error) => Err(error),
    }
}
