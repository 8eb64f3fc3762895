//! How the next snapshot is built from rows.
//!
//! A published snapshot never changes: a [`Refresh`] works on a copy that shares the unchanged parts.

use super::entry::{Entry, EntryBuilder, is_preferred};
use super::model::{RawModel, RowError, Rules};
use super::row_error::Rejection;
use super::snapshot::Snapshot;

/// Builds the next snapshot from rows.
///
/// A row that breaks a rule is rejected alone, and the last accepted version of its model stays served: every model of
/// `previous` must pass the same rules, see `Snapshot::check_again`. Of several valid rows with the same id,
/// `is_preferred` selects the one that is served.
pub struct Refresh<'a> {
    previous: &'a Snapshot,
    rules: &'a Rules,
    next: Snapshot,
    /// The accepted rows of a full read. The index is built when their number is known: one that grows reads every
    /// entry again.
    entries: Vec<Entry>,
    /// Whether models that no row names are removed.
    full: bool,
    group: Group,
    builder: EntryBuilder,
    newly_rejected: Vec<Rejection>,
    /// Ids whose rejection was removed or set (delta only).
    reconsidered: Vec<Box<str>>,
    /// Models added, replaced or removed so far.
    changed: usize,
    unknown: Option<(usize, Box<str>)>,
}

/// Consecutive rows with the same id.
#[derive(Default)]
struct Group {
    id: Option<Box<str>>,
    /// Whether one of them was accepted.
    accepted: bool,
}

/// The result of a refresh.
pub struct Refreshed {
    /// The next state of the catalog.
    pub snapshot: Snapshot,
    /// Models added, replaced or removed; 0 if the content is the same as before.
    pub changed: usize,
    /// Whether the rejected rows or their reasons differ from the previous ones.
    pub rejections_changed: bool,
    /// Rejections that the previous snapshot did not have, to be logged once.
    pub newly_rejected: Vec<Rejection>,
    /// The number of ids without a row that the previous snapshot did not have either, and the first of them (delta
    /// only).
    pub unknown: Option<(usize, Box<str>)>,
}

impl<'a> Refresh<'a> {
    /// Starts from an empty catalog: models that no row names are removed. Entries that stay the same are shared with
    /// `previous`, so a full read of an unchanged catalog needs little additional memory.
    pub fn full(previous: &'a Snapshot, rules: &'a Rules) -> Self {
        Self::new(previous, rules, Snapshot::default(), true)
    }

    /// Starts from `previous`: models that no row names are kept. Rows with the same id must be consecutive.
    pub fn delta(previous: &'a Snapshot, rules: &'a Rules) -> Self {
        Self::new(previous, rules, previous.clone(), false)
    }

    fn new(previous: &'a Snapshot, rules: &'a Rules, next: Snapshot, full: bool) -> Self {
        Self {
            previous,
            rules,
            next,
            entries: Vec::new(),
            full,
            group: Group::default(),
            builder: EntryBuilder::default(),
            newly_rejected: Vec::new(),
            reconsidered: Vec::new(),
            changed: 0,
            unknown: None,
        }
    }

    /// Removes a model that no longer has a row (delta only).
    pub fn deleted(&mut self, id: &str) {
        self.enter_group(id);
        let removed = self.next.remove(id).is_some();
        self.changed += usize::from(removed);
        if !removed && !self.previous.rejected.contains_key(id) {
            self.unknown.get_or_insert_with(|| (0, id.into())).0 += 1;
        }
    }

    /// Accepts or rejects a row.
    pub fn row(&mut self, id: &str, row: Result<RawModel<'_>, RowError>) {
        self.enter_group(id);
        match row.and_then(|row| row.render(self.rules, self.builder.begin(id))) {
            Ok(()) => self.accept(id),
            Err(error) => self.reject(id, &error),
        }
    }

    /// In a delta, the first row of an id clears an earlier rejection.
    fn enter_group(&mut self, id: &str) {
        if !self.full && self.group.id.as_deref() != Some(id) {
            self.group = Group { id: Some(id.into()), accepted: false };
            if self.next.rejected.remove_mut(id) {
                self.reconsidered.push(id.into());
            }
        }
    }

