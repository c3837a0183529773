//! The records that the probes send.
//!
//! Integers only, explicit padding, sizes asserted at compile time. User space decodes them with
//! checks: a record that is cut or of an unknown kind is counted, never trusted.

#[cfg(feature = "user")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The type of a record.
pub mod kind {
    /// [`super::ProcessRecord`]: an exec.
    pub const EXEC: u32 = 1;
    /// [`super::ProcessRecord`] without a path: a fork.
    pub const FORK: u32 = 2;
    /// [`super::RecordHeader`] alone: the last thread of a process exited.
    pub const EXIT: u32 = 3;
    /// [`super::FileRecord`].
    pub const FILE: u32 = 4;
    /// [`super::VariableRecord`].
    pub const VARIABLE: u32 = 5;
    /// [`super::ConnectRecord`].
    pub const CONNECT: u32 = 6;
    /// [`super::PayloadRecord`].
    pub const PAYLOAD: u32 = 7;
    /// [`super::ForeignReadRecord`].
    pub const FOREIGN: u32 = 8;
    /// [`super::RefusedRecord`].
    pub const REFUSED: u32 = 9;
    /// [`super::PresentedRecord`].
    pub const PRESENTED: u32 = 10;
    /// [`super::WriteSocketRecord`].
    pub const WRITE_SENT: u32 = 11;
    /// [`super::WriteSocketRecord`] without a socket: the library did not accept the bytes.
    pub const WRITE_REJECTED: u32 = 12;
    /// [`super::PlaintextRecord`].
    pub const PLAINTEXT: u32 = 13;
    /// [`super::PayloadRecord`] that holds the server name from the head of a plaintext request.
    pub const HOST: u32 = 14;
    /// [`super::PayloadRecord`] that holds a DNS response.
    pub const DNS_RESPONSE: u32 = 15;
    /// [`super::PlaintextRecord`] found in a response; all secrets of one response have the same
    /// time.
    pub const ISSUED: u32 = 16;
}

/// The task that caused the record, and the time. Every record starts with it.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct RecordHeader {
    /// One of [`kind`].
    pub kind: u32,
    /// Thread-group id in the initial PID namespace.
    pub pid: u32,
    /// Nanoseconds since boot, suspend included.
    pub time: u64,
    /// Start of the thread-group leader, in nanoseconds since boot.
    pub start: u64,
    /// Id of the cgroup v2 directory.
    pub cgroup: u64,
    /// The parent's thread-group id and start time.
    pub parent_start: u64,
    pub parent: u32,
    pub uid: u32,
    /// Audit login uid; [`NO_LOGIN`] if there is none.
    pub loginuid: u32,
    /// 1 if the process has a controlling terminal.
    pub tty: u32,
    pub comm: [u8; 16],
}

impl RecordHeader {
    /// Whose the record is.
    #[inline(always)]
    pub const fn owner(&self) -> OwnerFields {
        OwnerFields {
            cgroup: self.cgroup,
            user: self.uid,
            reserved: 0,
        }
    }
}

/// No login uid.
pub const NO_LOGIN: u32 = u32::MAX;

/// Bytes of path that a record can hold; the whole record stays below 2,048 bytes.
pub const PATH_MAX: usize = 1024;
/// [`ProcessRecord::flags`], [`FileRecord::flags`]: the path was truncated.
pub const TRUNCATED: u32 = 1;
/// [`ProcessRecord::flags`]: the executable no longer has a name in a directory, or never had one.
pub const UNLINKED: u32 = 2;
/// [`FileRecord::flags`]: the file was recognised by its inode, not by its name.
pub const BY_INODE: u32 = 4;
/// [`FileRecord::flags`]: the descriptor came from another process.
pub const RECEIVED: u32 = 8;
/// [`FileRecord::flags`]: the descriptor was inherited across an exec.
pub const INHERITED: u32 = 16;
/// [`FileRecord::flags`]: not a file but a socket that the process connected to.
pub const CONNECTED: u32 = 128;
/// [`FileRecord::flags`]: opened for writing only: not a use, but the file is recognised from now
/// on.
pub const WRITE_ONLY: u32 = 32;

/// [`FileRecord::flags`]: the parent has the same standard output, so it does not read from it.
pub const SHARED_WITH_PARENT: u32 = 256;

/// An exec or a fork. An exec is followed by the path of its executable: components from last to
/// first, each terminated by a zero byte.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct ProcessRecord {
    pub header: RecordHeader,
    pub exe_inode: u64,
    pub exe_device: u32,
    pub flags: u32,
    pub path_len: u32,
    pub exe_generation: u32,
}

