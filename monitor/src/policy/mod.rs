//! The policy: says of uses and hops whether they should be there. Pure, as the trail is.

mod blind;
pub mod document;
mod harvest;
pub mod rules;
pub mod suggest;
pub mod trial;

use crate::{
    credential::catalog::Catalog,
    model::{
        ANOTHER, Credential, CredentialId, Destination, Evidence, Finding, ForeignRead, Hop,
        IssuedTo, Lifetime, Look, Mint, NameSource, Named, Process, Role, Severity, Source,
        Untrusted, Use, Verdict, Workload, WorkloadKind,
    },
    recent::Recent,
};
use document::{Document, Expectation, Fit, Mode};
use harvest::Harvests;
use jiff::{SignedDuration, Timestamp};
use monitor_common::fingerprint::{Key, fingerprint};
use rules::{
    BLIND, CLEARTEXT, CREDENTIAL_COPIED, EXPIRED, FOREIGN_PROCESS_READ, HARVEST, HUMAN_USE,
    LONG_LIVED, REVOKED, Rule, UNEXPECTED_HOP, UNEXPECTED_MINT, UNEXPECTED_READER,
    UNTRUSTED_BINARY,
};
use std::{net::IpAddr, sync::Arc};

pub use rules::RULES;

/// How the Kubernetes API is called as an object of its cluster.
const API_OBJECT: &str = "kubernetes.default.svc";

/// Processes that keep the volumes of pods: kubelets, also those that are part of a whole distribution.
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

/// Places remembered of one credential.
const PLACES: usize = 64;

/// Credentials that are remembered, at least, and at most twice as many.
const SEEN: usize = 16_384;

/// Where a credential was seen, for `credential-copied`.
#[derive(Debug, Default)]
struct Seen {
    files: Vec<Box<str>>,
    workloads: Vec<Box<str>>,
}

/// Added to what is said of a workload whose whole name nobody has told.
const NOT_TOLD: &str = " by what is known of its name; the rest was not told";

/// Whether somebody may do what he did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judged {
    Fine,
    /// It hangs on a name that has not been told yet; the finding is for when none comes.
    Doubtful(Finding),
    Breaks(Finding),
}

/// The expectations in force, and what has been seen.
#[derive(Debug)]
pub struct Policy {
    document: Document,
    catalog: Arc<Catalog>,
    seen: Recent<CredentialId, Seen>,
    harvests: Harvests,
}

/// One finding, before it is counted.
struct Raise<'a> {
    rule: Rule,
    severity: Severity,
    summary: String,
    evidence: Option<Evidence>,
    destination: Option<&'a crate::model::Destination>,
    expected: Vec<String>,
    /// What makes it the same finding again, besides rule and credential.
    same: String,
    /// It is one finding, whatever the credential.
    for_all: bool,
}

impl Policy {
    pub fn new(document: Document, catalog: Arc<Catalog>) -> Self {
        Self {
            document,
            catalog,
            seen: Recent::new(SEEN),
            harvests: Harvests::default(),
        }
    }

    /// Takes other expectations; what has been seen stays.
    pub fn replace(&mut self, document: Document, catalog: Arc<Catalog>) {
        self.document = document;
        self.catalog = catalog;
    }

