//! Multi-uprobe links (Linux 6.6), which aya does not support: the programs are taken from the same
//! object, loaded with their attach type, and linked by two calls of `bpf(2)`.

use super::{bpf_call::bpf, perf::owned_descriptor, uprobe_program::UprobeProgram};
use aya::{Ebpf, maps::Map};
use aya_obj::{
    EbpfSectionKind, Object, ProgramSection,
    generated::{
        bpf_attach_type::BPF_TRACE_UPROBE_MULTI, bpf_attr, bpf_cmd, bpf_insn, bpf_prog_info,
        bpf_prog_type::BPF_PROG_TYPE_KPROBE,
    },
};
use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    io,
    num::NonZeroU32,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
};

/// Whether the kernel has such links with a working filter by process: before 6.10 the filter
/// matched a single thread. A kernel with these links rejects a directory with a specific error;
/// one with the fix rejects an invalid process id before it looks at the path.
pub fn is_supported() -> bool {
    // r0 = 0; exit
    let instructions = [instruction(0xb7), instruction(0x95)];
    let Ok(program) = load(&instructions, c"GPL", c"keytrail_try", None) else {
        return false;
    };
    let program = UprobeProgram {
        fd: program,
        at_return: false,
    };
    let refusal = |pid| {
        let error = link(&program, c"/", &[0], pid).err();
        error.and_then(|error| error.raw_os_error())
    };
    refusal(0) == Some(libc::EBADF) && refusal(u32::MAX) == Some(libc::EINVAL)
}

fn instruction(code: u8) -> bpf_insn {
    // SAFETY: the structure consists of integers, for which zero is valid.
    let mut instruction: bpf_insn = unsafe { std::mem::zeroed() };
    instruction.code = code;
    instruction
}

/// The programs for user-space functions, ready to be loaded for multi-uprobe links.
#[derive(Debug)]
pub struct MultiPrograms {
    object: Object,
    /// The object's BTF, which the kernel requires for callback functions.
    types: OwnedFd,
}

impl MultiPrograms {
    /// Takes the programs from the object that `loaded` was loaded from, and uses the same maps.
    pub fn new(probes: &[u8], loaded: &Ebpf) -> Result<Self, String> {
        let mut object = Object::parse(probes).map_err(|error| error.to_string())?;
        let features = aya::features().btf();
        let features = features.ok_or("this kernel does not accept BTF for programs")?;
        let types = object
            .fixup_and_sanitize_btf(features)
            .map_err(|error| error.to_string())?
            .map(|types| load_types(&types.to_bytes()))
            .ok_or("the probes were built without BTF")?
            .map_err(|error| format!("the kernel rejected the BTF of the probes: {error}"))?;
        let fds: HashMap<&str, RawFd> = loaded
            .maps()
            .filter_map(|(name, map)| Some((name, descriptor(map)?.as_raw_fd())))
            .collect();
        let maps = std::mem::take(&mut object.maps);
        let text: std::collections::HashSet<usize> = object
            .functions
            .keys()
            .map(|(section, _)| *section)
            .collect();
        let missing = maps.iter().find(|(name, map)| {
            !fds.contains_key(name.as_str()) && map.section_kind() != EbpfSectionKind::Undefined
        });
        if let Some((name, _)) = missing {
            return Err(format!("map {name} was not loaded"));
        }
        object
            .relocate_maps(
                maps.iter()
                    .filter_map(|(name, map)| Some((name.as_str(), *fds.get(name.as_str())?, map))),
                &text,
            )
            .map_err(|error| error.to_string())?;
        object
            .relocate_calls(&text)
            .map_err(|error| error.to_string())?;
        object.sanitize_functions(aya::features());
        Ok(Self { object, types })
    }

    /// Loads a program; also returns the number of instructions that the verifier processed, if the
    /// kernel reports it.
    pub fn load(&self, name: &str) -> Result<(UprobeProgram, Option<u32>), String> {
        let program = self.object.programs.get(name);
        let program = program.ok_or_else(|| format!("program {name} is missing"))?;
        let function = self.object.functions.get(&program.function_key());
        let function = function.ok_or_else(|| format!("program {name} has no code"))?;
        // The kernel keeps 15 bytes of a name.
        let short = CString::new(&name[..name.len().min(15)]).map_err(|error| error.to_string())?;
        let functions = MultiLinkTarget {
            types: self.types.as_fd(),
            info: function.func_info.func_info_bytes(),
            count: function.func_info.len(),
            size: function.func_info_rec_size,
        };
        let fd = load(
            &function.instructions,
            &program.license,
            &short,
            Some(&functions),
        )
        .map_err(|error| format!("rejected by the kernel: {error}"))?;
        let walked = verified_instructions(&fd);
        let at_return = matches!(program.section, ProgramSection::URetProbe { .. });
        Ok((UprobeProgram { fd, at_return }, walked))
    }
}

