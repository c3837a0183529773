//! Converts notices of the uprobe threads to gaps. Their number is bounded, because anyone can
//! create files with functions that cannot be proven.

use crate::sensor::{SensorNotice, WINDOW_INTERVAL};
use jiff::{SignedDuration, Timestamp};
use monitor_common::record::Probe;
use monitor_core::model::Gap;
use std::collections::{HashMap, HashSet};

/// Maximum number of files with gaps of their own.
const NAMED_MAX: usize = 256;

/// Converts notices to gaps.
#[derive(Debug, Default)]
pub struct NoticeGaps {
    named: HashSet<(String, String)>,
    sampled: HashMap<String, SampledProgram>,
    unsearched: Option<UnsearchedRequests>,
}

/// Requests on busy connections outside TLS that are not searched.
#[derive(Debug)]
struct UnsearchedRequests {
    since: Timestamp,
    last: Timestamp,
    count: u64,
}

/// Without further ones for this long, there are no busy connections any more.
const QUIET_TIME: SignedDuration = SignedDuration::from_secs(10);
const UNSEARCHED: &str = "connections with more than 200 requests a second outside TLS are sampled: what is presented on them is counted in part, and one in eight of the further requests is searched; the number is of those that were not";

/// A program with processes that are sampled.
#[derive(Debug)]
struct SampledProgram {
    since: Timestamp,
    processes: u64,
    /// Connections that were not observed.
    unread: u64,
}

impl NoticeGaps {
    /// The gaps of some notices. Each file and reason is reported once; beyond the limit they are
    /// only counted.
    pub fn gaps(&mut self, notices: Vec<SensorNotice>, now: Timestamp) -> Vec<Gap> {
        let mut gaps = Vec::new();
        let (mut more, mut evicted, mut lost, mut unsearched) = (0, 0, 0, 0);
        for notice in notices {
            match notice {
                SensorNotice::NotAttached { file, reason } => {
                    if self.named.len() >= NAMED_MAX {
                        more += 1;
                    } else if self.named.insert((file.clone(), reason.clone())) {
                        let detail = format!(
                            "no TLS probes in {file}: {reason}; credentials that it presents inside TLS are not observed"
                        );
                        gaps.push(gap("tls-not-attached", detail, now, None, 0));
                    }
                }
                SensorNotice::Evicted { file, in_use: true } => {
                    let detail = format!(
                        "TLS probes detached from {file} while it was in use, because the limit of files was reached; credentials that it presents inside TLS are not observed until it is started again"
                    );
                    gaps.push(gap("tls-evicted", detail, now, None, 0));
                }
                SensorNotice::Evicted { in_use: false, .. } => evicted += 1,
                SensorNotice::MappingsLost { count } => lost += count,
                SensorNotice::Unsearched { count } => unsearched += count,
                SensorNotice::Sampled {
                    program,
                    since,
                    unread: None,
                } => gaps.extend(self.begin_sampling(program, since)),
                SensorNotice::Sampled {
                    program,
                    unread: Some(unread),
                    ..
                } => gaps.extend(self.end_sampling(&program, unread, now)),
            }
        }
        if more > 0 {
            let detail = format!(
                "no TLS probes in {more} more files that could not be proven; `keytrail doctor` lists those that are running"
            );
            gaps.push(gap("tls-not-attached", detail, now, None, more));
        }
        if evicted > 0 {
            let detail = format!(
                "TLS probes detached from {evicted} unused files, because the limit of files was reached; they are attached again when they are mapped"
            );
            gaps.push(gap("tls-evicted", detail, now, Some(now), evicted));
        }
        gaps.extend(self.sample_plaintext(unsearched, now));
        if lost > 0 {
            let detail = "records of mapped files were lost: TLS probes may have been attached late to new programs".to_owned();
            gaps.push(gap("lost-events", detail, now, Some(now), lost));
        }
        gaps
    }

    /// The gap of busy connections outside TLS is open as long as there are any.
    fn sample_plaintext(&mut self, unsearched: u64, now: Timestamp) -> Option<Gap> {
        let plaintext_gap = |since, until, count| Gap {
            probe: Some(Probe::Clear.name().to_owned()),
            ..gap("sampled", UNSEARCHED.to_owned(), since, until, count)
        };
        match &mut self.unsearched {
            None if unsearched == 0 => None,
            None => {
                self.unsearched = Some(UnsearchedRequests {
                    since: now,
                    last: now,
                    count: unsearched,
                });
                Some(plaintext_gap(now, None, 0))
            }
            Some(known) if unsearched > 0 => {
                known.last = now;
                known.count += unsearched;
                None
            }
            // The clock may have been set back.
            Some(known) if now.duration_since(known.last).abs() >= QUIET_TIME => {
                let gap = plaintext_gap(known.since, Some(known.last), known.count);
                self.unsearched = None;
                Some(gap)
            }
            Some(_) => None,
        }
    }

