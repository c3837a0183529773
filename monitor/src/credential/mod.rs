//! Identifies what was picked up: class, fingerprint, lifetime.
//!
//! A file is read once per version, by the reader; a variable's fingerprint comes from the kernel.
//! No secret reaches this module.

mod class;
mod files;
mod known;
mod places;
mod pointers;
mod traffic;
mod variables;

pub use files::{CredentialFile, MountView, OpenedFile};

use crate::observed::file::FileId;
use files::{FILES_CACHED, HOMES_CACHED, KnownContents};
use hashlink::LruCache;
use jiff::Timestamp;
use known::KnownCredentials;
use monitor_common::fingerprint::{FingerprintKey, fingerprint};
use monitor_core::{
    catalog::{Catalog, secret_marks::SecretMarks},
    counted_lru::CountedLru,
    fair_cache::Tenant,
    model::Credential,
};
use places::PlaceMask;
use std::{collections::BTreeMap, sync::Arc};

/// Number of values of such variables cached.
const FOLLOWED_CACHED: usize = 4096;

/// Turns places and fingerprints into credentials.
#[derive(Debug)]
pub struct Credentials {
    catalog: Arc<Catalog>,
    key: FingerprintKey,
    files: LruCache<FileId, KnownContents>,
    known: KnownCredentials,
    /// The path under which a file was first recognised as a credential's: it remains one under any
    /// other path.
    homes: CountedLru<FileId, String>,
    /// Places of credentials according to variables, by container and path, and their class.
    pointed: BTreeMap<(String, String), String>,
    /// Fingerprints of values of such variables that were followed.
    followed: LruCache<u64, ()>,
    mask: PlaceMask,
    /// Number of places named by a variable that were ignored for lack of room.
    pub unfollowed: u64,
    /// Number of files that could no longer be read when their turn came.
    pub unreadable: u64,
}

impl Credentials {
    pub fn new(catalog: Arc<Catalog>, key: FingerprintKey) -> Self {
        let mask = PlaceMask::new(SecretMarks::new(&catalog));
        Self {
            catalog,
            key,
            files: LruCache::new(FILES_CACHED),
            known: KnownCredentials::default(),
            homes: CountedLru::new(HOMES_CACHED),
            pointed: BTreeMap::new(),
            followed: LruCache::new(FOLLOWED_CACHED),
            mask,
            unfollowed: 0,
            unreadable: 0,
        }
    }

    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Replaces the catalog; known credentials stay.
    pub fn set_catalog(&mut self, catalog: Arc<Catalog>) {
        self.mask.marks = SecretMarks::new(&catalog);
        self.catalog = catalog;
        self.files.clear();
    }

    /// The fingerprint of a non-secret text, as a probe computes it.
    pub fn print_of(&self, text: &str) -> u64 {
        fingerprint(self.key, text.as_bytes())
    }

    /// Fingerprints of secrets that were picked up for the first time since the last call, and by whom.
    pub fn take_new_secrets(&mut self) -> Vec<(Tenant, u64)> {
        self.known.take_new_secrets()
    }

    /// What was forgotten for lack of room, by table, since the start.
    pub fn forgotten(&self) -> [(&'static str, u64); 2] {
        [
            ("known_credentials", self.known.evicted()),
            ("file_homes", self.homes.evicted()),
        ]
    }

    /// Restores what was known before the agent started: a program that holds a credential does not
    /// read it again.
    pub fn remember(&mut self, credentials: Vec<(Credential, Timestamp)>) {
        self.known.remember(credentials);
    }
}

#[cfg(test)]
mod tests;
