//! Watches the ledger's file from another thread: SQLite goes on with a file that was deleted,
//! replaced or cut.

use super::is_damage;
use rusqlite::{Connection, OpenFlags};
use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    time::Duration,
};

/// Interval between looks at the file.
const INTERVAL: Duration = Duration::from_secs(5);

/// What is wrong with the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LedgerDamage {
    pub reason: String,
    /// Neither SQLite nor a failing disk does this.
    pub tampered: bool,
}

/// The watching thread. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct LedgerWatch {
    renewed: Sender<()>,
    pub damage: Receiver<LedgerDamage>,
}

/// What the file looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LedgerFile {
    device: u64,
    inode: u64,
    len: u64,
}

impl LedgerFile {
    /// It is not opened: a descriptor that is closed would drop SQLite's locks.
    fn look(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
        })
    }
}

impl LedgerWatch {
    /// Starts the thread, which first checks the whole file, because that takes long.
    pub fn start(path: &Path) -> io::Result<Self> {
        let (renewed, renewals) = channel();
        let (report, damage) = channel();
        let path = path.to_owned();
        std::thread::Builder::new()
            .name("ledger-watch".to_owned())
            .spawn(move || watch(&path, &renewals, &report))?;
        Ok(Self { renewed, damage })
    }

    /// There is a new file.
    pub fn renew(&self) {
        // The thread ends only with this value.
        let _ = self.renewed.send(());
    }
}

fn watch(path: &Path, renewals: &Receiver<()>, report: &Sender<LedgerDamage>) {
    let mut known = LedgerFile::look(path).ok();
    let mut found = check(path);
    loop {
        if let Some(damage) = found.take()
            && report.send(damage).is_err()
        {
            return;
        }
        match renewals.recv_timeout(INTERVAL) {
            Ok(()) => known = LedgerFile::look(path).ok(),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                let now = LedgerFile::look(path);
                found = compare(known, &now).or_else(|| {
                    let shorter =
                        matches!((known, &now), (Some(known), Ok(now)) if now.len < known.len / 2);
                    // SQLite makes it shorter as well, when it drops old records, but not so much.
                    shorter.then(|| check(path)).flatten()
                });
                // What is reported once is not reported again.
                known = now.ok();
            }
        }
    }
}

/// What is wrong with a file, by its looks before and now.
fn compare(known: Option<LedgerFile>, now: &io::Result<LedgerFile>) -> Option<LedgerDamage> {
    let known = known?;
    let tampered = |reason: &str| {
        Some(LedgerDamage {
            reason: reason.to_owned(),
            tampered: true,
        })
    };
    match now {
        Err(error) if error.kind() == io::ErrorKind::NotFound => tampered("it was deleted"),
        Err(_) => None,
        Ok(now) if (now.device, now.inode) != (known.device, known.inode) => {
            tampered("it was replaced by another file")
        }
        Ok(now) if now.len == 0 && known.len > 0 => tampered("it was emptied"),
        Ok(_) => None,
    }
}

/// Reads the whole file.
fn check(path: &Path) -> Option<LedgerDamage> {
    let verdict = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).and_then(
        |connection| {
            connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0))
        },
    );
    let reason = match verdict {
        Ok(verdict) if verdict == "ok" => return None,
        Ok(verdict) => verdict,
        Err(error) if is_damage(&error) => error.to_string(),
        Err(_) => return None,
    };
    Some(LedgerDamage {
        reason: reason.lines().next().unwrap_or_default().to_owned(),
        tampered: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_to_a_file() {
        let known = LedgerFile {
            device: 1,
            inode: 2,
            len: 8192,
        };
        let missing = || Err(io::Error::from(io::ErrorKind::NotFound));
        let cases = [
            (Ok(known), None),
            (Ok(LedgerFile { len: 9000, ..known }), None),
            (Ok(LedgerFile { len: 4096, ..known }), None),
            (Ok(LedgerFile { len: 0, ..known }), Some("it was emptied")),
            (
                Ok(LedgerFile { inode: 3, ..known }),
                Some("it was replaced by another file"),
            ),
            (missing(), Some("it was deleted")),
            (Err(io::Error::from(io::ErrorKind::PermissionDenied)), None),
        ];
        for (now, expected) in cases {
            let found = compare(Some(known), &now);
            let reason = found.as_ref().map(|damage| damage.reason.as_str());
            assert_eq!(reason, expected, "{now:?}");
            assert!(found.is_none_or(|damage| damage.tampered));
        }
        assert_eq!(compare(None, &missing()), None, "there was none");
    }
}
