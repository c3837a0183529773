//! Writes batches in a separate thread, so that the pipeline never waits.

use super::{
    FILE_NAME, LedgerEntry, LedgerError, explain, from_micros, is_damage, micros,
    reader::LedgerReader,
    records::{write_finding, write_hop, write_mint, write_use},
    rename::rename,
    rows::write_gap,
    schema,
    settled::SettledTimes,
    shares::QueueShares,
    tidy::{ClockReading, RetentionTask},
    watch::{LedgerDamage, LedgerWatch},
};
use crate::{
    completion,
    config::settings::RetentionLimits,
    health::{Health, Problem, Pulse},
};
use jiff::Timestamp;
use monitor_core::{
    baseline::KnownUser,
    model::{Credential, Finding, Gap},
};
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params};
use std::{
    fs,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{
            Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel,
        },
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Maximum entries that wait to be written, of which one workload may have half; any more are counted
/// as lost.
const QUEUE_MAX: usize = 8_192;
/// A batch is committed after this time: the most that a `kill -9` can lose.
const BATCH_INTERVAL: Duration = Duration::from_millis(250);
/// A batch of so many entries is committed at once: while it grows, it takes room in the queue.
const BATCH_MAX: usize = QUEUE_MAX / 8;
/// A batch is kept for this time while somebody else has locked the file.
const LOCKED_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum time that one attempt waits for a lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// What the ledger is called among the agent's problems.
const HEALTH: &str = "ledger";
/// Maximum time to wait for the start to be written.
const START_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum findings and credentials restored at start.
const RESTORED_MAX: usize = 4_096;
/// As [`RESTORED_MAX`], of pairs of a credential and a workload.
const USERS_RESTORED_MAX: usize = 16_384;

const SET_META: &str = "INSERT INTO meta VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2";

/// What the previous agent stored, for the one that starts.
#[derive(Debug, Default)]
pub struct PreviousState {
    /// How it ended, if there was one.
    pub last: Option<LastShutdown>,
    /// Its most recent findings, with their counts.
    pub findings: Vec<Finding>,
    /// The most recently used credentials, with their places and first-seen times.
    pub credentials: Vec<(Credential, Timestamp)>,
    /// The workloads that used credentials most recently.
    pub users: Vec<KnownUser>,
    /// Names, and the addresses where credentials went under them.
    pub names: Vec<(String, IpAddr)>,
}

/// How an agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastShutdown {
    /// Until when everything that it observed was written.
    pub alive: Timestamp,
    /// It stopped in an orderly way.
    pub in_order: bool,
}

/// The pipeline's end of the queue.
#[derive(Debug)]
pub struct LedgerWriter {
    queue: Option<SyncSender<LedgerEntry>>,
    shares: Arc<QueueShares>,
    /// Entries that were queued.
    sent: AtomicU64,
    settled: Arc<SettledTimes>,
    thread: Option<JoinHandle<()>>,
    /// Number of entries that found the queue full or could not be written.
    pub lost: Arc<AtomicU64>,
    /// What happened to the file.
    gaps: Receiver<Gap>,
}

