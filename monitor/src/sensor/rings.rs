//! The ring buffers of the probes: records in, observations out in time order.

use super::{
    SensorError, boot_time,
    decode::{BootClock, DecodedRecord, decode},
    maps::open_ring,
    name_mask::NameMask,
    observation::Observation,
};
use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use monitor_parse::client_hello::HelloAssembler;
use std::time::Duration;
use tokio::io::{Interest, unix::AsyncFd};

/// After a batch, records accumulate for this long: it limits the wake-ups, and is a tenth of the
/// promised detection latency.
const GATHER_TIME: Duration = Duration::from_millis(5);
/// Interval between checks for newly started processes.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// A probe takes the time first and sends last: a record can arrive this long after its time.
const IN_FLIGHT_NS: u64 = 2_000_000;

/// The ring buffers.
pub struct Rings {
    credentials: AsyncFd<RingBuf<MapData>>,
    names: AsyncFd<RingBuf<MapData>>,
    processes: AsyncFd<RingBuf<MapData>>,
    /// Records younger than the last cut, with their time since boot.
    pending: Vec<(u64, Observation)>,
    hellos: HelloAssembler,
    pub mask: NameMask,
    /// Number of records that could not be decoded.
    pub undecoded: u64,
}

impl Rings {
    pub fn open(ebpf: &mut Ebpf, mask: NameMask) -> Result<Self, SensorError> {
        Ok(Self {
            credentials: open_ring(ebpf, "CREDENTIAL_RING")?,
            names: open_ring(ebpf, "NAME_RING")?,
            processes: open_ring(ebpf, "PROCESS_RING")?,
            pending: Vec::new(),
            hellos: HelloAssembler::default(),
            mask,
            undecoded: 0,
        })
    }

    /// Waits for records, at most for `limit`, and appends them in time order. With a limit of zero,
    /// it does not wait for more to accumulate either. In a `hurry`, `follow` sees a new process within
    /// a millisecond, which costs a wake-up for each.
    ///
    /// Several rings cannot be read at the same instant. Therefore only records older than a cut, a
    /// little before all reads, are returned; younger ones wait for the next call. Process records
    /// are thus always applied before an event of that process is evaluated, and never those of a
    /// later program it became.
    pub async fn read(
        &mut self,
        limit: Duration,
        hurry: bool,
        follow: impl Fn(&Observation),
        into: &mut Vec<Observation>,
    ) -> Result<(), SensorError> {
        if limit.is_zero() {
            self.take_old(&follow, into);
            return Ok(());
        }
        if self.pending.is_empty() {
            tokio::select! {
                ready = self.credentials.ready(Interest::READABLE) => ready.map_err(SensorError::Wait)?.clear_ready(),
                ready = self.names.ready(Interest::READABLE) => ready.map_err(SensorError::Wait)?.clear_ready(),
                ready = self.processes.ready(Interest::READABLE) => ready.map_err(SensorError::Wait)?.clear_ready(),
                () = tokio::time::sleep(limit) => {}
            }
        }
        // A new program may send its credential within milliseconds: it is inspected before
        // anything else.
        self.drain(&follow);
        let gathered = tokio::time::sleep(GATHER_TIME);
        let rest = tokio::time::sleep(POLL_INTERVAL);
        tokio::pin!(gathered, rest);
        loop {
            tokio::select! {
                () = &mut gathered => break,
                () = &mut rest, if hurry && !rest.is_elapsed() => {}
                // A forked process may exec within milliseconds, and exit before other records are
                // gathered.
                ready = self.processes.ready(Interest::READABLE), if hurry && rest.is_elapsed() => {
                    ready.map_err(SensorError::Wait)?.clear_ready();
                    self.drain(&follow);
                    rest.as_mut().reset(tokio::time::Instant::now() + POLL_INTERVAL);
                }
            }
        }
        self.take_old(&follow, into);
        Ok(())
    }

    /// Reads all rings, and appends what is older than the cut.
    fn take_old(&mut self, follow: &impl Fn(&Observation), into: &mut Vec<Observation>) {
        let cut = boot_time().saturating_sub(IN_FLIGHT_NS);
        self.drain(follow);
        let pending = &mut self.pending;
        // Stable: records with equal times keep the order of their ring.
        pending.sort_by_key(|(time, observation)| (*time, sort_rank(observation)));
        let young = pending.partition_point(|(time, _)| *time <= cut);
        into.extend(pending.drain(..young).map(|(_, observation)| observation));
    }

    /// Reads all rings, the processes last; `follow` sees each observation at once.
    fn drain(&mut self, follow: &impl Fn(&Observation)) {
        let clock = BootClock::now();
        let pending = &mut self.pending;
        for ring in [&mut self.credentials, &mut self.names, &mut self.processes] {
            let ring = ring.get_mut();
            while let Some(item) = ring.next() {
                match decode(&item, clock) {
                    Ok((time, DecodedRecord::Whole(observation))) => {
                        follow(&observation);
                        push_masked(&mut self.mask, (time, observation), pending);
                    }
                    Ok((time, DecodedRecord::Payload(owner, piece))) => {
                        let Some(payload) = self.hellos.add_piece(piece) else {
                            continue;
                        };
                        let observation = Observation::Payload(owner, payload);
                        push_masked(&mut self.mask, (time, observation), pending);
                    }
                    Ok((_, DecodedRecord::Nothing)) => {}
                    Err(error) => {
                        self.undecoded += 1;
                        tracing::warn!(%error, "skipped a probe record");
                    }
                }
            }
        }
    }
}

/// Adds an observation, and the presentations of secrets in its names.
fn push_masked(
    mask: &mut NameMask,
    (time, mut observation): (u64, Observation),
    pending: &mut Vec<(u64, Observation)>,
) {
    let presented = mask.apply(&mut observation);
    pending.push((time, observation));
    pending.extend(presented.into_iter().map(|found| (time, found)));
}

/// For observations with equal times: process records come first.
fn sort_rank(observation: &Observation) -> u8 {
    match observation {
        Observation::Fork(_) | Observation::Exec(_) => 0,
        Observation::Exit(_) => 2,
        _ => 1,
    }
}
