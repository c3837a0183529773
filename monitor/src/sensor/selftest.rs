//! The self-test at start: compares what the probes read of this process with `/proc`.

use super::{
    Sensor, SensorError,
    agent_processes::in_initial_pid_namespace,
    observation::{Observation, ObservedOpen},
};
use crate::observed::file::kernel_device;
use monitor_core::model::Subject;
use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use thiserror::Error;

/// Why the probes cannot be trusted.
#[derive(Debug, Error)]
pub enum SelfTestError {
    #[error("the test file {path} cannot be used: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("the file probe did not report this process's own open within {0:?}")]
    Silent(Duration),
    #[error(
        "the file probe reports {what} as `{found}` instead of `{expected}`: the kernel's fields are not where its BTF says"
    )]
    Wrong {
        what: &'static str,
        found: String,
        expected: String,
    },
    #[error(transparent)]
    Sensor(#[from] SensorError),
}

/// Maximum time until an open is reported.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Opens a file with the name of a credential and waits until the probes report it. Returns this
/// process as the probes see it, whose pid differs from its own view inside a PID namespace, and
/// passes it to them. Anything else observed meanwhile is appended to
/// `observations`.
pub async fn self_test(
    sensor: &mut Sensor,
    directory: &Path,
    observations: &mut Vec<Observation>,
) -> Result<Subject, SelfTestError> {
    let mark = SelfTestFile::new();
    let folder = TestDirectory(directory.join(&mark.name));
    let path = folder.netrc();
    let failed = |source| SelfTestError::File {
        path: path.clone(),
        source,
    };
    let mark = mark.create(&folder.make().map_err(failed)?);
    let _opened = File::open(&path).map_err(failed)?;
    let began = Instant::now();
    let found = loop {
        let before = observations.len();
        sensor
            .read_observations(Duration::from_millis(50), observations)
            .await?;
        let found = observations[before..]
            .iter()
            .position(|observation| mark.matches(observation));
        if let Some(place) = found {
            break observations.remove(before + place);
        }
        if began.elapsed() > TIMEOUT {
            return Err(SelfTestError::Silent(TIMEOUT));
        }
    };
    drop(folder);
    let Observation::FileOpened(ObservedOpen {
        task, path: seen, ..
    }) = found
    else {
        return Err(SelfTestError::Silent(TIMEOUT));
    };
    let check = |what, found: String, expected: String| {
        if found == expected {
            Ok(())
        } else {
            Err(SelfTestError::Wrong {
                what,
                found,
                expected,
            })
        }
    };
    let name = |path: &Path| {
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    check("the file's name", name(&seen), name(&path))?;
    let own = procfs::process::Process::myself().and_then(|process| process.stat());
    if let Ok(own) = own {
        check(
            "the start time",
            task.subject.start.to_string(),
            own.starttime.to_string(),
        )?;
    }
    let comm = fs::read_to_string("/proc/thread-self/comm").unwrap_or_default();
    check(
        "the command name",
        task.comm.clone(),
        comm.trim_end().to_owned(),
    )?;
    sensor.set_agent(task.subject);
    Ok(task.subject)
}

/// A directory for a file with a credential's name, removed however the test ends.
struct TestDirectory(PathBuf);

impl TestDirectory {
    fn netrc(&self) -> PathBuf {
        self.0.join(".netrc")
    }

    fn make(&self) -> io::Result<fs::Metadata> {
        fs::create_dir_all(&self.0)?;
        fs::write(self.netrc(), b"")?;
        fs::metadata(self.netrc())
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::debug!(folder = %self.0.display(), %error, "cannot remove the directory of the self-test");
        }
    }
}

/// A file that the agent opens to test the probes, and how its open is recognised among others: by
/// process, device and inode. In a PID namespace the kernel reports another pid, and some file
/// systems report another device than the kernel uses: then a name that no one else knows is
/// compared.
#[derive(Debug)]
struct SelfTestFile {
    name: String,
    inode: u64,
    device: Option<u32>,
    pid: Option<u32>,
}

impl SelfTestFile {
    fn new() -> Self {
        let mut random = [0; 8];
        // Without random bytes, the process and the file are sufficient.
        let _ = getrandom::fill(&mut random);
        Self {
            name: format!("self-test-{:016x}", u64::from_le_bytes(random)),
            inode: 0,
            device: None,
            pid: in_initial_pid_namespace().then(std::process::id),
        }
    }

    /// Adds the identity of the created file.
    fn create(self, metadata: &fs::Metadata) -> Self {
        let device = metadata.dev();
        Self {
            inode: metadata.ino(),
            device: (rustix::fs::major(device) != 0).then(|| kernel_device(device)),
            ..self
        }
    }

    fn matches(&self, observation: &Observation) -> bool {
        let Observation::FileOpened(ObservedOpen {
            task, file, path, ..
        }) = observation
        else {
            return false;
        };
        let named = || path.iter().any(|part| part == self.name.as_str());
        file.inode == self.inode
            && self.device.is_none_or(|device| file.device == device)
            && self.pid.map_or_else(named, |pid| task.subject.pid == pid)
    }
}
