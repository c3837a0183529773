//! Writing: batches in a thread of its own, off the path of events.

use super::{
    Entry, FILE, LedgerError, explain, from_micros, hour, is_damage, micros,
    read::Reader,
    rename::rename,
    schema,
    tidy::{Moment, Tidy},
};
use crate::{
    done,
    model::{
        Credential, Destination, Finding, Gap, Hop, Mint, Place, Process, Source, Use, Verdict,
        Workload,
    },
    policy::document::Retention,
    reserved::reserve,
};
use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
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
/// The start is written within this, or later.
const STARTED_WITHIN: Duration = Duration::from_secs(2);
/// Findings and credentials of before that an agent takes up when it starts.
const REMEMBERED: usize = 4_096;

const SET_META: &str = "INSERT INTO meta VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2";

/// What the agent of before left, for the one that starts.
#[derive(Debug, Default)]
pub struct Before {
    /// How it ended, if there was one.
    pub last: Option<Last>,
    /// Its last findings, with their counts.
    pub findings: Vec<Finding>,
    /// The credentials that were used last, with their places, and when each was first seen.
    pub credentials: Vec<(Credential, Timestamp)>,
}

/// How an agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last {
    /// When it last wrote.
    pub alive: Timestamp,
    /// It was told to end, and did.
    pub in_order: bool,
}

/// The end of the queue that the pipeline holds.
#[derive(Debug)]
pub struct Writer {
    queue: Option<SyncSender<Entry>>,
    thread: Option<JoinHandle<()>>,
    /// Entries that found the queue full or that could not be written.
    pub lost: Arc<AtomicU64>,
}

