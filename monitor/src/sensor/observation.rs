//! The sensor's output: decoded and validated records.

use crate::observed::{file::FileId, variable::ObservedVariable};
use jiff::Timestamp;
use monitor_common::record::{OwnerFields, Probe};
use monitor_core::model::{Look, Subject, Transport};
use monitor_parse::{client_hello::FirstPayload, dns::DnsAnswer};
use std::{net::IpAddr, path::PathBuf};

/// One observation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    Exec(ObservedExec),
    Fork(TaskInfo),
    Exit(TaskInfo),
    FileOpened(ObservedOpen),
    /// Opens counted in the kernel after the last record of the same file and process.
    FileRepeated(RepeatedOpens),
    Variable(TaskInfo, ObservedVariable),
    Connected(ObservedConnection),
    /// A connection that existed before the agent.
    Running(RunningConnection),
    /// A TCP connection that was never established, by its socket cookie.
    Refused {
        owner: RecordOwner,
        cookie: u64,
    },
    /// The first payload of a connection, and its ClientHello if it is one.
    Payload(RecordOwner, FirstPayload),
    /// The server name in the head of a plaintext request.
    PlaintextHost(PlaintextHost),
    DnsResponse(RecordOwner, Timestamp, DnsAnswer),
    /// A credential in the bytes that a process passed to its TLS library.
    Presented(ObservedPresentation),
    /// A credential in a packet outside TLS.
    Plaintext(PlaintextSecret),
    /// A credential in a plaintext response; all credentials of one response have the same time.
    Minted(PlaintextSecret),
    /// The TLS library did not accept the write.
    WriteRejected {
        owner: RecordOwner,
        write: u64,
    },
    /// The socket on which the write was sent.
    WriteSent {
        owner: RecordOwner,
        write: u64,
        cookie: u64,
    },
    /// A read of another process's environment or memory.
    ForeignRead(ObservedForeignRead),
}

impl Observation {
    /// The task that caused the observation; `None` if only its connection is known.
    pub fn task(&self) -> Option<&TaskInfo> {
        match self {
            Self::Exec(exec) => Some(&exec.task),
            Self::Fork(task) | Self::Exit(task) | Self::Variable(task, _) => Some(task),
            Self::FileOpened(open) => Some(&open.task),
            Self::Connected(connection) => Some(&connection.task),
            Self::Running(connection) => Some(&connection.task),
            Self::Presented(presentation) => Some(&presentation.task),
            Self::ForeignRead(read) => Some(&read.task),
            Self::FileRepeated(_)
            | Self::Refused { .. }
            | Self::Payload(..)
            | Self::PlaintextHost(_)
            | Self::DnsResponse(..)
            | Self::Plaintext(_)
            | Self::Minted(_)
            | Self::WriteRejected { .. }
            | Self::WriteSent { .. } => None,
        }
    }

    /// The probe that sent the record.
    pub fn probe(&self) -> Probe {
        match self {
            Self::Exec(_) | Self::Fork(_) | Self::Exit(_) => Probe::Process,
            Self::FileOpened(_) | Self::FileRepeated(_) => Probe::File,
            Self::Variable(..) => Probe::Environ,
            Self::Connected(_) | Self::Running(_) | Self::Refused { .. } => Probe::Connect,
            Self::Payload(..) => Probe::Hello,
            Self::DnsResponse(..) => Probe::Dns,
            Self::Presented(_) | Self::WriteRejected { .. } | Self::WriteSent { .. } => {
                Probe::Present
            }
            Self::PlaintextHost(_) | Self::Plaintext(_) | Self::Minted(_) => Probe::Clear,
            Self::ForeignRead(_) => Probe::Memory,
        }
    }

    /// Whose it is: the cgroup and user of its task, or of its socket. `None` for a sum of many
    /// records.
    pub fn owner(&self) -> Option<RecordOwner> {
        match self {
            Self::Payload(owner, _)
            | Self::DnsResponse(owner, ..)
            | Self::Refused { owner, .. }
            | Self::WriteRejected { owner, .. }
            | Self::WriteSent { owner, .. } => Some(*owner),
            Self::PlaintextHost(host) => Some(host.owner),
            Self::Plaintext(secret) | Self::Minted(secret) => Some(secret.owner),
            _ => self.task().map(TaskInfo::owner),
        }
    }

    /// When it was observed, if its record says so.
    pub fn time(&self) -> Option<Timestamp> {
        match self {
            Self::FileRepeated(opens) => Some(opens.time),
            Self::Payload(_, payload) => Some(payload.time),
            Self::PlaintextHost(host) => Some(host.time),
            Self::DnsResponse(_, time, _) => Some(*time),
            Self::Plaintext(secret) | Self::Minted(secret) => Some(secret.time),
            _ => Some(self.task()?.time),
        }
    }
}

