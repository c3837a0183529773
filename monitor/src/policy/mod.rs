//! The policy: decides whether uses and hops are expected. Pure, like the trail.

mod blind;
pub mod document;
mod harvest;
pub mod rules;
pub mod suggest;
pub mod trial;

use crate::{
    credential::catalog::Catalog,
    model::{
        Credential, CredentialId, Destination, Evidence, Finding, ForeignRead, Hop, IssuedTo,
        Lifetime, Look, Mint, NameSource, Process, Role, Severity, Source, SourcedName,
        UNKNOWN_NAME, Untrusted, Use, Verdict, Workload, WorkloadKind,
    },
    recent::Recent,
};
use document::{ConfigDocument, Expectation, PolicyMode, ReaderMatch};
use harvest::HarvestState;
use jiff::{SignedDuration, Timestamp};
use monitor_common::fingerprint::{FingerprintKey, fingerprint};
use rules::{
    BLIND, CLEARTEXT, CREDENTIAL_COPIED, EXPIRED, FOREIGN_PROCESS_READ, HARVEST, HUMAN_USE,
    LONG_LIVED, REVOKED, RuleMeta, UNEXPECTED_HOP, UNEXPECTED_MINT, UNEXPECTED_READER,
    UNTRUSTED_BINARY,
};
use std::{net::IpAddr, sync::Arc};

pub use rules::RULES;

/// The Kubernetes API's object in its cluster.
const API_OBJECT: &str = "kubernetes.default.svc";

/// Programs that manage the volumes of pods: kubelets, including those built into a distribution.
const VOLUME_KEEPERS: [&str; 14] = [
    "kubelet",
    "k3s",
    "k3s-server",
    "k3s-agent",
    "k0s",
    "kubelite",
    "hyperkube",
    "containerd",
    "containerd-shim-runc-v2",
    "runc",
    "crun",
    "crio",
    "conmon",
    "dockerd",
];

/// Maximum places remembered per credential.
const PLACES_MAX: usize = 64;

/// Number of credentials remembered.
const CREDENTIALS_CACHED: usize = 16_384;

/// Where a credential was seen, for `credential-copied`.
#[derive(Debug, Default)]
struct CredentialPlaces {
    files: Vec<Box<str>>,
    workloads: Vec<Box<str>>,
}

/// Appended if part of a workload's name is not known.
const NAME_INCOMPLETE: &str = " according to the known part of its name";

/// Whether an action is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allowed,
    /// It depends on a name that is not known yet; the finding is raised if none arrives.
    Pending(Finding),
    Violation(Finding),
}

/// The expectations in force, and what was observed before.
#[derive(Debug)]
pub struct Policy {
    document: ConfigDocument,
    catalog: Arc<Catalog>,
    seen: Recent<CredentialId, CredentialPlaces>,
    harvests: HarvestState,
}

/// A finding before it is counted.
struct FindingDraft<'a> {
    rule: RuleMeta,
    severity: Severity,
    summary: String,
    evidence: Option<Evidence>,
    destination: Option<&'a crate::model::Destination>,
    expected: Vec<String>,
    /// Identifies repetitions of the finding, together with rule and credential.
    dedup_key: String,
    /// One finding, regardless of the credential.
    any_credential: bool,
}

impl Policy {
    pub fn new(document: ConfigDocument, catalog: Arc<Catalog>) -> Self {
        Self {
            document,
            catalog,
            seen: Recent::new(CREDENTIALS_CACHED),
            harvests: HarvestState::default(),
        }
    }

    /// Replaces the expectations; what was observed before is kept.
    pub fn replace(&mut self, document: ConfigDocument, catalog: Arc<Catalog>) {
        self.document = document;
        self.catalog = catalog;
    }

    /// Applies the name and owner of its expectation to a credential.
    pub fn apply_name(&self, credential: &mut Credential) {
        let named = self
            .expectations(credential)
            .next()
            .map(|expectation| (expectation.name.clone(), expectation.owner.clone()));
        if let Some((name, owner)) = named {
            credential.name = Some(name);
            credential.owner = owner;
        }
    }

