//! Each workload has a share of the queue to the ledger, and of the file's size limit; and so has each
//! user of a cgroup.
//!
//! It may have as many entries waiting as there is room left, divided by the users of its cgroup: who
//! floods gets at most half of the queue, under however many user ids, and others always find room.

use super::LedgerEntry;
use monitor_core::model::{Process, Workload, WorkloadKind};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Whose share a record uses. Names that users can choose freely have no share of their own: those of
/// programs, and of units that a user starts.
pub fn owner(workload: &Workload, process: &Process) -> String {
    match workload.kind {
        WorkloadKind::Host | WorkloadKind::Unit => process.tenant.name(),
        // Its pods come and go.
        _ => workload.key(),
    }
}

/// What several owners share: the cgroups of a user, or a workload itself.
pub fn group_of(owner: &str) -> &str {
    match owner.split_once(" of ") {
        Some((_, group)) => group,
        None if owner.starts_with("user ") => "",
        None => owner,
    }
}

/// An owner as answers show it.
pub fn share_name(owner: &str) -> &str {
    if owner.is_empty() { "others" } else { owner }
}

/// The owner of an entry; `None` for what the agent has to say itself.
fn owner_of(entry: &LedgerEntry) -> Option<String> {
    match entry {
        LedgerEntry::Use(used) => Some(owner(&used.workload, &used.process)),
        LedgerEntry::Hop(hop, _) => Some(owner(&hop.workload, &hop.process)),
        LedgerEntry::Mint(mint) => Some(owner(&mint.workload, &mint.process)),
        LedgerEntry::Finding(finding) => {
            let process = finding.process.as_ref()?;
            Some(owner(&finding.workload, process))
        }
        LedgerEntry::Renamed(_)
        | LedgerEntry::Gap(_)
        | LedgerEntry::Started(..)
        | LedgerEntry::End => None,
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
    /// By group and owner.
    by_group: HashMap<String, HashMap<String, usize>>,
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
        let Some(owner) = owner_of(entry) else {
            return true;
        };
        let mut waiting = self.waiting();
        let room = self.capacity.saturating_sub(waiting.total);
        let owners = match waiting.by_group.get_mut(group_of(&owner)) {
            Some(owners) => owners,
            None => waiting
                .by_group
                .entry(group_of(&owner).to_owned())
                .or_default(),
        };
        let own = owners.get(&owner).copied();
        let sharers = owners.len() + usize::from(own.is_none());
        let may = own.unwrap_or(0) < room / sharers;
        if may {
            *owners.entry(owner).or_default() += 1;
            waiting.total += 1;
        }
        may
    }

    /// Entries that were written, or lost.
    pub fn release(&self, entries: &[LedgerEntry]) {
        let mut waiting = self.waiting();
        for owner in entries.iter().filter_map(owner_of) {
            let group = group_of(&owner);
            let Some(owners) = waiting.by_group.get_mut(group) else {
                continue;
            };
            let Some(own) = owners.get_mut(&owner) else {
                continue;
            };
            *own -= 1;
            if *own == 0 {
                owners.remove(&owner);
                if owners.is_empty() {
                    waiting.by_group.remove(group);
                }
            }
            waiting.total -= 1;
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
        used.process.tenant.user = uid;
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
        let own: Vec<LedgerEntry> = (0..150)
            .map(|_| entry("/usr/bin/shop", 0))
            .filter(|entry| shares.admit(entry))
            .collect();
        assert_eq!(own.len(), 150);
        // What was written makes room again, and nothing is left behind.
        shares.release(&flood);
        assert!(shares.admit(&entry("/tmp/1", 65_534)));
        shares.release(&own);
        shares.release(&[entry("/tmp/1", 65_534)]);
        assert!(shares.waiting().by_group.is_empty());
        assert_eq!(shares.waiting().total, 0);
    }

    #[test]
    fn many_users_of_one_cgroup_leave_room_for_others() {
        let shares = QueueShares::new(1_000);
        let of = |group: &str, user: u32| {
            let LedgerEntry::Use(mut used) = entry("/tmp/1", user) else {
                panic!("not a use");
            };
            used.process.tenant.group = group.into();
            LedgerEntry::Use(used)
        };
        let slice = "/user.slice/user-1000.slice";
        let flood = (0..100_000)
            .filter(|number| shares.admit(&of(slice, 100_000 + number % 5_000)))
            .count();
        assert!(flood <= 500, "{flood}");
        for (group, user) in [("/system.slice/shop.service", 0), ("/", 33)] {
            assert!(shares.admit(&of(group, user)), "{group}");
        }
    }

    #[test]
    fn the_agent_itself_always_finds_room() {
        let shares = QueueShares::new(0);
        assert!(!shares.admit(&entry("/usr/bin/shop", 0)));
        assert!(shares.admit(&LedgerEntry::End));
    }
}
