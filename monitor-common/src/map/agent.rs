//! The agent's own processes, and the files that its readers open.

use super::file::InodeKey;
#[cfg(feature = "user")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Maximum number of processes of one agent: itself, its readers, and readers that hang.
pub const AGENT_PROCESSES: usize = 8;

/// A process of the agent. Both numbers identify it, so that a process with a recycled pid is
/// observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct AgentProcess {
    /// Start time in hundredths of a second since boot, as `/proc` shows it.
    pub start: u64,
    /// Thread-group id in the initial PID namespace; 0 if the entry is unused.
    pub pid: u32,
    pub reserved: u32,
}

/// Every process of the agent.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct AgentProcesses {
    /// A bit for each process, by [`pid_bit`]: most other processes are told apart by one test.
    pub pid_bits: u64,
    pub processes: [AgentProcess; AGENT_PROCESSES],
}

/// The bit of a pid in [`AgentProcesses::pid_bits`].
pub const fn pid_bit(pid: u32) -> u64 {
    1 << (pid & 63)
}

/// Nanoseconds per unit of [`AgentProcess::start`].
pub const START_TICK_NS: u64 = 10_000_000;

/// Number of opens kept per process: a file of an overlay is opened twice.
pub const READER_OPENS: usize = 4;

/// A file that a reader opened, as the kernel identifies it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct ReaderOpen {
    pub file: InodeKey,
    /// Magic number of the file system.
    pub magic: u64,
}

/// The last files that one process of the agent opened.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct ReaderOpens {
    /// Number of opens so far; the next one goes to this index modulo [`READER_OPENS`].
    pub count: u64,
    pub opens: [ReaderOpen; READER_OPENS],
}

const _: () = {
    assert!(size_of::<AgentProcess>() == 16);
    assert!(size_of::<AgentProcesses>() == 136);
    assert!(size_of::<ReaderOpen>() == 24);
    assert!(size_of::<ReaderOpens>() == 104);
    assert!(READER_OPENS.is_power_of_two());
};
