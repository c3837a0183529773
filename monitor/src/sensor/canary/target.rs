//! The function of this program to which the probe of TLS libraries' writes is attached.

use super::action::tls_write;
use crate::{
    observed::{
        mapping::{FileKey, FileVersion},
        mount::HoldLimit,
    },
    sensor::attacher::AttachTarget,
};
use monitor_parse::tls_functions as tls;
use procfs::process::{MMPermissions, Process};
use rustix::fs::{Mode, OFlags};
use std::{fs::File, io};

/// How `doctor` and the log call it.
const STACK: &str = "canary";

/// What is attached to so that the canary can test the probe.
pub fn canary_function() -> io::Result<AttachTarget> {
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
    let opened = rustix::fs::open(
        "/proc/self/exe",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let file = File::from(opened);
    let metadata = file.metadata()?;
    Ok(AttachTarget {
        key: FileKey::of(&metadata),
        version: FileVersion::of(&metadata),
        file,
        // This program runs from it, so its mount is busy anyway.
        until: HoldLimit::Replaced,
        name: "/proc/self/exe".to_owned(),
        executable: false,
        pid: None,
        mapped: None,
        stacks: vec![(STACK, vec![(tls::WRITE, offset)])],
    })
}