impl LedgerWriter {
    /// Opens the ledger of a state directory, creating both if needed; a damaged one is set aside,
    /// whenever that is noticed. Returns what the previous agent stored.
    pub fn open(
        directory: &Path,
        retention: RetentionLimits,
        health: Health,
    ) -> Result<(Self, PreviousState), LedgerError> {
        let trouble = |source| LedgerError::Directory {
            path: directory.to_owned(),
            source,
        };
        make_directory(directory)?;
        let path = directory.join(FILE_NAME);
        let (connection, before) = match open_and_resume(directory, &path) {
            Err(LedgerError::Damaged { reason, .. }) => {
                let gap = set_aside(&path, &reason)?;
                let begun = open_and_resume(directory, &path)?;
                write_gap(&begun.0, &gap).map_err(|source| explain(&path, source))?;
                begun
            }
            begun => begun?,
        };
        let (queue, entries) = sync_channel(QUEUE_MAX);
        let shares = Arc::new(QueueShares::new(QUEUE_MAX));
        let settled = Arc::new(SettledTimes::default());
        let lost = Arc::new(AtomicU64::new(0));
        let watch = LedgerWatch::start(&path).map_err(trouble)?;
        let (report, gaps) = channel();
        let work = WriterThread {
            connection,
            path,
            watch,
            report,
            health,
            shares: Arc::clone(&shares),
            settled: Arc::clone(&settled),
            received: 0,
            alive: None,
            tidy: RetentionTask::new(
                retention,
                before.last.map(|last| last.alive),
                ClockReading::now(),
            ),
            lost: Arc::clone(&lost),
            lost_since: None,
            locked_since: None,
            to_begin: None,
            starting: false,
        };
        let thread = std::thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || work.run(&entries))
            .map_err(trouble)?;
        let writer = Self {
            queue: Some(queue),
            shares,
            sent: AtomicU64::new(0),
            settled,
            thread: Some(thread),
            lost,
            gaps,
        };
        Ok((writer, before))
    }

    /// Gaps since the last call, because something happened to the file.
    pub fn gaps(&self) -> impl Iterator<Item = Gap> {
        self.gaps.try_iter()
    }

    /// Records that the agent has observed everything since a time, and waits until that is written,
    /// because a kill may come next.
    pub fn started(&self, since: Timestamp) {
        let (written, waiter) = completion::completion();
        self.write(LedgerEntry::Started(since, written));
        // A locked file is written later.
        waiter.wait_timeout(START_TIMEOUT);
    }

    /// Everything that was observed until a time has been queued.
    pub fn settled_until(&self, until: Timestamp) {
        self.settled.mark(self.sent.load(Ordering::Relaxed), until);
    }

    /// Queues an entry; never waits, except for the last one.
    pub fn write(&self, entry: LedgerEntry) {
        let sent = self.queue.as_ref().is_some_and(|queue| match entry {
            LedgerEntry::End => queue.send(entry).is_ok(),
            entry => self.shares.admit(&entry) && self.send(queue, entry),
        });
        let counter = if sent { &self.sent } else { &self.lost };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Queues an entry that was admitted.
    fn send(&self, queue: &SyncSender<LedgerEntry>, entry: LedgerEntry) -> bool {
        match queue.try_send(entry) {
            Ok(()) => true,
            Err(TrySendError::Full(entry) | TrySendError::Disconnected(entry)) => {
                self.shares.release(&[entry]);
                false
            }
        }
    }
}

impl Drop for LedgerWriter {
    /// Writes everything queued.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the ledger thread panicked");
        }
    }
}

/// Makes the state directory if it is missing.
fn make_directory(directory: &Path) -> Result<(), LedgerError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| LedgerError::Directory {
            path: directory.to_owned(),
            source,
        })
}

/// Opens the file, and reads the state of the previous run.
fn open_and_resume(
    directory: &Path,
    path: &Path,
) -> Result<(Connection, PreviousState), LedgerError> {
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
    // Older files do not contain it.
    let in_order = meta("in_order")?.is_none_or(|flag| flag != 0);
    let reader = LedgerReader::open(directory)?;
    let before = PreviousState {
        last: alive.map(|alive| LastShutdown {
            alive: from_micros(alive),
            in_order,
        }),
        findings: reader.last_findings(RESTORED_MAX)?,
        credentials: reader.last_used(RESTORED_MAX)?,
        // Without them, a new user is not found: that is no reason to start without a ledger.
        users: reader
            .last_users(USERS_RESTORED_MAX)
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "the users of credentials in the ledger could not be read");
                Vec::new()
            }),
        names: reader.last_names(RESTORED_MAX).unwrap_or_else(|error| {
            tracing::warn!(%error, "the names of destinations in the ledger could not be read");
            Vec::new()
        }),
    };
    Ok((connection, before))
}

/// A connection for writing, to a file with the current schema.
fn connect(path: &Path) -> Result<Connection, LedgerError> {
    let failed = |source| explain(path, source);
    let mut connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    schema::version(&connection, path)?;
    connection
        .execute_batch(
            "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -4096;",
        )
        .map_err(failed)?;
    schema::migrate(&mut connection, path)?;
    // Sorting happens in memory, because a container may have no other place. Migration steps may
    // use more.
    connection
        .execute_batch("PRAGMA temp_store = MEMORY;")
        .map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(|source| {
        LedgerError::Directory {
            path: path.to_owned(),
            source,
        }
    })?;
    Ok(connection)
}

/// Moves a damaged ledger and its log out of the way; returns the gap to record in the new one.
fn set_aside(path: &Path, reason: &str) -> Result<Gap, LedgerError> {
    if let Some(directory) = path.parent() {
        make_directory(directory)?;
    }
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
        "the ledger is damaged: set it aside and started a new one"
    );
    let detail = format!(
        "the ledger was damaged ({reason}) and set aside as {aside}: its contents are missing from every answer"
    );
    Ok(damaged_gap(detail, false))
}

/// The gap of a ledger whose contents are gone.
fn damaged_gap(detail: String, blind: bool) -> Gap {
    Gap {
        kind: "ledger-damaged".to_owned(),
        probe: None,
        detail,
        since: Timestamp::UNIX_EPOCH,
        until: Some(Timestamp::now()),
        count: 0,
        blind,
    }
}

