//! Matches the names of an opened file with the rules of the catalog.

use crate::support::{
    kernel::read,
    maps::{BloomFilter, rule},
    view::DentryFields,
};
use monitor_common::filter::{self, FilterKind, NEEDS_PAIR, PROCFS_ONLY};

/// The names that the rules match.
pub struct FileNames {
    name: u64,
    parent: u64,
    grandparent: u64,
    pub first: u32,
    last: u32,
    projected: bool,
}

impl FileNames {
    #[inline(always)]
    pub fn read(dentry: &DentryFields, parent: &DentryFields, grandparent: &DentryFields) -> Self {
        Self {
            name: filter::name_hash(&dentry.words, dentry.len),
            parent: filter::name_hash(&parent.words, parent.len),
            grandparent: filter::name_hash(&grandparent.words, grandparent.len),
            first: dentry.words[0] as u32,
            last: last_four(dentry),
            // A directory named like `..2024_11_24…` is the payload of a projected volume.
            projected: parent.words[0] & 0xffff == 0x2e2e,
        }
    }

    /// Whether a rule may match; cheap. All filters are tested without branches, because a branch
    /// at each would double the verifier's paths.
    #[inline(always)]
    pub fn may_match(&self, rules: BloomFilter) -> bool {
        rules.contains(filter::key(FilterKind::Name, self.name))
            | rules.contains(filter::key(FilterKind::Suffix, u64::from(self.last)))
            | rules.contains(filter::key(FilterKind::Prefix, u64::from(self.first)))
            | rules.contains(filter::key(FilterKind::Parent, self.parent))
            | rules.contains(filter::key(FilterKind::Parent, self.grandparent))
            | self.projected
    }

    /// Whether a rule matches, after the filter found that one may.
    #[inline(always)]
    pub fn exact_match(&self) -> NameMatch {
        let by_name = match rule(filter::key(FilterKind::Name, self.name)) {
            Some(PROCFS_ONLY) => return NameMatch::OfProcess,
            Some(NEEDS_PAIR) => rule(filter::pair_key(self.parent, self.name)).is_some(),
            other => other.is_some(),
        };
        let credential = by_name
            || self.projected
            || rule(filter::key(FilterKind::Suffix, u64::from(self.last))).is_some()
            || rule(filter::key(FilterKind::Prefix, u64::from(self.first))).is_some()
            || rule(filter::key(FilterKind::Parent, self.parent)).is_some()
            || rule(filter::key(FilterKind::Parent, self.grandparent)).is_some();
        if credential {
            NameMatch::Credential
        } else {
            NameMatch::Nothing
        }
    }
}

/// The result of the exact rules for a name.
#[derive(PartialEq, Eq)]
pub enum NameMatch {
    Nothing,
    Credential,
    OfProcess,
}

/// The last four bytes of a name.
#[inline(always)]
fn last_four(dentry: &DentryFields) -> u32 {
    let (words, len) = (&dentry.words, dentry.len);
    if len < 4 {
        return 0;
    }
    let at = len - 4;
    if len > 32 {
        return read(dentry.name.wrapping_add(at));
    }
    let (low, high) = match at >> 3 {
        0 => (words[0], words[1]),
        1 => (words[1], words[2]),
        2 => (words[2], words[3]),
        _ => (words[3], 0),
    };
    let shift = (at & 7) * 8;
    ((low >> shift) | ((high << 1) << (63 - shift))) as u32
}