fn descriptor(map: &Map) -> Option<BorrowedFd<'_>> {
    let (Map::Array(data)
    | Map::PerCpuArray(data)
    | Map::HashMap(data)
    | Map::LruHashMap(data)
    | Map::PerCpuHashMap(data)
    | Map::PerCpuLruHashMap(data)
    | Map::ProgramArray(data)
    | Map::SkStorage(data)
    | Map::RingBuf(data)) = map
    else {
        return None;
    };
    Some(data.fd().as_fd())
}

/// The functions to which a program is linked, as the kernel expects them.
struct MultiLinkTarget<'a> {
    types: BorrowedFd<'a>,
    info: Vec<u8>,
    count: usize,
    size: usize,
}

fn load_types(types: &[u8]) -> io::Result<OwnedFd> {
    // SAFETY: the union consists of integers, for which zero is valid.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: this member is the one that BPF_BTF_LOAD reads.
    let load = unsafe { &mut attributes.__bindgen_anon_7 };
    load.btf = types.as_ptr() as u64;
    load.btf_size = types.len() as u32;
    bpf(bpf_cmd::BPF_BTF_LOAD, &mut attributes).and_then(owned_descriptor)
}

fn load(
    instructions: &[bpf_insn],
    license: &CStr,
    name: &CStr,
    functions: Option<&MultiLinkTarget<'_>>,
) -> io::Result<OwnedFd> {
    // SAFETY: the union consists of integers, for which zero is valid.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: this member is the one that BPF_PROG_LOAD reads.
    let load = unsafe { &mut attributes.__bindgen_anon_3 };
    load.prog_type = BPF_PROG_TYPE_KPROBE as u32;
    load.expected_attach_type = BPF_TRACE_UPROBE_MULTI as u32;
    load.insns = instructions.as_ptr() as u64;
    load.insn_cnt = instructions.len() as u32;
    load.license = license.as_ptr() as u64;
    if let Some(functions) = functions {
        load.prog_btf_fd = functions.types.as_raw_fd().cast_unsigned();
        load.func_info = functions.info.as_ptr() as u64;
        load.func_info_cnt = functions.count as u32;
        load.func_info_rec_size = functions.size as u32;
    }
    for (place, byte) in load.prog_name.iter_mut().zip(name.to_bytes()) {
        *place = byte.cast_signed();
    }
    bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes).and_then(owned_descriptor)
}

/// Links a program to the functions at the given offsets of a file.
pub fn attach(
    program: &UprobeProgram,
    path: &CStr,
    offsets: &[u64],
    process: Option<NonZeroU32>,
) -> io::Result<OwnedFd> {
    link(program, path, offsets, process.map_or(0, NonZeroU32::get))
}

fn link(program: &UprobeProgram, path: &CStr, offsets: &[u64], pid: u32) -> io::Result<OwnedFd> {
    /// The program is attached to the functions' returns.
    const RETURN: u32 = 1;
    // SAFETY: the union consists of integers, for which zero is valid.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: this member is the one that BPF_LINK_CREATE reads.
    let create = unsafe { &mut attributes.link_create };
    create.__bindgen_anon_1.prog_fd = program.fd.as_raw_fd().cast_unsigned();
    create.attach_type = BPF_TRACE_UPROBE_MULTI as u32;
    // SAFETY: this member is the one that a link of this type reads.
    let multi = unsafe { &mut create.__bindgen_anon_3.uprobe_multi };
    multi.path = path.as_ptr() as u64;
    multi.offsets = offsets.as_ptr() as u64;
    multi.cnt = offsets.len() as u32;
    multi.flags = if program.at_return { RETURN } else { 0 };
    multi.pid = pid;
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut attributes).and_then(owned_descriptor)
}

/// Number of instructions that the verifier processed.
fn verified_instructions(program: &OwnedFd) -> Option<u32> {
    // SAFETY: both consist of integers, for which zero is valid.
    let (mut info, mut attributes): (bpf_prog_info, bpf_attr) = unsafe { std::mem::zeroed() };
    attributes.info.bpf_fd = program.as_raw_fd().cast_unsigned();
    attributes.info.info_len = size_of::<bpf_prog_info>() as u32;
    attributes.info.info = std::ptr::from_mut(&mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes).ok()?;
    (info.verified_insns > 0).then_some(info.verified_insns)
}