/// A credential file that was opened for reading, followed by its path as in [`ProcessRecord`], and
/// by the path of its mount's root inside the file system if the two differ.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct FileRecord {
    pub header: RecordHeader,
    pub inode: u64,
    /// Inode number of the pipe or socket at the process's standard output, or 0.
    pub stdout: u64,
    /// Kernel-internal device number: major << 20 | minor.
    pub device: u32,
    pub generation: u32,
    /// Opens of this file by this process since the last record.
    pub count: u32,
    pub flags: u32,
    pub path_len: u32,
    /// Bytes of the path below the mount point.
    pub inside_len: u32,
    /// Bytes of the mount-root path that follows the path.
    pub source_len: u32,
    /// Magic number of its file system.
    pub magic: u32,
}

/// A read of another process's environment or memory.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct ForeignReadRecord {
    pub header: RecordHeader,
    /// Start time of the other process; 0 if its pid is from the reader's PID namespace.
    pub target_start: u64,
    pub target: u32,
    /// One of [`foreign`].
    pub how: u32,
}

/// How another process was read.
pub mod foreign {
    /// Its `environ` in procfs was opened.
    pub const ENVIRON: u32 = 1;
    /// Its `mem` in procfs was opened.
    pub const MEMORY: u32 = 2;
    /// It was traced, its memory was read, or a descriptor was taken from it.
    pub const TRACE: u32 = 3;
    /// `process_vm_readv`.
    pub const VM_READ: u32 = 4;
}

/// A TCP connection that was never established.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct RefusedRecord {
    pub kind: u32,
    pub reserved: u32,
    pub time: u64,
    pub cookie: u64,
    pub owner: OwnerFields,
}

/// An environment variable with a secret, seen at exec. The value stays in the kernel.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct VariableRecord {
    pub header: RecordHeader,
    pub fingerprint: u64,
    /// Length of the secret in bytes.
    pub secret_len: u32,
    pub name_len: u32,
    /// The value of the [`crate::filter::FilterKind::Value`] rule that matched its first bytes,
    /// plus 1; or 0.
    pub prefix: u32,
    /// Number of dots in the value, if it was checked for a JWT.
    pub dots: u32,
    /// 1 if the secret is the password of a URL.
    pub url: u32,
    pub reserved: u32,
    pub name: [u8; crate::environ::NAME_MAX],
}

/// A secret found in the bytes of a connection, as a probe reports it.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct PresentedSecret {
    pub fingerprint: u64,
    /// If the secret is a base64-encoded user and password: the fingerprint of the password, or of
    /// a key in place of the user. Otherwise 0.
    pub inner: u64,
    /// Fingerprint of the server name in the head of the request; 0 if there is none.
    pub host: u64,
    /// Length of the secret in bytes.
    pub secret_len: u32,
    /// The value of the [`crate::filter::FilterKind::Header`] rule; or [`crate::login::LOGIN`] and
    /// one of [`crate::login::protocol`]; or [`crate::response::RESPONSE_FIELD`] and the index of a field.
    pub name: u32,
    /// As in [`VariableRecord`].
    pub prefix: u32,
    pub dots: u32,
    /// How often it was presented on the connection since the last record.
    pub count: u32,
    pub reserved: u32,
}

/// A credential in the bytes that a process passes to its TLS library. The bytes stay in the
/// kernel.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct PresentedRecord {
    pub header: RecordHeader,
    /// Identifies one write of a process; a [`WriteSocketRecord`] may refer to it later.
    pub write: u64,
    /// Fingerprint of the server name that the program set on the TLS object; 0 if it set none.
    pub server: u64,
    pub secret: PresentedSecret,
}

/// Whose a record is. That of a packet is its socket's owner, because a program for packets may run
/// in the context of another task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct OwnerFields {
    pub cgroup: u64,
    /// A packet's is as the user namespace of its network namespace numbers users.
    pub user: u32,
    pub reserved: u32,
}

impl OwnerFields {
    /// It is not known whose it is.
    pub const UNKNOWN: Self = Self {
        cgroup: 0,
        user: u32::MAX,
        reserved: 0,
    };
}

/// A credential in a packet outside TLS, or in a response.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct PlaintextRecord {
    pub kind: u32,
    /// 1 if the packet is addressed to loopback.
    pub to_loopback: u32,
    pub time: u64,
    /// Socket cookie.
    pub cookie: u64,
    pub owner: OwnerFields,
    pub secret: PresentedSecret,
}

/// The record of a presented credential.
pub trait PresentationRecord: Copy {
    /// When it was presented, in nanoseconds since boot.
    fn time(&mut self) -> &mut u64;
    fn secret(&mut self) -> &mut PresentedSecret;
}

