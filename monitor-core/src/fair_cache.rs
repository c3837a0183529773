//! A bounded table in which nobody can displace the entries of others.
//!
//! When it is full, the entry to go is the least recently used one of whoever has the most: of the
//! cgroup with the most entries, the user with the most. Whoever has less than an equal share loses
//! nothing, however many entries others make.

use hashlink::LinkedHashSet;
use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    sync::Arc,
};

/// For whom an entry was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant {
    /// The outermost cgroups, which its processes cannot leave: a pod, a service, a user's slice. A
    /// user can own very many user ids in a user namespace, but has one slice.
    pub group: Arc<str>,
    pub user: u32,
}

impl Tenant {
    /// Its name in answers: `user N`, and the cgroups if they are known.
    pub fn name(&self) -> String {
        match &*self.group {
            "" | "/" => format!("user {}", self.user),
            group => format!("user {} of {group}", self.user),
        }
    }
}

/// The most that each may keep, if all together may keep `allowed`: whoever has less keeps all of it.
fn fair_cap(mut totals: Vec<u64>, allowed: u64) -> u64 {
    totals.sort_unstable();
    let mut rest = allowed;
    let mut sharers = totals.len() as u64;
    for total in totals {
        let share = rest / sharers;
        if total > share {
            return share;
        }
        rest -= total;
        sharers -= 1;
    }
    u64::MAX
}

/// The size of an entry that is a list: short ones count as one.
pub const fn size_of_list(len: usize) -> usize {
    1 + len / 4
}

/// The most that each member of a group may keep, by group, if all together may keep `allowed`: first
/// the groups have equal shares, and then the members within each. Whoever has less keeps all of it.
pub fn fair_caps<G: Hash + Eq>(
    members: impl IntoIterator<Item = (G, u64)>,
    allowed: u64,
) -> HashMap<G, u64> {
    let mut groups: HashMap<G, Vec<u64>> = HashMap::new();
    for (group, total) in members {
        groups.entry(group).or_default().push(total);
    }
    let totals = groups.values().map(|group| group.iter().sum()).collect();
    let of_group = fair_cap(totals, allowed);
    groups
        .into_iter()
        .map(|(group, totals)| (group, fair_cap(totals, of_group)))
        .collect()
}

/// A bounded table with a share for each tenant.
#[derive(Debug)]
pub struct FairCache<K, V> {
    capacity: usize,
    /// The sizes of all entries together.
    size: usize,
    /// Boxed, because up to half of a hash table is empty.
    entries: HashMap<K, Box<CacheEntry<V>>>,
    groups: HashMap<Arc<str>, TenantGroup<K>>,
    /// The groups by the size of their entries.
    by_size: BTreeSet<(usize, Arc<str>)>,
    evicted: u64,
}

#[derive(Debug)]
struct CacheEntry<V> {
    tenant: Tenant,
    /// 1 unless it was set.
    size: usize,
    value: V,
}

/// The entries of a cgroup.
#[derive(Debug)]
struct TenantGroup<K> {
    size: usize,
    users: HashMap<u32, UserEntries<K>>,
    /// The users by the size of their entries.
    by_size: BTreeSet<(usize, u32)>,
}

/// The entries of a user of a cgroup.
#[derive(Debug)]
struct UserEntries<K> {
    size: usize,
    /// Least recently used first.
    keys: LinkedHashSet<K>,
}

impl<K> Default for TenantGroup<K> {
    fn default() -> Self {
        Self {
            size: 0,
            users: HashMap::new(),
            by_size: BTreeSet::new(),
        }
    }
}

impl<K: Hash + Eq> Default for UserEntries<K> {
    fn default() -> Self {
        Self {
            size: 0,
            keys: LinkedHashSet::new(),
        }
    }
}

