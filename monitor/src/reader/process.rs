//! One reader process: its start, its messages, and its end.

use super::{
    protocol::{ReadAnswer, ReadRequest, ReaderSetup},
    registry::{KernelOpen, ProcessRegistry},
    wire::{self, Deadline, WireError},
};
use crate::observed::process::live_subject;
use std::{
    io,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::ExitStatusExt as _},
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

/// The argument that makes this program a reader.
const COMMAND: &str = "reader";
/// Maximum time for a process to end after it was killed; one that does not waits in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_millis(200);
/// Interval between checks whether it ended.
const KILL_POLL: Duration = Duration::from_millis(1);
/// Maximum time until it is ready.
const SETUP_TIMEOUT: Duration = Duration::from_secs(5);

/// A running reader. Its entry among the agent's processes is removed before its pid can be reused,
/// which the kernel allows only after it was waited for.
#[derive(Debug)]
pub(super) struct ReaderProcess {
    child: Child,
    socket: UnixStream,
    registry: Arc<dyn ProcessRegistry>,
    entry: Option<usize>,
    ended: bool,
}

/// How a reader ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReaderExit {
    /// It was out of memory.
    Memory,
    /// The kernel killed it for lack of memory, or someone did.
    Killed,
    /// It used more CPU time than one request may.
    CpuTime,
    Crashed,
}

impl ReaderProcess {
    /// Starts a reader from this program, or from another one in tests.
    pub fn start(
        program: &Path,
        setup: &ReaderSetup,
        registry: &Arc<dyn ProcessRegistry>,
    ) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        // What it prints could contain what it reads.
        let child = Command::new(program)
            .arg(COMMAND)
            .env_clear()
            // The filter of system calls would end an allocator's thread; without one, memory goes
            // back only when it is freed.
            .env(
                "_RJEM_MALLOC_CONF",
                "background_thread:false,narenas:1,dirty_decay_ms:0",
            )
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut process = Self {
            child,
            socket: ours,
            registry: Arc::clone(registry),
            entry: None,
            ended: false,
        };
        // It opens nothing before it has received its setup.
        let subject = live_subject(process.child.id())
            .ok_or_else(|| io::Error::other("procfs does not show it"))?;
        process.entry = process.registry.add(subject);
        let deadline = Deadline::after(SETUP_TIMEOUT);
        let answer = wire::send(&process.socket, setup, None, deadline)
            .and_then(|()| wire::receive(&process.socket, deadline));
        let error = match answer {
            Ok((ReadAnswer::Ready, _)) => return Ok(process),
            Ok((ReadAnswer::Unreadable(error), _)) => io::Error::other(error),
            Ok(_) => io::Error::other("it is of another release"),
            Err(error) => io::Error::other(error),
        };
        process.kill();
        Err(error)
    }

    /// Sends a request and waits for its answer.
    pub fn call(
        &mut self,
        request: &ReadRequest,
        limit: Duration,
    ) -> Result<(ReadAnswer, Option<OwnedFd>), WireError> {
        let deadline = Deadline::after(limit);
        wire::send(&self.socket, request, None, deadline)?;
        wire::receive(&self.socket, deadline)
    }

    /// What it opened since the last call.
    pub fn take_opens(&self) -> Option<Vec<KernelOpen>> {
        self.registry.take_opens(self.entry?)
    }

    /// Kills it; returns whether it ended.
    pub fn kill(&mut self) -> bool {
        // It may have ended already.
        let _ = self.child.kill();
        self.has_ended_within(KILL_TIMEOUT)
    }

    /// Whether it ends by itself, after it closed its socket.
    pub fn ends_soon(&mut self) -> bool {
        self.has_ended_within(KILL_TIMEOUT)
    }

    /// Why it ended.
    pub fn exit(&mut self) -> ReaderExit {
        match self.child.try_wait() {
            Ok(Some(status)) => reason(status),
            Ok(None) | Err(_) => ReaderExit::Crashed,
        }
    }

    /// Whether it ended; if so, its entry is removed.
    pub fn has_ended(&mut self) -> bool {
        use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
        if self.ended {
            return true;
        }
        // Its pid stays taken until it is waited for without NOWAIT.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let pid = Pid::from_child(&self.child);
        self.ended = !matches!(waitid(WaitId::Pid(pid), options), Ok(None));
        if self.ended {
            if let Some(entry) = self.entry.take() {
                self.registry.remove(entry);
            }
            // Its status is kept by `child`.
            let _ = self.child.try_wait();
        }
        self.ended
    }

    fn has_ended_within(&mut self, limit: Duration) -> bool {
        let began = Instant::now();
        while !self.has_ended() {
            if began.elapsed() > limit {
                return false;
            }
            std::thread::sleep(KILL_POLL);
        }
        true
    }
}

impl Drop for ReaderProcess {
    fn drop(&mut self) {
        if !self.has_ended() && !self.kill() {
            tracing::warn!(
                pid = self.child.id(),
                "a reader waits in the kernel and cannot be ended: it ends when its file system responds"
            );
        }
    }
}

fn reason(status: ExitStatus) -> ReaderExit {
    match status.signal() {
        Some(libc::SIGXCPU) => ReaderExit::CpuTime,
        // The allocator's last resort.
        Some(libc::SIGABRT) => ReaderExit::Memory,
        Some(libc::SIGKILL) => ReaderExit::Killed,
        _ => ReaderExit::Crashed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_process_ended() {
        for (status, expected) in [
            (libc::SIGXCPU, ReaderExit::CpuTime),
            (libc::SIGABRT, ReaderExit::Memory),
            (libc::SIGKILL, ReaderExit::Killed),
            (libc::SIGSEGV, ReaderExit::Crashed),
            // Exit status 3.
            (3 << 8, ReaderExit::Crashed),
        ] {
            assert_eq!(reason(ExitStatus::from_raw(status)), expected, "{status}");
        }
    }
}
