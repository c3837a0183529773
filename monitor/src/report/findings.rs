//! The stream of findings: one JSON object a line, repeats as one finding with a count.

use super::{
    lines::{Delivery, Lines},
    ocsf,
};
use crate::model::{Evidence, Finding, Severity};
use clap::ValueEnum;
use jiff::{SignedDuration, Timestamp};
use std::{
    collections::HashMap,
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
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
    out: Lines,
    /// Where it is a file.
    path: Option<PathBuf>,
    known: HashMap<String, Box<Known>>,
}

struct Known {
    /// The worst that was told of it: what comes later and is less does not take that back.
    worst: Worst,
    count: u64,
    first_seen: Timestamp,
    last_seen: Timestamp,
    told: Option<Timestamp>,
}

/// How bad a finding is, how sure, and its words for that.
#[derive(Clone, Debug)]
struct Worst {
    severity: Severity,
    evidence: Option<Evidence>,
    summary: Box<str>,
}

impl Worst {
    fn of(finding: &Finding) -> Self {
        Self {
            severity: finding.severity,
            evidence: finding.evidence,
            summary: finding.summary.as_str().into(),
        }
    }
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
    pub fn open(target: &str, format: Format, delivery: Delivery) -> io::Result<Self> {
        if target == "-" {
            return Self::new(Box::new(io::stdout()), format, delivery);
        }
        let path = PathBuf::from(target);
        Ok(Self {
            path: Some(path.clone()),
            ..Self::new(to_file(&path)?, format, delivery)?
        })
    }

    pub fn new(out: Box<dyn Write + Send>, format: Format, delivery: Delivery) -> io::Result<Self> {
        Ok(Self {
            format,
            out: Lines::start("findings", out, delivery)?,
            path: None,
            known: HashMap::new(),
        })
    }

    /// Lines that could not be written, or that nobody read in time.
    pub fn lost(&self) -> u64 {
        self.out.lost()
    }

    /// Takes up the counts of an earlier run.
    pub fn remember(&mut self, findings: Vec<Finding>) {
        for finding in findings {
            self.known.insert(
                finding.id.clone(),
                Box::new(Known {
                    worst: Worst::of(&finding),
                    count: finding.count,
                    first_seen: finding.first_seen,
                    last_seen: finding.last_seen,
                    told: Some(finding.last_seen),
                }),
            );
        }
    }

    /// Counts a finding; gives it with its count, and writes it where it is new, worse than it was, or goes on
    /// since a while.
    pub fn take(&mut self, mut finding: Finding) -> Finding {
        if self.known.len() >= REMEMBERED {
            self.forget();
        }
        let now = Worst::of(&finding);
        let known = self.known.entry(finding.id.clone()).or_insert_with(|| {
            Box::new(Known {
                worst: now.clone(),
                count: 0,
                first_seen: finding.time,
                last_seen: finding.time,
                told: None,
            })
        });
        known.count = (known.count + finding.count).max(1);
        known.last_seen = known.last_seen.max(finding.time);
        finding.count = known.count;
        finding.first_seen = known.first_seen;
        finding.last_seen = known.last_seen;
        let before = (known.worst.severity, known.worst.evidence);
        let worse = finding.rank() > before;
        if finding.rank() >= before {
            known.worst = now;
        } else {
            finding.severity = known.worst.severity;
            finding.evidence = known.worst.evidence;
            finding.summary = known.worst.summary.to_string();
        }
        let again = |told| finding.time.duration_since(told) >= AGAIN;
        let news = worse || known.told.is_none_or(again);
        if news {
            let told = known.told.replace(finding.time).is_some();
            if let Err(error) = self.write(&finding, told) {
                tracing::error!(%error, id = finding.id, "a finding could not be written as JSON");
            }
        }
        finding
    }

    /// Begins the file of findings anew, where somebody has moved it away.
    pub fn reopen(&mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            self.out.set_target(to_file(path)?);
        }
        Ok(())
    }

    fn write(&self, finding: &Finding, told: bool) -> serde_json::Result<()> {
        let mut line = match self.format {
            Format::Json => serde_json::to_vec(finding)?,
            Format::Ocsf => serde_json::to_vec(&ocsf::detection(finding, told))?,
        };
        line.push(b'\n');
        self.out.write_line(line);
        Ok(())
    }

    fn forget(&mut self) {
        let mut times: Vec<Timestamp> = self.known.values().map(|known| known.last_seen).collect();
        times.sort();
        let middle = times[times.len() / 2];
        self.known.retain(|_, known| known.last_seen > middle);
    }
}

fn to_file(path: &Path) -> io::Result<Box<dyn Write + Send>> {
    Ok(Box::new(
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// What was written, for whoever holds the other end.
    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panicked").write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn finding(second: u32, severity: &str, evidence: &str) -> Finding {
        serde_json::from_value(serde_json::json!({
            "id": "kf-1", "time": format!("2026-01-01T00:00:{second:02}Z"), "rule": "unexpected-hop",
            "severity": severity, "evidence": evidence, "summary": format!("by {evidence}"),
            "workload": { "kind": "host", "name": "/bin/a" }, "count": 1,
            "first_seen": "2026-01-01T00:00:00Z", "last_seen": "2026-01-01T00:00:00Z",
        }))
        .expect("a finding")
    }

    #[test]
    fn what_gets_worse_is_told_at_once_and_not_taken_back() {
        let page = Page::default();
        let mut stream = Stream::new(Box::new(page.clone()), Format::Json, Delivery::Complete)
            .expect("a thread");
        stream.take(finding(0, "medium", "sole"));
        stream.take(finding(1, "critical", "presented"));
        let mut same_use = finding(1, "critical", "presented");
        same_use.count = 0;
        stream.take(same_use);
        let kept = stream.take(finding(2, "medium", "sole"));
        assert_eq!(
            (kept.severity, kept.evidence),
            (Severity::Critical, Some(Evidence::Presented))
        );
        assert_eq!((kept.summary.as_str(), kept.count), ("by presented", 3));
        // It ends when everything is written.
        drop(stream);
        let written = page.0.lock().expect("nobody panicked").clone();
        let told: Vec<Finding> = written
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).expect("a line"))
            .collect();
        let severities: Vec<Severity> = told.iter().map(|one| one.severity).collect();
        assert_eq!(severities, [Severity::Medium, Severity::Critical]);
    }
}
