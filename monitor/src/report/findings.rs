//! The stream of findings: one JSON object a line, repeats as one finding with a count.

use super::ocsf;
use crate::model::Finding;
use clap::ValueEnum;
use jiff::{SignedDuration, Timestamp};
use std::{
    collections::HashMap,
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
};

/// A finding that goes on is told again after this.
const AGAIN: SignedDuration = SignedDuration::from_secs(60);
/// Findings remembered, the oldest forgotten first.
const REMEMBERED: usize = 20_000;

/// How findings are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// As Keytrail's own answers have them
    #[default]
    Json,
    /// OCSF Detection Finding (2004)
    Ocsf,
}

/// Counts findings, and writes those that are news.
pub struct Stream {
    format: Format,
    out: Box<dyn Write + Send>,
    known: HashMap<String, Known>,
    /// Lines that could not be written.
    pub lost: u64,
}

struct Known {
    count: u64,
    first_seen: Timestamp,
    last_seen: Timestamp,
    told: Option<Timestamp>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("known", &self.known.len())
            .finish_non_exhaustive()
    }
}

impl Stream {
    /// A stream to `-`, standard output, or to a file that only its owner reads.
    pub fn open(target: &str, format: Format) -> io::Result<Self> {
        let out: Box<dyn Write + Send> = if target == "-" {
            Box::new(io::stdout())
        } else {
            Box::new(
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .mode(0o600)
                    .open(target)?,
            )
        };
        Ok(Self::new(out, format))
    }

    pub fn new(out: Box<dyn Write + Send>, format: Format) -> Self {
        Self {
            format,
            out,
            known: HashMap::new(),
            lost: 0,
        }
    }

    /// Takes up the counts of an earlier run.
    pub fn remember(&mut self, findings: Vec<Finding>) {
        for finding in findings {
            self.known.insert(
                finding.id,
                Known {
                    count: finding.count,
                    first_seen: finding.first_seen,
                    last_seen: finding.last_seen,
                    told: Some(finding.last_seen),
                },
            );
        }
    }

    /// Counts a finding; gives it with its count, and writes it where it is new or goes on since
    /// a while.
    pub fn take(&mut self, mut finding: Finding) -> Finding {
        if self.known.len() >= REMEMBERED {
            self.forget();
        }
        let known = self.known.entry(finding.id.clone()).or_insert(Known {
            count: 0,
            first_seen: finding.time,
            last_seen: finding.time,
            told: None,
        });
        known.count += 1;
        known.last_seen = known.last_seen.max(finding.time);
        finding.count = known.count;
        finding.first_seen = known.first_seen;
        finding.last_seen = known.last_seen;
        let news = known
            .told
            .is_none_or(|told| finding.time.duration_since(told) >= AGAIN);
        if news {
            known.told = Some(finding.time);
            if let Err(error) = self.write(&finding) {
                self.lost += 1;
                tracing::error!(%error, id = finding.id, "a finding could not be written to the stream");
            }
        }
        finding
    }

    fn write(&mut self, finding: &Finding) -> io::Result<()> {
        let mut line = match self.format {
            Format::Json => serde_json::to_vec(finding)?,
            Format::Ocsf => serde_json::to_vec(&ocsf::detection(finding))?,
        };
        line.push(b'\n');
        // At once, and whole: a line is not to wait in a buffer, nor to be cut by a kill.
        self.out.write_all(&line)?;
        self.out.flush()
    }

    fn forget(&mut self) {
        let mut times: Vec<Timestamp> = self.known.values().map(|known| known.last_seen).collect();
        times.sort();
        let middle = times[times.len() / 2];
        self.known.retain(|_, known| known.last_seen > middle);
    }
}