impl PresentationRecord for PresentedRecord {
    #[inline(always)]
    fn time(&mut self) -> &mut u64 {
        &mut self.header.time
    }

    #[inline(always)]
    fn secret(&mut self) -> &mut PresentedSecret {
        &mut self.secret
    }
}

impl PresentationRecord for PlaintextRecord {
    #[inline(always)]
    fn time(&mut self) -> &mut u64 {
        &mut self.time
    }

    #[inline(always)]
    fn secret(&mut self) -> &mut PresentedSecret {
        &mut self.secret
    }
}

/// The socket that sent a write with a credential.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct WriteSocketRecord {
    pub kind: u32,
    pub reserved: u32,
    pub time: u64,
    /// [`PresentedRecord::write`].
    pub write: u64,
    pub cookie: u64,
    pub owner: OwnerFields,
}

/// A connect or an unconnected send.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct ConnectRecord {
    pub header: RecordHeader,
    /// Socket cookie.
    pub cookie: u64,
    /// Inode number of the pipe or socket at the process's standard input, or 0.
    pub stdin: u64,
    /// Cookie of the socket's network namespace.
    pub network: u64,
    /// AF_INET or AF_INET6.
    pub family: u16,
    /// Host byte order.
    pub port: u16,
    /// IPPROTO_TCP, IPPROTO_UDP.
    pub protocol: u32,
    /// Network byte order; an IPv4 address is in the first four bytes.
    pub address: [u8; 16],
}

/// Bytes captured of a connection's first payload: a ClientHello with a post-quantum key share
/// fits.
pub const PAYLOAD_MAX: usize = 4096;

/// Bytes captured of a DNS response.
pub const DNS_RESPONSE_MAX: usize = 2048;

/// The first payload of a TCP connection. Its bytes follow only if they are a ClientHello.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct PayloadRecord {
    pub kind: u32,
    /// Bytes that follow this record.
    pub len: u32,
    pub time: u64,
    pub cookie: u64,
    /// Bytes of payload in the packet; [`ASKS_FOR_TUNNEL`] or 0 with the server name of a request.
    pub payload_len: u32,
    /// TCP sequence number of the first byte.
    pub sequence: u32,
    pub owner: OwnerFields,
}

/// The request asks a proxy for a connection to the server that it names, if it names one.
pub const ASKS_FOR_TUNNEL: u32 = 1;

const _: () = {
    assert!(size_of::<RecordHeader>() == 72);
    assert!(size_of::<ProcessRecord>() == 96);
    assert!(size_of::<FileRecord>() == 120);
    assert!(size_of::<ForeignReadRecord>() == 88);
    assert!(size_of::<RefusedRecord>() == 40);
    assert!(size_of::<VariableRecord>() == 168);
    assert!(size_of::<PresentedRecord>() == 136);
    assert!(size_of::<PlaintextRecord>() == 88);
    assert!(size_of::<WriteSocketRecord>() == 48);
    assert!(size_of::<ConnectRecord>() == 120);
    assert!(size_of::<PayloadRecord>() == 48);
};

/// A probe, for counters and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Probe {
    File = 0,
    Environ = 1,
    Connect = 2,
    Hello = 3,
    Process = 4,
    Memory = 5,
    Present = 6,
    Clear = 7,
    Dns = 8,
}

impl Probe {
    pub const ALL: [Self; 9] = [
        Self::File,
        Self::Environ,
        Self::Connect,
        Self::Hello,
        Self::Process,
        Self::Memory,
        Self::Present,
        Self::Clear,
        Self::Dns,
    ];

    /// The name in metrics and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Environ => "environ",
            Self::Connect => "connect",
            Self::Hello => "hello",
            Self::Process => "process",
            Self::Memory => "memory",
            Self::Present => "present",
            Self::Clear => "clear",
            Self::Dns => "dns",
        }
    }
}

/// What is counted per probe: index `probe * STAGES + stage` of the per-CPU counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stage {
    /// Records sent.
    Sent = 0,
    /// Records lost because the ring was full.
    Ring = 1,
    /// Reads that failed: a page not in memory, a structure that is gone.
    Read = 2,
}

/// Programs that count their runs where the kernel does not account their time for the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RunCounter {
    Egress = 0,
    Ingress = 1,
    /// Any program at a function of a TLS library.
    Uprobe = 2,
}

impl RunCounter {
    pub const ALL: [Self; COUNTED_RUNS] = [Self::Egress, Self::Ingress, Self::Uprobe];
}

/// Number of counters of runs.
pub const COUNTED_RUNS: usize = 3;

/// Stages per probe.
pub const STAGES: usize = 3;
/// Number of counters.
pub const COUNTERS: usize = Probe::ALL.len() * STAGES;
