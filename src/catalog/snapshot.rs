//! One immutable state of the catalog, and how the next one is made from rows.
//!
//! A snapshot is never changed once it is published: a [`Refresh`] works on a copy that shares what stays the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::index::{Entry, Index};
use super::model::{Fault, RawModel, Rules};

/// Rows that are not served as they stand, by id, with the reason.
pub type Rejected = BTreeMap<Box<str>, Box<str>>;

/// One immutable state of the catalog.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    index: Index,
    revision: u64,
    bytes: usize,
    rejected: Arc<Rejected>,
}

impl Snapshot {
    /// The model with this id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Entry> {
        self.index.get(id.as_bytes())
    }

    /// Number of models served.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether no model is served.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Digest of the content: the wrapping sum of the digests of all answers, so it does not depend on order and
    /// follows a change at the cost of the change.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Bytes of all rendered answers and ids together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Rows that are not served as they stand in the table.
    #[must_use]
    pub fn rejected(&self) -> &Rejected {
        &self.rejected
    }

    /// All models, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.index.iter()
    }

    /// A snapshot to be filled by [`Snapshot::restore`].
    pub(super) fn restored(models: usize, rejected: Rejected) -> Self {
        Self { index: Index::with_capacity(models), rejected: Arc::new(rejected), ..Self::default() }
    }

    /// Adds a model as it was when it was saved.
    pub(super) fn restore(&mut self, entry: Entry) {
        self.put(entry);
    }

    fn put(&mut self, entry: Entry) {
        self.bytes += size(&entry);
        self.revision = self.revision.wrapping_add(entry.digest());
        let before = self.index.insert(entry);
        self.forget(before);
    }

    fn take(&mut self, id: &str) -> bool {
        let before = self.index.remove(id.as_bytes());
        let taken = before.is_some();
        self.forget(before);
        taken
    }

    fn forget(&mut self, before: Option<Entry>) {
        if let Some(entry) = before {
            self.bytes -= size(&entry);
            self.revision = self.revision.wrapping_sub(entry.digest());
        }
    }
}

fn size(entry: &Entry) -> usize {
    entry.id().len() + entry.json().len()
}

/// A snapshot in the making: rows go in, the next snapshot comes out.
///
/// A row that breaks a rule is rejected alone, and the last good version of its model stays served. Of several good
/// rows with one id the one with the smallest answer is served, so that every replica serves the same.
pub struct Refresh<'a> {
    previous: &'a Snapshot,
    rules: &'a Rules,
    next: Snapshot,
    full: bool,
    group: Group,
    json: Vec<u8>,
    newly_rejected: Vec<(Box<str>, Box<str>)>,
    /// Answers added, replaced or removed so far.
    changed: usize,
    /// Ids of `previous` that a full load found again.
    kept: usize,
}

/// The rows of one id that came one after the other.
#[derive(Default)]
struct Group {
    id: Option<Box<str>>,
    good: bool,
}

/// What a refresh came to.
pub struct Refreshed {
    /// The next state of the catalog.
    pub snapshot: Snapshot,
    /// Answers that were added, replaced or removed; 0 = the catalog is what it was.
    pub changed: usize,
    /// Rejections that the previous snapshot did not have, each to be logged once.
    pub newly_rejected: Vec<(Box<str>, Box<str>)>,
}

impl<'a> Refresh<'a> {
    /// Starts from nothing: what no row names will be gone. Answers that stay the same are shared with `previous`,
    /// so a full load of an unchanged catalog needs little memory beyond it.
    #[must_use]
    pub fn full(previous: &'a Snapshot, rules: &'a Rules) -> Self {
        let index = Index::with_capacity(previous.len());
        Self::new(previous, rules, Snapshot { index, ..Snapshot::default() }, true)
    }

    /// Starts from `previous`: what no row names stays. All rows of one id must come one after the other.
    #[must_use]
    pub fn delta(previous: &'a Snapshot, rules: &'a Rules) -> Self {
        Self::new(previous, rules, previous.clone(), false)
    }

    fn new(previous: &'a Snapshot, rules: &'a Rules, next: Snapshot, full: bool) -> Self {
        Self {
            previous,
            rules,
            next,
            full,
            group: Group::default(),
            json: Vec::new(),
            newly_rejected: Vec::new(),
            changed: 0,
            kept: 0,
        }
    }

    /// The table has no row with this id any more (delta only).
    pub fn deleted(&mut self, id: &str) {
        self.group(id);
        self.changed += usize::from(self.next.take(id));
    }

    /// A row of the table.
    pub fn row(&mut self, id: &str, row: Result<RawModel<'_>, Fault>) {
        self.group(id);
        let mut json = std::mem::take(&mut self.json);
        match row.and_then(|row| row.render(self.rules, &mut json)) {
            Ok(()) => self.good(id, &json),
            Err(fault) => self.reject(id, &fault),
        }
        self.json = json;
    }

    fn group(&mut self, id: &str) {
        if !self.full && self.group.id.as_deref() != Some(id) {
            self.group = Group { id: Some(id.into()), good: false };
            if self.next.rejected.contains_key(id) {
                Arc::make_mut(&mut self.next.rejected).remove(id);
            }
        }
    }

    fn good(&mut self, id: &str, json: &[u8]) {
        let current = self.next.get(id);
        let duplicate = if self.full { current.is_some() } else { self.group.good };
        self.group.good = true;
        let smaller = current.is_none_or(|current| json < current.json());
        let same = current.is_some_and(|current| json == current.json());
        if duplicate {
            self.reject(id, &Fault::Duplicate);
        }
        if same || (duplicate && !smaller) {
            return;
        }
        let known = self.previous.get(id);
        self.kept += usize::from(known.is_some() && !duplicate);
        match known.filter(|entry| entry.json() == json) {
            Some(unchanged) => self.next.put(unchanged.clone()),
            None => {
                self.next.put(Entry::new(id, json));
                self.changed += 1;
            }
        }
    }

    fn reject(&mut self, id: &str, fault: &Fault) {
        let reason: Box<str> = fault.to_string().into();
        if self.previous.rejected.get(id) != Some(&reason) {
            self.newly_rejected.push((id.into(), reason.clone()));
        }
        Arc::make_mut(&mut self.next.rejected).insert(id.into(), reason);
    }

    /// The next snapshot.
    #[must_use]
    pub fn finish(mut self) -> Refreshed {
        if self.full {
            let last_good: Vec<Entry> = (self.next.rejected.keys())
                .filter(|id| self.next.get(id).is_none())
                .filter_map(|id| self.previous.get(id).cloned())
                .collect();
            let removed = self.previous.len() - self.kept - last_good.len();
            self.changed += removed;
            last_good.into_iter().for_each(|entry| self.next.put(entry));
        }
        Refreshed { snapshot: self.next, changed: self.changed, newly_rejected: self.newly_rejected }
    }
}
