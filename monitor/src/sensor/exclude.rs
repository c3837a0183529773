//! Programs to which no uprobe is attached: `inspect.exclude` in the configuration.

use super::{file_reader::FileReader, hold};
use crate::{config::exclude::ExcludePattern, host};
use monitor_parse::{cgroup::parse as parse_cgroup, elf::Elf};
use std::{
    collections::HashMap,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

/// Images by container id, kept up to date by the attribution.
pub type ContainerImages = Arc<RwLock<HashMap<String, String>>>;

/// The exclusion patterns, and the known images of containers.
#[derive(Clone, Debug, Default)]
pub struct ExclusionRules {
    patterns: Vec<ExcludePattern>,
    images: ContainerImages,
    /// Whether an excluded program may use shared libraries.
    affects_libraries: bool,
    /// Files named by patterns, by device and inode.
    files: Vec<(u64, u64, String)>,
}

impl ExclusionRules {
    pub fn new(patterns: Vec<ExcludePattern>, images: ContainerImages) -> Self {
        Self {
            affects_libraries: patterns.iter().any(may_use_libraries),
            files: patterns.iter().filter_map(file_of).collect(),
            patterns,
            images,
        }
    }

    /// Whether libraries must be attached per process: a uprobe in a library affects every program
    /// that uses it, unless its link is limited to certain processes.
    pub fn affects_libraries(&self) -> bool {
        self.affects_libraries
    }

    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// The patterns as configured.
    pub fn patterns(&self) -> &[ExcludePattern] {
        &self.patterns
    }

    /// Whether a program's path alone decides, regardless of who runs it.
    pub fn is_by_path(&self) -> bool {
        self.patterns.iter().all(|pattern| pattern.is_path())
    }

    /// The pattern that names this exact file.
    pub fn pattern_for_file(&self, device: u64, inode: u64) -> Option<String> {
        let mut files = self.files.iter();
        let found = files.find(|file| (file.0, file.1) == (device, inode))?;
        Some(found.2.clone())
    }

    /// The pattern that excludes an executable by its path.
    pub fn pattern_for_path(&self, path: &str) -> Option<String> {
        self.find(|pattern| pattern.is_path() && pattern.matches(path))
    }

    /// The pattern that excludes a process. A container whose image is not known yet is excluded if
    /// any pattern may refer to an image: an excluded program must not be attached to even briefly.
    pub fn pattern_for(&self, pid: u32) -> Option<String> {
        if self.is_empty() {
            return None;
        }
        let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let exe = exe.to_string_lossy();
        let exe = exe.strip_suffix(" (deleted)").unwrap_or(&exe);
        if let Some(pattern) = self.pattern_for_path(exe) {
            return Some(pattern);
        }
        if self.is_by_path() {
            return None;
        }
        let (mut unit, mut container) = (None, None);
        for path in host::cgroup_paths(pid) {
            let group = parse_cgroup(&path);
            unit = unit.or(group.unit);
            container = container.or(group.container);
        }
        let names = |pattern: &ExcludePattern| !pattern.is_path();
        if let Some(unit) = unit {
            return self.find(|pattern| names(pattern) && pattern.matches(&unit));
        }
        let container = container?;
        let images = self.images.read().unwrap_or_else(PoisonError::into_inner);
        match images.get(&container) {
            Some(image) => self.find(|pattern| {
                names(pattern) && image_names(image).any(|name| pattern.matches(name))
            }),
            None => self.find(|pattern| names(pattern) && may_be_image(pattern.text())),
        }
    }

    fn find(&self, excludes: impl Fn(&ExcludePattern) -> bool) -> Option<String> {
        let found = self.patterns.iter().find(|pattern| excludes(pattern))?;
        Some(found.text().to_owned())
    }
}

/// Whether matching programs may use shared libraries. False only for a single, installed,
/// statically linked program.
fn may_use_libraries(pattern: &ExcludePattern) -> bool {
    let is_literal = !pattern.text().contains(['*', '?', '[', '{', '\\']);
    if !pattern.is_path() || !is_literal {
        return true;
    }
    let program = hold::hold_on_host(Path::new(pattern.text()));
    let headers = program.and_then(|program| {
        let file = FileReader(&program.file);
        Some(Elf::parse(&file).ok()?.has_interpreter())
    });
    headers.unwrap_or(true)
}

/// The file named by a pattern that is a path: it is excluded under whatever name it is accessed.
fn file_of(pattern: &ExcludePattern) -> Option<(u64, u64, String)> {
    if !pattern.is_path() {
        return None;
    }
    let metadata = std::fs::metadata(host::path(Path::new(pattern.text()))).ok()?;
    Some((metadata.dev(), metadata.ino(), pattern.text().to_owned()))
}

/// Names of units end with one of these suffixes; those of images do not.
fn may_be_image(pattern: &str) -> bool {
    ![".service", ".scope", ".slice"]
        .iter()
        .any(|suffix| pattern.ends_with(suffix))
}

/// An image name as written, and without its tag and digest.
fn image_names(image: &str) -> impl Iterator<Item = &str> {
    let without_digest = image.split('@').next().unwrap_or(image);
    let name_start = without_digest.rfind('/').map_or(0, |slash| slash + 1);
    let repository = match without_digest[name_start..].find(':') {
        Some(colon) => &without_digest[..name_start + colon],
        None => without_digest,
    };
    [image, without_digest, repository].into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exclusion_reason(patterns: &[&str]) -> ExclusionRules {
        let patterns = patterns
            .iter()
            .map(|text| ExcludePattern::new(text).expect("a glob"))
            .collect();
        ExclusionRules::new(patterns, ContainerImages::default())
    }

    #[test]
    fn paths_stay_in_their_directory() {
        let by_path = exclusion_reason(&["/usr/bin/curl", "/opt/*/bin/java"]);
        assert!(by_path.is_by_path());
        for (path, excluded) in [
            ("/usr/bin/curl", true),
            ("/opt/a/bin/java", true),
            ("/opt/a/b/bin/java", false),
            ("/usr/bin/curl2", false),
        ] {
            assert_eq!(by_path.pattern_for_path(path).is_some(), excluded, "{path}");
        }
    }

    #[test]
    fn this_process_is_excluded_by_its_path() {
        let own = std::env::current_exe().expect("a path");
        let own = own.to_string_lossy();
        assert_eq!(
            exclusion_reason(&[&own]).pattern_for(std::process::id()),
            Some(own.into_owned())
        );
        assert_eq!(
            exclusion_reason(&["/nothing"]).pattern_for(std::process::id()),
            None
        );
    }

    #[test]
    fn an_image_is_named_with_or_without_its_tag() {
        let names = |image| image_names(image).collect::<Vec<_>>();
        assert!(names("reg.example:5000/a/db:1.2@sha256:0").contains(&"reg.example:5000/a/db"));
        assert!(names("reg.example:5000/a/db").contains(&"reg.example:5000/a/db"));
        assert!(names("db:1").contains(&"db"));
    }

    #[test]
    fn an_empty_pattern_is_refused() {
        assert!(ExcludePattern::new("").is_err());
        assert!(ExcludePattern::new("[").is_err());
    }

    proptest! {
        #[test]
        fn any_image(image in "\\PC{0,30}") {
            let _ = image_names(&image).count();
        }
    }
}
