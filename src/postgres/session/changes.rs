//! Reading changes: the delta, and whether the database still has what was read before.

use std::time::Duration;

use tokio_postgres::types::Type;
use tracing::debug;

use super::{DELTA, STANDBY_DELTA, Session};
use crate::base::error_chain::chain;
use crate::postgres::encoding::readable;
use crate::postgres::error::{ReadError, with_timeout};
use crate::postgres::position::Position;
use crate::postgres::read::Limits;
use crate::postgres::rows::{RowChunks, Scope, UnreadXids};

const WITNESSES: &str = include_str!("../../../sql/witnesses.sql");

impl Session {
    /// Reads every change since `since` in one snapshot, within `limit`: one row each, and at least one row. See
    /// [`change`](crate::postgres::rows::change) and `effort` beside it.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn delta(&self, since: &Position, scope: Scope, limit: Duration) -> Result<RowChunks, ReadError> {
        let (most, look_up) = (scope.limit.to_string(), scope.look_up.to_string());
        self.run_delta(DELTA, [&since.snapshot, &since.history, &most, &look_up], limit).await
    }

    /// Reads the changes of the given transactions on a standby in one snapshot: one row each, and at least one row.
    /// See [`change`](crate::postgres::rows::change) and [`replay`](crate::postgres::rows::replay). Must not be used
    /// through a pooler.
    pub(crate) async fn standby_delta(
        &self,
        unread: &UnreadXids,
        history: &String,
        scope: Scope,
        limit: Duration,
    ) -> Result<RowChunks, ReadError> {
        let (most, look_up) = (scope.limit.to_string(), scope.look_up.to_string());
        self.run_delta(STANDBY_DELTA, [&unread.first, &unread.end, history, &most, &look_up], limit).await
    }

    async fn run_delta<const N: usize>(
        &self,
        sql: &str,
        parameters: [&String; N],
        limit: Duration,
    ) -> Result<RowChunks, ReadError> {
        if !self.server.direct {
            // Not a `Read`, which cancels what runs when it is dropped.
            let sql = with_timeout(self.database.timeout, readable(&self.client, sql)).await?;
            return self.stream(&sql, parameters, limit).await;
        }
        let mut read = self.read(limit);
        // Prepared here and not in `open`, so that a broken view counts as a failed read.
        let prepare = read.wait(async {
            self.client.prepare_typed(&readable(&self.client, sql).await?, &[const { Type::TEXT }; N]).await
        });
        let delta = self.delta.get_or_try_init(|| prepare).await?;
        let stream = read.wait(self.client.query_raw(delta, parameters)).await?;
        Ok(RowChunks::new(stream, read))
    }

    /// Whether the database still has what was read at `position`, or that is unknown. A restore can take it back
    /// without a change of the history's identity.
    pub(crate) async fn confirms(&self, position: &Position) -> Result<bool, ReadError> {
        let Some(witnesses) = &position.witnesses else { return Ok(true) };
        let mut rows = self.stream(WITNESSES, [&position.snapshot, witnesses], self.database.timeout).await?;
        let mut confirmed = true;
        while let Some(chunk) = rows.next().await? {
            for row in &chunk {
                confirmed = row.try_get(0)?;
            }
        }
        Ok(confirmed)
    }

    /// Has the log of changes trimmed if it is large, in a transaction of its own. A server that can't do so is none of
    /// the loader's concern: the role may lack the right, and the schema the function.
    pub(crate) async fn trim(&self) -> Result<(), ReadError> {
        let may =
            "SELECT pg_catalog.has_function_privilege(pg_catalog.to_regprocedure('model_catalog.trim()'), 'EXECUTE')";
        let rows = self.query_system_catalog(may).await?;
        if rows.first().and_then(|row| row.get(0)) != Some("t") {
            return Ok(());
        }
        let mut read = self.start_read(Limits::of_full_read(self.database.timeout));
        // Several statements in one message are one transaction, also through a pooler.
        let trim = "SET TRANSACTION READ WRITE; SELECT model_catalog.trim()";
        match read.wait(self.client.simple_query(trim)).await {
            Ok(_) => read.end(),
            Err(error) if error.is_reported_by_the_server() => {
                debug!(error = chain(&error), "the log of changes can't be trimmed")
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
