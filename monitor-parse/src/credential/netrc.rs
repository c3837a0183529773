//! `.netrc` files.

use super::finder::SecretFinder;
use std::collections::BTreeMap;

pub(super) fn find(finder: &mut SecretFinder<'_>, text: &str) {
    let Ok(netrc) = text.parse::<::netrc::Netrc>() else {
        return;
    };
    let hosts: BTreeMap<_, _> = netrc.hosts.iter().collect();
    for (host, entry) in hosts {
        let alias = finder.basic_form(&entry.login, &entry.password);
        let password = entry.password.clone();
        finder.add_for_host(host, &password, Some(host.clone()), vec![alias]);
    }
}
