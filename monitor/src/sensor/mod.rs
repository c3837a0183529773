//! The sensor: loads and attaches the probes, and decodes their records.
//!
//! The only module that uses aya. Its output is [`Observation`].

mod attacher;
pub mod btf;
pub mod capabilities;
pub mod decode;
pub mod doctor;
pub mod effects;
pub mod exclude;
pub mod fields;
mod file_reader;
mod hold;
mod inspector;
mod known_files;
mod ladder;
mod mapped;
mod multi;
pub mod observation;
mod perf;
pub mod report;
pub mod running;
pub mod selftest;
mod skipped_hooks;
mod tracefs;
mod uprobe;
mod uprobe_program;

use crate::{completion, interval::Interval};
pub use attacher::SensorNotice;
use attacher::{AttachRequest, Attacher, NoticeSender};
use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray, RingBuf},
};
use decode::{BootClock, DecodedRecord, decode};
use exclude::ExclusionRules;
use fields::FieldsError;
use hashlink::LruCache;
pub use hold::mount_points;
use httlib_huffman::encoder::table::ENCODE_TABLE;
use inspector::{InspectRequest, Inspector};
use known_files::KnownFiles;
use ladder::{KernelSupport, LADDERS};
use monitor_common::{
    filter::{self, BLOOM_WORDS, bloom_position, inode_key},
    http2::{HALVES, STATES, huffman_table},
    record::{
        COUNTERS, INODE_CREDENTIAL, INODE_IGNORED, InodeKey, Probe, ReadCount, ReadKey, STAGES,
        Stage, WRITE_ONLY_PID,
    },
    scan::CARRIED_MAX,
};
use monitor_core::catalog::kernel_filter::FilterRules;
use monitor_parse::client_hello::HelloAssembler;
use multi::MultiPrograms;
use observation::{FileId, Observation, OpenFileKey, RepeatedOpens};
use report::{RingLoss, SensorReport};
use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};
use thiserror::Error;
use tokio::io::{Interest, unix::AsyncFd};
pub use uprobe::remove_leftovers;
use uprobe_program::UprobePrograms;

static PROBES: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/keytrail-probes"));

/// Why the sensor cannot start.
#[derive(Debug, Error)]
pub enum SensorError {
    #[error("cannot resolve the kernel fields that the probes read: {0}")]
    Fields(#[from] FieldsError),
    #[error(
        "the kernel rejects the maps of the probes: {0}; root or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are needed"
    )]
    Load(#[from] EbpfError),
    #[error("map {name}: {source}")]
    Map {
        name: &'static str,
        source: MapError,
    },
    #[error(
        "map {0} is missing from the probes: the agent and its probes are from different builds"
    )]
    NoMap(&'static str),
    #[error(
        "program {0} is missing from the probes: the agent and its probes are from different builds"
    )]
    NoProgram(&'static str),
    #[error("cannot wait for the ring buffers: {0}")]
    Wait(io::Error),
    #[error("cannot duplicate the descriptor of program {program}: {source}")]
    Descriptor {
        program: &'static str,
        source: io::Error,
    },
    #[error("cannot start the threads for uprobes: {0}")]
    Threads(io::Error),
    #[error("no probe could be attached: {0}")]
    NothingAttached(String),
}

/// A program, and the result of attaching it.
#[derive(Clone, Debug)]
pub struct AttachedProgram {
    pub probe: Probe,
    pub program: &'static str,
    /// The hook, as named by `doctor` and the metrics.
    pub mechanism: String,
    /// Why no hook of its ladder could be used.
    pub error: Option<String>,
    /// What is not observed in that case.
    pub missed: Option<&'static str>,
    /// The hooks above it on its ladder, and why this kernel does not have them.
    pub passed: Vec<String>,
    /// Instructions that the verifier processed, if the kernel reports it (5.16).
    pub instructions: Option<u32>,
}

/// Options for starting the sensor.
#[derive(Debug)]
pub struct SensorOptions<'a> {
    pub key: monitor_common::fingerprint::FingerprintKey,
    pub rules: &'a FilterRules,
    /// The cgroup v2 root, if there is one.
    pub cgroup: Option<&'a Path>,
    pub btf: &'a Path,
    /// Programs to which no uprobe is attached.
    pub exclusion: ExclusionRules,
}

