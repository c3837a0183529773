//! Names from DNS: names of addresses, and addresses of names.

use crate::{
    fair_cache::{FairCache, Tenant},
    model::{Destination, NameSource, SourcedName, UNKNOWN_NAME},
};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::IpAddr,
};

/// Maximum addresses remembered; the oldest of whoever asked for the most are evicted first.
const ADDRESSES_MAX: usize = 32_768;
/// Maximum names remembered per address.
const NAMES_PER_ADDRESS_MAX: usize = 8;

/// DNS responses, as far back as there is room.
#[derive(Debug)]
pub struct DnsNames {
    of: FairCache<IpAddr, VecDeque<String>>,
    /// Number of addresses per name.
    known: HashMap<String, usize>,
}

impl Default for DnsNames {
    fn default() -> Self {
        Self {
            of: FairCache::new(ADDRESSES_MAX),
            known: HashMap::new(),
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
        for address in addresses {
            // `peek`: another response does not make an address newer.
            if self.of.peek(address).is_none() {
                let known = &mut self.known;
                self.of
                    .insert_new(tenant, *address, VecDeque::new(), |names| {
                        for name in names {
                            evict(known, &name);
                        }
                    });
            }
            let Some(of) = self.of.peek_mut(address) else {
                continue;
            };
            // The last one is the newest.
            for name in names.iter().rev() {
                if let Some(place) = of.iter().position(|known| known == name) {
                    of.remove(place);
                } else {
                    *self.known.entry(name.clone()).or_default() += 1;
                }
                of.push_back(name.clone());
                if of.len() > NAMES_PER_ADDRESS_MAX
                    && let Some(oldest) = of.pop_front()
                {
                    evict(&mut self.known, &oldest);
                }
            }
        }
    }

    /// The names of an address, the newest last.
    pub fn names_at(&self, address: IpAddr) -> impl DoubleEndedIterator<Item = &str> {
        self.of
            .peek(&address)
            .into_iter()
            .flatten()
            .map(String::as_str)
    }

    /// Adds contradictions from DNS to a destination: its name was resolved to other addresses, or
    /// its address was returned for other names, or for none that was seen.
    pub fn add_disputed(&self, destination: &mut Destination) {
        let Some(name) = destination.name.as_deref() else {
            return;
        };
        if !self.known.contains_key(name)
            || self
                .names_at(destination.address)
                .any(|known| known == name)
        {
            return;
        }
        let mut others: HashSet<&str> = self.names_at(destination.address).collect();
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
    use crate::model::Transport;
    use proptest::prelude::*;

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
            known.add_disputed(&mut destination);
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
    fn answers_to_one_displace_no_names_of_others() {
        let of = |user| Tenant {
            user,
            ..Tenant::default()
        };
        let mut known = DnsNames::default();
        known.learn(&of(0), &names(&["s3.example"]), &[address("10.0.0.1")]);
        for number in 0..50_000u32 {
            let address = IpAddr::from(number.to_be_bytes());
            known.learn(&of(65_534), &[format!("n{number}")], &[address]);
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
