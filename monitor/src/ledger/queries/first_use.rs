//! First uses after a time: for a leaked credential, the first use by each workload that did not use
//! it before.

#[cfg(test)]
use super::IndexCase;
use super::timeline::{TimelineEvent, draw_events};
use crate::{
    ledger::reader::{LedgerReader, QueryError},
    output::{
        GraphAnswer, TableAnswer,
        dot::DotGraph,
        sections,
        table::{STRONG, TableBuilder, paint},
        times::{local_time, utc_time},
    },
};
use jiff::Timestamp;
use monitor_core::{
    history::{HopRow, TimeRange, UseRow},
    model::{Credential, Gap, Workload},
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};
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
        let mut hops = self.edges_of::<HopRow>(&ids, all)?;
        let mut uses = self.edges_of::<UseRow>(&ids, all)?;
        // Shows the process of the first use, not of the last.
        for row in &mut uses {
            let first = self.first_process::<UseRow>(row.edge, row.first_seen)?;
            if let Some(first) = first {
                row.process = first;
            }
        }
        for row in &mut hops {
            let first = self.first_process::<HopRow>(row.edge, row.first_seen)?;
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

impl TableAnswer for FirstUse {
    fn table(&self) -> String {
        let mut out = String::new();
        sections::credential_headings(&mut out, &self.credentials);
        let _ = writeln!(
            out,
            "\nAfter {} ({}); used before by {}",
            local_time(self.after),
            utc_time(self.after),
            sections::first_two(&self.known)
        );
        if self.new.is_empty() {
            out.push_str("No new workload was observed using it.\n");
        } else {
            let mut rows =
                TableBuilder::new(&["TIME", "UTC", "WHAT", "WORKLOAD", "PROCESS", "DETAIL"]);
            for event in &self.new {
                let (what, workload, process, detail) = match event {
                    TimelineEvent::Use { row, .. } => (
                        "use",
                        &row.workload,
                        &row.process,
                        format!("{} {}", row.source, row.place).into(),
                    ),
                    TimelineEvent::Hop { row, .. } => (
                        "hop",
                        &row.workload,
                        &row.process,
                        sections::hop_detail(row),
                    ),
                    TimelineEvent::Finding { .. } | TimelineEvent::Gap { .. } => continue,
                };
                rows.add([
                    local_time(event.time()).into(),
                    utc_time(event.time()).into(),
                    what.to_owned().into(),
                    workload.label().into(),
                    format!("{}[{}]", process.comm, process.pid).into(),
                    detail,
                ]);
            }
            rows.show(&mut out);
        }
        if !self.new_destinations.is_empty() {
            let _ = writeln!(out, "\n{}", paint(STRONG, "New destinations"));
            sections::hop_rows(&mut out, &self.new_destinations);
        }
        sections::gaps(&mut out, &self.gaps);
        out
    }
}

impl GraphAnswer for FirstUse {
    fn graph(&self) -> String {
        let mut graph = DotGraph::default();
        draw_events(&mut graph, &self.new, &self.credentials);
        graph.hops(&self.new_destinations, &self.credentials);
        graph.gaps(&self.gaps);
        graph.show()
    }
}

/// Its row in the test that answers come from an index.
#[cfg(test)]
pub(super) const INDEX_CASE: IndexCase = |sample| {
    sample
        .reader
        .first_use(sample.credential, sample.now)
        .map(drop)
};
