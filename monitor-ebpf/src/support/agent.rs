//! The agent's own processes: they are not reported, and the files that its readers open are kept
//! for the agent to compare with what the probes reported.

use crate::support::{
    kernel::{PROC_SUPER_MAGIC, file_system_magic},
    task::{HookContext, current_pid, current_start},
};
use aya_ebpf::{macros::map, maps::Array};
use monitor_common::map::{
    AGENT_PROCESSES, AgentProcesses, InodeKey, READER_OPENS, ReaderOpen, ReaderOpens,
    START_TICK_NS, pid_bit,
};

/// Index 0: the processes of the agent.
#[map]
static AGENTS: Array<AgentProcesses> = Array::with_max_entries(1, 0);

/// The last files opened by each process in [`AGENTS`].
#[map]
static OPENED: Array<ReaderOpens> = Array::with_max_entries(AGENT_PROCESSES as u32, 0);

/// The index of the current process among those of the agent, if it is one.
#[inline(always)]
fn agent_index(pid: u32, hooked: HookContext) -> Option<u32> {
    let agents = AGENTS.get(0)?;
    if agents.pid_bits & pid_bit(pid) == 0 {
        return None;
    }
    let mut index = 0;
    while index < AGENT_PROCESSES {
        let known = &agents.processes[index];
        if known.pid == pid {
            return (known.start == current_start(hooked) / START_TICK_NS).then_some(index as u32);
        }
        index += 1;
    }
    None
}

/// Whether the current process may belong to the agent, by its pid alone.
#[inline(always)]
pub fn may_be_agent() -> bool {
    AGENTS
        .get(0)
        .is_some_and(|agents| agents.pid_bits & pid_bit(current_pid()) != 0)
}

/// Whether the current process, with this pid, belongs to the agent.
#[inline(always)]
pub fn is_agent(pid: u32, hooked: HookContext) -> bool {
    agent_index(pid, hooked).is_some()
}

/// Notes a file that a process of the agent opens; returns `false` if the current process is
/// another one. `file` is evaluated only for those of the agent.
#[inline(always)]
pub fn note_agent_open(inode: u64, file: impl FnOnce() -> InodeKey) -> bool {
    let Some(index) = agent_index(current_pid(), HookContext::Tracing) else {
        return false;
    };
    let magic = file_system_magic(inode);
    // It reads about processes and mounts all the time.
    if magic == PROC_SUPER_MAGIC {
        return true;
    }
    if let Some(opened) = OPENED.get_ptr_mut(index) {
        let open = ReaderOpen {
            file: file(),
            magic,
        };
        // SAFETY: the pointer is into the map; a reader has one thread.
        unsafe {
            let next = (*opened).count as usize & (READER_OPENS - 1);
            (*opened).opens[next] = open;
            (*opened).count += 1;
        }
    }
    true
}
