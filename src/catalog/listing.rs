//! One page of the models, ordered by id, and the search in them.
//!
//! The index has no order, so a page is a look at every entry that keeps the first few. A sorted list beside the index
//! would cost every catalog its memory and every change its upkeep, for pages that only people ask for. Who calls this
//! must not hold up requests by it: at a million models a page took 40 to 60 ms, and a search that nothing matches 190 ms.

use std::borrow::Cow;
use std::collections::BTreeMap;

use memchr::memmem::{self, Finder};

use super::index::Entry;
use super::snapshot::Snapshot;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// To be found in the id or in the name, in whichever case. Everything has the empty text in it.
    pub text: String,
    /// Only ids that come after this one. Ids are ordered by their bytes, which is the order of their code points.
    pub after: String,
    /// Models on the page at most.
    pub limit: usize,
}

/// A part of the models that match, without a gap.
#[derive(Debug)]
pub struct Page<'a> {
    /// Ordered by id.
    pub entries: Vec<&'a Entry>,
    /// Whether more would match after the last one.
    pub more: bool,
}

/// The first models of `snapshot` that match. It takes one look at each model, whatever is asked.
#[must_use]
pub fn page<'a>(snapshot: &'a Snapshot, query: &Query) -> Page<'a> {
    let mut search = Search::new(&query.text);
    // One more than the page has room for, to know whether there is one.
    let mut first: BTreeMap<&[u8], &Entry> = BTreeMap::new();
    let mut bound: Option<&[u8]> = None;
    for entry in snapshot.iter() {
        let id = entry.id();
        if id <= query.after.as_bytes() || bound.is_some_and(|bound| id > bound) || !search.matches(entry) {
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
    Page { entries: first.into_values().collect(), more }
}

/// Finds a text in ids and names, in time that no text can make worse.
struct Search {
    text: Finder<'static>,
    name_end: Finder<'static>,
    /// What is searched, folded; used again for the next one.
    folded: Vec<u8>,
}

impl Search {
    fn new(text: &str) -> Self {
        let mut folded = Vec::new();
        fold(text.as_bytes(), &mut folded);
        Self { text: Finder::new(&folded).into_owned(), name_end: Finder::new(NAME_END), folded }
    }

    fn matches(&mut self, entry: &Entry) -> bool {
        if self.text.needle().is_empty() {
            return true;
        }
        self.folded.clear();
        fold(entry.id(), &mut self.folded);
        // No text has this byte, so none is found across the two.
        self.folded.push(0xff);
        if let Some(name) = self.name(entry) {
            fold(&name, &mut self.folded);
        }
        self.text.find(&self.folded).is_some()
    }

    /// The name in a rendered answer, whose second key it is. A quote in a value has a backslash before it, so neither
    /// mark can stand in one.
    fn name<'a>(&self, entry: &'a Entry) -> Option<Cow<'a, [u8]>> {
        // An id takes at least its own length there, and more only with escapes.
        let rest = entry.json().get(ID_BEGIN.len() + entry.id().len()..)?;
        let begin = if rest.starts_with(NAME_BEGIN) { 0 } else { memmem::find(rest, NAME_BEGIN)? };
        let rest = &rest[begin + NAME_BEGIN.len()..];
        let quoted = &rest[..self.name_end.find(rest)?];
        match quoted.contains(&b'\\') {
            true => serde_json::from_slice::<String>(quoted).ok().map(|name| Cow::Owned(name.into_bytes())),
            false => Some(Cow::Borrowed(quoted.get(1..quoted.len().checked_sub(1)?)?)),
        }
    }
}

const ID_BEGIN: &[u8] = br#"{"id":""#;
const NAME_BEGIN: &[u8] = br#"","name":"#;
const NAME_END: &[u8] = br#","download_url":""#;

/// Appends `text`, which is UTF-8, in lower case, letter by letter: `str::to_lowercase` has a rule for the last letter of
/// a word, and what is searched for is seldom a whole one.
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
    use crate::catalog::snapshot::Refresh;

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
    fn pages_put_together_are_all_that_matches_in_order() {
        let mut random = fastrand::Rng::with_seed(5);
        let models: BTreeMap<String, String> =
            (0..500).map(|_| (format!("m{}", random.u32(..) % 10_000), format!("N{}", random.u8(..)))).collect();
        let rows: Vec<_> = models.iter().map(|(id, name)| (id.as_str(), name.as_str())).collect();
        let snapshot = snapshot(&rows);
        for (text, limit) in [("", 1), ("", 7), ("", 499), ("", 1_000), ("1", 3), ("n2", 4), ("M99", 2), ("none", 5)] {
            let (mut all, mut after) = (Vec::new(), String::new());
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
        }
    }

    #[test]
    fn the_search_is_in_ids_and_names_and_in_nothing_else() {
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
    fn a_page_ends_where_the_next_one_begins() {
        let snapshot = snapshot(&[("b", "x"), ("a", "x"), ("B", "x"), ("ä", "x"), ("a/b", "x")]);
        assert_eq!(ids(&snapshot, "", "", 5), (["B", "a", "a/b", "b", "ä"].map(String::from).into(), false));
        assert_eq!(ids(&snapshot, "", "a", 2), (["a/b", "b"].map(String::from).into(), true));
        assert_eq!(ids(&snapshot, "", "a/a", 2), (["a/b", "b"].map(String::from).into(), true));
        assert_eq!(ids(&snapshot, "", "ä", 2), (vec![], false));
        assert_eq!(ids(&Snapshot::default(), "", "", 2), (vec![], false));
    }
}
