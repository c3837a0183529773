//! Maps of which the kernel evicts the least recently used entry when they are full. It does not say
//! when it does, so the probes count how these maps grow.

/// A map that evicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum EvictingMap {
    Connecting = 0,
    UdpSends = 1,
    Streams = 2,
    ServerNames = 3,
    LastRequests = 4,
    /// From here on, calls that have not returned.
    PendingReads = 5,
    PendingConnects = 6,
    Calls = 7,
}

/// Number of maps, and of counters.
pub const EVICTING_MAPS: usize = 8;

impl EvictingMap {
    pub const ALL: [Self; EVICTING_MAPS] = [
        Self::Connecting,
        Self::UdpSends,
        Self::Streams,
        Self::ServerNames,
        Self::LastRequests,
        Self::PendingReads,
        Self::PendingConnects,
        Self::Calls,
    ];

    /// The name in metrics and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::UdpSends => "udp_sends",
            Self::Streams => "streams",
            Self::ServerNames => "server_names_of_objects",
            Self::LastRequests => "last_requests",
            Self::PendingReads => "pending_reads",
            Self::PendingConnects => "pending_connects",
            Self::Calls => "calls",
        }
    }

    /// The name in the object file.
    pub const fn symbol(self) -> &'static str {
        match self {
            Self::Connecting => "CONNECTING",
            Self::UdpSends => "UDP_SENDS",
            Self::Streams => "STREAMS",
            Self::ServerNames => "SERVER_NAMES",
            Self::LastRequests => "LAST_REQUESTS",
            Self::PendingReads => "PENDING_READS",
            Self::PendingConnects => "PENDING_CONNECTS",
            Self::Calls => "CALLS",
        }
    }

    /// Entries that it can hold on a machine with this many processors: the agent enlarges the maps
    /// of the object file, which are for one. The kernel gives each
    /// processor up to 128 free entries of its own: a small map would evict what is in use.
    pub const fn capacity(self, processors: usize) -> u32 {
        const PER_PROCESSOR: usize = 256;
        let least = match self {
            Self::Connecting
            | Self::UdpSends
            | Self::Streams
            | Self::ServerNames
            | Self::LastRequests => 4_096,
            Self::PendingReads | Self::PendingConnects | Self::Calls => 1_024,
        };
        let wanted = PER_PROCESSOR * processors;
        if wanted > least {
            wanted as u32
        } else {
            least as u32
        }
    }

    /// Whether calls are evicted that have not returned, as only very many calls at once can cause.
    /// Of the other maps, what has been silent for longest is evicted.
    pub const fn is_blinding(self) -> bool {
        matches!(
            self,
            Self::PendingReads | Self::PendingConnects | Self::Calls
        )
    }

    /// What is not observed because of it; `None` if nothing is.
    pub const fn lost_evidence(self) -> Option<&'static str> {
        match self {
            Self::Connecting | Self::UdpSends => None,
            Self::Streams => Some(
                "credentials in requests whose head is split over several writes, or in HTTP/2 that began before",
            ),
            Self::ServerNames => Some(
                "the names that programs gave to TLS connections that have been silent for longest",
            ),
            Self::LastRequests => Some("credentials that authenticators issue inside TLS"),
            Self::PendingReads => Some("credentials in responses inside TLS"),
            Self::PendingConnects => Some("connections to sockets that issue credentials"),
            Self::Calls => Some("reads of the memory of other processes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacities_grow_with_the_machine() {
        assert_eq!(EvictingMap::Calls.capacity(2), 1_024);
        assert_eq!(EvictingMap::Calls.capacity(64), 16_384);
        assert_eq!(EvictingMap::Streams.capacity(64), 16_384);
        assert_eq!(EvictingMap::Streams.capacity(512), 131_072);
    }
}
