//! What a batch asks for, with all that it needs: the closure over dependencies, in an order that serves.
//!
//! Dependencies are read from the rendered answers, so that they take no memory of their own, and only who asks
//! for them pays.

use std::borrow::Cow;
use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::index::Entry;
use super::snapshot::Snapshot;

/// What one snapshot has of the ids that were asked.
#[derive(Debug, Default)]
pub struct Selection<'a> {
    /// Each model once.
    pub models: Vec<&'a Entry>,
    /// Asked and not there, in the order asked, repeats kept.
    pub not_found: Vec<&'a str>,
    /// Needed and not there.
    pub missing: Vec<Missing<'a>>,
}

/// A dependency that the catalog lacks.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Missing<'a> {
    /// The id that the dependency names.
    pub id: String,
    /// The model that needs it.
    pub required_by: Cow<'a, str>,
}

/// With its dependencies, a batch is larger than the limit. The walk ends there, so it costs no more than an answer,
/// and how much larger the batch would be is not known.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("model_ids and what they need are {count} {what} or more, the limit is {limit}: ask in several batches")]
pub struct TooMany {
    what: &'static str,
    count: usize,
    limit: usize,
}

impl<'a> Selection<'a> {
    /// The models alone, in the order asked.
    #[must_use]
    pub fn asked(snapshot: &'a Snapshot, ids: &[&'a str]) -> Self {
        let (mut selection, mut seen) = (Self::default(), HashSet::new());
        for id in ids {
            match snapshot.get(id) {
                Some(entry) if seen.insert(entry.id()) => selection.models.push(entry),
                Some(_) => {}
                None => selection.not_found.push(id),
            }
        }
        selection
    }

    /// The models and, transitively, what they need. What a model needs comes before it, unless it needs the model
    /// itself; apart from that, the order is the one asked, and within a model the one of its dependencies.
    ///
    /// # Errors
    /// More than `limit` models, or as many dependencies that are not there.
    pub fn with_dependencies(snapshot: &'a Snapshot, ids: &[&'a str], limit: usize) -> Result<Self, TooMany> {
        let mut walk = Walk { snapshot, limit, seen: HashSet::new(), selection: Self::default() };
        for id in ids {
            match snapshot.get(id) {
                Some(entry) => walk.add(entry)?,
                None => walk.selection.not_found.push(id),
            }
        }
        Ok(walk.selection)
    }
}

/// A depth-first walk: a model is added once all that it needs has been.
struct Walk<'a> {
    snapshot: &'a Snapshot,
    limit: usize,
    /// Ids of models that were added or are being added; the latter close a cycle.
    seen: HashSet<&'a [u8]>,
    selection: Selection<'a>,
}

impl<'a> Walk<'a> {
    /// The path is on the heap: a chain of models may be as long as the limit.
    fn add(&mut self, root: &'a Entry) -> Result<(), TooMany> {
        let mut path = Vec::new();
        path.extend(self.enter(root)?);
        while let Some((entry, needs)) = path.last_mut() {
            let entry: &'a Entry = entry;
            match needs.next() {
                Some(id) => match self.snapshot.get(&id) {
                    Some(needed) => path.extend(self.enter(needed)?),
                    None => self.miss(id, entry)?,
                },
                None => {
                    self.selection.models.push(entry);
                    path.pop();
                }
            }
        }
        Ok(())
    }

    /// The model with what is left to look at of what it needs, unless it was seen before.
    fn enter(&mut self, entry: &'a Entry) -> Result<Option<(&'a Entry, std::vec::IntoIter<String>)>, TooMany> {
        if !self.seen.insert(entry.id()) {
            return Ok(None);
        }
        self.within_limit("models", self.seen.len())?;
        Ok(Some((entry, dependencies(entry).into_iter())))
    }

    fn miss(&mut self, id: String, entry: &'a Entry) -> Result<(), TooMany> {
        self.selection.missing.push(Missing { id, required_by: String::from_utf8_lossy(entry.id()) });
        self.within_limit("missing dependencies", self.selection.missing.len())
    }

    fn within_limit(&self, what: &'static str, count: usize) -> Result<(), TooMany> {
        if count > self.limit { Err(TooMany { what, count, limit: self.limit }) } else { Ok(()) }
    }
}