impl<K: Hash + Eq + Clone, V> FairCache<K, V> {
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            size: 0,
            entries: HashMap::new(),
            groups: HashMap::new(),
            by_size: BTreeSet::new(),
            evicted: 0,
        }
    }

    /// The sizes of the entries that were removed for lack of room.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    pub fn contains_key(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of a key, without counting as a use of it.
    pub fn peek(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    /// As [`peek`](Self::peek), to change it.
    pub fn peek_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|entry| &mut entry.value)
    }

    /// All values, in no order.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.values_mut().map(|entry| &mut entry.value)
    }

    /// Removes an entry; returns for whom it was made, and its value.
    pub fn remove(&mut self, key: &K) -> Option<(Tenant, V)> {
        let CacheEntry {
            tenant,
            size,
            value,
        } = *self.entries.remove(key)?;
        self.size -= size;
        self.change_group(&tenant.group, |group| {
            group.change_user(tenant.user, |user| {
                user.size -= size;
                user.keys.remove(key);
            });
        });
        Some((tenant, value))
    }

    /// Removes what does not fit a condition; it does not count as evicted.
    pub fn retain(&mut self, mut fits: impl FnMut(&K, &V) -> bool) {
        let unfit: Vec<K> = self
            .entries
            .iter()
            .filter(|(key, entry)| !fits(key, &entry.value))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &unfit {
            self.remove(key);
        }
        // Returns the memory of a burst.
        if self.entries.capacity() > 1024 + 8 * self.entries.len() {
            self.entries.shrink_to_fit();
        }
    }

    /// The value of a key, which counts as a use of it.
    pub fn get(&mut self, key: &K) -> Option<&V> {
        let CacheEntry { tenant, value, .. } = &**self.entries.get(key)?;
        let group = self.groups.get_mut(&tenant.group);
        if let Some(user) = group.and_then(|group| group.users.get_mut(&tenant.user)) {
            user.keys.to_back(key);
        }
        Some(value)
    }

    /// Sets the size of an entry, which counts as a use of it: of a value that grows, not only the
    /// number may be limited. Others are evicted to make room for it, and in the end this one.
    pub fn resize(&mut self, key: &K, size: usize) {
        let size = size.max(1);
        self.get(key);
        if let Some(entry) = self.entries.get_mut(key) {
            let before = std::mem::replace(&mut entry.size, size);
            let Tenant { group, user } = entry.tenant.clone();
            self.size = self.size - before + size;
            self.change_group(&group, |group| {
                group.change_user(user, |user| user.size = user.size - before + size);
            });
        }
        while self.size > self.capacity && self.evict().is_some() {}
    }

    /// Inserts or replaces a value; returns the previous one. A key stays with the tenant for whom it
    /// was first inserted.
    pub fn insert(&mut self, tenant: &Tenant, key: K, value: V) -> Option<V> {
        if self.get(&key).is_some() {
            let known = self.entries.get_mut(&key)?;
            return Some(std::mem::replace(&mut known.value, value));
        }
        self.insert_new(tenant, key, value, drop);
        None
    }

    /// Inserts a key that is not there; `evicted` gets the values that make room for it.
    pub fn insert_new(&mut self, tenant: &Tenant, key: K, value: V, evicted: impl FnMut(V)) {
        self.make_room(tenant, &key, evicted);
        self.entries.insert(key, CacheEntry::boxed(tenant, value));
    }

    /// The value of a key, which counts as a use of it; inserted if it is not there.
    pub fn get_or_insert_with(
        &mut self,
        tenant: &Tenant,
        key: &K,
        make: impl FnOnce() -> V,
    ) -> &mut V {
        if self.get(key).is_none() {
            self.make_room(tenant, key, drop);
        }
        let entry = self.entries.entry(key.clone());
        let entry = entry.or_insert_with(|| CacheEntry::boxed(tenant, make()));
        &mut entry.value
    }

    /// Prepares for a new key.
    fn make_room(&mut self, tenant: &Tenant, key: &K, mut evicted: impl FnMut(V)) {
        while self.size >= self.capacity
            && let Some(value) = self.evict()
        {
            evicted(value);
        }
        self.size += 1;
        self.change_group(&tenant.group, |group| {
            group.change_user(tenant.user, |user| {
                user.size += 1;
                user.keys.insert(key.clone());
            });
        });
    }

    /// Removes the least recently used entry of whoever has the most.
    fn evict(&mut self) -> Option<V> {
        let (_, name) = self.by_size.last()?;
        let group = self.groups.get(name)?;
        let (_, user) = group.by_size.last()?;
        let key = group.users.get(user)?.keys.front()?.clone();
        let before = self.size;
        let (_, value) = self.remove(&key)?;
        self.evicted += (before - self.size) as u64;
        Some(value)
    }

    /// Changes a group, and keeps the order of groups up to date.
    fn change_group(&mut self, name: &Arc<str>, change: impl FnOnce(&mut TenantGroup<K>)) {
        let group = self.groups.entry(Arc::clone(name)).or_default();
        let before = group.size;
        change(group);
        let after = group.size;
        self.by_size.remove(&(before, Arc::clone(name)));
        if group.users.is_empty() {
            self.groups.remove(name);
        } else {
            self.by_size.insert((after, Arc::clone(name)));
        }
    }
}

impl<V> CacheEntry<V> {
    fn boxed(tenant: &Tenant, value: V) -> Box<Self> {
        Box::new(Self {
            tenant: tenant.clone(),
            size: 1,
            value,
        })
    }
}

