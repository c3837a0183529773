//! The sensor: loads and attaches the probes, and decodes their records.
//!
//! The only module that uses aya. Its output is [`Observation`].

mod agent_processes;
mod attacher;
mod bpf_call;
pub mod btf;
pub mod canary;
pub mod capabilities;
pub mod cost;
mod counters;
pub mod decode;
pub mod doctor;
pub mod effects;
pub mod exclude;
pub mod fields;
mod hits;
mod inspector;
mod kernel_filter;
mod known_files;
mod ladder;
mod map_growth;
mod mapped;
mod maps;
mod multi;
mod name_mask;
pub mod network;
pub mod observation;
mod packet_program;
mod perf;
pub mod report;
mod rings;
pub mod selftest;
mod skipped_hooks;
mod sweeper;
mod tracefs;
mod uprobe;
mod uprobe_program;
mod uprobe_threads;

use crate::reader::{ProcessRegistry, ReaderPool, protocol::ReaderSetup};
use agent_processes::AgentProcessMaps;
use attacher::AttachRequest;
pub use attacher::{SensorNotice, WINDOW_INTERVAL};
use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::{Array, HashMap, MapData, MapError},
    programs::ProgramFd,
};
use canary::canary_function;
use cost::{
    ACCOUNTS, CalledProgram, CostGuard, CostMeter, CostReport, CostSwitches, CostUnit,
    MeasuredProgram, is_uprobe,
};
use counters::KernelCounters;
use exclude::ExclusionRules;
use fields::FieldsError;
use hits::HitCounters;
use httlib_huffman::encoder::table::ENCODE_TABLE;
use kernel_filter::KernelFilter;
use ladder::{HookLadder, KernelSupport, LADDERS, SwitchablePrograms};
use map_growth::MapGrowth;
use maps::{Plain, failed, is_full, open_map};
use monitor_common::{
    fields::FieldOffsets,
    fingerprint::FingerprintKey,
    http2::{HuffmanTable, huffman_table},
    map::{EvictingMap, LimitedMap, PeerAddress},
    record::Probe,
};
use monitor_core::{
    catalog::{Catalog, kernel_filter::FilterRules, secret_marks::SecretMarks},
    model::Subject,
};
use multi::MultiPrograms;
use name_mask::NameMask;
use observation::Observation;
use report::SensorReport;
use rings::Rings;
use std::{
    io,
    net::IpAddr,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use sweeper::Sweeper;
use thiserror::Error;
pub use uprobe::remove_leftovers;
use uprobe_program::UprobePrograms;
use uprobe_threads::UprobeThreads;

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
    #[error("cannot start the threads of the probes: {0}")]
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
    pub key: FingerprintKey,
    pub rules: &'a FilterRules,
    pub catalog: &'a Catalog,
    /// The cgroup v2 root, if there is one.
    pub cgroup: Option<&'a Path>,
    pub btf: &'a Path,
    /// Attach to programs and libraries.
    pub uprobes: bool,
    /// Programs to which no uprobe is attached.
    pub exclusion: ExclusionRules,
    /// What the probes may cost, as a share of the time of all processors; without limit if absent.
    pub budget: Option<f64>,
    /// What readers are started with.
    pub readers: ReaderSetup,
}

/// The loaded probes.
pub struct Sensor {
    /// Owns the programs and their links: dropping it detaches them.
    _ebpf: Ebpf,
    rings: Rings,
    filter: KernelFilter,
    counters: KernelCounters,
    growth: MapGrowth,
    sweeper: Sweeper,
    agents: Arc<AgentProcessMaps>,
    readers: ReaderPool,
    authenticators: HashMap<MapData, Plain<PeerAddress>, u32>,
    attached: Vec<AttachedProgram>,
    /// Owns the links of packet programs.
    cost: Option<CostGuard>,
    /// What it has turned off.
    shed: Vec<CostUnit>,
    /// Absent if the kernel does not allow uprobes.
    uprobes: Option<UprobeThreads>,
}

impl std::fmt::Debug for Sensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sensor")
            .field("attached", &self.attached)
            .finish_non_exhaustive()
    }
}