impl Writer {
    /// Opens the ledger of a state directory, making both where they are not there; one that is damaged is set
    /// aside, wherever that shows. Gives what the agent left that last wrote to it.
    pub fn open(directory: &Path, retention: Retention) -> Result<(Self, Before), LedgerError> {
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
        let (connection, before) = match begin(directory, &path) {
            Err(LedgerError::Damaged { reason, .. }) => {
                let gap = set_aside(&path, &reason)?;
                let begun = begin(directory, &path)?;
                write_gap(&begun.0, &gap).map_err(|source| explain(&path, source))?;
                begun
            }
            begun => begun?,
        };
        let (queue, entries) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let damage = look_for_damage(&path).map_err(trouble)?;
        let work = Work {
            connection,
            path,
            damage,
            tidy: Tidy::new(retention, before.last.map(|last| last.alive), Moment::now()),
            lost: Arc::clone(&lost),
            lost_since: None,
            to_begin: None,
            started: false,
            starting: false,
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
        Ok((writer, before))
    }

    /// Says that the agent has started, and waits until that is written, as a kill may come next.
    pub fn started(&self) {
        let (written, waiter) = done::pair();
        self.write(Entry::Started(written));
        // A file that is locked is written later.
        waiter.wait_for(STARTED_WITHIN);
    }

    /// Hands over an entry; never waits, but for the last one.
    pub fn write(&self, entry: Entry) {
        let sent = self.queue.as_ref().is_some_and(|queue| match entry {
            Entry::End => queue.send(entry).is_ok(),
            entry => queue.try_send(entry).is_ok(),
        });
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

/// Opens the file, and reads what is to be known of before.
fn begin(directory: &Path, path: &Path) -> Result<(Connection, Before), LedgerError> {
    let connection = connect(path)?;
    let failed = |source| explain(path, source);
    let meta = |name: &str| {
        connection
            .query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| {
                row.get::<_, i64>(0)
            })
            .optional()
            .map_err(failed)
    };
    let alive = meta("alive")?;
    // Files of before do not say it.
    let in_order = meta("in_order")?.is_none_or(|told| told != 0);
    let reader = Reader::open(directory)?;
    let before = Before {
        last: alive.map(|alive| Last {
            alive: from_micros(alive),
            in_order,
        }),
        findings: reader.last_findings(REMEMBERED)?,
        credentials: reader.last_used(REMEMBERED)?,
    };
    Ok((connection, before))
}

/// A connection for writing, to a file of the known schema.
fn connect(path: &Path) -> Result<Connection, LedgerError> {
    let failed = |source| explain(path, source);
    let mut connection = Connection::open(path).map_err(failed)?;
    connection
        .busy_timeout(Duration::from_secs(2))
        .map_err(failed)?;
    schema::version(&connection, path)?;
    connection
        .execute_batch(
            "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -4096;",
        )
        .map_err(failed)?;
    schema::migrate(&mut connection, path)?;
    // What a statement sorts stays in memory: a container may have nowhere else to put it. Steps of
    // a migration may have more.
    connection
        .execute_batch("PRAGMA temp_store = MEMORY;")
        .map_err(failed)?;
    for suffix in ["", "-wal", "-shm"] {
        reserve(Path::new(&format!("{}{suffix}", path.display())));
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(|source| {
        LedgerError::Directory {
            path: path.to_owned(),
            source,
        }
    })?;
    Ok(connection)
}

/// Moves a damaged ledger out of the way, with its log; gives the gap to be noted in the new one.
fn set_aside(path: &Path, reason: &str) -> Result<Gap, LedgerError> {
    let now = Timestamp::now();
    let aside = format!("{}.damaged-{}", path.display(), now.as_second());
    for suffix in ["", "-wal", "-shm"] {
        let from = format!("{}{suffix}", path.display());
        match fs::rename(&from, format!("{aside}{suffix}")) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(LedgerError::Directory {
                    path: from.into(),
                    source,
                });
            }
            _ => {}
        }
    }
    tracing::error!(
        aside,
        reason,
        "the ledger is damaged; it was set aside, and a new one begins"
    );
    Ok(Gap {
        kind: "ledger-damaged".to_owned(),
        probe: None,
        detail: format!(
            "the ledger was damaged ({reason}) and set aside as {aside}: what it held is not in any answer"
        ),
        since: Timestamp::UNIX_EPOCH,
        until: Some(now),
        count: 0,
        blind: false,
    })
}

/// Looks through the whole file, in a thread of its own, as that takes long at a large size; what is wrong
/// with it arrives, or nothing.
fn look_for_damage(path: &Path) -> std::io::Result<Receiver<String>> {
    let (tell, told) = std::sync::mpsc::channel();
    let path = path.to_owned();
    std::thread::Builder::new()
        .name("ledger-check".to_owned())
        .spawn(move || {
            let verdict = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)
                .and_then(|connection| {
                    connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0))
                });
            let reason = match verdict {
                Ok(verdict) if verdict == "ok" => return,
                Ok(verdict) => verdict,
                Err(error) if is_damage(&error) => error.to_string(),
                Err(_) => return,
            };
            let reason = reason.lines().next().unwrap_or_default().to_owned();
            // Nobody listens any more where the agent has ended.
            drop(tell.send(reason));
        })?;
    Ok(told)
}

struct Work {
    connection: Connection,
    path: PathBuf,
    /// What was found to be wrong with the file.
    damage: Receiver<String>,
    tidy: Tidy,
    lost: Arc<AtomicU64>,
    /// Since when nothing could be written, and how much was lost by that.
    lost_since: Option<(Timestamp, u64)>,
    /// Why a new file is to be begun, where that has failed so far.
    to_begin: Option<String>,
    /// The agent is alive, and not only trying to be.
    started: bool,
    /// It has started, and that is still to be written.
    starting: bool,
}

