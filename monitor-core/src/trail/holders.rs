//! Which processes hold a credential.
//!
//! A process holds what it picked up itself, what it received through a pipe, and what its
//! ancestors picked up from files: a script reads a key and starts `curl` with it. Inheritance
//! extends over [`INHERIT_LEVELS`], and never across a change of user or workload. If none of that
//! yields anything, what another child of the same shell picked up counts: `cat key; curl …`.

use super::{
    holding::{Holding, add_holding},
    pipes::RememberedPipes,
};
use crate::{
    fair_cache::{FairCache, Tenant},
    model::{Source, Subject},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

/// Number of levels over which a process inherits credentials.
const INHERIT_LEVELS: usize = 2;

/// Credentials that are remembered for all processes together; the oldest holders of whoever has the
/// most are forgotten first.
const HOLDINGS_TOTAL_MAX: usize = 16_384;

/// What a process holds. Most processes hold nothing.
#[derive(Debug, Default)]
struct Held {
    own: Vec<Holding>,
    /// Credentials received from helpers through a pipe.
    piped: Vec<Holding>,
    /// Credentials picked up by children, without a known path to this process.
    children: Vec<Holding>,
}

static NOTHING: Held = Held {
    own: Vec::new(),
    piped: Vec::new(),
    children: Vec::new(),
};

impl Held {
    fn len(&self) -> usize {
        self.own.len() + self.piped.len() + self.children.len()
    }
}

#[derive(Debug, Default)]
struct ProcessNode {
    parent: Option<Subject>,
    boundary: Arc<str>,
    shell: bool,
    /// Whether it executed a program since it was forked.
    execed: bool,
}

/// Every process that attribution knows, and what it holds.
#[derive(Debug)]
pub(super) struct Holders {
    nodes: HashMap<Subject, ProcessNode>,
    held: FairCache<Subject, Held>,
    /// Pipes that carried a credential, by inode number.
    pipes: RememberedPipes,
    /// Credentials that a process held beyond those that are remembered.
    refused: u64,
}

impl Default for Holders {
    fn default() -> Self {
        Self {
            nodes: HashMap::new(),
            held: FairCache::new(HOLDINGS_TOTAL_MAX),
            pipes: RememberedPipes::default(),
            refused: 0,
        }
    }
}

impl Holders {
    pub fn fork(&mut self, subject: Subject, parent: Option<Subject>) {
        let mut node = ProcessNode {
            parent,
            ..ProcessNode::default()
        };
        if let Some(above) = parent.and_then(|parent| self.nodes.get(&parent)) {
            node.boundary = Arc::clone(&above.boundary);
            node.shell = above.shell;
        }
        self.nodes.insert(subject, node);
    }

    pub fn exec(&mut self, subject: Subject, parent: Option<Subject>, boundary: &str, shell: bool) {
        let node = self.nodes.entry(subject).or_default();
        if node.parent.is_none() {
            node.parent = parent;
        }
        if &*node.boundary != boundary {
            node.boundary = boundary.into();
        }
        node.shell = shell;
        node.execed = true;
        // The new program has the environment passed to it, and none of the old program's memory.
        if let Some(held) = self.held.peek_mut(&subject) {
            held.own
                .retain(|holding| holding.source != Source::Environment);
            let len = held.len();
            self.held.resize(&subject, len);
        }
    }

    /// A process that was seen without its start.
    pub fn ensure(&mut self, subject: Subject) {
        self.nodes.entry(subject).or_default();
    }

    pub fn forget(&mut self, subject: Subject) {
        self.nodes.remove(&subject);
        self.held.remove(&subject);
    }

    /// Adds to one of the lists of a process; returns whether there was room.
    fn hold(
        &mut self,
        tenant: &Tenant,
        subject: Subject,
        holding: &Holding,
        list: fn(&mut Held) -> &mut Vec<Holding>,
    ) -> bool {
        let held = self
            .held
            .get_or_insert_with(tenant, &subject, Held::default);
        let added = add_holding(list(held), holding);
        let len = held.len();
        self.held.resize(&subject, len);
        added
    }

    fn held(&self, subject: Subject) -> &Held {
        self.held.peek(&subject).unwrap_or(&NOTHING)
    }

    /// A process obtained a credential, possibly with a pipe at its standard output.
    pub fn pick_up(
        &mut self,
        tenant: &Tenant,
        subject: Subject,
        holding: Holding,
        stdout: Option<u64>,
        stdout_of_parent: bool,
    ) {
        let node = self.nodes.entry(subject).or_default();
        let parent = node.parent;
        let boundary = Arc::clone(&node.boundary);
        let added = self.hold(tenant, subject, &holding, |held| &mut held.own);
        self.refused += u64::from(!added);
        if holding.usual || holding.source == Source::Environment {
            return;
        }
        if let Some(pipe) = stdout {
            self.refused += u64::from(!self.pipes.add(tenant, pipe, &holding));
        }
        let Some(parent) = parent else {
            return;
        };
        let above = self.nodes.get(&parent);
        if let Some(above) = above.filter(|above| above.boundary == boundary) {
            if stdout.is_some() && !stdout_of_parent {
                let added = self.hold(tenant, parent, &holding, |held| &mut held.piped);
                self.refused += u64::from(!added);
            } else if above.shell {
                self.hold(tenant, parent, &holding, |held| &mut held.children);
            }
        }
    }

    /// What a subject holds, each credential once.
    pub fn holdings_of(&self, subject: Subject, stdin: Option<u64>) -> Vec<Holding> {
        let mut held: BTreeMap<String, Holding> = BTreeMap::new();
        let mut hold = |holdings: &[Holding], all: bool| {
            for holding in holdings {
                if all || (holding.source != Source::Environment && !holding.usual) {
                    held.entry(holding.credential.id.0.clone())
                        .or_insert_with(|| holding.clone());
                }
            }
        };
        if let Some(holdings) = stdin.and_then(|pipe| self.pipes.holdings(pipe)) {
            hold(holdings, true);
        }
        let Some(node) = self.nodes.get(&subject) else {
            return held.into_values().collect();
        };
        let own = self.held(subject);
        hold(&own.own, true);
        hold(&own.piped, true);
        let mut lineage = Vec::new();
        let mut copied = !node.execed;
        let mut above = node.parent;
        while let Some((id, parent)) = above.and_then(|id| Some((id, self.nodes.get(&id)?))) {
            if lineage.len() == INHERIT_LEVELS || parent.boundary != node.boundary {
                break;
            }
            // A forked process that did not exec has its parent's memory, environment included.
            let inherited = self.held(id);
            hold(&inherited.own, copied);
            hold(&inherited.piped, false);
            copied &= !parent.execed;
            lineage.push((id, parent));
            above = parent.parent;
        }
        if held.is_empty() {
            for (shell, _) in std::iter::once((subject, node))
                .chain(lineage)
                .filter(|(_, node)| node.shell)
            {
                for holding in &self.held(shell).children {
                    held.entry(holding.credential.id.0.clone())
                        .or_insert_with(|| holding.clone());
                }
                if !held.is_empty() {
                    break;
                }
            }
        }
        held.into_values().collect()
    }

    /// A process read another one's environment or memory, and holds what was there.
    pub fn copy(&mut self, tenant: &Tenant, reader: Subject, holding: &Holding) {
        self.ensure(reader);
        let added = self.hold(tenant, reader, holding, |held| &mut held.own);
        self.refused += u64::from(!added);
    }

    /// Pipes that were forgotten for lack of room.
    pub fn evicted_pipes(&self) -> u64 {
        self.pipes.evicted()
    }

    /// Credentials that are not remembered among those that a process holds, for lack of room.
    pub fn forgotten(&self) -> u64 {
        self.refused + self.held.evicted()
    }

    /// Whether a process may use the other's sockets: the same process, or an ancestor.
    pub fn are_kin(&self, one: Subject, other: Subject) -> bool {
        one == other || self.is_ancestor(one, other) || self.is_ancestor(other, one)
    }

    /// Whether the first is an ancestor of the second.
    pub fn is_ancestor(&self, ancestor: Subject, subject: Subject) -> bool {
        let mut above = self.nodes.get(&subject).and_then(|node| node.parent);
        // A bound in case the parent links form a cycle.
        for _ in 0..64 {
            match above {
                Some(parent) if parent == ancestor => return true,
                Some(parent) => above = self.nodes.get(&parent).and_then(|node| node.parent),
                None => return false,
            }
        }
        false
    }

    pub fn contains(&self, subject: Subject) -> bool {
        self.nodes.contains_key(&subject)
    }

    /// Forgotten processes with a known child, which may use their connections.
    pub fn forgotten_parents(&self) -> HashSet<Subject> {
        let parents = self.nodes.values().filter_map(|node| node.parent);
        parents.filter(|parent| !self.contains(*parent)).collect()
    }

    /// Returns the memory of a burst.
    pub fn shrink(&mut self) {
        if self.nodes.capacity() > 1024 + 8 * self.nodes.len() {
            self.nodes.shrink_to_fit();
        }
    }
}