/// The loaded probes.
pub struct Sensor {
    /// Owns the programs and their links: dropping it detaches them.
    _ebpf: Ebpf,
    credential_ring: AsyncFd<RingBuf<MapData>>,
    process_ring: AsyncFd<RingBuf<MapData>>,
    counts: PerCpuArray<MapData, u64>,
    bloom: Array<MapData, [u64; BLOOM_WORDS]>,
    rules: HashMap<MapData, u64, u32>,
    inodes: HashMap<MapData, [u64; 2], u32>,
    reads: HashMap<MapData, [u64; 3], [u64; 2]>,
    losses: HashMap<MapData, [u64; 2], u64>,
    agent: Array<MapData, u32>,
    epoch: Array<MapData, u64>,
    inode_filter: Box<[u64; BLOOM_WORDS]>,
    /// The contents of the inode map. The first ones added are evicted first.
    noted: LruCache<FileId, u32>,
    attached: Vec<AttachedProgram>,
    /// Number of records that could not be decoded.
    undecoded: u64,
    /// Records younger than the last cut, with their time since boot.
    pending: Vec<(u64, Observation)>,
    hellos: HelloAssembler,
    writes: HashMap<MapData, u64, [u64; 4]>,
    writing: Array<MapData, u64>,
    /// Its values are bytes of processes: user space never reads them.
    carried: HashMap<MapData, [u64; 2], [u8; size_of::<u64>() + CARRIED_MAX]>,
    /// Those present at the last sweep.
    waiting: std::collections::HashSet<[u64; 2]>,
    carried_sweep: Interval,
    /// Absent if the kernel does not allow uprobes.
    uprobes: Option<UprobeThreads>,
}

/// The threads that find TLS and attach probes to it.
#[derive(Debug)]
struct UprobeThreads {
    known: KnownFiles,
    inspector: Inspector,
    attacher: Attacher,
    notices: Receiver<SensorNotice>,
}

/// Timeout for attaching to installed libraries; in an emulated machine that takes long.
const INSTALLED_TIMEOUT: Duration = Duration::from_secs(20);

impl UprobeThreads {
    /// Starts the threads, and waits until installed libraries are attached to. Running programs
    /// follow later.
    fn start(programs: UprobePrograms, exclusion: ExclusionRules) -> io::Result<Self> {
        let (report, notices) = channel();
        let reporter = NoticeSender(report);
        let known = KnownFiles::default();
        let attacher = Attacher::start(programs, known.clone(), reporter.clone(), exclusion)?;
        let inspector = Inspector::start(&known, attacher.commands(), &reporter)?;
        // The inspector passes it on to the attacher, after the files it found.
        let (done, waiter) = completion::completion();
        inspector.request(InspectRequest::Installed(done));
        if !waiter.wait_timeout(INSTALLED_TIMEOUT) {
            tracing::warn!(
                "attaching to installed TLS libraries is slow; continuing in the background"
            );
        }
        inspector.request(InspectRequest::Running);
        Ok(Self {
            known,
            inspector,
            attacher,
            notices,
        })
    }

    /// Applies new exclusion rules.
    fn exclude(&self, exclusion: ExclusionRules) {
        self.attacher.send(AttachRequest::Exclude(exclusion));
        // Files excluded before may not be excluded any more.
        self.known.reset_nothing_found();
        self.inspector.request(InspectRequest::Running);
    }

    /// Tells the attacher about forks, execs and exits.
    fn follow(&self, observation: &Observation) {
        let command = match observation {
            Observation::Fork(task) => AttachRequest::Forked {
                parent: task.parent.map_or(0, |parent| parent.pid),
                child: task.subject.pid,
            },
            Observation::Exec(exec) => AttachRequest::Executed {
                pid: exec.task.subject.pid,
            },
            Observation::Exit(task) => AttachRequest::Exited {
                pid: task.subject.pid,
            },
            _ => return,
        };
        self.attacher.send(command);
    }
}

impl std::fmt::Debug for Sensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sensor")
            .field("attached", &self.attached)
            .finish_non_exhaustive()
    }
}

