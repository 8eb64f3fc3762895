//! A position in the history of a database: the point in it that a read returned the content of.

use std::cmp::Reverse;
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio_postgres::Row;

/// The point in a database's history at which something was read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Position {
    /// `system identifier/timeline/database/epoch/tables`: the history that the transaction ids below belong to.
    /// Databases that lack migration 6 have no `tables`, the ids of our tables, which change when they are restored.
    pub history: String,
    /// A `pg_snapshot` in Postgres' text format: `xmin:xmax:running,…`.
    pub snapshot: String,
    /// The newest changes at this point, as `sql/witnesses.sql` describes; `None` if they are unknown.
    #[serde(skip)]
    pub witnesses: Option<String>,
}

/// Of several changes by one transaction, any may be witnesses, so these are not compared.
impl PartialEq for Position {
    fn eq(&self, other: &Self) -> bool {
        (&self.history, &self.snapshot) == (&other.history, &other.snapshot)
    }
}

impl Position {
    /// A position without witnesses.
    #[must_use]
    pub fn new(history: &str, snapshot: &str) -> Self {
        Self { history: history.into(), snapshot: snapshot.into(), witnesses: None }
    }

    /// Reads the first three columns of `row`.
    ///
    /// # Errors
    /// A NULL, which `model_catalog.history` never contains.
    pub fn from_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let witnesses = row.try_get::<_, Option<String>>(2)?.unwrap_or_default();
        Ok(Self { snapshot: row.try_get(0)?, history: row.try_get(1)?, witnesses: Some(witnesses) })
    }

    /// The oldest transaction that may have been in progress: all below it had ended.
    pub(crate) fn xmin(&self) -> u64 {
        self.snapshot.split(':').next().and_then(|xmin| xmin.parse().ok()).unwrap_or(0)
    }

    /// The first transaction id that was not assigned yet.
    pub(crate) fn xmax(&self) -> u64 {
        self.snapshot.split(':').nth(1).and_then(|xmax| xmax.parse().ok()).unwrap_or(0)
    }

    /// The transactions below [`Position::xmax`] that were in progress, in ascending order.
    pub(crate) fn running(&self) -> Vec<u64> {
        let running = self.snapshot.rsplit(':').next().unwrap_or_default();
        running.split(',').filter_map(|xid| xid.parse().ok()).collect()
    }

    /// Whether it was read from a hot standby, whose snapshots do not list the transactions in progress.
    pub(crate) fn is_standby(&self) -> bool {
        self.history.split('/').nth(1) == Some("standby")
    }

    /// Whether `later` can follow this position: the same history, and no transaction ids taken back. A restored disk
    /// takes ids back while its history keeps its name.
    pub(crate) fn precedes(&self, later: &Self) -> bool {
        self.history == later.history && self.xmax() <= later.xmax()
    }

    /// Whether it is known to be an earlier state than `other` of the same database.
    ///
    /// Snapshots of one primary have an order: transactions only begin, which raises `xmax`, and end, which below the
    /// same `xmax` leaves fewer of them running. Snapshots of its standbys do not list what is running, but their xmin
    /// rises when the oldest transaction ends. If another one ends, neither xmin nor xmax changes, and the two states
    /// count as equal. Between a primary and a standby only `xmax` can be compared: it is one more than the highest
    /// transaction id that has ended. A later epoch comes first of all, and timelines have no order.
    pub(crate) fn is_before(&self, other: &Self) -> bool {
        let [system, timeline, database, epoch, tables] = self.parts();
        let [other_system, other_timeline, other_database, other_epoch, other_tables] = other.parts();
        let same_timeline = timeline == other_timeline;
        if (system, database, tables) != (other_system, other_database, other_tables)
            || !same_timeline && self.is_standby() == other.is_standby()
        {
            return false;
        }
        if epoch != other_epoch {
            let number = |epoch: &str| epoch.parse::<u64>().unwrap_or(0);
            return number(epoch) < number(other_epoch);
        }
        if same_timeline {
            let order = |position: &Self| (position.xmax(), Reverse(position.running().len()), position.xmin());
            return order(self) < order(other);
        }
        self.xmax() < other.xmax()
    }

    /// Parses what [`Position`] is displayed as; `None` if that is something else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (history, snapshot) = text.split_once(' ')?;
        let position = Self::new(history, snapshot);
        let of_snapshot = |byte: u8| byte.is_ascii_digit() || matches!(byte, b':' | b',');
        let valid = (4..=5).contains(&history.split('/').count())
            && history.split('/').all(|part| !part.is_empty())
            && snapshot.split(':').count() == 3
            && snapshot.bytes().all(of_snapshot)
            && position.xmax() > 0;
        valid.then_some(position)
    }

    /// A few letters that stand for the history in the name of a session, where there is no space for all of it; `None`
    /// for a history without `tables`. `model_catalog.history` computes the same.
    pub(crate) fn history_tag(&self) -> Option<String> {
        const LETTERS: usize = 3;
        let letter = |byte: &u8| char::from(b'a' + byte % 26);
        let digest = Sha256::digest(self.history.as_bytes());
        (!self.parts()[4].is_empty()).then(|| digest.iter().take(LETTERS).map(letter).collect())
    }

    /// System identifier, timeline, database, epoch and tables.
    fn parts(&self) -> [&str; 5] {
        let mut parts = self.history.split('/');
        std::array::from_fn(|_| parts.next().unwrap_or_default())
    }
}