    fn expectations<'a>(
        &'a self,
        credential: &'a Credential,
    ) -> impl Iterator<Item = &'a Expectation> {
        self.document
            .credentials
            .iter()
            .filter(move |expectation| expectation.is_about(credential))
    }

    /// Applies the names of their expectations to the credentials of a mint.
    pub fn apply_mint_names(&self, mint: &mut Mint) {
        for credential in [&mut mint.presented, &mut mint.minted]
            .into_iter()
            .flatten()
        {
            self.apply_name(credential);
        }
    }

    /// The authenticator at a destination, from the expectations or the catalog.
    fn authenticator(&self, destination: &Destination) -> Option<&str> {
        self.document
            .authenticators
            .iter()
            .find(|authenticator| authenticator.is_at(destination))
            .map(|authenticator| authenticator.name.as_str())
            .or_else(|| {
                self.catalog
                    .authenticator(&host(destination), destination.port)
            })
    }

    /// Whether credentials are minted at a destination.
    pub fn is_authenticator(&self, destination: &Destination) -> bool {
        self.authenticator(destination).is_some()
    }

    /// A credential presented to an authenticator proves an identity, whatever the response.
    pub fn proof_of_identity(&self, hop: &Hop) -> Option<Mint> {
        let known = hop.evidence == Evidence::Presented && hop.others.is_empty();
        (known && self.authenticator(&hop.destination).is_some()).then(|| Mint {
            time: hop.time,
            workload: hop.workload.clone(),
            process: hop.process.clone(),
            authenticator: hop.destination.clone(),
            presented: Some(hop.credential.clone()),
            minted: None,
        })
    }

    /// A credential obtained by a workload that is not expected to obtain it.
    pub fn judge_mint(&self, mint: &Mint) -> Decision {
        let Some(minted) = &mint.minted else {
            return Decision::Allowed;
        };
        if self.document.mode == Some(PolicyMode::Learn) {
            return Decision::Allowed;
        }
        let at = &mint.authenticator;
        let exe = &mint.process.exe;
        let here = self
            .document
            .authenticators
            .iter()
            .filter(|authenticator| authenticator.is_at(at));
        // Permitted workloads are written with the authenticator, or with the credential that it
        // mints.
        let by_authenticator = here
            .clone()
            .filter_map(|known| document::allows(&known.readers, &mint.workload, exe))
            .max();
        let by_credential = self
            .expectations(minted)
            .filter_map(|expectation| expectation.allows_reader(&mint.workload, exe))
            .max();
        let wrong_role = here.clone().any(|known| !known.may_mint(minted.role));
        let fit = [by_authenticator, by_credential]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(ReaderMatch::Matches);
        if fit == ReaderMatch::Matches && !wrong_role {
            return Decision::Allowed;
        }
        let readers = here
            .flat_map(|known| &known.readers)
            .chain(
                self.expectations(minted)
                    .flat_map(|expectation| &expectation.readers),
            )
            .map(document::ReaderPattern::text)
            .collect();
        let workload = mint.workload.key();
        let name = self.authenticator(at).unwrap_or("an authenticator");
        let summary = if wrong_role {
            format!(
                "{workload} obtained {}, of role {}, from {name} at {}, which may not mint it",
                credential_label(minted),
                minted.role,
                at.label()
            )
        } else {
            format!(
                "{workload} obtained {} from {name} at {}, and is not expected to",
                credential_label(minted),
                at.label()
            )
        };
        let raise = |severity, summary| {
            finding(
                mint.time,
                &mint.workload,
                Some(&mint.process),
                Some(minted),
                FindingDraft {
                    rule: UNEXPECTED_MINT,
                    severity,
                    summary,
                    evidence: None,
                    destination: Some(at),
                    expected: readers,
                    dedup_key: format!("{workload} {}", at.label()),
                    any_credential: false,
                },
            )
        };
        if fit == ReaderMatch::Unknown && !wrong_role {
            return Decision::Pending(raise(Severity::Low, format!("{summary}{NAME_INCOMPLETE}")));
        }
        Decision::Violation(raise(Severity::High, summary))
    }

    /// Addresses at which credentials are minted.
    pub fn minting_addresses(&self) -> Vec<IpAddr> {
        let written = self.document.authenticators.iter();
        self.catalog
            .metadata()
            .iter()
            .copied()
            .chain(written.flat_map(document::AuthenticatorEntry::addresses))
            .collect()
    }

    /// The rules that a use violates, whoever the reader is.
    pub fn judge_use(&mut self, used: &Use) -> Vec<Finding> {
        let mut findings = Vec::new();
        findings.extend(self.untrusted(used));
        findings.extend(self.human_use(used));
        findings.extend(self.long_lived(used));
        let revoked = self.revoked(&used.credential, used.time, &used.workload, None);
        findings.extend(revoked.map(|raise| {
            finding(
                used.time,
                &used.workload,
                Some(&used.process),
                Some(&used.credential),
                raise,
            )
        }));
        for each_time in &mut findings {
            each_time.count = used.count.max(1);
        }
        findings.extend(self.copied(used));
        findings.extend(self.harvest(used));
        findings
    }

    /// A use after its expectation's `revoked_at`; each workload and each destination is a separate
    /// finding.
    fn revoked<'a>(
        &self,
        credential: &Credential,
        time: Timestamp,
        workload: &Workload,
        destination: Option<&'a Destination>,
    ) -> Option<FindingDraft<'a>> {
        let revoked = self
            .expectations(credential)
            .filter_map(|expectation| expectation.revoked_at)
            .min()
            .filter(|revoked| time > *revoked)?;
        let (who, what) = (workload.key(), credential_label(credential));
        let to = destination.map(Destination::label);
        let summary = match &to {
            Some(to) => {
                format!("{who} used {what} with {to}, although it was revoked at {revoked}")
            }
            None => format!("{who} picked up {what}, which was revoked at {revoked}"),
        };
        Some(FindingDraft {
            rule: REVOKED,
            severity: Severity::Critical,
            summary,
            evidence: None,
            destination,
            expected: Vec::new(),
            dedup_key: format!("{who} {}", to.unwrap_or_default()),
            any_credential: false,
        })
    }

    /// Whether the reader of a credential is permitted.
    pub fn judge_reader(&self, used: &Use) -> Decision {
        let credential = &used.credential;
        let mut expected = Vec::new();
        let mut written = None;
        for expectation in self.expectations(credential) {
            let fit = expectation.allows_reader(&used.workload, &used.process.exe);
            if fit == Some(ReaderMatch::Matches) {
                return Decision::Allowed;
            }
            if fit.is_some() {
                expected.extend(
                    expectation
                        .readers
                        .iter()
                        .map(document::ReaderPattern::text),
                );
            }
            written = written.max(fit);
        }
        if self.document.mode == Some(PolicyMode::Learn) {
            return Decision::Allowed;
        }
        let reader = used.workload.key();
        let what = credential_label(credential);
        let (severity, summary) = match written {
            Some(fit) => {
                let (severity, and) = match fit {
                    ReaderMatch::Unknown => (Severity::Low, NAME_INCOMPLETE),
                    _ => (Severity::High, ""),
                };
                let summary =
                    format!("{reader} read {what}, whose expected readers do not include it{and}");
                (severity, summary)
            }
            None => {
                let Some(owner) = foreign_pod_owner(used) else {
                    return Decision::Allowed;
                };
                let keeper = used.process.exe.rsplit('/').next().unwrap_or_default();
                // In a container any program can have such a name.
                let on_host = used.pod_uid.is_none()
                    && !used.workload.is_contained()
                    && used.untrusted.is_none();
                if on_host && VOLUME_KEEPERS.contains(&keeper) {
                    return Decision::Allowed;
                }
                (Severity::High, format!("{reader} read {what} {owner}"))
            }
        };
        let mut found = finding(
            used.time,
            &used.workload,
            Some(&used.process),
            Some(credential),
            FindingDraft {
                rule: UNEXPECTED_READER,
                severity,
                summary,
                evidence: None,
                destination: None,
                expected,
                dedup_key: reader,
                any_credential: false,
            },
        );
        found.count = used.count.max(1);
        if written == Some(ReaderMatch::Unknown) {
            Decision::Pending(found)
        } else {
            Decision::Violation(found)
        }
    }

    /// The same credential in another file, or in another container, pod or unit. Host programs
    /// that read one file share it; a variable of the process that read the file, or of its
    /// children, is the same credential in transit. If an expectation permits the reader, or names
    /// the file, it was copied on purpose.
    fn copied(&mut self, used: &Use) -> Option<Finding> {
        if used.volume_of.is_some() || used.credential.id.0.starts_with("loc-") {
            return None;
        }
        let (mut a_reader, mut at_home, mut written) = (false, false, false);
        for expectation in self.expectations(&used.credential) {
            let fit = expectation.allows_reader(&used.workload, &used.process.exe);
            // A reader that turns out not to be permitted is reported for that.
            a_reader |= fit.is_some_and(|fit| fit >= ReaderMatch::Unknown);
            at_home |= expectation.names_file(&used.place.place);
            written |= fit.is_some();
        }
        let seen = self.seen.entry(used.credential.id.clone());
        let mut what = None;
        if used.place.source == Source::File {
            let file = format!("{}{}", container_prefix(&used.workload), used.place.place);
            if !seen.files.iter().any(|known| **known == *file) && seen.files.len() < PLACES_MAX {
                // A file mounted into a container has another path there.
                let brought = a_reader && (at_home || used.given);
                if let Some(first) = seen.files.first()
                    && !brought
                {
                    what = Some(format!("{} as well as in {first}", used.place.place));
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
                    what = Some(format!("{workload} as well as by {first}"));
                }
                seen.workloads.push(workload.into());
            }
        }
        let what = what?;
        Some(finding(
            used.time,
            &used.workload,
            Some(&used.process),
            Some(&used.credential),
            FindingDraft {
                rule: CREDENTIAL_COPIED,
                severity: if written {
                    Severity::Medium
                } else {
                    Severity::Low
                },
                summary: format!(
                    "{} was picked up from {what}",
                    credential_label(&used.credential)
                ),
                evidence: None,
                destination: None,
                expected: Vec::new(),
                dedup_key: format!("{} {}", used.place.place, used.workload.key()),
                any_credential: false,
            },
        ))
    }

    /// Read by an executable that was not installed.
    fn untrusted(&self, used: &Use) -> Option<Finding> {
        let why = used.untrusted?;
        let (severity, what) = match why {
            Untrusted::Memory => (Severity::High, "exists only in memory"),
            Untrusted::Deleted => (Severity::High, "was deleted"),
            Untrusted::Added => (Severity::High, "is not in its container's image"),
            Untrusted::Temporary => (Severity::Low, "is in a temporary directory"),
        };
        let exe = &used.process.exe;
        Some(finding(
            used.time,
            &used.workload,
            Some(&used.process),
            Some(&used.credential),
            FindingDraft {
                rule: UNTRUSTED_BINARY,
                severity,
                summary: format!(
                    "{} picked up {} with {exe}, which {what}",
                    used.workload.key(),
                    credential_label(&used.credential)
                ),
                evidence: None,
                destination: None,
                expected: Vec::new(),
                dedup_key: format!("{} {exe}", used.workload.key()),
                any_credential: false,
            },
        ))
    }

    /// Whether an expectation permits a reader.
    fn is_reader(&self, used: &Use) -> bool {
        self.expectations(&used.credential).any(|expectation| {
            expectation.allows_reader(&used.workload, &used.process.exe)
                == Some(ReaderMatch::Matches)
        })
    }

    /// A workload was renamed.
    pub fn rename(&mut self, old: &Workload, new: &Workload) {
        let (old_key, old_inside) = (old.key(), container_prefix(old));
        self.harvests.rename(&old_key, &new.key());
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

    /// A machine's credential read from a terminal: one outside the user's home directory.
    fn human_use(&self, used: &Use) -> Option<Finding> {
        let login = used.login.as_ref()?;
        if used.place.source != Source::File
            || self
                .catalog
                .is_usual(&used.credential.class, &used.process.exe)
        {
            return None;
        }
        if login
            .home
            .as_deref()
            .is_some_and(|home| used.place.place.starts_with(&format!("{home}/")))
        {
            return None;
        }
        let written = self
            .expectations(&used.credential)
            .any(|expectation| !expectation.readers.is_empty());
        Some(finding(
            used.time,
            &used.workload,
            Some(&used.process),
            Some(&used.credential),
            FindingDraft {
                rule: HUMAN_USE,
                severity: if written {
                    Severity::Medium
                } else {
                    Severity::Low
                },
                summary: format!(
                    "{} at {} was read from a terminal by uid {}",
                    credential_label(&used.credential),
                    used.place.place,
                    login.uid
                ),
                evidence: None,
                destination: None,
                expected: Vec::new(),
                dedup_key: login.uid.to_string(),
                any_credential: false,
            },
        ))
    }

    fn long_lived(&self, used: &Use) -> Option<Finding> {
        let credential = &used.credential;
        let since = match (credential.issued_at, used.modified) {
            (Some(issued), _) => Some(issued),
            (None, modified) => modified,
        };
        let too_old = self
            .expectations(credential)
            .filter_map(|expectation| expectation.max_age)
            .min()
            .zip(since)
            .filter(|(max_age, since)| used.time.duration_since(*since) > *max_age);
        let summary = if let Some((max_age, since)) = too_old {
            format!(
                "{} is {} old; the maximum is {}",
                credential_label(credential),
                days(used.time.duration_since(since)),
                days(max_age)
            )
        } else if credential.lifetime == Lifetime::Static
            && self
                .catalog
                .class(&credential.class)
                .is_some_and(|class| class.short_form)
        {
            format!(
                "{} is static, although {} has a short-lived form",
                credential_label(credential),
                credential.class
            )
        } else {
            return None;
        };
        Some(finding(
            used.time,
            &used.workload,
            Some(&used.process),
            Some(credential),
            FindingDraft {
                rule: LONG_LIVED,
                severity: Severity::Low,
                summary,
                evidence: None,
                destination: None,
                expected: Vec::new(),
                dedup_key: String::new(),
                any_credential: false,
            },
        ))
    }

    /// A read of the environment or memory of a process that holds a credential.
    pub fn judge_foreign(&self, read: &ForeignRead) -> Option<Finding> {
        let same_workload = read.workload == read.victim;
        let host =
            read.workload.kind == WorkloadKind::Host || read.workload.kind == WorkloadKind::Unit;
        // The parent gave a process its environment; a package manager checks which programs still
        // run from files that it replaced.
        let upgrade = || {
            let unit = read.workload.unit.as_deref().unwrap_or_default();
            // Anyone can have a unit of that name below their own service manager.
            (read.process.uid == 0 && UPGRADES.iter().any(|start| unit.starts_with(start)))
                || read
                    .process
                    .ancestors
                    .iter()
                    .any(|above| PACKAGE_TOOLS.contains(&above.exe.as_str()))
        };
        let duty = host && (INSPECTORS.contains(&read.process.exe.as_str()) || upgrade());
        let what = match read.look {
            Look::Environ => "the environment",
            Look::Memory => "the memory",
            Look::Trace => "the memory, by tracing,",
        };
        Some(finding(
            read.time,
            &read.workload,
            Some(&read.process),
            Some(&read.credential),
            FindingDraft {
                rule: FOREIGN_PROCESS_READ,
                severity: if same_workload || read.ancestor || duty {
                    Severity::Low
                } else {
                    Severity::High
                },
                summary: format!(
                    "{} read {what} of {} (pid {}, {}), which holds {}",
                    read.workload.key(),
                    read.victim.key(),
                    read.victim_process.pid,
                    read.victim_process.exe,
                    credential_label(&read.credential)
                ),
                evidence: Some(read.evidence),
                destination: None,
                expected: Vec::new(),
                dedup_key: format!("{} {}", read.workload.key(), read.victim.key()),
                any_credential: false,
            },
        ))
    }

    /// Whether a credential may go to a destination, checked for each name claimed for it: the head
    /// of a request may name another server than the connection, and both must be allowed; of the
    /// names that DNS gave for the address, one must be.
    fn allows(&self, credential: &Credential, destination: &Destination) -> bool {
        let by = |named: &SourcedName| {
            named.name != UNKNOWN_NAME
                && self.allows_name(
                    credential,
                    &Destination {
                        name: Some(named.name.clone()),
                        ..destination.clone()
                    },
                )
        };
        let (by_dns, by_host): (Vec<_>, Vec<_>) = destination
            .disputed
            .iter()
            .filter(|named| !is_unconfirmed(named))
            .partition(|named| named.name_source == NameSource::Dns);
        let by_names = self.allows_name(credential, destination)
            && by_host.into_iter().all(by)
            && (by_dns.is_empty() || by_dns.into_iter().any(by));
        // The cluster's object decides, whatever name is used for it. Anyone can create a service:
        // only the API's own is a home, and others are expected only if an expectation names them.
        let object = || {
            let there = Destination {
                name: destination
                    .object
                    .clone()
                    .filter(|name| name != UNKNOWN_NAME),
                name_source: NameSource::Kubernetes,
                ..destination.clone()
            };
            there.name.is_some() && self.allows_name(credential, &there)
        };
        by_names || object()
    }

    /// As [`allows`](Self::allows), for the destination's own name only.
    fn allows_name(&self, credential: &Credential, destination: &Destination) -> bool {
        let host = host(destination);
        let stranger = destination.name_source == NameSource::Kubernetes && host != API_OBJECT;
        (!stranger && self.catalog.at_home(&credential.class, &host) == Some(true))
            || has_host_name(&credential.audience, &host)
            || self
                .expectations(credential)
                .flat_map(|expectation| &expectation.destinations)
                .any(|pattern| pattern.matches(destination))
            || self.document.authenticators.iter().any(|authenticator| {
                self.destination_fits(authenticator, credential) && authenticator.is_at(destination)
            })
    }

    /// Whether a credential may go to an authenticator: a workload presents its identity there
    /// first, and then what was minted there, unless the credential's home is elsewhere.
    fn destination_fits(
        &self,
        authenticator: &document::AuthenticatorEntry,
        credential: &Credential,
    ) -> bool {
        credential.role == Role::Identity
            || (authenticator.may_mint(credential.role) && !self.has_a_home(credential))
    }

    /// Whether a credential has a home, so that any other place is wrong.
    fn has_a_home(&self, credential: &Credential) -> bool {
        !credential.unmarked
            && !self.catalog.is_self_hosted(&credential.class)
            && !self.catalog.home(&credential.class).is_empty()
    }

    /// Where a credential may go, in readable form.
    fn expected(&self, credential: &Credential) -> Vec<String> {
        let mut expected = self.catalog.home(&credential.class);
        for expectation in self.expectations(credential) {
            expected.extend(
                expectation
                    .destinations
                    .iter()
                    .map(|pattern| pattern.text.clone()),
            );
        }
        for authenticator in &self.document.authenticators {
            if self.destination_fits(authenticator, credential) {
                expected.extend(
                    authenticator
                        .destinations
                        .iter()
                        .map(|pattern| format!("{} ({})", pattern.text, authenticator.name)),
                );
            }
        }
        expected
    }

    /// The verdict on a hop, and the rules that it violates.
    pub fn judge_hop(&self, hop: &Hop) -> (Verdict, Vec<Finding>) {
        let (verdict, mut findings) = self.judge_destination(hop);
        if verdict == Verdict::Unexpected && self.document.mode != Some(PolicyMode::Learn) {
            findings.extend(self.harvested_presented(hop));
        }
        (verdict, findings)
    }

    fn judge_destination(&self, hop: &Hop) -> (Verdict, Vec<Finding>) {
        let credential = &hop.credential;
        let destination = &hop.destination;
        let allowed = self.allows(credential, destination);
        // If it is not known which of several destinations it was, all must be wrong. An unknown
        // cluster object may be allowed.
        let untold = |there: &Destination| there.name.is_none() && there.is_object_pending();
        let excused = hop
            .others
            .iter()
            .any(|other| self.allows(credential, other) != allowed || untold(other))
            || (!allowed && (untold(destination) || is_kubelet(credential, destination)))
            // An address that DNS did not return for the name, although it returned others: a
            // forged name, or an old response.
            || (allowed && destination.disputed.iter().any(is_unconfirmed));
        let written = self
            .expectations(credential)
            .any(|expectation| !expectation.destinations.is_empty());
        let expected = self.expected(credential);
        let home = self.has_a_home(credential);
        let proven = hop.evidence != Evidence::Held;
        let metadata =
            hop.evidence != Evidence::Presented && self.catalog.is_metadata(destination.address);
        let verdict = if excused {
            Verdict::Unproven
        } else if allowed {
            Verdict::Expected
        } else if proven && !metadata && (home || written) {
            Verdict::Unexpected
        } else {
            Verdict::Unproven
        };
        let mut findings = Vec::new();
        let raise = |raise: FindingDraft<'_>| {
            // Only what is first reported as `presented` is new.
            let again = hop.again && raise.rule.name != CLEARTEXT.name;
            let mut found = finding(
                hop.time,
                &hop.workload,
                Some(&hop.process),
                Some(credential),
                raise,
            );
            found.count = u64::from(!again);
            found
        };
        if verdict == Verdict::Unexpected && self.document.mode != Some(PolicyMode::Learn) {
            let severity = match hop.evidence {
                Evidence::Presented => Severity::Critical,
                _ if written => Severity::Medium,
                _ => Severity::Low,
            };
            let verb = match hop.evidence {
                Evidence::Presented => "presented",
                _ => "held only",
            };
            let action = match hop.evidence {
                Evidence::Presented if !hop.others.is_empty() => {
                    "to one of several possible destinations,"
                }
                Evidence::Presented => "to",
                _ => "and connected to",
            };
            findings.push(raise(FindingDraft {
                rule: UNEXPECTED_HOP,
                severity,
                summary: format!(
                    "{} {verb} {} {action} {}{}",
                    hop.workload.key(),
                    credential_label(credential),
                    destination.label(),
                    issued_to_suffix(credential, &hop.workload)
                ),
                evidence: Some(hop.evidence),
                destination: Some(destination),
                expected,
                dedup_key: format!("{} {}", hop.workload.key(), destination.label()),
                any_credential: false,
            }));
        }
        if hop.clear
            && !destination.address.is_loopback()
            && !self.catalog.is_metadata(destination.address)
        {
            findings.push(raise(FindingDraft {
                rule: CLEARTEXT,
                severity: Severity::High,
                summary: format!(
                    "{} sent {} in plaintext to {}{}",
                    hop.workload.key(),
                    credential_label(credential),
                    destination.label(),
                    issued_to_suffix(credential, &hop.workload)
                ),
                evidence: Some(hop.evidence),
                destination: Some(destination),
                expected: Vec::new(),
                dedup_key: format!("{} {}", hop.workload.key(), destination.label()),
                any_credential: false,
            }));
        }
        if proven
            && let Some(revoked) =
                self.revoked(credential, hop.time, &hop.workload, Some(destination))
        {
            findings.push(raise(FindingDraft {
                evidence: Some(hop.evidence),
                ..revoked
            }));
        }
        if let Some(expiry) = credential.expires_at
            && hop.time > expiry
            && proven
        {
            findings.push(raise(FindingDraft {
                rule: EXPIRED,
                severity: if hop.evidence == Evidence::Presented {
                    Severity::Medium
                } else {
                    Severity::Low
                },
                summary: format!(
                    "{} used {}, which expired at {expiry}, with {}",
                    hop.workload.key(),
                    credential_label(credential),
                    destination.label()
                ),
                evidence: Some(hop.evidence),
                destination: Some(destination),
                expected: Vec::new(),
                dedup_key: format!("{} {}", hop.workload.key(), destination.label()),
                any_credential: false,
            }));
        }
        (verdict, findings)
    }
}

