//! A part of the extended tests, so that an ordinary run stays short and every part runs often.

use crate::{
    cluster, dependencies, root,
    scenarios::{ALL, run_scenarios, scenario_command},
    skips::SkipLog,
    vm::{self, VmCells},
};
use anyhow::{Context as _, Result};
use std::process::Command;

/// A part of what `cargo xtask test --all` runs beyond an ordinary run; at most 15 minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shard {
    /// A part of the virtual machines that an ordinary run leaves out.
    Vms(usize),
    /// A real Kubernetes.
    Cluster,
    /// The licences and sources of dependencies, and their list.
    Dependencies,
    /// Every third combination of Go's compilers and link modes, beginning with this one.
    GoPrograms(u8),
}

/// By the hash of a commit. Kubernetes comes twice as often as the others.
const SHARDS: [Shard; 10] = [
    Shard::Cluster,
    Shard::Vms(0),
    Shard::Vms(1),
    Shard::GoPrograms(0),
    Shard::Cluster,
    Shard::Vms(2),
    Shard::Vms(3),
    Shard::GoPrograms(1),
    Shard::GoPrograms(2),
    Shard::Dependencies,
];

impl Shard {
    /// The shard of the checked-out commit; `KEYTRAIL_SHARD` selects another one, by number.
    pub fn of_commit() -> Result<Self> {
        if let Ok(number) = std::env::var("KEYTRAIL_SHARD") {
            let number: usize = number.parse().context("KEYTRAIL_SHARD is not a number")?;
            return Ok(SHARDS[number % SHARDS.len()]);
        }
        let output = Command::new("git")
            .args(["rev-parse", "HEAD"])
            .current_dir(root())
            .output();
        let hash = output
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            .unwrap_or_default();
        Ok(Self::of_hash(&hash))
    }

    /// Without a commit it is the first one.
    fn of_hash(hash: &str) -> Self {
        let front = hash.get(..8).unwrap_or_default();
        let number = u32::from_str_radix(front, 16).unwrap_or_default() as usize;
        SHARDS[number % SHARDS.len()]
    }

    pub fn run(self) -> Result<()> {
        eprintln!("\n── extended tests: {self:?}");
        match self {
            Self::Vms(part) => vm::run_cells(VmCells::Part(part)),
            Self::Cluster => cluster::run(),
            Self::Dependencies => {
                dependencies::check()?;
                dependencies::bill_of_materials().map(drop)
            }
            Self::GoPrograms(part) => {
                let mut scenarios = scenario_command(&SkipLog::of_run())?;
                scenarios
                    .env(ALL, "1")
                    .env("KEYTRAIL_GO_PART", part.to_string());
                run_scenarios(scenarios, &["go".to_owned()])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_has_its_commits() {
        for (number, shard) in SHARDS.into_iter().enumerate() {
            assert_eq!(Shard::of_hash(&format!("{number:08x}aa")), shard);
        }
        assert_eq!(Shard::of_hash(""), SHARDS[0]);
    }
}
