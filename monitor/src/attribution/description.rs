//! How a process is described to everything else: without secrets in the names of programs, and in
//! memory that records share.

use super::{ANCESTORS_MAX, Attribution, ProcessEntry};
use jiff::Timestamp;
use monitor_core::{
    catalog::secret_marks::SecretMarks,
    fair_cache::Tenant,
    model::{Ancestor, Process, Subject},
};
use monitor_parse::cgroup::Cgroup;
use std::sync::Arc;

impl Attribution {
    /// Whose share of bounded tables a process uses.
    pub fn tenant(&mut self, subject: Subject) -> Tenant {
        let Some(entry) = self.table.get(subject) else {
            return Tenant::default();
        };
        let (group, user) = (Arc::clone(&entry.group), entry.uid);
        self.tenant_in(&group, user)
    }

    /// As [`tenant`](Self::tenant), for a user of a cgroup, given by its id.
    pub fn tenant_of_cgroup(&mut self, id: u64, user: u32) -> Tenant {
        let group = self.groups.get(id, None, None);
        self.tenant_in(&group, user)
    }

    fn tenant_in(&mut self, group: &Cgroup, user: u32) -> Tenant {
        let name = group.outermost();
        let group = match self.outermost.get(name) {
            Some(known) => Arc::clone(known),
            None => {
                let shared: Arc<str> = name.into();
                self.outermost
                    .insert(Arc::clone(&shared), Arc::clone(&shared));
                shared
            }
        };
        Tenant { group, user }
    }

    /// The process of a subject, with its ancestors.
    pub fn process(&mut self, subject: Subject) -> Process {
        let ancestors = self.lineage(subject);
        let tenant = self.tenant(subject);
        let entry = self.table.get(subject);
        let (exe, comm) = entry.map_or_else(Default::default, |entry| self.shown_program(entry));
        Process {
            pid: subject.pid,
            start_time: self.clock.started(subject),
            exe,
            comm,
            uid: entry.map_or(0, |entry| entry.uid),
            tenant,
            ancestors,
        }
    }

    /// When a process started.
    pub fn started(&self, subject: Subject) -> Timestamp {
        self.clock.started(subject)
    }

    /// The path and the name of a program, without secrets in them.
    pub(super) fn shown_program(&self, entry: &ProcessEntry) -> (String, String) {
        let Some(exe) = self.marks.mask(&entry.exe) else {
            return (entry.exe.to_string(), entry.comm.clone());
        };
        // The kernel gives a process the start of its program's name.
        let file = entry.exe.rsplit('/').next();
        let is_of_file = file.is_some_and(|name| name.starts_with(&entry.comm));
        let comm = match exe.rsplit('/').next() {
            Some(shown) if is_of_file => shown.to_owned(),
            _ => entry.comm.clone(),
        };
        (exe, comm)
    }

    /// Sets by what secrets are recognised in the names of programs, units, pods and containers.
    pub fn set_marks(&mut self, marks: SecretMarks) {
        self.marks = marks;
        self.lineages.clear();
    }

    /// The ancestors of a process, in the same memory as those of its siblings: thousands of records
    /// may wait to be written.
    fn lineage(&mut self, subject: Subject) -> Arc<[Ancestor]> {
        let Some(parent) = self.table.parent(subject) else {
            return Arc::default();
        };
        let ancestors: Vec<Ancestor> = self
            .table
            .ancestors(subject)
            .take(ANCESTORS_MAX)
            .map(|(above, entry)| {
                let (exe, comm) = self.shown_program(entry);
                Ancestor {
                    pid: above.pid,
                    exe,
                    comm,
                }
            })
            .collect();
        match self.lineages.get(&parent) {
            Some(known) if **known == *ancestors => Arc::clone(known),
            _ => {
                let shared: Arc<[Ancestor]> = ancestors.into();
                self.lineages.insert(parent, Arc::clone(&shared));
                shared
            }
        }
    }
}
