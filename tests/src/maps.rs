//! The contents of an agent's kernel maps, as anyone who may read maps sees them.

use anyhow::{Context as _, Result, ensure};
use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

/// `BPF_MAP_LOOKUP_ELEM`.
const LOOKUP: libc::c_int = 1;

/// The attributes of that command.
#[repr(C)]
struct LookupAttributes {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Every byte of the loaded per-CPU arrays with a name, of all entries and processors.
pub fn per_cpu_array_bytes(name: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut found = false;
    for info in aya::maps::loaded_maps() {
        let info = info.context("cannot list the loaded maps")?;
        if info.name_as_str() != Some(name) {
            continue;
        }
        found = true;
        let map = info.fd()?;
        let map = map.as_fd();
        let described = describe(map)?;
        let field = |field: &str| -> Result<usize> {
            let value = described
                .get(field)
                .with_context(|| format!("no {field}"))?;
            Ok(usize::try_from(*value)?)
        };
        let value = field("value_size")?.next_multiple_of(8) * processors()?;
        for key in 0..u32::try_from(field("max_entries")?)? {
            let start = bytes.len();
            bytes.resize(start + value, 0);
            lookup(map, key, &mut bytes[start..])
                .with_context(|| format!("entry {key} of {name}"))?;
        }
    }
    ensure!(found, "no map named {name} is loaded");
    Ok(bytes)
}

/// The numeric fields that the kernel shows for a map's descriptor.
fn describe(map: BorrowedFd<'_>) -> Result<HashMap<String, u64>> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    Ok(text.lines().filter_map(field).collect())
}

/// The number of possible processors: a per-CPU value has a copy for each.
fn processors() -> Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit(['-', ',']).next().unwrap_or_default();
    Ok(last.parse::<usize>()? + 1)
}

fn lookup(map: BorrowedFd<'_>, key: u32, value: &mut [u8]) -> io::Result<()> {
    let attributes = LookupAttributes {
        map: map.as_raw_fd() as u32,
        padding: 0,
        key: (&raw const key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads the attributes and the key, and writes one value per processor, for
    // which the caller made room; all three live until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            LOOKUP,
            &raw const attributes,
            size_of::<LookupAttributes>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
