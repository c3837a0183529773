//! The sensor's output: decoded and validated records.

use super::dns::DnsAnswer;
use jiff::Timestamp;
use monitor_core::model::{Look, Subject, Transport};
use std::{net::IpAddr, path::PathBuf};

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

/// Identifies a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// See [`kernel_device`].
    pub device: u32,
    pub inode: u64,
    pub generation: u32,
}

/// Converts a device number from system calls to the kernel's internal representation.
pub fn kernel_device(device: u64) -> u32 {
    rustix::fs::major(device) << 20 | rustix::fs::minor(device)
}

/// The destination of a process's standard output, if it is a pipe or a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StdoutPipe {
    /// Its inode number.
    pub pipe: Option<u64>,
    /// The parent has the same standard output, so the parent does not read from it.
    pub of_parent: bool,
}

/// One observation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    Exec {
        stamp: TaskInfo,
        exe: PathBuf,
        file: FileId,
        /// The executable no longer has a name, or never had one.
        unlinked: bool,
    },
    Fork {
        stamp: TaskInfo,
    },
    Exit {
        stamp: TaskInfo,
    },
    FileOpened {
        stamp: TaskInfo,
        /// Path as the process sees it; begins with `/…/` if it was too long to be captured.
        path: PathBuf,
        /// Path inside its own file system, if a mount shows it under another path.
        source: Option<PathBuf>,
        file: FileId,
        /// The probe recognised it by its inode, regardless of its name.
        known: bool,
        manner: OpenKind,
        count: u32,
        output: StdoutPipe,
    },
    /// A credential in the bytes that a process passed to its TLS library.
    Presented {
        stamp: TaskInfo,
        /// Identifies the write.
        write: u64,
        /// Fingerprint of the server name that the program set on its TLS object.
        server: Option<u64>,
        /// Fingerprint of the server name in the head of the request.
        host: Option<u64>,
        shown: ObservedSecret,
    },
    /// A credential in a packet outside TLS.
    Clear {
        time: Timestamp,
        cookie: u64,
        /// As in [`Observation::Presented`].
        host: Option<u64>,
        shown: ObservedSecret,
    },
    /// A credential in a plaintext response; all credentials of one response have the same time.
    Minted {
        time: Timestamp,
        cookie: u64,
        shown: ObservedSecret,
    },
    /// The server name in the head of a plaintext request.
    Host {
        time: Timestamp,
        cookie: u64,
        name: Option<String>,
    },
    /// A DNS response; `None` if it contained no address or could not be parsed.
    Answer {
        time: Timestamp,
        resolved: Option<DnsAnswer>,
    },
    /// The TLS library did not accept the write.
    Withdrawn {
        write: u64,
    },
    /// The socket on which the write was sent.
    Tied {
        write: u64,
        cookie: u64,
    },
    /// Opens counted in the kernel after the last record of the same file and process.
    FileRepeated {
        time: Timestamp,
        subject: Subject,
        device: u32,
        inode: u64,
        count: u32,
    },
    Variable {
        stamp: TaskInfo,
        name: String,
        fingerprint: u64,
        secret_len: u32,
        /// Index in the catalog's prefix table.
        prefix: Option<u32>,
        dots: u32,
        url: bool,
    },
    Connected {
        stamp: TaskInfo,
        cookie: u64,
        address: IpAddr,
        port: u16,
        transport: Transport,
        stdin: Option<u64>,
    },
    /// A read of another process's environment or memory.
    Foreign {
        stamp: TaskInfo,
        target: ReadTarget,
        look: Look,
    },
    /// A TCP connection that was never established.
    Refused {
        time: Timestamp,
        cookie: u64,
    },
    /// The first payload of a connection, and its ClientHello if it is one.
    Payload {
        time: Timestamp,
        cookie: u64,
        hello: Option<ClientHello>,
        /// The payload began like a ClientHello but could not be parsed.
        malformed: bool,
    },
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

/// A process that was read by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadTarget {
    Subject(Subject),
    /// Its pid in the reader's PID namespace.
    Number(u32),
}

/// The plaintext part of a ClientHello.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    pub server_name: Option<String>,
    pub alpn: Vec<String>,
    pub ech: bool,
}