/// Interval between removals of split lines that were not continued.
const CARRIED_SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// After a batch, records accumulate for this long: it limits the wake-ups, and is a tenth of the
/// promised detection latency.
const GATHER_TIME: Duration = Duration::from_millis(5);
/// Interval between checks for newly started processes.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

impl Sensor {
    /// Loads and attaches every probe that this kernel accepts; the rejected ones are in
    /// [`Sensor::attached`].
    pub fn start(options: &SensorOptions<'_>) -> Result<Self, SensorError> {
        let (offsets, prototypes) = fields::resolve_with_types(options.btf)?;
        let key = [options.key.k0, options.key.k1];
        tracefs::ensure_tracefs();
        let uring =
            tracefs::tracepoint_fields("io_uring", "io_uring_complete", [("req", 8), ("res", 4)]);
        let helpers = *ladder::HELPERS;
        let typed = [
            helpers.typed_task[0],
            helpers.typed_task[1],
            helpers.task_of_packet,
        ]
        .map(u32::from);
        let loops = u32::from(helpers.loops);
        let mut ebpf = EbpfLoader::new()
            // The probes have no CO-RE relocations: the kernel's BTF need not be kept in memory.
            .btf(None)
            // The verifier's log costs verifier time and agent memory, so it is requested only for
            // debugging.
            .verifier_log_level(if tracing::enabled!(tracing::Level::DEBUG) {
                VerifierLogLevel::DEBUG
            } else {
                VerifierLogLevel::DISABLE
            })
            .override_global("OFFSETS", &offsets, true)
            .override_global("KEY", &key, true)
            .override_global("URING", &uring, true)
            .override_global("TYPED", &typed, true)
            .override_global("LOOPS", &loops, true)
            .load(PROBES)?;
        // Done while all maps can still be found by name.
        let multi = match uprobe::MECHANISM.as_ref() {
            Ok(uprobe::UprobeMechanism::MultiLink) => MultiPrograms::new(PROBES, &ebpf)
                .inspect_err(|error| tracing::error!(%error, "no multi-uprobe links"))
                .ok(),
            _ => None,
        };
        hold::remember_mounts();
        let types = aya::Btf::from_sys_fs().ok();
        let machine = KernelSupport {
            cgroup: options.cgroup,
            prototypes: &prototypes,
            types,
            lsm: ladder::active_lsms()
                .is_some_and(|list| list.split(',').any(|name| name == "bpf")),
            uring: !uring.contains(&0),
            multi,
        };
        let mut sensor = Self {
            credential_ring: ring(&mut ebpf, "CREDENTIAL_RING")?,
            process_ring: ring(&mut ebpf, "PROCESS_RING")?,
            counts: map(&mut ebpf, "COUNTS")?,
            bloom: map(&mut ebpf, "BLOOM")?,
            rules: map(&mut ebpf, "RULES")?,
            inodes: map(&mut ebpf, "INODES")?,
            reads: map(&mut ebpf, "READS")?,
            losses: map(&mut ebpf, "LOSSES")?,
            agent: map(&mut ebpf, "AGENT")?,
            epoch: map(&mut ebpf, "EPOCH")?,
            inode_filter: Box::new([0; BLOOM_WORDS]),
            noted: LruCache::new(INODE_LIMIT),
            attached: Vec::new(),
            undecoded: 0,
            pending: Vec::new(),
            hellos: HelloAssembler::default(),
            writes: map(&mut ebpf, "PENDING_WRITES")?,
            writing: map(&mut ebpf, "WRITES_PENDING")?,
            carried: map(&mut ebpf, "CARRIED")?,
            waiting: std::collections::HashSet::new(),
            carried_sweep: Interval::new(CARRIED_SWEEP_INTERVAL),
            uprobes: None,
            _ebpf: ebpf,
        };
        sensor.set_rules(options.rules)?;
        sensor.set_huffman()?;
        let programs = sensor.attach(&machine)?;
        drop(machine);
        if !programs.is_empty() {
            let threads = UprobeThreads::start(programs, options.exclusion.clone());
            sensor.uprobes = Some(threads.map_err(SensorError::Threads)?);
        }
        Ok(sensor)
    }