struct WriterThread {
    connection: Connection,
    path: PathBuf,
    watch: LedgerWatch,
    /// Gaps for the pipeline, which makes findings of them.
    report: Sender<Gap>,
    health: Health,
    shares: Arc<QueueShares>,
    settled: Arc<SettledTimes>,
    /// Entries that have arrived.
    received: u64,
    /// Until when everything observed has arrived, once the agent has started.
    alive: Option<Timestamp>,
    tidy: RetentionTask,
    lost: Arc<AtomicU64>,
    /// Since when writing has failed, and how many entries that has lost.
    lost_since: Option<(Timestamp, u64)>,
    /// Why a new file must be started, if that has failed so far.
    to_begin: Option<LedgerDamage>,
    /// Since when somebody else has had the file locked.
    locked_since: Option<Instant>,
    /// Whether the start is still to be written.
    starting: bool,
}

impl WriterThread {
    fn run(mut self, entries: &Receiver<LedgerEntry>) {
        let mut batch = Vec::new();
        let pulse = Pulse::of_environment("ledger");
        loop {
            pulse.idle();
            let before = batch.len();
            let open = collect_batch(entries, &mut batch);
            self.received += (batch.len() - before) as u64;
            pulse.busy();
            let damage = self.watch.damage.try_recv().ok();
            if let Some(damage) = &damage
                && damage.tampered
            {
                // Whether or not a new one can be begun. The receiver is gone only while the agent
                // stops.
                let detail = format!(
                    "the ledger {} was tampered with ({}): what it contained is missing from every answer",
                    self.path.display(),
                    damage.reason
                );
                let _ = self.report.send(damaged_gap(detail, true));
            }
            if let Some(damage) = self.to_begin.take().or(damage) {
                self.replace_damaged(damage);
            }
            let is_last = !open || batch.len() >= QUEUE_MAX;
            if self.write(&batch, is_last) {
                self.shares.release(&batch);
                batch.clear();
            }
            let now = ClockReading::now();
            if self.tidy.is_due(&self.connection, now)
                && let Err(source) = self.tidy.run(&mut self.connection, now)
            {
                let error = explain(&self.path, source);
                tracing::error!(%error, "cannot drop old records");
            }
            if !open {
                return;
            }
        }
    }

    /// Sets a damaged file aside, and continues with a new one.
    fn replace_damaged(&mut self, damage: LedgerDamage) -> bool {
        // Closing the last connection removes the log by name: do it before a new log has that
        // name.
        if let Ok(nothing) = Connection::open_in_memory() {
            self.connection = nothing;
        }
        let begun =
            set_aside(&self.path, &damage.reason).and_then(|gap| Ok((connect(&self.path)?, gap)));
        match begun {
            Ok((connection, gap)) => {
                self.connection = connection;
                self.watch.renew();
                // What was found in the old one says nothing about the new one.
                while self.watch.damage.try_recv().is_ok() {}
                if let Err(error) = write_gap(&self.connection, &gap) {
                    tracing::warn!(%error, "the new ledger does not say that it is new");
                }
                true
            }
            Err(error) => {
                // Once per outage.
                if self.lost_since.is_none() {
                    tracing::error!(%error, "cannot start a new ledger; retrying");
                }
                self.to_begin = Some(damage);
                false
            }
        }
    }

    /// Writes a batch. Returns `false` if it is to be tried again, because somebody else has locked
    /// the file for less than a minute; `is_last` forbids that. If it fails otherwise the batch is
    /// lost, and the loss is written as soon as possible.
    fn write(&mut self, batch: &[LedgerEntry], is_last: bool) -> bool {
        let start = batch.iter().find_map(|entry| match entry {
            LedgerEntry::Started(since, _) => Some(*since),
            _ => None,
        });
        self.starting |= start.is_some();
        self.alive = self.alive.or(start);
        if let Some(alive) = &mut self.alive {
            *alive = self.settled.take(self.received).unwrap_or(*alive);
        }
        let lost = self.lost_since.take();
        let gap = lost.map(|(since, count)| {
            LedgerEntry::Gap(Box::new(Gap {
                kind: "lost-events".to_owned(),
                probe: None,
                detail: "cannot write to the ledger".to_owned(),
                since,
                until: Some(Timestamp::now()),
                count,
                blind: false,
            }))
        });
        let mut written = self.commit(batch, gap.as_ref());
        if let Err(source) = &written
            && self.to_begin.is_none()
            && is_damage(source)
            && self.replace_damaged(LedgerDamage {
                reason: source.to_string(),
                tampered: false,
            })
        {
            written = self.commit(batch, gap.as_ref());
        }
        let Err(source) = written else {
            self.locked_since = None;
            self.health.clear(HEALTH);
            return true;
        };
        let is_locked = is_locked(&source);
        let error = explain(&self.path, source);
        self.health.set(
            HEALTH,
            Problem {
                text: format!("the ledger cannot be written: {error}"),
                restart_helps: false,
                answers_wrong: true,
            },
        );
        let since = *self.locked_since.get_or_insert_with(Instant::now);
        if is_locked && !is_last && since.elapsed() < LOCKED_TIMEOUT {
            self.lost_since = lost;
            return false;
        }
        self.lost.fetch_add(batch.len() as u64, Ordering::Relaxed);
        let (since, before) = lost.unwrap_or((Timestamp::now(), 0));
        self.lost_since = Some((since, before + batch.len() as u64));
        // Once per outage, because a full disk stays full for long.
        if lost.is_none() {
            tracing::error!(%error, "cannot write records: they are lost until writing succeeds");
        }
        true
    }

