//! Writing: batches in a thread of its own, off the path of events.

use super::{Entry, FILE, LedgerError, explain, from_micros, hour, micros, schema};
use crate::{
    model::{Credential, Destination, Finding, Gap, Mint, Place, Process, Workload},
    policy::document::Retention,
};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};
use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Entries that wait at most; more are counted as lost.
const QUEUE: usize = 32_768;
/// A batch is committed after this: what a `kill -9` can take.
const BATCH: Duration = Duration::from_millis(250);
/// How often age and size are looked at.
const TIDY: Duration = Duration::from_secs(600);

/// The end of the queue that the pipeline holds.
#[derive(Debug)]
pub struct Writer {
    queue: Option<SyncSender<Entry>>,
    thread: Option<JoinHandle<()>>,
    /// Entries that found the queue full or that could not be written.
    pub lost: Arc<AtomicU64>,
}

impl Writer {
    /// Opens the ledger of a state directory, making both where they are not there. Gives the
    /// time when an agent last wrote to it, if one did.
    pub fn open(
        directory: &Path,
        retention: Retention,
    ) -> Result<(Self, Option<Timestamp>), LedgerError> {
        let trouble = |source| LedgerError::Directory {
            path: directory.to_owned(),
            source,
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(trouble)?;
        let path = directory.join(FILE);
        let mut connection = Connection::open(&path).map_err(|source| explain(&path, source))?;
        let failed = |source| explain(&path, source);
        connection
            .busy_timeout(Duration::from_secs(2))
            .map_err(failed)?;
        schema::version(&connection, &path)?;
        check(&connection, &path)?;
        connection
            .execute_batch(
                "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -4096;",
            )
            .map_err(failed)?;
        schema::migrate(&mut connection, &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(trouble)?;
        let last: Option<i64> = connection
            .query_row("SELECT value FROM meta WHERE name = 'alive'", [], |row| {
                row.get(0)
            })
            .optional()
            .map_err(failed)?;
        // A gap that stood open ended with the agent that had it; this one tells of its own.
        connection
            .execute(
                "UPDATE gap SET until = max(since, ?1) WHERE until IS NULL AND kind <> 'not-covered'",
                [last.unwrap_or_default()],
            )
            .map_err(failed)?;
        connection
            .execute("DELETE FROM gap WHERE kind = 'not-covered'", [])
            .map_err(failed)?;
        let (queue, entries) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let work = Work {
            connection,
            path,
            retention,
            lost: Arc::clone(&lost),
        };
        let thread = std::thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || work.run(&entries))
            .map_err(trouble)?;
        let writer = Self {
            queue: Some(queue),
            thread: Some(thread),
            lost,
        };
        Ok((writer, last.map(from_micros)))
    }

    /// Hands over an entry; never waits.
    pub fn write(&self, entry: Entry) {
        let sent = self
            .queue
            .as_ref()
            .is_some_and(|queue| queue.try_send(entry).is_ok());
        if !sent {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Writer {
    /// Writes what waits.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the ledger ended in a panic");
        }
    }
}

/// A quick look at the file's structure; the whole check takes too long at a large size.
fn check(connection: &Connection, path: &Path) -> Result<(), LedgerError> {
    let verdict: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|source| explain(path, source))?;
    if verdict == "ok" {
        return Ok(());
    }
    Err(LedgerError::Damaged {
        path: path.to_owned(),
        reason: verdict.lines().next().unwrap_or_default().to_owned(),
    })
}

struct Work {
    connection: Connection,
    path: PathBuf,
    retention: Retention,
    lost: Arc<AtomicU64>,
}

impl Work {
    fn run(mut self, entries: &Receiver<Entry>) {
        let mut batch = Vec::new();
        let mut tidied: Option<Instant> = None;
        loop {
            let open = gather(entries, &mut batch);
            if let Err(source) = self.commit(&batch) {
                self.lost.fetch_add(batch.len() as u64, Ordering::Relaxed);
                let error = explain(&self.path, source);
                tracing::error!(%error, entries = batch.len(), "a batch could not be written");
            }
            batch.clear();
            if tidied.is_none_or(|last| last.elapsed() > TIDY) {
                tidied = Some(Instant::now());
                if let Err(source) = self.tidy(Timestamp::now()) {
                    let error = explain(&self.path, source);
                    tracing::error!(%error, "old records could not be dropped");
                }
            }
            if !open {
                return;
            }
        }
    }

