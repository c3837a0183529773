//! The gaps of a run that exist from its start.

use crate::{
    config::exclude::ExcludePattern,
    ledger::LastShutdown,
    sensor::{
        AttachedProgram, Sensor,
        decode::BootClock,
        doctor::{NO_UPROBES, excluded, missed, unreported},
    },
};
use jiff::Timestamp;
use monitor_core::{
    model::{Gap, NOT_COVERED},
    trail::TrailEvent,
};

/// When this run, and the machine, started.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunTimes {
    booted: Timestamp,
    now: Timestamp,
}

impl RunTimes {
    pub fn at(now: Timestamp) -> Self {
        Self {
            booted: BootClock::now().at(0),
            now,
        }
    }
}

/// What is not observed on this kernel and with these settings.
pub(super) fn standing_gaps(
    sensor: &Sensor,
    uprobes: bool,
    exclude: &[ExcludePattern],
) -> Vec<String> {
    let mut standing = missed(sensor.attached());
    standing.extend((!uprobes).then(|| NO_UPROBES.to_owned()));
    standing.extend(exclude.iter().map(excluded));
    standing.extend(sensor.mapping_error().map(unreported));
    standing
}

/// The gaps of this run: before it, probes that are not attached, and what is never observed.
pub(super) fn start_gaps(
    attached: &[AttachedProgram],
    standing: Vec<String>,
    last: Option<LastShutdown>,
    times: RunTimes,
) -> Vec<TrailEvent> {
    let mut gaps = vec![gap_before(last, times)];
    let failed = attached.iter().filter_map(|program| {
        let error = program.error.as_ref()?;
        // A kernel that lacks one of several hooks has a declared gap; one that has none of them is
        // blind.
        let works = |other: &AttachedProgram| other.probe == program.probe && other.error.is_none();
        Some(Gap {
            kind: "probe-missing".to_owned(),
            probe: Some(program.probe.name().to_owned()),
            detail: format!("{}: {error}", program.mechanism),
            since: times.now,
            until: None,
            count: 0,
            blind: !attached.iter().any(works),
        })
    });
    gaps.extend(failed);
    gaps.extend(standing.into_iter().map(|detail| Gap {
        kind: NOT_COVERED.to_owned(),
        probe: None,
        detail,
        since: times.now,
        until: None,
        count: 0,
        blind: false,
    }));
    gaps.into_iter()
        .map(|gap| TrailEvent::Gap { gap })
        .collect()
}

/// What was not observed before this run.
fn gap_before(last: Option<LastShutdown>, times: RunTimes) -> Gap {
    let gap = |kind: &str, detail: &str, since: Timestamp, blind: bool| Gap {
        kind: kind.to_owned(),
        probe: None,
        detail: detail.to_owned(),
        since,
        until: Some(times.now),
        count: 0,
        blind,
    };
    let Some(last) = last else {
        return gap(
            "started-before-agent",
            "nothing was observed before the agent first started; of running processes, environments, open files and open connections were scanned; what was read and closed before is unknown",
            times.booted,
            false,
        );
    };
    // If the whole machine went down, the agent was not killed on its own.
    let killed = !last.in_order && last.alive > times.booted;
    let detail = if killed {
        "the agent was not running, as it was killed or failed: only what was still open afterwards is known"
    } else {
        "the agent was not running: only what was still open afterwards is known"
    };
    gap("agent-down", detail, last.alive.min(times.now), killed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use monitor_common::record::Probe;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    const BOOTED: i64 = 1_000;
    const NOW: i64 = 2_000;

    fn gaps(attached: &[AttachedProgram], last: Option<LastShutdown>) -> Vec<Gap> {
        let times = RunTimes {
            booted: at(BOOTED),
            now: at(NOW),
        };
        let events = start_gaps(attached, vec!["QUIC".to_owned()], last, times);
        let gap = |event| match event {
            TrailEvent::Gap { gap } => Some(gap),
            _ => None,
        };
        events.into_iter().filter_map(gap).collect()
    }

    fn program(probe: Probe, error: Option<&str>) -> AttachedProgram {
        AttachedProgram {
            probe,
            program: "test",
            mechanism: "kprobe/test".to_owned(),
            error: error.map(str::to_owned),
            missed: None,
            passed: Vec::new(),
            instructions: None,
        }
    }

    #[test]
    fn the_first_start_knows_nothing_since_boot() {
        let found = &gaps(&[], None)[0];
        assert_eq!(found.kind, "started-before-agent");
        assert_eq!((found.since, found.until), (at(BOOTED), Some(at(NOW))));
    }

    #[test]
    fn only_an_agent_that_was_killed_alone_was_blind() {
        let cases = [
            ("stopped", true, BOOTED + 1, false),
            ("killed", false, BOOTED + 1, true),
            ("down with the machine", false, BOOTED - 1, false),
        ];
        for (what, in_order, alive, blind) in cases {
            let last = LastShutdown {
                in_order,
                alive: at(alive),
            };
            let found = &gaps(&[], Some(last))[0];
            assert_eq!(found.kind, "agent-down", "{what}");
            assert_eq!(found.blind, blind, "{what}");
            assert_eq!(found.since, at(alive), "{what}");
        }
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_gap_from_the_future() {
        let last = LastShutdown {
            in_order: true,
            alive: at(NOW + 500),
        };
        assert_eq!(gaps(&[], Some(last))[0].since, at(NOW));
    }

    #[test]
    fn a_probe_with_another_hook_is_not_blind() {
        let attached = [
            program(Probe::File, Some("not supported")),
            program(Probe::File, None),
            program(Probe::Memory, Some("not supported")),
        ];
        let missing: Vec<(Option<String>, bool)> = gaps(&attached, None)
            .into_iter()
            .filter(|gap| gap.kind == "probe-missing")
            .map(|gap| (gap.probe, gap.blind))
            .collect();
        let expected = [
            (Some("file".to_owned()), false),
            (Some("memory".to_owned()), true),
        ];
        assert_eq!(missing, expected);
    }
}
