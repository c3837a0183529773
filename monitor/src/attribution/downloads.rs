//! When programs that download files ran, and for whom: what is written meanwhile may be theirs.

use super::{Attribution, ProcessEntry, program_name};
use jiff::{SignedDuration, Timestamp};
use monitor_core::model::Subject;
use std::collections::VecDeque;

/// Programs that write what a server sends.
const DOWNLOADERS: [&str; 9] = [
    "curl", "wget", "wget2", "aria2c", "lftp", "ftp", "sftp", "scp", "xh",
];
/// A download counts for this time.
const COUNTS_FOR: SignedDuration = SignedDuration::from_mins(10);
/// What was downloaded is unpacked, and made executable, within this time.
const UNPACKED_WITHIN: SignedDuration = SignedDuration::from_secs(30);
/// Maximum downloads that are remembered: scripts make many, each a moment.
const REMEMBERED: usize = 256;
/// Maximum downloads with whose times one program is compared.
const COMPARED: usize = 8;

/// A run of a program that downloads.
#[derive(Debug)]
struct Download {
    process: Subject,
    user: u32,
    began: Timestamp,
    ended: Option<Timestamp>,
}

/// The last downloads.
#[derive(Debug, Default)]
pub(super) struct DownloadTimes(VecDeque<Download>);

impl DownloadTimes {
    fn begin(&mut self, process: Subject, user: u32, began: Timestamp) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(Download {
            process,
            user,
            began,
            ended: None,
        });
    }

    /// A process ended.
    pub fn end(&mut self, process: Subject, now: Timestamp) {
        if let Some(download) = self.0.iter_mut().find(|known| known.process == process) {
            download.ended.get_or_insert(now);
        }
    }

    /// The times in which a user's downloads may have written a program that starts now.
    pub fn times_of(&self, user: u32, now: Timestamp) -> Vec<(Timestamp, Timestamp)> {
        let recent = self.0.iter().rev().filter(|download| {
            let ended = download.ended.unwrap_or(now);
            download.user == user && now.duration_since(ended) < COUNTS_FOR
        });
        let times = recent.map(|download| {
            let ended = download.ended.unwrap_or(now);
            (
                download.began,
                ended.saturating_add(UNPACKED_WITHIN).unwrap_or(ended),
            )
        });
        times.take(COMPARED).collect()
    }
}

impl Attribution {
    /// Notes that a process executes a program that downloads.
    pub(super) fn note_download(&mut self, process: Subject, time: Timestamp) {
        let Some(ProcessEntry { exe, uid, .. }) = self.table.get(process) else {
            return;
        };
        if DOWNLOADERS.contains(&program_name(exe)) {
            let user = *uid;
            self.downloads.begin(process, user, time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).expect("in range")
    }

    #[test]
    fn a_download_counts_for_a_while() {
        let mut downloads = DownloadTimes::default();
        let process = Subject { pid: 1, start: 1 };
        downloads.begin(process, 7, at(0));
        assert_eq!(downloads.times_of(7, at(5)), [(at(0), at(35))], "it runs");
        downloads.end(process, at(10));
        assert_eq!(downloads.times_of(7, at(20)), [(at(0), at(40))]);
        assert_eq!(downloads.times_of(8, at(20)), []);
        assert_eq!(downloads.times_of(7, at(611)), []);
        for pid in 0..1000 {
            downloads.begin(Subject { pid, start: 2 }, 9, at(30));
        }
        assert_eq!(downloads.0.len(), REMEMBERED);
        assert_eq!(downloads.times_of(9, at(31)).len(), COMPARED);
    }
}
