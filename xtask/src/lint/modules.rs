//! Dependencies between modules. At each level of a crate's module tree, the siblings form a graph;
//! a module's use of its own parent or children does not count.

use super::source::{SourceFile, Workspace};
use std::collections::{BTreeMap, BTreeSet};
use syn::{
    ItemMod, UseName, UseRename, UseTree,
    visit::{self, Visit},
};

/// The layers of the agent, the lowest first: a module uses only modules of its own and of lower
/// layers.
const AGENT_LAYERS: [&[&str]; 10] = [
    &[
        "completion",
        "health",
        "host",
        "interval",
        "observed",
        "private_file",
    ],
    &["config"],
    &["reader"],
    &["sensor"],
    &["output"],
    &["attribution", "credential", "ledger"],
    &["cluster"],
    &["export", "http", "metrics"],
    &["pipeline"],
    &["agent", "cli"],
];

/// Edges between siblings: from the path of their parent to the pairs.
type SiblingEdges = BTreeMap<Vec<String>, BTreeSet<(String, String)>>;

/// Groups of siblings that depend on each other in a circle.
pub fn cycles(workspace: &Workspace) -> Vec<String> {
    let mut found = Vec::new();
    for (krate, files) in workspace.crates() {
        for (parent, edges) in sibling_edges(&files) {
            for group in circles(&edges) {
                let parent = parent.join("::");
                let members: Vec<String> = group.into_iter().collect();
                found.push(format!("{krate} {parent}: {}", members.join(" ↔ ")));
            }
        }
    }
    found
}

/// Dependencies of the agent's modules on a higher layer.
pub fn upward_dependencies(workspace: &Workspace) -> Vec<String> {
    let layer = |module: &str| {
        AGENT_LAYERS
            .iter()
            .position(|layer| layer.contains(&module))
    };
    let mut found = Vec::new();
    for (krate, files) in workspace.crates() {
        if krate != "monitor" {
            continue;
        }
        let top = sibling_edges(&files).remove(&Vec::new());
        for (from, to) in top.unwrap_or_default() {
            if let (Some(below), Some(above)) = (layer(&from), layer(&to))
                && below < above
            {
                found.push(format!("{from} → {to}"));
            }
        }
    }
    found
}

fn sibling_edges(files: &[&SourceFile]) -> SiblingEdges {
    let modules: BTreeSet<&[String]> = files.iter().map(|file| file.module.as_slice()).collect();
    let mut edges = SiblingEdges::new();
    for file in files {
        let mut visitor = PathVisitor {
            module: &file.module,
            modules: &modules,
            used: BTreeSet::new(),
        };
        for item in &file.items {
            visitor.visit_item(item);
        }
        for used in visitor.used {
            let common = file
                .module
                .iter()
                .zip(&used)
                .take_while(|(one, other)| one == other)
                .count();
            let (Some(from), Some(to)) = (file.module.get(common), used.get(common)) else {
                continue;
            };
            edges
                .entry(used[..common].to_vec())
                .or_default()
                .insert((from.clone(), to.clone()));
        }
    }
    edges
}

/// Collects the modules that a file names.
struct PathVisitor<'a> {
    module: &'a [String],
    modules: &'a BTreeSet<&'a [String]>,
    used: BTreeSet<Vec<String>>,
}

impl PathVisitor<'_> {
    /// Adds the module of a path, if it is one of this crate.
    fn add(&mut self, path: &[String]) {
        let mut path = path;
        // Without a keyword it begins with a child of this module, or a name in scope.
        let mut whole = if path.first().is_some_and(|first| first == "crate") {
            Vec::new()
        } else {
            self.module.to_vec()
        };
        while let Some(first) = path.first() {
            match first.as_str() {
                "crate" | "self" => {}
                "super" => {
                    whole.pop();
                }
                _ => break,
            }
            path = &path[1..];
        }
        for part in path {
            whole.push(part.clone());
            if !self.modules.contains(whole.as_slice()) {
                whole.pop();
                break;
            }
        }
        self.used.insert(whole);
    }

    fn add_use(&mut self, tree: &UseTree, front: &mut Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                front.push(path.ident.to_string());
                self.add_use(&path.tree, front);
                front.pop();
            }
            UseTree::Name(UseName { ident }) | UseTree::Rename(UseRename { ident, .. }) => {
                front.push(ident.to_string());
                self.add(front);
                front.pop();
            }
            UseTree::Glob(_) => self.add(front),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_use(tree, front);
                }
            }
        }
    }
}

impl<'ast> Visit<'ast> for PathVisitor<'_> {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_use(&item.tree, &mut Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        if ["crate", "super", "self"].contains(&parts[0].as_str()) {
            self.add(&parts);
        }
        visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, _: &'ast ItemMod) {
        // Inline modules of tests; others have files of their own.
    }
}

/// The strongly connected components with more than one member.
fn circles(edges: &BTreeSet<(String, String)>) -> Vec<BTreeSet<String>> {
    let reachable = |from: &str| {
        let mut seen = BTreeSet::new();
        let mut open = vec![from.to_owned()];
        while let Some(node) = open.pop() {
            for (_, to) in edges.iter().filter(|(start, _)| *start == node) {
                if seen.insert(to.clone()) {
                    open.push(to.clone());
                }
            }
        }
        seen
    };
    let nodes: BTreeSet<&String> = edges.iter().map(|(from, _)| from).collect();
    let reach: BTreeMap<&String, BTreeSet<String>> =
        nodes.iter().map(|node| (*node, reachable(node))).collect();
    let mut groups: BTreeSet<BTreeSet<String>> = BTreeSet::new();
    for (node, reached) in &reach {
        let group: BTreeSet<String> = reached
            .iter()
            .filter(|other| reach.get(other).is_some_and(|back| back.contains(*node)))
            .cloned()
            .collect();
        if group.len() > 1 {
            groups.insert(group);
        }
    }
    groups.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_is_found_and_a_diamond_is_not() {
        let edges = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(from, to)| ((*from).to_owned(), (*to).to_owned()))
                .collect()
        };
        assert!(circles(&edges(&[("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])).is_empty());
        let found = circles(&edges(&[("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")]));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].len(), 3);
    }
}
