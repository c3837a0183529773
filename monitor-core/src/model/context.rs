//! The context in which a workload runs: the job of a CI system, an AI agent.
//!
//! It says who had something done, and never excuses anything: a process can give itself any name and
//! any environment.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Longest value of a variable that is taken; job names can be sentences.
const VALUE_MAX: usize = 128;

/// A job of a CI system, as the environment of its processes names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct CiJob {
    #[schema(examples("github"))]
    pub system: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
}

impl CiJob {
    /// Its values, without the system.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Option<String>> {
        [
            &mut self.repository,
            &mut self.workflow,
            &mut self.run,
            &mut self.job,
        ]
        .into_iter()
    }

    /// In one line: `github org/repository, ci.yml, run 123, build`.
    pub fn label(&self) -> String {
        let run = self.run.as_ref().map(|run| format!("run {run}"));
        let parts = [&self.repository, &self.workflow, &run, &self.job];
        let parts: Vec<&str> = parts.into_iter().flatten().map(String::as_str).collect();
        format!("{} {}", self.system, parts.join(", "))
    }
}

/// The value of a variable that names a repository, a workflow, a run or a job. Only the place of a
/// URL is kept, because it may contain a password.
pub fn context_value(value: &str) -> Option<String> {
    let value = match value.split_once("://") {
        Some((_, rest)) => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let begin = rest[..end].rfind('@').map_or(0, |at| at + 1);
            rest[begin..].split(['?', '#']).next().unwrap_or_default()
        }
        None => value,
    };
    let value: String = value
        .chars()
        .filter(|char| !char.is_control())
        .take(VALUE_MAX)
        .collect();
    let value = value.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_url_is_shown_without_its_user() {
        for (value, shown) in [
            ("org/repository", Some("org/repository")),
            (
                "https://ci:FakeCi-0001@git.corp.example/org/x.git?a=b",
                Some("git.corp.example/org/x.git"),
            ),
            ("ssh://git@host", Some("host")),
            ("https://a@b:c@host/x@y", Some("host/x@y")),
            ("Build and\u{1b}[31m test", Some("Build and[31m test")),
            ("", None),
            ("https://", None),
        ] {
            assert_eq!(context_value(value).as_deref(), shown, "{value}");
        }
    }

    proptest! {
        #[test]
        fn any_value_is_short(value in "\\PC{0,300}") {
            let shown = context_value(&value).unwrap_or_default();
            prop_assert!(shown.chars().count() <= VALUE_MAX);
        }
    }
}
