//! Watches what the agent is configured to do: the configuration, the files that it names, and the
//! expectations in the cluster.
//!
//! Expectations are combined in this order: the configuration's own, those of the files that it
//! names, by name, and those of the cluster, by name. If several apply to one credential, its name
//! and owner come from the first, and a reader or destination is expected if any of them expects
//! it.

use crate::{
    cluster::policies::ClusterPolicies,
    config::{Config, base, error::ConfigError, settings::Settings},
};
use monitor_core::{catalog::Catalog, policy::expectation::limits::PolicySize};
use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

/// Detects changes.
#[derive(Debug)]
pub struct ConfigWatcher {
    config: Option<PathBuf>,
    policies: Option<ClusterPolicies>,
    /// The version of the cluster's expectations that was last used.
    version: u64,
    /// The state of the files when they were loaded.
    loaded: Vec<FileStamps>,
    /// The state of the files at the last check.
    seen: Vec<FileStamps>,
    /// The settings that are read only at start, as first and as last loaded.
    settings_at_start: Option<Settings>,
    settings: Option<Settings>,
}

/// Distinguishes versions of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileStamps {
    path: PathBuf,
    /// Absent if there is no such file.
    state: Option<FileStamp>,
}

/// Includes size and inode, because two writes within one clock tick have the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileStamp {
    inode: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

/// The configuration in force.
#[derive(Debug)]
pub struct LoadedConfig {
    pub config: Config,
    pub catalog: Arc<Catalog>,
    /// Number of cluster resources that are not accepted.
    pub refused: usize,
    /// Settings that are read only at start have changed since the start.
    pub needs_restart: bool,
}

/// Interval between checks for changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Detects changes in a thread of its own, because the files may be on a file system that does not
/// respond. `reload` is set to load the configuration in any case.
pub fn watch_in_background(
    mut watch: ConfigWatcher,
    reload: Arc<AtomicBool>,
) -> io::Result<Receiver<Result<LoadedConfig, ConfigError>>> {
    let (send, changes) = channel();
    std::thread::Builder::new()
        .name("configuration".to_owned())
        .spawn(move || {
            loop {
                std::thread::sleep(CHECK_INTERVAL);
                let change = if reload.swap(false, Ordering::AcqRel) {
                    Some(watch.reload())
                } else {
                    watch.take_changed()
                };
                // The receiver is gone if the agent stops.
                if change.is_some_and(|change| send.send(change).is_err()) {
                    return;
                }
            }
        })?;
    Ok(changes)
}

impl ConfigWatcher {
    pub fn new(config: Option<PathBuf>, policies: Option<ClusterPolicies>) -> Self {
        let mut watch = Self {
            config,
            policies,
            version: 0,
            loaded: Vec::new(),
            seen: Vec::new(),
            settings_at_start: None,
            settings: None,
        };
        watch.loaded = watch.file_stamps();
        watch.seen.clone_from(&watch.loaded);
        watch
    }

    /// The new configuration if it changed since it was last loaded. A file counts once it was the
    /// same at two calls, so that one being written is not loaded half-finished.
    pub fn take_changed(&mut self) -> Option<Result<LoadedConfig, ConfigError>> {
        let now = self.file_stamps();
        let settled = now == self.seen;
        self.seen = now;
        let cluster_changed = self
            .policies
            .as_ref()
            .is_some_and(|policies| policies.since(self.version).is_some());
        if !settled || (self.seen == self.loaded && !cluster_changed) {
            return None;
        }
        self.loaded.clone_from(&self.seen);
        let loaded = self.load();
        if loaded.is_err()
            && let Some(cluster) = self.policies.as_ref().and_then(|all| all.since(u64::MAX))
        {
            // An error is reported once.
            self.version = cluster.version;
        }
        Some(loaded)
    }

    /// As [`take_changed`](Self::take_changed), immediately and unconditionally.
    pub fn reload(&mut self) -> Result<LoadedConfig, ConfigError> {
        self.seen = self.file_stamps();
        self.loaded.clone_from(&self.seen);
        self.load()
    }

    /// Whether settings that are read only at start have changed since the start.
    fn needs_restart(&self) -> bool {
        self.settings
            .as_ref()
            .zip(self.settings_at_start.as_ref())
            .is_some_and(|(now, at_start)| now.needs_restart(at_start))
    }

