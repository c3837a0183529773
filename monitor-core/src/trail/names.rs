//! Names from DNS: names of addresses, and addresses of names.

use super::event::Actor;
use crate::{
    fair_cache::{FairCache, Tenant},
    model::{Destination, NameSource, SourcedName, UNKNOWN_NAME},
};
use hashlink::LruCache;
use jiff::Timestamp;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
};

/// Maximum addresses remembered; the oldest of whoever asked for the most are evicted first.
const ADDRESSES_MAX: usize = 32_768;
/// Maximum names remembered per address.
const NAMES_PER_ADDRESS_MAX: usize = 8;

/// Maximum networks of which it is remembered that their resolver answers.
const NETWORKS_MAX: usize = 4_096;
/// Maximum names from files and earlier runs.
const LISTED_MAX: usize = 8_192;
/// Maximum pairs of a name and an address that only other resolvers gave.
const CLAIMS_MAX: usize = 4_096;

/// A name of an address.
#[derive(Debug)]
struct KnownName {
    name: String,
    /// Who asked for it: the hash of a tenant, or [`SEVERAL`].
    asked_by: u64,
}

/// Several have asked for a name.
const SEVERAL: u64 = 0;

/// DNS responses, as far back as there is room.
#[derive(Debug)]
pub struct DnsNames {
    of: FairCache<IpAddr, VecDeque<KnownName>>,
    /// Number of addresses per name.
    known: HashMap<String, usize>,
    /// Names that are known from elsewhere. They confirm a name, and contradict none.
    listed: LruCache<(String, IpAddr), ()>,
    /// What resolvers answered with which nothing is configured.
    claimed: FairCache<(String, IpAddr), ()>,
    /// Since when the resolver of a network is seen to answer.
    working: LruCache<String, Timestamp>,
    hasher: RandomState,
}

impl Default for DnsNames {
    fn default() -> Self {
        Self {
            of: FairCache::new(ADDRESSES_MAX),
            known: HashMap::new(),
            listed: LruCache::new(LISTED_MAX),
            claimed: FairCache::new(CLAIMS_MAX),
            working: LruCache::new(NETWORKS_MAX),
            hasher: RandomState::new(),
        }
    }
}

impl DnsNames {
    /// Addresses that were forgotten for lack of room.
    pub fn evicted(&self) -> u64 {
        self.of.evicted()
    }

    /// Adds a response: each name resolves to each address. The requested name comes first, and is
    /// the one shown.
    pub fn learn(&mut self, tenant: &Tenant, names: &[String], addresses: &[IpAddr]) {
        let asked_by = self.hash(tenant);
        for address in addresses {
            // `peek`: another response does not make an address newer.
            if self.of.peek(address).is_none() {
                let known = &mut self.known;
                self.of
                    .insert_new(tenant, *address, VecDeque::new(), |names| {
                        for known_name in names {
                            evict(known, &known_name.name);
                        }
                    });
            }
            let Some(of) = self.of.peek_mut(address) else {
                continue;
            };
            // The last one is the newest.
            for name in names.iter().rev() {
                let mut asked_by = asked_by;
                if let Some(place) = of.iter().position(|known| known.name == *name) {
                    let before = of.remove(place).map(|known| known.asked_by);
                    if before != Some(asked_by) {
                        asked_by = SEVERAL;
                    }
                } else {
                    *self.known.entry(name.clone()).or_default() += 1;
                }
                let name = name.clone();
                of.push_back(KnownName { name, asked_by });
                if of.len() > NAMES_PER_ADDRESS_MAX
                    && let Some(excess) = excess(of)
                {
                    evict(&mut self.known, &excess.name);
                }
            }
        }
    }

    /// Adds a response of a resolver with which nothing is configured. Whoever runs it chooses its
    /// answers: they name no address, and contradict no name.
    pub fn claim(&mut self, tenant: &Tenant, names: &[String], addresses: &[IpAddr]) {
        for name in names {
            for address in addresses {
                let claim = (name.clone(), *address);
                if self.claimed.get(&claim).is_none() {
                    self.claimed.insert(tenant, claim, ());
                }
            }
        }
    }

    /// Adds a name of an address that is known from a file, or from an earlier run.
    pub fn list(&mut self, known: (String, IpAddr)) {
        self.listed.insert(known, ());
    }

    /// The resolver of a network has answered.
    pub fn note_working(&mut self, network: String, time: Timestamp) {
        if !self.working.contains_key(&network) {
            self.working.insert(network, time);
        }
    }

