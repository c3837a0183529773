//! Violations of expectations and rules, the worst first.

#[cfg(test)]
use super::IndexCase;
use super::{QueryFilter, RowList};
use crate::{
    ledger::{
        LedgerError,
        reader::{LedgerReader, QueryError, from_json, since, until},
    },
    output::{TableAnswer, sections},
};
use monitor_core::{
    history::TimeRange,
    model::{Finding, Gap, Severity},
};
use rusqlite::{Row, params};
use serde::Serialize;
use std::collections::BTreeSet;
use utoipa::ToSchema;

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Findings {
    pub findings: Vec<Finding>,
    pub gaps: Vec<Gap>,
}

impl Findings {
    /// Adds to the first `most` findings the gaps that touch them; the most recent gaps if there
    /// are many.
    pub fn mark_gaps(&mut self, most: usize) {
        const SHOWN: usize = 16;
        for finding in self.findings.iter_mut().take(most) {
            if finding.gaps.is_empty() {
                let near = |gap: &&Gap| gap.touches(finding.first_seen, finding.last_seen);
                let gaps = self.gaps.iter().rev().filter(near).take(SHOWN);
                finding.gaps = gaps.cloned().collect();
                finding.gaps.reverse();
            }
        }
    }
}

impl LedgerReader {
    /// Findings, the worst first, then the newest.
    pub fn findings(
        &self,
        about: QueryFilter<'_>,
        rule: Option<&str>,
        severity: Option<Severity>,
        range: TimeRange,
    ) -> Result<Findings, QueryError> {
        let keys = match about.workload {
            None => None,
            Some(workload) => Some(
                self.workloads_by(workload)?
                    .iter()
                    .map(|(_, workload)| workload.key())
                    .collect::<BTreeSet<String>>(),
            ),
        };
        let mut findings = Vec::new();
        match (about.credential, &keys) {
            (Some(credential), _) => {
                for id in self.resolve(credential)? {
                    findings.extend(self.findings_by("credential", &id.0, range)?);
                }
            }
            (None, Some(keys)) => {
                for key in keys {
                    findings.extend(self.findings_by("workload", key, range)?);
                }
            }
            (None, None) => findings = self.findings_in(range)?,
        }
        findings.retain(|finding| {
            rule.is_none_or(|rule| finding.rule == rule)
                && severity.is_none_or(|severity| finding.severity == severity)
                && keys
                    .as_ref()
                    .is_none_or(|keys| keys.contains(&finding.workload.key()))
        });
        findings.sort_by(|a, b| {
            b.severity
                .cmp(&a.severity)
                .then(b.last_seen.cmp(&a.last_seen))
                .then(a.first_seen.cmp(&b.first_seen))
                .then(a.id.cmp(&b.id))
        });
        Ok(Findings {
            findings,
            gaps: self.gaps(range)?,
        })
    }

    pub(super) fn findings_in(&self, range: TimeRange) -> Result<Vec<Finding>, LedgerError> {
        self.rows(
            "SELECT json, process FROM finding WHERE last_seen >= ?1 AND first_seen <= ?2 ORDER BY last_seen DESC",
            params![since(range), until(range)],
            |row| self.finding_row(row),
        )
    }

    fn findings_by(
        &self,
        column: &str,
        value: &str,
        range: TimeRange,
    ) -> Result<Vec<Finding>, LedgerError> {
        self.rows(
            &format!(
                "SELECT json, process FROM finding WHERE {column} = ?3 AND last_seen >= ?1 AND first_seen <= ?2"
            ),
            params![since(range), until(range), value],
            |row| self.finding_row(row),
        )
    }

    /// Findings with their counts, the most recently seen.
    pub fn last_findings(&self, most: usize) -> Result<Vec<Finding>, LedgerError> {
        self.rows(
            "SELECT json, process FROM finding ORDER BY last_seen DESC LIMIT ?1",
            [most as i64],
            |row| self.finding_row(row),
        )
    }

    fn finding_row(&self, row: &Row<'_>) -> rusqlite::Result<Finding> {
        let mut finding: Finding = from_json(row, 0)?;
        let process: i64 = row.get(1)?;
        if process != 0 {
            finding.process = Some(self.process(process)?);
        }
        Ok(finding)
    }
}

impl TableAnswer for Findings {
    fn table(&self) -> String {
        let mut out = String::new();
        if self.findings.is_empty() {
            out.push_str("No findings.\n");
        }
        sections::finding_lines(&mut out, &self.findings);
        sections::gaps(&mut out, &self.gaps);
        out
    }
}

impl RowList for Findings {
    type Row = Finding;

    fn rows(&mut self) -> &mut Vec<Finding> {
        &mut self.findings
    }
}

/// Its row in the test that answers come from an index.
#[cfg(test)]
pub(super) const INDEX_CASE: IndexCase = |sample| {
    for filter in sample.filters() {
        sample.reader.findings(filter, None, None, sample.range)?;
    }
    sample.reader.last_findings(1)?;
    Ok(())
};
