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