    fn commit(&mut self, batch: &[Entry]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        for entry in batch {
            match entry {
                Entry::Use(used) => {
                    credential(&transaction, &used.credential, used.time)?;
                    place(&transaction, &used.credential, &used.place)?;
                    let workload = workload(&transaction, &used.workload, &used.process)?;
                    transaction
                        .prepare_cached(
                            "INSERT INTO use_hour VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?8)
                             ON CONFLICT DO UPDATE SET count = count + ?6, last_seen = max(last_seen, ?7),
                             first_seen = min(first_seen, ?7), process = ?8",
                        )?
                        .execute(params![
                            used.credential.id.0,
                            workload,
                            used.place.source.as_str(),
                            used.place.place,
                            hour(used.time),
                            used.count as i64,
                            micros(used.time),
                            json(&used.process),
                        ])?;
                }
                Entry::Hop(hop, verdict) => {
                    credential(&transaction, &hop.credential, hop.time)?;
                    let workload = workload(&transaction, &hop.workload, &hop.process)?;
                    let destination = place_of(&transaction, &hop.destination)?;
                    transaction
                        .prepare_cached(
                            "INSERT INTO hop_hour VALUES (?1, ?2, ?3, ?4, ?5, ?6, 1, ?7, ?7, ?8)
                             ON CONFLICT DO UPDATE SET count = count + 1, last_seen = max(last_seen, ?7),
                             first_seen = min(first_seen, ?7), verdict = ?6, process = ?8",
                        )?
                        .execute(params![
                            hop.credential.id.0,
                            workload,
                            destination,
                            hop.evidence.as_str(),
                            hour(hop.time),
                            verdict.as_str(),
                            micros(hop.time),
                            json(&hop.process),
                        ])?;
                }
                Entry::Mint(mint) => write_mint(&transaction, mint)?,
                Entry::Finding(finding) => write_finding(&transaction, finding)?,
                Entry::Renamed(both) => {
                    let [old, new] = &**both;
                    rename(&transaction, old, new)?;
                }
                Entry::Gap(gap) => write_gap(&transaction, gap)?,
            }
        }
        transaction
            .prepare_cached(
                "INSERT INTO meta VALUES ('alive', ?1) ON CONFLICT DO UPDATE SET value = ?1",
            )?
            .execute([micros(Timestamp::now())])?;
        transaction.commit()
    }

    /// Drops what is too old, and the oldest hours while the file is too large. What is dropped
    /// for size is a gap.
    fn tidy(&mut self, now: Timestamp) -> rusqlite::Result<()> {
        let oldest = now
            .checked_sub(self.retention.max_age)
            .unwrap_or(Timestamp::UNIX_EPOCH);
        self.drop_before(hour(oldest), micros(oldest))?;
        while self.size()? > self.retention.max_bytes {
            let first: Option<i64> = self.connection.query_row(
                "SELECT min(hour) FROM (SELECT min(hour) AS hour FROM use_hour UNION ALL SELECT min(hour) FROM hop_hour)",
                [],
                |row| row.get(0),
            )?;
            // The hour that is being written stays.
            let Some(first) = first.filter(|first| *first < hour(now)) else {
                break;
            };
            let until = (first + 1) * 3_600_000_000;
            self.drop_before(first + 1, until)?;
            let gap = Gap {
                kind: "dropped-for-size".to_owned(),
                probe: None,
                detail: "the oldest records were dropped to keep the ledger below its size"
                    .to_owned(),
                since: from_micros(first * 3_600_000_000),
                until: Some(from_micros(until)),
                count: 0,
            };
            write_gap(&self.connection, &gap)?;
        }
        Ok(())
    }

    fn drop_before(&mut self, hour: i64, time: i64) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        transaction.execute("DELETE FROM use_hour WHERE hour < ?1", [hour])?;
        transaction.execute("DELETE FROM hop_hour WHERE hour < ?1", [hour])?;
        transaction.execute("DELETE FROM mint_hour WHERE hour < ?1", [hour])?;
        transaction.execute("DELETE FROM finding WHERE last_seen < ?1", [time])?;
        transaction.execute(
            "DELETE FROM gap WHERE until < ?1 AND kind <> 'dropped-for-size'",
            [time],
        )?;
        transaction.commit()?;
        self.connection
            .execute_batch("PRAGMA incremental_vacuum(2000)")
    }

