//! A map that evicts entries neither inserted nor read recently, so that invented keys cannot make
//! it grow.

use std::{borrow::Borrow, collections::HashMap, hash::Hash};

/// Two generations of a map; an entry that is read moves to the newer one.
#[derive(Clone, Debug)]
pub struct Recent<K, V> {
    new: HashMap<K, V>,
    old: HashMap<K, V>,
    /// Entries per generation: at most twice as many are held.
    most: usize,
}

impl<K: Eq + Hash, V> Recent<K, V> {
    pub fn new(most: usize) -> Self {
        Self {
            new: HashMap::new(),
            old: HashMap::new(),
            most,
        }
    }

    pub fn get<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        if let Some((key, value)) = self.old.remove_entry(key) {
            self.insert(key, value);
        }
        self.new.get(key)
    }

    /// The value of a key, without refreshing it.
    pub fn peek<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.new.get(key).or_else(|| self.old.get(key))
    }

    pub fn contains<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.new.contains_key(key) || self.old.contains_key(key)
    }

    pub fn insert(&mut self, key: K, value: V) {
        if self.new.len() >= self.most && !self.new.contains_key(&key) {
            self.old = std::mem::take(&mut self.new);
        }
        self.old.remove(&key);
        self.new.insert(key, value);
    }

    /// The value of a key, inserted if absent.
    pub fn entry(&mut self, key: K) -> &mut V
    where
        V: Default,
        K: Clone,
    {
        if !self.new.contains_key(&key) {
            let value = self.old.remove(&key).unwrap_or_default();
            self.insert(key.clone(), value);
        }
        self.new.entry(key).or_default()
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.new.values_mut().chain(self.old.values_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stays_and_the_rest_goes() {
        let mut map = Recent::new(10);
        map.insert("kept".to_owned(), 1);
        map.insert("forgotten".to_owned(), 2);
        for number in 0..1000 {
            map.insert(number.to_string(), number);
            assert_eq!(map.get("kept"), Some(&1), "{number}");
        }
        assert!(!map.contains("forgotten"));
        assert!(map.contains("999"));
        assert!(map.new.len() + map.old.len() <= 20);
        *map.entry("counted".to_owned()) += 1;
        *map.entry("counted".to_owned()) += 1;
        assert_eq!(map.get("counted"), Some(&2));
    }
}
