//! What happened, oldest first, with gaps in their place.

#[cfg(test)]
use super::IndexCase;
use super::RowList;
use crate::{
    ledger::reader::{LedgerReader, QueryError},
    output::{
        GraphAnswer, TableAnswer,
        dot::DotGraph,
        sections,
        table::{TableBuilder, TableCell, YELLOW, paint},
        times::{local_time, utc_time},
    },
};
use jiff::Timestamp;
use monitor_core::{
    history::{HopRow, TimeRange, UseRow},
    model::{Credential, Finding, Gap, NOT_COVERED},
};
use serde::Serialize;
use std::{collections::BTreeSet, fmt::Write as _};
use utoipa::ToSchema;

/// An event of a timeline.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TimelineEvent {
    Use {
        time: Timestamp,
        #[serde(flatten)]
        row: Box<UseRow>,
    },
    Hop {
        time: Timestamp,
        #[serde(flatten)]
        row: Box<HopRow>,
    },
    Finding {
        time: Timestamp,
        finding: Box<Finding>,
    },
    Gap {
        time: Timestamp,
        gap: Gap,
    },
}

impl TimelineEvent {
    pub fn time(&self) -> Timestamp {
        match self {
            Self::Use { time, .. }
            | Self::Hop { time, .. }
            | Self::Finding { time, .. }
            | Self::Gap { time, .. } => *time,
        }
    }
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Timeline {
    pub query: &'static str,
    pub events: Vec<TimelineEvent>,
    /// The range contains older events that are not shown: choose a smaller one.
    pub older: bool,
    pub gaps: Vec<Gap>,
}

/// Maximum events of a timeline; the newest are kept.
const EVENTS_MAX: usize = 10_000;

impl LedgerReader {
    /// What happened, oldest first, with gaps in their place.
    pub fn timeline(
        &self,
        credential: Option<&str>,
        workload: Option<&str>,
        range: TimeRange,
    ) -> Result<Timeline, QueryError> {
        let ids = credential.map(|text| self.resolve(text)).transpose()?;
        let rows = workload.map(|text| self.workloads_by(text)).transpose()?;
        let keys: Option<BTreeSet<String>> = rows
            .as_ref()
            .map(|rows| rows.iter().map(|(_, workload)| workload.key()).collect());
        let row_ids: Option<Vec<i64>> = rows
            .as_ref()
            .map(|rows| rows.iter().map(|(row, _)| *row).collect());
        let (ids, row_ids) = (ids.as_deref(), row_ids.as_deref());
        // By hour, as stored; one more than shown.
        let uses = self.newest_hours::<UseRow>(ids, row_ids, range, EVENTS_MAX + 1)?;
        let uses = uses.into_iter().map(|row| TimelineEvent::Use {
            time: range.first_inside(row.first_seen, row.last_seen),
            row: Box::new(row),
        });
        let hops = self.newest_hours::<HopRow>(ids, row_ids, range, EVENTS_MAX + 1)?;
        let hops = hops.into_iter().map(|row| TimelineEvent::Hop {
            time: range.first_inside(row.first_seen, row.last_seen),
            row: Box::new(row),
        });
        let mut events: Vec<TimelineEvent> = uses.chain(hops).collect();
        let about = |finding: &Finding| match (ids, &finding.credential) {
            (Some(ids), Some(credential)) => ids.contains(&credential.id),
            (ids, _) => ids.is_none(),
        };
        events.extend(
            self.findings_in(range)?
                .into_iter()
                .filter(about)
                .filter(|finding| {
                    keys.as_ref()
                        .is_none_or(|keys| keys.contains(&finding.workload.key()))
                })
                .map(|finding| TimelineEvent::Finding {
                    time: finding.first_seen,
                    finding: Box::new(finding),
                }),
        );
        let gaps = self.gaps(range)?;
        events.extend(gaps.iter().cloned().map(|gap| TimelineEvent::Gap {
            time: gap.since,
            gap,
        }));
        events.sort_by_key(TimelineEvent::time);
        let surplus = events.len().saturating_sub(EVENTS_MAX);
        events.drain(..surplus);
        Ok(Timeline {
            query: "timeline",
            events,
            older: surplus > 0,
            gaps,
        })
    }
}

impl TableAnswer for Timeline {
    fn table(&self) -> String {
        let mut out = String::new();
        let mut rows =
            TableBuilder::new(&["TIME", "UTC", "WHAT", "CREDENTIAL", "WORKLOAD", "DETAIL"]);
        for event in &self.events {
            let time = event.time();
            let cells: [TableCell; 4] = match event {
                TimelineEvent::Use { row, .. } => [
                    "use".to_owned().into(),
                    row.credential.to_string().into(),
                    row.workload.label().into(),
                    format!(
                        "{} {} × {}",
                        row.source,
                        row.place,
                        sections::count_text(row.count, row.partial)
                    )
                    .into(),
                ],
                TimelineEvent::Hop { row, .. } => [
                    "hop".to_owned().into(),
                    row.credential.to_string().into(),
                    row.workload.label().into(),
                    sections::hop_detail(row).then(&format!(
                        " × {}",
                        sections::count_text(row.count, row.partial)
                    )),
                ],
                TimelineEvent::Finding { finding, .. } => [
                    "finding".to_owned().into(),
                    finding
                        .credential
                        .as_ref()
                        .map_or_else(String::new, |known| known.id.to_string())
                        .into(),
                    finding.workload.label().into(),
                    TableCell::from(format!("{} ", finding.rule))
                        .then_painted(
                            sections::severity_style(finding.severity),
                            finding.severity.as_str(),
                        )
                        .then(&format!(" × {}", finding.count)),
                ],
                TimelineEvent::Gap { gap, .. } if gap.kind == NOT_COVERED => continue,
                TimelineEvent::Gap { gap, .. } => [
                    TableCell::painted(YELLOW, "gap"),
                    String::new().into(),
                    String::new().into(),
                    format!("{}: {}", gap.kind, sections::shorten(&gap.detail)).into(),
                ],
            };
            let times = [local_time(time), utc_time(time)].map(TableCell::from);
            rows.add(times.into_iter().chain(cells));
        }
        if self.older {
            let _ = writeln!(
                out,
                "{}",
                paint(
                    YELLOW,
                    "Earlier events exist: narrow the range with --since and --until."
                )
            );
        }
        rows.show(&mut out);
        sections::gaps(&mut out, &self.gaps);
        out
    }
}

impl GraphAnswer for Timeline {
    fn graph(&self) -> String {
        let mut graph = DotGraph::default();
        draw_events(&mut graph, &self.events, &[]);
        graph.gaps(&self.gaps);
        graph.show()
    }
}

/// The uses and hops of events.
pub(super) fn draw_events(graph: &mut DotGraph, events: &[TimelineEvent], all: &[Credential]) {
    for event in events {
        match event {
            TimelineEvent::Use { row, .. } => graph.uses(std::slice::from_ref(row), all),
            TimelineEvent::Hop { row, .. } => graph.hops(std::slice::from_ref(row), all),
            TimelineEvent::Finding { .. } | TimelineEvent::Gap { .. } => {}
        }
    }
}

impl RowList for Timeline {
    type Row = TimelineEvent;

    fn rows(&mut self) -> &mut Vec<TimelineEvent> {
        &mut self.events
    }
}

/// Its row in the test that answers come from an index.
#[cfg(test)]
pub(super) const INDEX_CASE: IndexCase = |sample| {
    for (credential, workload) in [
        (None, None),
        (Some(sample.credential), None),
        (None, Some(sample.workload)),
    ] {
        sample.reader.timeline(credential, workload, sample.range)?;
    }
    Ok(())
};