    fn size(&self) -> rusqlite::Result<u64> {
        let pages: i64 = self.connection.query_row(
            "SELECT (SELECT page_count FROM pragma_page_count()) - (SELECT freelist_count FROM pragma_freelist_count())",
            [],
            |row| row.get(0),
        )?;
        let size: i64 = self
            .connection
            .query_row("PRAGMA page_size", [], |row| row.get(0))?;
        Ok((pages * size).max(0) as u64)
    }
}

/// Waits for entries until a batch is due; `false` where no more will come.
fn gather(entries: &Receiver<Entry>, batch: &mut Vec<Entry>) -> bool {
    let end = Instant::now() + BATCH;
    loop {
        match entries.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(entry) => batch.push(entry),
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        if batch.len() >= QUEUE {
            return true;
        }
    }
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "{}".to_owned())
}

fn credential(
    connection: &Connection,
    credential: &Credential,
    time: Timestamp,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO credential VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?11)
             ON CONFLICT DO UPDATE SET class = ?2, role = ?3, lifetime = ?4, name = coalesce(?5, name),
             owner = coalesce(?6, owner), label = coalesce(?7, label), issued_at = coalesce(?9, issued_at),
             expires_at = coalesce(?10, expires_at), last_used = max(last_used, ?11), first_seen = min(first_seen, ?11)",
        )?
        .execute(params![
            credential.id.0,
            credential.class,
            credential.role.as_str(),
            credential.lifetime.as_str(),
            credential.name,
            credential.owner,
            credential.label,
            json(&credential.audience),
            credential.issued_at.map(micros),
            credential.expires_at.map(micros),
            micros(time),
        ])?;
    for source in &credential.sources {
        place(connection, credential, source)?;
    }
    Ok(())
}

fn place(connection: &Connection, credential: &Credential, place: &Place) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR IGNORE INTO source VALUES (?1, ?2, ?3)")?
        .execute(params![credential.id.0, place.source.as_str(), place.place])?;
    Ok(())
}

fn workload(
    connection: &Connection,
    workload: &Workload,
    process: &Process,
) -> rusqlite::Result<i64> {
    interned(
        connection,
        "SELECT id FROM workload WHERE json = ?1",
        "INSERT INTO workload (json, key, exe) VALUES (?1, ?2, ?3)",
        &json(workload),
        &[&workload.key(), &process.exe],
    )
}

