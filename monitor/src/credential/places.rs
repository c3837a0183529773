//! The places of credentials, as everything else may show them: without secrets in their names.

use super::Credentials;
use hashlink::LruCache;
use monitor_common::fingerprint::fingerprint;
use monitor_core::{
    catalog::secret_marks::SecretMarks,
    model::{CredentialId, Place, Source},
};

/// Parts of paths that are shorter are names, even if somebody uses one as a password.
const SECRET_MIN: usize = 16;
/// Number of parts remembered that were names before they were known as secrets.
const NAMES_CACHED: usize = 4096;
/// Shown instead of a part whose fingerprint is known.
const KNOWN: &str = "(secret)";

/// Masks the names of places.
#[derive(Debug)]
pub(super) struct PlaceMask {
    pub marks: SecretMarks,
    /// Fingerprints of parts of paths that were names before they were known as secrets: anybody can
    /// give a variable the name of somebody's directory as its value.
    names: LruCache<u64, ()>,
}

impl PlaceMask {
    pub fn new(marks: SecretMarks) -> Self {
        Self {
            marks,
            names: LruCache::new(NAMES_CACHED),
        }
    }
}

impl Credentials {
    /// The marks by which secrets are recognised in names.
    pub fn marks(&self) -> &SecretMarks {
        &self.mask.marks
    }

    /// The place of a file.
    pub(super) fn file_place(&mut self, path: &str) -> Place {
        let masked = self.mask.marks.mask(path);
        let mut place = masked.unwrap_or_else(|| path.to_owned());
        if place.split('/').any(may_be_secret) {
            place = place
                .split('/')
                .map(|part| if self.is_known(part) { KNOWN } else { part })
                .collect::<Vec<_>>()
                .join("/");
        }
        Place {
            source: Source::File,
            place,
        }
    }

    /// Whether a part of a path is a known secret, and was not a name before that.
    fn is_known(&mut self, part: &str) -> bool {
        if !may_be_secret(part) {
            return false;
        }
        let print = fingerprint(self.key, part.as_bytes());
        let id = CredentialId::from_fingerprint(print);
        if !self.mask.names.contains_key(&print) && self.known.is_known(&id) {
            return true;
        }
        self.mask.names.insert(print, ());
        false
    }
}

fn may_be_secret(part: &str) -> bool {
    part.len() >= SECRET_MIN
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && part.bytes().any(|byte| byte.is_ascii_digit())
}