    /// The builder holds the JSON of a valid row.
    fn accept(&mut self, id: &str) {
        if self.full {
            return self.accept_full(id);
        }
        let json = self.builder.json(id);
        let duplicate = std::mem::replace(&mut self.group.accepted, true);
        let current = self.next.get(id).map(Entry::json);
        let replaces =
            current.is_none_or(|current| if duplicate { is_preferred(json, current) } else { json != current });
        if replaces {
            self.next.insert(self.builder.finish(id));
            self.changed += 1;
        }
        if duplicate {
            self.reject(id, &RowError::Duplicate);
        }
    }

    /// Accepts a row of a full read, where rows with the same id need not be consecutive: `finish_full` finds them.
    fn accept_full(&mut self, id: &str) {
        let unchanged = self.previous.get(id).filter(|entry| entry.json() == self.builder.json(id)).cloned();
        self.entries.push(unchanged.unwrap_or_else(|| self.builder.finish(id)));
    }

    fn reject(&mut self, id: &str, error: &RowError) {
        let reason: Box<str> = error.to_string().into();
        if self.previous.rejected.get(id) != Some(&reason) {
            self.newly_rejected.push(Rejection { id: id.into(), reason: reason.clone() });
        }
        if !self.full {
            self.reconsidered.push(id.into());
        }
        self.next.rejected.insert_mut(id.into(), reason);
    }

    /// Models added, replaced or removed so far.
    pub(crate) fn changed(&self) -> usize {
        self.changed
    }

    /// The next snapshot.
    pub fn finish(mut self) -> Refreshed {
        if self.full {
            self.finish_full();
        }
        let (before, now) = (&self.previous.rejected, &self.next.rejected);
        // Comparing the whole maps would cost a delta more than everything else if there are many rejected rows.
        let rejections_changed =
            if self.full { before != now } else { self.reconsidered.iter().any(|id| before.get(id) != now.get(id)) };
        Refreshed {
            snapshot: self.next,
            changed: self.changed,
            rejections_changed,
            newly_rejected: self.newly_rejected,
            unknown: self.unknown,
        }
    }