impl Work {
    fn run(mut self, entries: &Receiver<Entry>) {
        let mut batch = Vec::new();
        loop {
            let open = gather(entries, &mut batch);
            let damage = self.damage.try_recv().ok();
            if let Some(reason) = self.to_begin.take().or(damage) {
                self.begin_anew(&reason);
            }
            self.write(&batch);
            batch.clear();
            let now = Moment::now();
            if self.tidy.is_due(now)
                && let Err(source) = self.tidy.tidy(&mut self.connection, now)
            {
                let error = explain(&self.path, source);
                tracing::error!(%error, "old records could not be dropped");
            }
            if !open {
                return;
            }
        }
    }

    /// Sets a damaged file aside, and goes on with a new one.
    fn begin_anew(&mut self, reason: &str) -> bool {
        // Whoever closes a file last removes its log by name: before another has that name.
        if let Ok(nothing) = Connection::open_in_memory() {
            self.connection = nothing;
        }
        let begun = set_aside(&self.path, reason).and_then(|gap| {
            let connection = connect(&self.path)?;
            write_gap(&connection, &gap).map_err(|source| explain(&self.path, source))?;
            Ok(connection)
        });
        match begun {
            Ok(connection) => {
                self.connection = connection;
                true
            }
            Err(error) => {
                // Once for an outage.
                if self.lost_since.is_none() {
                    tracing::error!(%error, "no new ledger can be begun; it is tried again");
                }
                self.to_begin = Some(reason.to_owned());
                false
            }
        }
    }

    /// Writes a batch; one that cannot be written is lost, and that is written as soon as it can be.
    fn write(&mut self, batch: &[Entry]) {
        self.starting |= batch.iter().any(|entry| matches!(entry, Entry::Started(_)));
        let lost = self.lost_since.take();
        let gap = lost.map(|(since, count)| {
            Entry::Gap(Box::new(Gap {
                kind: "lost-events".to_owned(),
                probe: None,
                detail: "the ledger could not be written".to_owned(),
                since,
                until: Some(Timestamp::now()),
                count,
                blind: false,
            }))
        });
        let mut written = self.commit(batch, gap.as_ref());
        if let Err(source) = &written
            && is_damage(source)
            && self.begin_anew(&source.to_string())
        {
            written = self.commit(batch, gap.as_ref());
        }
        if let Err(source) = written {
            self.lost.fetch_add(batch.len() as u64, Ordering::Relaxed);
            let (since, before) = lost.unwrap_or((Timestamp::now(), 0));
            self.lost_since = Some((since, before + batch.len() as u64));
            // Once for an outage: a full disk is full for long.
            if lost.is_none() {
                let error = explain(&self.path, source);
                tracing::error!(%error, "records cannot be written; they are lost until they can be");
            }
        }
    }

    fn commit(&mut self, batch: &[Entry], gap: Option<&Entry>) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        if self.starting {
            take_over(&transaction)?;
        }
        for entry in batch.iter().chain(gap) {
            match entry {
                Entry::Use(used) => write_use(&transaction, used)?,
                Entry::Hop(hop, verdict) => write_hop(&transaction, hop, *verdict)?,
                Entry::Mint(mint) => write_mint(&transaction, mint)?,
                Entry::Finding(finding) => write_finding(&transaction, finding)?,
                Entry::Renamed(both) => {
                    let [old, new] = &**both;
                    rename(&transaction, old, new)?;
                }
                Entry::Gap(gap) => write_gap(&transaction, gap)?,
                // Before everything else, and again where that failed.
                Entry::Started(_) => {}
                Entry::End => {
                    transaction
                        .prepare_cached(SET_META)?
                        .execute(params!["in_order", 1])?;
                }
            }
        }
        if self.started || self.starting {
            transaction
                .prepare_cached(SET_META)?
                .execute(params!["alive", micros(Timestamp::now())])?;
        }
        transaction.commit()?;
        self.started |= self.starting;
        self.starting = false;
        Ok(())
    }
}

