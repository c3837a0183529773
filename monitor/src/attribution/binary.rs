//! Executables that were not installed: in memory only, deleted, added to a container after its image,
//! or downloaded a moment ago.

use super::program_name;
use crate::reader::protocol::ReadRequest;
use hashlink::LruCache;
use jiff::Timestamp;
use monitor_core::{
    model::{Subject, Untrusted},
    policy::is_packaged,
};
use std::path::Path;

/// Number of container executables whose origin is cached.
const CACHED: usize = 4096;
/// Directories in which anyone may create a program.
const TEMPORARY_DIRECTORIES: [&str; 4] = ["/tmp/", "/var/tmp/", "/dev/shm/", "/run/shm/"];
/// Low-level runtimes run a copy of themselves from memory until the container's own program
/// starts.
const RUNTIMES: [&str; 4] = ["runc", "crun", "youki", "runsc"];

/// A running executable, as far as it matters for trust.
#[derive(Clone, Copy, Debug)]
pub struct RunningBinary<'a> {
    pub subject: Subject,
    /// Path as the process sees it.
    pub exe: &'a str,
    /// It had no name when it was started.
    pub unlinked: bool,
    /// The executable of the parent process.
    pub parent: Option<&'a str>,
    /// The container that it runs in.
    pub container: Option<&'a str>,
}

/// Decides whether executables can be trusted, and caches lookups.
#[derive(Debug)]
pub struct BinaryTrust {
    /// Whether it was added after the image, by container and executable.
    added: LruCache<(String, String), bool>,
    /// Whether another file is at the path of a program whose own file was deleted.
    replaced: LruCache<Subject, bool>,
    /// Whether the directory of such a program is still there.
    directory: LruCache<Subject, bool>,
    /// Whether a program was written while somebody downloaded something.
    downloaded: LruCache<Subject, bool>,
}

impl Default for BinaryTrust {
    fn default() -> Self {
        Self {
            added: LruCache::new(CACHED),
            replaced: LruCache::new(CACHED),
            directory: LruCache::new(CACHED),
            downloaded: LruCache::new(CACHED),
        }
    }
}

impl BinaryTrust {
    /// A process executes another program.
    pub fn forget(&mut self, subject: Subject) {
        for known in [
            &mut self.replaced,
            &mut self.directory,
            &mut self.downloaded,
        ] {
            known.remove(&subject);
        }
    }

    /// What must be read to decide, if anything. `downloads` returns the times in which the user
    /// downloaded something.
    pub fn request(
        &mut self,
        running: RunningBinary<'_>,
        downloads: impl FnOnce() -> Vec<(Timestamp, Timestamp)>,
    ) -> Option<ReadRequest> {
        let RunningBinary { subject, exe, .. } = running;
        if is_in_memory(running) {
            return None;
        }
        let exists = |path: &Path| ReadRequest::Exists {
            pid: subject.pid,
            path: path.into(),
        };
        let path = Path::new(exe);
        let is_replaced = self.replaced.get(&subject).copied();
        if is_replaced.is_none() && (running.unlinked || is_deleted(subject.pid)) {
            return Some(exists(path));
        }
        if is_replaced == Some(false) && self.directory.get(&subject).is_none() {
            return Some(exists(path.parent()?));
        }
        if let Some(container) = running.container {
            let key = (container.to_owned(), exe.to_owned());
            return self.added.get(&key).is_none().then(|| ReadRequest::Added {
                pid: subject.pid,
                exe: path.into(),
            });
        }
        if is_packaged(exe) || self.downloaded.get(&subject).is_some() {
            return None;
        }
        let times = downloads();
        (!times.is_empty()).then(|| ReadRequest::Written {
            pid: subject.pid,
            exe: path.into(),
            times,
        })
    }

    /// Remembers the answer to a request.
    pub fn learn(&mut self, running: RunningBinary<'_>, request: &ReadRequest, fact: bool) {
        match (request, running.container) {
            (ReadRequest::Exists { path, .. }, _) if path.as_path() == Path::new(running.exe) => {
                self.replaced.insert(running.subject, fact);
            }
            (ReadRequest::Exists { .. }, _) => {
                self.directory.insert(running.subject, fact);
            }
            (ReadRequest::Written { .. }, _) => {
                self.downloaded.insert(running.subject, fact);
            }
            (ReadRequest::Added { .. }, Some(container)) => {
                let key = (container.to_owned(), running.exe.to_owned());
                self.added.insert(key, fact);
            }
            _ => {}
        }
    }

