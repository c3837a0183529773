//! What a reader does for each kind of request.

mod environment;
mod file_reader;
pub mod hold;
mod homes;
mod identify;
mod libraries;
mod mount_table;
mod mounted;
mod opened_file;
mod program;
mod recover;
mod resolvers;
mod running;
mod secret;
mod trust;

use super::protocol::{
    FileAnswer, FileContents, FileRequest, ProcessAnswer, ReadAnswer, ReadRequest, ReaderSetup,
    Views,
};
use crate::observed::{mapping::FileVersion, process::live_subject};
use jiff::Timestamp;
use monitor_common::fingerprint::FingerprintKey;
use monitor_core::{
    catalog::{Catalog, CatalogError, CatalogSources, entry::FileFormat, glob::normalise},
    model::Subject,
};
use monitor_parse::credential::{LeftOut, find_secrets};
use program::ProgramInspector;
use running::RunningConnections;
use secret::SecretBuffer;
use std::{io, os::fd::OwnedFd};
use thiserror::Error;

/// Bytes of a credential file or an environment that are read.
const FILE_MAX: usize = 1 << 20;

/// Why the tasks cannot be set up.
#[derive(Debug, Error)]
pub enum TaskError {
    #[error("the catalog cannot be compiled: {0}")]
    Catalog(#[from] CatalogError),
    #[error("cannot allocate the buffer for secrets: {0}")]
    Buffer(io::Error),
}

/// Answers requests.
#[derive(Debug)]
pub struct ReaderTasks {
    /// Absent in a reader of programs.
    credentials: Option<CredentialTasks>,
    views: Views,
    programs: ProgramInspector,
}

impl ReaderTasks {
    /// Tasks of this process, with the embedded catalog.
    #[cfg(test)]
    pub fn for_tests(key: FingerprintKey) -> Self {
        let setup = ReaderSetup {
            catalog: Some(CatalogSources::default()),
            key: [key.k0, key.k1],
            mounts_at_start: Vec::new(),
            host: None,
            views: Views::All,
        };
        Self::new(&setup).expect("the embedded catalog")
    }

    /// As a client returns it.
    #[cfg(test)]
    pub fn result(&mut self, request: &ReadRequest) -> super::ReadResult {
        match self.answer(request).0 {
            ReadAnswer::Unreadable(_) => Err(super::ReadFailure::Unreadable),
            answer => Ok(answer),
        }
    }

    pub fn new(setup: &ReaderSetup) -> Result<Self, TaskError> {
        let credentials = match &setup.catalog {
            Some(catalog) => Some(CredentialTasks::new(catalog.clone(), setup)?),
            None => None,
        };
        Ok(Self {
            credentials,
            views: setup.views,
            programs: ProgramInspector::new(setup.mounts_at_start.iter().copied().collect()),
        })
    }

    /// The answer to a request, and the descriptor that accompanies it.
    pub fn answer(&mut self, request: &ReadRequest) -> (ReadAnswer, Option<OwnedFd>) {
        let answer = match request {
            ReadRequest::File(file) => self.with_catalog(|tasks| Ok(tasks.file(file))),
            ReadRequest::Environment { process } => {
                self.with_catalog(|tasks| tasks.environment(*process))
            }
            ReadRequest::Process { process } => self.with_catalog(|tasks| tasks.process(*process)),
            ReadRequest::Recover { known } => self.with_catalog(|tasks| Ok(tasks.recover(known))),
            ReadRequest::Exists { pid, path } => {
                ReadAnswer::Fact(trust::exists(*pid, path.as_path(), self.views))
            }
            ReadRequest::Added { pid, exe } => {
                ReadAnswer::Fact(trust::is_added(*pid, exe.as_path(), self.views))
            }
            ReadRequest::Written { pid, exe, times } => {
                ReadAnswer::Fact(trust::was_written(*pid, exe.as_path(), times, self.views))
            }
            ReadRequest::Resolvers { process: None } => ReadAnswer::Resolvers(resolvers::of_host()),
            ReadRequest::Resolvers {
                process: Some(process),
            } => resolvers::of_process(process.pid)
                .and_then(|answer| still_runs(*process).map(|()| answer))
                .map_or_else(unreadable, ReadAnswer::Resolvers),
            ReadRequest::Homes => homes::homes().map_or_else(unreadable, ReadAnswer::Homes),
            ReadRequest::Mapped { mapping, symbols } => {
                return self.programs.mapped(mapping, *symbols);
            }
            ReadRequest::Installed { path } => return self.programs.installed(path.as_path()),
            ReadRequest::Libraries => ReadAnswer::Libraries(libraries::installed()),
            ReadRequest::HostProgram { path } => {
                ReadAnswer::HostProgram(program::host_program(path.as_path()))
            }
        };
        (answer, None)
    }

