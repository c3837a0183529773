//! Known credentials: what was learned about one applies wherever it appears again.

use jiff::Timestamp;
use monitor_core::{
    catalog::{Catalog, is_general},
    fair_cache::{FairCache, Tenant, size_of_list},
    model::{Credential, CredentialId, Lifetime, Place, Role, Source},
};
use monitor_parse::credential::FoundSecret;
use std::sync::Arc;

/// Number of credentials cached.
const CREDENTIALS_CACHED: usize = 16_384;
/// Maximum places remembered per credential.
const PLACES_MAX: usize = 32;

/// Credentials by id and by the fingerprints of their other forms. Each workload and user has a share:
/// who invents credentials displaces none of others.
#[derive(Debug)]
pub struct KnownCredentials {
    /// From the fingerprint of another form of a credential to its id.
    aliases: FairCache<u64, CredentialId>,
    /// Recognised later by fingerprint only.
    picked_up: FairCache<CredentialId, PickedUp>,
    /// As `picked_up`, for credentials seen only in use or in a response: anyone can invent those.
    only_seen: FairCache<CredentialId, Arc<Credential>>,
    /// Fingerprints of secrets that became known since they were last taken, and for whom.
    new_secrets: Vec<(Tenant, u64)>,
}

/// A credential that was picked up.
#[derive(Debug)]
struct PickedUp {
    credential: Arc<Credential>,
    /// When it became known.
    since: Timestamp,
}

impl Default for KnownCredentials {
    fn default() -> Self {
        Self {
            aliases: FairCache::new(CREDENTIALS_CACHED),
            picked_up: FairCache::new(CREDENTIALS_CACHED),
            only_seen: FairCache::new(CREDENTIALS_CACHED),
            new_secrets: Vec::new(),
        }
    }
}

impl KnownCredentials {
    pub fn alias(&mut self, tenant: &Tenant, fingerprint: u64, id: &CredentialId) {
        self.aliases.insert(tenant, fingerprint, id.clone());
    }

    /// Credentials and forms of them that were forgotten for lack of room, since the start.
    pub fn evicted(&self) -> u64 {
        self.aliases.evicted() + self.picked_up.evicted() + self.only_seen.evicted()
    }

    pub fn has_alias(&self, fingerprint: u64) -> bool {
        self.aliases.contains_key(&fingerprint)
    }

    /// The id of a secret, in whatever form it appears.
    pub fn id_of(&mut self, fingerprint: u64) -> CredentialId {
        self.aliases
            .get(&fingerprint)
            .cloned()
            .unwrap_or_else(|| CredentialId::from_fingerprint(fingerprint))
    }

    /// The credential of a secret that was found, and remembers it. `written` is when the file at the
    /// place was last changed.
    pub fn credential(
        &mut self,
        tenant: &Tenant,
        catalog: &Catalog,
        found: &FoundSecret,
        place: &Place,
        written: Option<Timestamp>,
    ) -> Arc<Credential> {
        let id = self.id_of(found.fingerprint);
        for alias in &found.aliases {
            self.alias(tenant, *alias, &id);
        }
        let mut class = found.class.clone();
        let mut facts = found.facts.clone();
        let mut label = found.label.clone();
        let mut sources = vec![place.clone()];
        let mut copies = Vec::new();
        let mut marked = found.marked;
        let is_copy = self.is_copy(&id, place, written);
        // A file tells more than a variable, and an expectation may name any of its places.
        if let Some(known) = self.known(&id) {
            add_places(&mut sources, &known.sources);
            if is_copy {
                // In the order of the places: what is forgotten as a copy is forgotten as a place.
                copies.push(place.clone());
                label.clone_from(&known.label);
                facts.audience.clone_from(&known.audience);
            }
            add_places(&mut copies, &known.copies);
            // What proves a class goes before what a place suggests, and of two suggestions the first
            // counts: whoever writes a secret to another place does not change what it is.
            let by_known = ClassProof::of_known(catalog, &known);
            if by_known >= ClassProof::of_found(&class, found.marked) {
                class.clone_from(&known.class);
                marked |= by_known == ClassProof::Marked;
            }
            // The mark is in the secret that gives the id, not in its other half.
            let is_other_half = id != CredentialId::from_fingerprint(found.fingerprint);
            marked |= is_other_half && class == known.class && !known.unmarked;
            facts.issued_at = facts.issued_at.or(known.issued_at);
            facts.expires_at = facts.expires_at.or(known.expires_at);
            facts.issued_to = facts.issued_to.or_else(|| known.issued_to.clone());
            for audience in &known.audience {
                if facts.audience.len() < PLACES_MAX && !facts.audience.contains(audience) {
                    facts.audience.push(audience.clone());
                }
            }
            label = label.or_else(|| known.label.clone());
        }
        let known = catalog.class(&class);
        let (role, lifetime) = known.map_or((Role::Access, Lifetime::Static), |class| {
            (class.role, class.lifetime)
        });
        let unmarked = !marked && catalog.has_home(&class);
        let lifetime = if facts.expires_at.is_some() && class != "private-key" {
            Lifetime::ShortLived
        } else {
            lifetime
        };
        let credential = Arc::new(Credential {
            id: id.clone(),
            name: None,
            class,
            role,
            lifetime,
            issued_at: facts.issued_at,
            expires_at: facts.expires_at,
            owner: None,
            label,
            audience: facts.audience,
            issued_to: facts.issued_to,
            unmarked,
            sources,
            copies,
        });
        let made_up = matches!(place.source, Source::Presented | Source::Metadata);
        if made_up && !self.picked_up.contains_key(&id) {
            insert(&mut self.only_seen, tenant, &credential);
        } else if self.pick_up(tenant, &credential, Timestamp::now()) {
            let new = id.fingerprint();
            self.new_secrets
                .extend(new.map(|fingerprint| (tenant.clone(), fingerprint)));
        }
        credential
    }

