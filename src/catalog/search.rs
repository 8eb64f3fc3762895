//! Pages of models ordered by id, and the search in ids and names.
//!
//! The index is unordered, so a page is a scan of all entries that keeps the first few. A sorted list beside the index
//! would cost memory in every catalog and work on every change, for pages that only people request. Callers must keep a
//! scan off the serving threads: at a million models a page takes 40 to 60 ms, and up to 290 ms with a text.

use std::collections::BTreeMap;

use memchr::memmem::Finder;

use super::entry::{Entry, NameReader};
use super::snapshot::Snapshot;

/// Selects the models of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Query {
    /// Text that the id or the name must contain, in any case. The empty text matches every model.
    pub(crate) text: String,
    /// Only ids greater than this one. Ids are ordered by their bytes, which is the order of their code points.
    pub(crate) after: String,
    /// Maximum number of models on the page.
    pub(crate) limit: usize,
}

/// A contiguous part of the matching models.
#[derive(Debug)]
pub(crate) struct Page<'a> {
    /// Ordered by id.
    pub(crate) entries: Vec<&'a Entry>,
    /// Whether further models match after the last one.
    pub(crate) more: bool,
    /// Matching models on all pages.
    pub(crate) total: usize,
}

/// The first matching models of `snapshot` after an id. It scans all models, whatever the query.
pub(crate) fn page<'a>(snapshot: &'a Snapshot, query: &Query) -> Page<'a> {
    let mut matcher = Matcher::new(&query.text);
    // One more than the page holds, to know whether further models match.
    let mut first: BTreeMap<&[u8], &Entry> = BTreeMap::new();
    let mut bound: Option<&[u8]> = None;
    let mut total = 0;
    for entry in snapshot.iter().filter(|entry| matcher.matches(entry)) {
        total += 1;
        let id = entry.id();
        if id <= query.after.as_bytes() || bound.is_some_and(|bound| id > bound) {
            continue;
        }
        first.insert(id, entry);
        if first.len() > query.limit + 1 {
            first.pop_last();
        }
        if first.len() > query.limit {
            bound = first.last_key_value().map(|(id, _)| *id);
        }
    }
    let more = first.len() > query.limit;
    if more {
        first.pop_last();
    }
    Page { entries: first.into_values().collect(), more, total }
}

/// Finds a text in ids and names, in time linear in their length for every text.
struct Matcher {
    text: Finder<'static>,
    names: NameReader,
    /// Lower-case id and name of the current entry; a buffer that is reused.
    folded: Vec<u8>,
}

impl Matcher {
    fn new(text: &str) -> Self {
        let mut folded = Vec::new();
        fold(text.as_bytes(), &mut folded);
        Self { text: Finder::new(&folded).into_owned(), names: NameReader::default(), folded }
    }

    fn matches(&mut self, entry: &Entry) -> bool {
        if self.text.needle().is_empty() {
            return true;
        }
        self.folded.clear();
        fold(entry.id(), &mut self.folded);
        // UTF-8 never contains this byte, so no match spans the id and the name.
        self.folded.push(0xff);
        if let Some(name) = self.names.read(entry) {
            fold(&name, &mut self.folded);
        }
        self.text.find(&self.folded).is_some()
    }
}

