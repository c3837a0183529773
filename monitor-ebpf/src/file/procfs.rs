//! Files of procfs that expose another process.

use crate::support::{
    foreign::report_foreign_read,
    kernel::{self, PROC_SUPER_MAGIC, field, file_system_magic},
    task::subject_of,
    view::CopyAccess,
};
use monitor_common::{fields::FieldId, record::foreign};

/// Handles an open of a procfs file named like one that exposes a process.
#[inline(always)]
pub fn report_process_file(inode: u64, first: u32) {
    if file_system_magic(inode) != PROC_SUPER_MAGIC {
        return;
    }
    let node = inode.wrapping_sub(kernel::offset(FieldId::ProcInodeVfs));
    let pid: u64 = field(node, FieldId::ProcInodePid);
    if pid == 0 {
        return;
    }
    // The first thread with this pid: the head of a list that is linked through the task.
    let link: u64 = field(pid, FieldId::PidTasks);
    if link == 0 {
        return;
    }
    let task = link.wrapping_sub(kernel::offset(FieldId::TaskPidLinks));
    let how = if first == u32::from_le_bytes(*b"envi") {
        foreign::ENVIRON
    } else {
        foreign::MEMORY
    };
    report_foreign_read(subject_of::<CopyAccess>(task), how);
}
