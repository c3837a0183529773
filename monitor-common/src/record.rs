//! The records that the probes send.
//!
//! Integers only, explicit padding, sizes asserted at compile time. User space decodes them with
//! checks: a record that is cut or of an unknown kind is counted, never trusted.

/// What a record is of.
pub mod kind {
    /// [`super::Process`]: an exec.
    pub const EXEC: u32 = 1;
    /// [`super::Process`] without a path: a fork.
    pub const FORK: u32 = 2;
    /// [`super::Header`] alone: the last thread of a process ended.
    pub const EXIT: u32 = 3;
    /// [`super::File`].
    pub const FILE: u32 = 4;
    /// [`super::Variable`].
    pub const VARIABLE: u32 = 5;
    /// [`super::Connect`].
    pub const CONNECT: u32 = 6;
    /// [`super::Payload`].
    pub const PAYLOAD: u32 = 7;
    /// [`super::Foreign`].
    pub const FOREIGN: u32 = 8;
    /// [`super::Refused`].
    pub const REFUSED: u32 = 9;
    /// [`super::Presented`].
    pub const PRESENTED: u32 = 10;
    /// [`super::Tied`].
    pub const TIED: u32 = 11;
    /// [`super::Tied`] without a socket: the library did not take the bytes.
    pub const WITHDRAWN: u32 = 12;
    /// [`super::Clear`].
    pub const CLEAR: u32 = 13;
    /// [`super::Payload`] whose bytes are the server's name in the head of a request in clear.
    pub const HOST: u32 = 14;
    /// [`super::Payload`] whose bytes are the answer of a name server.
    pub const ANSWER: u32 = 15;
    /// [`super::Clear`] in what came back; what is in one answer has one time.
    pub const MINTED: u32 = 16;
}

/// Whose task, and when. Every record starts with it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Header {
    /// One of [`kind`].
    pub kind: u32,
    /// Thread-group id in the initial PID namespace.
    pub pid: u32,
    /// Nanoseconds since boot, suspend included.
    pub time: u64,
    /// Start of the thread group's leader, nanoseconds since boot.
    pub start: u64,
    /// Id of the cgroup v2 directory.
    pub cgroup: u64,
    /// Parent's thread-group id and start.
    pub parent_start: u64,
    pub parent: u32,
    pub uid: u32,
    /// Audit login uid; [`NO_LOGIN`] where there is none.
    pub loginuid: u32,
    /// 1 where the process has a controlling terminal.
    pub tty: u32,
    pub comm: [u8; 16],
}

/// No login uid.
pub const NO_LOGIN: u32 = u32::MAX;

/// Bytes of path that a record can hold; with the record they stay below 2,048.
pub const PATH_MAX: usize = 1024;
/// [`Process::flags`], [`File::flags`]: the path did not fit.
pub const TRUNCATED: u32 = 1;
/// [`Process::flags`]: the executable has no name in a directory any more, or never had one.
pub const UNLINKED: u32 = 2;
/// [`File::flags`]: the file was known by its inode, not by its name.
pub const BY_INODE: u32 = 4;
/// [`File::flags`]: the descriptor came from another process.
pub const RECEIVED: u32 = 8;
/// [`File::flags`]: the descriptor was open when the process became another program.
pub const INHERITED: u32 = 16;
/// [`File::flags`]: no file but a socket, to which the process has connected.
pub const CONNECTED: u32 = 128;
/// [`File::flags`]: opened for writing only: no use, but the file is known from now on.
pub const WRITTEN: u32 = 32;

/// [`File::flags`]: the parent has the same standard output, and so does not read from it.
pub const PARENTS_OUTPUT: u32 = 256;

/// An exec or a fork. An exec is followed by its executable's path: components from the last to
/// the first, each ended by a zero byte.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Process {
    pub header: Header,
    pub exe_inode: u64,
    pub exe_device: u32,
    pub flags: u32,
    pub path_len: u32,
    pub exe_generation: u32,
}

/// A credential file opened for reading, followed by its path as in [`Process`], and that by the
/// path of the root of its mount inside the file system, where they differ.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct File {
    pub header: Header,
    pub inode: u64,
    /// Inode number of the pipe or socket that is the process's standard output, or 0.
    pub stdout: u64,
    /// Kernel-internal device number: major << 20 | minor.
    pub device: u32,
    pub generation: u32,
    /// Opens of this file by this process since the last record.
    pub count: u32,
    pub flags: u32,
    pub path_len: u32,
    /// Bytes of the path that are inside the mount.
    pub inside_len: u32,
    /// Bytes that follow the path.
    pub source_len: u32,
    pub reserved: u32,
}

/// The environment or the memory of a process, looked at by another.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Foreign {
    pub header: Header,
    /// Start of the other process; 0 where its number is one of the reader's PID namespace.
    pub target_start: u64,
    pub target: u32,
    /// One of [`foreign`].
    pub how: u32,
}

/// How another process was looked at.
pub mod foreign {
    /// Its `environ` in a procfs was opened.
    pub const ENVIRON: u32 = 1;
    /// Its `mem` in a procfs was opened.
    pub const MEMORY: u32 = 2;
    /// It was traced, its memory read, or a descriptor taken from it.
    pub const TRACE: u32 = 3;
    /// `process_vm_readv`.
    pub const VM_READ: u32 = 4;
}

/// A TCP connection that never came about.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Refused {
    pub kind: u32,
    pub reserved: u32,
    pub time: u64,
    pub cookie: u64,
}