    /// Builds the index, keeps the last accepted versions of rejected models, and counts the differences from
    /// `previous`.
    fn finish_full(&mut self) {
        self.next.reserve(self.entries.len());
        for entry in std::mem::take(&mut self.entries) {
            let Some(other) = self.next.insert(entry) else { continue };
            let id = String::from_utf8_lossy(other.id()).into_owned();
            if self.next.get(&id).is_some_and(|entry| is_preferred(other.json(), entry.json())) {
                self.next.insert(other);
            }
            self.reject(&id, &RowError::Duplicate);
        }
        let last_accepted: Vec<Entry> = (self.next.rejected.keys())
            .filter(|id| self.next.get(id).is_none())
            .filter_map(|id| self.previous.get(id).cloned())
            .collect();
        last_accepted.into_iter().for_each(|entry| drop(self.next.insert(entry)));

        self.changed += self.next.changes_since(self.previous);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::time::Instant;

    /// A row that is valid if its path is.
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
    fn rejected_rows_keep_their_last_accepted_version_until_fixed_or_deleted() {
        let valid = full(&Snapshot::default(), &[("a", "good"), ("b", "good")]).snapshot;
        for rejected in [delta(&valid, &[("a", Some("../x"))]), full(&valid, &[("a", "../x"), ("b", "good")])] {
            assert_eq!((rejected.changed, rejected.newly_rejected.len()), (0, 1));
            assert_eq!((content(&rejected.snapshot), rejected.snapshot.rejected().size()), (content(&valid), 1));
            assert_eq!(delta(&rejected.snapshot, &[("a", Some("../x"))]).newly_rejected.len(), 0);
            for fixed in [
                delta(&rejected.snapshot, &[("a", Some("new"))]),
                full(&rejected.snapshot, &[("a", "new"), ("b", "good")]),
            ] {
                assert_eq!((fixed.changed, fixed.snapshot.rejected().size()), (1, 0));
            }
            for deleted in [delta(&rejected.snapshot, &[("a", None)]), full(&rejected.snapshot, &[("b", "good")])] {
                assert_eq!((deleted.changed, deleted.snapshot.rejected().size(), deleted.snapshot.len()), (1, 0, 1));
            }
        }
        let never_valid = full(&Snapshot::default(), &[("a", "../x")]).snapshot;
        assert_eq!((never_valid.len(), never_valid.rejected().size()), (0, 1));
    }

    #[test]
    fn cost_of_a_rejected_row_does_not_follow_the_number_of_others() {
        const OTHERS: usize = 100_000;
        let rules = Rules::default();
        let none = Snapshot::default();
        let started = Instant::now();
        let mut refresh = Refresh::full(&none, &rules);
        for number in 0..OTHERS {
            let id = format!("other-{number}");
            refresh.row(&id, row(&id, "../x"));
        }
        let mut current = refresh.finish().snapshot;
        let built = started.elapsed();

        let started = Instant::now();
        for round in 0..200 {
            let refreshed = delta(&current, &[("a", Some(["../x", "/x"][round % 2]))]);
            assert!(refreshed.rejections_changed);
            let again =
                delta(&refreshed.snapshot, &[("a", Some(["../x", "/x"][round % 2])), ("other-7", Some("../x"))]);
            assert!(!again.rejections_changed && again.newly_rejected.is_empty());
            current = again.snapshot;
        }
        let changed = started.elapsed();
        assert_eq!(current.rejected().size(), OTHERS + 1);
        assert!(delta(&current, &[("a", None)]).rejections_changed && delta(&current, &[("b", None)]).changed == 0);
        // Copying or comparing all of them takes about as long as building them, and there were 400 deltas.
        assert!(changed < 10 * built, "400 deltas took {changed:?}, building {OTHERS} took {built:?}");
    }

    #[test]
    fn ids_that_neither_rows_nor_the_catalog_have_are_counted() {
        let start = full(&Snapshot::default(), &[("a", "good"), ("bad", "../x")]).snapshot;
        assert_eq!(delta(&start, &[("a", None), ("bad", None), ("c", Some("good"))]).unknown, None);
        assert_eq!(delta(&start, &[("x", None), ("a", None), ("y", None)]).unknown, Some((2, "x".into())));
    }

    #[test]
    fn models_that_break_tightened_rules_are_removed_and_rejected() {
        let loose = Rules { url_schemes: vec!["https".into(), "ftp".into()] };
        let none = Snapshot::default();
        let mut refresh = Refresh::full(&none, &loose);
        refresh.row("https", row("https", "a"));
        let ftp = row("ftp", "b").map(|row| RawModel { download_url: Some("ftp://example.org/x"), ..row });
        refresh.row("ftp", ftp);
        let mut snapshot = refresh.finish().snapshot;
        assert_eq!((snapshot.check_again(&loose).len(), snapshot.len()), (0, 2));
        assert_eq!(snapshot.violations(&Rules::default(), &none).len(), 1);
        assert_eq!(snapshot.violations(&Rules::default(), &snapshot.clone()).len(), 0);

        let rejected = snapshot.check_again(&Rules::default());
        assert_eq!((rejected.len(), snapshot.rejected().size()), (1, 1));
        assert_eq!(content(&snapshot).keys().collect::<Vec<_>>(), ["https"]);
        assert_eq!(snapshot.revision(), full(&none, &[("https", "a")]).snapshot.revision());
        let reason = &snapshot.rejected()["ftp"];
        assert_eq!(&**reason, "download_url has the scheme `ftp`: allowed are http, https");
    }

    #[test]
    fn duplicate_ids_give_the_same_revision_in_any_order() {
        let start = full(&Snapshot::default(), &[("a", "before")]).snapshot;
        let orders = [[("a", "x"), ("a", "y")], [("a", "y"), ("a", "x")]];
        let mut revisions = Vec::new();
        for rows in orders {
            let changes = rows.map(|(id, path)| (id, Some(path)));
            for refreshed in [full(&Snapshot::default(), &rows), full(&start, &rows), delta(&start, &changes)] {
                assert_eq!((refreshed.snapshot.len(), refreshed.snapshot.rejected().size()), (1, 1));
                revisions.push(refreshed.snapshot.revision());
            }
        }
        assert!(revisions.iter().all(|revision| *revision == revisions[0]), "{revisions:x?}");
        // A valid row is served and the invalid one beside it is reported, in either order.
        for rows in [[("a", "x"), ("a", "/y")], [("a", "/y"), ("a", "x")]] {
            let changes = rows.map(|(id, path)| (id, Some(path)));
            for refreshed in [full(&start, &rows), delta(&start, &changes)] {
                assert!(content(&refreshed.snapshot)["a"].contains("\"save_path\":\"x\""));
                assert_eq!(refreshed.snapshot.rejected().size(), 1);
            }
        }
    }
}
