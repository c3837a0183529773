//! Maps that refuse or evict entries when they are full, which is counted.

/// A map that can be full, and says so. For the others see [`EvictingMap`](super::EvictingMap).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum LimitedMap {
    Reads = 0,
    Carried = 1,
    PendingWrites = 2,
    Sockets = 3,
    Presentations = 4,
    /// From here on, maps that only the agent fills.
    Rules = 5,
    Inodes = 6,
    Authenticators = 7,
}

/// Entries that the map of rules can hold.
pub const RULES_MAX: usize = 16_384;

/// Number of maps, and of counters.
pub const LIMITED_MAPS: usize = 8;

impl LimitedMap {
    pub const ALL: [Self; LIMITED_MAPS] = [
        Self::Reads,
        Self::Carried,
        Self::PendingWrites,
        Self::Sockets,
        Self::Presentations,
        Self::Rules,
        Self::Inodes,
        Self::Authenticators,
    ];

    /// The name in metrics and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reads => "reads",
            Self::Carried => "carried",
            Self::PendingWrites => "pending_writes",
            Self::Sockets => "sockets",
            Self::Presentations => "presentations",
            Self::Rules => "rules",
            Self::Inodes => "inodes",
            Self::Authenticators => "authenticators",
        }
    }

    /// Whether the agent is blind because of it. Files that were replaced leave their entries behind,
    /// so the map of inodes is full one day on any node.
    pub const fn is_blinding(self) -> bool {
        self.lost_evidence().is_some() && !matches!(self, Self::Inodes)
    }

    /// What is not observed because of it; `None` if nothing is, or only less efficiently.
    pub const fn lost_evidence(self) -> Option<&'static str> {
        match self {
            Self::Reads | Self::Presentations | Self::Authenticators => None,
            Self::Carried => {
                Some("credentials in requests whose head is split over several writes")
            }
            Self::PendingWrites => Some("the connections of credentials presented inside TLS"),
            Self::Sockets => Some("names and plaintext credentials on some new connections"),
            Self::Rules => Some("files and variables that expectations name"),
            Self::Inodes => Some("the oldest credential files that were renamed or linked"),
        }
    }
}
