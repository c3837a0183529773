//! Attaching programs to functions of user space.
//!
//! Three mechanisms, the best one that the kernel accepts:
//!
//! - A multi-uprobe link (Linux 6.6; used where its filter by process works, which came with 6.10):
//!   all functions of a file at once, with no more capabilities than the programs need.
//! - An event of the `uprobe` PMU for each function. Since the fix of CVE-2025-38466 (6.16, and the
//!   stable series of that time) the kernel wants `CAP_SYS_ADMIN` for it.
//! - An event for each function that is defined in tracefs first, as `perf probe` does. It has a
//!   name, and outlives an agent that is killed: see [`remove_leftovers`].
//!
//! Every mechanism holds the mount of the file it was attached through until it is detached.

use super::{
    ladder::{TRACEFS, is_skipped},
    multi,
    perf::{self, Attributes, Target},
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

/// Why a function is not attached to.
#[derive(Debug, Error)]
#[error("no uprobe at offset {offset:#x} ({step}): {source}")]
pub struct UprobeError {
    step: &'static str,
    offset: u64,
    source: io::Error,
}

/// How this kernel, with these capabilities, lets programs be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    MultiLink,
    Pmu,
    Tracefs,
}

/// Where the number of the PMU of uprobes is.
const PMU: &str = "/sys/bus/event_source/devices/uprobe/type";

/// See [`Mechanism`]; found by trying, once. The error says what would help.
pub static MECHANISM: LazyLock<Result<Mechanism, String>> = LazyLock::new(|| {
    if !is_skipped("multi") && multi::is_supported() {
        return Ok(Mechanism::MultiLink);
    }
    let pmu = pmu().ok_or_else(|| format!("this kernel has no uprobes ({PMU} does not exist)"))?;
    // A link to a directory can have no uprobe. Who may have none gets another error.
    let attributes = Attributes {
        config1: c"/proc/self".as_ptr() as u64,
        ..Attributes::new(pmu)
    };
    let error = match perf::open(&attributes, Target::Processor(0)) {
        _ if is_skipped("pmu") => io::Error::from_raw_os_error(libc::EPERM),
        Ok(_) => return Ok(Mechanism::Pmu),
        Err(error) => match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => error,
            _ => return Ok(Mechanism::Pmu),
        },
    };
    match File::options().append(true).open(events()) {
        Ok(_) => Ok(Mechanism::Tracefs),
        Err(denied) => Err(format!(
            "uprobes are refused ({error}: this kernel requires CAP_SYS_ADMIN for them), and {} cannot be written ({denied})",
            events()
        )),
    }
});

fn pmu() -> Option<u32> {
    fs::read_to_string(PMU).ok()?.trim().parse().ok()
}

/// Why there are no probes at returns on some kernels.
pub const NO_RETURNS: &str = "on this kernel a probe at the return of a function ends programs under seccomp (Linux 6.11 to 6.13, fixed in 6.12.14, 6.13.3 and 6.14)";

/// Whether a probe may be at the return of a function. On x86_64 such a return is a system call
/// since 6.11, which seccomp filters refused at first: the program was killed. A distribution may
/// have fixed it under an older number, which cannot be seen.
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

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    pub fd: OwnedFd,
    /// Whether it belongs at the return of a function.
    pub at_return: bool,
}

/// Functions that a program is attached to, until this is dropped. Dropping takes tens of
/// milliseconds: the kernel waits until no processor runs the program.
#[derive(Debug)]
pub struct Link {
    _fds: Vec<OwnedFd>,
    /// Deleted once their descriptors are closed: an event in use cannot be.
    _events: Vec<Event>,
}

/// An event of ours in tracefs.
#[derive(Debug)]
struct Event {
    name: String,
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Err(error) = define(&format!("-:{}", self.name)) {
            tracing::warn!(event = self.name, %error, "cannot delete an event from tracefs; the next start deletes it");
        }
    }
}

