//! The persistent hash index of a snapshot: two levels of `Arc` above small hash tables.
//!
//! A clone shares everything; a change copies one table, one branch and the root. At a million models that is about 300
//! pointers instead of a million. A lookup takes two dependent loads more than in a plain hash map.

use std::sync::Arc;

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

use super::entry::Entry;

/// The number of tables grows when they hold more than twice this many entries on average, so a change copies about
/// this many.
const ENTRIES_PER_TABLE: usize = 64;

type Table = Arc<HashTable<Entry>>;
type Branch = Arc<Vec<Table>>;

/// Entries by id. A clone shares all tables.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    root: Vec<Branch>,
    /// log2 of the number of tables.
    bits: u32,
    len: usize,
}

impl Default for Index {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl Index {
    /// An empty index with room for this many entries. A table that grows reads all of its entries again, so each has
    /// room for an eighth more than the average: few get more than that.
    pub(crate) fn with_capacity(entries: usize) -> Self {
        let bits = (entries / ENTRIES_PER_TABLE).checked_ilog2().unwrap_or(0);
        let per_table = entries >> bits;
        let table = |_| Table::new(HashTable::with_capacity(per_table + per_table / 8));
        let branch = |_| Branch::new((0..1 << (bits / 2)).map(table).collect());
        Self { root: (0..1 << bits.div_ceil(2)).map(branch).collect(), bits, len: 0 }
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Branch and table of a hash. hashbrown takes the bucket from the lowest bits and the tag from the highest seven,
    /// so the table is chosen by bits between them.
    fn slot(&self, hash: u64) -> (usize, usize) {
        let table = (hash >> 32) as usize & ((1 << self.bits) - 1);
        (table >> (self.bits / 2), table & ((1 << (self.bits / 2)) - 1))
    }

    /// The entry of this id.
    pub(crate) fn get(&self, id: &[u8]) -> Option<&Entry> {
        let hash = xxh3_64(id);
        self.table(hash).find(hash, |entry| entry.id() == id)
    }

    /// The entries of several ids, in the order of the ids. A lookup is four dependent loads; each step here does one
    /// kind of them for all ids, so that the cache misses of a large catalog overlap.
    pub(crate) fn get_all<'a>(&'a self, ids: &[&str]) -> Vec<Option<&'a Entry>> {
        let hashes: Vec<u64> = ids.iter().map(|id| xxh3_64(id.as_bytes())).collect();
        let tables: Vec<&Table> = hashes.iter().map(|hash| self.table(*hash)).collect();
        let mut found: Vec<_> = tables.iter().zip(&hashes).map(|(table, hash)| table.find(*hash, |_| true)).collect();
        for (candidate, id) in found.iter_mut().zip(ids) {
            // Seven bits of the hash were compared, so one candidate of 128 may be another entry.
            if candidate.is_some_and(|entry| entry.id() != id.as_bytes()) {
                *candidate = self.get(id.as_bytes());
            }
        }
        found
    }

    fn table(&self, hash: u64) -> &Table {
        let (branch, table) = self.slot(hash);
        &self.root[branch][table]
    }

    fn table_mut(&mut self, hash: u64) -> &mut HashTable<Entry> {
        let (branch, table) = self.slot(hash);
        Arc::make_mut(&mut Arc::make_mut(&mut self.root[branch])[table])
    }

    /// Adds an entry, or replaces the one with the same id, which is returned.
    pub(crate) fn insert(&mut self, entry: Entry) -> Option<Entry> {
        if self.len >= (2 * ENTRIES_PER_TABLE) << self.bits {
            self.grow();
        }
        let hash = xxh3_64(entry.id());
        let table = self.table_mut(hash);
        match table.find_mut(hash, |other| other.id() == entry.id()) {
            Some(slot) => Some(std::mem::replace(slot, entry)),
            None => {
                table.insert_unique(hash, entry, |entry| xxh3_64(entry.id()));
                self.len += 1;
                None
            }
        }
    }

    /// Removes and returns the entry of this id.
    pub(crate) fn remove(&mut self, id: &[u8]) -> Option<Entry> {
        // Checked before `table_mut`, so that a miss does not copy a table.
        self.get(id)?;
        let hash = xxh3_64(id);
        let (entry, _) = self.table_mut(hash).find_entry(hash, |entry| entry.id() == id).ok()?.remove();
        self.len -= 1;
        Some(entry)
    }

    /// All entries, in unspecified order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.root.iter().flat_map(|branch| branch.iter()).flat_map(|table| table.iter())
    }

    fn grow(&mut self) {
        let mut larger = Self::with_capacity(2 * self.len);
        for entry in self.iter() {
            larger.insert(entry.clone());
        }
        *self = larger;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::entry::EntryBuilder;
    use std::collections::HashMap;

    fn entry(id: &str, json: &[u8]) -> Entry {
        let mut builder = EntryBuilder::default();
        builder.begin(id).extend_from_slice(json);
        builder.finish(id)
    }

    #[test]
    fn index_equals_a_hash_map_and_clones_do_not_change() {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut index, mut plain) = (Index::default(), HashMap::new());
        for step in 0..60_000_u32 {
            let id = format!("model-{}", random.u32(0..20_000));
            if random.u8(..) < 60 {
                assert_eq!(index.remove(id.as_bytes()).is_some(), plain.remove(&id).is_some());
            } else {
                let json = step.to_string();
                let before = index.insert(entry(&id, json.as_bytes()));
                assert_eq!(before.map(|entry| entry.json().to_vec()), plain.insert(id, json.into_bytes()));
            }
        }
        let frozen = index.clone();
        for id in plain.keys().take(1_000) {
            index.insert(entry(id, b"later"));
        }
        assert_eq!((frozen.len(), frozen.iter().count()), (plain.len(), plain.len()));
        for (id, json) in &plain {
            assert_eq!(frozen.get(id.as_bytes()).map(Entry::json), Some(&json[..]), "{id}");
        }
        assert!(frozen.get(b"absent").is_none() && frozen.get(b"").is_none());
    }

    #[test]
    fn insert_copies_one_branch_and_one_table() {
        let mut index = Index::with_capacity(100_000);
        for number in 0..100_000 {
            index.insert(entry(&number.to_string(), b"{}"));
        }
        let before = index.clone();
        index.insert(entry("77", b"{\"new\":1}"));
        let copied = |a: &[Branch], b: &[Branch]| a.iter().zip(b).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert_eq!(copied(&before.root, &index.root), 1);
        let tables = before.root.iter().zip(&index.root).flat_map(|(a, b)| a.iter().zip(b.iter()));
        assert_eq!(tables.filter(|(a, b)| !Arc::ptr_eq(a, b)).count(), 1);
    }
}
