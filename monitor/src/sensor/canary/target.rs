//! The function of this program to which the probe of TLS libraries' writes is attached.

use super::action::tls_write;
use crate::sensor::attacher::LibraryFunctions;
use monitor_parse::tls_functions as tls;
use procfs::process::{MMPermissions, Process};
use rustix::fs::{Mode, OFlags};
use std::{fs::File, io};

/// This program, and the function in it, so that the canary can test the probe.
pub fn canary_function() -> io::Result<(File, LibraryFunctions)> {
    let address = tls_write as *const () as usize as u64;
    let maps = Process::myself()
        .and_then(|process| process.maps())
        .map_err(io::Error::other)?;
    let mapping = maps
        .iter()
        .find(|map| {
            (map.address.0..map.address.1).contains(&address)
                && map.perms.contains(MMPermissions::EXECUTE)
        })
        .ok_or_else(|| io::Error::other("this program's own code is not mapped"))?;
    let offset = address - mapping.address.0 + mapping.offset;
    let file = rustix::fs::open(
        "/proc/self/exe",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    Ok((File::from(file), vec![(tls::WRITE, offset)]))
}
