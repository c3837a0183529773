//! What readers are for.

/// What a reader is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReaderRole {
    /// Files that nobody without privileges can keep from responding.
    LocalFiles,
    /// Anything else about credentials.
    Credentials,
    /// Programs only: it has no catalog.
    Programs,
}
