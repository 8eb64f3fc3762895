//! Which ids machines ask for most that the catalog lacks: a list of fixed size that no flood of ids can grow.
//!
//! Space-Saving (Metwally, Agrawal, El Abbadi: Efficient Computation of Frequent and Top-k Elements in Data Streams,
//! 2005) with randomized admission (Ben Basat, Einziger, Friedman, Kassner: Randomized Admission Policy for Efficient
//! Top-k and Frequency Estimation, 2017): a fixed number of counters; an id that has none takes over the lowest one,
//! whose count is `c`, with a chance of one in `c + 1`. Without the chance, a hundred thousand ids asked once would
//! raise all counters above an id that is asked again and again; with it they compete for the lowest one.

use std::collections::HashMap;

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

/// Ids that are counted at once.
const COUNTERS: usize = 512;
/// Ids are what clients send, so only this many bytes of them are kept.
pub const ID_BYTES: usize = 200;

/// The beginning of `text` that fits into `bytes`, and whether something is missing.
#[must_use]
pub fn cut(text: &str, bytes: usize) -> (&str, bool) {
    let end = text.floor_char_boundary(bytes);
    (&text[..end], end < text.len())
}

/// An id, or the beginning of one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    /// At most [`ID_BYTES`].
    pub text: Box<str>,
    /// Whether more followed.
    pub cut: bool,
}

#[derive(Debug)]
struct Counter {
    id: Id,
    hash: u64,
    /// Requests since it has this counter; never too high.
    asked: u64,
    /// The same with what the counter stood at before: by this it is compared with the others.
    estimate: u64,
}

/// What one serving thread was asked for in vain.
#[derive(Debug, Default)]
pub struct Missing {
    counters: Vec<Counter>,
    /// Places in `counters`, by id.
    places: HashTable<usize>,
    /// Place of a counter with the lowest estimate.
    lowest: usize,
}

impl Missing {
    /// Somebody asked for `id`.
    pub fn count(&mut self, id: &str) {
        let (text, cut) = cut(id, ID_BYTES);
        let hash = xxh3_64(text.as_bytes());
        let same = |place: &usize| *self.counters[*place].id.text == *text && self.counters[*place].id.cut == cut;
        if let Some(place) = self.places.find(hash, same).copied() {
            self.counters[place].asked += 1;
            self.counters[place].estimate += 1;
            self.raised(place);
            return;
        }
        let new = |estimate| Counter { id: Id { text: text.into(), cut }, hash, asked: 1, estimate };
        let place = if self.counters.len() < COUNTERS {
            self.counters.push(new(1));
            // None is lower than one.
            self.lowest = self.counters.len() - 1;
            self.lowest
        } else {
            let Counter { hash: old, estimate, .. } = self.counters[self.lowest];
            if fastrand::u64(0..=estimate) > 0 {
                return;
            }
            if let Ok(entry) = self.places.find_entry(old, |place| *place == self.lowest) {
                entry.remove();
            }
            self.counters[self.lowest] = new(estimate + 1);
            self.lowest
        };
        let hash_of = |place: &usize| self.counters[*place].hash;
        self.places.insert_unique(hash, place, hash_of);
        self.raised(place);
    }

    /// Looks for the lowest counter again, if that was raised. What is there only rises, so no other can have become it.
    fn raised(&mut self, place: usize) {
        if place == self.lowest {
            let lowest = self.counters.iter().enumerate().min_by_key(|(_, counter)| counter.estimate);
            self.lowest = lowest.map_or(0, |(place, _)| place);
        }
    }

    /// Adds what was counted here to `sums`.
    pub fn add_to(&self, sums: &mut HashMap<Id, u64>) {
        for counter in &self.counters {
            *sums.entry(counter.id.clone()).or_default() += counter.asked;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(missing: &Missing) -> Vec<(String, u64)> {
        let mut sums = HashMap::new();
        missing.add_to(&mut sums);
        let mut list: Vec<_> = sums.into_iter().map(|(id, asked)| (id.text.into_string(), asked)).collect();
        list.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        list
    }

    #[test]
    fn few_ids_are_counted_exactly() {
        let mut missing = Missing::default();
        for number in 0..COUNTERS {
            (0..=number % 7).for_each(|_| missing.count(&format!("id-{number}")));
        }
        let counted = list(&missing);
        assert_eq!(counted.len(), COUNTERS);
        for (id, asked) in counted {
            let number: usize = id.trim_start_matches("id-").parse().expect("a number");
            assert_eq!(asked, number as u64 % 7 + 1, "{id}");
        }
    }

    #[test]
    fn a_flood_pushes_no_favourite_out_and_grows_nothing() {
        let mut missing = Missing::default();
        (0..100).for_each(|_| missing.count("before"));
        for number in 0..100_000 {
            missing.count(&format!("random-{number}-{}", fastrand::u64(..)));
            if number % 200 == 0 {
                missing.count("between");
            }
        }
        let counted = list(&missing);
        assert_eq!((counted.len(), missing.places.len()), (COUNTERS, COUNTERS));
        assert_eq!(counted[..2].iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["between", "before"]);
        assert!((300..=500).contains(&counted[0].1), "{:?}", &counted[..3]);
        assert_eq!(counted[1].1, 100);
        // Every counter is found by its id: one more request raises it.
        for (id, asked) in counted {
            missing.count(&id);
            assert!(list(&missing).contains(&(id, asked + 1)));
        }
    }

    #[test]
    fn long_ids_are_cut_between_characters() {
        let mut missing = Missing::default();
        let long = "ä".repeat(ID_BYTES);
        for id in [&long, &long[..ID_BYTES], &format!("x{long}")] {
            missing.count(id);
        }
        let sizes: Vec<_> = missing.counters.iter().map(|counter| (counter.id.text.len(), counter.id.cut)).collect();
        assert_eq!(sizes, [(ID_BYTES, true), (ID_BYTES, false), (ID_BYTES - 1, true)]);
    }
}