/// Attaches a program to the functions at some offsets of a file: in one process, or in all that
/// have the file mapped or will.
pub fn attach(
    program: &Program,
    file: &File,
    offsets: &[u64],
    process: Option<NonZeroU32>,
) -> Result<Link, UprobeError> {
    let mechanism = match &*MECHANISM {
        Ok(mechanism) => *mechanism,
        Err(error) => return Err(failed("mechanism", 0)(io::Error::other(error.clone()))),
    };
    let first = offsets.first().copied().unwrap_or_default();
    // By the descriptor: the name may be another file's by now.
    let path = CString::new(host::descriptor_path(file))
        .map_err(|error| failed("path", first)(error.into()))?;
    let mut link = Link {
        _fds: Vec::new(),
        _events: Vec::new(),
    };
    if mechanism == Mechanism::MultiLink {
        let fd = multi::attach(program, &path, offsets, process).map_err(failed("link", first))?;
        link._fds.push(fd);
        return Ok(link);
    }
    for offset in offsets {
        let event = if mechanism == Mechanism::Pmu {
            open_pmu(program, &path, *offset, process)?
        } else {
            let (fd, event) = open_tracefs(program, &path, *offset, process)?;
            link._events.push(event);
            fd
        };
        enable(program, &event).map_err(failed("attach", *offset))?;
        link._fds.push(event);
    }
    Ok(link)
}

fn failed(step: &'static str, offset: u64) -> impl Fn(io::Error) -> UprobeError {
    move |source| UprobeError {
        step,
        offset,
        source,
    }
}

/// For all processes one processor's event stands for every processor's.
fn target(process: Option<NonZeroU32>) -> Target {
    process.map_or(Target::Processor(0), Target::Process)
}

fn open_pmu(
    program: &Program,
    path: &CString,
    offset: u64,
    process: Option<NonZeroU32>,
) -> Result<OwnedFd, UprobeError> {
    let attributes = Attributes {
        config: u64::from(program.at_return),
        config1: path.as_ptr() as u64,
        config2: offset,
        ..Attributes::new(pmu().unwrap_or_default())
    };
    perf::open(&attributes, target(process)).map_err(failed("perf_event_open", offset))
}

fn open_tracefs(
    program: &Program,
    path: &CString,
    offset: u64,
    process: Option<NonZeroU32>,
) -> Result<(OwnedFd, Event), UprobeError> {
    const TRACEPOINT: u32 = 2;
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let kind = if program.at_return { 'r' } else { 'p' };
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let event = Event {
        name: format!("{}/at{number}", *GROUP),
    };
    let path = path.to_string_lossy();
    define(&format!("{kind}:{} {path}:{offset:#x}", event.name))
        .map_err(failed("definition in tracefs", offset))?;
    let id = Path::new(TRACEFS)
        .join("events")
        .join(&event.name)
        .join("id");
    let id = fs::read_to_string(id)
        .and_then(|id| id.trim().parse().map_err(io::Error::other))
        .map_err(failed("number of the event in tracefs", offset))?;
    let attributes = Attributes {
        config: id,
        sample_period: 1,
        wakeup: 1,
        ..Attributes::new(TRACEPOINT)
    };
    let fd = perf::open(&attributes, target(process)).map_err(failed("perf_event_open", offset))?;
    Ok((fd, event))
}

fn enable(program: &Program, event: &OwnedFd) -> io::Result<()> {
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

fn events() -> String {
    format!("{TRACEFS}/uprobe_events")
}

/// Writes one line; tracefs accepts it whole or not at all.
fn define(line: &str) -> io::Result<()> {
    File::options()
        .append(true)
        .open(events())?
        .write_all(format!("{line}\n").as_bytes())
}

/// The group of this agent's events: its process, and when it began to use events, as the number of
/// a process is used again.
static GROUP: LazyLock<String> = LazyLock::new(|| {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    format!("keytrail_{}_{}", std::process::id(), now.tv_sec)
});

/// Deletes the events of agents that were killed. Nothing is attached to them, so this can wait
/// until the agent is ready; each takes milliseconds. Gives how many there were.
pub fn remove_leftovers() -> usize {
    let Ok(text) = fs::read_to_string(events()) else {
        return 0;
    };
    let mut removed = 0;
    let is_used =
        |name: &str, pid| name.starts_with(&*GROUP) || (pid != std::process::id() && is_agent(pid));
    for name in text.lines().filter_map(|line| leftover(line, is_used)) {
        match define(&format!("-:{name}")) {
            Ok(()) => removed += 1,
            Err(error) => {
                tracing::warn!(event = name, %error, "cannot delete an event that a previous agent left in tracefs");
            }
        }
    }
    removed
}

/// The event in a line of tracefs, if it belongs to an agent that does not run any more.
fn leftover(line: &str, is_used: impl Fn(&str, u32) -> bool) -> Option<&str> {
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
        let at = |line| leftover(line, lives);
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
            let _ = leftover(&line, |_, _| false);
        }
    }
}
