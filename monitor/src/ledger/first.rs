//! Who was new after a time: of a credential that leaked, the first use by anybody who did not use it before.

use super::read::{Event, HopRow, QueryError, Range, Reader};
use crate::model::{Credential, Gap, Workload};
use jiff::Timestamp;
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
    /// The first use or hop of each workload that was new, the earliest first.
    pub new: Vec<Event>,
    /// Hops to destinations that it had not been taken to before, by whomever, the earliest first.
    pub new_destinations: Vec<HopRow>,
    pub gaps: Vec<Gap>,
}

impl Reader {
    pub fn first_use(&self, text: &str, after: Timestamp) -> Result<FirstUse, QueryError> {
        let ids = self.resolve(text)?;
        let all = Range::default();
        let mut hops = self.hops_of(&ids, all)?;
        let mut uses = self.uses_of(&ids, all)?;
        // Who it was that was the first, and not who was the last.
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
        let mut events: Vec<Event> = uses
            .into_iter()
            .map(|row| Event::Use {
                time: row.first_seen,
                row: Box::new(row),
            })
            .collect();
        events.extend(hops.iter().map(|row| Event::Hop {
            time: row.first_seen,
            row: Box::new(row.clone()),
        }));
        events.sort_by_key(Event::time);
        let known: BTreeSet<String> = events
            .iter()
            .filter(|event| event.time() <= after)
            .filter_map(|event| workload(event).map(Workload::key))
            .collect();
        let mut new: BTreeMap<String, Event> = BTreeMap::new();
        for event in events {
            let Some(key) = workload(&event).map(Workload::key) else {
                continue;
            };
            if !known.contains(&key) {
                new.entry(key).or_insert(event);
            }
        }
        let mut new: Vec<Event> = new.into_values().collect();
        new.sort_by_key(Event::time);
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
            gaps: self.gaps(Range::default())?,
        })
    }
}

/// Who did it, of uses and hops.
fn workload(event: &Event) -> Option<&Workload> {
    match event {
        Event::Use { row, .. } => Some(&row.workload),
        Event::Hop { row, .. } => Some(&row.workload),
        Event::Finding { .. } | Event::Gap { .. } => None,
    }
}
