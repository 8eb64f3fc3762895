//! The models of a batch, on request with their transitive dependencies in topological order.
//!
//! Dependencies are read from the rendered JSON, so they take no memory of their own, and only requests that resolve
//! them pay for it.

use std::borrow::Cow;
use std::collections::HashSet;

use serde::Serialize;

use super::entry::Entry;
use super::snapshot::Snapshot;

/// The result of looking up requested ids in one snapshot.
#[derive(Debug, Default)]
pub(crate) struct Selection<'a> {
    /// The models found, each once.
    pub(crate) models: Vec<&'a Entry>,
    /// Requested ids that are not in the snapshot, in the order requested, with repeats.
    pub(crate) not_found: Vec<&'a str>,
    /// Dependencies that are not in the snapshot.
    pub(crate) missing: Vec<MissingDependency<'a>>,
}

/// A dependency that is not in the catalog.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct MissingDependency<'a> {
    /// The id that the dependency names.
    pub(crate) id: String,
    /// The model that needs it.
    pub(crate) required_by: Cow<'a, str>,
}

/// A batch exceeds the limit with its dependencies. Resolution stops there, so it costs no more than an accepted batch,
/// and the full size is not known.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("model_ids and their dependencies are {count} {what} or more, the limit is {limit}: split the request")]
pub(crate) struct LimitExceeded {
    what: &'static str,
    count: usize,
    limit: usize,
}

impl<'a> Selection<'a> {
    /// The requested models alone, in the order requested.
    pub(crate) fn requested(snapshot: &'a Snapshot, ids: &[&'a str]) -> Self {
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

    /// The requested models and their transitive dependencies. A dependency comes before the models that need it,
    /// except within a cycle; otherwise the order is the one requested, and within a model the one of its dependencies.
    ///
    /// # Errors
    /// More than `limit` models, or more than `limit` missing dependencies.
    pub(crate) fn with_dependencies(
        snapshot: &'a Snapshot,
        ids: &[&'a str],
        limit: usize,
    ) -> Result<Self, LimitExceeded> {
        let mut resolver = Resolver { snapshot, limit, visited: HashSet::new(), selection: Self::default() };
        for id in ids {
            match snapshot.get(id) {
                Some(entry) => resolver.add(entry)?,
                None => resolver.selection.not_found.push(id),
            }
        }
        Ok(resolver.selection)
    }
}

/// A depth-first search: a model is added after all of its dependencies.
struct Resolver<'a> {
    snapshot: &'a Snapshot,
    limit: usize,
    /// Ids of models that are added or on the current path; one of the latter closes a cycle.
    visited: HashSet<&'a [u8]>,
    selection: Selection<'a>,
}

impl<'a> Resolver<'a> {
    /// The path is on the heap, because a chain of models may be as long as the limit.
    fn add(&mut self, root: &'a Entry) -> Result<(), LimitExceeded> {
        let mut path = Vec::new();
        path.extend(self.visit(root)?);
        while let Some((entry, dependencies)) = path.last_mut() {
            let entry: &'a Entry = entry;
            match dependencies.next() {
                Some(id) => match self.snapshot.get(&id) {
                    Some(dependency) => path.extend(self.visit(dependency)?),
                    None => self.record_missing(id, entry)?,
                },
                None => {
                    self.selection.models.push(entry);
                    path.pop();
                }
            }
        }
        Ok(())
    }

    /// The model with its dependencies, unless it was visited before.
    fn visit(&mut self, entry: &'a Entry) -> Result<Option<(&'a Entry, std::vec::IntoIter<String>)>, LimitExceeded> {
        if !self.visited.insert(entry.id()) {
            return Ok(None);
        }
        self.check_limit("models", self.visited.len())?;
        Ok(Some((entry, entry.dependencies().into_iter())))
    }

    fn record_missing(&mut self, id: String, entry: &'a Entry) -> Result<(), LimitExceeded> {
        self.selection.missing.push(MissingDependency { id, required_by: String::from_utf8_lossy(entry.id()) });
        self.check_limit("missing dependencies", self.selection.missing.len())
    }

