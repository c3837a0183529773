//! Patterns over the workloads that may read a credential.

use crate::{
    model::{Workload, WorkloadKind},
    policy::expectation::pattern::{NamePattern, PathPattern},
};
use serde::Deserialize;
use std::fmt::Debug;

/// A workload that may read: every given field must match.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReaderPattern {
    pub namespace: Option<NamePattern>,
    pub workload: Option<NamePattern>,
    pub unit: Option<NamePattern>,
    pub executable: Option<PathPattern>,
    pub container: Option<NamePattern>,
    pub service_account: Option<NamePattern>,
    /// The repository of its image, or the image with its tag.
    pub image: Option<NamePattern>,
}

/// The prefix of the units of users' own service managers.
const USER_UNIT: &str = "user@";

/// Whether a workload matches a reader pattern, ordered from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReaderMatch {
    Differs,
    /// It depends on a part of the name that is not known yet.
    Unknown,
    Matches,
}

/// Whether a workload is among readers; `None` if there are none.
pub fn allows(
    readers: &[ReaderPattern],
    workload: &Workload,
    executable: &str,
) -> Option<ReaderMatch> {
    readers
        .iter()
        .map(|reader| reader.fits(workload, executable))
        .max()
}

impl ReaderPattern {
    fn fits(&self, workload: &Workload, executable: &str) -> ReaderMatch {
        let fit = |pattern: &Option<NamePattern>, text: Option<&str>, known: bool| match pattern {
            None => ReaderMatch::Matches,
            Some(pattern) if text.is_some_and(|text| pattern.matches(text)) => ReaderMatch::Matches,
            Some(_) if known => ReaderMatch::Differs,
            Some(_) => ReaderMatch::Unknown,
        };
        // In a partial name the runtime's parts are correct, and the owner is missing. A pod has
        // names even if no provider knows them; a plain container has only its own.
        let runtime = if workload.partial || workload.kind == WorkloadKind::Pod {
            !workload.is_unnamed()
        } else {
            true
        };
        let whole = runtime && !workload.partial;
        let account = whole && (workload.service_account.is_some() || workload.pod.is_none());
        let executable = match &self.executable {
            Some(pattern) if !pattern.matches(executable) => ReaderMatch::Differs,
            // A path alone is one of the host's: every image may have a program there.
            Some(_) if workload.is_contained() && !self.names_a_container() => ReaderMatch::Differs,
            _ => ReaderMatch::Matches,
        };
        let image = match (&self.image, workload.image_repository()) {
            (Some(pattern), Some(name)) if pattern.matches(name) => ReaderMatch::Matches,
            _ => fit(&self.image, workload.image.as_deref(), runtime),
        };
        // Users give their units any name.
        let own_unit = match (&self.unit, &workload.unit) {
            (Some(pattern), Some(unit))
                if unit.starts_with(USER_UNIT) && !pattern.text.starts_with(USER_UNIT) =>
            {
                ReaderMatch::Differs
            }
            _ => ReaderMatch::Matches,
        };
        [
            fit(&self.namespace, workload.namespace.as_deref(), runtime),
            fit(&self.workload, Some(&workload.name), whole),
            fit(&self.unit, workload.unit.as_deref(), true),
            fit(&self.container, workload.container.as_deref(), runtime),
            fit(
                &self.service_account,
                workload.service_account.as_deref(),
                account,
            ),
            executable,
            image,
            own_unit,
        ]
        .into_iter()
        .min()
        .unwrap_or(ReaderMatch::Matches)
    }

    /// Which of its patterns had to be compiled.
    pub(super) fn patterns_are_globs(&self) -> impl Iterator<Item = bool> {
        let given = self.parts().into_iter().filter_map(|(_, pattern)| pattern);
        given.map(NamePattern::is_glob)
    }

    /// Whether it says which containers it is about.
    fn names_a_container(&self) -> bool {
        let containers = [
            &self.namespace,
            &self.workload,
            &self.container,
            &self.service_account,
            &self.image,
        ];
        containers.into_iter().any(Option::is_some)
    }

    fn parts(&self) -> [(&'static str, Option<&NamePattern>); 7] {
        [
            ("namespace", self.namespace.as_ref()),
            ("workload", self.workload.as_ref()),
            ("unit", self.unit.as_ref()),
            ("executable", self.executable.as_ref().map(|path| &path.0)),
            ("container", self.container.as_ref()),
            ("service_account", self.service_account.as_ref()),
            ("image", self.image.as_ref()),
        ]
    }

    /// As shown in a finding.
    pub fn text(&self) -> String {
        let text: Vec<String> = self
            .parts()
            .iter()
            .filter_map(|(name, pattern)| Some(format!("{name}={}", pattern.as_ref()?.text)))
            .collect();
        text.join(" ")
    }
}
