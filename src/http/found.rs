//! The answer to a batch: what is found of it, written into one buffer of the right size.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::catalog::dependencies::Selection;
use crate::catalog::entry::{Entry, array_size, write_array};
use crate::catalog::snapshot::Snapshot;

/// What a batch found in one snapshot.
pub struct Found<'a, 'b> {
    models: Vec<&'a Entry>,
    /// The ids that the catalog lacks, as JSON strings with commas between.
    not_found: Vec<u8>,
    /// The same ids.
    pub missing: Vec<&'b str>,
}

const HEAD: &[u8] = br#"{"models":"#;
const MIDDLE: &[u8] = br#","not_found":["#;
const TAIL: &[u8] = b"]}";

/// Finds models that were asked before. Up to so many ids, a few bits of each digest say at once that most were not,
/// and only the others are compared with all before them; beyond it, a set is cheaper.
#[derive(Default)]
struct Seen<'a> {
    bits: [u64; 16],
    many: HashSet<&'a [u8]>,
}

const FEW: usize = 64;

impl<'a> Seen<'a> {
    fn repeats(&mut self, entry: &'a Entry, before: &[&Entry], ids: usize) -> bool {
        if ids > FEW {
            return !self.many.insert(entry.id());
        }
        let (word, bit) = (entry.digest() as usize % self.bits.len(), 1 << (entry.digest() >> 58));
        let maybe = self.bits[word] & bit != 0;
        self.bits[word] |= bit;
        maybe && before.iter().any(|other| other.ptr_eq(entry))
    }
}

/// Looks `ids` up in one snapshot: models in the order asked, each once; `not_found` in the order asked, repeats kept.
#[must_use]
pub fn look_up<'a, 'b>(snapshot: &'a Snapshot, ids: &'b [Cow<'_, str>]) -> Found<'a, 'b> {
    let mut found = Found { models: Vec::with_capacity(ids.len()), not_found: Vec::new(), missing: Vec::new() };
    let mut seen = Seen::default();
    for id in ids {
        let Some(entry) = snapshot.get(id) else {
            found.missing.push(id);
            push_json(&mut found.not_found, id);
            continue;
        };
        if !seen.repeats(entry, &found.models, ids.len()) {
            found.models.push(entry);
        }
    }
    found
}

impl Found<'_, '_> {
    /// Bytes of the answer.
    #[must_use]
    pub fn size(&self) -> usize {
        HEAD.len() + array_size(&self.models) + MIDDLE.len() + self.not_found.len() + TAIL.len()
    }

    /// Appends `{"models":[…],"not_found":[…]}`.
    pub fn write(&self, json: &mut Vec<u8>) {
        json.reserve(self.size());
        json.extend_from_slice(HEAD);
        write_array(json, &self.models);
        json.extend_from_slice(MIDDLE);
        json.extend_from_slice(&self.not_found);
        json.extend_from_slice(TAIL);
    }
}

/// `{"models":[…],"not_found":[…],"missing_dependencies":[…]}`
#[must_use]
pub fn resolved(selection: &Selection<'_>) -> Vec<u8> {
    let mut json = Vec::with_capacity(array_size(&selection.models) + 1024);
    json.extend_from_slice(HEAD);
    write_array(&mut json, &selection.models);
    // Writing strings to a Vec can't fail.
    json.extend_from_slice(br#","not_found":"#);
    let _ = serde_json::to_writer(&mut json, &selection.not_found);
    json.extend_from_slice(br#","missing_dependencies":"#);
    let _ = serde_json::to_writer(&mut json, &selection.missing);
    json.push(b'}');
    json
}

fn push_json(list: &mut Vec<u8>, id: &str) {
    if !list.is_empty() {
        list.push(b',');
    }
    // Writing a string to a Vec can't fail.
    let _ = serde_json::to_writer(list, id);
}