    /// Gives a credential the name and owner that its expectation has.
    pub fn name(&self, credential: &mut Credential) {
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

    /// Gives the credentials of a minting the names that their expectations have.
    pub fn name_mint(&self, mint: &mut Mint) {
        for credential in [&mut mint.presented, &mut mint.minted]
            .into_iter()
            .flatten()
        {
            self.name(credential);
        }
    }

    /// The authenticator at a destination: one that is written, or one of the catalog.
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

    /// A credential that was presented to an authenticator is a proof of who somebody is, whatever
    /// came back.
    pub fn proof(&self, hop: &Hop) -> Option<Mint> {
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

    /// A credential obtained by a workload that is not expected to.
    pub fn judge_mint(&self, mint: &Mint) -> Judged {
        let Some(minted) = &mint.minted else {
            return Judged::Fine;
        };
        if self.document.mode == Some(Mode::Learn) {
            return Judged::Fine;
        }
        let at = &mint.authenticator;
        let exe = &mint.process.exe;
        let here = self
            .document
            .authenticators
            .iter()
            .filter(|authenticator| authenticator.is_at(at));
        // Who may mint is written with the authenticator, or with the credential that it mints.
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
            .unwrap_or(Fit::Yes);
        if fit == Fit::Yes && !wrong_role {
            return Judged::Fine;
        }
        let readers = here
            .flat_map(|known| &known.readers)
            .chain(
                self.expectations(minted)
                    .flat_map(|expectation| &expectation.readers),
            )
            .map(document::Reader::text)
            .collect();
        let workload = mint.workload.key();
        let name = self.authenticator(at).unwrap_or("an authenticator");
        let summary = if wrong_role {
            format!(
                "{workload} got {}, of role {}, from {name} at {}, which is not to mint it",
                shown(minted),
                minted.role,
                at.label()
            )
        } else {
            format!(
                "{workload} got {} from {name} at {}, and is not expected to",
                shown(minted),
                at.label()
            )
        };
        let raise = |severity, summary| {
            finding(
                mint.time,
                &mint.workload,
                Some(&mint.process),
                Some(minted),
                Raise {
                    rule: UNEXPECTED_MINT,
                    severity,
                    summary,
                    evidence: None,
                    destination: Some(at),
                    expected: readers,
                    same: format!("{workload} {}", at.label()),
                    for_all: false,
                },
            )
        };
        if fit == Fit::Unknown && !wrong_role {
            return Judged::Doubtful(raise(Severity::Low, format!("{summary}{NOT_TOLD}")));
        }
        Judged::Breaks(raise(Severity::High, summary))
    }

    /// Addresses at which credentials are minted.
    pub fn minting_addresses(&self) -> Vec<IpAddr> {
        let written = self.document.authenticators.iter();
        self.catalog
            .metadata()
            .iter()
            .copied()
            .chain(written.flat_map(document::Authenticator::addresses))
            .collect()
    }

    /// What a use breaks, whoever it was that used it.
    pub fn judge_use(&mut self, used: &Use) -> Vec<Finding> {
        let mut findings = Vec::new();
        findings.extend(self.untrusted(used));
        findings.extend(self.human(used));
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

    /// A use after the time at which an expectation says that it was revoked; each workload and each
    /// destination is news.
    fn revoked<'a>(
        &self,
        credential: &Credential,
        time: Timestamp,
        workload: &Workload,
        destination: Option<&'a Destination>,
    ) -> Option<Raise<'a>> {
        let revoked = self
            .expectations(credential)
            .filter_map(|expectation| expectation.revoked_at)
            .min()
            .filter(|revoked| time > *revoked)?;
        let (who, what) = (workload.key(), shown(credential));
        let to = destination.map(Destination::label);
        let summary = match &to {
            Some(to) => format!("{who} used {what} with {to}, and it was revoked at {revoked}"),
            None => format!("{who} picked up {what}, which was revoked at {revoked}"),
        };
        Some(Raise {
            rule: REVOKED,
            severity: Severity::Critical,
            summary,
            evidence: None,
            destination,
            expected: Vec::new(),
            same: format!("{who} {}", to.unwrap_or_default()),
            for_all: false,
        })
    }

    /// Whether whoever used a credential may.
    pub fn judge_reader(&self, used: &Use) -> Judged {
        let credential = &used.credential;
        let mut expected = Vec::new();
        let mut written = None;
        for expectation in self.expectations(credential) {
            let fit = expectation.allows_reader(&used.workload, &used.process.exe);
            if fit == Some(Fit::Yes) {
                return Judged::Fine;
            }
            if fit.is_some() {
                expected.extend(expectation.readers.iter().map(document::Reader::text));
            }
            written = written.max(fit);
        }
        if self.document.mode == Some(Mode::Learn) {
            return Judged::Fine;
        }
        let reader = used.workload.key();
        let what = shown(credential);
        let (severity, summary) = match written {
            Some(fit) => {
                let (severity, and) = match fit {
                    Fit::Unknown => (Severity::Low, NOT_TOLD),
                    _ => (Severity::High, ""),
                };
                let summary =
                    format!("{reader} read {what}, whose expected readers do not include it{and}");
                (severity, summary)
            }
            None => {
                let Some(owner) = anothers(used) else {
                    return Judged::Fine;
                };
                let keeper = used.process.exe.rsplit('/').next().unwrap_or_default();
                // In a container anything may have such a name.
                let on_host = used.pod_uid.is_none()
                    && !used.workload.is_contained()
                    && used.untrusted.is_none();
                if on_host && VOLUME_KEEPERS.contains(&keeper) {
                    return Judged::Fine;
                }
                (Severity::High, format!("{reader} read {what} {owner}"))
            }
        };
        let mut found = finding(
            used.time,
            &used.workload,
            Some(&used.process),
            Some(credential),
            Raise {
                rule: UNEXPECTED_READER,
                severity,
                summary,
                evidence: None,
                destination: None,
                expected,
                same: reader,
                for_all: false,
            },
        );
        found.count = used.count.max(1);
        if written == Some(Fit::Unknown) {
            Judged::Doubtful(found)
        } else {
            Judged::Breaks(found)
        }
    }

    /// The same credential in another file, or in another container, pod or unit. A host's
    /// programs that read one file share it; a variable of the process that read the file, or of
    /// its children, is the same credential on its way. Where somebody wrote that a workload reads it, or that it
    /// is in a file, it was brought there on purpose.
    fn copied(&mut self, used: &Use) -> Option<Finding> {
        if used.volume_of.is_some() || used.credential.id.0.starts_with("loc-") {
            return None;
        }
        let (mut a_reader, mut at_home, mut written) = (false, false, false);
        for expectation in self.expectations(&used.credential) {
            let fit = expectation.allows_reader(&used.workload, &used.process.exe);
            // Whoever turns out to be another than was written is found for that.
            a_reader |= fit.is_some_and(|fit| fit >= Fit::Unknown);
            at_home |= expectation.names_file(&used.place.place);
            written |= fit.is_some();
        }
        let seen = self.seen.entry(used.credential.id.clone());
        let mut what = None;
        if used.place.source == Source::File {
            let file = format!("{}{}", inside(&used.workload), used.place.place);
            if !seen.files.iter().any(|known| **known == *file) && seen.files.len() < PLACES {
                // What is mounted into a container is under a name of its own there.
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
                && seen.workloads.len() < PLACES
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
            Raise {
                rule: CREDENTIAL_COPIED,
                severity: if written {
                    Severity::Medium
                } else {
                    Severity::Low
                },
                summary: format!("{} was picked up in {what}", shown(&used.credential)),
                evidence: None,
                destination: None,
                expected: Vec::new(),
                same: format!("{} {}", used.place.place, used.workload.key()),
                for_all: false,
            },
        ))
    }

    /// Read by an executable that nobody installed.
    fn untrusted(&self, used: &Use) -> Option<Finding> {
        let why = used.untrusted?;
        let (severity, what) = match why {
            Untrusted::Memory => (Severity::High, "lives in memory"),
            Untrusted::Deleted => (Severity::High, "was deleted"),
            Untrusted::Added => (Severity::High, "is not in its container's image"),
            Untrusted::Temporary => (Severity::Low, "lies in a temporary directory"),
        };
        let exe = &used.process.exe;
        Some(finding(
            used.time,
            &used.workload,
            Some(&used.process),
            Some(&used.credential),
            Raise {
                rule: UNTRUSTED_BINARY,
                severity,
                summary: format!(
                    "{} picked up {} with {exe}, which {what}",
                    used.workload.key(),
                    shown(&used.credential)
                ),
                evidence: None,
                destination: None,
                expected: Vec::new(),
                same: format!("{} {exe}", used.workload.key()),
                for_all: false,
            },
        ))
    }

    /// Whether somebody wrote that a reader may.
    fn is_reader(&self, used: &Use) -> bool {
        self.expectations(&used.credential).any(|expectation| {
            expectation.allows_reader(&used.workload, &used.process.exe) == Some(Fit::Yes)
        })
    }

    /// A workload is called something else from now on.
    pub fn rename(&mut self, old: &Workload, new: &Workload) {
        let (old_key, old_inside) = (old.key(), inside(old));
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
                    *file = (inside(new) + path).into();
                }
            }
        }
    }

    /// A machine's credential read from a terminal: one outside the home of the person.
    fn human(&self, used: &Use) -> Option<Finding> {
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
            Raise {
                rule: HUMAN_USE,
                severity: if written {
                    Severity::Medium
                } else {
                    Severity::Low
                },
                summary: format!(
                    "{} at {} was read from a terminal by uid {}",
                    shown(&used.credential),
                    used.place.place,
                    login.uid
                ),
                evidence: None,
                destination: None,
                expected: Vec::new(),
                same: login.uid.to_string(),
                for_all: false,
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
                "{} is {} old; {} was expected at most",
                shown(credential),
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
                "{} is static, and there is a short-lived form of {}",
                shown(credential),
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
            Raise {
                rule: LONG_LIVED,
                severity: Severity::Low,
                summary,
                evidence: None,
                destination: None,
                expected: Vec::new(),
                same: String::new(),
                for_all: false,
            },
        ))
    }

    /// A look at the environment or the memory of a process that holds a credential.
    pub fn judge_foreign(&self, read: &ForeignRead) -> Option<Finding> {
        let same_workload = read.workload == read.victim;
        let host =
            read.workload.kind == WorkloadKind::Host || read.workload.kind == WorkloadKind::Unit;
        // Who started a process gave it its environment; a package manager asks which programs
        // still run from files that it replaced.
        let upgrade = || {
            let unit = read.workload.unit.as_deref().unwrap_or_default();
            // Anybody may have a unit of that name below his own manager.
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
            Look::Trace => "the memory, by tracing it,",
        };
        Some(finding(
            read.time,
            &read.workload,
            Some(&read.process),
            Some(&read.credential),
            Raise {
                rule: FOREIGN_PROCESS_READ,
                severity: if same_workload || read.ancestor || duty {
                    Severity::Low
                } else {
                    Severity::High
                },
                summary: format!(
                    "{} looked into {what} of {} (pid {}, {}), which holds {}",
                    read.workload.key(),
                    read.victim.key(),
                    read.victim_process.pid,
                    read.victim_process.exe,
                    shown(&read.credential)
                ),
                evidence: Some(read.evidence),
                destination: None,
                expected: Vec::new(),
                same: format!("{} {}", read.workload.key(), read.victim.key()),
                for_all: false,
            },
        ))
    }

    /// Whether a credential may go to a destination, by each name that is said of it: the head of a
    /// request may name another server than the connection, and both have to be right; of the names
    /// that name servers gave the address, one.
    fn allows(&self, credential: &Credential, destination: &Destination) -> bool {
        let by = |named: &Named| {
            named.name != ANOTHER
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
        // What the cluster has there is what is there, whatever it is called on the way. Anybody may have
        // a service: only the API's own is a home, and others are expected where somebody wrote them.
        let object = || {
            let there = Destination {
                name: destination.object.clone().filter(|name| name != ANOTHER),
                name_source: NameSource::Kubernetes,
                ..destination.clone()
            };
            there.name.is_some() && self.allows_name(credential, &there)
        };
        by_names || object()
    }

    /// The same for the name that the destination has.
    fn allows_name(&self, credential: &Credential, destination: &Destination) -> bool {
        let host = host(destination);
        let stranger = destination.name_source == NameSource::Kubernetes && host != API_OBJECT;
        (!stranger && self.catalog.at_home(&credential.class, &host) == Some(true))
            || names_host(&credential.audience, &host)
            || self
                .expectations(credential)
                .flat_map(|expectation| &expectation.destinations)
                .any(|pattern| pattern.matches(destination))
            || self.document.authenticators.iter().any(|authenticator| {
                self.takes(authenticator, credential) && authenticator.is_at(destination)
            })
    }

    /// Whether a credential may go to an authenticator: whoever proves who he is goes there first, and then with what
    /// was minted there, unless it is somebody else's by its home.
    fn takes(&self, authenticator: &document::Authenticator, credential: &Credential) -> bool {
        credential.role == Role::Identity
            || (authenticator.may_mint(credential.role) && !self.has_a_home(credential))
    }

    /// Whether a credential belongs somewhere, so that anywhere else is wrong.
    fn has_a_home(&self, credential: &Credential) -> bool {
        !credential.unmarked
            && !self.catalog.is_self_hosted(&credential.class)
            && !self.catalog.home(&credential.class).is_empty()
    }

    /// Where a credential may go, for a person to read.
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
            if self.takes(authenticator, credential) {
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

    /// The verdict on a hop, and what it breaks.
    pub fn judge_hop(&self, hop: &Hop) -> (Verdict, Vec<Finding>) {
        let (verdict, mut findings) = self.judge_destination(hop);
        if verdict == Verdict::Unexpected && self.document.mode != Some(Mode::Learn) {
            findings.extend(self.taken_out(hop));
        }
        (verdict, findings)
    }

    fn judge_destination(&self, hop: &Hop) -> (Verdict, Vec<Finding>) {
        let credential = &hop.credential;
        let destination = &hop.destination;
        let allowed = self.allows(credential, destination);
        // Which of several it was is not known: all of them would have to be wrong. And what a cluster
        // has there may be right.
        let untold = |there: &Destination| there.name.is_none() && there.is_untold();
        let excused = hop
            .others
            .iter()
            .any(|other| self.allows(credential, other) != allowed || untold(other))
            || (!allowed && (untold(destination) || is_kubelet(credential, destination)))
            // An address that no name server gave for the name, where they gave others: a lie, or an old answer.
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
        let raise = |raise: Raise<'_>| {
            // What is told as it is presented only was not told before.
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
        if verdict == Verdict::Unexpected && self.document.mode != Some(Mode::Learn) {
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
                    "to one of several destinations, perhaps"
                }
                Evidence::Presented => "to",
                _ => "and connected to",
            };
            findings.push(raise(Raise {
                rule: UNEXPECTED_HOP,
                severity,
                summary: format!(
                    "{} {verb} {} {action} {}{}",
                    hop.workload.key(),
                    shown(credential),
                    destination.label(),
                    and_whose(credential, &hop.workload)
                ),
                evidence: Some(hop.evidence),
                destination: Some(destination),
                expected,
                same: format!("{} {}", hop.workload.key(), destination.label()),
                for_all: false,
            }));
        }
        if hop.clear
            && !destination.address.is_loopback()
            && !self.catalog.is_metadata(destination.address)
        {
            findings.push(raise(Raise {
                rule: CLEARTEXT,
                severity: Severity::High,
                summary: format!(
                    "{} sent {} in clear to {}{}",
                    hop.workload.key(),
                    shown(credential),
                    destination.label(),
                    and_whose(credential, &hop.workload)
                ),
                evidence: Some(hop.evidence),
                destination: Some(destination),
                expected: Vec::new(),
                same: format!("{} {}", hop.workload.key(), destination.label()),
                for_all: false,
            }));
        }
        if proven
            && let Some(revoked) =
                self.revoked(credential, hop.time, &hop.workload, Some(destination))
        {
            findings.push(raise(Raise {
                evidence: Some(hop.evidence),
                ..revoked
            }));
        }
        if let Some(expiry) = credential.expires_at
            && hop.time > expiry
            && proven
        {
            findings.push(raise(Raise {
                rule: EXPIRED,
                severity: if hop.evidence == Evidence::Presented {
                    Severity::Medium
                } else {
                    Severity::Low
                },
                summary: format!(
                    "{} used {}, which expired at {expiry}, with {}",
                    hop.workload.key(),
                    shown(credential),
                    destination.label()
                ),
                evidence: Some(hop.evidence),
                destination: Some(destination),
                expected: Vec::new(),
                same: format!("{} {}", hop.workload.key(), destination.label()),
                for_all: false,
            }));
        }
        (verdict, findings)
    }
}

