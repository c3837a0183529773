//! Running processes.

use monitor_core::model::Subject;
use procfs::process::Process;

/// The process that has a pid now; `None` if there is none.
pub fn live_subject(pid: u32) -> Option<Subject> {
    let stat = Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
    Some(Subject {
        pid,
        start: stat.starttime,
    })
}

/// Whether a process is in the agent's user namespace; `None` if it exited.
pub fn in_own_user_namespace(pid: u32) -> Option<bool> {
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/user")).ok();
    Some(namespace(&pid.to_string())? == namespace("self")?)
}