/// The cgroup and user of the task or socket that a record is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RecordOwner {
    pub cgroup: u64,
    pub user: u32,
}

impl RecordOwner {
    /// Whose records are of which the probe does not know it: their share is nobody else's.
    pub const UNKNOWN: Self = Self {
        cgroup: OwnerFields::UNKNOWN.cgroup,
        user: OwnerFields::UNKNOWN.user,
    };

    /// The user, if it is known whose the record is.
    pub fn known_user(self) -> Option<u32> {
        (self != Self::UNKNOWN).then_some(self.user)
    }
}

/// The task that caused a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskInfo {
    pub time: Timestamp,
    pub subject: Subject,
    pub parent: Option<Subject>,
    pub cgroup: u64,
    pub uid: u32,
    pub loginuid: Option<u32>,
    pub tty: bool,
    pub comm: String,
}

impl TaskInfo {
    pub fn owner(&self) -> RecordOwner {
        RecordOwner {
            cgroup: self.cgroup,
            user: self.uid,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedExec {
    pub task: TaskInfo,
    pub exe: PathBuf,
    pub file: FileId,
    /// The executable no longer has a name, or never had one.
    pub unlinked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedOpen {
    pub task: TaskInfo,
    /// Path as the process sees it; begins with `/…/` if it was too long to be captured.
    pub path: PathBuf,
    /// Path inside its own file system, if a mount shows it under another path.
    pub source: Option<PathBuf>,
    pub file: FileId,
    /// Magic number of its file system.
    pub magic: u32,
    /// The probe recognised it by its inode, regardless of its name.
    pub known: bool,
    pub kind: OpenKind,
    pub count: u32,
    pub output: StdoutPipe,
}

/// How a process obtained an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenKind {
    Opened,
    /// From another process: over a socket, or taken from it.
    Received,
    /// Inherited across an exec.
    Inherited,
    /// Opened for writing only: its contents are not used.
    Written,
    /// Not a file but a socket to which the process connected.
    Connected,
}

/// The destination of a process's standard output, if it is a pipe or a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StdoutPipe {
    /// Its inode number.
    pub pipe: Option<u64>,
    /// The parent has the same standard output, so the parent does not read from it.
    pub of_parent: bool,
}

/// Identifies one open file of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpenFileKey {
    pub subject: Subject,
    pub device: u32,
    pub inode: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepeatedOpens {
    pub time: Timestamp,
    pub key: OpenFileKey,
    pub count: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedConnection {
    pub task: TaskInfo,
    pub cookie: u64,
    pub address: IpAddr,
    pub port: u16,
    pub transport: Transport,
    /// Inode number of the pipe or socket at the process's standard input.
    pub stdin: Option<u64>,
    /// Cookie of the socket's network namespace.
    pub network: u64,
}

/// A connection that existed before the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningConnection {
    pub task: TaskInfo,
    /// Inode number of its socket.
    pub inode: u64,
    pub address: IpAddr,
    pub port: u16,
    pub transport: Transport,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaintextHost {
    pub time: Timestamp,
    pub owner: RecordOwner,
    pub cookie: u64,
    pub name: Option<String>,
    /// The request asks a proxy for a connection to that server.
    pub asks_for_tunnel: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedPresentation {
    pub task: TaskInfo,
    /// Identifies the write.
    pub write: u64,
    /// Fingerprint of the server name that the program set on its TLS object.
    pub server: Option<u64>,
    /// Fingerprint of the server name in the head of the request.
    pub host: Option<u64>,
    pub secret: ObservedSecret,
}

/// A credential in a packet outside TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaintextSecret {
    pub time: Timestamp,
    pub owner: RecordOwner,
    pub cookie: u64,
    /// The packet is addressed to loopback, whatever the destination of the connection is.
    pub to_loopback: bool,
    /// As in [`ObservedPresentation`].
    pub host: Option<u64>,
    pub secret: ObservedSecret,
}

/// A secret that a probe found in the bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObservedSecret {
    pub fingerprint: u64,
    /// Fingerprint of the password, or of the key in place of the user, if the secret is a
    /// base64-encoded pair.
    pub inner: Option<u64>,
    pub secret_len: u32,
    /// Index of the header in the catalog; or [`monitor_common::login::LOGIN`] and the protocol; or
    /// [`monitor_common::response::RESPONSE_FIELD`] and the index of the field.
    pub header: u32,
    /// Index in the catalog's prefix table.
    pub prefix: Option<u32>,
    pub dots: u32,
    /// How often it was presented since the last observation of it on the connection.
    pub count: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedForeignRead {
    pub task: TaskInfo,
    pub target: ReadTarget,
    pub look: Look,
}

/// A process that was read by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadTarget {
    Subject(Subject),
    /// Its pid in the reader's PID namespace.
    Number(u32),
}