    /// Never [`SEVERAL`].
    fn hash(&self, tenant: &Tenant) -> u64 {
        self.hasher.hash_one(tenant).max(1)
    }

    /// The name of an address: the newest for which this tenant asked, or else the newest. Anyone can
    /// have any address in his own domain.
    pub fn name_at(&self, address: IpAddr, tenant: &Tenant) -> Option<&str> {
        let asked_by = self.hash(tenant);
        let names = self.of.peek(&address)?;
        let mut newest = names.iter().rev();
        let own = newest.find(|known| [asked_by, SEVERAL].contains(&known.asked_by));
        own.or_else(|| names.back()).map(|known| &*known.name)
    }

    /// The names of an address, the newest last.
    fn names_at(&self, address: IpAddr) -> impl DoubleEndedIterator<Item = &str> {
        let known = self.of.peek(&address).into_iter().flatten();
        known.map(|known| &*known.name)
    }

    /// Adds contradictions from DNS to a destination that a process names: the name was resolved to
    /// other addresses, its address was returned for other names, or nothing that is configured has
    /// resolved the name.
    pub fn add_disputed(&self, destination: &mut Destination, actor: &Actor) {
        let Some(name) = destination.name.as_deref() else {
            return;
        };
        let pair = (name.to_owned(), destination.address);
        let mut others: HashSet<&str> = self.names_at(pair.1).collect();
        if others.contains(name) || self.listed.contains_key(&pair) {
            return;
        }
        if !self.known.contains_key(name) {
            if !self.is_only_claimed(&pair, destination, actor) {
                return;
            }
            // Who asked for them says nothing about a name that nobody resolved.
            others.clear();
        }
        if others.is_empty() {
            others.insert(UNKNOWN_NAME);
        }
        let mut others: Vec<SourcedName> = others
            .into_iter()
            .map(|name| SourcedName {
                name: name.to_owned(),
                name_source: NameSource::Dns,
            })
            .collect();
        others.sort_by(|one, other| one.name.cmp(&other.name));
        destination.disputed.extend(others);
    }

    /// Whether only a process, or a resolver that it chose, says that a name is at an address.
    ///
    /// Names may also come from a file, or from a resolver that is not seen (DNS over TLS or HTTPS, or
    /// before the agent started). A missing answer therefore tells something only where answers are
    /// seen, to a process that has been observed since it started.
    fn is_only_claimed(
        &self,
        pair: &(String, IpAddr),
        destination: &Destination,
        actor: &Actor,
    ) -> bool {
        if self.claimed.contains_key(pair) {
            return true;
        }
        let (name, address) = pair;
        let answers_since = self.working.peek(&actor.workload.network());
        destination.object.is_none()
            && !address.is_loopback()
            && name.parse::<IpAddr>().is_err()
            && answers_since.is_some_and(|since| actor.process.start_time > *since)
    }
}

/// Removes the oldest name of whoever asked for the most names.
fn excess(names: &mut VecDeque<KnownName>) -> Option<KnownName> {
    let count = |asked_by| {
        names
            .iter()
            .filter(|known| known.asked_by == asked_by)
            .count()
    };
    let most = names.iter().map(|known| count(known.asked_by)).max()?;
    let oldest = names
        .iter()
        .position(|known| count(known.asked_by) == most)?;
    names.remove(oldest)
}