/// A variable with a secret in the environment of an exec. The value stays in the kernel.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Variable {
    pub header: Header,
    pub fingerprint: u64,
    /// Length of the secret in bytes.
    pub secret_len: u32,
    pub name_len: u32,
    /// The value of the [`crate::filter::Kind::Value`] rule that its first bytes met, plus 1; or 0.
    pub prefix: u32,
    /// Dots in the value where it was looked at for a JWT.
    pub dots: u32,
    /// 1 where the secret is the password of a URL.
    pub url: u32,
    pub reserved: u32,
    pub name: [u8; crate::environ::NAME_MAX],
}

/// What a probe tells of a secret in the bytes of a connection.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Shown {
    pub fingerprint: u64,
    /// Fingerprint of the password where the secret is a user and a password in base64, or of the key in place of the
    /// user; or 0.
    pub inner: u64,
    /// Fingerprint of the server's name in the head of the request; 0 where there is none.
    pub host: u64,
    /// Length of the secret in bytes.
    pub secret_len: u32,
    /// The value of the [`crate::filter::Kind::Header`] rule; or [`crate::login::LOGIN`] and one of
    /// [`crate::login::speaks`]; or [`crate::answer::FIELD`] and the index of a field.
    pub name: u32,
    /// As in [`Variable`].
    pub prefix: u32,
    pub dots: u32,
}

/// A credential in the bytes that a process hands to its TLS library. The bytes stay in the kernel.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Presented {
    pub header: Header,
    /// Tells one write of a process from another; a [`Tied`] may name it later.
    pub write: u64,
    /// Fingerprint of the server name that the program gave the TLS object; 0 where it gave none.
    pub server: u64,
    pub shown: Shown,
}

/// A credential in the bytes of a packet, outside TLS. Whose socket it is the connection tells: the
/// program may run in the context of another task.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Clear {
    pub kind: u32,
    pub reserved: u32,
    pub time: u64,
    /// Socket cookie.
    pub cookie: u64,
    pub shown: Shown,
}

/// The socket on which a write with a credential went out.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Tied {
    pub kind: u32,
    pub reserved: u32,
    pub time: u64,
    /// [`Presented::write`].
    pub write: u64,
    pub cookie: u64,
}

/// A connect or an unconnected send.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Connect {
    pub header: Header,
    /// Socket cookie.
    pub cookie: u64,
    /// Inode number of the pipe or socket that is the process's standard input, or 0.
    pub stdin: u64,
    /// AF_INET or AF_INET6.
    pub family: u16,
    /// Host byte order.
    pub port: u16,
    /// IPPROTO_TCP, IPPROTO_UDP.
    pub protocol: u32,
    /// Network byte order; an IPv4 address in the first four.
    pub address: [u8; 16],
}

/// Bytes of a first payload that are taken: a ClientHello with a post-quantum key share fits.
pub const PAYLOAD_MAX: usize = 4096;

/// Bytes of an answer of a name server that are taken.
pub const ANSWER_MAX: usize = 2048;

/// The first payload of a TCP connection. Its bytes follow only where they are a ClientHello.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Payload {
    pub kind: u32,
    /// Bytes that follow.
    pub len: u32,
    pub time: u64,
    pub cookie: u64,
    /// Bytes of payload in the packet.
    pub payload_len: u32,
    /// Where its bytes are in the stream: the sequence number of the first.
    pub sequence: u32,
}

const _: () = {
    assert!(size_of::<Header>() == 72);
    assert!(size_of::<Process>() == 96);
    assert!(size_of::<File>() == 120);
    assert!(size_of::<Foreign>() == 88);
    assert!(size_of::<Refused>() == 24);
    assert!(size_of::<Variable>() == 168);
    assert!(size_of::<Presented>() == 128);
    assert!(size_of::<Clear>() == 64);
    assert!(size_of::<Tied>() == 32);
    assert!(size_of::<Connect>() == 112);
    assert!(size_of::<Payload>() == 32);
};

/// A probe, as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Records that found the ring full.
    Ring = 1,
    /// Things that could not be read: a page not in memory, a structure gone.
    Read = 2,
}

/// Stages per probe.
pub const STAGES: usize = 3;
/// Number of counters.
pub const COUNTERS: usize = Probe::ALL.len() * STAGES;

/// Whose records found a ring full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct LossKey {
    /// Id of the cgroup v2 directory.
    pub cgroup: u64,
    /// A [`Probe`].
    pub probe: u32,
    pub reserved: u32,
}

/// What tells one open file of one process from another, for counting repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ReadKey {
    pub start: u64,
    pub inode: u64,
    /// With [`OF_WRITES`] where it is of opens that only write: what follows one of these is the first read.
    pub pid: u32,
    pub device: u32,
}

/// No process id has this bit.
pub const OF_WRITES: u32 = 1 << 31;

/// Repeats of a read.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ReadCount {
    /// When the last record was sent, nanoseconds since boot.
    pub sent: u64,
    /// Opens since then.
    pub count: u32,
    pub reserved: u32,
}

/// Repeats within this time are counted, not sent.
pub const REPEAT_NS: u64 = 1_000_000_000;

/// What tells one file from another, also when an inode number is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct InodeKey {
    pub inode: u64,
    pub device: u32,
    pub generation: u32,
}

/// The value of the inode map: report its opens.
pub const INODE_CREDENTIAL: u32 = 1;
/// The value of the inode map: its name looks like a credential's, and it is none.
pub const INODE_IGNORED: u32 = 2;