/// Ends what the agent of before left open.
fn take_over(connection: &Connection) -> rusqlite::Result<()> {
    let alive: Option<i64> = connection
        .query_row("SELECT value FROM meta WHERE name = 'alive'", [], |row| {
            row.get(0)
        })
        .optional()?;
    connection.execute(SET_META, params!["in_order", 0])?;
    // A gap that stood open ended with the agent that had it; this one reports its own.
    connection.execute(
        "UPDATE gap SET until = max(since, ?1) WHERE until IS NULL AND kind <> 'not-covered'",
        [alive.unwrap_or_default()],
    )?;
    connection.execute("DELETE FROM gap WHERE kind = 'not-covered'", [])?;
    Ok(())
}

/// Waits for entries until a batch is due; `false` where no more will come.
fn gather(entries: &Receiver<Entry>, batch: &mut Vec<Entry>) -> bool {
    let end = Instant::now() + BATCH;
    loop {
        match entries.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(entry @ Entry::Started(_)) => {
                // It is waited for.
                batch.push(entry);
                return true;
            }
            Ok(entry) => batch.push(entry),
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        if batch.len() >= QUEUE {
            return true;
        }
    }
}

pub(super) fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "{}".to_owned())
}

fn credential(
    connection: &Connection,
    credential: &Credential,
    time: Timestamp,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO credential VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?11, ?12)
             ON CONFLICT DO UPDATE SET class = ?2, unmarked = ?12, role = ?3, lifetime = ?4, name = coalesce(?5, name),
             owner = coalesce(?6, owner), label = coalesce(?7, label),
             audience = iif(?8 = '[]', audience, ?8), issued_at = coalesce(?9, issued_at),
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
            credential.unmarked,
        ])?;
    Ok(())
}

fn place(connection: &Connection, credential: &Credential, place: &Place) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR IGNORE INTO source VALUES (?1, ?2, ?3)")?
        .execute(params![credential.id.0, place.source.as_str(), place.place])?;
    Ok(())
}

fn write_use(connection: &Connection, used: &Use) -> rusqlite::Result<()> {
    credential(connection, &used.credential, used.time)?;
    place(connection, &used.credential, &used.place)?;
    // Where else it is known was written when it was picked up there.
    if used.place.source != Source::Presented {
        for source in &used.credential.sources {
            place(connection, &used.credential, source)?;
        }
    }
    let workload = workload(connection, &used.workload, &used.process)?;
    let process = process(connection, &used.process, used.time)?;
    let (count, time) = (used.count as i64, micros(used.time));
    let edge: i64 = connection
        .prepare_cached(
            "INSERT INTO use_edge (credential, workload, source, place, count, first_seen, last_seen, process, modified)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7, ?8)
             ON CONFLICT (credential, workload, source, place) DO UPDATE SET count = count + ?5,
             last_seen = max(last_seen, ?6), first_seen = min(first_seen, ?6),
             process = iif(?6 >= last_seen, ?7, process), modified = coalesce(?8, modified) RETURNING id",
        )?
        .query_row(
            params![
                used.credential.id.0,
                workload,
                used.place.source.as_str(),
                used.place.place,
                count,
                time,
                process,
                used.modified.map(micros),
            ],
            |row| row.get(0),
        )?;
    connection
        .prepare_cached(
            "INSERT INTO use_hour VALUES (?1, ?2, ?3, ?4, ?4, ?5, 0)
             ON CONFLICT DO UPDATE SET count = count + ?3, last_seen = max(last_seen, ?4),
             first_process = iif(?4 < first_seen, ?5, iif(first_process = 0 AND process <> ?5, process, first_process)),
             first_seen = min(first_seen, ?4), process = ?5",
        )?
        .execute(params![edge, hour(used.time), count, time, process])?;
    Ok(())
}