/// The ids that a model names, each once.
fn dependencies(entry: &Entry) -> Vec<String> {
    #[derive(Deserialize)]
    struct Needs {
        dependencies: Vec<String>,
    }
    // What was rendered here always parses.
    let mut ids = serde_json::from_slice::<Needs>(entry.json()).map_or(Vec::new(), |needs| needs.dependencies);
    let mut seen = HashSet::new();
    ids.retain(|id| seen.insert(id.clone()));
    ids
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::model::{RawModel, Rules};
    use crate::catalog::snapshot::Refresh;

    /// A catalog of models that need others.
    fn catalog(needs: &[(String, Vec<String>)]) -> Snapshot {
        let (nothing, rules) = (Snapshot::default(), Rules::default());
        let mut refresh = Refresh::full(&nothing, &rules);
        for (id, needs) in needs {
            let needs = serde_json::to_string(needs).expect("strings");
            let row = RawModel {
                id: Some(id),
                name: Some(id),
                download_url: Some("https://example.org/x"),
                auth_required: Some(false),
                save_path: Some(id),
                dependencies: Some(&needs),
                ..RawModel::default()
            };
            refresh.row(id, Ok(row));
        }
        refresh.finish().snapshot
    }

    /// `a: b c, b:` as a catalog.
    fn written(text: &str) -> Snapshot {
        let models = text.split(", ").map(|model| {
            let (id, needs) = model.split_once(':').expect("id: needs");
            (id.to_owned(), needs.split_whitespace().map(str::to_owned).collect())
        });
        catalog(&models.collect::<Vec<_>>())
    }

    fn ids(asked: &str) -> Vec<&str> {
        asked.split_whitespace().collect()
    }

    fn names(models: &[&Entry]) -> String {
        models.iter().map(|entry| String::from_utf8_lossy(entry.id())).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_is_needed_comes_first_each_once() {
        for (models, asked, order) in [
            ("a: b, b: c, c:", "a", "c b a"),
            ("a: b c, b: d, c: d, d:", "a", "d b c a"),
            ("a: b c, b: d, c: d, d:", "d c a", "d c b a"),
            ("a: a, b:", "b a a", "b a"),
            ("a: b, b: c, c: a", "a", "c b a"),
            ("a: b, b: c, c: a", "b", "a c b"),
            // The cycle of b and c needs d, which comes before both.
            ("a: b, b: c, c: b d, d:", "a", "d c b a"),
            ("a: b b, b:", "a", "b a"),
        ] {
            let (snapshot, asked) = (written(models), ids(asked));
            let selection = Selection::with_dependencies(&snapshot, &asked, 4).expect(models);
            assert_eq!((names(&selection.models), selection.missing.len()), (order.into(), 0), "{models}");
        }
    }

    #[test]
    fn what_is_not_there_is_said_once_for_each_model_that_needs_it() {
        let (snapshot, asked) = (written("a: x b x, b: y x"), ids("z a b z"));
        let selection = Selection::with_dependencies(&snapshot, &asked, 4).expect("within the limit");
        let missing: Vec<_> = selection.missing.iter().map(|it| format!("{} by {}", it.id, it.required_by)).collect();
        assert_eq!(missing, ["x by a", "y by b", "x by b"]);
        assert_eq!((names(&selection.models), selection.not_found), ("b a".into(), vec!["z", "z"]));
    }

    #[test]
    fn the_limit_ends_the_walk() {
        let (snapshot, asked) = (written("a: b, b: c, c: d, d:"), ids("a"));
        let error = Selection::with_dependencies(&snapshot, &asked, 3).map(|_| ()).map_err(|error| error.to_string());
        let message = "model_ids and what they need are 4 models or more, the limit is 3: ask in several batches";
        assert_eq!(error, Err(message.into()));
        let (snapshot, asked) = (written("a: w x y z"), ids("a"));
        assert!(Selection::with_dependencies(&snapshot, &asked, 3).is_err());
        assert!(Selection::with_dependencies(&snapshot, &asked, 4).is_ok());
    }

    #[test]
    fn a_chain_of_ten_thousand_needs_no_deep_stack() {
        let chain: Vec<_> = (0..10_000).map(|n| (format!("m{n}"), vec![format!("m{}", (n + 1) % 10_000)])).collect();
        let (snapshot, asked) = (catalog(&chain), ids("m0"));
        let selection = Selection::with_dependencies(&snapshot, &asked, 10_000).expect("within the limit");
        let order: Vec<_> = (0..10_000).rev().map(|n| format!("m{n}")).collect();
        assert_eq!(names(&selection.models), order.join(" "));
    }

    /// Which models each reaches, found without the walk.
    fn reach(needs: &[Vec<usize>]) -> Vec<Vec<bool>> {
        let mut reach: Vec<Vec<bool>> =
            needs.iter().map(|direct| (0..needs.len()).map(|to| direct.contains(&to)).collect()).collect();
        for by in 0..needs.len() {
            for from in 0..needs.len() {
                for to in 0..needs.len() {
                    reach[from][to] |= reach[from][by] && reach[by][to];
                }
            }
        }
        reach
    }

    #[test]
    fn in_any_graph_only_cycles_may_break_the_order() {
        let mut random = fastrand::Rng::with_seed(6);
        for _ in 0..2_000 {
            let models = random.usize(1..9);
            let needs: Vec<Vec<usize>> =
                (0..models).map(|_| (0..random.usize(0..4)).map(|_| random.usize(0..models)).collect()).collect();
            let rows = needs.iter().enumerate();
            let rows: Vec<_> = rows.map(|(n, to)| (n.to_string(), to.iter().map(usize::to_string).collect())).collect();
            let (snapshot, root) = (catalog(&rows), random.usize(0..models));
            let text = root.to_string();
            let asked = [&*text];
            let selection = Selection::with_dependencies(&snapshot, &asked, models).expect("within the limit");
            let text = names(&selection.models);
            let order: Vec<usize> = text.split(' ').map(|id| id.parse().expect("a number")).collect();
            let reach = reach(&needs);
            let mut expected: Vec<_> = (0..models).filter(|to| *to == root || reach[root][*to]).collect();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            expected.sort_unstable();
            assert_eq!(sorted, expected, "{needs:?} from {root}");
            for (place, model) in order.iter().enumerate() {
                for need in &needs[*model] {
                    let before = order[..place].contains(need);
                    assert!(before || reach[*need][*model], "{need} after {model} in {order:?} of {needs:?}");
                }
            }
        }
    }
}
