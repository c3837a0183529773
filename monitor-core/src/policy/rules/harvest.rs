//! `harvest`: a workload that picks up credentials of several classes in a short time.

use super::{AlertMeta, Event, Rule, RuleMeta};
use crate::{
    fair_cache::{FairCache, size_of_list},
    model::{CredentialId, Evidence, Finding, Hop, Severity, Source, Use, Verdict, Workload},
    policy::{
        context::Context, decision::Decision, expectation::reader::ReaderMatch,
        finding::FindingBuilder, label::credential_label,
    },
};
use jiff::{SignedDuration, Timestamp};

static META: RuleMeta = RuleMeta {
    name: "harvest",
    description: "Credentials of three classes that are not its own, picked up by one workload within ten minutes.",
    references: &[
        "OWASP NHI2:2025 Secret Leakage",
        "ATT&CK T1552",
        "ATT&CK T1555",
    ],
    alert: Some(AlertMeta {
        summary: "Credentials of several classes were picked up by one workload: {workload}",
        command: Some("keytrail query blast-radius {workload}"),
    }),
};

/// Number of classes picked up within [`HARVEST_WINDOW`] that make a harvest.
const HARVEST_CLASSES: usize = 3;
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

/// Raises harvests, and then harvested credentials at unexpected destinations.
#[derive(Debug)]
pub struct Harvest {
    by_workload: FairCache<String, Vec<RecentPickUp>>,
    /// Harvested credentials: by which workload, and when.
    harvested: FairCache<CredentialId, (String, Timestamp)>,
}

impl Default for Harvest {
    fn default() -> Self {
        Self {
            by_workload: FairCache::new(ENTRIES_MAX),
            harvested: FairCache::new(ENTRIES_MAX),
        }
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

/// Whether a credential belongs to the workload that picks it up.
fn is_own(used: &Use, context: &Context) -> bool {
    let issued_to = used.credential.issued_to.as_ref().map(|to| &to.pod_uid);
    let own_pod = used.pod_uid.is_some()
        && (used.pod_uid == used.volume_of || used.pod_uid.as_ref() == issued_to);
    let is_reader = || {
        context
            .expectations
            .about(&used.credential)
            .any(|expectation| {
                expectation.allows_reader(&used.workload, &used.process.exe)
                    == Some(ReaderMatch::Matches)
            })
    };
    used.given || used.place.source != Source::File || own_pod || is_reader()
}

impl Harvest {
    /// Records a pick-up; returns the classes if it completes a harvest.
    fn record(&mut self, used: &Use) -> Option<Vec<String>> {
        let workload = used.workload.key();
        let tenant = &used.process.tenant;
        let known = self
            .by_workload
            .get_or_insert_with(tenant, &workload, Vec::new);
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
        let len = known.len();
        classes.sort();
        classes.dedup();
        self.by_workload.resize(&workload, size_of_list(len));
        if classes.len() < HARVEST_CLASSES {
            return None;
        }
        for taken in self.by_workload.peek(&workload).into_iter().flatten() {
            self.harvested.insert(
                tenant,
                taken.credential.clone(),
                (workload.clone(), used.time),
            );
        }
        Some(classes)
    }

    fn judge_use(&mut self, used: &Use, context: &Context) -> Option<Finding> {
        if is_own(used, context) {
            return None;
        }
        let classes = self.record(used)?;
        let workload = used.workload.key();
        let severity = if used.workload.is_contained() {
            Severity::High
        } else {
            Severity::Low
        };
        Some(
            FindingBuilder::about_use(&META, severity, used)
                .summary(format!(
                    "{workload} picked up credentials of {} classes within {} minutes: {}",
                    classes.len(),
                    HARVEST_WINDOW.as_mins(),
                    classes.join(", ")
                ))
                // One harvest, rather than one for each of its credentials.
                .dedup_key(workload)
                .any_credential()
                .build(),
        )
    }

    /// A harvested credential is presented at an unexpected destination.
    fn judge_hop(&self, hop: &Hop) -> Option<Finding> {
        if hop.evidence != Evidence::Presented {
            return None;
        }
        let (by, when) = self.harvested.peek(&hop.credential.id)?;
        if hop.time.duration_since(*when) > HARVEST_MEMORY {
            return None;
        }
        Some(
            FindingBuilder::about_hop(&META, Severity::Critical, hop)
                .summary(format!(
                    "{} presented {} to {}, one of the credentials that {by} harvested at {when}",
                    hop.workload.key(),
                    credential_label(&hop.credential),
                    hop.destination.label()
                ))
                .count(1)
                .build(),
        )
    }
}

impl Rule for Harvest {
    fn meta(&self) -> &'static RuleMeta {
        &META
    }

    fn needs_live_data(&self) -> bool {
        true
    }

    fn judge(&mut self, event: &Event<'_>, context: &Context) -> Decision {
        match event {
            Event::Use(used) => self.judge_use(used, context).into(),
            Event::Hop(assessed)
                if assessed.verdict == Verdict::Unexpected
                    && !context.expectations.is_learning() =>
            {
                self.judge_hop(assessed.hop).into()
            }
            _ => Decision::Allowed,
        }
    }

    fn forgotten(&self) -> u64 {
        self.by_workload.evicted() + self.harvested.evicted()
    }

    fn rename(&mut self, old: &Workload, new: &Workload) {
        let (old, new) = (old.key(), new.key());
        if let Some((tenant, taken)) = self.by_workload.remove(&old) {
            self.by_workload
                .get_or_insert_with(&tenant, &new, Vec::new)
                .extend(taken);
        }
        for (by, _) in self.harvested.values_mut() {
            if *by == old {
                by.clone_from(&new);
            }
        }
    }
}
