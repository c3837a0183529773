//! Attaching to functions of user space.
//!
//! The kernel's own way, an event of the `uprobe` PMU, wants `CAP_SYS_ADMIN` since CVE-2025-38466 was mended
//! (6.16, and the stable series of then). Where that is refused, the event is made by name in tracefs, as
//! `perf probe` does, which wants no more than to write there, and is opened with `CAP_PERFMON`.

use super::ladder::TRACEFS;
use aya::programs::{
    ProbeKind, ProgramError, UProbe,
    uprobe::{UProbeLinkId, UProbeScope},
};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    num::NonZeroU32,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
    sync::LazyLock,
};
use thiserror::Error;

/// Why a function is not attached to.
#[derive(Debug, Error)]
pub enum UprobeError {
    #[error("no such program: {0}")]
    Program(#[source] ProgramError),
    #[error("no uprobe at {target}, offset {offset:#x}: {source}")]
    Refused {
        target: String,
        offset: u64,
        source: ProgramError,
    },
    #[error("{step}, for a uprobe at {target}, offset {offset:#x}: {source}")]
    Tracefs {
        step: String,
        target: String,
        offset: u64,
        source: io::Error,
    },
}

/// How this kernel and these capabilities let functions be attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Pmu,
    Tracefs,
}

/// See [`Way`]; found by trying, once. The error says what would help.
pub static WAY: LazyLock<Result<Way, String>> = LazyLock::new(|| {
    const TYPE: &str = "/sys/bus/event_source/devices/uprobe/type";
    forget_the_dead();
    let pmu = fs::read_to_string(TYPE)
        .ok()
        .and_then(|number| number.trim().parse().ok())
        .ok_or_else(|| format!("this kernel has no uprobes ({TYPE} is not there)"))?;
    // What is no file can have no uprobe: the kernel says so to whoever it would let have one.
    let refused = open_event(&Attributes::uprobe(pmu, c"/proc/self"), None);
    let why = match refused {
        Ok(_) => return Ok(Way::Pmu),
        Err(error) => match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => error,
            _ => return Ok(Way::Pmu),
        },
    };
    match File::options().append(true).open(events()) {
        Ok(_) => Ok(Way::Tracefs),
        Err(error) => Err(format!(
            "uprobes are refused ({why}: this kernel wants CAP_SYS_ADMIN for them), and {} cannot be written ({error})",
            events()
        )),
    }
});

/// Why there are no probes at returns on some kernels.
pub const NO_RETURNS: &str = "on this kernel a probe at the return of a function ends programs under seccomp (Linux 6.11 to 6.13, mended in 6.12.14, 6.13.3 and 6.14)";

/// Whether a probe may be at the return of a function. On x86_64 such a return is a system call since 6.11, which
/// filters of seccomp refused at first: the program was killed. A distribution may have mended it under an
/// older number; nobody can ask.
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

/// A function that a program is attached to. To be given to [`detach`].
#[derive(Debug)]
pub enum Attached {
    Pmu(UProbeLinkId),
    Tracefs(Event),
}

/// An event of ours in tracefs, which ends with this value.
#[derive(Debug)]
pub struct Event {
    /// Closed first: what is in use stays.
    file: Option<OwnedFd>,
    name: String,
}

impl Drop for Event {
    fn drop(&mut self) {
        drop(self.file.take());
        if let Err(error) = define(&format!("-:{}", self.name)) {
            tracing::warn!(event = self.name, %error, "an event stays in tracefs; the next start takes it away");
        }
    }
}

/// Attaches a program to the function at an offset of a file.
pub fn attach(
    program: &mut UProbe,
    target: &str,
    offset: u64,
    process: Option<NonZeroU32>,
) -> Result<Attached, UprobeError> {
    if *WAY == Ok(Way::Tracefs) {
        return in_tracefs(program, target, offset, process).map(Attached::Tracefs);
    }
    let scope = process.map_or(UProbeScope::AllProcesses, UProbeScope::OneProcess);
    program
        .attach(offset, target, scope)
        .map(Attached::Pmu)
        .map_err(|source| UprobeError::Refused {
            target: target.to_owned(),
            offset,
            source,
        })
}

/// Lets go of a function.
pub fn detach(program: &mut UProbe, attached: Attached) -> Result<(), ProgramError> {
    match attached {
        Attached::Pmu(link) => program.detach(link),
        Attached::Tracefs(event) => {
            drop(event);
            Ok(())
        }
    }
}