    fn check_limit(&self, what: &'static str, count: usize) -> Result<(), LimitExceeded> {
        if count > self.limit { Err(LimitExceeded { what, count, limit: self.limit }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::model::{RawModel, Rules};
    use crate::catalog::refresh::Refresh;

    /// A catalog of models with these dependencies.
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

    /// A catalog from a text such as `a: b c, b:`.
    fn parsed(text: &str) -> Snapshot {
        let models = text.split(", ").map(|model| {
            let (id, needs) = model.split_once(':').expect("id: needs");
            (id.to_owned(), needs.split_whitespace().map(str::to_owned).collect())
        });
        catalog(&models.collect::<Vec<_>>())
    }

    fn ids(requested: &str) -> Vec<&str> {
        requested.split_whitespace().collect()
    }

    fn names(models: &[&Entry]) -> String {
        models.iter().map(|entry| String::from_utf8_lossy(entry.id())).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn dependencies_come_first_each_model_once() {
        for (models, requested, order) in [
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
            let (snapshot, requested) = (parsed(models), ids(requested));
            let selection = Selection::with_dependencies(&snapshot, &requested, 4).expect(models);
            assert_eq!((names(&selection.models), selection.missing.len()), (order.into(), 0), "{models}");
        }
    }

    #[test]
    fn missing_dependencies_are_listed_once_per_model_that_needs_them() {
        let (snapshot, requested) = (parsed("a: x b x, b: y x"), ids("z a b z"));
        let selection = Selection::with_dependencies(&snapshot, &requested, 4).expect("within the limit");
        let missing: Vec<_> = selection.missing.iter().map(|it| format!("{} by {}", it.id, it.required_by)).collect();
        assert_eq!(missing, ["x by a", "y by b", "x by b"]);
        assert_eq!((names(&selection.models), selection.not_found), ("b a".into(), vec!["z", "z"]));
    }

    #[test]
    fn more_models_or_missing_dependencies_than_the_limit_are_an_error() {
        let (snapshot, requested) = (parsed("a: b, b: c, c: d, d:"), ids("a"));
        let error =
            Selection::with_dependencies(&snapshot, &requested, 3).map(|_| ()).map_err(|error| error.to_string());
        let message = "model_ids and their dependencies are 4 models or more, the limit is 3: split the request";
        assert_eq!(error, Err(message.into()));
        let (snapshot, requested) = (parsed("a: w x y z"), ids("a"));
        assert!(Selection::with_dependencies(&snapshot, &requested, 3).is_err());
        assert!(Selection::with_dependencies(&snapshot, &requested, 4).is_ok());
    }

    #[test]
    fn a_chain_of_ten_thousand_models_does_not_overflow_the_stack() {
        let chain: Vec<_> = (0..10_000).map(|n| (format!("m{n}"), vec![format!("m{}", (n + 1) % 10_000)])).collect();
        let (snapshot, requested) = (catalog(&chain), ids("m0"));
        let selection = Selection::with_dependencies(&snapshot, &requested, 10_000).expect("within the limit");
        let order: Vec<_> = (0..10_000).rev().map(|n| format!("m{n}")).collect();
        assert_eq!(names(&selection.models), order.join(" "));
    }

    /// The models that each model depends on, computed independently of the resolver.
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
    fn random_graphs_are_complete_and_in_topological_order_outside_cycles() {
        let mut random = fastrand::Rng::with_seed(6);
        for _ in 0..2_000 {
            let models = random.usize(1..9);
            let needs: Vec<Vec<usize>> =
                (0..models).map(|_| (0..random.usize(0..4)).map(|_| random.usize(0..models)).collect()).collect();
            let rows = needs.iter().enumerate();
            let rows: Vec<_> = rows.map(|(n, to)| (n.to_string(), to.iter().map(usize::to_string).collect())).collect();
            let (snapshot, root) = (catalog(&rows), random.usize(0..models));
            let root_id = root.to_string();
            let requested = [&*root_id];
            let selection = Selection::with_dependencies(&snapshot, &requested, models).expect("within the limit");
            let text = names(&selection.models);
            let order: Vec<usize> = text.split(' ').map(|id| id.parse().expect("a number")).collect();
            let reach = reach(&needs);
            let mut expected: Vec<_> = (0..models).filter(|to| *to == root || reach[root][*to]).collect();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            expected.sort_unstable();
            assert_eq!(sorted, expected, "{needs:?} from {root}");
            for (position, model) in order.iter().enumerate() {
                for need in &needs[*model] {
                    let before = order[..position].contains(need);
                    assert!(before || reach[*need][*model], "{need} after {model} in {order:?} of {needs:?}");
                }
            }
        }
    }
}