    /// The answer to a question about credentials.
    fn with_catalog(
        &mut self,
        read: impl FnOnce(&mut CredentialTasks) -> io::Result<ReadAnswer>,
    ) -> ReadAnswer {
        match &mut self.credentials {
            Some(tasks) => read(tasks).unwrap_or_else(unreadable),
            None => unreadable("this reader has no catalog"),
        }
    }
}

/// Finds credentials in files and environments.
#[derive(Debug)]
struct CredentialTasks {
    catalog: Catalog,
    key: FingerprintKey,
    views: Views,
    buffer: SecretBuffer,
    connections: RunningConnections,
}

impl CredentialTasks {
    fn new(catalog: CatalogSources, setup: &ReaderSetup) -> Result<Self, TaskError> {
        let [k0, k1] = setup.key;
        Ok(Self {
            catalog: Catalog::compile(catalog)?,
            key: FingerprintKey { k0, k1 },
            views: setup.views,
            buffer: SecretBuffer::new(FILE_MAX).map_err(TaskError::Buffer)?,
            connections: RunningConnections::default(),
        })
    }

    fn file(&mut self, request: &FileRequest) -> ReadAnswer {
        let mounted_alone = request
            .check_mount
            .then(|| mounted::is_alone(request.pid, request.path.as_path()))
            .flatten();
        let contents = self.contents(request).map_err(|error| error.to_string());
        ReadAnswer::File(FileAnswer {
            contents,
            mounted_alone,
        })
    }

    fn contents(&mut self, request: &FileRequest) -> io::Result<FileContents> {
        let (mut opened, seen) = opened_file::open_as_seen(request, self.views)?;
        let metadata = opened.metadata()?;
        let version = FileVersion::of(&metadata);
        let class = self
            .catalog
            .class_entries()
            .iter()
            .find(|entry| entry.class == request.class && entry.format == request.format)
            .ok_or_else(|| io::Error::other("its class is not in the catalog"))?;
        let (found, left_out) = if request.known == Some(version) {
            (None, None)
        } else if class.format == FileFormat::Opaque {
            (Some(Vec::new()), None)
        } else {
            let (catalog, key) = (&self.catalog, self.key);
            let (secrets, has_more) = self.buffer.with_file(&mut opened, |bytes| {
                find_secrets(catalog, class, key, bytes)
            })?;
            let cut = has_more.then_some(LeftOut::Bytes);
            (Some(secrets.found), cut.or(secrets.left_out))
        };
        Ok(FileContents {
            version,
            modified: Timestamp::from_second(version.modified_seconds()).ok(),
            found,
            opened: seen,
            left_out,
        })
    }

    fn environment(&mut self, process: Subject) -> io::Result<ReadAnswer> {
        let answer = environment::read(self, process.pid)?;
        still_runs(process)?;
        Ok(ReadAnswer::Environment(answer))
    }

    fn process(&mut self, process: Subject) -> io::Result<ReadAnswer> {
        let Subject { pid, .. } = process;
        // A process may have an environment that cannot be read, and files all the same.
        let environment = environment::read(self, pid).unwrap_or_default();
        let open = running::open_files(pid, |path| {
            let path = normalise(&path.to_string_lossy());
            self.catalog.file(&path).is_some()
                || environment.places.iter().any(|place| place.path == path)
        });
        let connections = self.connections.outgoing_of(pid, &open.sockets);
        still_runs(process)?;
        Ok(ReadAnswer::Process(ProcessAnswer {
            files: open.files,
            connections,
            environment,
        }))
    }

    fn recover(&self, known: &[String]) -> ReadAnswer {
        ReadAnswer::Recovered(recover::recover(&self.catalog, known))
    }
}

/// Fails if a pid belongs to another process by now.
fn still_runs(process: Subject) -> io::Result<()> {
    match live_subject(process.pid) {
        Some(live) if live == process => Ok(()),
        _ => Err(io::Error::other("the process exited")),
    }
}

fn unreadable(error: impl std::fmt::Display) -> ReadAnswer {
    ReadAnswer::Unreadable(error.to_string())
}

#[cfg(test)]
mod tests;
