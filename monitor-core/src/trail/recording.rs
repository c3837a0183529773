//! Reading recordings: one event per line.

use super::TrailEvent;
use crate::process_table::ProcessTable;
use serde::Deserialize;
use std::collections::HashSet;
use thiserror::Error;

/// The version of recordings that this release writes. Since version 2, `gone` events say when
/// processes are forgotten; those of 0.1 have no version.
pub const RECORDING_VERSION: u32 = 2;

/// Why a line of a recording cannot be used.
#[derive(Debug, Error)]
pub enum RecordingError {
    #[error("not an event of a recording")]
    Event(#[source] serde_json::Error),
    #[error(
        "a recording of version {0}, and this Keytrail reads versions up to {RECORDING_VERSION}: use the newer Keytrail that wrote it"
    )]
    Newer(u32),
}

/// The version of a recording, whatever else its header says.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum RecordingHeader {
    Recording { version: u32 },
}

/// Reads a recording, line by line.
#[derive(Debug)]
pub struct RecordingReader {
    /// The processes of a recording that does not say when they are forgotten.
    processes: Option<ProcessTable<()>>,
}

impl Default for RecordingReader {
    fn default() -> Self {
        Self {
            processes: Some(ProcessTable::default()),
        }
    }
}

impl RecordingReader {
    /// The event of a line, and after it what an older recording lacks.
    pub fn read(&mut self, line: &str) -> Result<[Option<TrailEvent>; 2], RecordingError> {
        let event: TrailEvent =
            serde_json::from_str(line).map_err(|error| match serde_json::from_str(line) {
                // A newer header may have more fields.
                Ok(RecordingHeader::Recording { version }) if version > RECORDING_VERSION => {
                    RecordingError::Newer(version)
                }
                _ => RecordingError::Event(error),
            })?;
        if let TrailEvent::Recording { version } = event
            && version > RECORDING_VERSION
        {
            return Err(RecordingError::Newer(version));
        }
        let gone = self.follow(&event);
        Ok([Some(event), gone])
    }

    /// What an older recording lacks after this event.
    fn follow(&mut self, event: &TrailEvent) -> Option<TrailEvent> {
        if let TrailEvent::Recording { .. } = event {
            self.processes = None;
        }
        let processes = self.processes.as_mut()?;
        match event {
            TrailEvent::Fork {
                subject, parent, ..
            }
            | TrailEvent::Exec {
                subject, parent, ..
            } => processes.ensure(*subject, *parent, ()),
            TrailEvent::PickUp(event) => processes.ensure(event.actor.subject, None, ()),
            TrailEvent::Connect { actor, .. } | TrailEvent::Foreign { actor, .. } => {
                processes.ensure(actor.subject, None, ());
            }
            TrailEvent::Exit { time, subject } => processes.exit(*subject, *time),
            TrailEvent::Tick { time } => {
                let subjects = processes.evict_exited(*time, &HashSet::new());
                return (!subjects.is_empty()).then_some(TrailEvent::Gone { subjects });
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Subject;
    use jiff::Timestamp;
    use proptest::prelude::*;

    const FORK: &str =
        r#"{"event":"fork","time":"2026-01-01T00:00:00Z","subject":"7:1","parent":null}"#;

    fn lines(first: Option<&str>) -> Vec<TrailEvent> {
        let subject = Subject { pid: 7, start: 1 };
        let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).expect("in range");
        let written = [
            TrailEvent::Fork {
                time: at(0),
                subject,
                parent: None,
            },
            TrailEvent::Exit {
                time: at(1),
                subject,
            },
            TrailEvent::Tick { time: at(2) },
            TrailEvent::Tick { time: at(30) },
        ];
        let written = written
            .iter()
            .map(|event| serde_json::to_string(event).expect("JSON"));
        let mut reader = RecordingReader::default();
        first
            .map(str::to_owned)
            .into_iter()
            .chain(written)
            .flat_map(|line| reader.read(&line).expect("an event"))
            .flatten()
            .collect()
    }

    #[test]
    fn processes_of_an_old_recording_are_forgotten() {
        let events = lines(None);
        assert!(
            matches!(&events[..], [.., TrailEvent::Tick { .. }, TrailEvent::Gone { subjects }] if subjects.len() == 1),
            "{events:?}"
        );
    }

    #[test]
    fn a_new_recording_contains_its_own_gone_events() {
        let events = lines(Some(r#"{"event":"recording","version":2}"#));
        assert_eq!(events.len(), 5, "{events:?}");
    }

    #[test]
    fn a_recording_of_a_newer_release_is_refused() {
        for header in [
            r#"{"event":"recording","version":3}"#,
            r#"{"event":"recording","version":9,"host":"x"}"#,
        ] {
            let error = RecordingReader::default().read(header).expect_err("newer");
            assert!(error.to_string().contains("newer Keytrail"), "{error}");
        }
    }

    /// A fork record may arrive after what the process did.
    #[test]
    fn a_parent_is_kept_for_a_process_whose_fork_came_late() {
        let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).expect("in range");
        let subject = |pid| Subject { pid, start: 1 };
        let mut reader = RecordingReader::default();
        let mut follow = |event: &TrailEvent| reader.follow(event);
        let fork = |pid, parent: Option<u32>| TrailEvent::Fork {
            time: at(0),
            subject: subject(pid),
            parent: parent.map(subject),
        };
        follow(&fork(1, None));
        follow(&fork(2, None));
        follow(&fork(2, Some(1)));
        let exit = TrailEvent::Exit {
            time: at(1),
            subject: subject(1),
        };
        follow(&exit);
        assert_eq!(follow(&TrailEvent::Tick { time: at(60) }), None);
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused(line in ".{0,200}") {
            drop(RecordingReader::default().read(&line));
        }

        #[test]
        fn any_damaged_event_is_read_or_refused(at in 0usize..FORK.len(), byte in 0u8..128) {
            let mut line = FORK.as_bytes().to_vec();
            line[at] = byte;
            let line = String::from_utf8(line).expect("ASCII");
            drop(RecordingReader::default().read(&line));
        }
    }
}
