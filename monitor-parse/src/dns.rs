//! Parses DNS responses.

use crate::client_hello::host_name;
use simple_dns::{Packet, PacketFlag, RCODE, rdata::RData};
use std::net::IpAddr;

/// Names, the requested one first, and the addresses that they resolve to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsAnswer {
    /// The socket that received it.
    pub cookie: u64,
    pub names: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

/// Parses a response. `None` if it resolves no name to an address, or is invalid.
pub fn parse_response(message: &[u8], cookie: u64) -> Option<DnsAnswer> {
    let packet = Packet::parse(message).ok()?;
    if !packet.has_flags(PacketFlag::RESPONSE) || packet.rcode() != RCODE::NoError {
        return None;
    }
    let question = packet.questions.first()?.qname.to_string();
    let mut names = vec![host_name(question.as_bytes())?];
    let mut addresses = Vec::new();
    for answer in &packet.answers {
        match &answer.rdata {
            RData::A(address) => addresses.push(IpAddr::from(address.address.to_be_bytes())),
            RData::AAAA(address) => addresses.push(IpAddr::from(address.address.to_be_bytes())),
            RData::CNAME(name) => names.extend(host_name(name.0.to_string().as_bytes())),
            _ => {}
        }
    }
    names.dedup();
    (!addresses.is_empty()).then_some(DnsAnswer {
        cookie,
        names,
        addresses,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use simple_dns::{
        CLASS, Name, QCLASS, QTYPE, Question, ResourceRecord, TYPE,
        rdata::{A, CNAME},
    };

    fn answer(flags: PacketFlag) -> Vec<u8> {
        let mut packet = Packet::new_reply(1);
        packet.set_flags(flags);
        let name = |text: &'static str| Name::new(text).expect("a name");
        packet.questions.push(Question::new(
            name("S3.example"),
            QTYPE::TYPE(TYPE::A),
            QCLASS::CLASS(CLASS::IN),
            false,
        ));
        packet.answers.push(ResourceRecord::new(
            name("S3.example"),
            CLASS::IN,
            60,
            RData::CNAME(CNAME(name("edge.example"))),
        ));
        packet.answers.push(ResourceRecord::new(
            name("edge.example"),
            CLASS::IN,
            60,
            RData::A(A {
                address: 0x0a00_0001,
            }),
        ));
        packet.build_bytes_vec_compressed().expect("built")
    }

    #[test]
    fn names_and_addresses_of_an_answer() {
        assert_eq!(
            parse_response(&answer(PacketFlag::RESPONSE), 7),
            Some(DnsAnswer {
                cookie: 7,
                names: vec!["S3.example".into(), "edge.example".into()],
                addresses: vec!["10.0.0.1".parse().expect("an address")],
            })
        );
    }

    proptest! {
        #[test]
        fn any_bytes(message in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse_response(&message, 7);
        }

        #[test]
        fn an_answer_with_a_wrong_byte(at in 0usize..60, byte: u8) {
            let mut message = answer(PacketFlag::RESPONSE);
            if let Some(place) = message.get_mut(at) {
                *place = byte;
            }
            let _ = parse_response(&message, 7);
        }
    }
}
