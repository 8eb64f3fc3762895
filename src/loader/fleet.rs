//! Reads which servers follow the same database, for people who watch `/api/catalog`.
//!
//! The fleet is read only on request. The names come from other sessions, so they are text like any row.

use std::time::{Duration, Instant};

use tracing::debug;

use super::output::Output;
use crate::base::error_chain::chain;
use crate::postgres::error::ReadError;
use crate::postgres::session::Session;
use crate::sync::{Fleet, FleetMember};

/// Minimum time between two reads, each of which visits all sessions of the cluster. With 80 servers one takes 5 to
/// 10 ms (2 cores of an AMD EPYC), which is too much for all of them to do all the time.
const INTERVAL: Duration = Duration::from_secs(5);

/// When the fleet was read last.
#[derive(Default)]
pub(crate) struct FleetReader {
    read_at: Option<Instant>,
    unreadable_logged: bool,
}

impl FleetReader {
    /// Reads the fleet if it was asked for since the last read. A role that may not read it, and a database whose
    /// schema does not have it, have none.
    pub(crate) async fn refresh(&mut self, session: &Session, output: &Output) -> Result<(), ReadError> {
        let due = self.read_at.is_none_or(|at| at.elapsed() >= INTERVAL);
        // A pooler may run the statement on another server.
        if !due || !session.is_direct() || !output.take_fleet_request() {
            return Ok(());
        }
        self.read_at = Some(Instant::now());
        let fleet = match read(session).await {
            Ok(fleet) => Some(fleet),
            // Conflicts with recovery among them. Only a failed connection ends the session.
            Err(error) if error.is_about_the_schema() || error.is_reported_by_the_server() => {
                if !std::mem::replace(&mut self.unreadable_logged, true) {
                    debug!(error = chain(&error), "the fleet can't be read, /api/catalog does not list it");
                }
                None
            }
            Err(error) => return Err(error),
        };
        output.publish_fleet(fleet);
        Ok(())
    }
}

async fn read(session: &Session) -> Result<Fleet, ReadError> {
    let mut rows = session.fleet().await?;
    let mut fleet = Fleet::default();
    while let Some(chunk) = rows.next().await? {
        for row in &chunk {
            let member = FleetMember { name: row.try_get(0)?, revision: row.try_get(1)?, in_sync: row.try_get(2)? };
            fleet.members.push(member);
            fleet.total = row.try_get(3)?;
        }
    }
    Ok(fleet)
}
