//! The files that configure how names are resolved: `resolv.conf` and `hosts`.

use crate::client_hello::host_name;
use std::net::IpAddr;

/// The C library uses three name servers; systemd-resolved lists more.
const NAME_SERVERS_MAX: usize = 16;
/// Names of one file; lists that block advertisers are much longer, and name no server.
const NAMES_MAX: usize = 1_024;

/// The name servers of a `resolv.conf`.
pub fn name_servers(text: &str) -> Vec<IpAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            return None;
        }
        // `fe80::1%eth0`
        words.next()?.split('%').next()?.parse().ok()
    });
    servers.take(NAME_SERVERS_MAX).collect()
}

/// The names of a `hosts` file with their addresses.
pub fn host_names(text: &str) -> Vec<(String, IpAddr)> {
    let named = text.lines().flat_map(|line| {
        let mut words = line
            .split('#')
            .next()
            .unwrap_or_default()
            .split_whitespace();
        let address: Option<IpAddr> = words.next().and_then(|word| word.parse().ok());
        // Blocked: nothing is at these addresses.
        let address = address.filter(|address| !address.is_unspecified() && !address.is_loopback());
        words.filter_map(move |name| Some((host_name(name.as_bytes())?, address?)))
    });
    named.take(NAMES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn name_servers_in_every_form() {
        let text = "# nameserver 192.0.2.9\nsearch corp.example\nnameserver 10.96.0.10\n\
                    \tnameserver  fe80::1%eth0\nnameserver nonsense\nnameserver\noptions ndots:5\n";
        let servers: [IpAddr; 2] = ["10.96.0.10", "fe80::1"].map(|text| text.parse().expect("one"));
        assert_eq!(name_servers(text), servers);
    }

    #[test]
    fn names_of_hosts() {
        let text = "127.0.0.1 localhost\n10.0.0.7\tdb db.corp.example # main\n0.0.0.0 ads.example\n\
                    not-an-address x\n2001:db8::1 v6.example\n";
        let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
        assert_eq!(
            host_names(text),
            [
                ("db".to_owned(), address("10.0.0.7")),
                ("db.corp.example".to_owned(), address("10.0.0.7")),
                ("v6.example".to_owned(), address("2001:db8::1")),
            ]
        );
    }

    proptest! {
        #[test]
        fn any_text_can_be_parsed(text in "[a-z0-9#%:. \\n\\PC]{0,200}") {
            prop_assert!(name_servers(&text).len() <= NAME_SERVERS_MAX);
            prop_assert!(host_names(&text).len() <= NAMES_MAX);
        }
    }
}
