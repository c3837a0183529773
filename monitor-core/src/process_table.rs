//! Processes, and how long exited ones are kept: records about them may still arrive, and they link
//! their descendants to what their own ancestors did.

use crate::model::Subject;
use jiff::{SignedDuration, Timestamp};
use std::collections::{HashMap, HashSet};

/// How long exited processes are kept if a descendant lives.
const EXITED_PARENT_TTL: SignedDuration = SignedDuration::from_secs(120);
/// How long other exited processes are kept. A fork storm consists of these.
const EXITED_TTL: SignedDuration = SignedDuration::from_secs(10);

#[derive(Debug)]
struct Entry<T> {
    parent: Option<Subject>,
    exited: Option<Timestamp>,
    value: T,
}

/// A table of processes with a value for each: the only owner of their lifetimes.
#[derive(Debug)]
pub struct ProcessTable<T>(HashMap<Subject, Entry<T>>);

impl<T> Default for ProcessTable<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> ProcessTable<T> {
    pub fn get(&self, subject: Subject) -> Option<&T> {
        self.0.get(&subject).map(|entry| &entry.value)
    }

    pub fn get_mut(&mut self, subject: Subject) -> Option<&mut T> {
        self.0.get_mut(&subject).map(|entry| &mut entry.value)
    }

    /// Adds a process that is alive, in place of an earlier one with this subject.
    pub fn insert(&mut self, subject: Subject, parent: Option<Subject>, value: T) {
        self.0.insert(
            subject,
            Entry {
                parent,
                exited: None,
                value,
            },
        );
    }

    /// Adds a process that is alive, or the missing parent of one that is there.
    pub fn ensure(&mut self, subject: Subject, parent: Option<Subject>, value: T) {
        let entry = self.0.entry(subject).or_insert(Entry {
            parent,
            exited: None,
            value,
        });
        entry.parent = entry.parent.or(parent);
    }

    pub fn parent(&self, subject: Subject) -> Option<Subject> {
        self.0.get(&subject)?.parent
    }

    /// Ancestors that are in the table, the nearest first.
    pub fn ancestors(&self, subject: Subject) -> impl Iterator<Item = (Subject, &T)> {
        let mut above = self.parent(subject);
        std::iter::from_fn(move || {
            let subject = above?;
            let entry = self.0.get(&subject)?;
            above = entry.parent;
            Some((subject, &entry.value))
        })
    }

    pub fn exit(&mut self, subject: Subject, time: Timestamp) {
        if let Some(entry) = self.0.get_mut(&subject) {
            entry.exited = Some(time);
        }
    }

    /// Processes that have not exited.
    pub fn alive(&self) -> impl Iterator<Item = (Subject, &T)> {
        let alive = self.0.iter().filter(|(_, entry)| entry.exited.is_none());
        alive.map(|(subject, entry)| (*subject, &entry.value))
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.values().map(|entry| &entry.value)
    }

    /// Removes processes that exited long ago, and those without living descendants that exited
    /// recently; returns them in order. Those in `held` stay.
    pub fn evict_exited(&mut self, now: Timestamp, held: &HashSet<Subject>) -> Vec<Subject> {
        let mut has_heirs = HashSet::new();
        for alive in self.0.values().filter(|entry| entry.exited.is_none()) {
            let mut above = alive.parent;
            while let Some(parent) = above
                && has_heirs.insert(parent)
            {
                above = self.0.get(&parent).and_then(|entry| entry.parent);
            }
        }
        let mut evicted = Vec::new();
        self.0.retain(|subject, entry| {
            let kept = if has_heirs.contains(subject) {
                EXITED_PARENT_TTL
            } else {
                EXITED_TTL
            };
            let stays = entry
                .exited
                .is_none_or(|exited| now.duration_since(exited) <= kept)
                || held.contains(subject);
            if !stays {
                evicted.push(*subject);
            }
            stays
        });
        // Returns the memory of a fork storm.
        if self.0.capacity() > 1024 + 8 * self.0.len() {
            self.0.shrink_to_fit();
        }
        evicted.sort_unstable();
        evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(pid: u32) -> Subject {
        Subject { pid, start: 1 }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    #[test]
    fn a_process_is_kept_while_a_descendant_lives() {
        let mut table = ProcessTable::default();
        table.insert(subject(1), None, "grandparent");
        table.insert(subject(2), Some(subject(1)), "parent");
        table.insert(subject(3), Some(subject(2)), "child");
        table.exit(subject(1), at(0));
        table.exit(subject(2), at(0));
        assert_eq!(table.evict_exited(at(60), &HashSet::new()), []);
        let ancestors: Vec<&str> = table.ancestors(subject(3)).map(|(_, name)| *name).collect();
        assert_eq!(ancestors, ["parent", "grandparent"]);
        table.exit(subject(3), at(60));
        let held = HashSet::from([subject(1)]);
        assert_eq!(table.evict_exited(at(65), &held), [subject(2)]);
        assert_eq!(table.evict_exited(at(65), &HashSet::new()), [subject(1)]);
        assert_eq!(table.evict_exited(at(71), &HashSet::new()), [subject(3)]);
        assert_eq!(table.values().count(), 0);
    }

    #[test]
    fn no_process_is_kept_forever_for_its_descendants() {
        let mut table = ProcessTable::default();
        table.insert(subject(1), None, ());
        table.insert(subject(2), Some(subject(1)), ());
        table.exit(subject(1), at(0));
        assert_eq!(table.evict_exited(at(120), &HashSet::new()), []);
        assert_eq!(table.evict_exited(at(121), &HashSet::new()), [subject(1)]);
        assert_eq!(table.alive().count(), 1);
    }

    /// Subjects are unique, but records may be wrong.
    #[test]
    fn ancestors_in_a_circle_end() {
        let mut table = ProcessTable::default();
        table.insert(subject(1), Some(subject(2)), ());
        table.insert(subject(2), Some(subject(1)), ());
        assert_eq!(table.evict_exited(at(0), &HashSet::new()), []);
        assert_eq!(table.ancestors(subject(1)).take(64).count(), 64);
    }
}
