//! What the probes report: the rules of the catalog, and files known by their inode.

use super::{
    SensorError, boot_time,
    maps::{Plain, failed, is_full, open_map},
    report::FullMaps,
};
use crate::observed::file::FileId;
use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData},
};
use hashlink::LruCache;
use monitor_common::{
    filter::{self, BLOOM_WORDS, bloom_position, inode_key},
    map::{INODE_CREDENTIAL, INODE_IGNORED, InodeKey, LimitedMap, RULES_MAX},
};
use monitor_core::catalog::kernel_filter::FilterRules;
use std::collections::BTreeMap;

/// Maximum number of entries of the inode map that are used.
const INODE_LIMIT: usize = 60_000;

/// The filter of the probes.
pub struct KernelFilter {
    bloom: Array<MapData, [u64; BLOOM_WORDS]>,
    rules: HashMap<MapData, u64, u32>,
    inodes: HashMap<MapData, Plain<InodeKey>, u32>,
    epoch: Array<MapData, u64>,
    inode_filter: Box<[u64; BLOOM_WORDS]>,
    /// The contents of the inode map. The first ones added are evicted first.
    noted: LruCache<FileId, u32>,
    /// Entries that did not fit into the maps that the agent fills.
    pub full: FullMaps,
}

impl KernelFilter {
    pub fn open(ebpf: &mut Ebpf) -> Result<Self, SensorError> {
        Ok(Self {
            bloom: open_map(ebpf, "BLOOM")?,
            rules: open_map(ebpf, "RULES")?,
            inodes: open_map(ebpf, "INODES")?,
            epoch: open_map(ebpf, "EPOCH")?,
            inode_filter: Box::new([0; BLOOM_WORDS]),
            noted: LruCache::new(INODE_LIMIT),
            full: FullMaps::default(),
        })
    }

    /// Replaces the rules of the kernel filter. The exact rules are written first, so that a set
    /// bit always finds its rule.
    pub fn set_rules(&mut self, rules: &FilterRules) -> Result<(), SensorError> {
        let mut filter = Box::new([0u64; BLOOM_WORDS]);
        let of_process = ["environ", "mem"].map(|name| {
            let name = filter::hash_of_name(name.as_bytes());
            (
                filter::key(filter::FilterKind::Name, name),
                filter::PROCFS_ONLY,
            )
        });
        let wanted: BTreeMap<u64, u32> = rules
            .0
            .iter()
            .map(|(key, value)| (*key, *value))
            .chain(of_process)
            .collect();
        // Both together might not fit: then there is a moment without the old ones.
        let stale = self.rules.keys().filter_map(Result::ok);
        let stale: Vec<u64> = stale.filter(|key| !wanted.contains_key(key)).collect();
        let crowded = wanted.len() + stale.len() > RULES_MAX;
        if crowded {
            self.remove_rules(&stale)?;
        }
        for (key, value) in &wanted {
            let inserted = self.rules.insert(key, value, 0);
            if is_full(&inserted) {
                self.full.add(LimitedMap::Rules, 1);
                continue;
            }
            inserted.map_err(failed("RULES"))?;
            let (word, mask) = bloom_position(*key);
            filter[word] |= mask;
        }
        self.bloom.set(0, *filter, 0).map_err(failed("BLOOM"))?;
        if !crowded {
            self.remove_rules(&stale)?;
        }
        self.begin_epoch()
    }

    fn remove_rules(&mut self, keys: &[u64]) -> Result<(), SensorError> {
        for key in keys {
            self.rules.remove(key).map_err(failed("RULES"))?;
        }
        Ok(())
    }

    /// Has the probes examine every file again. Called every second, because a directory may have
    /// been renamed.
    pub fn begin_epoch(&mut self) -> Result<(), SensorError> {
        self.epoch.set(0, boot_time(), 0).map_err(failed("EPOCH"))
    }

    /// Has opens of this file reported regardless of its name.
    pub fn learn(&mut self, file: FileId) -> Result<(), SensorError> {
        if !self.remember_inode(file, INODE_CREDENTIAL)? {
            return Ok(());
        }
        let (word, mask) = bloom_position(inode_key(file.inode));
        if self.inode_filter[word] & mask == 0 {
            self.inode_filter[word] |= mask;
            self.bloom
                .set(1, *self.inode_filter, 0)
                .map_err(failed("BLOOM"))?;
        }
        self.begin_epoch()
    }

    /// Has opens of this file ignored: only its name looks like a credential's.
    pub fn ignore(&mut self, file: FileId) -> Result<(), SensorError> {
        self.remember_inode(file, INODE_IGNORED).map(drop)
    }

    /// Stores an entry in the inode map; returns whether it is new. If the map is full, the oldest
    /// entry is removed: that file is matched by name again, and its bit in the filter costs a
    /// lookup.
    fn remember_inode(&mut self, file: FileId, value: u32) -> Result<bool, SensorError> {
        match self.noted.peek_mut(&file) {
            Some(known) if *known == value => return Ok(false),
            Some(known) => *known = value,
            None => {
                if self.noted.len() >= INODE_LIMIT
                    && let Some((oldest, value)) = self.noted.remove_lru()
                {
                    if value == INODE_CREDENTIAL {
                        self.full.add(LimitedMap::Inodes, 1);
                    }
                    // It may have been removed already.
                    let _ = self.inodes.remove(&key_of(oldest));
                }
                self.noted.insert(file, value);
            }
        }
        self.inodes
            .insert(key_of(file), value, 0)
            .map_err(failed("INODES"))?;
        Ok(true)
    }
}

fn key_of(file: FileId) -> Plain<InodeKey> {
    Plain(InodeKey {
        inode: file.inode,
        device: file.device,
        generation: file.generation,
    })
}
