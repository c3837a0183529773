//! Attaches programs to user-space functions.
//!
//! Three mechanisms; the best one that the kernel accepts is used:
//!
//! - A multi-uprobe link (Linux 6.6; used if its filter by process works, which came with 6.10):
//!   all functions of a file at once, with no more capabilities than the programs need.
//! - An event of the `uprobe` PMU for each function. Since the fix of CVE-2025-38466 (6.16, and
//!   stable releases of that time) the kernel requires `CAP_SYS_ADMIN` for it.
//! - An event for each function that is first defined in tracefs, as `perf probe` does. It has a
//!   name, and survives an agent that is killed: see [`remove_leftovers`].
//!
//! Every mechanism keeps the mount through which the file was opened busy until it is detached.

use super::{
    multi,
    perf::{self, PerfAttributes, PerfTarget},
    skipped_hooks::is_skipped,
    tracefs::TRACEFS,
    uprobe_program::UprobeProgram,
};
use crate::host;
use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Write as _},
    num::NonZeroU32,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};
use thiserror::Error;

/// Why a function could not be attached to.
#[derive(Debug, Error)]
#[error("no uprobe at offset {offset:#x} ({step}): {source}")]
pub struct UprobeError {
    step: &'static str,
    offset: u64,
    source: io::Error,
}

/// How this kernel, with these capabilities, allows programs to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UprobeMechanism {
    MultiLink,
    Pmu,
    Tracefs,
}

/// The number of the uprobe PMU.
const PMU: &str = "/sys/bus/event_source/devices/uprobe/type";

/// See [`UprobeMechanism`]; determined once, by trying. The error says what would help.
pub static MECHANISM: LazyLock<Result<UprobeMechanism, String>> = LazyLock::new(|| {
    if !is_skipped("multi") && multi::is_supported() {
        return Ok(UprobeMechanism::MultiLink);
    }
    let pmu = pmu().ok_or_else(|| format!("this kernel has no uprobes ({PMU} does not exist)"))?;
    // A directory cannot have uprobes; without permission the error is a different one.
    let attributes = PerfAttributes {
        config1: c"/proc/self".as_ptr() as u64,
        ..PerfAttributes::new(pmu)
    };
    let error = match perf::open(&attributes, PerfTarget::Processor(0)) {
        _ if is_skipped("pmu") => io::Error::from_raw_os_error(libc::EPERM),
        Ok(_) => return Ok(UprobeMechanism::Pmu),
        Err(error) => match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => error,
            _ => return Ok(UprobeMechanism::Pmu),
        },
    };
    match File::options().append(true).open(tracefs_events()) {
        Ok(_) => Ok(UprobeMechanism::Tracefs),
        Err(denied) => Err(format!(
            "uprobes are rejected ({error}: this kernel requires CAP_SYS_ADMIN for them), and {} is not writable ({denied})",
            tracefs_events()
        )),
    }
});

fn pmu() -> Option<u32> {
    fs::read_to_string(PMU).ok()?.trim().parse().ok()
}

/// Why return probes are not used on some kernels.
pub const NO_RETURNS: &str = "on this kernel return probes kill programs under seccomp (Linux 6.11 to 6.13, fixed in 6.12.14, 6.13.3 and 6.14)";

/// Whether return probes may be used. On x86_64 such a return is a system call since 6.11, which
/// seccomp filters rejected at first: the program was killed. A distribution may have fixed it in
/// an older version, which cannot be detected.
pub static RETURNS: LazyLock<bool> = LazyLock::new(|| {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    !cfg!(target_arch = "x86_64") || returns_are_safe(&release)
});

fn returns_are_safe(release: &str) -> bool {
    let mut numbers = release
        .split(|char: char| !char.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0u32));
    let version = [(); 3].map(|()| numbers.next().unwrap_or(0));
    match version {
        [6, 11, _] => false,
        [6, 12, patch] => patch >= 14,
        [6, 13, patch] => patch >= 3,
        _ => true,
    }
}

/// Functions that a program is attached to, until this is dropped. Dropping takes tens of
/// milliseconds: the kernel waits until no CPU runs the program.
#[derive(Debug)]
pub struct UprobeLink {
    _fds: Vec<OwnedFd>,
    /// Deleted after their descriptors are closed: an event in use cannot be deleted.
    _events: Vec<TracefsEvent>,
}