impl<K: Hash + Eq> TenantGroup<K> {
    /// Changes what a user has, and keeps the order of users up to date.
    fn change_user(&mut self, id: u32, change: impl FnOnce(&mut UserEntries<K>)) {
        let user = self.users.entry(id).or_default();
        let before = user.size;
        change(user);
        let after = user.size;
        let is_empty = user.keys.is_empty();
        self.by_size.remove(&(before, id));
        if is_empty {
            self.users.remove(&id);
        } else {
            self.by_size.insert((after, id));
        }
        self.size = self.size - before + after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tenant(group: &str, user: u32) -> Tenant {
        Tenant {
            group: group.into(),
            user,
        }
    }

    #[test]
    fn whoever_has_little_keeps_it() {
        assert_eq!(fair_cap(vec![], 0), u64::MAX);
        assert_eq!(fair_cap(vec![10, 20], 30), u64::MAX);
        // 10 for the first, and the rest for the two others.
        assert_eq!(fair_cap(vec![10, 1_000, 5_000], 110), 50);
        assert_eq!(fair_cap(vec![10, 1_000], 0), 0);
    }

    proptest! {
        #[test]
        fn what_may_be_kept_fits(totals in prop::collection::vec(0u64..1_000_000, 0..50), allowed in 0u64..5_000_000) {
            let cap = fair_cap(totals.clone(), allowed);
            let kept: u64 = totals.iter().map(|total| (*total).min(cap)).sum();
            prop_assert!(kept <= allowed || cap == u64::MAX);
            // Nobody loses anything without need.
            let all: u64 = totals.iter().sum();
            prop_assert_eq!(cap == u64::MAX, all <= allowed);
        }
    }

    #[test]
    fn a_flood_displaces_only_entries_of_whoever_makes_it() {
        let mut table = FairCache::new(100);
        let (shop, flood) = (
            tenant("/system.slice/shop.service", 0),
            "/user.slice/user-1000.slice",
        );
        for number in 0..40u64 {
            table.insert(&shop, number, ());
        }
        // With one user id, and with as many as a user namespace has.
        for number in 0..10_000u64 {
            table.insert(&tenant(flood, 1000), 1_000 + number, ());
            let user = 100_000 + u32::try_from(number).expect("small");
            table.insert(&tenant(flood, user), 1_000_000 + number, ());
        }
        assert_eq!(
            (0..40).filter(|number| table.contains_key(number)).count(),
            40
        );
        assert_eq!(table.entries.len(), 100);
        assert_eq!(table.evicted(), 20_040 - 100);
        // Of the flood, the last ones stay.
        assert!(table.contains_key(&1_009_999));
    }

    #[test]
    fn users_of_one_cgroup_have_shares_too() {
        let mut table = FairCache::new(100);
        for number in 0..10 {
            table.insert(&tenant("", 0), number, number);
        }
        for number in 100..10_000 {
            table.insert(&tenant("", 65_534), number, number);
        }
        assert!((0..10).all(|number| table.get(&number) == Some(&number)));
    }

    #[test]
    fn what_was_used_last_stays() {
        let mut table = FairCache::new(3);
        let own = tenant("", 0);
        for key in ["a", "b", "c"] {
            table.insert(&own, key, 1);
        }
        assert_eq!(table.get(&"a"), Some(&1));
        assert_eq!(table.insert(&own, "b", 2), Some(1));
        table.insert(&tenant("", 1), "d", 1);
        assert!(!table.contains_key(&"c") && table.contains_key(&"a"));
        assert_eq!(table.get(&"b"), Some(&2));
    }

    #[test]
    fn an_entry_that_grows_displaces_others() {
        let mut table = FairCache::new(100);
        let (own, flood) = (tenant("", 0), tenant("", 65_534));
        for number in 0..10 {
            table.insert(&own, number, ());
            table.resize(&number, 3);
        }
        for number in 100..200 {
            table.insert(&flood, number, ());
            table.resize(&number, 64);
        }
        assert!((0..10).all(|number| table.contains_key(&number)));
        assert_eq!((table.size, table.evicted()), (94, 99 * 64));
        // Larger than all there is.
        table.resize(&199, 101);
        assert!(!table.contains_key(&199));
        assert_eq!(table.size, 30);
    }

    proptest! {
        /// The indexes agree with the entries after any operations, and the table never exceeds its
        /// capacity.
        #[test]
        fn indexes_agree(operations in prop::collection::vec((0u8..4, 0u32..4, 0u16..64, 0u8..6), 0..400)) {
            let mut table = FairCache::new(16);
            for (group, user, key, operation) in operations {
                match operation {
                    0 => {
                        table.get(&key);
                    }
                    1 => {
                        table.remove(&key);
                    }
                    2 => table.retain(|known, ()| known % 3 != key % 3),
                    3 => table.resize(&key, 1 + usize::from(key % 20)),
                    _ => {
                        table.insert(&tenant(&group.to_string(), user), key, ());
                    }
                }
                prop_assert!(table.size <= 16);
                let (mut counted, mut total) = (0, 0);
                for (name, group) in &table.groups {
                    let size: usize = group.users.values().map(|user| user.size).sum();
                    prop_assert_eq!(size, group.size);
                    prop_assert!(table.by_size.contains(&(size, Arc::clone(name))));
                    prop_assert_eq!(group.by_size.len(), group.users.len());
                    for (id, user) in &group.users {
                        let size: usize = user.keys.iter().map(|key| table.entries[key].size).sum();
                        prop_assert_eq!(size, user.size);
                        prop_assert!(group.by_size.contains(&(size, *id)));
                        counted += user.keys.len();
                    }
                    total += size;
                }
                prop_assert_eq!((counted, total), (table.entries.len(), table.size));
                prop_assert_eq!(table.by_size.len(), table.groups.len());
            }
        }
    }
}