/// Whether DNS resolved a name to other addresses, and returned no name for this address.
fn is_unconfirmed(named: &SourcedName) -> bool {
    named.name_source == NameSource::Dns && named.name == UNKNOWN_NAME
}

/// Whether a service-account token goes to a kubelet, or to the API by its node: both verify it
/// with the API, and node scrapers have no other credential.
fn is_kubelet(credential: &Credential, destination: &Destination) -> bool {
    // The cluster's object, not a claimed name.
    let node = destination.object.as_deref();
    credential.class == "k8s-service-account-token"
        && [443, 6443, 10250].contains(&destination.port)
        && node.is_some_and(|name| name.ends_with(".node"))
}

/// The name of a destination, or its address.
fn host(destination: &Destination) -> String {
    destination
        .name
        .clone()
        .unwrap_or_else(|| destination.address.to_string())
}

/// Host programs that inspect others as part of their normal operation.
const INSPECTORS: [&str; 11] = [
    "/usr/lib/systemd/systemd",
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd-coredump",
    "/lib/systemd/systemd-coredump",
    "/usr/bin/ps",
    "/bin/ps",
    "/usr/bin/htop",
    "/usr/bin/btop",
    "/usr/bin/top",
    "/usr/bin/lsof",
    "/usr/sbin/needrestart",
];
/// Name prefixes of units that upgrade packages automatically, in whatever language they are
/// written.
const UPGRADES: [&str; 6] = [
    "unattended-upgrades",
    "apt-daily",
    "dnf-automatic",
    "packagekit",
    "needrestart",
    "zypp-",
];
/// Programs below which a read of another process is part of an upgrade.
const PACKAGE_TOOLS: [&str; 8] = [
    "/usr/bin/apt",
    "/usr/bin/apt-get",
    "/usr/bin/dpkg",
    "/usr/bin/unattended-upgrade",
    "/usr/bin/dnf",
    "/usr/bin/rpm",
    "/usr/bin/zypper",
    "/usr/bin/pacman",
];

