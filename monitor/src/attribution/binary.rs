//! Executables that were not installed: in memory only, deleted, or added to a container after its
//! image.

use crate::reader::protocol::ReadRequest;
use hashlink::LruCache;
use monitor_core::model::{Subject, Untrusted};
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
}

impl Default for BinaryTrust {
    fn default() -> Self {
        Self {
            added: LruCache::new(CACHED),
            replaced: LruCache::new(CACHED),
        }
    }
}

impl BinaryTrust {
    /// What must be read to decide, if anything.
    pub fn request(&mut self, running: RunningBinary<'_>) -> Option<ReadRequest> {
        let RunningBinary { subject, exe, .. } = running;
        if running.unlinked {
            return None;
        }
        if self.replaced.get(&subject).is_none() && is_deleted(subject.pid) {
            return Some(ReadRequest::Exists {
                pid: subject.pid,
                path: Path::new(exe).into(),
            });
        }
        let key = (running.container?.to_owned(), exe.to_owned());
        self.added.get(&key).is_none().then(|| ReadRequest::Added {
            pid: subject.pid,
            exe: Path::new(exe).into(),
        })
    }

    /// Remembers the answer to a request.
    pub fn learn(&mut self, running: RunningBinary<'_>, request: &ReadRequest, fact: bool) {
        match (request, running.container) {
            (ReadRequest::Exists { .. }, _) => {
                self.replaced.insert(running.subject, fact);
            }
            (ReadRequest::Added { .. }, Some(container)) => {
                let key = (container.to_owned(), running.exe.to_owned());
                self.added.insert(key, fact);
            }
            _ => {}
        }
    }

    /// Why an executable cannot be trusted, as far as it is known. For a process that exited, only
    /// what was seen at its start is known.
    pub fn distrust_reason(&mut self, running: RunningBinary<'_>) -> Option<Untrusted> {
        let exe = running.exe;
        if running.unlinked {
            let in_memory = exe.trim_start_matches('/').starts_with("memfd:");
            return match (in_memory, is_runtime(running)) {
                (true, true) => None,
                (true, false) => Some(Untrusted::Memory),
                (false, _) => Some(Untrusted::Deleted),
            };
        }
        // An upgrade puts another file at the same path.
        if self.replaced.get(&running.subject) == Some(&false) {
            return Some(Untrusted::Deleted);
        }
        if let Some(container) = running.container {
            let key = (container.to_owned(), exe.to_owned());
            if self.added.get(&key) == Some(&true) {
                return Some(Untrusted::Added);
            }
        }
        TEMPORARY_DIRECTORIES
            .iter()
            .any(|place| exe.starts_with(place))
            .then_some(Untrusted::Temporary)
    }
}

/// Whether it is a runtime's copy of itself: not in a container yet, and started by the runtime.
fn is_runtime(running: RunningBinary<'_>) -> bool {
    let parent = running.parent.and_then(|exe| exe.rsplit('/').next());
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
            let found = binaries.distrust_reason(running(exe, unlinked));
            assert_eq!(found, expected, "{exe} {unlinked}");
        }
        let mut copy = running("/memfd:runc_cloned:/proc/self/exe", true);
        copy.parent = Some("/usr/sbin/runc");
        assert_eq!(binaries.distrust_reason(copy), None);
        copy.container = Some("c");
        assert_eq!(binaries.distrust_reason(copy), Some(Untrusted::Memory));
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
        let unasked = binaries.request(process);
        let before = binaries.distrust_reason(process);
        fs::remove_file(&program).expect("removed");
        let request = binaries.request(process).expect("its path must be checked");
        child.kill().expect("it ran");
        child.wait().expect("it ended");
        let reason = |exists| {
            let mut binaries = BinaryTrust::default();
            binaries.learn(process, &request, exists);
            assert_eq!(binaries.request(process), None, "it is asked once");
            binaries.distrust_reason(process)
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
        let request = binaries.request(process).expect("it must be checked");
        assert!(
            matches!(&request, ReadRequest::Added { exe, .. } if exe.as_path() == Path::new("/app/x"))
        );
        assert_eq!(binaries.distrust_reason(process), None, "not known yet");
        binaries.learn(process, &request, true);
        assert_eq!(binaries.distrust_reason(process), Some(Untrusted::Added));
        assert_eq!(binaries.request(process), None);
    }
}
