//! Names from DNS: names of addresses, and addresses of names.

use crate::{
    counted_lru::CountedLru,
    model::{Destination, NameSource, SourcedName, UNKNOWN_NAME},
};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::IpAddr,
};

/// Maximum addresses remembered; the oldest are evicted first.
const ADDRESSES_MAX: usize = 32_768;
/// Maximum names remembered per address.
const NAMES_PER_ADDRESS_MAX: usize = 8;

/// DNS responses, as far back as there is room.
#[derive(Debug)]
pub struct DnsNames {
    /// The first ones learned are evicted first.
    of: CountedLru<IpAddr, VecDeque<String>>,
    /// Number of addresses per name.
    known: HashMap<String, usize>,
}

impl Default for DnsNames {
    fn default() -> Self {
        Self {
            of: CountedLru::new(ADDRESSES_MAX),
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
    pub fn learn(&mut self, names: &[String], addresses: &[IpAddr]) {
        for address in addresses {
            // `peek`: another response does not make an address newer.
            if self.of.peek(address).is_none() {
                let gone = self.of.insert(*address, VecDeque::new());
                for name in gone.into_iter().flat_map(|(_, names)| names) {
                    evict(&mut self.known, &name);
                }
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
        known.learn(&names(&["s3.example"]), &[address("10.0.0.1")]);
        known.learn(&names(&["paste.example"]), &[address("10.0.0.2")]);
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

    proptest! {
        #[test]
        fn names_are_counted_exactly(answers in proptest::collection::vec((0u8..4, 0u8..20), 0..200)) {
            let mut known = DnsNames::default();
            for (host, name) in answers {
                known.learn(&[format!("n{name}")], &[IpAddr::from([10, 0, 0, host])]);
            }
            for name in 0..20 {
                let name = format!("n{name}");
                let counted = known.of.iter().flat_map(|(_, names)| names).filter(|known| **known == name).count();
                prop_assert_eq!(known.known.get(&name).copied().unwrap_or(0), counted);
            }
        }
    }
}