/// Whether an audience is the host, alone or as a URL.
fn has_host_name(audience: &[String], host: &str) -> bool {
    audience.iter().any(|audience| {
        audience.eq_ignore_ascii_case(host)
            || url::Url::parse(audience)
                .ok()
                .and_then(|url| url.host_str().map(|name| name.eq_ignore_ascii_case(host)))
                .unwrap_or(false)
    })
}

/// The credential in the text of a finding.
fn credential_label(credential: &Credential) -> String {
    match &credential.name {
        Some(name) => format!("{name} ({})", credential.id),
        None => format!("{} {}", credential.class, credential.id),
    }
}

/// The owner of the pod that a credential belongs to, if the reader is in another pod: from the
/// file's volume, or from the token's claims. A credential that is only forwarded, as by a proxy,
/// is not picked up.
fn foreign_pod_owner(used: &Use) -> Option<String> {
    let issued = (used.place.source != Source::Presented)
        .then_some(used.credential.issued_to.as_ref())
        .flatten();
    let (uid, how) = match (&used.volume_of, issued) {
        (Some(uid), _) => (uid, "in a volume of"),
        (None, Some(issued)) => (&issued.pod_uid, "that was issued to"),
        (None, None) => return None,
    };
    if used.pod_uid.as_ref() == Some(uid) {
        return None;
    }
    // A path without a uid does not contradict the names.
    if used.pod_uid.is_none()
        && used.workload.is_contained()
        && let Some(issued) = issued
    {
        let workload = &used.workload;
        let own = workload.pod.as_ref() == Some(&issued.pod)
            && workload.namespace.as_ref() == Some(&issued.namespace);
        if own || workload.is_unnamed() {
            return None;
        }
    }
    let whose = match (&used.home, issued) {
        (Some(home), _) => {
            let pod = home.pod.as_deref().unwrap_or(uid);
            let account = issued
                .map(|issued| &issued.service_account)
                .or(home.service_account.as_ref())
                .map_or_else(String::new, |name| format!(", service account {name}"));
            format!("{} ({}, pod {pod}{account})", home.key(), home.kind)
        }
        (None, Some(issued)) => issued_to_names(issued),
        (None, None) => format!("pod {uid}"),
    };
    Some(format!("{how} {whose}"))
}

