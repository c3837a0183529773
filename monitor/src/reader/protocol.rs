//! What the agent asks of a reader, and what it answers. Nothing here is secret.

use crate::observed::{
    file::FileId,
    mapping::{FileKey, FileVersion, ProcessMapping},
    mount::{HoldLimit, MountId},
    path::RawPath,
    variable::ObservedVariable,
};
use jiff::Timestamp;
use monitor_core::{
    catalog::{CatalogSources, entry::FileFormat},
    model::{CiJob, DeclaredGateway, Subject, Transport},
};
use monitor_parse::credential::{FoundSecret, LeftOut};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The first message to a reader.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReaderSetup {
    /// Absent for a reader of programs, which needs none.
    pub catalog: Option<CatalogSources>,
    /// The two halves of the fingerprint key.
    pub key: [u64; 2],
    /// Mounts that were present when the agent started: permanent ones are among them.
    pub mounts_at_start: Vec<MountId>,
    /// A process that has the host's root, if the agent's root is another one.
    pub host: Option<i32>,
    pub views: Views,
}

/// Through the root of which processes a reader opens paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Views {
    /// Those in the agent's user namespace: their mounts were made with privileges, so an overlay
    /// among them is not a way to a file system that does not respond.
    OwnUserNamespace,
    All,
}

/// A request to a reader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadRequest {
    /// The secrets in a file that a process opened.
    File(FileRequest),
    /// The secrets in the environment of a process, and the places that it names.
    Environment { process: Subject },
    /// As `Environment`, with the credential files and connections that the process has open.
    Process { process: Subject },
    /// Whether a file exists in the file system of a process. The path is as the process sees it.
    Exists { pid: u32, path: RawPath },
    /// Whether a program was added to a container after its image.
    Added { pid: u32, exe: RawPath },
    /// Whether a program was written in one of these times.
    Written {
        pid: u32,
        exe: RawPath,
        times: Vec<(Timestamp, Timestamp)>,
    },
    /// The home directories of the host's users.
    Homes,
    /// How names are resolved for a process, or for the host.
    Resolvers { process: Option<Subject> },
    /// Files with credentials: in volumes of pods, and at these places of earlier runs.
    Recover { known: Vec<String> },
    /// The TLS functions of a file that a process has mapped.
    Mapped {
        mapping: ProcessMapping,
        symbols: Symbols,
    },
    /// The TLS functions of a file of the host.
    Installed { path: RawPath },
    /// The TLS libraries that are installed on the host.
    Libraries,
    /// The identity of a program of the host, and whether it uses shared libraries.
    HostProgram { path: RawPath },
}

impl ReadAnswer {
    /// What was not examined.
    pub fn left_out(&self) -> Option<LeftOut> {
        match self {
            Self::File(FileAnswer { contents, .. }) => contents.as_ref().ok()?.left_out,
            Self::Environment(environment) => environment.left_out,
            Self::Process(process) => process.environment.left_out,
            _ => None,
        }
    }
}

impl ReadRequest {
    /// Whether the answer depends on what a process has arranged, such as its memory.
    pub fn is_about_process(&self) -> bool {
        matches!(
            self,
            Self::Environment { .. }
                | Self::Process { .. }
                | Self::Exists { .. }
                | Self::Added { .. }
                | Self::Written { .. }
                | Self::Resolvers { process: Some(_) }
        )
    }

    /// The file system that the request is about, if it is known: device and magic number.
    pub fn file_system(&self) -> Option<(u32, u32)> {
        match self {
            Self::File(request) => Some((request.file.device, request.magic)),
            _ => None,
        }
    }
}

/// How names are resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolversAnswer {
    pub name_servers: Vec<IpAddr>,
    /// Names of the host's `hosts` file.
    pub hosts: Vec<(String, IpAddr)>,
}

/// A file that a process opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRequest {
    /// Path as the process saw it.
    pub path: RawPath,
    /// Path inside its own file system, if a mount shows it under another path.
    pub source: Option<RawPath>,
    pub file: FileId,
    /// Magic number of its file system; 0 if unknown.
    pub magic: u32,
    pub pid: u32,
    /// Another process with the same view of the file system.
    pub peer: Option<u32>,
    /// The process is in a container.
    pub contained: bool,
    /// The class of its place.
    pub class: String,
    pub format: FileFormat,
    /// The version that is known already.
    pub known: Option<FileVersion>,
    /// Whether to tell if the file is mounted on its own.
    pub check_mount: bool,
}

