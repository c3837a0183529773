//! What happens when observations come faster than they can be enriched: whoever has the most of
//! them in the queue loses some, so that those of others are evaluated in time.

use super::Enricher;
use crate::sensor::observation::{Observation, RecordOwner};
use jiff::{SignedDuration, Timestamp};
use monitor_common::record::Probe;
use monitor_core::fair_cache::{Tenant, fair_caps};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::RangeInclusive,
    sync::Arc,
};

/// Observations in the queue, at most.
const QUEUE_MAX: usize = 32_768;
/// If more observations than this are in the queue, none waits for a reader.
pub(super) const WAITING_QUEUE_MAX: usize = QUEUE_MAX / 2;
/// As [`QUEUE_MAX`], if the first one is late: what can be evaluated in [`REST`], within these bounds.
const QUEUE_LATE: RangeInclusive<usize> = 512..=4_096;
const REST: SignedDuration = SignedDuration::from_millis(200);
/// An observation is late after this time: a theft must be reported within a second.
const LATE: SignedDuration = SignedDuration::from_millis(400);
/// Some observations say no time; the time of the queue is that of one of its first.
const TIME_SEARCH: usize = 64;

/// Observations that were dropped, by cgroup and probe.
pub type Dropped = BTreeMap<(u64, Probe), DroppedOfGroup>;

/// Observations of a cgroup that were dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DroppedOfGroup {
    pub count: u64,
    /// The user, if they were all of one.
    pub user: Option<u32>,
}

impl DroppedOfGroup {
    fn add(&mut self, count: u64, user: Option<u32>) {
        self.user = if self.count == 0 || self.user == user {
            user
        } else {
            None
        };
        self.count += count;
    }
}

/// When the first observation of a queue was made.
pub(super) fn queued_since(queue: &VecDeque<Observation>) -> Option<Timestamp> {
    queue.iter().take(TIME_SEARCH).find_map(Observation::time)
}

/// As [`queued_since`], of those that a probe sent.
fn sent_since(queue: &VecDeque<Observation>) -> Option<Timestamp> {
    let time = |observation: &Observation| owner(observation).and(observation.time());
    queue.iter().take(TIME_SEARCH).find_map(time)
}

impl Enricher {
    /// Drops observations if the queue is too long, or its first one late.
    pub(super) fn drop_excess(&mut self, now: Timestamp) {
        let is_waiting = self.reads.is_waiting();
        let queue = &mut self.reads.queue;
        let allowed_late = self.pace.within(REST, QUEUE_LATE);
        if queue.len() <= allowed_late {
            return;
        }
        // While the queue waited for a reader, nothing in it could be enriched.
        let since = sent_since(queue).map(|since| since.max(self.reads.resumed));
        let is_late = !is_waiting
            // The clock may have been set back.
            && since.is_some_and(|since| now.duration_since(since).abs() > LATE);
        if !is_late && queue.len() <= QUEUE_MAX {
            return;
        }
        // Without its process, all else that it does is worth less: these go last.
        let droppable = |observation: &Observation| {
            owner(observation).filter(|(_, probe)| !is_late || *probe != Probe::Process)
        };
        let allowed = if is_late { allowed_late } else { QUEUE_MAX };
        // The reader works for the first one: its answer must not be taken for that of another.
        let waiting = if is_waiting { queue.pop_front() } else { None };
        let attribution = &mut self.attribution;
        let dropped = drop_from(queue, allowed, droppable, |owner| {
            attribution.tenant_of_cgroup(owner.cgroup, owner.user)
        });
        if let Some(waiting) = waiting {
            queue.push_front(waiting);
        }
        if dropped.keys().any(|(_, probe)| *probe == Probe::Process) {
            self.attribution.note_lost_records();
        }
        for (key, DroppedOfGroup { count, user }) in dropped {
            self.dropped.entry(key).or_default().add(count, user);
        }
    }

    /// What was dropped since the last call.
    pub fn take_dropped(&mut self) -> Dropped {
        std::mem::take(&mut self.dropped)
    }
}

/// Whose an observation is, and its probe; `None` if no probe sent it: the number of those is limited.
fn owner(observation: &Observation) -> Option<(RecordOwner, Probe)> {
    let owner = observation.owner()?;
    let is_sent = owner == RecordOwner::UNKNOWN || owner.cgroup != 0;
    is_sent.then(|| (owner, observation.probe()))
}

