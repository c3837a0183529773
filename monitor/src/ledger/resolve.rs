//! What a text in a question refers to: credentials, workloads, destinations.

use super::{
    LedgerError,
    reader::{LedgerReader, QueryError, from_json},
};
use monitor_core::{
    catalog::glob::normalise,
    model::{CredentialId, Destination, Workload},
};
use rusqlite::{OptionalExtension as _, params};
use std::collections::BTreeSet;

impl LedgerReader {
    /// Resolves a text to credential ids: one by id or prefix, several by name, path or variable.
    pub fn resolve(&self, text: &str) -> Result<Vec<CredentialId>, QueryError> {
        let exact: Option<String> = self
            .connection
            .query_row("SELECT id FROM credential WHERE id = ?1", [text], |row| {
                row.get(0)
            })
            .optional()
            .map_err(|source| self.failed(source))?;
        if let Some(id) = exact {
            return Ok(vec![CredentialId(id)]);
        }
        for sql in [
            "SELECT id FROM credential WHERE name = ?1 ORDER BY id",
            "SELECT DISTINCT credential FROM source WHERE place = ?1 ORDER BY credential",
        ] {
            let place = if text.starts_with('/') {
                normalise(text)
            } else {
                text.to_owned()
            };
            let ids = self.query_strings(sql, &place)?;
            if !ids.is_empty() {
                return Ok(ids.into_iter().map(CredentialId).collect());
            }
        }
        // `kt-` and `loc-` may be omitted.
        let mut ids = BTreeSet::new();
        if !text.is_empty() {
            for prefix in ["", "kt-", "loc-"] {
                let begin = format!("{prefix}{text}");
                let end = format!("{begin}\u{10ffff}");
                let found: Result<Vec<String>, _> = self
                    .connection
                    .prepare("SELECT id FROM credential WHERE id >= ?1 AND id < ?2")
                    .and_then(|mut statement| {
                        statement
                            .query_map([&begin, &end], |row| row.get(0))?
                            .collect()
                    });
                ids.extend(found.map_err(|source| self.failed(source))?);
            }
        }
        match ids.len() {
            0 => Err(QueryError::NoCredential(text.to_owned())),
            1 => Ok(ids.into_iter().map(CredentialId).collect()),
            _ => Err(QueryError::Ambiguous {
                text: text.to_owned(),
                ids: ids.into_iter().collect(),
            }),
        }
    }

    /// The rows of the workloads that a text matches.
    pub(super) fn workloads_by(&self, text: &str) -> Result<Vec<(i64, Workload)>, QueryError> {
        let rows: Vec<(i64, Workload)> = self.rows(
            "SELECT id, json FROM workload WHERE key = ?1
             UNION SELECT id, json FROM workload WHERE id IN (SELECT workload FROM program WHERE exe = ?1)",
            params![text],
            |row| Ok((row.get(0)?, from_json(row, 1)?)),
        )?;
        let whole_table = rows.is_empty();
        let all = if whole_table {
            self.rows("SELECT id, json FROM workload", params![], |row| {
                Ok((row.get(0)?, from_json::<Workload>(row, 1)?))
            })?
        } else {
            rows
        };
        // A container or pod by id, a program by name.
        let is = |workload: &Workload| {
            workload.key() == text
                || workload.unit.as_deref() == Some(text)
                || workload.pod.as_deref().is_some_and(|pod| {
                    let of = workload.namespace.as_deref();
                    pod == text || of.is_some_and(|of| text.split_once('/') == Some((of, pod)))
                })
                || workload
                    .container
                    .as_deref()
                    .is_some_and(|id| id == text || (text.len() >= 6 && id.starts_with(text)))
                || workload.ai_agent.as_deref() == Some(text)
                || workload
                    .ci_job
                    .as_ref()
                    .is_some_and(|job| job.repository.as_deref() == Some(text))
                || (!text.contains('/') && workload.name.rsplit('/').next() == Some(text))
        };
        // An executable's path names a host workload; in a unit or container it is one of its
        // programs, and then the whole unit is meant.
        let by_program = text.starts_with('/');
        let found: Vec<(i64, Workload)> = all
            .into_iter()
            .filter(|(_, workload)| (by_program && !whole_table) || is(workload))
            .collect();
        if found.is_empty() {
            return Err(QueryError::NoWorkload(text.to_owned()));
        }
        Ok(found)
    }

    /// The rows of the destinations that a text matches.
    pub(super) fn destinations_by(&self, text: &str) -> Result<Vec<i64>, LedgerError> {
        let rows: Vec<(i64, String, Destination)> = self.rows(
            "SELECT id, label, json FROM destination",
            params![],
            |row| Ok((row.get(0)?, row.get(1)?, from_json(row, 2)?)),
        )?;
        let is = |label: &str, destination: &Destination| {
            let address = destination.address.to_string();
            let host = destination.name.as_ref().unwrap_or(&address);
            let port = destination.port;
            label == text
                || host == text
                || address == text
                || format!("{host}:{port}") == text
                || format!("{address}:{port}") == text
        };
        Ok(rows
            .into_iter()
            .filter(|(_, label, destination)| is(label, destination))
            .map(|(row, ..)| row)
            .collect())
    }
}