    /// Loads the configuration.
    pub fn load(&mut self) -> Result<LoadedConfig, ConfigError> {
        let config = self.config.as_deref();
        let mut loaded = match config {
            Some(config) => Config::load(config)?,
            None => Config::default(),
        };
        self.settings = Some(loaded.settings.clone());
        if self.settings_at_start.is_none() {
            self.settings_at_start.clone_from(&self.settings);
        }
        let mut refused = 0;
        // No expectations have that version.
        if let Some(cluster) = self
            .policies
            .as_ref()
            .and_then(|policies| policies.since(u64::MAX))
        {
            self.version = cluster.version;
            refused = cluster.refused;
            let mut size = PolicySize::default().plus(&loaded.expectations)?;
            for more in cluster.expectations {
                // Together with the file's, or of an earlier release: none of it ends the agent.
                match size.plus(&more) {
                    Ok(larger) => {
                        size = larger;
                        loaded.expectations.append(more);
                    }
                    Err(error) => {
                        tracing::error!(%error, "a CredentialPolicy does not fit and is not in force");
                        refused += 1;
                    }
                }
            }
        }
        let catalog = loaded.catalog(config)?;
        Ok(LoadedConfig {
            config: loaded,
            catalog,
            refused,
            needs_restart: self.needs_restart(),
        })
    }

    fn file_stamps(&self) -> Vec<FileStamps> {
        let Some(config) = &self.config else {
            return Vec::new();
        };
        let mut paths = vec![config.clone()];
        // A broken configuration names no files: its own change is detected all the same.
        if config.is_dir() {
            paths.extend(directory_entries(config));
        } else if let Ok(loaded) = Config::load(config) {
            for named in loaded
                .settings
                .policies
                .iter()
                .chain(&loaded.settings.catalog)
            {
                let named = base(config).join(named);
                paths.extend(directory_entries(&named));
                paths.push(named);
            }
        }
        paths
            .into_iter()
            .map(|path| {
                let state = std::fs::metadata(&path).ok().map(|metadata| FileStamp {
                    inode: (metadata.dev(), metadata.ino()),
                    size: metadata.size(),
                    changed: (metadata.ctime(), metadata.ctime_nsec()),
                });
                FileStamps { path, state }
            })
            .collect()
    }
}

/// The entries of a directory, by name; empty if it is not one.
fn directory_entries(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::ConfigWatcher;

    fn names(watch: &mut ConfigWatcher) -> Option<Result<Vec<String>, String>> {
        watch.take_changed().map(|loaded| {
            loaded
                .map(|loaded| {
                    let credentials = loaded.config.expectations.credentials;
                    credentials.into_iter().map(|one| one.name).collect()
                })
                .map_err(|error| format!("{error:#}"))
        })
    }

    #[test]
    fn a_half_written_file_is_not_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.yaml");
        let text =
            |name: &str| format!("credentials:\n  - name: {name}\n    match: {{ file: /x }}\n");
        std::fs::write(&config, text("first")).unwrap();
        let mut watch = ConfigWatcher::new(Some(config.clone()), None);
        assert_eq!(names(&mut watch), None);
        std::fs::write(&config, "").unwrap();
        assert_eq!(names(&mut watch), None);
        std::fs::write(&config, text("second")).unwrap();
        assert_eq!(names(&mut watch), None);
        assert_eq!(names(&mut watch), Some(Ok(vec!["second".to_owned()])));
        assert_eq!(names(&mut watch), None);
    }

    #[test]
    fn a_file_in_a_directory_that_is_the_configuration_is_watched() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.yaml");
        let text =
            |name: &str| format!("credentials:\n  - name: {name}\n    match: {{ file: /x }}\n");
        std::fs::write(&file, text("one")).unwrap();
        let mut watch = ConfigWatcher::new(Some(directory.path().to_owned()), None);
        // In place: the directory itself does not change.
        std::fs::write(&file, text("other")).unwrap();
        assert_eq!(names(&mut watch), None);
        assert_eq!(names(&mut watch), Some(Ok(vec!["other".to_owned()])));
    }

    #[test]
    fn two_writes_with_one_modification_time_are_two_versions() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.yaml");
        std::fs::write(&config, "").unwrap();
        let mut watch = ConfigWatcher::new(Some(config.clone()), None);
        let modified = std::fs::metadata(&config).unwrap().modified().unwrap();
        let text = "credentials:\n  - name: only\n    match: { file: /x }\n";
        std::fs::write(&config, text).unwrap();
        std::fs::File::options()
            .write(true)
            .open(&config)
            .unwrap()
            .set_modified(modified)
            .unwrap();
        assert_eq!(names(&mut watch), None);
        assert_eq!(names(&mut watch), Some(Ok(vec!["only".to_owned()])));
    }

    #[test]
    fn a_broken_or_missing_file_is_reported_once() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.yaml");
        std::fs::write(&config, "").unwrap();
        let mut watch = ConfigWatcher::new(Some(config.clone()), None);
        std::fs::write(&config, "credentials: [").unwrap();
        assert_eq!(names(&mut watch), None);
        assert!(matches!(names(&mut watch), Some(Err(error)) if error.contains("config.yaml:1")));
        assert_eq!(names(&mut watch), None);
        std::fs::remove_file(&config).unwrap();
        assert_eq!(names(&mut watch), None);
        assert!(matches!(names(&mut watch), Some(Err(_))));
        assert_eq!(names(&mut watch), None);
    }
}
