//! What the uprobes' threads report, as gaps: bounded, since anyone can make files with functions
//! that cannot be proven.

use crate::{model::Gap, sensor::Notice};
use jiff::Timestamp;
use monitor_common::record::Probe;
use std::collections::HashSet;

/// Files that are named in gaps of their own.
const NAMED_MAX: usize = 256;

/// Turns notices into gaps.
#[derive(Debug, Default)]
pub struct Notices {
    named: HashSet<(String, String)>,
}

impl Notices {
    /// The gaps of some notices. Each file and reason is named once, and what is beyond the limit
    /// is counted.
    pub fn gaps(&mut self, notices: Vec<Notice>, now: Timestamp) -> Vec<Gap> {
        let mut gaps = Vec::new();
        let (mut more, mut evicted, mut lost) = (0, 0, 0);
        for notice in notices {
            match notice {
                Notice::NotAttached { file, reason } => {
                    if self.named.len() >= NAMED_MAX {
                        more += 1;
                    } else if self.named.insert((file.clone(), reason.clone())) {
                        let detail = format!(
                            "no TLS probes in {file}: {reason}; what it presents inside TLS is not seen"
                        );
                        gaps.push(gap("tls-not-attached", detail, now, None, 0));
                    }
                }
                Notice::Evicted { file, in_use: true } => {
                    let detail = format!(
                        "TLS probes detached from {file} while it was in use, as too many files have TLS; what it presents inside TLS is not seen until it is started again"
                    );
                    gaps.push(gap("tls-evicted", detail, now, None, 0));
                }
                Notice::Evicted { in_use: false, .. } => evicted += 1,
                Notice::MappingsLost { count } => lost += count,
            }
        }
        if more > 0 {
            let detail = format!(
                "no TLS probes in {more} more files that could not be proven; `keytrail doctor` names those that run"
            );
            gaps.push(gap("tls-not-attached", detail, now, None, more));
        }
        if evicted > 0 {
            let detail = format!(
                "TLS probes detached from {evicted} files that no process used, as too many files have TLS; they are attached to again when they are mapped"
            );
            gaps.push(gap("tls-evicted", detail, now, Some(now), evicted));
        }
        if lost > 0 {
            let detail = "records of mapped files were lost: what started with TLS inside may have been attached to late".to_owned();
            gaps.push(gap("lost-events", detail, now, Some(now), lost));
        }
        gaps
    }
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
        let unproven = |number: usize| Notice::NotAttached {
            file: format!("/opt/{number}"),
            reason: "go: no module data".to_owned(),
        };
        let mut notices = Notices::default();
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(notices.gaps(vec![unproven(1), unproven(1)], now).len(), 1);
        assert!(notices.gaps(vec![unproven(1)], now).is_empty());
        let many = notices.gaps((2..1000).map(unproven).collect(), now);
        assert_eq!(many.len(), NAMED_MAX);
        assert_eq!(many.last().map(|gap| gap.count), Some(998 - 255));
    }

    #[test]
    fn what_was_evicted_in_use_stays_open() {
        let mut notices = Notices::default();
        let evicted = |in_use| Notice::Evicted {
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
