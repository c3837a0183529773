//! How names are resolved for a process, and for the host: `resolv.conf` and `hosts`.

use super::identify::{Located, reopen, target};
use crate::{host, reader::protocol::ResolversAnswer};
use monitor_parse::resolvers::{host_names, name_servers};
use rustix::fs::FileType;
use std::{
    io::{self, Read as _},
    path::Path,
};

/// Bytes of a file that are read.
const BYTES_MAX: u64 = 1 << 20;

/// The file that the C library reads.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where the host's own resolvers list those that they ask.
const UPSTREAM: [&str; 2] = [
    "/run/systemd/resolve/resolv.conf",
    "/run/NetworkManager/no-stub-resolv.conf",
];
const HOSTS: &str = "/etc/hosts";

/// The name servers that the host uses, and the names of its `hosts` file.
pub(super) fn of_host() -> ResolversAnswer {
    let read = |path: &str| read(host::pid(), path).unwrap_or_default();
    let files = [RESOLV_CONF].into_iter().chain(UPSTREAM);
    ResolversAnswer {
        name_servers: files.flat_map(|path| name_servers(&read(path))).collect(),
        hosts: host_names(&read(HOSTS)),
    }
}

/// The name servers that a process uses. Whoever runs a container can write its `hosts` file, so the
/// names there prove nothing.
pub(super) fn of_process(pid: u32) -> io::Result<ResolversAnswer> {
    Ok(ResolversAnswer {
        name_servers: name_servers(&read(pid, RESOLV_CONF)?),
        hosts: Vec::new(),
    })
}

fn read(pid: u32, path: &str) -> io::Result<String> {
    let place = target(pid, Path::new(path))?;
    if Located::of(&place)?.kind != FileType::RegularFile {
        return Err(io::Error::other("no regular file"));
    }
    let mut text = Vec::new();
    reopen(&place)?.take(BYTES_MAX).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolvers_of_this_machine() {
        let own = of_process(std::process::id()).expect("a configuration");
        let of_host = of_host();
        assert!(!own.name_servers.is_empty());
        assert!(
            own.name_servers
                .iter()
                .all(|server| of_host.name_servers.contains(server))
        );
    }
}
