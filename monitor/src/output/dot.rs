//! Graphs in DOT, for Graphviz: workload → credential → authenticator → destination.

use monitor_core::{
    history::{HopRow, MintLink, UseRow},
    model::{Credential, CredentialId, Evidence, Gap, NOT_COVERED, Verdict},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

/// Nodes and edges, each once, sorted by name.
#[derive(Debug, Default)]
pub struct DotGraph {
    nodes: BTreeMap<String, String>,
    edges: BTreeSet<String>,
}

impl DotGraph {
    fn node(&mut self, kind: &str, name: &str, label: &str, look: &str) -> String {
        let id = quoted(&format!("{kind} {name}"));
        let line = format!("{id} [label={}, {look}]", quoted(label));
        self.nodes.insert(id.clone(), line);
        id
    }

    pub fn workload(&mut self, name: &str) -> String {
        self.node("workload", name, name, "shape=box")
    }

    pub fn credential(&mut self, id: &CredentialId, all: &[Credential]) -> String {
        let known = all.iter().find(|credential| credential.id == *id);
        let label = known.map_or_else(
            || id.0.clone(),
            |known| format!("{}\n{id}", known.name.as_ref().unwrap_or(&known.class)),
        );
        self.node(
            "credential",
            &id.0,
            &label,
            "shape=ellipse, style=filled, fillcolor=\"#eef3fb\"",
        )
    }

    pub fn destination(&mut self, label: &str) -> String {
        self.node("destination", label, label, "shape=hexagon")
    }

    fn edge(&mut self, from: &str, to: &str, label: &str, look: &str) {
        self.edges
            .insert(format!("{from} -> {to} [label={}{look}]", quoted(label)));
    }

    pub fn uses(&mut self, rows: &[UseRow], all: &[Credential]) {
        for row in rows {
            let workload = self.workload(&row.workload.key());
            let credential = self.credential(&row.credential, all);
            self.edge(
                &workload,
                &credential,
                &format!("{} × {}", row.source, row.count),
                "",
            );
        }
    }

    pub fn hops(&mut self, rows: &[HopRow], all: &[Credential]) {
        for row in rows {
            let workload = self.workload(&row.workload.key());
            let credential = self.credential(&row.credential, all);
            let destination = self.destination(&row.destination.label());
            self.edge(&workload, &credential, "", ", style=dotted, arrowhead=none");
            // Shown by shape as well as by colour.
            let verdict = match row.verdict {
                Verdict::Unexpected => ", color=\"#b3261e\", penwidth=2.5",
                Verdict::Unproven => ", color=\"#8a6d00\", style=dashed",
                Verdict::Expected => ", color=\"#2e6b3c\"",
            };
            let proven = if row.evidence == Evidence::Presented {
                ""
            } else {
                ", arrowhead=empty"
            };
            self.edge(
                &credential,
                &destination,
                &format!("{}, {} × {}", row.verdict, row.evidence, row.count),
                &format!("{verdict}{proven}"),
            );
        }
    }

    pub fn links(&mut self, links: &[MintLink], all: &[Credential]) {
        for link in links {
            let authenticator = self.node(
                "authenticator",
                &link.authenticator.label(),
                &link.authenticator.label(),
                "shape=octagon",
            );
            match &link.presented {
                Some(presented) => {
                    let presented = self.credential(presented, all);
                    self.edge(&presented, &authenticator, "proves", "");
                }
                None => {
                    let workload = self.workload(&link.workload.key());
                    self.edge(&workload, &authenticator, "asks", "");
                }
            }
            if let Some(minted) = &link.minted {
                let minted = self.credential(minted, all);
                self.edge(
                    &authenticator,
                    &minted,
                    &format!("mints × {}", link.count),
                    "",
                );
            }
        }
    }

    /// What is missing from the answer is part of the picture.
    pub fn gaps(&mut self, gaps: &[Gap]) {
        const SHOWN: usize = 6;
        let (standing, own): (Vec<&Gap>, Vec<&Gap>) =
            gaps.iter().partition(|gap| gap.kind == NOT_COVERED);
        let mut label = "Not seen".to_owned();
        for gap in own.iter().take(SHOWN) {
            let until = gap
                .until
                .map_or_else(|| "now".to_owned(), |until| format!("{until:.0}"));
            let _ = write!(label, "\n{:.0} – {until}: {}", gap.since, gap.kind);
        }
        if own.len() > SHOWN {
            let _ = write!(label, "\n{} more", own.len() - SHOWN);
        }
        if !standing.is_empty() {
            let _ = write!(
                label,
                "\n{} kinds of use and traffic are never observed",
                standing.len()
            );
        }
        if !gaps.is_empty() {
            self.node(
                "gaps",
                "",
                &label,
                "shape=note, style=filled, fillcolor=\"#f3e3ef\"",
            );
        }
    }

    pub fn show(self) -> String {
        let mut out = "digraph keytrail {\n  rankdir=LR;\n  node [fontname=\"sans-serif\"];\n  edge [fontname=\"sans-serif\", fontsize=10];\n".to_owned();
        for line in self.nodes.into_values().chain(self.edges) {
            let _ = writeln!(out, "  {line};");
        }
        out.push_str("}\n");
        out
    }
}

/// A quoted DOT string. Names are controlled by the observed workloads.
fn quoted(text: &str) -> String {
    let mut out = "\"".to_owned();
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            character if character.is_control() => {
                // As text, so that a viewer does not interpret it.
                let _ = write!(out, "\\\\u{{{:x}}}", u32::from(character));
            }
            character => out.push(character),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped() {
        assert_eq!(
            quoted("a\"b\\c\nd\u{1b}[2J"),
            "\"a\\\"b\\\\c\\nd\\\\u{1b}[2J\""
        );
    }
}
