//! What the agent is told to do, and whether that has changed: the configuration, the files that it names,
//! and the expectations of the cluster.
//!
//! Expectations are put together in this order: the configuration's own, those of the files that it names,
//! by name, and those of the cluster, by name. Where several are about one credential, its name and owner
//! are those of the first, and a reader or a destination is expected where any of them expects it.

use crate::{
    agent::catalog,
    cluster::policies::Policies,
    credential::catalog::Catalog,
    policy::document::{Document, base},
};
use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Looks whether something has changed.
#[derive(Debug)]
pub struct Watch {
    config: Option<PathBuf>,
    policies: Option<Policies>,
    /// What of the cluster was taken last.
    version: u64,
    /// The files as they were when they were loaded.
    loaded: Vec<Look>,
    /// The files as they were at the last look.
    seen: Vec<Look>,
    /// What an agent takes at its start, as it was loaded first and last.
    settings_at_start: Option<String>,
    settings: Option<String>,
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    path: PathBuf,
    /// Nothing where there is no such file.
    state: Option<State>,
}

/// Size and inode too: two writes within a tick of the kernel's clock leave one time.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    inode: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

/// What holds from now on.
#[derive(Debug)]
pub struct Loaded {
    pub document: Document,
    pub catalog: Arc<Catalog>,
    /// Resources of the cluster that are not accepted.
    pub refused: usize,
}

impl Watch {
    pub fn new(config: Option<PathBuf>, policies: Option<Policies>) -> Self {
        let mut watch = Self {
            config,
            policies,
            version: 0,
            loaded: Vec::new(),
            seen: Vec::new(),
            settings_at_start: None,
            settings: None,
        };
        watch.loaded = watch.look();
        watch.seen.clone_from(&watch.loaded);
        watch
    }

    /// What is to be done from now on, where it has changed since it was loaded last. Files count once
    /// they were the same at two calls: a file that is being written is not taken by half.
    pub fn changed(&mut self) -> Option<anyhow::Result<Loaded>> {
        let now = self.look();
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
            // What is wrong is told once.
            self.version = cluster.version;
        }
        Some(loaded)
    }

    /// The same at once, whether or not anything has changed.
    pub fn reload(&mut self) -> anyhow::Result<Loaded> {
        self.seen = self.look();
        self.loaded.clone_from(&self.seen);
        self.load()
    }

    /// Whether settings that an agent takes at its start are others than when they were loaded first.
    pub fn needs_restart(&self) -> bool {
        self.settings != self.settings_at_start
    }

    /// What is to be done now.
    pub fn load(&mut self) -> anyhow::Result<Loaded> {
        let config = self.config.as_deref();
        let mut document = match config {
            Some(config) => Document::load(config)?,
            None => Document::default(),
        };
        self.settings = Some(document.settings_text());
        if self.settings_at_start.is_none() {
            self.settings_at_start.clone_from(&self.settings);
        }
        let mut refused = 0;
        // Nothing has that version.
        if let Some(cluster) = self
            .policies
            .as_ref()
            .and_then(|policies| policies.since(u64::MAX))
        {
            self.version = cluster.version;
            refused = cluster.refused;
            for more in cluster.documents {
                document.credentials.extend(more.credentials);
                document.authenticators.extend(more.authenticators);
            }
        }
        let catalog = catalog(&document, config)?;
        Ok(Loaded {
            document,
            catalog,
            refused,
        })
    }

    fn look(&self) -> Vec<Look> {
        let Some(config) = &self.config else {
            return Vec::new();
        };
        let mut paths = vec![config.clone()];
        // A broken configuration names nothing: its own change is seen all the same.
        if config.is_dir() {
            paths.extend(inside(config));
        } else if let Ok(document) = Document::load(config) {
            for named in document.policies.iter().chain(&document.catalog) {
                let named = base(config).join(named);
                paths.extend(inside(&named));
                paths.push(named);
            }
        }
        paths
            .into_iter()
            .map(|path| {
                let state = std::fs::metadata(&path).ok().map(|metadata| State {
                    inode: (metadata.dev(), metadata.ino()),
                    size: metadata.size(),
                    changed: (metadata.ctime(), metadata.ctime_nsec()),
                });
                Look { path, state }
            })
            .collect()
    }
}

/// What is in a directory, by name; nothing where it is none.
fn inside(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::Watch;

    fn names(watch: &mut Watch) -> Option<Result<Vec<String>, String>> {
        watch.changed().map(|loaded| {
            loaded
                .map(|loaded| {
                    let credentials = loaded.document.credentials;
                    credentials.into_iter().map(|one| one.name).collect()
                })
                .map_err(|error| format!("{error:#}"))
        })
    }

    #[test]
    fn a_file_that_is_being_written_is_not_taken_by_half() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.yaml");
        let text =
            |name: &str| format!("credentials:\n  - name: {name}\n    match: {{ file: /x }}\n");
        std::fs::write(&config, text("first")).unwrap();
        let mut watch = Watch::new(Some(config.clone()), None);
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
        let mut watch = Watch::new(Some(directory.path().to_owned()), None);
        // In place: the directory itself does not change.
        std::fs::write(&file, text("other")).unwrap();
        assert_eq!(names(&mut watch), None);
        assert_eq!(names(&mut watch), Some(Ok(vec!["other".to_owned()])));
    }

    #[test]
    fn two_writes_at_one_time_are_two() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.yaml");
        std::fs::write(&config, "").unwrap();
        let mut watch = Watch::new(Some(config.clone()), None);
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
    fn a_broken_file_is_told_once_and_a_missing_one_too() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.yaml");
        std::fs::write(&config, "").unwrap();
        let mut watch = Watch::new(Some(config.clone()), None);
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