impl Sensor {
    /// Loads and attaches every probe that this kernel accepts; the rejected ones are in
    /// [`Sensor::attached`].
    pub fn start(options: &SensorOptions<'_>) -> Result<Self, SensorError> {
        let (offsets, prototypes) = fields::resolve_with_types(options.btf)?;
        tracefs::ensure_tracefs();
        let uring =
            tracefs::tracepoint_fields("io_uring", "io_uring_complete", [("req", 8), ("res", 4)]);
        let mut ebpf = load_probes(&options.key, &offsets, &uring)?;
        // Done while all maps can still be found by name.
        let multi = match uprobe::MECHANISM.as_ref() {
            Ok(uprobe::UprobeMechanism::MultiLink) => MultiPrograms::new(PROBES, &ebpf)
                .inspect_err(|error| tracing::error!(%error, "no multi-uprobe links"))
                .ok(),
            _ => None,
        };
        let types = aya::Btf::from_sys_fs().ok();
        let machine = KernelSupport {
            cgroup: options.cgroup,
            prototypes: &prototypes,
            types,
            lsm: ladder::active_lsms()
                .is_some_and(|list| list.split(',').any(|name| name == "bpf")),
            uring: !uring.contains(&0),
            uprobes: options.uprobes,
            multi,
        };
        let agents = Arc::new(AgentProcessMaps::open(&mut ebpf)?);
        let registry: Arc<dyn ProcessRegistry> = Arc::clone(&agents) as _;
        let mut sensor = Self {
            rings: Rings::open(&mut ebpf, NameMask::new(options.key, options.catalog))?,
            filter: KernelFilter::open(&mut ebpf)?,
            counters: KernelCounters::open(&mut ebpf)?,
            growth: MapGrowth::new(processors(), Instant::now()),
            sweeper: Sweeper::open(&mut ebpf)?,
            agents,
            readers: ReaderPool::new(options.readers.clone(), registry),
            authenticators: open_map(&mut ebpf, "AUTHENTICATORS")?,
            attached: Vec::new(),
            cost: None,
            shed: Vec::new(),
            uprobes: None,
            _ebpf: ebpf,
        };
        sensor.filter.set_rules(options.rules)?;
        sensor.set_huffman()?;
        let SwitchablePrograms {
            uprobes, packets, ..
        } = sensor.attach(&machine)?;
        drop(machine);
        let measured = sensor.measured(&uprobes)?;
        let of_files = |line: &AttachedProgram| line.probe == Probe::File && line.error.is_none();
        sensor
            .agents
            .set_file_probe(sensor.attached.iter().any(of_files));
        if !uprobes.is_empty() {
            let marks = Arc::new(SecretMarks::new(options.catalog));
            let hits = HitCounters::open(&mut sensor._ebpf)?;
            let threads = UprobeThreads::start(
                uprobes,
                options.exclusion.clone(),
                &sensor.readers,
                marks,
                hits,
            );
            let threads = threads.map_err(SensorError::Threads)?;
            match canary_function() {
                Ok((file, functions)) => threads.attacher.send(AttachRequest::Canary {
                    file,
                    functions,
                    trap_time: canary::trap_time,
                }),
                Err(error) => {
                    tracing::warn!(%error, "the probes of TLS libraries cannot be tested")
                }
            }
            sensor.uprobes = Some(threads);
        }
        let meter = CostMeter {
            programs: measured,
            runs: open_map(&mut sensor._ebpf, "RUNS")?,
            // Those of the machine: the agent may be limited to a few of them.
            processors: aya::util::online_cpus().map_or(1, |online| online.len().max(1)),
        };
        let mut packets = packets;
        let switches = CostSwitches {
            responses: sensor.called("minted_ingress", "RESPONSE_SEARCH")?,
            plaintext: sensor.called("clear_egress", "PLAINTEXT_SEARCH")?,
            ingress: packets.remove("dns_ingress"),
            egress: packets.remove("hello_egress"),
            attacher: sensor
                .uprobes
                .as_ref()
                .map(|uprobes| uprobes.attacher.commands().clone()),
        };
        let budget = options.budget.unwrap_or(f64::INFINITY);
        let guard = CostGuard::start(meter, switches, budget).map_err(SensorError::Threads)?;
        sensor.cost = Some(guard);
        Ok(sensor)
    }

    /// The programs whose time is measured.
    fn measured(&self, uprobes: &UprobePrograms) -> Result<Vec<MeasuredProgram>, SensorError> {
        let failed = |program| move |source| SensorError::Descriptor { program, source };
        let mut measured = Vec::new();
        // Uprobes are loaded by one of two ways, and are all in the second list.
        let of_kernel = |line: &&AttachedProgram| line.error.is_none() && !is_uprobe(line.program);
        for line in self.attached.iter().filter(of_kernel) {
            let name = line.program;
            let known = |program: &MeasuredProgram| program.name == name;
            let loaded = self
                ._ebpf
                .program(name)
                .and_then(|program| program.fd().ok());
            if let Some(fd) = loaded
                && !measured.iter().any(known)
            {
                let fd = fd.as_fd().try_clone_to_owned().map_err(failed(name))?;
                measured.push(MeasuredProgram { name, fd });
            }
        }
        for (name, program) in uprobes {
            let fd = program.fd.try_clone().map_err(failed(name))?;
            measured.push(MeasuredProgram { name, fd });
        }
        Ok(measured)
    }

