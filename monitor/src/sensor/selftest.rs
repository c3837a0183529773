//! The self-test at start: what the probes read of this process is compared with `/proc`.

use super::{
    Sensor, SensorError,
    observation::{Observation, kernel_device},
};
use jiff::Timestamp;
use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
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
    let mark = OwnFile::new("self-test");
    let folder = Folder(directory.join(&mark.name));
    let path = folder.netrc();
    let failed = |source| SelfTestError::File {
        path: path.clone(),
        source,
    };
    let mark = mark.of(&folder.make().map_err(failed)?);
    let _opened = File::open(&path).map_err(failed)?;
    let began = Instant::now();
    let found = loop {
        let before = observations.len();
        sensor
            .observe(Duration::from_millis(50), observations)
            .await?;
        let found = observations[before..]
            .iter()
            .position(|observation| mark.is(observation));
        if let Some(place) = found {
            break observations.remove(before + place);
        }
        if began.elapsed() > LIMIT {
            return Err(SelfTestError::Silent(LIMIT));
        }
    };
    drop(folder);
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

/// A folder for a file with the name of a credential's, removed however the test ends.
struct Folder(PathBuf);

impl Folder {
    fn netrc(&self) -> PathBuf {
        self.0.join(".netrc")
    }

    fn make(&self) -> io::Result<fs::Metadata> {
        fs::create_dir_all(&self.0)?;
        fs::write(self.netrc(), b"")?;
        fs::metadata(self.netrc())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::debug!(folder = %self.0.display(), %error, "cannot remove the folder of the self-test");
        }
    }
}

/// A file that the agent opens to be seen, and how it is told from what others open meanwhile: by
/// process, device and inode. In a PID namespace the kernel knows this process by another number, and
/// some file systems show another device than the kernel has: then by a name that nobody else knows.
#[derive(Debug)]
struct OwnFile {
    name: String,
    inode: u64,
    device: Option<u32>,
    pid: Option<u32>,
}

impl OwnFile {
    fn new(front: &str) -> Self {
        /// The inode number of the first PID namespace.
        const INITIAL: u64 = 0xefff_fffc;
        let mut random = [0; 8];
        // Without random bytes the process and the file are enough.
        let _ = getrandom::fill(&mut random);
        let initial = fs::metadata("/proc/self/ns/pid").is_ok_and(|ns| ns.ino() == INITIAL);
        Self {
            name: format!("{front}-{:016x}", u64::from_le_bytes(random)),
            inode: 0,
            device: None,
            pid: initial.then(std::process::id),
        }
    }

    /// The same once there is a file.
    fn of(self, metadata: &fs::Metadata) -> Self {
        let device = metadata.dev();
        Self {
            inode: metadata.ino(),
            device: (rustix::fs::major(device) != 0).then(|| kernel_device(device)),
            ..self
        }
    }

    fn is(&self, observation: &Observation) -> bool {
        let Observation::FileOpened {
            stamp, file, path, ..
        } = observation
        else {
            return false;
        };
        let named = || path.iter().any(|part| part == self.name.as_str());
        file.inode == self.inode
            && self.device.is_none_or(|device| file.device == device)
            && self.pid.map_or_else(named, |pid| stamp.subject.pid == pid)
    }
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
    /// A beat that was not seen yet.
    waiting: Option<OwnFile>,
    /// When the probes were last known to see.
    seen: Timestamp,
    silent: bool,
}

impl Heartbeat {
    /// `own` is the agent's number, as [`self_test`] gives it.
    pub fn new(directory: &Path, own: u32) -> Self {
        Self {
            directory: directory.to_owned(),
            own,
            last: Instant::now(),
            waiting: None,
            seen: Timestamp::now(),
            silent: false,
        }
    }

    /// Beats, where it is time to; to be called each second. Gives since when the file probe may be
    /// silent, where that has shown since the last call.
    pub fn beat(&mut self, sensor: &mut Sensor) -> Result<Option<Timestamp>, SensorError> {
        let since = self.last.elapsed();
        let fell_silent = self.waiting.is_some() && since > LIMIT && !self.silent;
        self.silent |= fell_silent;
        if since > BEAT {
            self.last = Instant::now();
            self.waiting = None;
            // A disk may be full: then there is no beat, and nothing to be missed.
            let mark = OwnFile::new("heartbeat");
            let folder = Folder(self.directory.join(&mark.name));
            if let Ok(metadata) = folder.make() {
                sensor.set_agent(0)?;
                let opened = File::open(folder.netrc());
                sensor.set_agent(self.own)?;
                self.waiting = opened.is_ok().then(|| mark.of(&metadata));
            }
        }
        Ok(fell_silent.then_some(self.seen))
    }

    /// Takes the beat out of what was observed, and what else the agent did meanwhile.
    pub fn take(&mut self, observations: &mut Vec<Observation>) {
        let Some(mark) = &self.waiting else { return };
        let own = self.own;
        let mut seen = false;
        observations.retain(|observation| match observation {
            Observation::FileOpened { stamp, .. } if stamp.subject.pid == own => {
                seen |= mark.is(observation);
                false
            }
            Observation::Foreign { stamp, .. } => stamp.subject.pid != own,
            _ => true,
        });
        if seen {
            self.waiting = None;
            self.silent = false;
            self.seen = Timestamp::now();
        }
    }
}
