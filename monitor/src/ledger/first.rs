//! First uses after a time: for a leaked credential, the first use by each workload that did not
//! use it before.

use super::read::{LedgerReader, QueryError, TimelineEvent};
use jiff::Timestamp;
use monitor_core::{
    history::{HopRow, TimeRange},
    model::{Credential, Gap, Workload},
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

/// What was new after a time.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FirstUse {
    pub query: &'static str,
    pub after: Timestamp,
    pub credentials: Vec<Credential>,
    /// Workloads that used it before, which are not new.
    pub known: Vec<String>,
    /// The first use or hop of each new workload, the earliest first.
    pub new: Vec<TimelineEvent>,
    /// Hops to destinations where it was not seen before, by any workload, the earliest first.
    pub new_destinations: Vec<HopRow>,
    pub gaps: Vec<Gap>,
}

impl LedgerReader {
    pub fn first_use(&self, text: &str, after: Timestamp) -> Result<FirstUse, QueryError> {
        let ids = self.resolve(text)?;
        let all = TimeRange::default();
        let mut hops = self.hops_of(&ids, all)?;
        let mut uses = self.uses_of(&ids, all)?;
        // Shows the process of the first use, not of the last.
        for row in &mut uses {
            let first = self.first_process("use_hour", row.edge, row.first_seen)?;
            if let Some(first) = first {
                row.process = first;
            }
        }
        for row in &mut hops {
            let first = self.first_process("hop_hour", row.edge, row.first_seen)?;
            if let Some(first) = first {
                row.process = first;
            }
        }
        let mut events: Vec<TimelineEvent> = uses
            .into_iter()
            .map(|row| TimelineEvent::Use {
                time: row.first_seen,
                row: Box::new(row),
            })
            .collect();
        events.extend(hops.iter().map(|row| TimelineEvent::Hop {
            time: row.first_seen,
            row: Box::new(row.clone()),
        }));
        events.sort_by_key(TimelineEvent::time);
        let known: BTreeSet<String> = events
            .iter()
            .filter(|event| event.time() <= after)
            .filter_map(|event| workload(event).map(Workload::key))
            .collect();
        let mut new: BTreeMap<String, TimelineEvent> = BTreeMap::new();
        for event in events {
            let Some(key) = workload(&event).map(Workload::key) else {
                continue;
            };
            if !known.contains(&key) {
                new.entry(key).or_insert(event);
            }
        }
        let mut new: Vec<TimelineEvent> = new.into_values().collect();
        new.sort_by_key(TimelineEvent::time);
        hops.sort_by_key(|row| row.first_seen);
        let mut places = BTreeSet::new();
        let new_destinations = hops
            .into_iter()
            .filter(|row| places.insert(row.destination.label()) && row.first_seen > after)
            .collect();
        Ok(FirstUse {
            query: "first-use",
            after,
            credentials: self.credentials(&ids)?,
            known: known.into_iter().collect(),
            new,
            new_destinations,
            gaps: self.gaps(TimeRange::default())?,
        })
    }
}

/// The workload of a use or hop.
fn workload(event: &TimelineEvent) -> Option<&Workload> {
    match event {
        TimelineEvent::Use { row, .. } => Some(&row.workload),
        TimelineEvent::Hop { row, .. } => Some(&row.workload),
        TimelineEvent::Finding { .. } | TimelineEvent::Gap { .. } => None,
    }
}
