//! Network namespaces: the probes report those of sockets by cookie, and processes show theirs in
//! `/proc`.

use crate::host;
use hashlink::LruCache;
use monitor_core::model::Subject;
use std::os::unix::fs::MetadataExt as _;

/// Number of network namespaces that are remembered.
const NETWORKS_CACHED: usize = 4_096;

/// Which network namespace has which cookie.
#[derive(Debug)]
pub(super) struct Networks {
    /// The inode number of a namespace by its cookie; `None` if no process showed it.
    by_cookie: LruCache<u64, Option<u64>>,
    by_inode: LruCache<u64, u64>,
    /// By the first process of a container or unit, which may end before its last answer comes.
    of_first: LruCache<Subject, u64>,
}

impl Networks {
    /// `own` is the cookie of the agent's own namespace, if the kernel tells it.
    pub fn new(own: Option<u64>) -> Self {
        let mut networks = Self {
            by_cookie: LruCache::new(NETWORKS_CACHED),
            by_inode: LruCache::new(NETWORKS_CACHED),
            of_first: LruCache::new(NETWORKS_CACHED),
        };
        if let Some((cookie, inode)) = own.zip(inode_of(std::process::id())) {
            networks.learn(cookie, inode);
        }
        networks
    }

    /// Learns the namespace of a process from its first socket there. A process can use a socket of
    /// another namespace, but not take the place of one that is known.
    pub fn note(&mut self, cookie: u64, process: Subject) {
        if self.by_cookie.get(&cookie).is_some() {
            return;
        }
        match inode_of(process.pid) {
            Some(inode) if !self.by_inode.contains_key(&inode) => self.learn(cookie, inode),
            Some(_) => {
                self.by_cookie.insert(cookie, None);
            }
            // It has ended; another one may show it.
            None => {}
        }
    }

    fn learn(&mut self, cookie: u64, inode: u64) {
        self.by_cookie.insert(cookie, Some(inode));
        self.by_inode.insert(inode, cookie);
    }

    /// Whether a socket is in the namespace of a container's or unit's first process.
    pub fn is_of(&mut self, cookie: u64, first: Subject) -> bool {
        if let Some(known) = self.of_first.get(&first) {
            return *known == cookie;
        }
        let Some(inode) = inode_of(first.pid) else {
            return false;
        };
        let is_there = match (self.by_cookie.get(&cookie), self.by_inode.get(&inode)) {
            (Some(known), _) => *known == Some(inode),
            // Whoever opened the socket has ended, and nobody else has shown that namespace.
            (None, None) => {
                self.learn(cookie, inode);
                true
            }
            (None, Some(_)) => false,
        };
        if is_there {
            self.of_first.insert(first, cookie);
        }
        is_there
    }

    /// Whether a socket is in the host's namespace.
    pub fn is_of_host(&mut self, cookie: u64) -> bool {
        let Some(Some(inode)) = self.by_cookie.get(&cookie).copied() else {
            return false;
        };
        // The agent may be in a network of its own, and the first process may be out of reach.
        [1, host::pid()]
            .into_iter()
            .any(|pid| inode_of(pid) == Some(inode))
    }
}

/// The inode number of a process's network namespace.
fn inode_of(pid: u32) -> Option<u64> {
    let metadata = std::fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
    Some(metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn this_process() -> Subject {
        Subject {
            pid: std::process::id(),
            start: 1,
        }
    }

    #[test]
    fn a_namespace_is_known_by_its_first_socket() {
        let mut networks = Networks::new(None);
        assert!(!networks.is_of_host(7), "nobody showed it");
        networks.note(7, this_process());
        assert!(networks.is_of_host(7) && networks.is_of(7, this_process()));
        // A socket that the process received from another namespace.
        networks.note(8, this_process());
        assert!(!networks.is_of_host(8) && !networks.is_of(8, this_process()));
        let ended = Subject {
            pid: 0x7000_0001,
            start: 1,
        };
        networks.note(9, ended);
        assert!(!networks.is_of(9, this_process()));
    }

    #[test]
    fn the_agents_own_namespace_is_the_hosts() {
        let mut networks = Networks::new(Some(1));
        networks.note(8, this_process());
        assert!(networks.is_of_host(1) && !networks.is_of_host(8));
    }
}
