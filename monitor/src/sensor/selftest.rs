//! The self-test at start: what the probes read of this process is compared with `/proc`.

use super::{Sensor, SensorError, observation::Observation};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use thiserror::Error;

/// Why the probes are not to be believed.
#[derive(Debug, Error)]
pub enum SelfTestError {
    #[error("the test file {path} cannot be used: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("the file probe did not report this process's own open within {0:?}")]
    Silent(Duration),
    #[error(
        "the file probe reports {what} as `{found}`, and it is `{expected}`: the kernel's fields are not where its BTF says"
    )]
    Wrong {
        what: &'static str,
        found: String,
        expected: String,
    },
    #[error(transparent)]
    Sensor(#[from] SensorError),
}

const LIMIT: Duration = Duration::from_secs(2);

/// Opens a file with the name of a credential and waits until the probes tell of it. Gives the
/// number by which the kernel knows this process, which in a PID namespace is not its own; tells
/// it to the probes. What else was observed meanwhile is appended to `observations`.
pub async fn self_test(
    sensor: &mut Sensor,
    directory: &Path,
    observations: &mut Vec<Observation>,
) -> Result<u32, SelfTestError> {
    let folder = directory.join("self-test");
    let path = folder.join(".netrc");
    let failed = |source| SelfTestError::File {
        path: path.clone(),
        source,
    };
    fs::create_dir_all(&folder).map_err(failed)?;
    fs::write(&path, b"").map_err(failed)?;
    let opened = File::open(&path).map_err(failed)?;
    let inode = std::os::unix::fs::MetadataExt::ino(&opened.metadata().map_err(failed)?);
    let began = Instant::now();
    let found = loop {
        let before = observations.len();
        sensor
            .observe(Duration::from_millis(50), observations)
            .await?;
        let found = observations[before..].iter().position(|observation| {
            matches!(observation, Observation::FileOpened { file, .. } if file.inode == inode)
        });
        if let Some(place) = found {
            break observations.remove(before + place);
        }
        if began.elapsed() > LIMIT {
            return Err(SelfTestError::Silent(LIMIT));
        }
    };
    fs::remove_dir_all(&folder).map_err(failed)?;
    let Observation::FileOpened {
        stamp, path: seen, ..
    } = found
    else {
        return Err(SelfTestError::Silent(LIMIT));
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
            stamp.subject.start.to_string(),
            own.starttime.to_string(),
        )?;
    }
    let comm = fs::read_to_string("/proc/thread-self/comm").unwrap_or_default();
    check(
        "the command name",
        stamp.comm.clone(),
        comm.trim_end().to_owned(),
    )?;
    sensor.set_agent(stamp.subject.pid)?;
    Ok(stamp.subject.pid)
}

/// How often the probes are asked whether they still see.
const BEAT: Duration = Duration::from_secs(30);

/// A file with the name of a credential that the agent opens now and then: the probes that do not tell
/// of it were detached, or are kept from telling.
#[derive(Debug)]
pub struct Heartbeat {
    directory: PathBuf,
    own: u32,
    last: Instant,
    /// The inode of a beat that was not seen yet.
    waiting: Option<u64>,
    silent: bool,
}

impl Heartbeat {
    /// `own` is the agent's number, as [`self_test`] gives it.
    pub fn new(directory: &Path, own: u32) -> Self {
        Self {
            directory: directory.join("heartbeat"),
            own,
            last: Instant::now(),
            waiting: None,
            silent: false,
        }
    }

    /// Beats, where it is time to; to be called each second. Gives whether the file probe has fallen silent
    /// since the last call.
    pub fn beat(&mut self, sensor: &mut Sensor) -> Result<bool, SensorError> {
        let since = self.last.elapsed();
        let fell_silent = self.waiting.is_some() && since > LIMIT && !self.silent;
        self.silent |= fell_silent;
        if since > BEAT {
            self.last = Instant::now();
            self.waiting = None;
            // A disk may be full: then there is no beat, and nothing to be missed.
            if let Ok((path, inode)) = self.make() {
                sensor.set_agent(0)?;
                let opened = File::open(&path);
                sensor.set_agent(self.own)?;
                self.waiting = opened.is_ok().then_some(inode);
            }
            drop(fs::remove_dir_all(&self.directory));
        }
        Ok(fell_silent)
    }

    fn make(&self) -> io::Result<(PathBuf, u64)> {
        fs::create_dir_all(&self.directory)?;
        let path = self.directory.join(".netrc");
        fs::write(&path, b"")?;
        let metadata = fs::metadata(&path)?;
        Ok((path, std::os::unix::fs::MetadataExt::ino(&metadata)))
    }

    /// Takes the beat out of what was observed, and what else the agent did meanwhile.
    pub fn take(&mut self, observations: &mut Vec<Observation>) {
        let Some(inode) = self.waiting else { return };
        let own = self.own;
        let mut seen = false;
        observations.retain(|observation| match observation {
            Observation::FileOpened { stamp, file, .. } if stamp.subject.pid == own => {
                seen |= file.inode == inode;
                false
            }
            Observation::Foreign { stamp, .. } => stamp.subject.pid != own,
            _ => true,
        });
        if seen {
            self.waiting = None;
            self.silent = false;
        }
    }
}
