//! One immutable state of the catalog, and how the next one is made from rows.
//!
//! A snapshot is never changed once it is published: a [`Refresh`] works on a copy that shares what stays the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::index::{Draft, Entry, Index};
use super::model::{RawModel, RowError, Rules};

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

    /// Adds or replaces; gives back what was replaced.
    fn put(&mut self, entry: Entry) -> Option<Entry> {
        self.bytes += size(&entry);
        self.revision = self.revision.wrapping_add(entry.digest());
        let before = self.index.insert(entry);
        self.forget(before)
    }

    fn take(&mut self, id: &str) -> Option<Entry> {
        let before = self.index.remove(id.as_bytes());
        self.forget(before)
    }

    fn forget(&mut self, before: Option<Entry>) -> Option<Entry> {
        if let Some(entry) = &before {
            self.bytes -= size(entry);
            self.revision = self.revision.wrapping_sub(entry.digest());
        }
        before
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
    /// Whether what no row names will be gone.
    whole: bool,
    group: Group,
    draft: Draft,
    newly_rejected: Vec<(Box<str>, Box<str>)>,
    /// Answers added, replaced or removed so far.
    changed: usize,
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
        let next = Snapshot { index: Index::with_capacity(previous.len()), ..Snapshot::default() };
        Self::new(previous, rules, next, true)
    }

    /// Starts from `previous`: what no row names stays. All rows of one id must come one after the other.
    #[must_use]
    pub fn delta(previous: &'a Snapshot, rules: &'a Rules) -> Self {
        Self::new(previous, rules, previous.clone(), false)
    }

    fn new(previous: &'a Snapshot, rules: &'a Rules, next: Snapshot, whole: bool) -> Self {
        Self {
            previous,
            rules,
            next,
            whole,
            group: Group::default(),
            draft: Draft::default(),
            newly_rejected: Vec::new(),
            changed: 0,
        }
    }

    /// The table has no row with this id any more (delta only).
    pub fn deleted(&mut self, id: &str) {
        self.group(id);
        self.changed += usize::from(self.next.take(id).is_some());
    }

    /// A row of the table.
    pub fn row(&mut self, id: &str, row: Result<RawModel<'_>, RowError>) {
        self.group(id);
        match row.and_then(|row| row.render(self.rules, self.draft.begin(id))) {
            Ok(()) => self.good(id),
            Err(fault) => self.reject(id, &fault),
        }
    }

    fn group(&mut self, id: &str) {
        if !self.whole && self.group.id.as_deref() != Some(id) {
            self.group = Group { id: Some(id.into()), good: false };
            if self.next.rejected.contains_key(id) {
                Arc::make_mut(&mut self.next.rejected).remove(id);
            }
        }
    }

    /// The draft is the answer of a row that passed the rules.
    fn good(&mut self, id: &str) {
        if self.whole {
            return self.good_of_all(id);
        }
        let json = self.draft.json(id);
        let duplicate = std::mem::replace(&mut self.group.good, true);
        let current = self.next.get(id).map(Entry::json);
        let better = current.is_none_or(|current| if duplicate { json < current } else { json != current });
        if better {
            self.next.put(self.draft.finish(id));
            self.changed += 1;
        }
        if duplicate {
            self.reject(id, &RowError::Duplicate);
        }
    }

    /// The same in a full load, whose rows of one id may be far apart.
    fn good_of_all(&mut self, id: &str) {
        let unchanged = self.previous.get(id).filter(|entry| entry.json() == self.draft.json(id)).cloned();
        let entry = unchanged.unwrap_or_else(|| self.draft.finish(id));
        if let Some(other) = self.next.put(entry) {
            if other.json() < self.draft.json(id) {
                self.next.put(other);
            }
            self.reject(id, &RowError::Duplicate);
        }
    }

    fn reject(&mut self, id: &str, fault: &RowError) {
        let reason: Box<str> = fault.to_string().into();
        if self.previous.rejected.get(id) != Some(&reason) {
            self.newly_rejected.push((id.into(), reason.clone()));
        }
        Arc::make_mut(&mut self.next.rejected).insert(id.into(), reason);
    }

    /// Answers added, replaced or removed so far.
    #[must_use]
    pub fn changed(&self) -> usize {
        self.changed
    }

    /// The next snapshot.
    #[must_use]
    pub fn finish(mut self) -> Refreshed {
        if self.whole {
            self.compare();
        }
        Refreshed { snapshot: self.next, changed: self.changed, newly_rejected: self.newly_rejected }
    }

    /// Adds what stays served of the rejected models, and counts what differs from `previous`.
    fn compare(&mut self) {
        let last_good: Vec<Entry> = (self.next.rejected.keys())
            .filter(|id| self.next.get(id).is_none())
            .filter_map(|id| self.previous.get(id).cloned())
            .collect();
        last_good.into_iter().for_each(|entry| drop(self.next.put(entry)));

        let mut kept = 0;
        for entry in self.next.iter() {
            let before = self.previous.index.get(entry.id());
            kept += usize::from(before.is_some());
            self.changed += usize::from(before.is_none_or(|before| !before.same(entry)));
        }
        self.changed += self.previous.len() - kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A row that is good if its path is.
    fn row<'a>(id: &'a str, path: &'a str) -> Result<RawModel<'a>, RowError> {
        let (id, path) = (Some(id), Some(path));
        let download_url = Some("https://example.org/x");
        Ok(RawModel { id, name: id, download_url, auth_required: Some(true), save_path: path, ..RawModel::default() })
    }

    fn full(previous: &Snapshot, rows: &[(&str, &str)]) -> Refreshed {
        let rules = Rules::default();
        let mut refresh = Refresh::full(previous, &rules);
        rows.iter().for_each(|(id, path)| refresh.row(id, row(id, path)));
        refresh.finish()
    }

    fn delta(previous: &Snapshot, rows: &[(&str, Option<&str>)]) -> Refreshed {
        let rules = Rules::default();
        let mut refresh = Refresh::delta(previous, &rules);
        for (id, path) in rows {
            match path {
                Some(path) => refresh.row(id, row(id, path)),
                None => refresh.deleted(id),
            }
        }
        refresh.finish()
    }

    fn content(snapshot: &Snapshot) -> BTreeMap<String, String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let content: BTreeMap<_, _> = snapshot.iter().map(|entry| (text(entry.id()), text(entry.json()))).collect();
        assert_eq!(
            (content.len(), content.values().chain(content.keys()).map(String::len).sum()),
            (snapshot.len(), snapshot.bytes())
        );
        content
    }

    #[test]
    fn a_bad_row_keeps_its_last_good_version_until_it_is_mended_or_gone() {
        let good = full(&Snapshot::default(), &[("a", "good"), ("b", "good")]).snapshot;
        for bad in [delta(&good, &[("a", Some("../x"))]), full(&good, &[("a", "../x"), ("b", "good")])] {
            assert_eq!((bad.changed, bad.newly_rejected.len()), (0, 1));
            assert_eq!((content(&bad.snapshot), bad.snapshot.rejected().len()), (content(&good), 1));
            assert_eq!(delta(&bad.snapshot, &[("a", Some("../x"))]).newly_rejected.len(), 0);
            for mended in
                [delta(&bad.snapshot, &[("a", Some("new"))]), full(&bad.snapshot, &[("a", "new"), ("b", "good")])]
            {
                assert_eq!((mended.changed, mended.snapshot.rejected().len()), (1, 0));
            }
            for gone in [delta(&bad.snapshot, &[("a", None)]), full(&bad.snapshot, &[("b", "good")])] {
                assert_eq!((gone.changed, gone.snapshot.rejected().len(), gone.snapshot.len()), (1, 0, 1));
            }
        }
        let never_good = full(&Snapshot::default(), &[("a", "../x")]).snapshot;
        assert_eq!((never_good.len(), never_good.rejected().len()), (0, 1));
    }

    #[test]
    fn of_two_rows_with_one_id_every_replica_serves_the_same() {
        let start = full(&Snapshot::default(), &[("a", "before")]).snapshot;
        let orders = [[("a", "x"), ("a", "y")], [("a", "y"), ("a", "x")]];
        let mut revisions = Vec::new();
        for rows in orders {
            let changes = rows.map(|(id, path)| (id, Some(path)));
            for refreshed in [full(&Snapshot::default(), &rows), full(&start, &rows), delta(&start, &changes)] {
                assert_eq!((refreshed.snapshot.len(), refreshed.snapshot.rejected().len()), (1, 1));
                revisions.push(refreshed.snapshot.revision());
            }
        }
        assert!(revisions.iter().all(|revision| *revision == revisions[0]), "{revisions:x?}");
        // A good row beside a bad one is served, and the bad one is reported, in either order.
        for rows in [[("a", "x"), ("a", "/y")], [("a", "/y"), ("a", "x")]] {
            let changes = rows.map(|(id, path)| (id, Some(path)));
            for refreshed in [full(&start, &rows), delta(&start, &changes)] {
                assert!(content(&refreshed.snapshot)["a"].contains("\"save_path\":\"x\""));
                assert_eq!(refreshed.snapshot.rejected().len(), 1);
            }
        }
    }
}