    /// Passes the decoder table for HPACK's Huffman code to the probes.
    fn set_huffman(&mut self) -> Result<(), SensorError> {
        const NAME: &str = "HUFFMAN";
        let failed = |source| SensorError::Map { name: NAME, source };
        let map = self._ebpf.map_mut(NAME).ok_or(SensorError::NoMap(NAME))?;
        let mut huffman: Array<_, [u32; STATES * HALVES]> = map.try_into().map_err(failed)?;
        huffman
            .set(0, huffman_table(&ENCODE_TABLE), 0)
            .map_err(failed)
    }

    /// Why the kernel does not report mapped files, if it does not.
    pub fn mapping_error(&self) -> Option<&str> {
        self.uprobes.as_ref()?.inspector.unreported.as_deref()
    }

    /// Stops examining ingress packets once the last plaintext request is long ago. Called every
    /// second.
    fn close_responses(&mut self) -> Result<(), SensorError> {
        const NAME: &str = "RESPONSES_PENDING";
        /// Seconds within which a response is expected.
        const RESPONSE_TIMEOUT_SECS: u64 = 30;
        let failed = |source| SensorError::Map { name: NAME, source };
        let map = self._ebpf.map_mut(NAME).ok_or(SensorError::NoMap(NAME))?;
        let mut answered: Array<_, u64> = map.try_into().map_err(failed)?;
        match answered.get(&0, 0).map_err(failed)? {
            0 => Ok(()),
            // A request between this read and this write is followed by others, or its response is
            // missed until the next one.
            RESPONSE_TIMEOUT_SECS.. => answered.set(0, 0, 0).map_err(failed),
            seconds => answered.set(0, seconds + 1, 0).map_err(failed),
        }
    }

    /// Removes lines that were split and not continued since the last call.
    fn sweep_carried(&mut self) {
        let there = self.carried.keys().filter_map(Result::ok).collect();
        for object in self.waiting.intersection(&there) {
            // It may have been removed in between.
            let _ = self.carried.remove(object);
        }
        self.waiting = there;
    }

