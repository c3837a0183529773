//! The decision of a rule about an event.

use crate::model::Finding;

/// Whether an action is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allowed,
    /// It depends on a name that is not known yet; the finding is raised if none arrives.
    Pending(Finding),
    Violation(Finding),
}

impl Decision {
    /// The finding, whether or not it still depends on a name.
    pub fn into_finding(self) -> Option<Finding> {
        match self {
            Self::Allowed => None,
            Self::Pending(finding) | Self::Violation(finding) => Some(finding),
        }
    }
}

impl From<Option<Finding>> for Decision {
    fn from(finding: Option<Finding>) -> Self {
        finding.map_or(Self::Allowed, Self::Violation)
    }
}