    fn commit(&mut self, batch: &[LedgerEntry], gap: Option<&LedgerEntry>) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        if self.starting {
            close_previous_run(&transaction)?;
        }
        for entry in batch.iter().chain(gap) {
            match entry {
                LedgerEntry::Use(used) => write_use(&transaction, used)?,
                LedgerEntry::Hop(hop, verdict) => write_hop(&transaction, hop, *verdict)?,
                LedgerEntry::Mint(mint) => write_mint(&transaction, mint)?,
                LedgerEntry::Finding(finding) => write_finding(&transaction, finding)?,
                LedgerEntry::Renamed(both) => {
                    let [old, new] = &**both;
                    rename(&transaction, old, new)?;
                }
                LedgerEntry::Gap(gap) => write_gap(&transaction, gap)?,
                // Written before everything else, and again if that failed.
                LedgerEntry::Started(..) => {}
                LedgerEntry::End => {
                    transaction
                        .prepare_cached(SET_META)?
                        .execute(params!["in_order", 1])?;
                }
            }
        }
        if let Some(alive) = self.alive {
            transaction
                .prepare_cached(SET_META)?
                .execute(params!["alive", micros(alive)])?;
        }
        transaction.commit()?;
        self.starting = false;
        Ok(())
    }
}

/// Whether somebody else has locked the file.
fn is_locked(error: &rusqlite::Error) -> bool {
    use ErrorCode::{DatabaseBusy, DatabaseLocked};
    matches!(
        error.sqlite_error_code(),
        Some(DatabaseBusy | DatabaseLocked)
    )
}

/// Closes what the previous agent left open.
fn close_previous_run(connection: &Connection) -> rusqlite::Result<()> {
    let alive: Option<i64> = connection
        .query_row("SELECT value FROM meta WHERE name = 'alive'", [], |row| {
            row.get(0)
        })
        .optional()?;
    connection.execute(SET_META, params!["in_order", 0])?;
    // An open gap ended with the agent that reported it; this one reports its own.
    connection.execute(
        "UPDATE gap SET until = max(since, ?1) WHERE until IS NULL AND kind <> 'not-covered'",
        [alive.unwrap_or_default()],
    )?;
    connection.execute("DELETE FROM gap WHERE kind = 'not-covered'", [])?;
    Ok(())
}

/// Waits for entries until a batch is due; returns `false` when no more will come. A batch that could
/// not be written takes what comes until the next attempt.
fn collect_batch(entries: &Receiver<LedgerEntry>, batch: &mut Vec<LedgerEntry>) -> bool {
    let end = Instant::now() + BATCH_INTERVAL;
    let limit = if batch.is_empty() {
        BATCH_MAX
    } else {
        QUEUE_MAX
    };
    loop {
        match entries.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(entry @ LedgerEntry::Started(..)) => {
                // Another thread waits for it.
                batch.push(entry);
                return true;
            }
            Ok(entry) => batch.push(entry),
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        if batch.len() >= limit {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_batch_is_written_at_once_and_one_that_cannot_be_written_grows() {
        let (queue, entries) = sync_channel(QUEUE_MAX);
        let mut batch = Vec::new();
        let mut collect = |count| {
            for _ in 0..count {
                queue.try_send(LedgerEntry::End).expect("there is room");
            }
            assert!(collect_batch(&entries, &mut batch));
            batch.len()
        };
        assert_eq!(collect(BATCH_MAX + 7), BATCH_MAX);
        assert_eq!(collect(0), BATCH_MAX + 7);
        assert_eq!(collect(QUEUE_MAX), QUEUE_MAX);
    }
}
