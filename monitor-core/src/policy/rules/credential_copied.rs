//! `credential-copied`: the same credential in a second place or workload.

use super::{AlertMeta, Event, Rule, RuleMeta};
use crate::{
    fair_cache::{FairCache, size_of_list},
    model::{CredentialId, Finding, Severity, Source, Use, Workload, WorkloadKind},
    policy::{
        context::Context,
        decision::Decision,
        expectation::reader::ReaderMatch,
        finding::FindingBuilder,
        label::{container_prefix, credential_label},
    },
};

static META: RuleMeta = RuleMeta {
    name: "credential-copied",
    description: "The same fingerprint in a second place or workload.",
    references: &["OWASP NHI9:2025 NHI Reuse", "ATT&CK T1552"],
    alert: Some(AlertMeta {
        summary: "A credential with written readers is in a second place: {workload}",
        command: None,
    }),
};

/// Maximum places remembered per credential.
const PLACES_MAX: usize = 64;

/// Number of credentials remembered.
const CREDENTIALS_CACHED: usize = 16_384;

/// Where a credential was seen.
#[derive(Debug, Default)]
struct CredentialPlaces {
    files: Vec<Box<str>>,
    workloads: Vec<Box<str>>,
}

impl CredentialPlaces {
    fn len(&self) -> usize {
        self.files.len() + self.workloads.len()
    }
}

/// Raises the same credential in another file, or in another container, pod or unit. Host programs
/// that read one file share it; a variable of the process that read the file, or of its children, is
/// the same credential in transit. If an expectation permits the reader, or names the file, it was
/// copied on purpose.
#[derive(Debug)]
pub struct CredentialCopied {
    seen: FairCache<CredentialId, CredentialPlaces>,
}

impl Default for CredentialCopied {
    fn default() -> Self {
        Self {
            seen: FairCache::new(CREDENTIALS_CACHED),
        }
    }
}

impl CredentialCopied {
    fn judge_use(&mut self, used: &Use, context: &Context) -> Option<Finding> {
        let is_by_place = used.credential.id.0.starts_with("loc-");
        // Anyone can present what nothing has picked up: it has no first place.
        if used.volume_of.is_some() || is_by_place || used.credential.is_only_seen() {
            return None;
        }
        let (mut a_reader, mut at_home, mut written) = (false, false, false);
        for expectation in context.expectations.about(&used.credential) {
            let fit = expectation.allows_reader(&used.workload, &used.process.exe);
            // A reader that turns out not to be permitted is reported for that.
            a_reader |= fit.is_some_and(|fit| fit >= ReaderMatch::Unknown);
            at_home |= expectation.names_file(&used.place.place);
            written |= fit.is_some();
        }
        let seen = self.seen.get_or_insert_with(
            &used.process.tenant,
            &used.credential.id,
            CredentialPlaces::default,
        );
        let mut copy = None;
        let places = seen.len();
        if used.place.source == Source::File {
            let file = format!("{}{}", container_prefix(&used.workload), used.place.place);
            if !seen.files.iter().any(|known| **known == *file) && seen.files.len() < PLACES_MAX {
                // A file mounted into a container has another path there.
                let brought = a_reader && (at_home || used.given);
                if let Some(first) = seen.files.first()
                    && !brought
                {
                    copy = Some(format!("{} as well as in {first}", used.place.place));
                }
                seen.files.push(file.into());
            }
        }
        if used.workload.kind != WorkloadKind::Host {
            let workload = used.workload.key();
            if !seen.workloads.iter().any(|known| **known == *workload)
                && seen.workloads.len() < PLACES_MAX
            {
                if let Some(first) = seen.workloads.first()
                    && !a_reader
                {
                    copy = Some(format!("{workload} as well as by {first}"));
                }
                seen.workloads.push(workload.into());
            }
        }
        if seen.len() > places {
            let size = size_of_list(seen.len());
            self.seen.resize(&used.credential.id, size);
        }
        let copy = copy?;
        let severity = if written {
            Severity::Medium
        } else {
            Severity::Low
        };
        Some(
            FindingBuilder::about_use(&META, severity, used)
                .summary(format!(
                    "{} was picked up from {copy}",
                    credential_label(&used.credential)
                ))
                .dedup_key(format!("{} {}", used.place.place, used.workload.key()))
                .build(),
        )
    }
}

impl Rule for CredentialCopied {
    fn meta(&self) -> &'static RuleMeta {
        &META
    }

    fn needs_live_data(&self) -> bool {
        true
    }

    fn judge(&mut self, event: &Event<'_>, context: &Context) -> Decision {
        match event {
            Event::Use(used) => self.judge_use(used, context).into(),
            _ => Decision::Allowed,
        }
    }

    fn forgotten(&self) -> u64 {
        self.seen.evicted()
    }

    fn rename(&mut self, old: &Workload, new: &Workload) {
        let (old_key, old_inside) = (old.key(), container_prefix(old));
        let key: Box<str> = new.key().into();
        for seen in self.seen.values_mut() {
            let all = seen.workloads.len();
            seen.workloads.retain(|known| **known != *old_key);
            if seen.workloads.len() < all && !seen.workloads.contains(&key) {
                seen.workloads.push(key.clone());
            }
            if old_inside.is_empty() {
                continue;
            }
            for file in &mut seen.files {
                if let Some(path) = file.strip_prefix(&*old_inside) {
                    *file = (container_prefix(new) + path).into();
                }
            }
        }
    }
}