/// Appends `text`, which is UTF-8, in lower case, letter by letter: `str::to_lowercase` treats the last letter of a
/// word differently, and a search text is seldom a whole word.
fn fold(text: &[u8], folded: &mut Vec<u8>) {
    let start = folded.len();
    if let Some(letters) = (!text.is_ascii()).then(|| std::str::from_utf8(text).ok()).flatten() {
        let mut bytes = [0; 4];
        let letters = letters.chars().flat_map(char::to_lowercase);
        letters.for_each(|letter| folded.extend_from_slice(letter.encode_utf8(&mut bytes).as_bytes()));
    } else {
        folded.extend_from_slice(text);
        folded[start..].make_ascii_lowercase();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::model::{RawModel, Rules};
    use crate::catalog::refresh::Refresh;

    fn snapshot(models: &[(&str, &str)]) -> Snapshot {
        let (empty, rules) = (Snapshot::default(), Rules::default());
        let mut refresh = Refresh::full(&empty, &rules);
        for (id, name) in models {
            let (download_url, save_path) = (Some("https://example.org/needle"), Some("needle"));
            let (id, name, auth_required) = (Some(*id), Some(*name), Some(false));
            let row = RawModel { id, name, download_url, auth_required, save_path, ..RawModel::default() };
            refresh.row(id.unwrap_or_default(), Ok(row));
        }
        refresh.finish().snapshot
    }

    fn ids(snapshot: &Snapshot, text: &str, after: &str, limit: usize) -> (Vec<String>, bool) {
        let query = Query { text: text.into(), after: after.into(), limit };
        let page = page(snapshot, &query);
        let ids = page.entries.iter().map(|entry| String::from_utf8_lossy(entry.id()).into_owned());
        (ids.collect(), page.more)
    }

    #[test]
    fn pages_together_are_all_matches_in_order() {
        let mut random = fastrand::Rng::with_seed(5);
        let models: BTreeMap<String, String> =
            (0..500).map(|_| (format!("m{}", random.u32(..) % 10_000), format!("N{}", random.u8(..)))).collect();
        let rows: Vec<_> = models.iter().map(|(id, name)| (id.as_str(), name.as_str())).collect();
        let snapshot = snapshot(&rows);
        for (text, limit) in [("", 1), ("", 7), ("", 499), ("", 1_000), ("1", 3), ("n2", 4), ("M99", 2), ("none", 5)] {
            let (mut all, mut after) = (Vec::new(), String::new());
            let query = Query { text: text.into(), after: "m5".into(), limit };
            let total = page(&snapshot, &query).total;
            loop {
                let (page, more) = ids(&snapshot, text, &after, limit);
                assert!(page.len() <= limit && (page.len() == limit || !more), "{text} {limit}");
                all.extend(page);
                match all.last() {
                    Some(last) if more => after.clone_from(last),
                    _ => break,
                }
            }
            let text = text.to_lowercase();
            let matching = models.iter().filter(|(id, name)| format!("{id} {name}").to_lowercase().contains(&text));
            assert_eq!(all, matching.map(|(id, _)| id.clone()).collect::<Vec<_>>(), "{text} {limit}");
            assert_eq!(total, all.len(), "{text} {limit}");
        }
    }

    #[test]
    fn text_is_found_in_ids_and_names_only() {
        let models = [
            ("Flux-Dev", "x"),
            ("b", "FLUX.safetensors"),
            (r#"quote","name":"inner"#, r#"say "hi" \ there","download_url":"q"#),
            ("ÄPFEL/ΟΔΟΣ", "İstanbul"),
            (r"back\", "last\\"),
        ];
        let snapshot = snapshot(&models);
        let found = |text: &str| ids(&snapshot, text, "", 10).0;
        for (text, expected) in [
            ("flux", vec!["Flux-Dev", "b"]),
            ("FLUX.S", vec!["b"]),
            (r#"SAY "HI" \ "#, vec![models[2].0]),
            (r#"","download_url":"q"#, vec![models[2].0]),
            ("inner", vec![models[2].0]),
            ("äpfel", vec![models[3].0]),
            ("Οδος", vec![]),
            ("οδοσ", vec![models[3].0]),
            ("i\u{307}STAN", vec![models[3].0]),
            (r"\", vec![r"back\", models[2].0]),
            ("LAST\\", vec![r"back\"]),
            ("needle", vec![]),
            ("false", vec![]),
        ] {
            assert_eq!(found(text), expected, "{text}");
        }
    }

    #[test]
    fn the_next_page_starts_after_the_last_id() {
        let snapshot = snapshot(&[("b", "x"), ("a", "x"), ("B", "x"), ("ä", "x"), ("a/b", "x")]);
        assert_eq!(ids(&snapshot, "", "", 5), (["B", "a", "a/b", "b", "ä"].map(String::from).into(), false));
        assert_eq!(ids(&snapshot, "", "a", 2), (["a/b", "b"].map(String::from).into(), true));
        assert_eq!(ids(&snapshot, "", "a/a", 2), (["a/b", "b"].map(String::from).into(), true));
        assert_eq!(ids(&snapshot, "", "ä", 2), (vec![], false));
        assert_eq!(ids(&Snapshot::default(), "", "", 2), (vec![], false));
    }
}
