//! Gaps that the pipeline reports about the probes.

use crate::{
    reader::ReadFailure,
    sensor::{
        cost::{ShedNotice, percent},
        report::{ProbeSilence, SilenceReason},
    },
};
use jiff::Timestamp;
use monitor_common::{
    map::{EvictingMap, LimitedMap},
    record::{Probe, Stage},
};
use monitor_core::model::Gap;

/// A gap for records that a probe lost.
pub fn lost_events(
    probe: Probe,
    stage: Stage,
    workload: Option<&str>,
    count: u64,
    since: Timestamp,
    until: Timestamp,
) -> Gap {
    let name = probe.name();
    let detail = match (stage, workload) {
        (Stage::Ring, Some(workload)) => {
            format!("{name} ring buffer overflowed: records of {workload} lost")
        }
        (Stage::Ring, None) => format!("{name} ring buffer overflowed"),
        (Stage::Read | Stage::Sent, _) => {
            format!("the {name} probe could not read some of its data")
        }
    };
    let blind = stage == Stage::Ring;
    lost(Some(probe), detail, blind, count, since, until)
}

/// A gap for records of a workload that came faster than they could be evaluated.
pub fn dropped(
    probe: Probe,
    workload: &str,
    count: u64,
    since: Timestamp,
    until: Timestamp,
) -> Gap {
    let name = probe.name();
    let detail =
        format!("{name} records of {workload} lost: they came faster than they can be evaluated");
    lost(Some(probe), detail, true, count, since, until)
}

/// A gap for what was lost, of a probe or after all of them.
pub fn lost(
    probe: Option<Probe>,
    detail: String,
    blind: bool,
    count: u64,
    since: Timestamp,
    until: Timestamp,
) -> Gap {
    Gap {
        kind: "lost-events".to_owned(),
        probe: probe.map(|probe| probe.name().to_owned()),
        detail,
        since,
        until: Some(until),
        count,
        blind,
    }
}

/// A gap for entries that a full map of the probes refused or evicted.
pub fn full_map(map: LimitedMap, count: u64, since: Timestamp, until: Timestamp) -> Gap {
    let detail = full_map_text(map.name(), map.lost_evidence());
    map_full(detail, map.is_blinding(), count, since, until)
}

/// A gap for entries that the kernel evicted from a map of the probes, although they may have been in
/// use.
pub fn evicted_entries(map: EvictingMap, count: u64, since: Timestamp, until: Timestamp) -> Gap {
    let detail = full_map_text(map.name(), map.lost_evidence());
    map_full(detail, map.is_blinding(), count, since, until)
}

fn full_map_text(name: &str, lost: Option<&str>) -> String {
    let effect = lost.map_or_else(
        || "nothing is missed, but more is examined or reported".to_owned(),
        |lost| format!("not all of these are observed: {lost}"),
    );
    format!("the probes' map `{name}` is full; {effect}")
}

fn map_full(detail: String, blind: bool, count: u64, since: Timestamp, until: Timestamp) -> Gap {
    Gap {
        kind: "map-full".to_owned(),
        probe: None,
        detail,
        since,
        until: Some(until),
        count,
        blind,
    }
}

/// A gap for entries that the agent removed from a table of its own, or did not add.
pub fn full_table(name: &str, count: u64, since: Timestamp, until: Timestamp) -> Gap {
    let missing = match name {
        "known_credentials" => {
            "where such a credential is presented, its name and the place where it was picked up are not told"
        }
        "presented" => {
            "for what is issued on such a connection, it is not told with which credential"
        }
        "connections" => "what is presented on such a connection has no destination",
        "dns_names" => "destinations at such addresses have no name from DNS",
        "pipes" => "who receives a credential through such a pipe is not known to hold it",
        "holdings" => {
            "connections are not told for all credentials that processes held, unless they are presented"
        }
        "findings" => "the counts of such findings begin anew",
        "server_names" => "such a name inside TLS is shown as `?`",
        "file_reads" => "repeated reads of such a file are not counted",
        "file_homes" => "such a file is not recognised under another name",
        "name_mask" => "such a secret is not recognised in the name of a host",
        _ => "the rule of this name knows less of the past",
    };
    let detail = format!("the agent's table `{name}` is full: {missing}");
    map_full(detail, name == "connections", count, since, until)
}

/// A gap for what was turned off to spare the node. Its end is the same gap with an end.
pub fn shed_probe(notice: &ShedNotice) -> Gap {
    let missed = notice.unit.missed();
    let (cost, budget) = (percent(notice.cost), percent(notice.budget));
    Gap {
        kind: "probe-shed".to_owned(),
        probe: Some(notice.unit.probe().name().to_owned()),
        detail: format!(
            "turned off, because the probes cost {cost} % of the node's processors and `inspect.budget` is {budget} %: not observed are {missed}"
        ),
        since: notice.since,
        until: notice.until,
        count: 0,
        blind: notice.until.is_none(),
    }
}

/// A gap for a probe that does not report what the agent does to test it. Its end, once it is heard
/// again, is the same gap with an end.
pub fn silent_probe(silence: &ProbeSilence) -> Gap {
    let name = silence.probe.name();
    let hooks = silence.mechanisms.join(", ");
    let (kind, detail) = match silence.reason {
        SilenceReason::Silent => (
            "probe-silent",
            "does not report what the agent does to test it: it was detached or disabled, or its maps were changed",
        ),
        SilenceReason::Untested => (
            "probe-untested",
            "cannot be tested, because the agent is kept from doing what it must report",
        ),
    };
    // What never could be tested, as without a right, is no news either.
    let is_news = silence.reason == SilenceReason::Silent || silence.was_heard;
    Gap {
        kind: kind.to_owned(),
        probe: Some(name.to_owned()),
        detail: format!("the {name} probe ({hooks}) {detail}"),
        since: silence.since,
        until: silence.until,
        count: 0,
        // Its end is no news.
        blind: is_news && silence.until.is_none(),
    }
}

/// A gap for files, programs and processes that the reader could not read.
pub fn unread(failure: ReadFailure, count: u64, since: Timestamp, until: Timestamp) -> Gap {
    Gap {
        kind: "unread".to_owned(),
        probe: None,
        detail: format!(
            "a file, program or environment was not read, or not completely: {failure}"
        ),
        since,
        until: Some(until),
        count,
        // Nothing at all is read then.
        blind: failure == ReadFailure::NotStarted,
    }
}