fn evict(known: &mut HashMap<String, usize>, name: &str) {
    if let Some(count) = known.get_mut(name) {
        *count -= 1;
        if *count == 0 {
            known.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Process, Subject, Transport, Workload};
    use proptest::prelude::*;

    /// A process of the host, by the second of its start.
    fn actor(start: i64) -> Actor {
        Actor {
            subject: Subject { pid: 1, start: 1 },
            workload: Workload::host("/usr/bin/client"),
            process: Process {
                pid: 1,
                start_time: Timestamp::from_second(start).expect("in range"),
                exe: "/usr/bin/client".into(),
                comm: "client".into(),
                uid: 0,
                tenant: Tenant::default(),
                ancestors: [].into(),
            },
        }
    }

    fn of_user(user: u32) -> Tenant {
        Tenant {
            user,
            ..Tenant::default()
        }
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_name_at_an_address_of_another_is_disputed() {
        let mut known = DnsNames::default();
        let tenant = Tenant::default();
        known.learn(&tenant, &names(&["s3.example"]), &[address("10.0.0.1")]);
        known.learn(&tenant, &names(&["paste.example"]), &[address("10.0.0.2")]);
        let disputed = |name: &str, at: &str| {
            let mut destination = Destination::unnamed(address(at), 443, Transport::Tcp);
            destination.add_name(name, NameSource::Sni);
            known.add_disputed(&mut destination, &actor(1));
            destination
                .disputed
                .into_iter()
                .map(|named| named.name)
                .collect::<Vec<_>>()
        };
        assert!(disputed("s3.example", "10.0.0.1").is_empty());
        assert_eq!(disputed("s3.example", "10.0.0.2"), ["paste.example"]);
        assert!(
            disputed("never.asked", "10.0.0.2").is_empty(),
            "it may have come from a file, or from a name server that is not seen"
        );
        assert_eq!(disputed("s3.example", "10.0.0.9"), [UNKNOWN_NAME]);
    }

    #[test]
    fn a_name_that_only_a_process_vouches_for() {
        let named = |known: &DnsNames, at: &str, started: i64| {
            let mut destination = Destination::unnamed(address(at), 443, Transport::Tcp);
            destination.add_name("s3.example", NameSource::Sni);
            known.add_disputed(&mut destination, &actor(started));
            destination.disputed.len()
        };
        let mut known = DnsNames::default();
        assert_eq!(named(&known, "10.0.0.1", 9), 0, "no resolver is seen");
        let wanted = names(&["s3.example"]);
        known.claim(&of_user(1), &wanted, &[address("10.0.0.2")]);
        assert_eq!(named(&known, "10.0.0.2", 9), 1, "a resolver of its own");
        assert_eq!(named(&known, "10.0.0.1", 9), 0, "of another address");
        known.note_working(String::new(), Timestamp::from_second(5).expect("in range"));
        assert_eq!(named(&known, "10.0.0.1", 9), 1, "answers are seen");
        assert_eq!(named(&known, "10.0.0.1", 4), 0, "it started before that");
        assert_eq!(named(&known, "127.0.0.1", 9), 0, "a local relay");
        known.list(("s3.example".to_owned(), address("10.0.0.3")));
        assert_eq!(named(&known, "10.0.0.3", 9), 0, "of an earlier run");
        known.learn(&of_user(0), &wanted, &[address("10.0.0.1")]);
        assert_eq!(named(&known, "10.0.0.1", 9), 0, "it was resolved");
        assert_eq!(named(&known, "10.0.0.4", 9), 1, "elsewhere");
    }

    #[test]
    fn names_in_domains_of_others_displace_no_name() {
        let at = address("10.0.0.1");
        let mut known = DnsNames::default();
        known.learn(&of_user(0), &names(&["s3.example"]), &[at]);
        for number in 0..20 {
            known.learn(&of_user(7), &[format!("n{number}.evil.example")], &[at]);
        }
        assert!(known.names_at(at).any(|name| name == "s3.example"));
        assert_eq!(known.name_at(at, &of_user(0)), Some("s3.example"));
        assert_eq!(known.name_at(at, &of_user(7)), Some("n19.evil.example"));
        // Nor does somebody who asks for the same name first.
        known.learn(&of_user(7), &names(&["s3.example"]), &[at]);
        for number in 20..40 {
            known.learn(&of_user(7), &[format!("n{number}.evil.example")], &[at]);
        }
        assert_eq!(known.name_at(at, &of_user(0)), Some("s3.example"));
    }

    #[test]
    fn answers_to_one_displace_no_names_of_others() {
        let mut known = DnsNames::default();
        known.learn(&of_user(0), &names(&["s3.example"]), &[address("10.0.0.1")]);
        for number in 0..50_000u32 {
            let address = IpAddr::from(number.to_be_bytes());
            known.learn(&of_user(65_534), &[format!("n{number}")], &[address]);
        }
        let first = address("10.0.0.1");
        assert!(known.names_at(first).eq(["s3.example"]));
        assert_eq!(known.evicted(), 50_001 - ADDRESSES_MAX as u64);
        // The names of forgotten addresses are forgotten as well.
        assert_eq!(known.known.len(), ADDRESSES_MAX);
    }

    proptest! {
        #[test]
        fn names_are_counted_exactly(answers in proptest::collection::vec((0u8..4, 0u8..20), 0..200)) {
            let mut known = DnsNames::default();
            for (host, name) in answers {
                known.learn(&Tenant::default(), &[format!("n{name}")], &[IpAddr::from([10, 0, 0, host])]);
            }
            for name in 0..20 {
                let name = format!("n{name}");
                let counted = (0..=255).flat_map(|host| known.names_at(IpAddr::from([10, 0, 0, host]))).filter(|known| **known == *name).count();
                prop_assert_eq!(known.known.get(&name).copied().unwrap_or(0), counted);
            }
        }
    }
}
