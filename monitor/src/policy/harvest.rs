//! One workload that picks up credentials of one kind after the other.

use super::{HARVEST, Policy, Raise, finding, shown};
use crate::{
    model::{CredentialId, Evidence, Finding, Hop, Severity, Source, Use},
    recent::Recent,
};
use jiff::{SignedDuration, Timestamp};

/// So many classes,
const CLASSES: usize = 3;
/// within this, are a harvest.
const WITHIN: SignedDuration = SignedDuration::from_mins(10);
/// What was harvested is remembered for this.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(24);
/// Workloads, and credentials, that are remembered.
const MANY: usize = 4096;
/// Pick-ups of one workload that are remembered.
const TAKEN: usize = 64;

/// One pick-up.
#[derive(Debug)]
struct Taken {
    time: Timestamp,
    class: String,
    credential: CredentialId,
}

/// What workloads have picked up lately that was not theirs.
#[derive(Debug)]
pub struct Harvests {
    by_workload: Recent<String, Vec<Taken>>,
    /// Credentials of a harvest: whose it was, and when.
    taken: Recent<CredentialId, (String, Timestamp)>,
}

impl Default for Harvests {
    fn default() -> Self {
        Self {
            by_workload: Recent::new(MANY),
            taken: Recent::new(MANY),
        }
    }
}

impl Harvests {
    /// A workload is called something else.
    pub fn rename(&mut self, old: &str, new: &str) {
        if self.by_workload.contains(old) {
            let taken = std::mem::take(self.by_workload.entry(old.to_owned()));
            self.by_workload.entry(new.to_owned()).extend(taken);
        }
    }

    /// Takes in what was picked up; gives the classes where that makes a harvest.
    fn take(&mut self, used: &Use) -> Option<Vec<String>> {
        let workload = used.workload.key();
        let known = self.by_workload.entry(workload.clone());
        known.retain(|taken| used.time.duration_since(taken.time) <= WITHIN);
        let credential = &used.credential;
        if !known.iter().any(|taken| taken.credential == credential.id) {
            if known.len() >= TAKEN {
                // Many of one kind are not to hide the others.
                make_room(known);
            }
            known.push(Taken {
                time: used.time,
                class: credential.class.clone(),
                credential: credential.id.clone(),
            });
        }
        let mut classes: Vec<String> = known.iter().map(|taken| taken.class.clone()).collect();
        classes.sort();
        classes.dedup();
        if classes.len() < CLASSES {
            return None;
        }
        for taken in known {
            self.taken
                .insert(taken.credential.clone(), (workload.clone(), used.time));
        }
        Some(classes)
    }
}

/// Drops the oldest pick-up of the class that has most of them.
fn make_room(known: &mut Vec<Taken>) {
    let of_class = |class: &str| known.iter().filter(|taken| taken.class == class).count();
    let commonest = known.iter().map(|taken| of_class(&taken.class)).max();
    let oldest = known
        .iter()
        .position(|taken| Some(of_class(&taken.class)) == commonest);
    if let Some(oldest) = oldest {
        known.remove(oldest);
    }
}

impl Policy {
    /// Three classes that are not its own, by one workload, in ten minutes.
    pub(super) fn harvest(&mut self, used: &Use) -> Option<Finding> {
        let own = used.given
            || used.place.source != Source::File
            || (used.pod_uid.is_some()
                && (used.pod_uid == used.volume_of
                    || used.pod_uid.as_ref()
                        == used.credential.issued_to.as_ref().map(|to| &to.pod_uid)))
            || self.is_reader(used);
        if own {
            return None;
        }
        let classes = self.harvests.take(used)?;
        let workload = used.workload.key();
        Some(finding(
            used.time,
            &used.workload,
            Some(&used.process),
            Some(&used.credential),
            Raise {
                rule: HARVEST,
                severity: if used.workload.is_contained() {
                    Severity::High
                } else {
                    Severity::Low
                },
                summary: format!(
                    "{workload} picked up credentials of {} classes within {} minutes: {}",
                    classes.len(),
                    WITHIN.as_mins(),
                    classes.join(", ")
                ),
                evidence: None,
                destination: None,
                expected: Vec::new(),
                // One harvest, and not one for each credential of it.
                same: workload,
                for_all: true,
            },
        ))
    }

    /// What was harvested is presented where it should not be.
    pub(super) fn taken_out(&self, hop: &Hop) -> Option<Finding> {
        if hop.evidence != Evidence::Presented {
            return None;
        }
        let (by, when) = self.harvests.taken.peek(&hop.credential.id)?;
        if hop.time.duration_since(*when) > REMEMBERED {
            return None;
        }
        Some(finding(
            hop.time,
            &hop.workload,
            Some(&hop.process),
            Some(&hop.credential),
            Raise {
                rule: HARVEST,
                severity: Severity::Critical,
                summary: format!(
                    "{} presented {} to {}; it was among what {by} had picked up at {when}",
                    hop.workload.key(),
                    shown(&hop.credential),
                    hop.destination.label()
                ),
                evidence: Some(hop.evidence),
                destination: Some(&hop.destination),
                expected: Vec::new(),
                same: format!("{} {}", hop.workload.key(), hop.destination.label()),
                for_all: false,
            },
        ))
    }
}
