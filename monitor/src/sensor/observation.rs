//! What the sensor gives: records decoded and checked, in the terms of user space.

use super::dns::Resolved;
use crate::model::{Look, Subject, Transport};
use jiff::Timestamp;
use std::{net::IpAddr, path::PathBuf};

/// Whose task a record is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub time: Timestamp,
    pub subject: Subject,
    pub parent: Option<Subject>,
    pub cgroup: u64,
    pub uid: u32,
    pub loginuid: Option<u32>,
    pub tty: bool,
    pub comm: String,
}

/// What tells one file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// See [`kernel_device`].
    pub device: u32,
    pub inode: u64,
    pub generation: u32,
}

/// A device number as the kernel has it inside, from what the calls for files give.
pub fn kernel_device(device: u64) -> u32 {
    rustix::fs::major(device) << 20 | rustix::fs::minor(device)
}

/// Where what a process writes goes, as far as it is a pipe or a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// The inode number of the one at its standard output.
    pub pipe: Option<u64>,
    /// It is its parent's as well, so the parent is not the one that reads from it.
    pub of_parent: bool,
}

/// One observation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    Exec {
        stamp: Stamp,
        exe: PathBuf,
        file: FileId,
        /// The executable has no name any more, or never had one.
        unlinked: bool,
    },
    Fork {
        stamp: Stamp,
    },
    Exit {
        stamp: Stamp,
    },
    FileOpened {
        stamp: Stamp,
        /// Where the process sees it; `/…/` at the beginning where it is too long to be known.
        path: PathBuf,
        /// Where it is in its own file system, if a mount shows it under another path.
        source: Option<PathBuf>,
        file: FileId,
        /// The probe knew it by its inode, whatever its name.
        known: bool,
        manner: Manner,
        count: u32,
        output: Output,
    },
    /// A credential in the bytes that a process handed to its TLS library.
    Presented {
        stamp: Stamp,
        /// Tells one write from another.
        write: u64,
        /// Fingerprint of the server name that the program gave its TLS object.
        server: Option<u64>,
        /// Fingerprint of the server's name in the head of the request.
        host: Option<u64>,
        shown: Shown,
    },
    /// A credential in a packet outside TLS.
    Clear {
        time: Timestamp,
        cookie: u64,
        /// As in [`Observation::Presented`].
        host: Option<u64>,
        shown: Shown,
    },
    /// A credential in what came back in clear; what is in one answer has one time.
    Minted {
        time: Timestamp,
        cookie: u64,
        shown: Shown,
    },
    /// The head of a request in clear, and the server's name in it.
    Host {
        time: Timestamp,
        cookie: u64,
        name: Option<String>,
    },
    /// A name server answered; nothing, where it gave no address, or could not be understood.
    Answer {
        time: Timestamp,
        resolved: Option<Resolved>,
    },
    /// The TLS library did not take such a write.
    Withdrawn {
        write: u64,
    },
    /// The socket on which such a write went out.
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
        stamp: Stamp,
        name: String,
        fingerprint: u64,
        secret_len: u32,
        /// Index in the prefix table of the catalog.
        prefix: Option<u32>,
        dots: u32,
        url: bool,
    },
    Connected {
        stamp: Stamp,
        cookie: u64,
        address: IpAddr,
        port: u16,
        transport: Transport,
        stdin: Option<u64>,
    },
    /// The environment or the memory of a process, looked at by another.
    Foreign {
        stamp: Stamp,
        target: Target,
        look: Look,
    },
    /// A TCP connection that never came about.
    Refused {
        time: Timestamp,
        cookie: u64,
    },
    /// The first payload of a connection, and its ClientHello where it is one.
    Payload {
        time: Timestamp,
        cookie: u64,
        hello: Option<Hello>,
        /// The payload began like a ClientHello, and did not parse.
        malformed: bool,
    },
}

/// What a probe tells of a secret in the bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    pub fingerprint: u64,
    /// Of the password, or of the key in place of the user, where the secret is both in base64.
    pub inner: Option<u64>,
    pub secret_len: u32,
    /// Index of the header in the catalog; or [`monitor_common::login::LOGIN`] and the protocol; or
    /// [`monitor_common::answer::FIELD`] and the index of the field.
    pub header: u32,
    /// Index in the prefix table of the catalog.
    pub prefix: Option<u32>,
    pub dots: u32,
}

/// How a process came by an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Opened,
    /// From another process: over a socket, or taken from it.
    Received,
    /// It was open when the process became another program.
    Inherited,
    /// For writing only: no use of what is in it.
    Written,
    /// It is a socket, and the process has connected to it.
    Connected,
}

/// A process that another looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Subject(Subject),
    /// Its number in the PID namespace of the one who looked.
    Number(u32),
}

/// What a ClientHello says in clear.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    pub server_name: Option<String>,
    pub alpn: Vec<String>,
    pub ech: bool,
}
