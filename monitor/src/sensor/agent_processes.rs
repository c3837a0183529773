//! The agent's own processes, as the probes know them, and the files that its readers open.

use super::{
    SensorError,
    maps::{Plain, open_map},
};
use crate::{
    observed::file::FileId,
    reader::{KernelOpen, ProcessRegistry},
};
use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use monitor_common::map::{
    AGENT_PROCESSES, AgentProcess, AgentProcesses, READER_OPENS, ReaderOpens, pid_bit,
};
use monitor_core::model::Subject;
use std::{
    os::unix::fs::MetadataExt as _,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The inode number of the initial PID namespace.
const INITIAL_PID_NAMESPACE: u64 = 0xefff_fffc;
/// The entry of the agent's main process.
const MAIN: usize = 0;

/// Whether this process's pid is the one that the probes report.
pub fn in_initial_pid_namespace() -> bool {
    std::fs::metadata("/proc/self/ns/pid").is_ok_and(|ns| ns.ino() == INITIAL_PID_NAMESPACE)
}

/// The maps of the agent's processes.
pub struct AgentProcessMaps(Mutex<RegistryState>);

struct RegistryState {
    agents: Array<MapData, Plain<AgentProcesses>>,
    opened: Array<MapData, Plain<ReaderOpens>>,
    processes: AgentProcesses,
    /// Number of opens by each process that were taken.
    taken: [u64; AGENT_PROCESSES],
    /// Pids are those of the probes, and a probe reports opens.
    reports_opens: bool,
}

impl std::fmt::Debug for AgentProcessMaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentProcessMaps")
            .field("processes", &self.lock().processes)
            .finish_non_exhaustive()
    }
}

impl AgentProcessMaps {
    pub fn open(ebpf: &mut Ebpf) -> Result<Self, SensorError> {
        Ok(Self(Mutex::new(RegistryState {
            agents: open_map(ebpf, "AGENTS")?,
            opened: open_map(ebpf, "OPENED")?,
            processes: AgentProcesses::default(),
            taken: [0; AGENT_PROCESSES],
            reports_opens: false,
        })))
    }

    /// Whether a probe reports opened files.
    pub fn set_file_probe(&self, attached: bool) {
        self.lock().reports_opens = attached && in_initial_pid_namespace();
    }

    /// Sets the agent's main process.
    pub fn set_main(&self, subject: Subject) {
        self.lock().set(MAIN, Some(subject));
    }

    fn lock(&self) -> MutexGuard<'_, RegistryState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RegistryState {
    fn set(&mut self, entry: usize, subject: Option<Subject>) {
        let process = subject.map_or_else(AgentProcess::default, |subject| AgentProcess {
            start: subject.start,
            pid: subject.pid,
            reserved: 0,
        });
        let Some(place) = self.processes.processes.get_mut(entry) else {
            return;
        };
        *place = process;
        let used = self.processes.processes.iter();
        let used = used.filter(|process| process.pid != 0);
        self.processes.pid_bits = used.fold(0, |bits, process| bits | pid_bit(process.pid));
        if let Err(error) = self.agents.set(0, Plain(self.processes), 0) {
            tracing::error!(%error, "cannot tell the probes the agent's processes: their reads are reported like those of others");
        }
    }

    fn opens(&self, entry: usize) -> ReaderOpens {
        let opens = u32::try_from(entry)
            .ok()
            .and_then(|entry| self.opened.get(&entry, 0).ok());
        opens.map_or_else(ReaderOpens::default, |opens| opens.0)
    }
}

impl ProcessRegistry for AgentProcessMaps {
    fn add(&self, subject: Subject) -> Option<usize> {
        // In another PID namespace the probes report another pid.
        if !in_initial_pid_namespace() {
            return None;
        }
        let mut state = self.lock();
        let mut free =
            (MAIN + 1..AGENT_PROCESSES).filter(|entry| state.processes.processes[*entry].pid == 0);
        let entry = free.next()?;
        state.taken[entry] = state.opens(entry).count;
        state.set(entry, Some(subject));
        Some(entry)
    }

    fn remove(&self, entry: usize) {
        self.lock().set(entry, None);
    }

    fn take_opens(&self, entry: usize) -> Option<Vec<KernelOpen>> {
        let mut state = self.lock();
        if !state.reports_opens {
            return None;
        }
        let opens = state.opens(entry);
        let taken = std::mem::replace(state.taken.get_mut(entry)?, opens.count);
        let kept = opens.count.saturating_sub(READER_OPENS as u64).max(taken);
        let new = kept..opens.count;
        Some(
            new.map(|number| {
                let open = opens.opens[(number % READER_OPENS as u64) as usize];
                KernelOpen {
                    file: FileId {
                        device: open.file.device,
                        inode: open.file.inode,
                        generation: open.file.generation,
                    },
                    magic: open.magic as u32,
                }
            })
            .collect(),
        )
    }
}
