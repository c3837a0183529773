//! Reports reads of another process.

use crate::support::{
    agent::is_agent,
    repeats::repeat_count,
    ring::Ring,
    task::{HookContext, current_pid, fill_header},
};
use core::mem::MaybeUninit;
use monitor_common::{
    map::ReadKey,
    record::{ForeignReadRecord, Probe, kind},
};

/// Reports that the current process reads another one, given by pid and start time.
#[inline(always)]
pub fn report_foreign_read((target, target_start): (u32, u64), how: u32) {
    let pid = current_pid();
    if target == pid || target == 0 || is_agent(pid, HookContext::Tracing) {
        return;
    }
    let mut record = MaybeUninit::<ForeignReadRecord>::uninit();
    // SAFETY: every field is written before it is read, and a ForeignReadRecord has no padding.
    let record = unsafe { &mut *record.as_mut_ptr() };
    fill_header(&mut record.header, kind::FOREIGN, HookContext::Tracing);
    record.target_start = target_start;
    record.target = target;
    record.how = how;
    let seen = ReadKey {
        start: record.header.start,
        inode: u64::from(target) << 32 | u64::from(how),
        pid,
        // No device has this number.
        device: u32::MAX,
    };
    if repeat_count(seen).is_none() {
        return;
    }
    Ring::Credentials.send(Probe::Memory, record.header.owner(), record);
}
