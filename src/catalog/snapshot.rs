//! An immutable state of the catalog.

use rpds::RedBlackTreeMapSync;

use super::entry::Entry;
use super::index::Index;
use super::model::Rules;
use super::row_error::Rejection;

/// Reasons for which rows are rejected, by id. A clone shares everything, and a change copies a path of the tree.
pub type Rejected = RedBlackTreeMapSync<Box<str>, Box<str>>;

/// One immutable state of the catalog.
///
/// - Each id has one entry, and `revision` and `bytes` are the sums of the digests and sizes of all entries.
/// - Every entry passes the rules of this process: `Refresh` checks rows, and `check_again` and
///   `violations` what was read from a file or an upstream.
/// - Together with a position, it equals the table at that position, but for rejected rows: of these it has the last
///   accepted version, if there was one.
/// - It never changes once it is published. The next one is built from a clone, which shares what stays the same.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    index: Index,
    revision: u64,
    bytes: usize,
    pub(super) rejected: Rejected,
}

impl Snapshot {
    /// Makes room for this number of models in an empty snapshot.
    pub(super) fn reserve(&mut self, models: usize) {
        self.index = Index::with_capacity(models);
    }

    /// The model with this id.
    pub fn get(&self, id: &str) -> Option<&Entry> {
        self.index.get(id.as_bytes())
    }

    /// The models with these ids, in the order of the ids.
    pub(crate) fn get_all(&self, ids: &[&str]) -> Vec<Option<&Entry>> {
        self.index.get_all(ids)
    }

    /// Number of models served.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether no model is served.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Digest of the content: the wrapping sum of the digests of all entries. It does not depend on their order, and is
    /// updated at the cost of the change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Size of all rendered JSON and ids, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Rows that broke a rule when they were last read. The last accepted version of such a model is served, if there
    /// was one.
    pub fn rejected(&self) -> &Rejected {
        &self.rejected
    }

    /// All models, in unspecified order.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.index.iter()
    }

    /// Models that were added, replaced or removed since `previous`, with which unchanged entries are shared.
    pub(crate) fn changes_since(&self, previous: &Self) -> usize {
        if previous.is_empty() {
            return self.len();
        }
        let (mut kept, mut changed) = (0, 0);
        for entry in self.iter() {
            let before = previous.index.get(entry.id());
            kept += usize::from(before.is_some());
            changed += usize::from(before.is_none_or(|before| !before.ptr_eq(entry)));
        }
        changed + previous.len() - kept
    }

    /// Rebuilds a snapshot from its parts, such as a file holds them. `capacity` is the expected number of entries.
    pub(crate) fn from_entries<E>(
        entries: impl IntoIterator<Item = Result<Entry, E>>,
        capacity: usize,
        rejected: Rejected,
    ) -> Result<Self, E> {
        let mut snapshot = Self { index: Index::with_capacity(capacity), rejected, ..Self::default() };
        for entry in entries {
            snapshot.insert(entry?);
        }
        Ok(snapshot)
    }

    /// The models that break one of `rules`, with the reasons. Those that are shared with `checked` are known to pass.
    pub(crate) fn violations(&self, rules: &Rules, checked: &Self) -> Vec<Rejection> {
        let violation = |entry: &Entry| {
            if checked.index.get(entry.id()).is_some_and(|checked| checked.ptr_eq(entry)) {
                return None;
            }
            let error = entry.check(rules).err()?;
            Some(Rejection { id: String::from_utf8_lossy(entry.id()).into(), reason: error.to_string().into() })
        };
        self.iter().filter_map(violation).collect()
    }

    /// Removes the models that break one of `rules` and lists them as rejected; returns them with their reasons. A
    /// model whose row is rejected already keeps the reason of its row.
    pub(crate) fn check_again(&mut self, rules: &Rules) -> Vec<Rejection> {
        let rejected = self.violations(rules, &Self::default());
        for Rejection { id, reason } in &rejected {
            self.remove(id);
            if !self.rejected.contains_key(id) {
                self.rejected.insert_mut(id.clone(), reason.clone());
            }
        }
        rejected
    }

    /// Adds an entry, or replaces the one with the same id, which is returned.
    pub(super) fn insert(&mut self, entry: Entry) -> Option<Entry> {
        self.bytes += size(&entry);
        self.revision = self.revision.wrapping_add(entry.digest());
        let replaced = self.index.insert(entry);
        self.subtract(replaced)
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<Entry> {
        let removed = self.index.remove(id.as_bytes());
        self.subtract(removed)
    }

    /// Subtracts a removed entry from the totals.
    fn subtract(&mut self, entry: Option<Entry>) -> Option<Entry> {
        if let Some(entry) = &entry {
            self.bytes -= size(entry);
            self.revision = self.revision.wrapping_sub(entry.digest());
        }
        entry
    }
}

fn size(entry: &Entry) -> usize {
    entry.id().len() + entry.json().len()
}
