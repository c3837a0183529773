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

/// A bounded table with a share for each tenant.
#[derive(Debug)]
pub struct FairCache<K, V> {
    capacity: usize,
    entries: HashMap<K, (Tenant, V)>,
    groups: HashMap<Arc<str>, TenantGroup<K>>,
    /// The groups by their number of entries.
    by_size: BTreeSet<(usize, Arc<str>)>,
    evicted: u64,
}

/// The entries of a cgroup.
#[derive(Debug)]
struct TenantGroup<K> {
    len: usize,
    /// Least recently used first.
    users: HashMap<u32, LinkedHashSet<K>>,
    /// The users by their number of entries.
    by_size: BTreeSet<(usize, u32)>,
}

impl<K> Default for TenantGroup<K> {
    fn default() -> Self {
        Self {
            len: 0,
            users: HashMap::new(),
            by_size: BTreeSet::new(),
        }
    }
}

impl<K: Hash + Eq + Clone, V> FairCache<K, V> {
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            entries: HashMap::new(),
            groups: HashMap::new(),
            by_size: BTreeSet::new(),
            evicted: 0,
        }
    }

    /// Number of entries that were removed for lack of room.
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
        self.entries.get(key).map(|(_, value)| value)
    }

    /// As [`peek`](Self::peek), to change it.
    pub fn peek_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|(_, value)| value)
    }

    /// All values, in no order.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.values_mut().map(|(_, value)| value)
    }

    /// Removes an entry; returns for whom it was made, and its value.
    pub fn remove(&mut self, key: &K) -> Option<(Tenant, V)> {
        let (tenant, value) = self.entries.remove(key)?;
        self.change_group(&tenant.group, |group| group.remove(tenant.user, key));
        Some((tenant, value))
    }

    /// Removes what does not fit a condition; it does not count as evicted.
    pub fn retain(&mut self, mut fits: impl FnMut(&K, &V) -> bool) {
        let unfit: Vec<K> = self
            .entries
            .iter()
            .filter(|(key, (_, value))| !fits(key, value))
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
        let (tenant, value) = self.entries.get(key)?;
        let group = self.groups.get_mut(&tenant.group);
        if let Some(keys) = group.and_then(|group| group.users.get_mut(&tenant.user)) {
            keys.to_back(key);
        }
        Some(value)
    }

    /// Inserts or replaces a value; returns the previous one. A key stays with the tenant for whom it
    /// was first inserted.
    pub fn insert(&mut self, tenant: &Tenant, key: K, value: V) -> Option<V> {
        if self.get(&key).is_some() {
            let (_, known) = self.entries.get_mut(&key)?;
            return Some(std::mem::replace(known, value));
        }
        self.make_room(tenant, &key);
        self.entries.insert(key, (tenant.clone(), value));
        None
    }

    /// The value of a key, which counts as a use of it; inserted if it is not there.
    pub fn get_or_insert_with(
        &mut self,
        tenant: &Tenant,
        key: &K,
        make: impl FnOnce() -> V,
    ) -> &mut V {
        if self.get(key).is_none() {
            self.make_room(tenant, key);
        }
        let entry = self.entries.entry(key.clone());
        &mut entry.or_insert_with(|| (tenant.clone(), make())).1
    }

    /// Prepares for a new key.
    fn make_room(&mut self, tenant: &Tenant, key: &K) {
        if self.entries.len() >= self.capacity {
            self.evict();
        }
        self.change_group(&tenant.group, |group| group.add(tenant.user, key.clone()));
    }

    /// Removes the least recently used entry of whoever has the most.
    fn evict(&mut self) {
        let Some((_, name)) = self.by_size.last().cloned() else {
            return;
        };
        if let Some(key) = self.change_group(&name, TenantGroup::pop) {
            self.entries.remove(&key);
            self.evicted += 1;
        }
    }

    /// Changes a group, and keeps the order of groups up to date.
    fn change_group<T>(
        &mut self,
        name: &Arc<str>,
        change: impl FnOnce(&mut TenantGroup<K>) -> T,
    ) -> T {
        let group = self.groups.entry(Arc::clone(name)).or_default();
        let before = group.len;
        let changed = change(group);
        let after = group.len;
        self.by_size.remove(&(before, Arc::clone(name)));
        if after == 0 {
            self.groups.remove(name);
        } else {
            self.by_size.insert((after, Arc::clone(name)));
        }
        changed
    }
}

impl<K: Hash + Eq> TenantGroup<K> {
    fn add(&mut self, user: u32, key: K) {
        let keys = self.users.entry(user).or_default();
        self.by_size.remove(&(keys.len(), user));
        keys.insert(key);
        self.by_size.insert((keys.len(), user));
        self.len += 1;
    }

    fn remove(&mut self, user: u32, key: &K) {
        let Some(keys) = self.users.get_mut(&user) else {
            return;
        };
        let len = keys.len();
        if !keys.remove(key) {
            return;
        }
        self.len -= 1;
        self.by_size.remove(&(len, user));
        if len > 1 {
            self.by_size.insert((len - 1, user));
        } else {
            self.users.remove(&user);
        }
    }

    fn pop(&mut self) -> Option<K> {
        let (len, user) = self.by_size.pop_last()?;
        let keys = self.users.get_mut(&user)?;
        let key = keys.pop_front()?;
        self.len -= 1;
        if len > 1 {
            self.by_size.insert((len - 1, user));
        } else {
            self.users.remove(&user);
        }
        Some(key)
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

    proptest! {
        /// The indexes agree with the entries after any operations, and the table never exceeds its
        /// capacity.
        #[test]
        fn indexes_agree(operations in prop::collection::vec((0u8..4, 0u32..4, 0u16..64, 0u8..5), 0..400)) {
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
                    _ => {
                        table.insert(&tenant(&group.to_string(), user), key, ());
                    }
                }
                prop_assert!(table.entries.len() <= 16);
                let mut counted = 0;
                for (name, group) in &table.groups {
                    let len: usize = group.users.values().map(LinkedHashSet::len).sum();
                    prop_assert_eq!(len, group.len);
                    prop_assert!(table.by_size.contains(&(len, Arc::clone(name))));
                    prop_assert_eq!(group.by_size.len(), group.users.len());
                    for (user, keys) in &group.users {
                        prop_assert!(group.by_size.contains(&(keys.len(), *user)));
                    }
                    counted += len;
                }
                prop_assert_eq!(counted, table.entries.len());
                prop_assert_eq!(table.by_size.len(), table.groups.len());
            }
        }
    }
}
