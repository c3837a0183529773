//! Programs to which no uprobe is attached: `inspect.exclude` in the configuration.

use crate::{
    config::exclude::ExcludePattern,
    host,
    observed::mapping::FileKey,
    reader::{
        ReaderClient,
        protocol::{HostProgram, ReadAnswer, ReadRequest},
    },
};
use monitor_parse::cgroup::parse as parse_cgroup;
use std::{
    collections::HashMap,
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
    /// Files named by patterns.
    files: Vec<(FileKey, String)>,
}

impl ExclusionRules {
    /// The rules before the files that they name are known: those are not excluded under another
    /// name yet, and libraries are assumed to be affected.
    pub fn new(patterns: Vec<ExcludePattern>, images: ContainerImages) -> Self {
        Self {
            affects_libraries: !patterns.is_empty(),
            files: Vec::new(),
            patterns,
            images,
        }
    }

    /// The rules with the files that they name.
    pub fn resolve(self, client: &mut ReaderClient) -> Self {
        let programs: Vec<Option<HostProgram>> = self
            .patterns
            .iter()
            .map(|pattern| program_of(pattern, client))
            .collect();
        let named = || self.patterns.iter().zip(&programs);
        Self {
            affects_libraries: named()
                .any(|(pattern, program)| may_use_libraries(pattern, *program)),
            files: named()
                .filter_map(|(pattern, program)| Some(((*program)?.key, pattern.text().to_owned())))
                .collect(),
            ..self
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
    pub fn pattern_for_file(&self, file: FileKey) -> Option<String> {
        let mut files = self.files.iter();
        let (_, pattern) = files.find(|(known, _)| *known == file)?;
        Some(pattern.clone())
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
fn may_use_libraries(pattern: &ExcludePattern, program: Option<HostProgram>) -> bool {
    !is_literal_path(pattern) || program.is_none_or(|program| program.uses_libraries)
}

fn is_literal_path(pattern: &ExcludePattern) -> bool {
    pattern.is_path() && !pattern.text().contains(['*', '?', '[', '{', '\\'])
}

/// The file named by a pattern that is a path: it is excluded under whatever name it is accessed.
fn program_of(pattern: &ExcludePattern, client: &mut ReaderClient) -> Option<HostProgram> {
    if !is_literal_path(pattern) {
        return None;
    }
    let path = Path::new(pattern.text()).into();
    match client.call(&ReadRequest::HostProgram { path }) {
        Ok((ReadAnswer::HostProgram(program), _)) => program,
        _ => None,
    }
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
