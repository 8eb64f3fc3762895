//! Circular dependencies: a depth-first search over the graph of dependencies.

/// A graph of numbered nodes.
pub(crate) struct Graph {
    /// Index in `targets` of the first edge of each node, and finally the number of edges.
    starts: Vec<u32>,
    targets: Vec<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum VisitState {
    Unvisited,
    OnPath,
    Done,
}

impl Graph {
    /// A graph of `nodes` nodes. `edges` are sorted to make it.
    pub(crate) fn new(nodes: usize, mut edges: Vec<(u32, u32)>) -> Self {
        edges.sort_unstable();
        edges.dedup();
        let mut starts = Vec::with_capacity(nodes + 1);
        for (index, (from, _)) in edges.iter().enumerate() {
            // The number of edges fits into 32 bits as well: the dependencies of a row are limited to 1 GB of text.
            starts.resize(starts.len().max(*from as usize + 1), index as u32);
        }
        starts.resize(nodes + 1, edges.len() as u32);
        Self { starts, targets: edges.into_iter().map(|(_, to)| to).collect() }
    }

    /// Calls `found` with the nodes of a cycle, in order, for each back edge of the search: at least once for every
    /// strongly connected component of more than one node, and for every node that depends on itself.
    pub(crate) fn cycles(&self, mut found: impl FnMut(&[u32])) {
        let mut states = vec![VisitState::Unvisited; self.starts.len() - 1];
        // The current path, and the next edge of each node on it. Not recursive, because a path can be as long as the
        // catalog.
        let (mut path, mut edges) = (Vec::<u32>::new(), Vec::<u32>::new());
        for start in 0..states.len() {
            if states[start] != VisitState::Unvisited {
                continue;
            }
            states[start] = VisitState::OnPath;
            path.push(start as u32);
            edges.push(self.starts[start]);
            while let (Some(node), Some(edge)) = (path.last().copied(), edges.last_mut()) {
                if *edge == self.starts[node as usize + 1] {
                    states[node as usize] = VisitState::Done;
                    path.pop();
                    edges.pop();
                    continue;
                }
                let target = self.targets[*edge as usize];
                *edge += 1;
                match states[target as usize] {
                    VisitState::Done => {}
                    VisitState::Unvisited => {
                        states[target as usize] = VisitState::OnPath;
                        path.push(target);
                        edges.push(self.starts[target as usize]);
                    }
                    VisitState::OnPath => {
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
    fn cycles_are_found_in_order() {
        assert_eq!(cycles(0, &[]), Vec::<Vec<u32>>::new());
        assert_eq!(cycles(4, &[(0, 1), (0, 2), (1, 3), (2, 3)]), Vec::<Vec<u32>>::new());
        assert_eq!(cycles(3, &[(2, 2)]), [[2]]);
        assert_eq!(cycles(5, &[(4, 3), (3, 1), (1, 4), (0, 1), (1, 2)]), [[1, 4, 3]]);
        assert_eq!(cycles(4, &[(0, 1), (1, 0), (2, 3), (3, 2)]), [[0, 1], [2, 3]]);
    }

    #[test]
    fn long_paths_do_not_overflow_the_stack() {
        let number = 200_000;
        let mut edges: Vec<_> = (0..number).map(|node| (node, node + 1)).collect();
        assert!(cycles(number as usize + 1, &edges).is_empty());
        edges.push((number, 0));
        assert_eq!(cycles(number as usize + 1, &edges).len(), 1);
    }
}
