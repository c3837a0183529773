//! Reading: the answers of the CLI and of the API.

use super::{FILE, LedgerError, explain, from_micros, micros, schema};
use crate::{
    credential::catalog::normalise,
    model::{
        Credential, CredentialId, Destination, Evidence, Finding, Gap, Place, Process, Source,
        Verdict, Workload,
    },
};
use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, params, types::FromSqlError};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};
use thiserror::Error;

/// Why a question has no answer.
#[derive(Debug, Error)]
pub enum QueryError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(
        "no credential is known by `{0}`: it takes an id, the beginning of one, a name of the policy, a path, or env:NAME; `keytrail inventory` lists them"
    )]
    NoCredential(String),
    #[error("`{text}` is the beginning of {} ids: {}", .ids.len(), .ids.join(", "))]
    Ambiguous { text: String, ids: Vec<String> },
    #[error(
        "no workload is known by `{0}`: it takes namespace/name, a unit, a container, or the path of an executable"
    )]
    NoWorkload(String),
}

/// From when to when an answer goes; open ends where not given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Range {
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

impl Range {
    pub(super) fn since(self) -> i64 {
        self.since.map_or(0, micros)
    }

    pub(super) fn until(self) -> i64 {
        self.until.map_or(i64::MAX, micros)
    }
}

/// Who used a credential.
#[derive(Clone, Debug, Serialize)]
pub struct UseRow {
    pub credential: CredentialId,
    pub workload: Workload,
    pub process: Process,
    pub source: Source,
    pub place: String,
    pub count: u64,
    pub first_seen: Timestamp,
    pub last_seen: Timestamp,
}

/// Where a credential went.
#[derive(Clone, Debug, Serialize)]
pub struct HopRow {
    pub credential: CredentialId,
    pub workload: Workload,
    pub destination: Destination,
    pub evidence: Evidence,
    pub verdict: Verdict,
    pub count: u64,
    pub first_seen: Timestamp,
    pub last_seen: Timestamp,
    pub process: Process,
}

#[derive(Clone, Debug, Serialize)]
pub struct WhoAnswer {
    pub query: &'static str,
    pub credentials: Vec<Credential>,
    pub uses: Vec<UseRow>,
    pub gaps: Vec<Gap>,
}

#[derive(Clone, Debug, Serialize)]
pub struct WhereAnswer {
    pub query: &'static str,
    pub credentials: Vec<Credential>,
    pub hops: Vec<HopRow>,
    pub gaps: Vec<Gap>,
}

/// One credential within the reach of a workload.
#[derive(Clone, Debug, Serialize)]
pub struct Reach {
    pub credential: Credential,
    pub uses: Vec<UseRow>,
    pub hops: Vec<HopRow>,
}

#[derive(Clone, Debug, Serialize)]
pub struct BlastRadius {
    pub query: &'static str,
    pub workloads: Vec<Workload>,
    pub credentials: Vec<Reach>,
    pub gaps: Vec<Gap>,
}

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Event {
    Use {
        time: Timestamp,
        #[serde(flatten)]
        row: Box<UseRow>,
    },
    Hop {
        time: Timestamp,
        #[serde(flatten)]
        row: Box<HopRow>,
    },
    Finding {
        time: Timestamp,
        finding: Box<Finding>,
    },
    Gap {
        time: Timestamp,
        gap: Gap,
    },
}