    /// Why an executable cannot be trusted, as far as it is known. For a process that exited, only
    /// what was seen at its start is known. `is_old` if it has run for long.
    pub fn distrust_reason(
        &mut self,
        running: RunningBinary<'_>,
        is_old: bool,
    ) -> Option<Untrusted> {
        let RunningBinary { subject, exe, .. } = running;
        if is_in_memory(running) {
            return (!is_runtime(running)).then_some(Untrusted::Memory);
        }
        let is_replaced = self.replaced.get(&subject).copied();
        // An upgrade puts another file at the same path. A program that is executed later was kept
        // open by one that ran before: systemd's executor.
        if running.unlinked && !(is_replaced == Some(true) && is_packaged(exe)) {
            return Some(Untrusted::Deleted);
        }
        // Old releases are removed with their directories, while some of their processes run.
        let is_pruned = is_old && self.directory.get(&subject) == Some(&false);
        if is_replaced == Some(false) && !is_pruned {
            return Some(Untrusted::Deleted);
        }
        if let Some(container) = running.container {
            let key = (container.to_owned(), exe.to_owned());
            if self.added.get(&key) == Some(&true) {
                return Some(Untrusted::Added);
            }
        }
        if self.downloaded.get(&subject) == Some(&true) {
            return Some(Untrusted::Downloaded);
        }
        TEMPORARY_DIRECTORIES
            .iter()
            .any(|place| exe.starts_with(place))
            .then_some(Untrusted::Temporary)
    }
}

/// Whether a program never had a file.
fn is_in_memory(running: RunningBinary<'_>) -> bool {
    running.unlinked && running.exe.trim_start_matches('/').starts_with("memfd:")
}

/// Whether it is a runtime's copy of itself: not in a container yet, and started by the runtime.
fn is_runtime(running: RunningBinary<'_>) -> bool {
    let parent = running.parent.map(program_name);
    running.container.is_none() && parent.is_some_and(|name| RUNTIMES.contains(&name))
}