/// Reduces the droppable observations to `allowed`: groups have equal shares, and within each its
/// users, by probe. Each keeps its oldest observations.
fn drop_from(
    queue: &mut VecDeque<Observation>,
    allowed: usize,
    droppable: impl Fn(&Observation) -> Option<(RecordOwner, Probe)>,
    mut tenant: impl FnMut(RecordOwner) -> Tenant,
) -> Dropped {
    let mut counts: HashMap<(RecordOwner, Probe), u64> = HashMap::new();
    for owner in queue.iter().filter_map(&droppable) {
        *counts.entry(owner).or_default() += 1;
    }
    // The cgroups of one group share.
    let mut totals: HashMap<(Tenant, Probe), u64> = HashMap::new();
    let mut shares: HashMap<(RecordOwner, Probe), (Tenant, Probe)> = HashMap::new();
    for ((owner, probe), count) in counts {
        let share = (tenant(owner), probe);
        *totals.entry(share.clone()).or_default() += count;
        shares.insert((owner, probe), share);
    }
    let sizes = totals
        .iter()
        .map(|((tenant, _), total)| (Arc::clone(&tenant.group), *total));
    let caps = fair_caps(sizes, allowed as u64);
    let mut left: HashMap<(Tenant, Probe), u64> = totals
        .into_keys()
        .map(|share| {
            let cap = caps.get(&share.0.group).copied().unwrap_or(0);
            (share, cap)
        })
        .collect();
    let mut dropped = Dropped::new();
    queue.retain(|observation| {
        let Some(owner) = droppable(observation) else {
            return true;
        };
        let left = shares.get(&owner).and_then(|share| left.get_mut(share));
        if let Some(left) = left.filter(|left| **left > 0) {
            *left -= 1;
            return true;
        }
        let (owner, probe) = owner;
        let of_group = dropped.entry((owner.cgroup, probe)).or_default();
        of_group.add(1, owner.known_user());
        false
    });
    dropped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensor::observation::TaskInfo;
    use monitor_core::model::Subject;

    fn fork(cgroup: u64, uid: u32, pid: u32) -> Observation {
        Observation::Fork(TaskInfo {
            time: Timestamp::UNIX_EPOCH,
            subject: Subject { pid, start: 1 },
            parent: None,
            cgroup,
            uid,
            loginuid: None,
            tty: false,
            comm: String::new(),
        })
    }

    /// What remains of whom, after a queue was reduced to `allowed`.
    fn remaining(queue: Vec<Observation>, allowed: usize) -> (Vec<u32>, Dropped) {
        let mut queue = VecDeque::from(queue);
        let tenant = |owner: RecordOwner| Tenant {
            group: format!("{}", owner.cgroup / 10).into(),
            user: owner.user,
        };
        let dropped = drop_from(&mut queue, allowed, owner, tenant);
        let pids = queue
            .iter()
            .filter_map(|observation| Some(observation.task()?.subject.pid))
            .collect();
        (pids, dropped)
    }

    #[test]
    fn whoever_has_the_most_loses_the_newest() {
        // A user in two cgroups of one slice, and root in the first of them.
        let flood = (0..100).map(|pid| fork(10 + u64::from(pid % 2), 65_534, pid));
        let theft = (1_000..1_005).map(|pid| fork(10, 0, pid));
        let (pids, dropped) = remaining(flood.chain(theft).collect(), 25);
        assert_eq!(pids, Vec::from_iter((0..20).chain(1_000..1_005)));
        let of_group = DroppedOfGroup {
            count: 40,
            user: Some(65_534),
        };
        let expected = [10, 11].map(|cgroup| ((cgroup, Probe::Process), of_group));
        assert_eq!(dropped, Dropped::from(expected));
    }

    #[test]
    fn what_no_probe_sent_stays() {
        let own = (0..100).map(|pid| fork(0, 0, pid));
        let sent = [
            fork(7, 0, 200),
            Observation::Refused {
                owner: RecordOwner::UNKNOWN,
                cookie: 1,
            },
        ];
        let (pids, dropped) = remaining(own.chain(sent).collect(), 0);
        assert_eq!(pids, Vec::from_iter(0..100));
        let one = |user| DroppedOfGroup { count: 1, user };
        let expected = [
            ((0, Probe::Connect), one(None)),
            ((7, Probe::Process), one(Some(0))),
        ];
        assert_eq!(dropped, Dropped::from(expected));
    }
}