/// Whether name servers gave a name other addresses, and the address no name.
fn is_unconfirmed(named: &Named) -> bool {
    named.name_source == NameSource::Dns && named.name == ANOTHER
}

/// Whether a service account's token goes to a kubelet, or to the API by its node: both ask the API whose it is, and
/// who scrapes nodes has nothing else to show.
fn is_kubelet(credential: &Credential, destination: &Destination) -> bool {
    // What the cluster says is there, and not what somebody calls it.
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

/// Programs of the host whose duty is to look into others.
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
/// Units that upgrade packages by themselves, with whatever interpreter they are written for: what their names begin
/// with.
const UPGRADES: [&str; 6] = [
    "unattended-upgrades",
    "apt-daily",
    "dnf-automatic",
    "packagekit",
    "needrestart",
    "zypp-",
];
/// Programs below which a look into others is part of an upgrade.
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
fn names_host(audience: &[String], host: &str) -> bool {
    audience.iter().any(|audience| {
        audience.eq_ignore_ascii_case(host)
            || url::Url::parse(audience)
                .ok()
                .and_then(|url| url.host_str().map(|name| name.eq_ignore_ascii_case(host)))
                .unwrap_or(false)
    })
}

/// How a credential is called in a sentence.
fn shown(credential: &Credential) -> String {
    match &credential.name {
        Some(name) => format!("{name} ({})", credential.id),
        None => format!("{} {}", credential.class, credential.id),
    }
}

/// Whose pod's a credential is, where the reader is in no such pod: by the volume that the file is in,
/// or by what the token says. What is only passed on, as a proxy does, is not picked up.
fn anothers(used: &Use) -> Option<String> {
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
    // A path that has no uid says nothing against the names.
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
        (None, Some(issued)) => names_of(issued),
        (None, None) => format!("pod {uid}"),
    };
    Some(format!("{how} {whose}"))
}