/// Whether the file of a running program was deleted.
fn is_deleted(pid: u32) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe"))
        .is_ok_and(|link| link.to_string_lossy().ends_with(" (deleted)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(pid: u32) -> Subject {
        Subject { pid, start: 1 }
    }

    fn running(exe: &str, unlinked: bool) -> RunningBinary<'_> {
        RunningBinary {
            // No process has this pid.
            subject: subject(0x7000_0001),
            exe,
            unlinked,
            parent: Some("/usr/bin/bash"),
            container: None,
        }
    }

    #[test]
    fn executables_that_can_be_trusted() {
        let mut binaries = BinaryTrust::default();
        for (exe, unlinked, expected) in [
            ("/usr/bin/curl", false, None),
            ("/memfd:x", true, Some(Untrusted::Memory)),
            ("memfd:x", true, Some(Untrusted::Memory)),
            ("/usr/bin/curl", true, Some(Untrusted::Deleted)),
            ("/tmp/a", true, Some(Untrusted::Deleted)),
            ("/tmp/a", false, Some(Untrusted::Temporary)),
            ("/dev/shm/a", false, Some(Untrusted::Temporary)),
            ("/tmpfiles/a", false, None),
        ] {
            let found = binaries.distrust_reason(running(exe, unlinked), false);
            assert_eq!(found, expected, "{exe} {unlinked}");
        }
        let mut copy = running("/memfd:runc_cloned:/proc/self/exe", true);
        copy.parent = Some("/usr/sbin/runc");
        assert_eq!(binaries.distrust_reason(copy, false), None);
        copy.container = Some("c");
        assert_eq!(
            binaries.distrust_reason(copy, false),
            Some(Untrusted::Memory)
        );
    }

    /// What is answered to each question in turn, and what is concluded.
    fn conclude(
        process: RunningBinary<'_>,
        answers: &[bool],
        is_old: bool,
        downloads: &[(Timestamp, Timestamp)],
    ) -> Option<Untrusted> {
        let mut binaries = BinaryTrust::default();
        for fact in answers {
            let request = binaries.request(process, || downloads.to_vec());
            binaries.learn(process, &request.expect("a question"), *fact);
        }
        assert_eq!(binaries.request(process, || downloads.to_vec()), None);
        binaries.distrust_reason(process, is_old)
    }

    #[test]
    fn an_executor_that_was_upgraded_while_it_was_kept_open() {
        let executor = running("/usr/lib/systemd/systemd-executor", true);
        assert_eq!(conclude(executor, &[true], false, &[]), None);
        let gone = conclude(executor, &[false, true], false, &[]);
        assert_eq!(gone, Some(Untrusted::Deleted));
        let own = conclude(running("/opt/x/thief", true), &[true], false, &[]);
        assert_eq!(own, Some(Untrusted::Deleted), "anybody can put one there");
    }

    #[test]
    fn a_worker_of_a_release_that_was_pruned() {
        let mut binaries = BinaryTrust::default();
        let worker = running("/srv/shop/releases/1/bin/worker", false);
        // The questions depend on a live process.
        let ask = |path: &str| ReadRequest::Exists {
            pid: 1,
            path: Path::new(path).into(),
        };
        binaries.learn(worker, &ask(worker.exe), false);
        binaries.learn(worker, &ask("/srv/shop/releases/1/bin"), false);
        assert_eq!(binaries.distrust_reason(worker, true), None);
        let young = binaries.distrust_reason(worker, false);
        assert_eq!(young, Some(Untrusted::Deleted));
        binaries.learn(worker, &ask("/srv/shop/releases/1/bin"), true);
        let alone = binaries.distrust_reason(worker, true);
        assert_eq!(alone, Some(Untrusted::Deleted), "its directory is there");
    }

    #[test]
    fn a_program_that_was_downloaded_a_moment_ago() {
        let now = Timestamp::UNIX_EPOCH;
        let times = [(now, now)];
        let fresh = running("/opt/tool", false);
        assert_eq!(
            conclude(fresh, &[true], false, &times),
            Some(Untrusted::Downloaded)
        );
        assert_eq!(conclude(fresh, &[false], false, &times), None);
        assert_eq!(
            conclude(running("/usr/bin/x", false), &[], false, &times),
            None
        );
    }

    #[test]
    fn a_program_that_deleted_itself_and_one_that_was_upgraded() {
        use std::{fs, process::Command};
        let directory = tempfile::Builder::new()
            .tempdir_in(env!("CARGO_MANIFEST_DIR"))
            .expect("a directory");
        let program = directory.path().join("program");
        fs::copy("/bin/sleep", &program).expect("copied");
        let mut child = Command::new(&program).arg("60").spawn().expect("it runs");
        let exe = program.display().to_string();
        // A program built below /tmp is a temporary program.
        let named = TEMPORARY_DIRECTORIES
            .iter()
            .any(|place| exe.starts_with(place))
            .then_some(Untrusted::Temporary);
        let process = RunningBinary {
            subject: subject(child.id()),
            ..running(&exe, false)
        };
        let mut binaries = BinaryTrust::default();
        let unasked = binaries.request(process, Vec::new);
        let before = binaries.distrust_reason(process, false);
        fs::remove_file(&program).expect("removed");
        let request = binaries
            .request(process, Vec::new)
            .expect("its path must be checked");
        child.kill().expect("it ran");
        child.wait().expect("it ended");
        let reason = |exists| {
            let mut binaries = BinaryTrust::default();
            binaries.learn(process, &request, exists);
            let next = binaries.request(process, Vec::new);
            assert_ne!(next.as_ref(), Some(&request), "it is asked once");
            // Only of what is gone, its directory matters.
            assert_eq!(next.is_none(), exists);
            binaries.distrust_reason(process, false)
        };
        assert_eq!((unasked, before), (None, named));
        assert_eq!(
            (reason(false), reason(true)),
            (Some(Untrusted::Deleted), named)
        );
    }

    #[test]
    fn a_program_in_a_container_is_compared_with_its_image() {
        let process = RunningBinary {
            container: Some("c"),
            ..running("/app/x", false)
        };
        let mut binaries = BinaryTrust::default();
        let request = binaries
            .request(process, Vec::new)
            .expect("it must be checked");
        assert!(
            matches!(&request, ReadRequest::Added { exe, .. } if exe.as_path() == Path::new("/app/x"))
        );
        assert_eq!(
            binaries.distrust_reason(process, false),
            None,
            "not known yet"
        );
        binaries.learn(process, &request, true);
        assert_eq!(
            binaries.distrust_reason(process, false),
            Some(Untrusted::Added)
        );
        assert_eq!(binaries.request(process, Vec::new), None);
    }
}
