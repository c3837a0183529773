//! The findings stream: one JSON object per line, repetitions as one finding with a count.

use super::{
    lines::{Delivery, LineWriter},
    ocsf,
};
use crate::config::settings::FindingsFormat;
use jiff::{SignedDuration, Timestamp};
use monitor_core::{
    fair_cache::{FairCache, Tenant},
    model::{Evidence, Finding, Severity},
};
use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// A continuing finding is written again after this time.
const REPEAT_INTERVAL: SignedDuration = SignedDuration::from_secs(60);
/// Number of findings remembered.
const FINDINGS_CACHED: usize = 20_000;

/// Counts findings, and writes new ones.
pub struct FindingStream {
    format: FindingsFormat,
    out: LineWriter,
    /// Set if it is a file.
    path: Option<PathBuf>,
    /// By id; those of whoever has the most that did not recur for longest are evicted first.
    known: FairCache<String, KnownFinding>,
}

struct KnownFinding {
    /// The worst version that was written: a later, milder one does not replace it.
    worst: FindingRank,
    count: u64,
    first_seen: Timestamp,
    last_seen: Timestamp,
    written: Option<Timestamp>,
}

/// A finding's severity and evidence, and their texts.
#[derive(Clone, Debug)]
struct FindingRank {
    severity: Severity,
    evidence: Option<Evidence>,
    summary: Box<str>,
}

impl FindingRank {
    fn of(finding: &Finding) -> Self {
        Self {
            severity: finding.severity,
            evidence: finding.evidence,
            summary: finding.summary.as_str().into(),
        }
    }
}

impl std::fmt::Debug for FindingStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("known", &self.known.len())
            .finish_non_exhaustive()
    }
}

impl FindingStream {
    /// Opens a stream to `-`, standard output, or to a file that only its owner can read.
    pub fn open(target: &str, format: FindingsFormat, delivery: Delivery) -> io::Result<Self> {
        if target == "-" {
            return Self::new(Box::new(io::stdout()), format, delivery);
        }
        let path = PathBuf::from(target);
        Ok(Self {
            path: Some(path.clone()),
            ..Self::new(to_file(&path)?, format, delivery)?
        })
    }

    pub fn new(
        out: Box<dyn Write + Send>,
        format: FindingsFormat,
        delivery: Delivery,
    ) -> io::Result<Self> {
        Ok(Self {
            format,
            out: LineWriter::start("findings", out, delivery)?,
            path: None,
            known: FairCache::new(FINDINGS_CACHED),
        })
    }

    /// Number of lines that could not be written, or were not read in time.
    pub fn lost(&self) -> u64 {
        self.out.lost()
    }

    /// Findings that were forgotten for lack of room.
    pub fn forgotten(&self) -> u64 {
        self.known.evicted()
    }

    /// Restores the counts of an earlier run.
    pub fn restore(&mut self, findings: Vec<Finding>) {
        // The most recent come first.
        for finding in findings.into_iter().rev() {
            self.known.insert(
                &tenant_of(&finding),
                finding.id.clone(),
                KnownFinding {
                    worst: FindingRank::of(&finding),
                    count: finding.count,
                    first_seen: finding.first_seen,
                    last_seen: finding.last_seen,
                    written: Some(finding.last_seen),
                },
            );
        }
    }

    /// Counts a finding; returns it with its count, and writes it if it is new, worse than before,
    /// or has continued for a while.
    pub fn record(&mut self, mut finding: Finding) -> Finding {
        let now = FindingRank::of(&finding);
        let tenant = tenant_of(&finding);
        let known = self
            .known
            .get_or_insert_with(&tenant, &finding.id, || KnownFinding {
                worst: now.clone(),
                count: 0,
                first_seen: finding.time,
                last_seen: finding.time,
                written: None,
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
        let again = |written| finding.time.duration_since(written) >= REPEAT_INTERVAL;
        let news = worse || known.written.is_none_or(again);
        if news {
            let written = known.written.replace(finding.time).is_some();
            if let Err(error) = self.write(&finding, written) {
                tracing::error!(%error, id = finding.id, "cannot serialise a finding");
            }
        }
        finding
    }

    /// Reopens the file of findings, after it was moved away.
    pub fn reopen(&self) {
        if let Some(path) = self.path.clone() {
            self.out.reopen(Box::new(move || {
                to_file(&path)
                    .inspect_err(|error| tracing::error!(%error, "cannot reopen the findings file; still writing to the old one"))
                    .ok()
            }));
        }
    }

    fn write(&self, finding: &Finding, written: bool) -> serde_json::Result<()> {
        let mut line = match self.format {
            FindingsFormat::Json => serde_json::to_vec(finding)?,
            FindingsFormat::Ocsf => serde_json::to_vec(&ocsf::detection(finding, written))?,
        };
        line.push(b'\n');
        self.out.write_line(line);
        Ok(())
    }
}

/// Whose share a finding uses: that of its process.
fn tenant_of(finding: &Finding) -> Tenant {
    let process = finding.process.as_ref();
    process.map_or_else(Tenant::default, |process| process.tenant.clone())
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

    /// The written output, as its reader sees it.
    #[derive(Clone, Default)]
    struct FindingOutput(Arc<Mutex<Vec<u8>>>);

    impl Write for FindingOutput {
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
    fn a_worse_finding_is_written_at_once_and_never_replaced_by_a_milder_one() {
        let page = FindingOutput::default();
        let mut stream = FindingStream::new(
            Box::new(page.clone()),
            FindingsFormat::Json,
            Delivery::Complete,
        )
        .expect("a thread");
        stream.record(finding(0, "medium", "sole"));
        stream.record(finding(1, "critical", "presented"));
        let mut same_use = finding(1, "critical", "presented");
        same_use.count = 0;
        stream.record(same_use);
        let kept = stream.record(finding(2, "medium", "sole"));
        assert_eq!(
            (kept.severity, kept.evidence),
            (Severity::Critical, Some(Evidence::Presented))
        );
        assert_eq!((kept.summary.as_str(), kept.count), ("by presented", 3));
        // Ends once everything is written.
        drop(stream);
        let written = page.0.lock().expect("nobody panicked").clone();
        let written: Vec<Finding> = written
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).expect("a line"))
            .collect();
        let severities: Vec<Severity> = written.iter().map(|one| one.severity).collect();
        assert_eq!(severities, [Severity::Medium, Severity::Critical]);
    }
}
