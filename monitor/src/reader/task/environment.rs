//! The environment of a running process: its secrets, and the places of credentials that it names.
//!
//! Only fingerprints of values leave this module, and paths that point to a credential.

use super::{CredentialTasks, identify::path_target};
use crate::{
    observed::variable::ObservedVariable,
    reader::protocol::{EnvironmentAnswer, PointedPlace},
};
use monitor_common::fingerprint::{FingerprintKey, fingerprint};
use monitor_core::{
    catalog::{Catalog, glob::normalise, is_general},
    model::DeclaredGateway,
};
use monitor_parse::credential::LeftOut;
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

/// Maximum places named by one environment.
const PLACES_MAX: usize = 16;
/// Maximum variables of one environment that may be secrets.
const VARIABLES_MAX: usize = 4096;

/// Reads the environment of a process.
pub(super) fn read(tasks: &mut CredentialTasks, pid: u32) -> io::Result<EnvironmentAnswer> {
    let mut file = File::open(format!("/proc/{pid}/environ"))?;
    let (catalog, key) = (&tasks.catalog, tasks.key);
    let ((mut variables, targets, gateways, ci_job), has_more) =
        tasks.buffer.with_file(&mut file, |bytes| {
            let entries = || bytes.split(|byte| *byte == 0);
            let variables: Vec<ObservedVariable> = entries()
                .filter_map(|entry| parse_variable(catalog, key, entry))
                .filter(|variable| {
                    variable.prefix.is_some() || catalog.variable(&variable.name).is_some()
                })
                .take(VARIABLES_MAX + 1)
                .collect();
            let targets: Vec<(PathBuf, String)> = entries()
                .flat_map(|entry| targets(catalog, entry))
                .take(PLACES_MAX)
                .collect();
            let gateways: Vec<DeclaredGateway> = entries()
                .filter_map(|entry| gateway(catalog, entry))
                .take(PLACES_MAX)
                .collect();
            let ci_job = catalog.ci_job(entries().filter_map(name_and_value));
            (variables, targets, gateways, ci_job)
        })?;
    let places = targets
        .into_iter()
        .filter_map(|(path, class)| pointed_place(catalog, pid, &path, class))
        .collect();
    let left_out = if variables.len() > VARIABLES_MAX {
        Some(LeftOut::Variables)
    } else {
        has_more.then_some(LeftOut::Bytes)
    };
    variables.truncate(VARIABLES_MAX);
    Ok(EnvironmentAnswer {
        variables,
        places,
        gateways,
        ci_job,
        left_out,
    })
}

/// A place that exists and may be a credential's. Anyone can point anywhere.
fn pointed_place(catalog: &Catalog, pid: u32, path: &Path, class: String) -> Option<PointedPlace> {
    let path = if path.is_absolute() {
        path.to_owned()
    } else {
        std::fs::read_link(format!("/proc/{pid}/cwd"))
            .ok()?
            .join(path)
    };
    let normal = normalise(&path.to_string_lossy());
    let known = catalog.file(&normal);
    if catalog.is_excluded_path(&normal) || known.is_some_and(|known| !is_general(&known.class)) {
        return None;
    }
    let target = path_target(pid, &path)?;
    if catalog.is_excluded_path(&normalise(&target.path.to_string_lossy())) {
        return None;
    }
    Some(PointedPlace {
        path: normal,
        class,
        file: target.file,
    })
}

/// Parses `name=value`; `None` if it is neither.
pub fn parse_variable(
    catalog: &Catalog,
    key: FingerprintKey,
    entry: &[u8],
) -> Option<ObservedVariable> {
    let at = entry.iter().position(|byte| *byte == b'=')?;
    let name = std::str::from_utf8(&entry[..at]).ok()?;
    let value = &entry[at + 1..];
    let class = catalog.variable(name);
    let is_url = class.is_some_and(|class| !class.url_environment.is_empty());
    let password = monitor_common::environ::value_marks(value).password();
    let url = is_url && password.is_some();
    let secret = match password {
        Some((start, len)) if url => &value[start as usize..(start + len) as usize],
        _ => monitor_common::fingerprint::trimmed(value),
    };
    Some(ObservedVariable {
        name: name.to_owned(),
        fingerprint: fingerprint(key, secret),
        secret_len: secret.len() as u32,
        prefix: catalog.prefix_index(secret),
        dots: value.iter().filter(|byte| **byte == b'.').count() as u32,
        url,
    })
}

fn name_and_value(entry: &[u8]) -> Option<(&str, &str)> {
    std::str::from_utf8(entry).ok()?.split_once('=')
}

/// The server that a variable names, if credentials of some classes go there.
fn gateway(catalog: &Catalog, entry: &[u8]) -> Option<DeclaredGateway> {
    let (name, value) = name_and_value(entry)?;
    let classes: Vec<String> = catalog.gateway_classes(name).map(str::to_owned).collect();
    if classes.is_empty() {
        return None;
    }
    DeclaredGateway::parse(value, classes)
}

/// The paths that a variable's value names, with their classes.
pub(super) fn targets(catalog: &Catalog, entry: &[u8]) -> Vec<(PathBuf, String)> {
    let Some((name, value)) = name_and_value(entry) else {
        return Vec::new();
    };
    let mut targets = Vec::new();
    for pointer in catalog.pointers(name) {
        let value = value
            .strip_prefix("unix:")
            .map_or(value, |path| path.strip_prefix("//").unwrap_or(path));
        // Some contain the secret itself instead of a path: no part of that may be kept.
        let is_path = |path: &&str| {
            !path.is_empty()
                && path.len() < 1024
                && !path.contains(|c: char| c.is_control() || "\"'{}<>=,;".contains(c))
        };
        for path in value.split(':').filter(is_path) {
            let path = Path::new(path);
            let path = pointer
                .below
                .as_ref()
                .map_or_else(|| path.to_owned(), |below| path.join(below));
            targets.push((path, pointer.class.clone()));
        }
    }
    targets
}
