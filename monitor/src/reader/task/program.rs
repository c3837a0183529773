//! The TLS functions of programs and libraries.

use super::{
    file_reader::FileReader,
    hold::{HeldFile, HoldError, hold_mapped, hold_on_host},
    identify::{Links, locate},
};
use crate::{
    host,
    observed::{
        mapping::{FileKey, FileVersion, ProcessMapping},
        mount::MountId,
    },
    reader::protocol::{FunctionPoint, HostProgram, NotHeld, ProgramAnswer, ReadAnswer, Symbols},
};
use hashlink::LruCache;
use monitor_parse::{
    elf::{Elf, SymbolTable},
    tls_functions::{self, AttachPoint, ENTRY_BYTES, TlsInspection},
};
use std::{
    collections::HashSet,
    fs::File,
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    path::Path,
    rc::Rc,
};

/// Larger files are not parsed.
const FILE_MAX: u64 = 1 << 30;
/// Number of files whose functions are remembered: a file has several identities if it is mounted
/// twice.
const INSPECTED_CACHED: usize = 4096;

/// Finds TLS functions, and remembers them by file.
#[derive(Debug)]
pub(super) struct ProgramInspector {
    mounts_at_start: HashSet<MountId>,
    inspected: LruCache<(FileKey, bool), (FileVersion, Rc<TlsInspection>)>,
}

impl ProgramInspector {
    pub fn new(mounts_at_start: HashSet<MountId>) -> Self {
        Self {
            mounts_at_start,
            inspected: LruCache::new(INSPECTED_CACHED),
        }
    }

    /// The TLS functions of a file that a process has mapped.
    pub fn mapped(
        &mut self,
        mapping: &ProcessMapping,
        symbols: Symbols,
    ) -> (ReadAnswer, Option<OwnedFd>) {
        match hold_mapped(mapping, &self.mounts_at_start) {
            Ok(held) => self.inspect(held, Some(mapping), symbols),
            Err(error) => (not_held(&error), None),
        }
    }

    /// The TLS functions of a file of the host.
    pub fn installed(&mut self, path: &Path) -> (ReadAnswer, Option<OwnedFd>) {
        match hold_on_host(path) {
            Some(held) => self.inspect(held, None, Symbols::Dynamic),
            None => (not_held(&HoldError::Replaced), None),
        }
    }

    fn inspect(
        &mut self,
        held: HeldFile,
        mapping: Option<&ProcessMapping>,
        symbols: Symbols,
    ) -> (ReadAnswer, Option<OwnedFd>) {
        let key = FileKey::of(&held.metadata);
        let version = FileVersion::of(&held.metadata);
        let inspection = self.inspection(&held, key, version, symbols);
        let mut unproven = inspection.unproven.clone();
        let mut stacks = Vec::new();
        let mut changed_by_process = false;
        for (stack, points) in &inspection.stacks {
            let differs = mapping
                .is_some_and(|mapping| points.iter().any(|point| !is_in_memory(mapping, point)));
            changed_by_process |= differs;
            if differs {
                unproven.push(format!(
                    "{stack}: the bytes in the process's memory differ from the file"
                ));
            } else {
                stacks.push(((*stack).to_owned(), points.iter().map(function).collect()));
            }
        }
        let executable = mapping.is_some_and(ProcessMapping::is_program);
        let place = (!stacks.is_empty()).then_some(held.place);
        let answer = ProgramAnswer {
            key,
            version,
            until: held.until,
            executable,
            stacks,
            unproven,
            is_empty: inspection.is_empty(),
            changed_by_process,
        };
        (ReadAnswer::Program(answer), place)
    }

