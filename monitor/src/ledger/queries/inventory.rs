//! Every credential: class, role, lifetime, age, expiry, owner, workloads, last use.

#[cfg(test)]
use super::IndexCase;
use super::RowList;
use crate::{
    ledger::{
        credentials::credential_row,
        from_micros,
        reader::{LedgerReader, QueryError},
    },
    output::{
        TableAnswer, sections,
        table::TableBuilder,
        times::{duration_text, local_time, relative_time},
    },
};
use jiff::{SignedDuration, Timestamp};
use monitor_core::{
    history::TimeRange,
    model::{Credential, Gap},
};
use rusqlite::params;
use serde::Serialize;
use utoipa::ToSchema;

/// A credential of the inventory.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct InventoryItem {
    #[serde(flatten)]
    pub credential: Credential,
    pub first_seen: Timestamp,
    pub last_used: Timestamp,
    /// Seconds since it was issued, or else first seen.
    pub age_seconds: i64,
    pub workloads: Vec<String>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Inventory {
    pub credentials: Vec<InventoryItem>,
    pub gaps: Vec<Gap>,
}

impl LedgerReader {
    pub fn inventory(&self, now: Timestamp) -> Result<Inventory, QueryError> {
        let rows = self.rows(
            "SELECT id, class, role, lifetime, name, owner, label, audience, issued_at, expires_at, unmarked, first_seen, last_used
             FROM credential ORDER BY last_used DESC",
            params![],
            |row| {
                Ok((
                    credential_row(row)?,
                    from_micros(row.get(11)?),
                    from_micros(row.get(12)?),
                ))
            },
        )?;
        let mut credentials = Vec::new();
        for (mut credential, first_seen, last_used) in rows {
            self.add_places(&mut credential)?;
            let workloads = self.query_strings(
                "SELECT DISTINCT key FROM workload WHERE id IN (
                    SELECT workload FROM use_edge WHERE credential = ?1
                    UNION SELECT workload FROM hop_edge WHERE credential = ?1) ORDER BY key",
                &credential.id.0,
            )?;
            let since = credential.issued_at.unwrap_or(first_seen);
            credentials.push(InventoryItem {
                age_seconds: now.duration_since(since).as_secs().max(0),
                credential,
                first_seen,
                last_used,
                workloads,
            });
        }
        Ok(Inventory {
            credentials,
            gaps: self.gaps(TimeRange::default())?,
        })
    }
}

impl TableAnswer for Inventory {
    fn table(&self) -> String {
        let mut out = String::new();
        let mut rows = TableBuilder::new(&[
            "CREDENTIAL",
            "NAME",
            "CLASS",
            "ROLE",
            "LIFETIME",
            "AGE",
            "EXPIRES",
            "OWNER",
            "WORKLOADS",
            "LAST USE",
            "PLACE",
        ]);
        for item in &self.credentials {
            let credential = &item.credential;
            rows.add(vec![
                credential.id.to_string(),
                credential
                    .name
                    .clone()
                    .or_else(|| credential.label.clone())
                    .unwrap_or_else(|| "–".to_owned()),
                credential.class.clone(),
                credential.role.to_string(),
                credential.lifetime.to_string(),
                duration_text(SignedDuration::from_secs(item.age_seconds)),
                credential
                    .expires_at
                    .map_or_else(|| "–".to_owned(), local_time),
                credential.owner.clone().unwrap_or_else(|| "–".to_owned()),
                sections::first_two(&item.workloads),
                relative_time(item.last_used),
                sections::first_two(
                    &credential
                        .sources
                        .iter()
                        .map(|place| place.place.clone())
                        .collect::<Vec<_>>(),
                ),
            ]);
        }
        rows.show(&mut out);
        sections::gaps(&mut out, &self.gaps);
        out
    }
}

impl RowList for Inventory {
    type Row = InventoryItem;

    fn rows(&mut self) -> &mut Vec<InventoryItem> {
        &mut self.credentials
    }
}

/// Its row in the test that answers come from an index.
#[cfg(test)]
pub(super) const INDEX_CASE: IndexCase = |sample| sample.reader.inventory(sample.now).map(drop);
