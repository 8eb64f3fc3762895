//! The response to a batch, written into one buffer of exactly the right size.

use std::collections::HashSet;

use crate::catalog::dependencies::Selection;
use crate::catalog::entry::{Entry, array_size, write_array};
use crate::catalog::snapshot::Snapshot;

/// The models of a batch that one snapshot has, and the ids it does not have.
pub struct BatchResponse<'a, 'b> {
    models: Vec<&'a Entry>,
    /// The unknown ids as JSON strings separated by commas.
    not_found: Vec<u8>,
    /// The unknown ids.
    pub missing: Vec<&'b str>,
}

const HEAD: &[u8] = br#"{"models":"#;
const MIDDLE: &[u8] = br#","not_found":["#;
const TAIL: &[u8] = b"]}";

/// Finds duplicates. For small batches a few bits of each digest rule most of them out at once, and only the others
/// are compared with all before them; for larger ones a set is cheaper.
#[derive(Default)]
struct Duplicates<'a> {
    bits: [u64; 16],
    set: HashSet<&'a [u8]>,
}

/// Batches of up to this many ids are small.
const SMALL_BATCH: usize = 64;

impl<'a> Duplicates<'a> {
    fn is_duplicate(&mut self, entry: &'a Entry, before: &[&Entry], ids: usize) -> bool {
        if ids > SMALL_BATCH {
            return !self.set.insert(entry.id());
        }
        let (word, bit) = (entry.digest() as usize % self.bits.len(), 1 << (entry.digest() >> 58));
        let maybe = self.bits[word] & bit != 0;
        self.bits[word] |= bit;
        maybe && before.iter().any(|other| other.ptr_eq(entry))
    }
}

/// Looks up `ids` in one snapshot: models in request order, each once; unknown ids in request order, duplicates kept.
pub fn look_up<'a, 'b>(snapshot: &'a Snapshot, ids: &[&'b str]) -> BatchResponse<'a, 'b> {
    let models = Vec::with_capacity(ids.len());
    let mut response = BatchResponse { models, not_found: Vec::new(), missing: Vec::new() };
    let mut duplicates = Duplicates::default();
    for (id, entry) in ids.iter().zip(snapshot.get_all(ids)) {
        let Some(entry) = entry else {
            response.missing.push(id);
            push_json(&mut response.not_found, id);
            continue;
        };
        if !duplicates.is_duplicate(entry, &response.models, ids.len()) {
            response.models.push(entry);
        }
    }
    response
}

impl BatchResponse<'_, '_> {
    /// Size of the body in bytes.
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
pub(crate) fn with_dependencies(selection: &Selection<'_>) -> Vec<u8> {
    let mut json = Vec::with_capacity(array_size(&selection.models) + 1024);
    json.extend_from_slice(HEAD);
    write_array(&mut json, &selection.models);
    // Writing strings to a Vec cannot fail.
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
    // Writing a string to a Vec cannot fail.
    let _ = serde_json::to_writer(list, id);
}