impl Event {
    pub fn time(&self) -> Timestamp {
        match self {
            Self::Use { time, .. }
            | Self::Hop { time, .. }
            | Self::Finding { time, .. }
            | Self::Gap { time, .. } => *time,
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Timeline {
    pub query: &'static str,
    pub events: Vec<Event>,
    pub gaps: Vec<Gap>,
}

/// A credential of the inventory.
#[derive(Clone, Debug, Serialize)]
pub struct Item {
    #[serde(flatten)]
    pub credential: Credential,
    pub first_seen: Timestamp,
    pub last_used: Timestamp,
    /// Seconds since it was issued, or since it was first seen.
    pub age_seconds: i64,
    pub workloads: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Inventory {
    pub credentials: Vec<Item>,
    pub gaps: Vec<Gap>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    pub findings: Vec<Finding>,
    pub gaps: Vec<Gap>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Workloads {
    pub workloads: Vec<Workload>,
    pub gaps: Vec<Gap>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Hops {
    pub hops: Vec<HopRow>,
    pub gaps: Vec<Gap>,
}

/// A ledger opened for reading.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    path: PathBuf,
}

const USES: &str = "SELECT credential, w.json, process, source, place, count, first_seen, last_seen
    FROM use_hour JOIN workload w ON w.id = workload";
const HOPS: &str =
    "SELECT credential, w.json, d.json, evidence, verdict, count, first_seen, last_seen, process
    FROM hop_hour JOIN workload w ON w.id = workload JOIN destination d ON d.id = destination";

/// Events of a timeline at most; the newest are kept.
const EVENTS: usize = 10_000;

impl Reader {
    /// Opens the ledger of a state directory.
    pub fn open(directory: &Path) -> Result<Self, LedgerError> {
        let path = directory.join(FILE);
        match std::fs::File::open(&path) {
            Ok(_) => {}
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(LedgerError::Absent(path));
            }
            Err(source) => return Err(LedgerError::Directory { path, source }),
        }
        let failed = |source| explain(&path, source);
        let connection =
            Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
        connection
            .busy_timeout(Duration::from_secs(5))
            .map_err(failed)?;
        let version = schema::version(&connection, &path)?;
        if version != schema::KNOWN {
            return Err(LedgerError::Damaged {
                path,
                reason: format!(
                    "it has schema {version}; start the agent once to bring it up to date"
                ),
            });
        }
        Ok(Self { connection, path })
    }

    /// The ids that a text stands for: one by id or the beginning of one, all that a name, a
    /// path or a variable holds.
    pub fn resolve(&self, text: &str) -> Result<Vec<CredentialId>, QueryError> {
        let exact: Option<String> = self
            .connection
            .query_row("SELECT id FROM credential WHERE id = ?1", [text], |row| {
                row.get(0)
            })
            .optional()
            .map_err(|source| explain(&self.path, source))?;
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
            let ids = self.strings(sql, &place)?;
            if !ids.is_empty() {
                return Ok(ids.into_iter().map(CredentialId).collect());
            }
        }
        // `kt-` and `loc-` may be left out.
        let mut ids = BTreeSet::new();
        if !text.is_empty() {
            for prefix in ["", "kt-", "loc-"] {
                let begin = format!("{prefix}{text}");
                let end = format!("{begin}\u{10ffff}");
                let found: Result<Vec<String>, _> = self
                    .connection
                    .prepare("SELECT id FROM credential WHERE id >= ?1 AND id < ?2 LIMIT 10")
                    .and_then(|mut statement| {
                        statement
                            .query_map([&begin, &end], |row| row.get(0))?
                            .collect()
                    });
                ids.extend(found.map_err(|source| explain(&self.path, source))?);
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

    fn strings(&self, sql: &str, parameter: &str) -> Result<Vec<String>, LedgerError> {
        self.connection
            .prepare(sql)
            .and_then(|mut statement| {
                statement
                    .query_map([parameter], |row| row.get(0))?
                    .collect()
            })
            .map_err(|source| explain(&self.path, source))
    }

    /// The rows of workloads that a text stands for.
    fn workloads_by(&self, text: &str) -> Result<Vec<(i64, Workload)>, QueryError> {
        let rows: Vec<(i64, Workload)> = self.rows(
            "SELECT id, json FROM workload WHERE key = ?1 OR exe = ?1",
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
        // A container or a pod by its id, a program by its name.
        let is = |workload: &Workload| {
            workload.key() == text
                || workload.unit.as_deref() == Some(text)
                || workload.pod.as_deref() == Some(text)
                || workload
                    .container
                    .as_deref()
                    .is_some_and(|id| id == text || (text.len() >= 6 && id.starts_with(text)))
                || (!text.contains('/') && workload.name.rsplit('/').next() == Some(text))
        };
        // An executable's path is a host workload's own name; in a unit or a container it says
        // which program of it ran, and then the whole unit is meant.
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

    pub(super) fn rows<T>(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, LedgerError> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_map(parameters, read)?.collect())
            .map_err(|source| explain(&self.path, source))
    }

    fn credential(&self, id: &CredentialId) -> Result<Option<Credential>, LedgerError> {
        let mut found = self.rows(
            "SELECT id, class, role, lifetime, name, owner, label, audience, issued_at, expires_at
             FROM credential WHERE id = ?1",
            [&id.0],
            credential_row,
        )?;
        let Some(mut credential) = found.pop() else {
            return Ok(None);
        };
        credential.sources = self.sources(id)?;
        Ok(Some(credential))
    }

    fn sources(&self, id: &CredentialId) -> Result<Vec<Place>, LedgerError> {
        self.rows(
            "SELECT source, place FROM source WHERE credential = ?1 ORDER BY source, place",
            [&id.0],
            |row| {
                Ok(Place {
                    source: word(row, 0)?,
                    place: row.get(1)?,
                })
            },
        )
    }

    pub(super) fn credentials(&self, ids: &[CredentialId]) -> Result<Vec<Credential>, LedgerError> {
        let mut found = Vec::new();
        for id in ids {
            found.extend(self.credential(id)?);
        }
        Ok(found)
    }

    fn uses_of(&self, id: &CredentialId, range: Range) -> Result<Vec<UseRow>, LedgerError> {
        let uses = self.rows(
            &format!(
                "{USES} WHERE credential = ?1 AND last_seen >= ?2 AND first_seen <= ?3 ORDER BY last_seen"
            ),
            params![id.0, range.since(), range.until()],
            use_row,
        )?;
        Ok(fold_uses(uses))
    }

    pub(super) fn hops_of(
        &self,
        id: &CredentialId,
        range: Range,
    ) -> Result<Vec<HopRow>, LedgerError> {
        let hops = self.rows(
            &format!(
                "{HOPS} WHERE credential = ?1 AND last_seen >= ?2 AND first_seen <= ?3 ORDER BY last_seen"
            ),
            params![id.0, range.since(), range.until()],
            hop_row,
        )?;
        let mut hops = fold_hops(hops);
        worst_first(&mut hops);
        Ok(hops)
    }

    /// Gaps that touch a range.
    pub fn gaps(&self, range: Range) -> Result<Vec<Gap>, LedgerError> {
        self.rows(
            "SELECT kind, probe, detail, since, until, count FROM gap
             WHERE since <= ?2 AND (until IS NULL OR until >= ?1) ORDER BY since",
            params![range.since(), range.until()],
            |row| {
                Ok(Gap {
                    kind: row.get(0)?,
                    probe: row.get(1)?,
                    detail: row.get(2)?,
                    since: from_micros(row.get(3)?),
                    until: row.get::<_, Option<i64>>(4)?.map(from_micros),
                    count: row.get::<_, i64>(5)?.max(0) as u64,
                })
            },
        )
    }

    pub fn who(&self, text: &str, range: Range) -> Result<WhoAnswer, QueryError> {
        let ids = self.resolve(text)?;
        let mut uses = Vec::new();
        for id in &ids {
            uses.extend(self.uses_of(id, range)?);
        }
        Ok(WhoAnswer {
            query: "who",
            credentials: self.credentials(&ids)?,
            uses,
            gaps: self.gaps(range)?,
        })
    }

    pub fn where_to(&self, text: &str, range: Range) -> Result<WhereAnswer, QueryError> {
        let ids = self.resolve(text)?;
        let mut hops = Vec::new();
        for id in &ids {
            hops.extend(self.hops_of(id, range)?);
        }
        worst_first(&mut hops);
        Ok(WhereAnswer {
            query: "where",
            credentials: self.credentials(&ids)?,
            hops,
            gaps: self.gaps(range)?,
        })
    }

    /// What a workload picked up or took somewhere, and everywhere it went with it.
    pub fn blast_radius(&self, text: &str, range: Range) -> Result<BlastRadius, QueryError> {
        let rows = self.workloads_by(text)?;
        let mut reach: BTreeMap<String, (Vec<UseRow>, Vec<HopRow>)> = BTreeMap::new();
        for (row, _) in &rows {
            let uses = self.rows(
                &format!(
                    "{USES} WHERE workload = ?1 AND last_seen >= ?2 AND first_seen <= ?3 ORDER BY last_seen"
                ),
                params![row, range.since(), range.until()],
                use_row,
            )?;
            for used in fold_uses(uses) {
                reach
                    .entry(used.credential.0.clone())
                    .or_default()
                    .0
                    .push(used);
            }
            let hops = self.rows(
                &format!(
                    "{HOPS} WHERE workload = ?1 AND last_seen >= ?2 AND first_seen <= ?3 ORDER BY last_seen"
                ),
                params![row, range.since(), range.until()],
                hop_row,
            )?;
            for hop in fold_hops(hops) {
                reach
                    .entry(hop.credential.0.clone())
                    .or_default()
                    .1
                    .push(hop);
            }
        }
        let mut credentials = Vec::new();
        for (id, (uses, mut hops)) in reach {
            worst_first(&mut hops);
            if let Some(credential) = self.credential(&CredentialId(id))? {
                credentials.push(Reach {
                    credential,
                    uses,
                    hops,
                });
            }
        }
        Ok(BlastRadius {
            query: "blast-radius",
            workloads: rows.into_iter().map(|(_, workload)| workload).collect(),
            credentials,
            gaps: self.gaps(range)?,
        })
    }

    /// What happened, oldest first, gaps in their place.
    pub fn timeline(
        &self,
        credential: Option<&str>,
        workload: Option<&str>,
        range: Range,
    ) -> Result<Timeline, QueryError> {
        let ids = credential.map(|text| self.resolve(text)).transpose()?;
        let workloads: Option<Vec<(i64, Workload)>> =
            workload.map(|text| self.workloads_by(text)).transpose()?;
        let keys: Option<BTreeSet<String>> = workloads
            .as_ref()
            .map(|rows| rows.iter().map(|(_, workload)| workload.key()).collect());
        let wanted = |id: &CredentialId, workload: &Workload| {
            ids.as_ref().is_none_or(|ids| ids.contains(id))
                && keys
                    .as_ref()
                    .is_none_or(|keys| keys.contains(&workload.key()))
        };
        let (from, to) = (range.since() / 3_600_000_000, range.until() / 3_600_000_000);
        let mut events = Vec::new();
        // By the hour, as the ledger has it: the group of a row is the row itself.
        let uses = self.rows(
            &format!(
                "{USES} WHERE hour BETWEEN ?1 AND ?2 AND last_seen >= ?3 AND first_seen <= ?4"
            ),
            params![from, to, range.since(), range.until()],
            use_row,
        )?;
        events.extend(
            uses.into_iter()
                .filter(|row| wanted(&row.credential, &row.workload))
                .map(|row| Event::Use {
                    time: row.first_seen,
                    row: Box::new(row),
                }),
        );
        let hops = self.rows(
            &format!(
                "{HOPS} WHERE hour BETWEEN ?1 AND ?2 AND last_seen >= ?3 AND first_seen <= ?4"
            ),
            params![from, to, range.since(), range.until()],
            hop_row,
        )?;
        events.extend(
            hops.into_iter()
                .filter(|row| wanted(&row.credential, &row.workload))
                .map(|row| Event::Hop {
                    time: row.first_seen,
                    row: Box::new(row),
                }),
        );
        events.extend(
            self.findings_in(range)?
                .into_iter()
                .filter(|finding| wanted(&finding.credential.id, &finding.workload))
                .map(|finding| Event::Finding {
                    time: finding.first_seen,
                    finding: Box::new(finding),
                }),
        );
        let gaps = self.gaps(range)?;
        events.extend(gaps.iter().cloned().map(|gap| Event::Gap {
            time: gap.since,
            gap,
        }));
        events.sort_by_key(Event::time);
        let surplus = events.len().saturating_sub(EVENTS);
        events.drain(..surplus);
        Ok(Timeline {
            query: "timeline",
            events,
            gaps,
        })
    }

    fn findings_in(&self, range: Range) -> Result<Vec<Finding>, LedgerError> {
        self.rows(
            "SELECT json FROM finding WHERE last_seen >= ?1 AND first_seen <= ?2 ORDER BY last_seen DESC",
            params![range.since(), range.until()],
            |row| from_json(row, 0),
        )
    }

    /// Findings, the worst first and then the newest.
    pub fn findings(&self, rule: Option<&str>, range: Range) -> Result<Findings, QueryError> {
        let mut findings = self.findings_in(range)?;
        findings.retain(|finding| rule.is_none_or(|rule| finding.rule == rule));
        findings.sort_by(|a, b| {
            b.severity
                .cmp(&a.severity)
                .then(b.last_seen.cmp(&a.last_seen))
        });
        Ok(Findings {
            findings,
            gaps: self.gaps(range)?,
        })
    }

    /// Every finding by id with its count, for an agent that starts again.
    pub fn finding_counts(&self) -> Result<Vec<Finding>, LedgerError> {
        self.findings_in(Range::default())
    }

    pub fn inventory(&self, now: Timestamp) -> Result<Inventory, QueryError> {
        let rows = self.rows(
            "SELECT id, class, role, lifetime, name, owner, label, audience, issued_at, expires_at, first_seen, last_used
             FROM credential ORDER BY last_used DESC",
            params![],
            |row| {
                Ok((
                    credential_row(row)?,
                    from_micros(row.get(10)?),
                    from_micros(row.get(11)?),
                ))
            },
        )?;
        let mut credentials = Vec::new();
        for (mut credential, first_seen, last_used) in rows {
            credential.sources = self.sources(&credential.id)?;
            let workloads = self.strings(
                "SELECT DISTINCT key FROM workload WHERE id IN (
                    SELECT workload FROM use_hour WHERE credential = ?1
                    UNION SELECT workload FROM hop_hour WHERE credential = ?1) ORDER BY key",
                &credential.id.0,
            )?;
            let since = credential.issued_at.unwrap_or(first_seen);
            credentials.push(Item {
                age_seconds: now.duration_since(since).as_secs().max(0),
                credential,
                first_seen,
                last_used,
                workloads,
            });
        }
        Ok(Inventory {
            credentials,
            gaps: self.gaps(Range::default())?,
        })
    }

    pub fn workloads(&self) -> Result<Workloads, QueryError> {
        Ok(Workloads {
            workloads: self.rows("SELECT json FROM workload ORDER BY key", params![], |row| {
                from_json(row, 0)
            })?,
            gaps: self.gaps(Range::default())?,
        })
    }

    pub fn hops(&self, range: Range) -> Result<Hops, QueryError> {
        let hops = self.rows(
            &format!("{HOPS} WHERE last_seen >= ?1 AND first_seen <= ?2 ORDER BY last_seen"),
            params![range.since(), range.until()],
            hop_row,
        )?;
        let mut hops = fold_hops(hops);
        worst_first(&mut hops);
        Ok(Hops {
            hops,
            gaps: self.gaps(range)?,
        })
    }
}

/// One row for the hours of one use, in the order of time: what the last says stands.
fn fold_uses(rows: Vec<UseRow>) -> Vec<UseRow> {
    let mut places: HashMap<(CredentialId, Workload, Source, String), usize> = HashMap::new();
    let mut folded: Vec<UseRow> = Vec::new();
    for row in rows {
        let key = (
            row.credential.clone(),
            row.workload.clone(),
            row.source,
            row.place.clone(),
        );
        match places.get(&key) {
            Some(place) => {
                let known = &mut folded[*place];
                known.count += row.count;
                known.first_seen = known.first_seen.min(row.first_seen);
                known.last_seen = row.last_seen;
                known.process = row.process;
            }
            None => {
                places.insert(key, folded.len());
                folded.push(row);
            }
        }
    }
    folded.sort_by_key(|row| std::cmp::Reverse(row.last_seen));
    folded
}

/// As [`fold_uses`], for hops.
fn fold_hops(rows: Vec<HopRow>) -> Vec<HopRow> {
    let mut places: HashMap<(CredentialId, Workload, Destination, Evidence), usize> =
        HashMap::new();
    let mut folded: Vec<HopRow> = Vec::new();
    for row in rows {
        let key = (
            row.credential.clone(),
            row.workload.clone(),
            row.destination.clone(),
            row.evidence,
        );
        match places.get(&key) {
            Some(place) => {
                let known = &mut folded[*place];
                known.count += row.count;
                known.first_seen = known.first_seen.min(row.first_seen);
                known.last_seen = row.last_seen;
                known.process = row.process;
                known.verdict = row.verdict;
            }
            None => {
                places.insert(key, folded.len());
                folded.push(row);
            }
        }
    }
    folded
}

/// Unexpected before unproven before expected, strong evidence first, then the newest.
fn worst_first(hops: &mut [HopRow]) {
    hops.sort_by(|a, b| {
        b.verdict
            .cmp(&a.verdict)
            .then(b.evidence.cmp(&a.evidence))
            .then(b.last_seen.cmp(&a.last_seen))
    });
}

pub(super) fn from_json<T: serde::de::DeserializeOwned>(
    row: &Row<'_>,
    index: usize,
) -> rusqlite::Result<T> {
    let text: String = row.get(index)?;
    serde_json::from_str(&text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, error.into())
    })
}

fn word<T: FromStr<Err = String>>(row: &Row<'_>, index: usize) -> rusqlite::Result<T> {
    let text: String = row.get(index)?;
    text.parse().map_err(|error: String| {
        rusqlite::Error::FromSqlConversionFailure(
            index,
            rusqlite::types::Type::Text,
            Box::new(FromSqlError::Other(error.into())),
        )
    })
}

fn credential_row(row: &Row<'_>) -> rusqlite::Result<Credential> {
    Ok(Credential {
        id: CredentialId(row.get(0)?),
        class: row.get(1)?,
        role: word(row, 2)?,
        lifetime: word(row, 3)?,
        name: row.get(4)?,
        owner: row.get(5)?,
        label: row.get(6)?,
        audience: from_json(row, 7)?,
        issued_to: None,
        issued_at: row.get::<_, Option<i64>>(8)?.map(from_micros),
        expires_at: row.get::<_, Option<i64>>(9)?.map(from_micros),
        sources: Vec::new(),
    })
}

fn use_row(row: &Row<'_>) -> rusqlite::Result<UseRow> {
    Ok(UseRow {
        credential: CredentialId(row.get(0)?),
        workload: from_json(row, 1)?,
        process: from_json(row, 2)?,
        source: word(row, 3)?,
        place: row.get(4)?,
        count: row.get::<_, i64>(5)?.max(0) as u64,
        first_seen: from_micros(row.get(6)?),
        last_seen: from_micros(row.get(7)?),
    })
}

fn hop_row(row: &Row<'_>) -> rusqlite::Result<HopRow> {
    Ok(HopRow {
        credential: CredentialId(row.get(0)?),
        workload: from_json(row, 1)?,
        destination: from_json(row, 2)?,
        evidence: word(row, 3)?,
        verdict: word(row, 4)?,
        count: row.get::<_, i64>(5)?.max(0) as u64,
        first_seen: from_micros(row.get(6)?),
        last_seen: from_micros(row.get(7)?),
        process: from_json(row, 8)?,
    })
}
