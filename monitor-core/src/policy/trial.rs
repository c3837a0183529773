//! Tests expectations on what was recorded: what they would flag, and what they would no longer
//! flag.

use super::{Policy, expectation::Expectations, rules::Rule};
use crate::{
    catalog::{Catalog, glob::volume_of},
    history::{History, HopRow, MintLink, UseRow},
    model::{Credential, CredentialId, Finding, Gap, Mint, Place, Use},
};
use jiff::Timestamp;
use serde::Serialize;
use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap, btree_map::Entry},
    sync::Arc,
};

/// The result of testing expectations on what was recorded.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    pub query: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    pub uses: usize,
    pub hops: usize,
    pub mints: usize,
    /// What would be flagged, the worst first.
    pub findings: Vec<Finding>,
    /// What was flagged, and would no longer be.
    pub settled: Vec<Finding>,
    /// Rules about which this says nothing.
    pub not_judged: Vec<&'static str>,
    pub gaps: Vec<Gap>,
}

/// Evaluates expectations on what was recorded.
pub fn replay_history(
    expectations: Expectations,
    catalog: Arc<Catalog>,
    history: History,
) -> Trial {
    let History {
        range,
        credentials,
        uses,
        hops,
        mints,
        findings,
        gaps,
    } = history;
    let mut replay = Replay {
        policy: Policy::for_history(expectations, catalog),
        credentials,
        found: BTreeMap::new(),
    };
    for row in &uses {
        replay.judge_use(row);
    }
    for row in &hops {
        replay.judge_hop(row);
    }
    for link in &mints {
        replay.judge_mint(link);
    }
    let Replay { policy, found, .. } = replay;
    let settled = findings
        .into_iter()
        .filter(|old| can_judge_again(policy.rules(), old) && !found.contains_key(&old.id))
        .collect();
    let mut findings: Vec<Finding> = found.into_values().collect();
    findings.sort_by(|a, b| {
        b.severity
            .cmp(&a.severity)
            .then(b.last_seen.cmp(&a.last_seen))
    });
    Trial {
        query: "policy-test",
        since: range.since,
        until: range.until,
        uses: uses.len(),
        hops: hops.len(),
        mints: mints.len(),
        findings,
        settled,
        not_judged: super::rules::all()
            .iter()
            .filter(|rule| rule.needs_live_data())
            .map(|rule| rule.meta().name)
            .collect(),
        gaps,
    }
}

/// A policy under test, and what it finds.
struct Replay {
    policy: Policy,
    credentials: HashMap<CredentialId, Credential>,
    /// Findings by id.
    found: BTreeMap<String, Finding>,
}

impl Replay {
    /// A credential under its name in the expectations under test.
    fn credential(&self, id: &CredentialId) -> Option<Credential> {
        let mut known = self.credentials.get(id)?.clone();
        (known.name, known.owner) = (None, None);
        self.policy.apply_name(&mut known);
        Some(known)
    }

    /// Adds findings about a row that was seen `count` times in a time.
    fn add(&mut self, raised: Vec<Finding>, count: u64, first: Timestamp, last: Timestamp) {
        for mut finding in raised {
            finding.count = count;
            (finding.first_seen, finding.last_seen) = (first, last);
            add(&mut self.found, finding);
        }
    }

    fn judge_use(&mut self, row: &UseRow) {
        let Some(credential) = self.credential(&row.credential) else {
            return;
        };
        let used = Use {
            time: row.last_seen,
            workload: row.workload.clone(),
            process: row.process.clone(),
            credential: Arc::new(credential),
            // The pod of a container was not stored.
            volume_of: (!row.workload.is_contained())
                .then(|| volume_of(&row.place))
                .flatten(),
            place: Place {
                source: row.source,
                place: row.place.clone(),
            },
            count: row.count,
            login: None,
            home: None,
            pod_uid: None,
            modified: row.modified,
            untrusted: None,
            given: true,
            in_mounted_home: false,
        };
        let decision = self.policy.judge_reader(&used);
        let mut raised: Vec<Finding> = decision.into_finding().into_iter().collect();
        raised.extend(self.policy.judge_use(&used));
        self.add(raised, row.count, row.first_seen, row.last_seen);
    }

