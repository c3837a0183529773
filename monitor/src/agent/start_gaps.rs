//! The gaps of a run that exist from its start.

use crate::{
    config::exclude::ExcludePattern,
    ledger::LastShutdown,
    sensor::{
        Sensor,
        decode::BootClock,
        doctor::{excluded, missed, unreported},
    },
};
use jiff::Timestamp;
use monitor_core::{
    model::{Gap, NOT_COVERED},
    trail::TrailEvent,
};

/// The gaps of this run that exist from its start.
pub(super) fn start_gaps(
    sensor: &Sensor,
    exclude: &[ExcludePattern],
    last: Option<LastShutdown>,
    now: Timestamp,
) -> Vec<TrailEvent> {
    let booted = BootClock::now().at(0);
    // If the whole machine went down, the agent was not killed on its own.
    let killed = last.is_some_and(|last| !last.in_order && last.alive > booted);
    let gap = |kind: &str, probe: Option<&str>, detail: String, since, until| TrailEvent::Gap {
        gap: Gap {
            kind: kind.to_owned(),
            probe: probe.map(str::to_owned),
            detail,
            since,
            until,
            count: 0,
            blind: kind == "agent-down" && killed,
        },
    };
    let mut gaps = vec![match last {
        Some(last) => gap(
            "agent-down",
            None,
            format!(
                "the agent was not running{}: only what was still open afterwards is known",
                if killed { ", as it was killed or failed" } else { "" }
            ),
            last.alive.min(now),
            Some(now),
        ),
        None => gap(
            "started-before-agent",
            None,
            "nothing was observed before the agent first started; of running processes, environments, open files and open connections were scanned; what was read and closed before is unknown".to_owned(),
            booted,
            Some(now),
        ),
    }];
    for program in sensor.attached() {
        if let Some(error) = &program.error {
            let mut missing = gap(
                "probe-missing",
                Some(program.probe.name()),
                format!("{}: {error}", program.mechanism),
                now,
                None,
            );
            // A kernel that lacks one of several hooks has a declared gap; one that has none of
            // them is blind.
            let others = sensor.attached().iter();
            if let TrailEvent::Gap { gap } = &mut missing {
                gap.blind = !others
                    .filter(|other| other.probe == program.probe)
                    .any(|other| other.error.is_none());
            }
            gaps.push(missing);
        }
    }
    let mut standing = missed(sensor.attached());
    standing.extend(exclude.iter().map(excluded));
    standing.extend(sensor.mapping_error().map(unreported));
    for known in standing {
        gaps.push(gap(NOT_COVERED, None, known, now, None));
    }
    gaps
}
