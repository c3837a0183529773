//! Shares of the queue to the ledger: a workload may have as many entries waiting as there is room
//! left. One that floods gets at most half of the queue, and others always find room.

use super::LedgerEntry;
use monitor_core::model::{Process, Workload, WorkloadKind};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Whose share an entry uses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum ShareOwner {
    /// A user of the host: programs are free to have any path.
    User(u32),
    /// Namespace and pod, or unit or container.
    Workload(Option<String>, String),
}

impl ShareOwner {
    fn of(workload: &Workload, process: &Process) -> Self {
        if workload.kind == WorkloadKind::Host {
            return Self::User(process.uid);
        }
        let name = workload.pod.as_ref().unwrap_or(&workload.name);
        Self::Workload(workload.namespace.clone(), name.clone())
    }

    /// `None` for what the agent has to say itself.
    fn of_entry(entry: &LedgerEntry) -> Option<Self> {
        match entry {
            LedgerEntry::Use(used) => Some(Self::of(&used.workload, &used.process)),
            LedgerEntry::Hop(hop, _) => Some(Self::of(&hop.workload, &hop.process)),
            LedgerEntry::Mint(mint) => Some(Self::of(&mint.workload, &mint.process)),
            LedgerEntry::Finding(finding) => {
                let process = finding.process.as_ref()?;
                Some(Self::of(&finding.workload, process))
            }
            LedgerEntry::Renamed(_)
            | LedgerEntry::Gap(_)
            | LedgerEntry::Started(_)
            | LedgerEntry::End => None,
        }
    }
}

/// The entries that wait to be written, by owner.
#[derive(Debug)]
pub struct QueueShares {
    capacity: usize,
    waiting: Mutex<WaitingEntries>,
}

#[derive(Debug, Default)]
struct WaitingEntries {
    total: usize,
    by_owner: HashMap<ShareOwner, usize>,
}

impl QueueShares {
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            waiting: Mutex::default(),
        }
    }

    /// Whether an entry may wait; if so, it counts until it is [released](Self::release).
    pub fn admit(&self, entry: &LedgerEntry) -> bool {
        let Some(owner) = ShareOwner::of_entry(entry) else {
            return true;
        };
        let mut waiting = self.waiting();
        let room = self.capacity.saturating_sub(waiting.total);
        let own = waiting.by_owner.entry(owner).or_default();
        let may = *own < room;
        if may {
            *own += 1;
            waiting.total += 1;
        }
        may
    }

    /// Entries that were written, or lost.
    pub fn release(&self, entries: &[LedgerEntry]) {
        let mut waiting = self.waiting();
        for owner in entries.iter().filter_map(ShareOwner::of_entry) {
            if let Some(own) = waiting.by_owner.get_mut(&owner) {
                *own = own.saturating_sub(1);
                if *own == 0 {
                    waiting.by_owner.remove(&owner);
                }
                waiting.total = waiting.total.saturating_sub(1);
            }
        }
    }

    /// A panic elsewhere can at most leave one entry counted.
    fn waiting(&self) -> MutexGuard<'_, WaitingEntries> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::tests::{at, used};

    /// An entry of a user's program.
    fn entry(path: &str, uid: u32) -> LedgerEntry {
        let LedgerEntry::Use(mut used) = used(1, "/home/x/.aws/credentials", path, at(0)) else {
            panic!("not a use");
        };
        used.process.uid = uid;
        LedgerEntry::Use(used)
    }

    #[test]
    fn a_flood_of_one_user_leaves_room_for_others() {
        let shares = QueueShares::new(1_000);
        // From as many programs as they like.
        let flood: Vec<LedgerEntry> = (0..10_000)
            .map(|number| entry(&format!("/tmp/{number}"), 65_534))
            .filter(|entry| shares.admit(entry))
            .collect();
        assert_eq!(flood.len(), 500);
        let own: Vec<LedgerEntry> = (0..200)
            .map(|_| entry("/usr/bin/shop", 0))
            .filter(|entry| shares.admit(entry))
            .collect();
        assert_eq!(own.len(), 200);
        // What was written makes room again, and nothing is left behind.
        shares.release(&flood);
        assert!(shares.admit(&entry("/tmp/1", 65_534)));
        shares.release(&own);
        shares.release(&[entry("/tmp/1", 65_534)]);
        assert!(shares.waiting().by_owner.is_empty());
        assert_eq!(shares.waiting().total, 0);
    }

    #[test]
    fn the_agent_itself_always_finds_room() {
        let shares = QueueShares::new(0);
        assert!(!shares.admit(&entry("/usr/bin/shop", 0)));
        assert!(shares.admit(&LedgerEntry::End));
    }
}