fn write_hop(connection: &Connection, hop: &Hop, verdict: Verdict) -> rusqlite::Result<()> {
    credential(connection, &hop.credential, hop.time)?;
    let workload = workload(connection, &hop.workload, &hop.process)?;
    let destination = place_of(connection, &hop.destination)?;
    let process = process(connection, &hop.process, hop.time)?;
    let time = micros(hop.time);
    let edge: i64 = connection
        .prepare_cached(
            "INSERT INTO hop_edge
             (credential, workload, destination, evidence, verdict, count, first_seen, last_seen, process)
             VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6, ?6, ?7)
             ON CONFLICT (credential, workload, destination, evidence) DO UPDATE SET count = count + 1,
             last_seen = max(last_seen, ?6), first_seen = min(first_seen, ?6), verdict = ?5,
             process = iif(?6 >= last_seen, ?7, process) RETURNING id",
        )?
        .query_row(
            params![
                hop.credential.id.0,
                workload,
                destination,
                hop.evidence.as_str(),
                verdict.as_str(),
                time,
                process,
            ],
            |row| row.get(0),
        )?;
    connection
        .prepare_cached(
            "INSERT INTO hop_hour VALUES (?1, ?2, ?3, 1, ?4, ?4, ?5, 0)
             ON CONFLICT DO UPDATE SET count = count + 1, last_seen = max(last_seen, ?4),
             first_process = iif(?4 < first_seen, ?5, iif(first_process = 0 AND process <> ?5, process, first_process)),
             first_seen = min(first_seen, ?4), verdict = ?3, process = ?5",
        )?
        .execute(params![
            edge,
            hour(hop.time),
            verdict.as_str(),
            time,
            process
        ])?;
    Ok(())
}

/// The row of a process, which is kept as long as an hour says that it was there.
fn process(connection: &Connection, process: &Process, time: Timestamp) -> rusqlite::Result<i64> {
    connection
        .prepare_cached(
            "INSERT INTO process (json, hour) VALUES (?1, ?2)
             ON CONFLICT (json) DO UPDATE SET hour = max(hour, ?2) RETURNING id",
        )?
        .query_row(params![json(process), hour(time)], |row| row.get(0))
}

fn workload(
    connection: &Connection,
    workload: &Workload,
    process: &Process,
) -> rusqlite::Result<i64> {
    let id = interned(
        connection,
        "SELECT id FROM workload WHERE json = ?1",
        "INSERT INTO workload (json, key, exe) VALUES (?1, ?2, ?3)",
        &json(workload),
        &[&workload.key(), &process.exe],
    )?;
    if !is_passing(&process.exe) {
        connection
            .prepare_cached("INSERT OR IGNORE INTO program VALUES (?1, ?2)")?
            .execute(params![process.exe, id])?;
    }
    Ok(id)
}

/// Whether a program is one of many that are never the same again, as what a build makes and runs once.
fn is_passing(exe: &str) -> bool {
    ["/tmp/", "/var/tmp/", "/dev/shm/", "/memfd:"]
        .iter()
        .any(|start| exe.starts_with(start))
}

/// The row of a value that many records share.
pub(super) fn interned(
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

/// A finding without what is told elsewhere: its process, and gaps that are not its own.
fn write_finding(connection: &Connection, finding: &Finding) -> rusqlite::Result<()> {
    let process = match &finding.process {
        Some(known) => process(connection, known, finding.last_seen)?,
        None => 0,
    };
    let mut rest = finding.clone();
    rest.process = None;
    rest.gaps.retain(|gap| gap.blind);
    connection
        .prepare_cached(
            "INSERT INTO finding VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT DO UPDATE SET last_seen = ?6, count = ?7, json = ?8, process = ?9",
        )?
        .execute(params![
            finding.id,
            finding.rule,
            finding.credential.as_ref().map_or("", |known| &known.id.0),
            finding.workload.key(),
            micros(finding.first_seen),
            micros(finding.last_seen),
            finding.count as i64,
            json(&rest),
            process,
        ])?;
    Ok(())
}

/// A gap without an end that is there already goes on; its count grows.
pub(super) fn write_gap(connection: &Connection, gap: &Gap) -> rusqlite::Result<()> {
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