    /// Removes writes that never reached a socket. Called every second.
    fn sweep_writes(&mut self) -> Result<(), SensorError> {
        let failed = |source| SensorError::Map {
            name: "WRITES_PENDING",
            source,
        };
        self.writing.set(0, 0, 0).map_err(failed)?;
        let now = boot_time();
        let writes: Vec<(u64, [u64; 4])> = self.writes.iter().filter_map(Result::ok).collect();
        let mut left = false;
        for (task, [number, ..]) in writes {
            if now.saturating_sub(number) > SETTLED_NS {
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

    /// Tells the probes the addresses of authenticators: responses from there are searched without
    /// a quota.
    fn set_authenticators(&mut self, addresses: &[IpAddr]) -> Result<(), SensorError> {
        const NAME: &str = "AUTHENTICATORS";
        let failed = |source| SensorError::Map { name: NAME, source };
        let map = self._ebpf.map_mut(NAME).ok_or(SensorError::NoMap(NAME))?;
        let mut known: HashMap<_, [u8; 16], u32> = map.try_into().map_err(failed)?;
        let stale: Vec<[u8; 16]> = known.keys().filter_map(Result::ok).collect();
        for key in stale {
            known.remove(&key).map_err(failed)?;
        }
        for address in addresses {
            let key = match address {
                IpAddr::V4(address) => {
                    let mut key = [0; 16];
                    key[..4].copy_from_slice(&address.octets());
                    key
                }
                IpAddr::V6(address) => address.octets(),
            };
            known.insert(key, 1, 0).map_err(failed)?;
        }
        Ok(())
    }

    /// Replaces the rules of the kernel filter. The exact rules are written first, so that a set
    /// bit always finds its rule.
    fn set_rules(&mut self, rules: &FilterRules) -> Result<(), SensorError> {
        let failed = |name| move |source| SensorError::Map { name, source };
        let mut filter = Box::new([0u64; BLOOM_WORDS]);
        let of_process = ["environ", "mem"].map(|name| {
            let name = filter::hash_of_name(name.as_bytes());
            (
                filter::key(filter::FilterKind::Name, name),
                filter::PROCFS_ONLY,
            )
        });
        let wanted: BTreeMap<u64, u32> = rules
            .0
            .iter()
            .map(|(key, value)| (*key, *value))
            .chain(of_process)
            .collect();
        for (key, value) in &wanted {
            self.rules.insert(key, value, 0).map_err(failed("RULES"))?;
            let (word, mask) = bloom_position(*key);
            filter[word] |= mask;
        }
        self.bloom.set(0, *filter, 0).map_err(failed("BLOOM"))?;
        let stale: Vec<u64> = self
            .rules
            .keys()
            .filter_map(Result::ok)
            .filter(|key| !wanted.contains_key(key))
            .collect();
        for key in stale {
            self.rules.remove(&key).map_err(failed("RULES"))?;
        }
        self.begin_epoch()
    }

    /// Attaches every probe; returns the programs for user-space functions, which are attached to
    /// files as they are found.
    fn attach(&mut self, machine: &KernelSupport<'_>) -> Result<UprobePrograms, SensorError> {
        let mut programs = UprobePrograms::new();
        let mut attached = Vec::new();
        for ladder in LADDERS {
            attached.extend(ladder.attach(&mut self._ebpf, machine, &mut programs)?);
        }
        if attached.iter().all(|program| program.error.is_some()) {
            let first = attached.iter().find_map(|program| program.error.clone());
            return Err(SensorError::NothingAttached(first.unwrap_or_default()));
        }
        if attached
            .iter()
            .any(|line| line.probe == Probe::Present && line.error.is_some())
        {
            programs.clear();
        }
        self.attached = attached;
        Ok(programs)
    }

    /// Whether no program reads the environment at exec, so that the agent must read it.
    pub fn environ_is_read(&self) -> bool {
        reads_environ(&self.attached)
    }

    /// Every program, and the result of attaching it.
    pub fn attached(&self) -> &[AttachedProgram] {
        &self.attached
    }

    /// Tells the probes the agent's pid, whose own reads are not reported.
    pub fn set_agent(&mut self, pid: u32) -> Result<(), SensorError> {
        self.agent
            .set(0, pid, 0)
            .map_err(|source| SensorError::Map {
                name: "AGENT",
                source,
            })
    }

    /// Has the probes examine every file again. Called every second, because a directory may have
    /// been renamed.
    fn begin_epoch(&mut self) -> Result<(), SensorError> {
        self.epoch
            .set(0, boot_time(), 0)
            .map_err(|source| SensorError::Map {
                name: "EPOCH",
                source,
            })
    }

    /// Has opens of this file reported regardless of its name.
    fn learn(&mut self, file: FileId) -> Result<(), SensorError> {
        if !self.remember_inode(file, INODE_CREDENTIAL)? {
            return Ok(());
        }
        let (word, mask) = bloom_position(inode_key(file.inode));
        if self.inode_filter[word] & mask == 0 {
            self.inode_filter[word] |= mask;
            self.bloom
                .set(1, *self.inode_filter, 0)
                .map_err(|source| SensorError::Map {
                    name: "BLOOM",
                    source,
                })?;
        }
        self.begin_epoch()
    }

    /// Has opens of this file ignored: only its name looks like a credential's.
    fn ignore(&mut self, file: FileId) -> Result<(), SensorError> {
        self.remember_inode(file, INODE_IGNORED).map(drop)
    }

    /// Stores an entry in the inode map; returns whether it is new. If the map is full, the oldest
    /// entry is removed: that file is matched by name again, and its bit in the filter costs a
    /// lookup.
    fn remember_inode(&mut self, file: FileId, value: u32) -> Result<bool, SensorError> {
        let failed = |source| SensorError::Map {
            name: "INODES",
            source,
        };
        match self.noted.peek_mut(&file) {
            Some(known) if *known == value => return Ok(false),
            Some(known) => *known = value,
            None => {
                if self.noted.len() >= INODE_LIMIT
                    && let Some((oldest, _)) = self.noted.remove_lru()
                {
                    // It may have been removed already.
                    let _ = self.inodes.remove(&inode_words(key_of(oldest)));
                }
                self.noted.insert(file, value);
            }
        }
        self.inodes
            .insert(inode_words(key_of(file)), value, 0)
            .map_err(failed)?;
        Ok(true)
    }

    /// Waits for records, at most for `limit`, and appends them in time order.
    ///
    /// Two rings cannot be read at the same instant. Therefore only records older than a cut, a
    /// little before both reads, are returned; younger ones wait for the next call. Process records
    /// are thus always applied before an event of that process is evaluated, and never those of a
    /// later program it became.
    pub async fn read_observations(
        &mut self,
        limit: Duration,
        into: &mut Vec<Observation>,
    ) -> Result<(), SensorError> {
        if self.pending.is_empty() {
            tokio::select! {
                ready = self.credential_ring.ready(Interest::READABLE) => ready.map_err(SensorError::Wait)?.clear_ready(),
                ready = self.process_ring.ready(Interest::READABLE) => ready.map_err(SensorError::Wait)?.clear_ready(),
                () = tokio::time::sleep(limit) => {}
            }
        }
        // A new program may send its credential within milliseconds: it is inspected before
        // anything else.
        self.drain();
        let gathered = tokio::time::sleep(GATHER_TIME);
        let rest = tokio::time::sleep(POLL_INTERVAL);
        tokio::pin!(gathered, rest);
        loop {
            tokio::select! {
                () = &mut gathered => break,
                () = &mut rest, if !rest.is_elapsed() => {}
                // A forked process may exec within milliseconds, and exit before other records are
                // gathered.
                ready = self.process_ring.ready(Interest::READABLE), if rest.is_elapsed() => {
                    ready.map_err(SensorError::Wait)?.clear_ready();
                    self.drain();
                    rest.as_mut().reset(tokio::time::Instant::now() + POLL_INTERVAL);
                }
            }
        }
        let cut = boot_time().saturating_sub(IN_FLIGHT_NS);
        self.drain();
        let pending = &mut self.pending;
        // Stable: records with equal times keep the order of their ring.
        pending.sort_by_key(|(time, observation)| (*time, sort_rank(observation)));
        let young = pending.partition_point(|(time, _)| *time <= cut);
        into.extend(pending.drain(..young).map(|(_, observation)| observation));
        Ok(())
    }

    /// Reads both rings.
    fn drain(&mut self) {
        let clock = BootClock::now();
        let pending = &mut self.pending;
        for ring in [&mut self.credential_ring, &mut self.process_ring] {
            let ring = ring.get_mut();
            while let Some(item) = ring.next() {
                match decode(&item, clock) {
                    Ok((time, DecodedRecord::Whole(observation))) => {
                        if let Some(uprobes) = &self.uprobes
                            && uprobes.attacher.follows_processes()
                        {
                            uprobes.follow(&observation);
                        }
                        pending.push((time, observation));
                    }
                    Ok((time, DecodedRecord::Payload(piece))) => {
                        let payload = self.hellos.add_piece(piece);
                        pending
                            .extend(payload.map(|payload| (time, Observation::Payload(payload))));
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

    /// Counters since the start, losses and notices since the last call.
    pub fn take_report(&mut self) -> Result<SensorReport, SensorError> {
        let losses = self.take_losses();
        let uprobes = self.uprobes.iter();
        Ok(SensorReport {
            counters: self.counters()?,
            undecoded: self.undecoded,
            losses,
            notices: uprobes
                .flat_map(|uprobes| uprobes.notices.try_iter())
                .collect(),
            silent_since: None,
        })
    }

    /// Does what is due regularly: files are examined again, and what never reached a socket or was
    /// not continued is removed. Called every second.
    pub fn maintain(&mut self) -> Result<(), SensorError> {
        self.begin_epoch()?;
        self.sweep_writes()?;
        self.close_responses()?;
        if self.carried_sweep.is_due() {
            self.sweep_carried();
        }
        Ok(())
    }

    /// Counters since the start, by probe and stage.
    fn counters(&self) -> Result<ProbeCounters, SensorError> {
        let mut counters = ProbeCounters::default();
        for index in 0..COUNTERS {
            let values =
                self.counts
                    .get(&(index as u32), 0)
                    .map_err(|source| SensorError::Map {
                        name: "COUNTS",
                        source,
                    })?;
            counters.0[index] = values.iter().sum();
        }
        Ok(counters)
    }

    /// Returns and clears the losses of the rings, by cgroup and probe.
    fn take_losses(&mut self) -> Vec<RingLoss> {
        let entries: Vec<([u64; 2], u64)> = self.losses.iter().filter_map(Result::ok).collect();
        let mut taken = Vec::new();
        for (key, lost) in entries {
            // What is counted between this read and the removal is still in the total counters.
            let _ = self.losses.remove(&key);
            let (probe, _) = split_address(key[1]);
            let probe = Probe::ALL.into_iter().find(|known| *known as u32 == probe);
            taken.extend(probe.map(|probe| RingLoss {
                cgroup: key[0],
                probe,
                count: lost,
            }));
        }
        taken
    }

    /// Returns and clears the counts of repeated reads that no record reported, and removes
    /// processes that exited.
    pub fn take_repeated_opens(&mut self, into: &mut Vec<Observation>) -> Result<(), SensorError> {
        let clock = BootClock::now();
        let now = boot_time();
        let entries: Vec<([u64; 3], [u64; 2])> = self.reads.iter().filter_map(Result::ok).collect();
        for (key, value) in entries {
            let (key, value) = (read_key(key), read_count(value));
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
            let _ = self.reads.remove(&read_words(key));
        }
        Ok(())
    }
}

fn reads_environ(attached: &[AttachedProgram]) -> bool {
    attached
        .iter()
        .any(|line| line.probe == Probe::Environ && line.program == ladder::ENVIRON_BY_AGENT)
}

/// Maximum number of entries of the inode map that are used.
const INODE_LIMIT: usize = 60_000;
/// A read that was not repeated for this long is removed from the map.
const SETTLED_NS: u64 = 3_000_000_000;

/// A probe takes the time first and sends last: a record can arrive this long after its time.
const IN_FLIGHT_NS: u64 = 2_000_000;

/// Nanoseconds since boot, by the clock that the probes use.
fn boot_time() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// For observations with equal times: process records come first.
fn sort_rank(observation: &Observation) -> u8 {
    match observation {
        Observation::Fork(_) | Observation::Exec(_) => 0,
        Observation::Exit(_) => 2,
        _ => 1,
    }
}

/// Counters of the probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeCounters([u64; COUNTERS]);

impl ProbeCounters {
    pub fn get(&self, probe: Probe, stage: Stage) -> u64 {
        self.0[probe as usize * STAGES + stage as usize]
    }
}

fn key_of(file: FileId) -> InodeKey {
    InodeKey {
        inode: file.inode,
        device: file.device,
        generation: file.generation,
    }
}

fn inode_words(key: InodeKey) -> [u64; 2] {
    [
        key.inode,
        u64::from_ne_bytes({
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&key.device.to_ne_bytes());
            bytes[4..].copy_from_slice(&key.generation.to_ne_bytes());
            bytes
        }),
    ]
}

fn split_address(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    (
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
    )
}

fn read_key([start, inode, rest]: [u64; 3]) -> ReadKey {
    let (pid, device) = split_address(rest);
    ReadKey {
        start,
        inode,
        pid,
        device,
    }
}

fn read_words(key: ReadKey) -> [u64; 3] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&key.pid.to_ne_bytes());
    bytes[4..].copy_from_slice(&key.device.to_ne_bytes());
    [key.start, key.inode, u64::from_ne_bytes(bytes)]
}

fn read_count([sent, rest]: [u64; 2]) -> ReadCount {
    let (count, reserved) = split_address(rest);
    ReadCount {
        sent,
        count,
        reserved,
    }
}

fn map<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, SensorError>
where
    T: TryFrom<aya::maps::Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(SensorError::NoMap(name))?;
    T::try_from(map).map_err(|source| SensorError::Map { name, source })
}

fn ring(ebpf: &mut Ebpf, name: &'static str) -> Result<AsyncFd<RingBuf<MapData>>, SensorError> {
    let ring = map(ebpf, name)?;
    // SAFETY: the descriptor belongs to the map, and stays open as long as the ring that is moved
    // in.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
        .map_err(|error| SensorError::Wait(error.into()))
}

/// The mounted cgroup v2 root, if any.
pub fn cgroup_root() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let point = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
    })
}
