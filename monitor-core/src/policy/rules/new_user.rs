//! `new-user`: a credential presented by a workload that never presented it before, whatever the
//! destination.

use super::{AlertMeta, Event, Rule, RuleMeta};
use crate::{
    baseline::KnownUser,
    fair_cache::{FairCache, Tenant, size_of_list},
    model::{CredentialId, Finding, Hop, Severity, Source, Use, Workload},
    policy::{
        context::Context,
        decision::Decision,
        expectation::reader::ReaderMatch,
        finding::FindingBuilder,
        label::{credential_label, issued_to_names},
    },
};
use jiff::{SignedDuration, Timestamp};

static META: RuleMeta = RuleMeta {
    name: "new-user",
    description: "A credential presented by a workload that never presented it before, or by another pod than the one to which it was issued.",
    references: &[
        "OWASP NHI9:2025 NHI Reuse",
        "ATT&CK T1078.004",
        "ATT&CK T1550.001",
    ],
    alert: Some(AlertMeta {
        summary: "A workload presented a credential that it never used before: {workload}",
        command: Some("keytrail query timeline --workload {workload} --since 1h"),
    }),
};

/// Number of credentials remembered.
const CREDENTIALS_CACHED: usize = 8_192;
/// Maximum users remembered per credential: what more use is shared anyway.
const USERS_MAX: usize = 64;
/// Without a longer history, nothing is new.
const HISTORY_MIN: SignedDuration = SignedDuration::from_hours(24);
/// How long it is remembered that a workload read another one's memory.
const READ_MEMORY: SignedDuration = SignedDuration::from_hours(24);

/// A workload that presented or picked up a credential.
#[derive(Debug)]
struct User {
    workload: Box<str>,
    /// When it first presented it, if it did.
    presented: Option<Timestamp>,
    /// It picked the credential up, so that it is no surprise that it has it.
    picked_up: bool,
    /// The credential was provided to it on purpose.
    given: bool,
    /// When it read the environment or the memory of another process that holds the credential.
    read_from_other: Option<Timestamp>,
}

/// Raises credentials that a workload presents for the first time.
#[derive(Debug)]
pub struct NewUser {
    /// By fingerprint: what is known by place only cannot be presented.
    users: FairCache<u64, Vec<User>>,
}

impl Default for NewUser {
    fn default() -> Self {
        Self {
            users: FairCache::new(CREDENTIALS_CACHED),
        }
    }
}

/// Why a user is new.
enum Reason {
    IssuedToAnother,
    NeverPickedUp { after_theft: bool },
    PickedUpItself,
}

impl User {
    /// Adds what is known of the same workload, under another name or from an earlier run.
    fn add(&mut self, other: &Self) {
        self.presented = self.presented.into_iter().chain(other.presented).min();
        self.picked_up |= other.picked_up;
        self.given |= other.given;
        self.read_from_other = self.read_from_other.max(other.read_from_other);
    }
}

impl NewUser {
    /// The entry of a workload among the users of a credential; `None` if there is no room.
    fn user(&mut self, tenant: &Tenant, id: &CredentialId, workload: &str) -> Option<&mut User> {
        let id = &id.fingerprint()?;
        let users = self.users.get_or_insert_with(tenant, id, Vec::new);
        let place = match users.iter().position(|user| *user.workload == *workload) {
            Some(place) => place,
            None if users.len() >= USERS_MAX => return None,
            None => {
                users.push(User {
                    workload: workload.into(),
                    presented: None,
                    picked_up: false,
                    given: false,
                    read_from_other: None,
                });
                let size = size_of_list(users.len());
                self.users.resize(id, size);
                self.users.peek(id)?.len() - 1
            }
        };
        self.users.peek_mut(id)?.get_mut(place)
    }

    fn note_pick_up(&mut self, used: &Use) {
        if matches!(used.place.source, Source::Presented | Source::Metadata) {
            return;
        }
        // Most credentials are never presented, and have no users.
        let id = used.credential.id.fingerprint();
        if id.is_none_or(|id| !self.users.contains_key(&id)) {
            return;
        }
        let workload = used.workload.key();
        let tenant = &used.process.tenant;
        if let Some(user) = self.user(tenant, &used.credential.id, &workload) {
            user.picked_up = true;
            user.given |= used.given;
        }
    }

