//! `harvest`: a workload, or a tree of processes, that picks up credentials of several classes in a
//! short time.

use super::{AlertMeta, Event, Rule, RuleMeta};
use crate::{
    fair_cache::{FairCache, size_of_list},
    model::{
        Ancestor, CredentialId, Evidence, Finding, Hop, Severity, Source, Use, Verdict, Workload,
    },
    policy::{
        context::Context, decision::Decision, expectation::reader::ReaderMatch,
        finding::FindingBuilder, label::credential_label, packaged::is_packaged,
    },
};
use jiff::{SignedDuration, Timestamp};

static META: RuleMeta = RuleMeta {
    name: "harvest",
    description: "Credentials of three classes that are not its own, picked up by one workload, by the children of one process or below an installer within ten minutes.",
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

/// Programs that install packages, and run what those bring along: by the name of the program, or of
/// the process where an interpreter runs it. Not those that also run a user's own commands without
/// saying so.
const INSTALLERS: [&str; 11] = [
    "npm", "pip", "pip3", "gem", "apt", "apt-get", "dpkg", "dnf", "yum", "rpm", "apk",
];
/// What npm is told, which it shows as its name, where it runs a command of the user.
const OTHER_COMMANDS: [&str; 9] = [
    "run",
    "run-script",
    "exec",
    "x",
    "start",
    "stop",
    "test",
    "t",
    "publish",
];
/// Ancestors of unrelated processes: sessions, service managers, schedulers.
const SESSIONS: [&str; 14] = [
    "systemd",
    "init",
    "sshd",
    "sshd-session",
    "login",
    "cron",
    "crond",
    "atd",
    "tmux",
    "screen",
    "containerd-shim",
    "containerd-shim-runc-v2",
    "conmon",
    "dockerd",
];
/// Programs of packages that read every file as part of their normal operation.
const READERS_OF_ALL: [&str; 16] = [
    "restic",
    "borg",
    "duplicity",
    "bup",
    "kopia",
    "clamscan",
    "clamd",
    "freshclam",
    "aide",
    "updatedb",
    "plocate",
    "lynis",
    "rkhunter",
    "trivy",
    "kubelet",
    "rsnapshot",
];
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
    /// By workload, and by the first process of a tree.
    by_harvester: FairCache<String, Vec<RecentPickUp>>,
    /// Harvested credentials: by which workload, and when.
    harvested: FairCache<CredentialId, (String, Timestamp)>,
}

impl Default for Harvest {
    fn default() -> Self {
        Self {
            by_harvester: FairCache::new(ENTRIES_MAX),
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
    let is_minted = used.place.source == Source::Metadata;
    (used.given && !is_minted)
        || matches!(used.place.source, Source::Presented | Source::Environment)
        || own_pod
        || reads_all(used)
        || is_reader()
}

/// Whether the reader is a program of a package that reads every file, such as a backup.
fn reads_all(used: &Use) -> bool {
    let exe = &used.process.exe;
    let name = exe.rsplit('/').next().unwrap_or_default();
    !used.workload.is_contained()
        && used.untrusted.is_none()
        && is_packaged(exe)
        && READERS_OF_ALL.contains(&name)
}

/// Whether a process installs packages. npm and others set the name of their process to what they
/// were told.
fn is_installer(ancestor: &Ancestor) -> bool {
    let program = ancestor.exe.rsplit('/').next().unwrap_or_default();
    let mut words = ancestor.comm.split_whitespace();
    let name = words.next().unwrap_or_default();
    let told = words.next();
    let known = |name: &str| INSTALLERS.contains(&name);
    (known(program) || known(name)) && !told.is_some_and(|word| OTHER_COMMANDS.contains(&word))
}

/// Who picks up credentials.
struct Harvester {
    key: String,
    /// As shown.
    name: String,
    /// Below the install script of a package.
    installs: bool,
}

/// The workload, and the processes that the reader belongs to: all below an installer, or else the
/// children of one parent. On a terminal, a user starts unrelated programs.
fn harvesters(used: &Use) -> Vec<Harvester> {
    let workload = used.workload.key();
    let mut all = vec![Harvester {
        key: workload.clone(),
        name: workload,
        installs: false,
    }];
    let ancestors = &used.process.ancestors;
    let is_session = |ancestor: &&Ancestor| {
        let program = ancestor.exe.rsplit('/').next().unwrap_or_default();
        ancestor.pid == 1 || SESSIONS.contains(&program)
    };
    let below = || {
        ancestors
            .iter()
            .take_while(|ancestor| !is_session(ancestor))
    };
    let installer = below().find(|ancestor| is_installer(ancestor));
    let parent = || below().next().filter(|_| used.login.is_none());
    if let Some(root) = installer.or_else(parent) {
        all.push(Harvester {
            key: format!("process {} {}", root.pid, root.exe),
            name: format!("what {} (pid {}) started", root.comm, root.pid),
            installs: installer.is_some(),
        });
    }
    all
}

impl Harvest {
    /// Records a pick-up; returns the classes if it completes a harvest.
    fn record(&mut self, used: &Use, by: &Harvester) -> Option<Vec<String>> {
        let tenant = &used.process.tenant;
        let known = self
            .by_harvester
            .get_or_insert_with(tenant, &by.key, Vec::new);
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
        self.by_harvester.resize(&by.key, size_of_list(len));
        if classes.len() < HARVEST_CLASSES {
            return None;
        }
        for taken in self.by_harvester.peek(&by.key).into_iter().flatten() {
            let harvest = (by.name.clone(), used.time);
            self.harvested
                .insert(tenant, taken.credential.clone(), harvest);
        }
        Some(classes)
    }

    fn judge_use(&mut self, used: &Use, context: &Context) -> Option<Finding> {
        if is_own(used, context) {
            return None;
        }
        let all = harvesters(used);
        let installs = all.iter().any(|by| by.installs);
        // Every one of them remembers it; the first that completes a harvest is named.
        let complete: Vec<_> = all
            .into_iter()
            .filter_map(|by| Some((self.record(used, &by)?, by)))
            .collect();
        let (classes, by) = complete.into_iter().next()?;
        // In a container for development, a user's own tools read his files as on the host.
        let is_apart = used.workload.is_contained() && !used.in_mounted_home;
        let severity = if is_apart || installs {
            Severity::High
        } else {
            Severity::Low
        };
        Some(
            FindingBuilder::about_use(&META, severity, used)
                .summary(format!(
                    "{} picked up credentials of {} classes within {} minutes: {}",
                    by.name,
                    classes.len(),
                    HARVEST_WINDOW.as_mins(),
                    classes.join(", ")
                ))
                // One harvest, rather than one for each of its credentials.
                .dedup_key(by.key)
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
        self.by_harvester.evicted() + self.harvested.evicted()
    }

    fn rename(&mut self, old: &Workload, new: &Workload) {
        let (old, new) = (old.key(), new.key());
        if let Some((tenant, taken)) = self.by_harvester.remove(&old) {
            self.by_harvester
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
