//! What name servers said: names of addresses, and addresses of names.

use crate::model::{ANOTHER, Destination, NameSource, Named};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::IpAddr,
};

/// Addresses that are remembered, the oldest forgotten first.
const ADDRESSES: usize = 32_768;
/// Names remembered of one address.
const NAMES_OF_ONE: usize = 8;

/// Answers of name servers, as far back as there is room.
#[derive(Debug, Default)]
pub struct Names {
    of: HashMap<IpAddr, VecDeque<String>>,
    order: VecDeque<IpAddr>,
    /// How many of the addresses have a name.
    known: HashMap<String, usize>,
}

impl Names {
    /// Takes in an answer: each name stands for each address. The name that was asked for comes
    /// first, and is the one that is shown.
    pub fn learn(&mut self, names: &[String], addresses: &[IpAddr]) {
        for address in addresses {
            if !self.of.contains_key(address) {
                self.order.push_back(*address);
                if self.order.len() > ADDRESSES
                    && let Some(oldest) = self.order.pop_front()
                {
                    for name in self.of.remove(&oldest).unwrap_or_default() {
                        forget(&mut self.known, &name);
                    }
                }
            }
            let of = self.of.entry(*address).or_default();
            // The last one is the newest.
            for name in names.iter().rev() {
                if let Some(place) = of.iter().position(|known| known == name) {
                    of.remove(place);
                } else {
                    *self.known.entry(name.clone()).or_default() += 1;
                }
                of.push_back(name.clone());
                if of.len() > NAMES_OF_ONE
                    && let Some(oldest) = of.pop_front()
                {
                    forget(&mut self.known, &oldest);
                }
            }
        }
    }

    /// The names of an address, the newest last.
    pub fn of(&self, address: IpAddr) -> impl DoubleEndedIterator<Item = &str> {
        self.of
            .get(&address)
            .into_iter()
            .flatten()
            .map(String::as_str)
    }

    /// Notes on a destination what name servers say otherwise: its name was asked for and has other addresses, and its
    /// address was given for other names, or for none that was seen.
    pub fn dispute(&self, destination: &mut Destination) {
        let Some(name) = destination.name.as_deref() else {
            return;
        };
        if !self.known.contains_key(name) || self.of(destination.address).any(|known| known == name)
        {
            return;
        }
        let mut others: HashSet<&str> = self.of(destination.address).collect();
        if others.is_empty() {
            others.insert(ANOTHER);
        }
        let mut others: Vec<Named> = others
            .into_iter()
            .map(|name| Named {
                name: name.to_owned(),
                name_source: NameSource::Dns,
            })
            .collect();
        others.sort_by(|one, other| one.name.cmp(&other.name));
        destination.disputed.extend(others);
    }
}

fn forget(known: &mut HashMap<String, usize>, name: &str) {
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
        let mut known = Names::default();
        known.learn(&names(&["s3.example"]), &[address("10.0.0.1")]);
        known.learn(&names(&["paste.example"]), &[address("10.0.0.2")]);
        let disputed = |name: &str, at: &str| {
            let mut destination = Destination::unnamed(address(at), 443, Transport::Tcp);
            destination.take_name(name, NameSource::Sni);
            known.dispute(&mut destination);
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
        assert_eq!(disputed("s3.example", "10.0.0.9"), [ANOTHER]);
    }

    proptest! {
        #[test]
        fn the_count_of_names_is_right(answers in proptest::collection::vec((0u8..4, 0u8..20), 0..200)) {
            let mut known = Names::default();
            for (host, name) in answers {
                known.learn(&[format!("n{name}")], &[IpAddr::from([10, 0, 0, host])]);
            }
            for name in 0..20 {
                let name = format!("n{name}");
                let counted = known.of.values().flatten().filter(|known| **known == name).count();
                prop_assert_eq!(known.known.get(&name).copied().unwrap_or(0), counted);
            }
        }
    }
}
