//! What somebody who is root can do to a running agent's probes.

use anyhow::{Context as _, Result, ensure};
use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
};

const MAP_DELETE_ELEM: i64 = 3;
const MAP_GET_NEXT_KEY: i64 = 4;
const OBJ_GET_INFO_BY_FD: i64 = 15;
const LINK_DETACH: i64 = 34;
const MAP_TYPE_HASH: u32 = 1;

/// The front of `bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    name: [u8; 16],
}

/// The attributes of commands on an object and two buffers.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    fd: u32,
    len: u32,
    first: u64,
    second: u64,
}

fn bpf(command: i64, attributes: &Attributes) -> io::Result<()> {
    // SAFETY: the attributes are those of the command, and their buffers outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<Attributes>(),
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Copies of the descriptors of a process whose entry in `fdinfo` contains a text.
fn descriptors(pid: u32, text: &str) -> Result<Vec<OwnedFd>> {
    // SAFETY: both calls return a new descriptor or an error.
    let pidfd = unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        ensure!(pidfd >= 0, "pidfd_open: {}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(pidfd as i32)
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let entry = entry?;
        let about = fs::read_to_string(entry.path()).unwrap_or_default();
        if !about.contains(text) {
            continue;
        }
        let number: i32 = entry.file_name().to_string_lossy().parse()?;
        // SAFETY: as above.
        let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
        ensure!(copy >= 0, "pidfd_getfd: {}", io::Error::last_os_error());
        // SAFETY: as above.
        found.push(unsafe { OwnedFd::from_raw_fd(copy as i32) });
    }
    Ok(found)
}

/// Detaches the agent's programs from the cgroup; returns their number.
pub fn detach_cgroup_links(pid: u32) -> Result<usize> {
    let links = descriptors(pid, "link_type:\tcgroup")?;
    for link in &links {
        let link = Attributes {
            fd: link.as_raw_fd() as u32,
            ..Attributes::default()
        };
        bpf(LINK_DETACH, &link).context("BPF_LINK_DETACH")?;
    }
    Ok(links.len())
}

/// Deletes every element of the agent's hash maps; returns their number.
pub fn empty_maps(pid: u32) -> Result<usize> {
    let mut deleted = 0;
    for map in descriptors(pid, "map_type:")? {
        let fd = map.as_raw_fd() as u32;
        let mut info = MapInfo::default();
        let about = Attributes {
            fd,
            len: size_of::<MapInfo>() as u32,
            first: (&raw mut info) as u64,
            ..Attributes::default()
        };
        bpf(OBJ_GET_INFO_BY_FD, &about).context("BPF_OBJ_GET_INFO_BY_FD")?;
        if info.kind != MAP_TYPE_HASH {
            continue;
        }
        let mut key = vec![0u8; info.key_size as usize];
        let first = Attributes {
            fd,
            second: key.as_mut_ptr() as u64,
            ..Attributes::default()
        };
        while bpf(MAP_GET_NEXT_KEY, &first).is_ok() {
            let of_key = Attributes {
                fd,
                first: key.as_ptr() as u64,
                ..Attributes::default()
            };
            // A probe may have deleted it.
            deleted += usize::from(bpf(MAP_DELETE_ELEM, &of_key).is_ok());
        }
    }
    Ok(deleted)
}

/// Writes the original bytes over the breakpoints in a process's own program; returns their number.
pub fn remove_breakpoints(pid: u32) -> Result<usize> {
    let program = fs::read(format!("/proc/{pid}/exe"))?;
    let memory = File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/{pid}/mem"))?;
    let exe = fs::read_link(format!("/proc/{pid}/exe"))?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut removed = 0;
    for line in maps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [range, permissions, offset, _, _, path] = fields[..] else {
            continue;
        };
        if !permissions.contains('x') || path != exe.to_string_lossy() {
            continue;
        }
        let (start, end) = range.split_once('-').context("a range")?;
        let (start, end) = (
            u64::from_str_radix(start, 16)?,
            u64::from_str_radix(end, 16)?,
        );
        let offset = u64::from_str_radix(offset, 16)? as usize;
        let mut now = vec![0; (end - start) as usize];
        memory.read_exact_at(&mut now, start)?;
        for (at, byte) in now.iter().enumerate() {
            let Some(original) = program.get(offset + at).filter(|known| *known != byte) else {
                continue;
            };
            memory.write_all_at(&[*original], start + at as u64)?;
            removed += 1;
        }
    }
    Ok(removed)
}