/// The history and the `pg_snapshot`, separated by a space.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.history, self.snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_parsed_strictly() {
        for text in ["1/00000001/5/2 100:105:101,103", "1/standby/5/2 100:100:"] {
            assert_eq!(Position::parse(text).map(|position| position.to_string()).as_deref(), Some(text));
        }
        for text in
            ["", "1/00000001/5/2", "1/00000001/5 1:1:", "1//5/2 1:1:", "1/1/5/2 1:1", "1/1/5/2 1:x:", "1/1/5/2 1::"]
        {
            assert_eq!(Position::parse(text), None, "{text}");
        }
    }

    #[test]
    fn positions_are_ordered_within_one_history() {
        let position = Position::new;
        let in_order = ["5:5:", "5:7:5,6", "5:7:5", "7:7:", "7:10:7,9", "9:100:9,10,11"];
        for (place, snapshot) in in_order.iter().enumerate() {
            for (other_place, other) in in_order.iter().enumerate() {
                let before = position("a", snapshot).is_before(&position("a", other));
                assert_eq!(before, place < other_place, "{snapshot} {other}");
                assert!(!position("a", snapshot).is_before(&position("b", other)), "{snapshot} {other}");
            }
        }
    }

    #[test]
    fn positions_of_standbys_are_ordered_by_xmin_and_those_of_other_servers_by_xmax() {
        let before = |(history, snapshot): (&str, &str), (other, later): (&str, &str)| {
            Position::new(history, snapshot).is_before(&Position::new(other, later))
        };
        let (primary, standby) = ("1/00000001/5/2", "1/standby/5/2");
        assert!(before((standby, "100:102:"), (standby, "102:102:")));
        assert!(!before((standby, "102:102:"), (standby, "100:102:")));
        for (one, other) in [(primary, standby), (standby, primary)] {
            assert!(before((one, "100:102:"), (other, "100:103:")));
            assert!(!before((one, "100:102:"), (other, "102:102:")) && !before((one, "100:103:"), (other, "100:102:")));
        }
        for other in ["2/00000001/5/2", "1/00000001/6/2", "1/00000001/5/2/16390.16400", "1/standby/5/2/16390.16400"] {
            assert!(!before((standby, "100:102:"), (other, "100:103:")), "{other}");
        }
        assert!(!before((primary, "100:102:"), ("1/00000002/5/2", "100:103:")));
        // After `reload()`, whatever the transaction ids are.
        for earlier in [primary, standby] {
            for later in ["1/00000001/5/10", "1/standby/5/10"] {
                assert!(before((earlier, "100:103:"), (later, "100:102:")), "{earlier} {later}");
                assert!(!before((later, "100:102:"), (earlier, "100:103:")), "{earlier} {later}");
            }
        }
    }
}