    fn judge_hop(&mut self, hop: &Hop, context: &Context) -> Option<Finding> {
        if is_foreign_token(hop) {
            return Some(finding(hop, &Reason::IssuedToAnother));
        }
        // Anyone can present what does not exist: it has no users until it is picked up.
        if !hop.picked_up && hop.credential.is_only_seen() {
            return None;
        }
        let workload = hop.workload.key();
        let id = &hop.credential.id;
        let fingerprint = id.fingerprint()?;
        let users = self.users.peek(&fingerprint);
        let is_full = users.is_some_and(|users| users.len() >= USERS_MAX);
        let user = self.user(&hop.process.tenant, id, &workload)?;
        let read_from_other = user
            .read_from_other
            .is_some_and(|when| hop.time.duration_since(when).abs() <= READ_MEMORY);
        // What a workload read in the memory of another, it did not pick up.
        user.picked_up |= hop.picked_up && !read_from_other;
        let (picked_up, given) = (user.picked_up, user.given);
        let is_new = user.presented.is_none();
        user.presented.get_or_insert(hop.time);
        if !is_new || is_full || hop.on_behalf_of.is_some() || is_declared(hop, context) {
            return None;
        }
        let mut presenters = self
            .users
            .peek(&fingerprint)?
            .iter()
            .filter(|user| user.presented.is_some() && *user.workload != *workload);
        let since = presenters.clone().filter_map(|user| user.presented).min()?;
        if !picked_up {
            let after_theft = read_from_other || !hop.credential.copies.is_empty();
            // An older process may have picked it up before anything was observed.
            let all_had = hop.process.start_time > since && presenters.all(|user| user.picked_up);
            return (all_had || after_theft)
                .then(|| finding(hop, &Reason::NeverPickedUp { after_theft }));
        }
        let has_history = hop.time.duration_since(since) >= HISTORY_MIN;
        (has_history && !given).then(|| finding(hop, &Reason::PickedUpItself))
    }
}

/// Whether a workload is not the pod to which a token was issued, as far as both are known.
fn is_foreign_token(hop: &Hop) -> bool {
    let Some(issued) = &hop.credential.issued_to else {
        return false;
    };
    let workload = &hop.workload;
    if workload.is_contained() && (workload.is_unnamed() || workload.is_vanished()) {
        return false;
    }
    let own = workload.pod.as_ref() == Some(&issued.pod)
        && workload.namespace.as_ref() == Some(&issued.namespace);
    // The pod's name until it is resolved.
    !own && workload.pod.as_ref() != Some(&issued.pod_uid)
}

/// Whether an expectation names the workload among the credential's readers.
fn is_declared(hop: &Hop, context: &Context) -> bool {
    let mut about = context.expectations.about(&hop.credential);
    about.any(|expectation| {
        let fit = expectation.allows_reader(&hop.workload, &hop.process.exe);
        fit.is_some_and(|fit| fit >= ReaderMatch::Unknown)
    })
}

fn finding(hop: &Hop, reason: &Reason) -> Finding {
    let (severity, text) = match reason {
        Reason::IssuedToAnother => {
            let owner = hop.credential.issued_to.as_deref().map(issued_to_names);
            let owner = owner.unwrap_or_default();
            (Severity::High, format!("it was issued to {owner}"))
        }
        Reason::NeverPickedUp { after_theft: true } => (
            Severity::High,
            "it never picked it up, and a copy was made or the memory of another process read"
                .to_owned(),
        ),
        Reason::NeverPickedUp { after_theft: false } => (
            Severity::Medium,
            "it never picked it up, and every workload that presented it before did".to_owned(),
        ),
        Reason::PickedUpItself => (
            Severity::Low,
            "it picked it up itself, and others have presented it for a day or longer".to_owned(),
        ),
    };
    let workload = hop.workload.key();
    FindingBuilder::about_hop(&META, severity, hop)
        .summary(format!(
            "{workload} presented {} to {} for the first time; {text}",
            credential_label(&hop.credential),
            hop.destination.label()
        ))
        // Once per workload, wherever it goes.
        .dedup_key(workload)
        .build()
}

impl Rule for NewUser {
    fn meta(&self) -> &'static RuleMeta {
        &META
    }

    fn needs_live_data(&self) -> bool {
        true
    }

    fn depends_on_name(&self, event: &Event<'_>) -> bool {
        matches!(event, Event::Presented(_))
    }

    fn judge(&mut self, event: &Event<'_>, context: &Context) -> Decision {
        match event {
            Event::Use(used) => {
                self.note_pick_up(used);
                Decision::Allowed
            }
            Event::ForeignRead(read) => {
                let workload = read.workload.key();
                for credential in &read.credentials {
                    let tenant = &read.process.tenant;
                    if read.workload != read.victim
                        && let Some(user) = self.user(tenant, &credential.id, &workload)
                    {
                        user.read_from_other = Some(read.time);
                    }
                }
                Decision::Allowed
            }
            Event::Presented(hop) if !context.expectations.is_learning() => {
                self.judge_hop(hop, context).into()
            }
            _ => Decision::Allowed,
        }
    }

    fn forgotten(&self) -> u64 {
        self.users.evicted()
    }

    fn rename(&mut self, old: &Workload, new: &Workload) {
        let (old, new) = (old.key(), new.key());
        for users in self.users.values_mut() {
            let Some(place) = users.iter().position(|user| *user.workload == *old) else {
                continue;
            };
            let renamed = users.swap_remove(place);
            match users.iter_mut().find(|user| *user.workload == *new) {
                Some(known) => known.add(&renamed),
                None => users.push(User {
                    workload: new.as_str().into(),
                    ..renamed
                }),
            }
        }
    }

    fn restore(&mut self, known: &[KnownUser]) {
        for row in known {
            if let Some(user) = self.user(&Tenant::default(), &row.credential, &row.workload) {
                user.presented = user.presented.into_iter().chain(row.presented).min();
                user.picked_up |= row.picked_up;
            }
        }
    }
}