/// The pod to which a token was issued, by all known names.
fn issued_to_names(issued: &IssuedTo) -> String {
    let IssuedTo {
        namespace,
        pod,
        service_account,
        ..
    } = issued;
    match (&issued.workload, issued.kind) {
        (Some(workload), Some(kind)) => {
            format!("{namespace}/{workload} ({kind}, pod {pod}, service account {service_account})")
        }
        _ => format!("{namespace}/{pod} (pod, service account {service_account})"),
    }
}

/// The owner of a credential used by another workload; empty if it is its own, or unknown.
fn issued_to_suffix(credential: &Credential, workload: &Workload) -> String {
    credential
        .issued_to
        .as_ref()
        .filter(|issued| {
            let pod = workload.pod.as_ref();
            let own = pod == Some(&issued.pod)
                && workload.namespace.as_ref() == Some(&issued.namespace)
                // The pod's name until it is resolved.
                || pod == Some(&issued.pod_uid);
            !own && (pod.is_some() || !workload.is_unnamed())
        })
        .map_or_else(String::new, |issued| {
            format!("; it was issued to {}", issued_to_names(issued))
        })
}

fn days(duration: SignedDuration) -> String {
    let hours = duration.as_hours();
    if hours < 48 {
        format!("{hours} h")
    } else {
        format!("{} d", hours / 24)
    }
}