    /// The gap of a program is open as long as any of its processes is sampled.
    fn begin_sampling(&mut self, program: String, since: Timestamp) -> Option<Gap> {
        if let Some(sampled) = self.sampled.get_mut(&program) {
            sampled.processes += 1;
            return None;
        }
        if self.sampled.len() >= NAMED_MAX {
            return None;
        }
        let gap = gap("sampled", sampled_text(&program), since, None, 0);
        let sampled = SampledProgram {
            since,
            processes: 1,
            unread: 0,
        };
        self.sampled.insert(program, sampled);
        Some(gap)
    }

    fn end_sampling(&mut self, program: &str, unread: u64, now: Timestamp) -> Option<Gap> {
        let sampled = self.sampled.get_mut(program)?;
        sampled.processes -= 1;
        sampled.unread += unread;
        if sampled.processes > 0 {
            return None;
        }
        let sampled = self.sampled.remove(program)?;
        let text = sampled_text(program);
        Some(gap(
            "sampled",
            text,
            sampled.since,
            Some(now),
            sampled.unread,
        ))
    }
}

fn sampled_text(program: &str) -> String {
    format!(
        "{program} writes so often to TLS that it is sampled: what it presents is counted in part, and a credential may be missed that it presents for less than {} s on connections that were open before; the number is of new connections that were not observed. What is issued to it inside TLS is not observed. Of other programs with the same TLS library, what is presented within milliseconds of their start may be missed",
        WINDOW_INTERVAL.as_secs()
    )
}

fn gap(kind: &str, detail: String, since: Timestamp, until: Option<Timestamp>, count: u64) -> Gap {
    Gap {
        kind: kind.to_owned(),
        probe: Some(Probe::Present.name().to_owned()),
        detail,
        since,
        until,
        count,
        blind: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_once_and_many_are_counted() {
        let unproven = |number: usize| SensorNotice::NotAttached {
            file: format!("/opt/{number}"),
            reason: "go: no module data".to_owned(),
        };
        let mut notices = NoticeGaps::default();
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(notices.gaps(vec![unproven(1), unproven(1)], now).len(), 1);
        assert!(notices.gaps(vec![unproven(1)], now).is_empty());
        let many = notices.gaps((2..1000).map(unproven).collect(), now);
        assert_eq!(many.len(), NAMED_MAX);
        assert_eq!(many.last().map(|gap| gap.count), Some(998 - 255));
    }

    #[test]
    fn busy_connections_are_one_gap_until_there_are_none() {
        let mut notices = NoticeGaps::default();
        let at = |second| Timestamp::from_second(second).expect("a time");
        let busy = |count| vec![SensorNotice::Unsearched { count }];
        assert!(notices.gaps(Vec::new(), at(0)).is_empty());
        let first = notices.gaps(busy(5), at(1));
        assert_eq!((first.len(), first[0].until), (1, None));
        assert!(notices.gaps(busy(7), at(2)).is_empty());
        assert!(notices.gaps(Vec::new(), at(3)).is_empty());
        let last = notices.gaps(Vec::new(), at(12));
        assert_eq!((last[0].until, last[0].count), (Some(at(2)), 12));
        assert!(notices.gaps(Vec::new(), at(30)).is_empty());
    }

    #[test]
    fn a_program_is_sampled_while_any_of_its_processes_is() {
        let mut notices = NoticeGaps::default();
        let (begin, end) = (Timestamp::UNIX_EPOCH, Timestamp::MAX);
        let notice = |unread| SensorNotice::Sampled {
            program: "/usr/sbin/nginx".to_owned(),
            since: begin,
            unread,
        };
        let first = notices.gaps(vec![notice(None), notice(None)], begin);
        assert_eq!((first.len(), first[0].until), (1, None));
        assert!(notices.gaps(vec![notice(Some(2))], end).is_empty());
        let last = notices.gaps(vec![notice(Some(3))], end);
        assert_eq!((last[0].until, last[0].count), (Some(end), 5));
        assert_eq!(last[0].detail, first[0].detail);
        assert_eq!(notices.gaps(vec![notice(None)], begin), first);
    }

    #[test]
    fn evicting_a_file_in_use_is_an_open_gap() {
        let mut notices = NoticeGaps::default();
        let evicted = |in_use| SensorNotice::Evicted {
            file: "/opt/x".to_owned(),
            in_use,
        };
        let gaps = notices.gaps(
            vec![evicted(true), evicted(false), evicted(false)],
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(gaps[0].until, None);
        assert_eq!((gaps[1].until.is_some(), gaps[1].count), (true, 2));
    }
}
