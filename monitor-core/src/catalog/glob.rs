//! Globs over paths, variable names and hosts.

use crate::catalog::CatalogError;
use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

/// `~/x` means `x` in any directory, because a home directory can be anywhere.
pub fn in_any_home(glob: &str) -> String {
    match glob.strip_prefix("~/") {
        Some(rest) => format!("/**/{rest}"),
        None => glob.to_owned(),
    }
}

pub fn path_glob(class: &str, glob: &str) -> Result<Glob, CatalogError> {
    GlobBuilder::new(glob)
        .literal_separator(true)
        .build()
        .map_err(|source| CatalogError::Glob {
            class: class.to_owned(),
            glob: glob.to_owned(),
            source,
        })
}

/// A glob over variable names, ignoring case, because programs accept lower case as well.
pub fn name_glob(class: &str, glob: &str) -> Result<Glob, CatalogError> {
    GlobBuilder::new(glob)
        .case_insensitive(true)
        .build()
        .map_err(|source| CatalogError::Glob {
            class: class.to_owned(),
            glob: glob.to_owned(),
            source,
        })
}

/// Globs over paths; a leading `*` as in `*/sshd` matches any directory.
pub fn path_globs(class: &str, globs: &[String]) -> Result<GlobSet, CatalogError> {
    let mut builder = GlobSetBuilder::new();
    for glob in globs {
        let glob = glob
            .strip_prefix("*/")
            .map_or_else(|| glob.clone(), |rest| format!("**/{rest}"));
        builder.add(path_glob(class, &glob)?);
    }
    builder.build().map_err(|source| CatalogError::Glob {
        class: class.to_owned(),
        glob: globs.join(", "),
        source,
    })
}

pub fn host_globs(class: &str, globs: &[String]) -> Result<GlobSet, CatalogError> {
    let mut builder = GlobSetBuilder::new();
    for glob in globs {
        builder.add(
            GlobBuilder::new(glob)
                .case_insensitive(true)
                .build()
                .map_err(|source| CatalogError::Glob {
                    class: class.to_owned(),
                    glob: glob.clone(),
                    source,
                })?,
        );
    }
    builder.build().map_err(|source| CatalogError::Glob {
        class: class.to_owned(),
        glob: globs.join(", "),
        source,
    })
}

pub fn is_literal(text: &str) -> bool {
    !text.contains(['*', '?', '[', '{'])
}

/// Normalises a path: `/var/run` becomes `/run`, and the `..data` and `..<timestamp>` parts of a
/// projected volume are removed.
pub fn normalise(path: &str) -> String {
    let path = path
        .strip_prefix("/var/run/")
        .map_or_else(|| path.to_owned(), |rest| format!("/run/{rest}"));
    if !path.contains("/..") {
        return path;
    }
    let mut normal = String::with_capacity(path.len());
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if part.starts_with("..") && part.len() > 2 {
            continue;
        }
        normal.push('/');
        normal.push_str(part);
    }
    normal
}

/// The uid of the pod whose volume a path is in, wherever the kubelet's directory is mounted: the
/// path contains `pods/UID/volumes/kubernetes.io~KIND`.
pub fn volume_of(path: &str) -> Option<String> {
    let (before, _) = path.split_once("/volumes/kubernetes.io~")?;
    let (above, uid) = before.rsplit_once('/')?;
    above.ends_with("/pods").then(|| uid.to_owned())
}