    fn judge_hop(&mut self, row: &HopRow) {
        let Some(credential) = self.credential(&row.credential) else {
            return;
        };
        let hop = row.to_hop(Arc::new(credential));
        let (_, raised) = self.policy.judge_hop(&hop);
        // The other possible destinations were not stored.
        if row.destination.one_of == 0 {
            self.add(raised, row.count, row.first_seen, row.last_seen);
        }
    }

    fn judge_mint(&mut self, link: &MintLink) {
        let side = |id: &Option<CredentialId>| id.as_ref().and_then(|id| self.credential(id));
        let mint = Mint {
            time: link.last_seen,
            workload: link.workload.clone(),
            process: link.process.clone(),
            authenticator: link.authenticator.clone(),
            presented: side(&link.presented),
            minted: side(&link.minted),
        };
        let decision = self.policy.judge_mint(&mint);
        let raised = decision.into_finding().into_iter().collect();
        self.add(raised, link.count, link.first_seen, link.last_seen);
    }
}

/// Whether the cause of a finding is in the ledger, so that its absence is meaningful.
fn can_judge_again(rules: &[Box<dyn Rule>], recorded: &Finding) -> bool {
    let one_of_several = recorded
        .destination
        .as_ref()
        .is_some_and(|to| to.one_of > 0);
    !one_of_several
        && rules
            .iter()
            .find(|rule| rule.meta().name == recorded.rule)
            .is_some_and(|rule| rule.can_judge_again(recorded))
}

/// What was presented was also reported as held: the count is that of the worst only.
pub fn add(found: &mut BTreeMap<String, Finding>, finding: Finding) {
    let (first, last) = (finding.first_seen, finding.last_seen);
    match found.entry(finding.id.clone()) {
        Entry::Vacant(none) => {
            none.insert(Finding {
                time: last,
                ..finding
            });
        }
        Entry::Occupied(known) => {
            let known = known.into_mut();
            let first = known.first_seen.min(first);
            let last = known.last_seen.max(last);
            match finding.rank().cmp(&known.rank()) {
                Ordering::Greater => *known = finding,
                Ordering::Equal => known.count += finding.count,
                Ordering::Less => {}
            }
            (known.first_seen, known.last_seen, known.time) = (first, last, last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Evidence, Severity};

    #[test]
    fn equal_findings_keep_the_worst_rank() {
        let finding = |second: u32, severity: &str, evidence: &str, count: u32| -> Finding {
            let time = format!("2026-01-01T00:00:{second:02}Z");
            serde_json::from_value(serde_json::json!({
                "id": "kf-1", "time": time, "rule": "unexpected-hop", "severity": severity,
                "evidence": evidence, "summary": "x", "workload": { "kind": "host", "name": "/bin/a" },
                "count": count, "first_seen": time, "last_seen": time,
            }))
            .expect("a finding")
        };
        let mut found = BTreeMap::new();
        add(&mut found, finding(5, "medium", "sole", 9));
        add(&mut found, finding(6, "critical", "presented", 2));
        add(&mut found, finding(7, "critical", "presented", 3));
        add(&mut found, finding(9, "medium", "sole", 1));
        let [one] = &found.into_values().collect::<Vec<_>>()[..] else {
            panic!("one finding");
        };
        assert_eq!(
            (one.severity, one.evidence, one.count),
            (Severity::Critical, Some(Evidence::Presented), 5)
        );
        let seconds = [one.first_seen, one.last_seen, one.time].map(|time| time.as_second() % 60);
        assert_eq!(seconds, [5, 9, 9]);
    }
}
