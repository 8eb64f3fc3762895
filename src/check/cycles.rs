//! Models that need themselves by way of others: a walk in depth over the graph of dependencies.

/// A graph of numbered nodes.
pub struct Graph {
    /// Where in `targets` the edges of each node begin, and after the last one their end.
    starts: Vec<u32>,
    targets: Vec<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    No,
    OnPath,
    Done,
}

impl Graph {
    /// A graph of `nodes` nodes. `edges` are sorted to make it.
    #[must_use]
    pub fn new(nodes: usize, mut edges: Vec<(u32, u32)>) -> Self {
        edges.sort_unstable();
        edges.dedup();
        let mut starts = Vec::with_capacity(nodes + 1);
        for (place, (from, _)) in edges.iter().enumerate() {
            // The number of edges fits where the numbers of nodes do: a row's dependencies are at most 1 GB of text.
            starts.resize(starts.len().max(*from as usize + 1), place as u32);
        }
        starts.resize(nodes + 1, edges.len() as u32);
        Self { starts, targets: edges.into_iter().map(|(_, to)| to).collect() }
    }

    /// Calls `found` with a cycle, in its order, for each edge that leads back to where the walk came from: so at least
    /// once for every group of nodes that need each other.
    pub fn cycles(&self, mut found: impl FnMut(&[u32])) {
        let mut seen = vec![Seen::No; self.starts.len() - 1];
        // The path from where a walk began, and the next edge of each node on it. No recursion: a path can be as long
        // as the catalog.
        let (mut path, mut edges) = (Vec::<u32>::new(), Vec::<u32>::new());
        for start in 0..seen.len() {
            if seen[start] != Seen::No {
                continue;
            }
            seen[start] = Seen::OnPath;
            path.push(start as u32);
            edges.push(self.starts[start]);
            while let (Some(node), Some(edge)) = (path.last().copied(), edges.last_mut()) {
                if *edge == self.starts[node as usize + 1] {
                    seen[node as usize] = Seen::Done;
                    path.pop();
                    edges.pop();
                    continue;
                }
                let target = self.targets[*edge as usize];
                *edge += 1;
                match seen[target as usize] {
                    Seen::Done => {}
                    Seen::No => {
                        seen[target as usize] = Seen::OnPath;
                        path.push(target);
                        edges.push(self.starts[target as usize]);
                    }
                    Seen::OnPath => {
                        let from = path.iter().rposition(|other| *other == target).unwrap_or(0);
                        found(&path[from..]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cycles(nodes: usize, edges: &[(u32, u32)]) -> Vec<Vec<u32>> {
        let mut all = Vec::new();
        Graph::new(nodes, edges.to_vec()).cycles(|cycle| all.push(cycle.to_vec()));
        all
    }

    #[test]
    fn cycles_are_found_and_nothing_else() {
        assert_eq!(cycles(0, &[]), Vec::<Vec<u32>>::new());
        assert_eq!(cycles(4, &[(0, 1), (0, 2), (1, 3), (2, 3)]), Vec::<Vec<u32>>::new());
        assert_eq!(cycles(3, &[(2, 2)]), [[2]]);
        assert_eq!(cycles(5, &[(4, 3), (3, 1), (1, 4), (0, 1), (1, 2)]), [[1, 4, 3]]);
        assert_eq!(cycles(4, &[(0, 1), (1, 0), (2, 3), (3, 2)]), [[0, 1], [2, 3]]);
    }

    #[test]
    fn a_path_as_long_as_the_catalog_is_no_trouble() {
        let number = 200_000;
        let mut edges: Vec<_> = (0..number).map(|node| (node, node + 1)).collect();
        assert!(cycles(number as usize + 1, &edges).is_empty());
        edges.push((number, 0));
        assert_eq!(cycles(number as usize + 1, &edges).len(), 1);
    }
}