/// Whom a token was issued to, by all the names that are known.
fn names_of(issued: &IssuedTo) -> String {
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

/// Whose a credential is that somebody else used; empty where it is his own, or nobody knows.
fn and_whose(credential: &Credential, workload: &Workload) -> String {
    credential
        .issued_to
        .as_ref()
        .filter(|issued| {
            let pod = workload.pod.as_ref();
            let own = pod == Some(&issued.pod)
                && workload.namespace.as_ref() == Some(&issued.namespace)
                // So it is called until it has a name.
                || pod == Some(&issued.pod_uid);
            !own && (pod.is_some() || !workload.is_unnamed())
        })
        .map_or_else(String::new, |issued| {
            format!("; it was issued to {}", names_of(issued))
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

/// What stands before a path that only a container has.
fn inside(workload: &Workload) -> String {
    if !workload.is_contained() {
        return String::new();
    }
    let container = workload.container.as_deref().unwrap_or_default();
    format!("{} {container}:", workload.key())
}

/// The id of a finding is the hash of what makes it the same again.
fn finding(
    time: Timestamp,
    workload: &Workload,
    process: Option<&Process>,
    credential: Option<&Credential>,
    raise: Raise<'_>,
) -> Finding {
    let whose = credential
        .filter(|_| !raise.for_all)
        .map_or("", |credential| &credential.id.0);
    let same = format!("{}\n{whose}\n{}", raise.rule.name, raise.same);
    let id = fingerprint(Key { k0: 0, k1: 0 }, same.as_bytes());
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
