//! Removes from the maps what the probes left there: it is due regularly.

use super::{
    SensorError, boot_time, decode,
    decode::BootClock,
    maps::{Plain, failed, open_map},
    observation::{Observation, OpenFileKey, RepeatedOpens},
};
use crate::interval::Interval;
use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData},
};
use monitor_common::{
    map::{
        CarriedLine, PresentationKey, REPEAT_NS, ReadCount, ReadKey, StreamKey, TlsWrite,
        WRITE_ONLY_PID,
    },
    record::{PlaintextRecord, PresentationRecord, PresentedRecord},
};
use std::{collections::HashSet, time::Duration};
use zerocopy::{FromBytes, IntoBytes};

/// Interval between removals of split lines that were not continued.
const CARRIED_SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// A read that was not repeated for this long is removed from the map.
const SETTLED_NS: u64 = 3_000_000_000;

/// Maps that the probes fill and the agent empties.
pub struct Sweeper {
    reads: HashMap<MapData, Plain<ReadKey>, Plain<ReadCount>>,
    in_tls: HashMap<MapData, Plain<PresentationKey>, Plain<PresentedRecord>>,
    in_plaintext: HashMap<MapData, Plain<PresentationKey>, Plain<PlaintextRecord>>,
    writes: HashMap<MapData, u64, Plain<TlsWrite>>,
    writing: Array<MapData, u64>,
    responses: Array<MapData, u64>,
    /// Its values are bytes of processes: user space never reads them.
    carried: HashMap<MapData, Plain<StreamKey>, [u8; size_of::<CarriedLine>()]>,
    /// Those present at the last sweep.
    waiting: HashSet<Plain<StreamKey>>,
    carried_sweep: Interval,
}

impl Sweeper {
    pub fn open(ebpf: &mut Ebpf) -> Result<Self, SensorError> {
        Ok(Self {
            reads: open_map(ebpf, "READS")?,
            in_tls: open_map(ebpf, "TLS_PRESENTATIONS")?,
            in_plaintext: open_map(ebpf, "PLAINTEXT_PRESENTATIONS")?,
            writes: open_map(ebpf, "PENDING_WRITES")?,
            writing: open_map(ebpf, "WRITES_PENDING")?,
            responses: open_map(ebpf, "RESPONSES_PENDING")?,
            carried: open_map(ebpf, "CARRIED")?,
            waiting: HashSet::new(),
            carried_sweep: Interval::new(CARRIED_SWEEP_INTERVAL),
        })
    }

    /// Removes what never reached a socket or was not continued. Called every second.
    pub fn sweep(&mut self) -> Result<(), SensorError> {
        self.sweep_writes()?;
        self.close_responses()?;
        if self.carried_sweep.is_due() {
            self.sweep_carried();
        }
        Ok(())
    }

    /// Stops examining ingress packets once the last plaintext request is long ago. Called every
    /// second.
    fn close_responses(&mut self) -> Result<(), SensorError> {
        /// Seconds within which a response is expected.
        const RESPONSE_TIMEOUT_SECS: u64 = 30;
        let failed = failed("RESPONSES_PENDING");
        match self.responses.get(&0, 0).map_err(&failed)? {
            0 => Ok(()),
            // A request between this read and this write is followed by others, or its response is
            // missed until the next one.
            RESPONSE_TIMEOUT_SECS.. => self.responses.set(0, 0, 0).map_err(failed),
            seconds => self.responses.set(0, seconds + 1, 0).map_err(failed),
        }
    }

    /// Removes lines that were split and not continued since the last call.
    fn sweep_carried(&mut self) {
        let present = self.carried.keys().filter_map(Result::ok).collect();
        for object in self.waiting.intersection(&present) {
            // It may have been removed in between.
            let _ = self.carried.remove(object);
        }
        self.waiting = present;
    }

    /// Removes writes that never reached a socket.
    fn sweep_writes(&mut self) -> Result<(), SensorError> {
        let failed = failed("WRITES_PENDING");
        self.writing.set(0, 0, 0).map_err(&failed)?;
        let now = boot_time();
        let writes: Vec<(u64, Plain<TlsWrite>)> =
            self.writes.iter().filter_map(Result::ok).collect();
        let mut left = false;
        for (task, Plain(write)) in writes {
            if now.saturating_sub(write.number) > SETTLED_NS {
                // It may have been removed in between.
                let _ = self.writes.remove(&task);
            } else {
                left = true;
            }
        }
        if left {
            self.writing.set(0, 1, 0).map_err(failed)?;
        }
        Ok(())
    }

    /// Returns and clears the counts of presentations that no record reported, and removes those of
    /// connections that have been silent. Called every second.
    pub fn take_repeated_presentations(&mut self, into: &mut Vec<Observation>) {
        let (clock, now) = (BootClock::now(), boot_time());
        let in_tls = take_settled(&mut self.in_tls, now).into_iter();
        into.extend(
            in_tls.map(|record| Observation::Presented(decode::presentation(&record, clock))),
        );
        let plaintext = take_settled(&mut self.in_plaintext, now).into_iter();
        into.extend(
            plaintext.map(|record| Observation::Plaintext(decode::plaintext(&record, clock))),
        );
    }

    /// Returns and clears the counts of repeated reads that no record reported, and removes
    /// processes that exited.
    pub fn take_repeated_opens(&mut self, into: &mut Vec<Observation>) {
        let clock = BootClock::now();
        let now = boot_time();
        let entries: Vec<(Plain<ReadKey>, Plain<ReadCount>)> =
            self.reads.iter().filter_map(Result::ok).collect();
        for (entry, Plain(value)) in entries {
            let key = entry.0;
            if now.saturating_sub(value.sent) < SETTLED_NS {
                continue;
            }
            if value.count > 0 && key.pid & WRITE_ONLY_PID == 0 {
                into.push(Observation::FileRepeated(RepeatedOpens {
                    time: clock.at(now),
                    key: OpenFileKey {
                        subject: decode::subject(key.pid, key.start),
                        device: key.device,
                        inode: key.inode,
                    },
                    count: value.count,
                }));
            }
            // A read between this lookup and the removal loses one count; the next read is sent.
            let _ = self.reads.remove(&entry);
        }
    }
}

/// Removes what was not presented again for a while; returns those with a count, as of now.
fn take_settled<R: PresentationRecord + FromBytes + IntoBytes + 'static>(
    presentations: &mut HashMap<MapData, Plain<PresentationKey>, Plain<R>>,
    now: u64,
) -> Vec<R> {
    let entries: Vec<_> = presentations.iter().filter_map(Result::ok).collect();
    let mut counted = Vec::new();
    for (key, Plain(mut record)) in entries {
        let has_count = record.secret().count > 0;
        // Those without a count are kept longer, so that the next one is counted.
        let least = if has_count { REPEAT_NS } else { SETTLED_NS };
        if now.saturating_sub(*record.time()) < least {
            continue;
        }
        // A presentation between this lookup and the removal loses one count.
        let _ = presentations.remove(&key);
        if has_count {
            *record.time() = now;
            counted.push(record);
        }
    }
    counted
}
