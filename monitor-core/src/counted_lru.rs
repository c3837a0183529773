//! A bounded table that counts what it forgets.

use hashlink::LruCache;
use std::hash::Hash;

/// A table that forgets the least recently used entry when it is full, and counts that.
#[derive(Debug)]
pub struct CountedLru<K, V> {
    entries: LruCache<K, V>,
    evicted: u64,
}

impl<K: Hash + Eq, V> CountedLru<K, V> {
    pub fn new(capacity: usize) -> Self {
        Self {
            entries: LruCache::new(capacity),
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

    /// The value of a key, which counts as a use of it.
    pub fn get(&mut self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|value| value as &V)
    }

    /// The value of a key, without counting as a use of it.
    pub fn peek(&self, key: &K) -> Option<&V> {
        self.entries.peek(key)
    }

    /// As [`peek`](Self::peek), to change it.
    pub fn peek_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.peek_mut(key)
    }

    /// Inserts or replaces a value. Returns an entry that had to go.
    pub fn insert(&mut self, key: K, value: V) -> Option<(K, V)> {
        let is_full = self.entries.len() >= self.entries.capacity();
        let gone = if is_full && !self.entries.contains_key(&key) {
            self.entries.remove_lru()
        } else {
            None
        };
        self.evicted += u64::from(gone.is_some());
        self.entries.insert(key, value);
        gone
    }

    /// Inserts a value unless its key is there.
    pub fn add(&mut self, key: K, value: V) {
        if !self.entries.contains_key(&key) {
            self.insert(key, value);
        }
    }

    /// All entries, the least recently used first.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forgotten_is_counted() {
        let mut table = CountedLru::new(2);
        for key in ["a", "b"] {
            assert_eq!(table.insert(key, 1), None);
        }
        // Neither a replaced value nor one that is there already.
        table.insert("b", 2);
        table.add("b", 3);
        assert_eq!((table.peek(&"b"), table.evicted()), (Some(&2), 0));
        assert_eq!(table.get(&"a"), Some(&1));
        assert_eq!(table.insert("c", 1), Some(("b", 2)));
        assert_eq!(table.evicted(), 1);
        assert!(table.contains_key(&"a") && !table.contains_key(&"b"));
    }
}