    /// A program that others call, if it is loaded.
    fn called(
        &mut self,
        program: &'static str,
        map: &'static str,
    ) -> Result<Option<CalledProgram>, SensorError> {
        let calls = open_map(&mut self._ebpf, map)?;
        let loaded = self
            ._ebpf
            .program(program)
            .and_then(|program| program.fd().ok());
        let copied = loaded.map(ProgramFd::try_clone).transpose();
        let copied = copied.map_err(|source| SensorError::Descriptor { program, source })?;
        Ok(copied.map(|program| CalledProgram { program, calls }))
    }

    /// Programs that run: those that are attached, and not turned off to spare the node.
    pub fn running(&self) -> impl Iterator<Item = &AttachedProgram> + Clone {
        self.attached
            .iter()
            .filter(|line| line.error.is_none() && !self.is_shed(line))
    }

    /// Whether a program is turned off to spare the node.
    pub fn is_shed(&self, line: &AttachedProgram) -> bool {
        self.shed.iter().any(|unit| unit.stops(line.program))
    }

    /// Passes the decoder table for HPACK's Huffman code to the probes.
    fn set_huffman(&mut self) -> Result<(), SensorError> {
        const NAME: &str = "HUFFMAN";
        let map = self._ebpf.map_mut(NAME).ok_or(SensorError::NoMap(NAME))?;
        let mut huffman: Array<_, HuffmanTable> = map.try_into().map_err(failed(NAME))?;
        huffman
            .set(0, huffman_table(&ENCODE_TABLE), 0)
            .map_err(failed(NAME))
    }

    /// Why the kernel does not report mapped files, if it does not.
    pub fn mapping_error(&self) -> Option<&str> {
        self.uprobes.as_ref()?.inspector.unreported.as_deref()
    }

    /// Tells the probes the addresses of authenticators: responses from there are searched without
    /// a quota.
    fn set_authenticators(&mut self, addresses: &[IpAddr]) -> Result<(), SensorError> {
        let failed = failed("AUTHENTICATORS");
        let known = &mut self.authenticators;
        let stale: Vec<Plain<PeerAddress>> = known.keys().filter_map(Result::ok).collect();
        for key in stale {
            known.remove(&key).map_err(&failed)?;
        }
        for address in addresses {
            let key = Plain(PeerAddress::from(*address));
            let inserted = known.insert(key, 1, 0);
            // Responses of those that do not fit are searched within the quota.
            if is_full(&inserted) {
                self.filter.full.add(LimitedMap::Authenticators, 1);
                continue;
            }
            inserted.map_err(&failed)?;
        }
        Ok(())
    }