    fn inspection(
        &mut self,
        held: &HeldFile,
        key: FileKey,
        version: FileVersion,
        symbols: Symbols,
    ) -> Rc<TlsInspection> {
        let place = (key, symbols == Symbols::Static);
        let known = self.inspected.get(&place);
        if let Some((_, inspection)) = known.filter(|(known, _)| *known == version) {
            return Rc::clone(inspection);
        }
        let table = match symbols {
            Symbols::Dynamic => SymbolTable::Dynamic,
            Symbols::Static => SymbolTable::Static,
        };
        // A file that is too large or malformed has nothing to attach to.
        let inspection = (held.metadata.len() <= FILE_MAX)
            .then(|| tls_functions::inspect(&FileReader(&held.file), table).ok())
            .flatten();
        let inspection = Rc::new(inspection.unwrap_or_default());
        self.inspected
            .insert(place, (version, Rc::clone(&inspection)));
        inspection
    }
}

fn not_held(error: &HoldError) -> ReadAnswer {
    ReadAnswer::NotHeld(NotHeld {
        reason: error.to_string(),
        permanent: error.is_permanent(),
    })
}

fn function(point: &AttachPoint) -> FunctionPoint {
    FunctionPoint {
        program: point.program.to_owned(),
        offset: point.offset,
    }
}

/// Identifies a program of the host, and whether it may use shared libraries; `None` if there is no
/// such file.
pub(super) fn host_program(path: &Path) -> Option<HostProgram> {
    let place = locate(host::pid(), path, Links::Inside).ok()?;
    let metadata = super::identify::metadata(&place).ok()?;
    let held = hold_on_host(path);
    let uses_libraries = held.and_then(|held| {
        let file = FileReader(&held.file);
        Some(Elf::parse(&file).ok()?.has_interpreter())
    });
    Some(HostProgram {
        key: FileKey::of(&metadata),
        uses_libraries: uses_libraries.unwrap_or(true),
    })
}

/// Whether the process's memory at a function equals its file, apart from a breakpoint. Also true
/// if the process exited, or has mapped that part of the file elsewhere.
fn is_in_memory(mapping: &ProcessMapping, point: &AttachPoint) -> bool {
    const BREAKPOINT: usize = if cfg!(target_arch = "aarch64") { 4 } else { 1 };
    let inside = point.offset.checked_sub(mapping.offset);
    let Some(inside) = inside.filter(|inside| *inside < mapping.size) else {
        return true;
    };
    let address = mapping.address + inside;
    // A page that is not in memory was not changed, and reading it could wait for a file system.
    if !are_in_memory(mapping.pid, address, ENTRY_BYTES as u64) {
        return true;
    }
    let mut bytes = [0; ENTRY_BYTES];
    let read = File::open(format!("/proc/{}/mem", mapping.pid))
        .and_then(|memory| memory.read_exact_at(&mut bytes, address));
    read.is_err()
        || bytes == point.entry
        || (is_breakpoint(&bytes) && bytes[BREAKPOINT..] == point.entry[BREAKPOINT..])
}

/// Whether a process has all pages of a range in memory or swapped out.
fn are_in_memory(pid: u32, address: u64, len: u64) -> bool {
    /// The kernel's flags of a page that is present or swapped.
    const EXISTS: u64 = 1 << 63 | 1 << 62;
    const ENTRY: u64 = size_of::<u64>() as u64;
    let size = rustix::param::page_size() as u64;
    let Ok(pages) = File::open(format!("/proc/{pid}/pagemap")) else {
        return false;
    };
    (address / size..=(address + len - 1) / size).all(|page| {
        let mut entry = [0; size_of::<u64>()];
        pages.read_exact_at(&mut entry, page * ENTRY).is_ok()
            && u64::from_ne_bytes(entry) & EXISTS != 0
    })
}

fn is_breakpoint(bytes: &[u8; ENTRY_BYTES]) -> bool {
    if cfg!(target_arch = "aarch64") {
        // brk #5, which the kernel uses for uprobes.
        bytes.starts_with(&[0xa0, 0x00, 0x20, 0xd4])
    } else {
        bytes[0] == 0xcc
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_in_memory() {
        let value = std::hint::black_box([7u8; 64]);
        let address = value.as_ptr() as u64;
        let pid = std::process::id();
        assert!(are_in_memory(pid, address, 64));
        // Nothing is mapped there.
        assert!(!are_in_memory(pid, 0, 64));
        assert!(!are_in_memory(0x7000_0001, address, 64));
    }
}