/// A prefix for paths that exist only inside a container.
fn container_prefix(workload: &Workload) -> String {
    if !workload.is_contained() {
        return String::new();
    }
    let container = workload.container.as_deref().unwrap_or_default();
    format!("{} {container}:", workload.key())
}

/// The id of a finding is the hash of its deduplication key.
fn finding(
    time: Timestamp,
    workload: &Workload,
    process: Option<&Process>,
    credential: Option<&Credential>,
    raise: FindingDraft<'_>,
) -> Finding {
    let whose = credential
        .filter(|_| !raise.any_credential)
        .map_or("", |credential| &credential.id.0);
    let same = format!("{}\n{whose}\n{}", raise.rule.name, raise.dedup_key);
    let id = fingerprint(FingerprintKey { k0: 0, k1: 0 }, same.as_bytes());
    Finding {
        id: format!("kf-{id:016x}"),
        time,
        rule: raise.rule.name.to_owned(),
        severity: raise.severity,
        summary: raise.summary,
        evidence: raise.evidence,
        workload: workload.clone(),
        process: process.cloned(),
        credential: credential.cloned(),
        destination: raise.destination.cloned(),
        expected: raise.expected,
        references: raise
            .rule
            .references
            .iter()
            .map(ToString::to_string)
            .collect(),
        count: 1,
        first_seen: time,
        last_seen: time,
        gaps: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