/// Gives what is there of one workload to another: sums where both have it.
fn rename(connection: &Connection, old: &Workload, new: &Workload) -> rusqlite::Result<()> {
    rename_findings(connection, old, new)?;
    let known: Option<(i64, String)> = connection
        .prepare_cached("SELECT id, exe FROM workload WHERE json = ?1")?
        .query_row([json(old)], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((from, exe)) = known else {
        return Ok(());
    };
    let to = interned(
        connection,
        "SELECT id FROM workload WHERE json = ?1",
        "INSERT INTO workload (json, key, exe) VALUES (?1, ?2, ?3)",
        &json(new),
        &[&new.key(), &exe],
    )?;
    let tables = [
        (
            "use_hour",
            "credential, ?2, source, place, hour, count, first_seen, last_seen, process",
        ),
        (
            "hop_hour",
            "credential, ?2, destination, evidence, hour, verdict, count, first_seen, last_seen, process",
        ),
        (
            "mint_hour",
            "presented, minted, ?2, destination, hour, count, first_seen, last_seen, process",
        ),
    ];
    for (table, columns) in tables {
        connection
            .prepare_cached(&format!(
                "INSERT INTO {table} SELECT {columns} FROM {table} WHERE workload = ?1
                 ON CONFLICT DO UPDATE SET count = count + excluded.count,
                 first_seen = min(first_seen, excluded.first_seen),
                 last_seen = max(last_seen, excluded.last_seen)"
            ))?
            .execute([from, to])?;
        connection
            .prepare_cached(&format!("DELETE FROM {table} WHERE workload = ?1"))?
            .execute([from])?;
    }
    connection
        .prepare_cached("DELETE FROM workload WHERE id = ?1")?
        .execute([from])?;
    Ok(())
}

fn rename_findings(
    connection: &Connection,
    old: &Workload,
    new: &Workload,
) -> rusqlite::Result<()> {
    let (old_key, new_key) = (old.key(), new.key());
    let found: Vec<String> = connection
        .prepare_cached("SELECT json FROM finding WHERE workload = ?1")?
        .query_map([&old_key], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for text in found {
        // What is there was written by this program.
        let Ok(mut finding) = serde_json::from_str::<Finding>(&text) else {
            continue;
        };
        if finding.workload != *old {
            continue;
        }
        finding.workload.clone_from(new);
        finding.summary = finding.summary.replace(&old_key, &new_key);
        connection
            .prepare_cached("UPDATE finding SET workload = ?2, json = ?3 WHERE id = ?1")?
            .execute(params![finding.id, new_key, json(&finding)])?;
    }
    Ok(())
}

/// The row of a value that many records share.
fn interned(
    connection: &Connection,
    find: &str,
    insert: &str,
    json: &str,
    more: &[&str],
) -> rusqlite::Result<i64> {
    let found: Option<i64> = connection
        .prepare_cached(find)?
        .query_row([json], |row| row.get(0))
        .optional()?;
    if let Some(found) = found {
        return Ok(found);
    }
    let values = std::iter::once(json).chain(more.iter().copied());
    connection
        .prepare_cached(insert)?
        .execute(rusqlite::params_from_iter(values))?;
    Ok(connection.last_insert_rowid())
}

fn place_of(transaction: &Connection, destination: &Destination) -> rusqlite::Result<i64> {
    interned(
        transaction,
        "SELECT id FROM destination WHERE json = ?1",
        "INSERT INTO destination (json, label) VALUES (?1, ?2)",
        &json(destination),
        &[&destination.label()],
    )
}

fn write_mint(transaction: &Connection, mint: &Mint) -> rusqlite::Result<()> {
    let sides = [&mint.presented, &mint.minted];
    for known in sides.into_iter().flatten() {
        credential(transaction, known, mint.time)?;
    }
    let id = |side: &Option<Credential>| {
        side.as_ref()
            .map_or_else(String::new, |known| known.id.0.clone())
    };
    let workload = workload(transaction, &mint.workload, &mint.process)?;
    let destination = place_of(transaction, &mint.authenticator)?;
    transaction
        .prepare_cached(
            "INSERT INTO mint_hour VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6, ?6, ?7)
             ON CONFLICT DO UPDATE SET count = count + 1, last_seen = max(last_seen, ?6),
             first_seen = min(first_seen, ?6), process = ?7",
        )?
        .execute(params![
            id(&mint.presented),
            id(&mint.minted),
            workload,
            destination,
            hour(mint.time),
            micros(mint.time),
            json(&mint.process),
        ])?;
    Ok(())
}

fn write_finding(connection: &Connection, finding: &Finding) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO finding VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT DO UPDATE SET last_seen = ?6, count = ?7, json = ?8",
        )?
        .execute(params![
            finding.id,
            finding.rule,
            finding.credential.id.0,
            finding.workload.key(),
            micros(finding.first_seen),
            micros(finding.last_seen),
            finding.count as i64,
            json(finding),
        ])?;
    Ok(())
}

/// A gap without an end that is there already goes on; its count grows.
fn write_gap(connection: &Connection, gap: &Gap) -> rusqlite::Result<()> {
    let known: Option<i64> = connection
        .prepare_cached(
            "SELECT id FROM gap WHERE kind = ?1 AND probe IS ?2 AND detail = ?3 AND until IS NULL AND ?4 IS NULL",
        )?
        .query_row(
            params![gap.kind, gap.probe, gap.detail, gap.until.map(micros)],
            |row| row.get(0),
        )
        .optional()?;
    match known {
        Some(id) => {
            connection
                .prepare_cached("UPDATE gap SET count = count + ?2 WHERE id = ?1")?
                .execute(params![id, gap.count as i64])?;
        }
        None => {
            connection
                .prepare_cached(
                    "INSERT INTO gap (kind, probe, detail, since, until, count) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![
                    gap.kind,
                    gap.probe,
                    gap.detail,
                    micros(gap.since),
                    gap.until.map(micros),
                    gap.count as i64
                ])?;
        }
    }
    Ok(())
}