/// One of our events in tracefs.
#[derive(Debug)]
struct TracefsEvent {
    name: String,
}

impl Drop for TracefsEvent {
    fn drop(&mut self) {
        if let Err(error) = define_event(&format!("-:{}", self.name)) {
            tracing::warn!(event = self.name, %error, "cannot delete an event from tracefs; the next start deletes it");
        }
    }
}

/// Attaches a program to the functions at the given offsets of a file: in one process, or in all
/// that have mapped the file or will.
pub fn attach(
    program: &UprobeProgram,
    file: &File,
    offsets: &[u64],
    process: Option<NonZeroU32>,
) -> Result<UprobeLink, UprobeError> {
    let mechanism = match &*MECHANISM {
        Ok(mechanism) => *mechanism,
        Err(error) => {
            return Err(attach_error("mechanism", 0)(io::Error::other(
                error.clone(),
            )));
        }
    };
    let first = offsets.first().copied().unwrap_or_default();
    // By descriptor, because the path may name another file by now.
    let path = CString::new(host::descriptor_path(file))
        .map_err(|error| attach_error("path", first)(error.into()))?;
    let mut link = UprobeLink {
        _fds: Vec::new(),
        _events: Vec::new(),
    };
    if mechanism == UprobeMechanism::MultiLink {
        let fd =
            multi::attach(program, &path, offsets, process).map_err(attach_error("link", first))?;
        link._fds.push(fd);
        return Ok(link);
    }
    for offset in offsets {
        let event = if mechanism == UprobeMechanism::Pmu {
            open_pmu(program, &path, *offset, process)?
        } else {
            let (fd, event) = open_tracefs(program, &path, *offset, process)?;
            link._events.push(event);
            fd
        };
        enable(program, &event).map_err(attach_error("attach", *offset))?;
        link._fds.push(event);
    }
    Ok(link)
}

fn attach_error(step: &'static str, offset: u64) -> impl Fn(io::Error) -> UprobeError {
    move |source| UprobeError {
        step,
        offset,
        source,
    }
}

/// For all processes, one CPU's event represents every CPU.
fn perf_target(process: Option<NonZeroU32>) -> PerfTarget {
    process.map_or(PerfTarget::Processor(0), PerfTarget::Process)
}

fn open_pmu(
    program: &UprobeProgram,
    path: &CString,
    offset: u64,
    process: Option<NonZeroU32>,
) -> Result<OwnedFd, UprobeError> {
    let attributes = PerfAttributes {
        config: u64::from(program.at_return),
        config1: path.as_ptr() as u64,
        config2: offset,
        ..PerfAttributes::new(pmu().unwrap_or_default())
    };
    perf::open(&attributes, perf_target(process)).map_err(attach_error("perf_event_open", offset))
}

fn open_tracefs(
    program: &UprobeProgram,
    path: &CString,
    offset: u64,
    process: Option<NonZeroU32>,
) -> Result<(OwnedFd, TracefsEvent), UprobeError> {
    const TRACEPOINT: u32 = 2;
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let kind = if program.at_return { 'r' } else { 'p' };
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let event = TracefsEvent {
        name: format!("{}/at{number}", *GROUP),
    };
    let path = path.to_string_lossy();
    define_event(&format!("{kind}:{} {path}:{offset:#x}", event.name))
        .map_err(attach_error("definition in tracefs", offset))?;
    let id = Path::new(TRACEFS)
        .join("events")
        .join(&event.name)
        .join("id");
    let id = fs::read_to_string(id)
        .and_then(|id| id.trim().parse().map_err(io::Error::other))
        .map_err(attach_error("number of the event in tracefs", offset))?;
    let attributes = PerfAttributes {
        config: id,
        sample_period: 1,
        wakeup: 1,
        ..PerfAttributes::new(TRACEPOINT)
    };
    let fd = perf::open(&attributes, perf_target(process))
        .map_err(attach_error("perf_event_open", offset))?;
    Ok((fd, event))
}

