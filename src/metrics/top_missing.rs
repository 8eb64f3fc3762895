//! The most requested ids that the catalog does not have: a list of fixed size that no flood of ids can grow.
//!
//! Space-Saving (Metwally, Agrawal, El Abbadi: Efficient Computation of Frequent and Top-k Elements in Data Streams,
//! 2005) with randomized admission (Ben Basat, Einziger, Friedman, Kassner: Randomized Admission Policy for Efficient
//! Top-k and Frequency Estimation, 2017): a fixed number of counters; an id that has none takes over the lowest one,
//! whose count is `c`, with a chance of one in `c + 1`. Without the chance, a hundred thousand ids requested once would
//! raise all counters above an id that is requested again and again; with it they compete for the lowest one.

use std::collections::HashMap;

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

/// Ids counted at the same time.
const COUNTERS: usize = 512;
/// Clients choose the ids, so only this many bytes of each are kept.
pub(crate) const ID_BYTES: usize = 200;

/// The longest prefix of `text` that fits into `bytes`, and whether it is shorter than `text`.
pub(crate) fn truncate(text: &str, bytes: usize) -> (&str, bool) {
    let end = text.floor_char_boundary(bytes);
    (&text[..end], end < text.len())
}

/// An unknown id, possibly truncated.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Id {
    /// At most [`ID_BYTES`].
    pub(crate) text: Box<str>,
    /// Whether it was longer.
    pub(crate) truncated: bool,
}

#[derive(Debug)]
struct Counter {
    id: Id,
    hash: u64,
    /// Requests since the id has this counter; a lower bound.
    requests: u64,
    /// The same plus the value the counter had before: counters are compared by this.
    estimate: u64,
}

/// The unknown ids that one worker thread was asked for.
#[derive(Debug, Default)]
pub(crate) struct TopMissingIds {
    counters: Vec<Counter>,
    /// Indexes into `counters`, by id.
    indexes: HashTable<usize>,
    /// Index of a counter with the lowest estimate.
    lowest: usize,
}

impl TopMissingIds {
    /// Counts a request for `id`.
    pub(crate) fn count(&mut self, id: &str) {
        let (text, truncated) = truncate(id, ID_BYTES);
        let hash = xxh3_64(text.as_bytes());
        let same =
            |index: &usize| *self.counters[*index].id.text == *text && self.counters[*index].id.truncated == truncated;
        if let Some(index) = self.indexes.find(hash, same).copied() {
            self.counters[index].requests += 1;
            self.counters[index].estimate += 1;
            self.update_minimum(index);
            return;
        }
        let new = |estimate| Counter { id: Id { text: text.into(), truncated }, hash, requests: 1, estimate };
        let index = if self.counters.len() < COUNTERS {
            self.counters.push(new(1));
            // No counter is lower than one.
            self.lowest = self.counters.len() - 1;
            self.lowest
        } else {
            let Counter { hash: old, estimate, .. } = self.counters[self.lowest];
            if fastrand::u64(0..=estimate) > 0 {
                return;
            }
            if let Ok(entry) = self.indexes.find_entry(old, |index| *index == self.lowest) {
                entry.remove();
            }
            self.counters[self.lowest] = new(estimate + 1);
            self.lowest
        };
        let hash_of = |index: &usize| self.counters[*index].hash;
        self.indexes.insert_unique(hash, index, hash_of);
        self.update_minimum(index);
    }

    /// Finds the lowest counter again if it was raised. Counters only rise, so no other can have become the lowest.
    fn update_minimum(&mut self, index: usize) {
        if index == self.lowest {
            let lowest = self.counters.iter().enumerate().min_by_key(|(_, counter)| counter.estimate);
            self.lowest = lowest.map_or(0, |(index, _)| index);
        }
    }

    /// Adds these counts to `sums`.
    pub(crate) fn add_to(&self, sums: &mut HashMap<Id, u64>) {
        for counter in &self.counters {
            *sums.entry(counter.id.clone()).or_default() += counter.requests;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(missing: &TopMissingIds) -> Vec<(String, u64)> {
        let mut sums = HashMap::new();
        missing.add_to(&mut sums);
        let mut list: Vec<_> = sums.into_iter().map(|(id, requests)| (id.text.into_string(), requests)).collect();
        list.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        list
    }

    #[test]
    fn few_ids_are_counted_exactly() {
        let mut missing = TopMissingIds::default();
        for number in 0..COUNTERS {
            (0..=number % 7).for_each(|_| missing.count(&format!("id-{number}")));
        }
        let counted = list(&missing);
        assert_eq!(counted.len(), COUNTERS);
        for (id, requests) in counted {
            let number: usize = id.trim_start_matches("id-").parse().expect("a number");
            assert_eq!(requests, number as u64 % 7 + 1, "{id}");
        }
    }

    #[test]
    fn frequent_ids_survive_a_flood_of_others() {
        let mut missing = TopMissingIds::default();
        (0..100).for_each(|_| missing.count("before"));
        for number in 0..100_000 {
            missing.count(&format!("random-{number}-{}", fastrand::u64(..)));
            if number % 200 == 0 {
                missing.count("between");
            }
        }
        let counted = list(&missing);
        assert_eq!((counted.len(), missing.indexes.len()), (COUNTERS, COUNTERS));
        assert_eq!(counted[..2].iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["between", "before"]);
        assert!((300..=500).contains(&counted[0].1), "{:?}", &counted[..3]);
        assert_eq!(counted[1].1, 100);
        // Every counter is found by its id: one more request raises it.
        for (id, requests) in counted {
            missing.count(&id);
            assert!(list(&missing).contains(&(id, requests + 1)));
        }
    }

    #[test]
    fn long_ids_are_truncated_between_characters() {
        let mut missing = TopMissingIds::default();
        let long = "ä".repeat(ID_BYTES);
        for id in [&long, &long[..ID_BYTES], &format!("x{long}")] {
            missing.count(id);
        }
        let sizes: Vec<_> =
            missing.counters.iter().map(|counter| (counter.id.text.len(), counter.id.truncated)).collect();
        assert_eq!(sizes, [(ID_BYTES, true), (ID_BYTES, false), (ID_BYTES - 1, true)]);
    }
}
