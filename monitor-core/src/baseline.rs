//! What earlier runs of the agent recorded about the users of credentials.

use crate::model::CredentialId;
use jiff::Timestamp;

/// A workload that used a credential before the agent started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownUser {
    pub credential: CredentialId,
    /// The workload's key.
    pub workload: String,
    /// When it first presented it, if it did.
    pub presented: Option<Timestamp>,
    pub picked_up: bool,
}
