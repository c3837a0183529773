//! A workload that picks up credentials of several classes in a short time.

use super::{FindingDraft, HARVEST, Policy, credential_label, finding};
use crate::{
    model::{CredentialId, Evidence, Finding, Hop, Severity, Source, Use},
    recent::Recent,
};
use jiff::{SignedDuration, Timestamp};

/// Number of classes
const HARVEST_CLASSES: usize = 3;
/// picked up within this time that make a harvest.
const HARVEST_WINDOW: SignedDuration = SignedDuration::from_mins(10);
/// How long a harvested credential is remembered.
const HARVEST_MEMORY: SignedDuration = SignedDuration::from_hours(24);
/// Maximum number of workloads, and of credentials, remembered.
const ENTRIES_MAX: usize = 4096;
/// Maximum pick-ups remembered per workload.
const PICK_UPS_MAX: usize = 64;

/// One pick-up.
#[derive(Debug)]
struct RecentPickUp {
    time: Timestamp,
    class: String,
    credential: CredentialId,
}

/// Recent pick-ups of credentials that do not belong to the workload.
#[derive(Debug)]
pub struct HarvestState {
    by_workload: Recent<String, Vec<RecentPickUp>>,
    /// Harvested credentials: by which workload, and when.
    harvested: Recent<CredentialId, (String, Timestamp)>,
}

impl Default for HarvestState {
    fn default() -> Self {
        Self {
            by_workload: Recent::new(ENTRIES_MAX),
            harvested: Recent::new(ENTRIES_MAX),
        }
    }
}

impl HarvestState {
    /// A workload was renamed.
    pub fn rename(&mut self, old: &str, new: &str) {
        if self.by_workload.contains(old) {
            let taken = std::mem::take(self.by_workload.entry(old.to_owned()));
            self.by_workload.entry(new.to_owned()).extend(taken);
        }
    }

    /// Records a pick-up; returns the classes if it completes a harvest.
    fn record(&mut self, used: &Use) -> Option<Vec<String>> {
        let workload = used.workload.key();
        let known = self.by_workload.entry(workload.clone());
        known.retain(|taken| used.time.duration_since(taken.time) <= HARVEST_WINDOW);
        let credential = &used.credential;
        if !known.iter().any(|taken| taken.credential == credential.id) {
            if known.len() >= PICK_UPS_MAX {
                // Many of one class must not displace the others.
                make_room(known);
            }
            known.push(RecentPickUp {
                time: used.time,
                class: credential.class.clone(),
                credential: credential.id.clone(),
            });
        }
        let mut classes: Vec<String> = known.iter().map(|taken| taken.class.clone()).collect();
        classes.sort();
        classes.dedup();
        if classes.len() < HARVEST_CLASSES {
            return None;
        }
        for taken in known {
            self.harvested
                .insert(taken.credential.clone(), (workload.clone(), used.time));
        }
        Some(classes)
    }
}

/// Drops the oldest pick-up of the most frequent class.
fn make_room(known: &mut Vec<RecentPickUp>) {
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
        let classes = self.harvests.record(used)?;
        let workload = used.workload.key();
        Some(finding(
            used.time,
            &used.workload,
            Some(&used.process),
            Some(&used.credential),
            FindingDraft {
                rule: HARVEST,
                severity: if used.workload.is_contained() {
                    Severity::High
                } else {
                    Severity::Low
                },
                summary: format!(
                    "{workload} picked up credentials of {} classes within {} minutes: {}",
                    classes.len(),
                    HARVEST_WINDOW.as_mins(),
                    classes.join(", ")
                ),
                evidence: None,
                destination: None,
                expected: Vec::new(),
                // One harvest, rather than one for each of its credentials.
                dedup_key: workload,
                any_credential: true,
            },
        ))
    }

    /// A harvested credential is presented at an unexpected destination.
    pub(super) fn harvested_presented(&self, hop: &Hop) -> Option<Finding> {
        if hop.evidence != Evidence::Presented {
            return None;
        }
        let (by, when) = self.harvests.harvested.peek(&hop.credential.id)?;
        if hop.time.duration_since(*when) > HARVEST_MEMORY {
            return None;
        }
        Some(finding(
            hop.time,
            &hop.workload,
            Some(&hop.process),
            Some(&hop.credential),
            FindingDraft {
                rule: HARVEST,
                severity: Severity::Critical,
                summary: format!(
                    "{} presented {} to {}, one of the credentials that {by} harvested at {when}",
                    hop.workload.key(),
                    credential_label(&hop.credential),
                    hop.destination.label()
                ),
                evidence: Some(hop.evidence),
                destination: Some(&hop.destination),
                expected: Vec::new(),
                dedup_key: format!("{} {}", hop.workload.key(), hop.destination.label()),
                any_credential: false,
            },
        ))
    }
}