#[cfg(test)]
impl FileRequest {
    /// A file that this process opened.
    pub fn for_tests(path: &std::path::Path, file: FileId) -> Self {
        Self {
            path: path.into(),
            source: None,
            file,
            magic: 0,
            pid: std::process::id(),
            peer: None,
            contained: false,
            class: String::new(),
            format: FileFormat::Token,
            known: None,
            check_mount: false,
        }
    }
}

/// What is known about a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileAnswer {
    /// The contents, or why there are none.
    pub contents: Result<FileContents, String>,
    /// Whether the file, or its directory, is a mount of its own, if that was asked.
    pub mounted_alone: Option<bool>,
}

/// The contents of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileContents {
    pub version: FileVersion,
    pub modified: Option<Timestamp>,
    /// `None` if it is the version that the request named.
    pub found: Option<Vec<FoundSecret>>,
    /// How the reader's own system calls identify the file.
    pub opened: FileId,
    pub left_out: Option<LeftOut>,
}

/// A credential's place that an environment names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointedPlace {
    /// Normalised path as the process sees it.
    pub path: String,
    pub class: String,
    /// Absent for a socket.
    pub file: Option<FileId>,
}

/// The environment of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentAnswer {
    pub variables: Vec<ObservedVariable>,
    pub places: Vec<PointedPlace>,
    /// Servers to which credentials go instead of to their issuers.
    pub gateways: Vec<DeclaredGateway>,
    /// The job of a CI system that it names.
    pub ci_job: Option<CiJob>,
    pub left_out: Option<LeftOut>,
}

/// The remote end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteAddress {
    pub address: IpAddr,
    pub port: u16,
    pub transport: Transport,
}

/// What a process had before it was observed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessAnswer {
    pub environment: EnvironmentAnswer,
    /// Readable files at places of credentials.
    pub files: Vec<(RawPath, FileId)>,
    /// Outgoing connections, by the inode number of their socket.
    pub connections: Vec<(u64, RemoteAddress)>,
}

/// A file in which credentials are expected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveredFile {
    pub file: FileId,
    /// The path by which the catalog recognises it.
    pub path: RawPath,
}

/// Which symbols of a program are examined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Symbols {
    /// Dynamic ones, and Go's table.
    Dynamic,
    /// Those of the program itself, of which there may be a hundred thousand.
    Static,
}

/// The TLS functions of a file; its descriptor comes with the answer if there are any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramAnswer {
    pub key: FileKey,
    pub version: FileVersion,
    pub until: HoldLimit,
    /// It is the program that the process runs.
    pub executable: bool,
    /// Functions by TLS library.
    pub stacks: Vec<(String, Vec<FunctionPoint>)>,
    /// Why functions that were found are not used.
    pub unproven: Vec<String>,
    /// Nothing was found, so it may be worth to examine other symbols.
    pub is_empty: bool,
    /// Functions differ from the file in the memory of the process.
    pub changed_by_process: bool,
}

/// A function of a TLS library.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionPoint {
    /// The program to attach.
    pub program: String,
    /// Offset in the file.
    pub offset: u64,
}

/// A program of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostProgram {
    pub key: FileKey,
    /// It may use shared libraries.
    pub uses_libraries: bool,
}

/// Why a file is not inspected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotHeld {
    pub reason: String,
    /// Another attempt, through another process, would fail the same way.
    pub permanent: bool,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadAnswer {
    /// The first message: it is restricted, and waits for requests.
    Ready,
    File(FileAnswer),
    Environment(EnvironmentAnswer),
    Process(ProcessAnswer),
    /// `None` if it cannot be determined.
    Fact(Option<bool>),
    Homes(Vec<(u32, String)>),
    Resolvers(ResolversAnswer),
    Recovered(Vec<RecoveredFile>),
    Program(ProgramAnswer),
    NotHeld(NotHeld),
    Libraries(Vec<RawPath>),
    HostProgram(Option<HostProgram>),
    /// It could not be opened or read.
    Unreadable(String),
}