    /// Attaches every probe; returns the programs for user-space functions, which are attached to
    /// files as they are found.
    fn attach(&mut self, machine: &KernelSupport<'_>) -> Result<SwitchablePrograms, SensorError> {
        let mut programs = SwitchablePrograms::default();
        let mut attached = Vec::new();
        let is_uprobe = |ladder: &&HookLadder| ladder.probe == Probe::Present;
        let multi = machine.multi.as_ref().filter(|_| machine.uprobes);
        std::thread::scope(|scope| {
            let ahead = multi.map(|multi| scope.spawn(|| ladder::load_ahead(multi)));
            for ladder in LADDERS.iter().filter(|ladder| !is_uprobe(ladder)) {
                attached.extend(ladder.attach(&mut self._ebpf, machine, &mut programs)?);
            }
            // If it panicked, each is loaded when it is needed.
            programs.ahead = ahead
                .and_then(|ahead| ahead.join().ok())
                .unwrap_or_default();
            Ok::<_, SensorError>(())
        })?;
        for ladder in LADDERS.iter().filter(|_| machine.uprobes).filter(is_uprobe) {
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
            programs.uprobes.clear();
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

    /// Tells the probes the agent's main process, whose own reads are not reported.
    pub fn set_agent(&self, agent: Subject) {
        self.agents.set_main(agent);
    }

    /// Readers whose processes the probes know.
    pub fn readers(&self) -> &ReaderPool {
        &self.readers
    }

    /// Waits until there are records, at most `limit`; appends the observations in time order.
    pub async fn read_observations(
        &mut self,
        limit: Duration,
        into: &mut Vec<Observation>,
    ) -> Result<(), SensorError> {
        let uprobes = self.uprobes.as_ref();
        let follow = |observation: &Observation| {
            if let Some(uprobes) = uprobes {
                uprobes.follow(observation);
            }
        };
        // Its environment has to be read, or programs attached to it.
        let hurry = reads_environ(&self.attached)
            || uprobes.is_some_and(|uprobes| uprobes.attacher.follows_processes());
        self.rings.read(limit, hurry, follow, into).await
    }

    /// Counters since the start, losses and notices since the last call.
    pub fn take_report(&mut self) -> Result<SensorReport, SensorError> {
        let losses = self.counters.take_losses();
        let (mut cost, mut shed) = (None, Vec::new());
        for report in self.cost.iter().flat_map(|guard| guard.reports.try_iter()) {
            match report {
                CostReport::Measured(share) => cost = Some(share),
                CostReport::Shed(notice) => shed.push(notice),
            }
        }
        for notice in &shed {
            self.shed.retain(|unit| *unit != notice.unit);
            self.shed
                .extend(notice.until.is_none().then_some(notice.unit));
        }
        let unsearched = self.counters.take_unsearched()?;
        let unsearched = (unsearched > 0).then_some(SensorNotice::Unsearched { count: unsearched });
        let uprobes = self.uprobes.iter();
        Ok(SensorReport {
            counters: self.counters.totals()?,
            undecoded: self.rings.undecoded,
            losses,
            notices: uprobes
                .flat_map(|uprobes| uprobes.notices.try_iter())
                .chain(unsearched)
                .collect(),
            reader_failures: self.readers.failures().collect(),
            full_maps: self.counters.full_maps()?.plus(self.filter.full),
            evicted: self
                .growth
                .update(Instant::now(), self.counters.map_growth()?),
            forgotten_secrets: self.rings.mask.forgotten(),
            silences: Vec::new(),
            cost,
            shed,
        })
    }

    /// Does what is due regularly: files are examined again, and what the probes left in the maps is
    /// removed. Called every second.
    pub fn maintain(&mut self) -> Result<(), SensorError> {
        self.filter.begin_epoch()?;
        self.sweeper.sweep()
    }

    /// Returns and clears the counts of presentations that no record reported.
    pub fn take_repeated_presentations(&mut self, into: &mut Vec<Observation>) {
        self.sweeper.take_repeated_presentations(into);
    }

    /// Returns and clears the counts of repeated reads that no record reported, and removes
    /// processes that exited.
    pub fn take_repeated_opens(&mut self, into: &mut Vec<Observation>) {
        self.sweeper.take_repeated_opens(into);
    }
}

/// Loads the probes, with everything that the verifier must know as a constant.
fn load_probes(
    key: &FingerprintKey,
    offsets: &FieldOffsets,
    uring: &[u32; 2],
) -> Result<Ebpf, SensorError> {
    let helpers = *ladder::HELPERS;
    let typed = [
        helpers.typed_task[0],
        helpers.typed_task[1],
        helpers.task_of_packet,
    ]
    .map(u32::from);
    let loops = u32::from(helpers.loops);
    let level = if tracing::enabled!(tracing::Level::DEBUG) {
        VerifierLogLevel::DEBUG
    } else {
        VerifierLogLevel::DISABLE
    };
    let mut loader = EbpfLoader::new();
    for map in EvictingMap::ALL {
        loader.map_max_entries(map.symbol(), map.capacity(processors()));
    }
    Ok(loader
        // The probes have no CO-RE relocations: the kernel's BTF need not be kept in memory.
        .btf(None)
        // The verifier's log costs verifier time and agent memory, so it is requested only for
        // debugging.
        .verifier_log_level(level)
        .override_global("OFFSETS", offsets, true)
        .override_global("KEY", &[key.k0, key.k1], true)
        .override_global("URING", uring, true)
        .override_global("TYPED", &typed, true)
        .override_global("LOOPS", &loops, true)
        .override_global("COUNT_RUNS", &u32::from(!*ACCOUNTS), true)
        .load(PROBES)?)
}

/// Processors for which the kernel reserves entries of maps.
fn processors() -> usize {
    aya::util::nr_cpus().unwrap_or(1)
}

fn reads_environ(attached: &[AttachedProgram]) -> bool {
    attached
        .iter()
        .any(|line| line.probe == Probe::Environ && line.program == ladder::ENVIRON_BY_AGENT)
}

/// Nanoseconds since boot, by the clock that the probes use.
fn boot_time() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
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