    /// Applies what is already known about a credential, whatever the place suggests.
    pub fn as_known(
        &mut self,
        tenant: &Tenant,
        catalog: &Catalog,
        id: &CredentialId,
        found: &FoundSecret,
        place: &Place,
    ) -> Arc<Credential> {
        match self.known(id) {
            Some(mut known) if !is_general(&known.class) => {
                let changed = Arc::make_mut(&mut known);
                let before = std::mem::replace(&mut changed.sources, vec![place.clone()]);
                add_places(&mut changed.sources, &before);
                known
            }
            _ => self.credential(tenant, catalog, found, place, None),
        }
    }

    /// Restores what was known before the agent started: a program that holds a credential does not
    /// read it again.
    pub fn remember(&mut self, credentials: Vec<(Credential, Timestamp)>) {
        for (mut credential, first_seen) in credentials {
            // Names come from the expectations in force now.
            (credential.name, credential.owner) = (None, None);
            let credential = Arc::new(credential);
            let tenant = Tenant::default();
            if credential.is_only_seen() {
                insert(&mut self.only_seen, &tenant, &credential);
            } else {
                self.pick_up(&tenant, &credential, first_seen);
                let known = credential.id.fingerprint();
                self.new_secrets
                    .extend(known.map(|fingerprint| (tenant, fingerprint)));
            }
        }
    }

    /// Remembers a credential that was picked up; returns whether it is new. A known one keeps its
    /// time.
    fn pick_up(&mut self, tenant: &Tenant, credential: &Arc<Credential>, now: Timestamp) -> bool {
        let id = &credential.id;
        let since = self.picked_up.peek(id).map(|known| known.since);
        let known = PickedUp {
            credential: Arc::clone(credential),
            since: since.unwrap_or(now),
        };
        self.picked_up.insert(tenant, id.clone(), known);
        self.picked_up
            .resize(id, size_of_list(credential.sources.len()));
        since.is_none()
    }

    /// Whether a file is one to which a credential was written after it was known elsewhere.
    fn is_copy(&mut self, id: &CredentialId, place: &Place, written: Option<Timestamp>) -> bool {
        let Some(known) = self.picked_up.get(id) else {
            return false;
        };
        // It stays one, however often it is read.
        let is_copy = known.credential.copies.contains(place);
        let is_new = place.source == Source::File && !known.credential.sources.contains(place);
        is_copy || (is_new && written.is_some_and(|written| written > known.since))
    }

    /// Adds places to a credential that was picked up, also for later observations of it.
    pub fn is_also_at(&mut self, credential: &mut Arc<Credential>, places: &[Place]) {
        add_places(&mut Arc::make_mut(credential).sources, places);
        if self.picked_up.contains_key(&credential.id) {
            // It stays with whom it was picked up first.
            self.pick_up(&Tenant::default(), credential, Timestamp::now());
        }
    }

    /// Fingerprints of secrets that were picked up for the first time since the last call, and by whom.
    pub fn take_new_secrets(&mut self) -> Vec<(Tenant, u64)> {
        std::mem::take(&mut self.new_secrets)
    }

    pub fn is_known(&self, id: &CredentialId) -> bool {
        self.picked_up.contains_key(id) || self.only_seen.contains_key(id)
    }

    pub fn known(&mut self, id: &CredentialId) -> Option<Arc<Credential>> {
        match self.picked_up.get(id) {
            Some(known) => Some(Arc::clone(&known.credential)),
            None => self.only_seen.get(id).cloned(),
        }
    }
}

/// What a class is concluded from, from weak to strong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum ClassProof {
    /// It is a secret.
    General,
    /// A header in which it was presented, or a field of an answer.
    Seen,
    /// The place at which it was picked up.
    Place,
    /// The secret has its issuer's mark.
    Marked,
}

impl ClassProof {
    fn of_known(catalog: &Catalog, known: &Credential) -> Self {
        let has_home = catalog.has_home(&known.class);
        if is_general(&known.class) {
            Self::General
        } else if has_home && !known.unmarked {
            Self::Marked
        } else if known.is_only_seen() {
            Self::Seen
        } else {
            Self::Place
        }
    }

    fn of_found(class: &str, marked: bool) -> Self {
        if is_general(class) {
            Self::General
        } else if marked {
            Self::Marked
        } else {
            // As strong as what it is compared with: the first counts.
            Self::Place
        }
    }
}

/// Inserts or replaces a credential.
fn insert(
    table: &mut FairCache<CredentialId, Arc<Credential>>,
    tenant: &Tenant,
    credential: &Arc<Credential>,
) {
    let id = &credential.id;
    table.insert(tenant, id.clone(), Arc::clone(credential));
    table.resize(id, size_of_list(credential.sources.len()));
}

/// Adds missing places, as far as there is room.
fn add_places(sources: &mut Vec<Place>, places: &[Place]) {
    for place in places {
        if sources.len() < PLACES_MAX && !sources.contains(place) {
            sources.push(place.clone());
        }
    }
}
