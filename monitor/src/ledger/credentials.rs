//! Credentials and the places where they were found.

use super::{
    LedgerError, from_micros,
    reader::{LedgerReader, from_json, from_word},
};
use jiff::Timestamp;
use monitor_core::{
    baseline::KnownUser,
    model::{Credential, CredentialId, Destination, NameSource, Place},
};
use rusqlite::Row;
use std::net::IpAddr;

impl LedgerReader {
    pub(super) fn credential(&self, id: &CredentialId) -> Result<Option<Credential>, LedgerError> {
        let mut found = self.rows(
            "SELECT id, class, role, lifetime, name, owner, label, audience, issued_at, expires_at, unmarked
             FROM credential WHERE id = ?1",
            [&id.0],
            credential_row,
        )?;
        let Some(mut credential) = found.pop() else {
            return Ok(None);
        };
        self.add_places(&mut credential)?;
        Ok(Some(credential))
    }

    /// Adds the places at which a credential was found.
    pub(super) fn add_places(&self, credential: &mut Credential) -> Result<(), LedgerError> {
        let places = self.rows(
            "SELECT source, place, copied FROM source WHERE credential = ?1 ORDER BY source, place",
            [&credential.id.0],
            |row| {
                let place = Place {
                    source: from_word(row, 0)?,
                    place: row.get(1)?,
                };
                Ok((place, row.get(2)?))
            },
        )?;
        let copies = places.iter().filter(|(_, copied)| *copied);
        credential.copies = copies.map(|(place, _)| place.clone()).collect();
        credential.sources = places.into_iter().map(|(place, _)| place).collect();
        Ok(())
    }

    pub(super) fn credentials(&self, ids: &[CredentialId]) -> Result<Vec<Credential>, LedgerError> {
        let mut found = Vec::new();
        for id in ids {
            found.extend(self.credential(id)?);
        }
        Ok(found)
    }

    /// The workloads that presented or picked up credentials, the most recent edges of each.
    pub fn last_users(&self, most: usize) -> Result<Vec<KnownUser>, LedgerError> {
        let mut users = self.rows(
            "SELECT e.credential, w.key, min(e.first_seen) FROM
                 (SELECT credential, workload, first_seen, evidence FROM hop_edge ORDER BY last_seen DESC LIMIT ?1) e
             JOIN workload w ON w.id = e.workload WHERE e.evidence = 'presented' GROUP BY e.credential, w.key",
            [most as i64],
            |row| {
                Ok(KnownUser {
                    credential: CredentialId(row.get(0)?),
                    workload: row.get(1)?,
                    presented: Some(from_micros(row.get(2)?)),
                    picked_up: false,
                })
            },
        )?;
        users.extend(self.rows(
            "SELECT DISTINCT e.credential, w.key FROM
                 (SELECT credential, workload, source FROM use_edge ORDER BY last_seen DESC LIMIT ?1) e
             JOIN workload w ON w.id = e.workload WHERE e.source NOT IN ('presented', 'metadata')",
            [most as i64],
            |row| {
                Ok(KnownUser {
                    credential: CredentialId(row.get(0)?),
                    workload: row.get(1)?,
                    presented: None,
                    picked_up: true,
                })
            },
        )?);
        Ok(users)
    }

    /// Names of addresses where credentials went most recently, unless the names were disputed.
    pub fn last_names(&self, most: usize) -> Result<Vec<(String, IpAddr)>, LedgerError> {
        let destinations = self.rows(
            "SELECT DISTINCT d.json FROM
                 (SELECT destination FROM hop_edge ORDER BY last_seen DESC LIMIT ?1) e
             JOIN destination d ON d.id = e.destination",
            [most as i64],
            |row| from_json::<Destination>(row, 0),
        )?;
        let known = destinations.into_iter().filter(|destination| {
            destination.disputed.is_empty()
                && destination.via.is_none()
                && matches!(
                    destination.name_source,
                    NameSource::Dns | NameSource::Sni | NameSource::HttpHost
                )
        });
        Ok(known
            .filter_map(|destination| Some((destination.name?, destination.address)))
            .collect())
    }

    /// Credentials with a fingerprint, the most recently used, with their places and first-seen
    /// times.
    pub fn last_used(&self, most: usize) -> Result<Vec<(Credential, Timestamp)>, LedgerError> {
        let ids = self.rows(
            "SELECT id, first_seen FROM credential WHERE id >= 'kt-' AND id < 'kt.' ORDER BY last_used DESC LIMIT ?1",
            [most as i64],
            |row| Ok((CredentialId(row.get(0)?), from_micros(row.get(1)?))),
        )?;
        let mut found = Vec::with_capacity(ids.len());
        for (id, first_seen) in ids {
            found.extend(self.credential(&id)?.map(|known| (known, first_seen)));
        }
        Ok(found)
    }
}

pub(super) fn credential_row(row: &Row<'_>) -> rusqlite::Result<Credential> {
    Ok(Credential {
        id: CredentialId(row.get(0)?),
        class: row.get(1)?,
        role: from_word(row, 2)?,
        lifetime: from_word(row, 3)?,
        name: row.get(4)?,
        owner: row.get(5)?,
        label: row.get(6)?,
        audience: from_json(row, 7)?,
        issued_to: None,
        unmarked: row.get(10)?,
        issued_at: row.get::<_, Option<i64>>(8)?.map(from_micros),
        expires_at: row.get::<_, Option<i64>>(9)?.map(from_micros),
        sources: Vec::new(),
        copies: Vec::new(),
    })
}