fn in_tracefs(
    program: &UProbe,
    target: &str,
    offset: u64,
    process: Option<NonZeroU32>,
) -> Result<Event, UprobeError> {
    static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let failed = |step: &str| {
        let (step, target) = (step.to_owned(), target.to_owned());
        move |source| UprobeError::Tracefs {
            step,
            target,
            offset,
            source,
        }
    };
    let fd = program.fd().map_err(UprobeError::Program)?;
    // By its descriptor: a name may have blanks, and be another file's a moment later.
    let file = File::open(target).map_err(failed("the file cannot be opened"))?;
    let kind = match program.kind() {
        ProbeKind::Entry => 'p',
        ProbeKind::Return => 'r',
    };
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let name = format!("{}/at{number}", group(std::process::id()));
    let place = file.as_raw_fd();
    define(&format!("{kind}:{name} /proc/self/fd/{place}:{offset:#x}"))
        .map_err(failed("tracefs takes no event"))?;
    let mut event = Event { file: None, name };
    let id = Path::new(TRACEFS)
        .join("events")
        .join(&event.name)
        .join("id");
    let id = fs::read_to_string(id)
        .and_then(|id| id.trim().parse().map_err(io::Error::other))
        .map_err(failed("its number cannot be read"))?;
    let opened =
        open_event(&Attributes::tracepoint(id), process).map_err(failed("it cannot be opened"))?;
    let program = fd.as_fd().as_raw_fd();
    for (request, value) in [(SET_BPF, program), (ENABLE, 0)] {
        // SAFETY: both take a number and no address; both descriptors are open.
        let done = unsafe { libc::ioctl(opened.as_raw_fd(), request, value) };
        if done < 0 {
            return Err(failed("the program cannot be attached")(
                io::Error::last_os_error(),
            ));
        }
    }
    event.file = Some(opened);
    Ok(event)
}

fn events() -> String {
    format!("{TRACEFS}/uprobe_events")
}

/// Writes one line; tracefs takes it whole or not at all.
fn define(line: &str) -> io::Result<()> {
    File::options()
        .append(true)
        .open(events())?
        .write_all(format!("{line}\n").as_bytes())
}

/// Where events of an agent are, by its process.
fn group(pid: u32) -> String {
    format!("keytrail_{pid}")
}

/// Takes away what agents left that were killed. They have no cost: nothing is attached to them.
fn forget_the_dead() {
    let Ok(text) = fs::read_to_string(events()) else {
        return;
    };
    for name in text.lines().filter_map(|line| left(line, is_agent)) {
        if let Err(error) = define(&format!("-:{name}")) {
            tracing::warn!(event = name, %error, "an event of a former agent stays in tracefs");
        }
    }
}

/// The name in a line of tracefs, if it is an agent's that runs no more.
fn left(line: &str, is_agent: impl Fn(u32) -> bool) -> Option<&str> {
    let name = line.split_whitespace().next()?.split_once(':')?.1;
    let pid = name.split('/').next()?.strip_prefix("keytrail_")?;
    let pid = pid.parse().ok()?;
    (!is_agent(pid)).then_some(name)
}

/// Whether a process other than this one is an agent: this one has made nothing yet.
fn is_agent(pid: u32) -> bool {
    pid != std::process::id()
        && fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name.trim() == "keytrail")
}

/// `struct perf_event_attr` in the size that it had with its second version, of perf_event_open(2).
#[repr(C)]
#[derive(Debug, Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    /// An address, of a path for the PMU of uprobes.
    config1: u64,
    config2: u64,
}

impl Attributes {
    fn of(kind: u32) -> Self {
        Self {
            kind,
            size: size_of::<Self>() as u32,
            ..Self::default()
        }
    }

    fn tracepoint(id: u64) -> Self {
        const TRACEPOINT: u32 = 2;
        Self {
            config: id,
            sample_period: 1,
            wakeup_events: 1,
            ..Self::of(TRACEPOINT)
        }
    }

    fn uprobe(pmu: u32, path: &'static std::ffi::CStr) -> Self {
        Self {
            config1: path.as_ptr() as u64,
            ..Self::of(pmu)
        }
    }
}

const SET_BPF: libc::Ioctl = 0x4004_2408;
const ENABLE: libc::Ioctl = 0x2400;

/// Opens an event: of one process wherever it runs, or of all, for which one processor's stands.
fn open_event(attributes: &Attributes, process: Option<NonZeroU32>) -> io::Result<OwnedFd> {
    const CLOSE_ON_EXEC: libc::c_ulong = 8;
    let (pid, cpu) = match process {
        Some(pid) => (pid.get() as libc::pid_t, -1),
        None => (-1, 0),
    };
    // SAFETY: the kernel reads as many bytes as the attributes say they have, and the path that they may
    // have is static; nothing is written.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            std::ptr::from_ref(attributes),
            pid,
            cpu,
            -1,
            CLOSE_ON_EXEC,
        )
    };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given it, to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_what_the_dead_left_is_taken_away() {
        let lives = |pid| pid == 7;
        let at = |line| left(line, lives);
        assert_eq!(at("p:keytrail_8/at0 /lib/x:0x1"), Some("keytrail_8/at0"));
        assert_eq!(at("r:keytrail_9/at12 /a b:0x1"), Some("keytrail_9/at12"));
        for other in [
            "p:keytrail_7/at0 /lib/x:0x1",
            "p:probe_x/at0 /lib/x:0x1",
            "p:keytrail_/at0",
            "keytrail_8/at0",
            "",
        ] {
            assert_eq!(at(other), None, "{other}");
        }
    }

    #[test]
    fn kernels_that_kill_at_returns() {
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
            let _ = left(&line, |_| false);
        }
    }
}