fn enable(program: &UprobeProgram, event: &OwnedFd) -> io::Result<()> {
    const SET_BPF: libc::Ioctl = 0x4004_2408;
    const ENABLE: libc::Ioctl = 0x2400;
    for (request, value) in [(SET_BPF, program.fd.as_raw_fd()), (ENABLE, 0)] {
        // SAFETY: both take a number and no address; both descriptors are open.
        let done = unsafe { libc::ioctl(event.as_raw_fd(), request, value) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn tracefs_events() -> String {
    format!("{TRACEFS}/uprobe_events")
}

/// Writes one line; tracefs accepts it completely or not at all.
fn define_event(line: &str) -> io::Result<()> {
    File::options()
        .append(true)
        .open(tracefs_events())?
        .write_all(format!("{line}\n").as_bytes())
}

/// The group of this agent's events: its pid, and the time of its first event, because pids are
/// reused.
static GROUP: LazyLock<String> = LazyLock::new(|| {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    format!("keytrail_{}_{}", std::process::id(), now.tv_sec)
});

/// Deletes the events of agents that were killed. Nothing is attached to them, so this can wait
/// until the agent is ready; each takes milliseconds. Returns the number of deleted events.
pub fn remove_leftovers() -> usize {
    let Ok(text) = fs::read_to_string(tracefs_events()) else {
        return 0;
    };
    let mut removed = 0;
    let is_used =
        |name: &str, pid| name.starts_with(&*GROUP) || (pid != std::process::id() && is_agent(pid));
    for name in text
        .lines()
        .filter_map(|line| leftover_event(line, is_used))
    {
        match define_event(&format!("-:{name}")) {
            Ok(()) => removed += 1,
            Err(error) => {
                tracing::warn!(event = name, %error, "cannot delete an event that a previous agent left in tracefs");
            }
        }
    }
    removed
}

/// The event in a line of tracefs, if it belongs to an agent that no longer runs.
fn leftover_event(line: &str, is_used: impl Fn(&str, u32) -> bool) -> Option<&str> {
    let name = line.split_whitespace().next()?.split_once(':')?.1;
    let owner = name.split('/').next()?.strip_prefix("keytrail_")?;
    let pid = owner.split('_').next()?.parse().ok()?;
    (!is_used(name, pid)).then_some(name)
}

/// Whether a process is an agent.
fn is_agent(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "keytrail")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_events_of_ended_agents_are_leftovers() {
        let lives = |name: &str, pid| pid == 7 || name.starts_with("keytrail_9_50");
        let at = |line| leftover_event(line, lives);
        assert_eq!(at("p:keytrail_8/at0 /lib/x:0x1"), Some("keytrail_8/at0"));
        assert_eq!(at("p:keytrail_9_40/at0 /l:0x1"), Some("keytrail_9_40/at0"));
        assert_eq!(at("r:keytrail_9/at12 /a b:0x1"), Some("keytrail_9/at12"));
        for other in [
            "p:keytrail_7/at0 /lib/x:0x1",
            "p:keytrail_9_50/at0 /lib/x:0x1",
            "p:probe_x/at0 /lib/x:0x1",
            "p:keytrail_/at0",
            "keytrail_8/at0",
            "",
        ] {
            assert_eq!(at(other), None, "{other}");
        }
    }

    #[test]
    fn kernels_that_end_programs_at_returns() {
        for (release, safe) in [
            ("6.10.9-arch1-1", true),
            ("6.11.0-19-generic", false),
            ("6.12.13", false),
            ("6.12.0-55.el10.x86_64", false),
            ("6.12.107+deb13-cloud-amd64", true),
            ("6.13.2", false),
            ("6.13.3", true),
            ("6.14.0", true),
            ("7.3.4+deb13-cloud-amd64", true),
            ("5.10.0-32-cloud-amd64", true),
            ("", true),
        ] {
            assert_eq!(returns_are_safe(release), safe, "{release}");
        }
    }

    proptest! {
        #[test]
        fn any_release(release in "\\PC{0,20}") {
            let _ = returns_are_safe(&release);
        }

        #[test]
        fn any_line(line in "\\PC{0,40}") {
            let _ = leftover_event(&line, |_, _| false);
        }
    }
}
