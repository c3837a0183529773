//! The hook ladder: for each observation, the hooks that can serve it, the best first. The first
//! one that this kernel accepts is used, determined by trying it, not by version.

use super::{
    AttachedProgram, SensorError,
    btf::{Btf as Prototypes, BtfParameter},
    multi::MultiPrograms,
    packet_program::{PacketDirection, PacketProgram},
    skipped_hooks::{SKIP_HOOKS, is_skipped},
    uprobe,
    uprobe_program::{UprobeProgram as Uprobe, UprobePrograms},
};
use aya::{
    Btf, Ebpf,
    maps::ProgramArray,
    programs::{
        CgroupAttachMode, CgroupSkb, CgroupSockAddr, FEntry, KProbe, Lsm, ProbeKind, Program,
        ProgramError, ProgramType, RawTracePoint, TracePoint, UProbe,
    },
    sys::{BpfHelper, is_helper_supported},
};
use monitor_common::record::Probe;
use monitor_parse::tls_functions as tls;
use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    os::fd::AsFd as _,
    path::Path,
    sync::LazyLock,
    time::Instant,
};

/// One program at one hook.
#[derive(Clone, Copy, Debug)]
struct HookStep {
    program: &'static str,
    hook: Hook,
    /// Whether the rung fails without it.
    needed: bool,
}

#[derive(Clone, Copy, Debug)]
enum Hook {
    Lsm(&'static str),
    Fentry(&'static str),
    Kprobe(&'static str),
    Tracepoint(&'static str, &'static str),
    RawTracepoint(&'static str),
    Cgroup(&'static str),
    /// A function of TLS libraries: the program is loaded now, and attached to files as they are
    /// found.
    Uprobe(&'static str),
    /// As `Uprobe`, at the function's return.
    Uretprobe(&'static str),
    /// Tail-called by another program, through a map.
    Called(&'static str),
    /// No hook: the agent reads `/proc` after an exec.
    Proc(&'static str),
}

impl Hook {
    /// The name used in metrics and by `doctor`.
    fn name(self) -> String {
        match self {
            Self::Lsm(hook) => format!("lsm/{hook}"),
            Self::Fentry(function) => format!("fentry/{function}"),
            Self::Kprobe(function) => format!("kprobe/{function}"),
            Self::Tracepoint(category, name) => format!("tracepoint/{category}:{name}"),
            Self::RawTracepoint(name) => format!("raw_tp/{name}"),
            Self::Cgroup(way @ ("egress" | "ingress")) => format!("cgroup_skb/{way}"),
            Self::Cgroup(kind) => format!("cgroup/{kind}"),
            Self::Uprobe(function) => format!("uprobe/{function}"),
            Self::Uretprobe(function) => format!("uretprobe/{function}"),
            Self::Called("RESPONSE_SEARCH") => "cgroup_skb/ingress".to_owned(),
            Self::Called(_) => "cgroup_skb/egress".to_owned(),
            Self::Proc(file) => format!("proc/{file}"),
        }
    }
}

/// A parameter as a program expects it: a pointer to a structure, or a value of a given size.
#[derive(Clone, Copy, Debug)]
enum ExpectedParameter {
    Pointer(&'static str),
    Value(u32),
    /// The program does not use it.
    Any,
}

impl ExpectedParameter {
    fn accepts(self, found: &BtfParameter) -> bool {
        match (self, found) {
            (Self::Any, _) => true,
            (Self::Pointer(name), BtfParameter::Pointer(found)) => name == found,
            (Self::Value(size), BtfParameter::Value(found)) => size == *found,
            _ => false,
        }
    }
}

impl Hook {
    /// The function whose parameters the programs at this hook read, and their expected types. A
    /// raw tracepoint's first parameter is internal.
    fn expected_parameters(self) -> Option<(String, &'static [ExpectedParameter])> {
        use ExpectedParameter::{Any, Pointer, Value};
        const TASK: ExpectedParameter = Pointer("task_struct");
        let (name, hook) = match self {
            Self::Lsm(hook) => (format!("bpf_lsm_{hook}"), hook),
            Self::Fentry(function) | Self::Kprobe(function) => (
                function.to_owned(),
                function.trim_start_matches("security_"),
            ),
            Self::RawTracepoint(name) => (format!("btf_trace_{name}"), name),
            Self::Tracepoint(..)
            | Self::Cgroup(_)
            | Self::Uprobe(_)
            | Self::Uretprobe(_)
            | Self::Called(_)
            | Self::Proc(_) => {
                return None;
            }
        };
        let expected: &[ExpectedParameter] = match hook {
            "file_open" | "file_receive" => &[Pointer("file")],
            "ptrace_access_check" => &[TASK, Value(4)],
            "sched_process_fork" => &[Any, TASK, TASK],
            "sched_process_exec" => &[Any, TASK, Any, Pointer("linux_binprm")],
            "sched_process_exit" => &[Any, TASK],
            "inet_sock_set_state" => &[Any, Pointer("sock"), Value(4), Value(4)],
            _ => &[],
        };
        Some((name, expected))
    }

    /// Why the hook is incompatible on this kernel. A function that BTF does not list is left to
    /// the loader.
    fn incompatibility(self, prototypes: &Prototypes) -> Option<String> {
        let (name, expected) = self.expected_parameters()?;
        let found = match prototypes.parameters(&name) {
            Ok(found) => found?,
            Err(error) => return Some(format!("its prototype cannot be read: {error}")),
        };
        let holds = found.len() >= expected.len()
            && expected
                .iter()
                .zip(&found)
                .all(|(expected, found)| expected.accepts(found));
        (!holds).then(|| format!("its prototype on this kernel is {found:?}"))
    }
}

const fn hook_step(program: &'static str, hook: Hook) -> HookStep {
    HookStep {
        program,
        hook,
        needed: true,
    }
}

const fn optional_step(program: &'static str, hook: Hook) -> HookStep {
    HookStep {
        program,
        hook,
        needed: false,
    }
}

/// The rungs that serve one observation.
#[derive(Clone, Copy, Debug)]
pub struct HookLadder {
    pub probe: Probe,
    /// Reported if no rung can be used.
    missed: &'static str,
    rungs: &'static [&'static [HookStep]],
}

/// Some architectures do not have open(2).
const OPEN: HookStep = optional_step(
    "file_open_exit",
    Hook::Tracepoint("syscalls", "sys_exit_open"),
);

/// Every ladder, in the order of attachment: processes first, because everything else is attributed
/// to them.
pub const LADDERS: &[HookLadder] = &[
    HookLadder {
        probe: Probe::Process,
        missed: "which process belongs to which",
        rungs: &[&[
            hook_step("process_fork", Hook::RawTracepoint("sched_process_fork")),
            hook_step("process_exec", Hook::RawTracepoint("sched_process_exec")),
            hook_step("process_exit", Hook::RawTracepoint("sched_process_exit")),
        ]],
    },
    HookLadder {
        probe: Probe::Environ,
        missed: "variables of a process that exits before the agent has read its environment",
        rungs: &[
            &[hook_step(
                "environ_exec",
                Hook::RawTracepoint("sched_process_exec"),
            )],
            &[hook_step(ENVIRON_BY_AGENT, Hook::Proc("environ"))],
        ],
    },
    HookLadder {
        probe: Probe::File,
        missed: "opens of credential files",
        rungs: &[
            &[hook_step("file_open_lsm", Hook::Lsm("file_open"))],
            &[hook_step(
                "file_open_fentry",
                Hook::Fentry("security_file_open"),
            )],
            &[hook_step(
                "file_open_kprobe",
                Hook::Kprobe("security_file_open"),
            )],
            &[
                hook_step(
                    "file_open_exit",
                    Hook::Tracepoint("syscalls", "sys_exit_openat"),
                ),
                OPEN,
                hook_step(
                    "file_open_exit",
                    Hook::Tracepoint("syscalls", "sys_exit_openat2"),
                ),
                hook_step(
                    "file_open_exit",
                    Hook::Tracepoint("syscalls", "sys_exit_open_by_handle_at"),
                ),
                optional_step(
                    "file_open_uring",
                    Hook::Tracepoint("io_uring", "io_uring_complete"),
                ),
            ],
        ],
    },
    HookLadder {
        probe: Probe::File,
        missed: "descriptors of credential files received from another process",
        rungs: &[
            &[hook_step("file_receive_lsm", Hook::Lsm("file_receive"))],
            &[hook_step(
                "file_receive_fentry",
                Hook::Fentry("security_file_receive"),
            )],
            &[hook_step(
                "file_receive_kprobe",
                Hook::Kprobe("security_file_receive"),
            )],
        ],
    },
    HookLadder {
        probe: Probe::File,
        missed: "descriptors of credential files inherited at exec across a change of user or cgroup",
        rungs: &[&[hook_step(
            "file_inherited",
            Hook::RawTracepoint("sched_process_exec"),
        )]],
    },
    HookLadder {
        probe: Probe::Memory,
        missed: "reads of another process's memory, and descriptors taken from it",
        rungs: &[
            &[hook_step("memory_lsm", Hook::Lsm("ptrace_access_check"))],
            &[hook_step(
                "memory_fentry",
                Hook::Fentry("security_ptrace_access_check"),
            )],
            &[hook_step(
                "memory_kprobe",
                Hook::Kprobe("security_ptrace_access_check"),
            )],
            &[
                hook_step(
                    "memory_ptrace",
                    Hook::Tracepoint("syscalls", "sys_enter_ptrace"),
                ),
                hook_step(
                    "memory_exit",
                    Hook::Tracepoint("syscalls", "sys_exit_ptrace"),
                ),
                hook_step(
                    "memory_vm_readv",
                    Hook::Tracepoint("syscalls", "sys_enter_process_vm_readv"),
                ),
                hook_step(
                    "memory_exit",
                    Hook::Tracepoint("syscalls", "sys_exit_process_vm_readv"),
                ),
            ],
        ],
    },
    HookLadder {
        probe: Probe::Connect,
        missed: "connections over IPv4",
        rungs: &[&[hook_step("connect_v4", Hook::Cgroup("connect4"))]],
    },
    HookLadder {
        probe: Probe::Connect,
        missed: "connections over IPv6",
        rungs: &[&[hook_step("connect_v6", Hook::Cgroup("connect6"))]],
    },
    HookLadder {
        probe: Probe::Connect,
        missed: "datagrams over IPv4",
        rungs: &[&[hook_step("connect_udp_v4", Hook::Cgroup("sendmsg4"))]],
    },
    HookLadder {
        probe: Probe::Connect,
        missed: "datagrams over IPv6",
        rungs: &[&[hook_step("connect_udp_v6", Hook::Cgroup("sendmsg6"))]],
    },
    HookLadder {
        probe: Probe::Connect,
        missed: "credentials issued over unix sockets",
        rungs: &[&[
            hook_step(
                "unix_connect",
                Hook::Tracepoint("syscalls", "sys_enter_connect"),
            ),
            hook_step(
                "unix_connected",
                Hook::Tracepoint("syscalls", "sys_exit_connect"),
            ),
        ]],
    },
    HookLadder {
        probe: Probe::Connect,
        missed: "refused connections: they are shown as hops",
        rungs: &[&[hook_step(
            "connect_outcome",
            Hook::RawTracepoint("inet_sock_set_state"),
        )]],
    },
    HookLadder {
        probe: Probe::Hello,
        missed: "server names of TLS connections",
        rungs: &[&[hook_step("hello_egress", Hook::Cgroup("egress"))]],
    },
    HookLadder {
        probe: Probe::Dns,
        missed: "names of destinations from DNS",
        rungs: &[&[hook_step("dns_ingress", Hook::Cgroup("ingress"))]],
    },
    HookLadder {
        probe: Probe::Clear,
        missed: "credentials presented in plaintext",
        rungs: &[&[hook_step("clear_egress", Hook::Called("PLAINTEXT_SEARCH"))]],
    },
    HookLadder {
        probe: Probe::Clear,
        missed: "credentials issued in plaintext",
        rungs: &[&[hook_step("minted_ingress", Hook::Called("RESPONSE_SEARCH"))]],
    },
    HookLadder {
        probe: Probe::Present,
        missed: "credentials presented inside TLS",
        rungs: &[
            &[
                hook_step(tls::WRITE, Hook::Uprobe("write")),
                optional_step(tls::WRITTEN, Hook::Uretprobe("written")),
                hook_step(tls::FREED, Hook::Uprobe("freed")),
                hook_step(tls::SERVER, Hook::Uprobe("server")),
                hook_step(tls::GO, Hook::Uprobe("go")),
                hook_step(tls::READ, Hook::Uprobe("read")),
                hook_step(tls::READ_EX, Hook::Uprobe("read")),
                optional_step(tls::READ_RETURN, Hook::Uretprobe("returned")),
            ],
            &[
                hook_step("present_write_short", Hook::Uprobe("write")),
                optional_step(tls::WRITTEN, Hook::Uretprobe("written")),
                hook_step(tls::FREED, Hook::Uprobe("freed")),
                hook_step("present_go_short", Hook::Uprobe("go")),
            ],
        ],
    },
];

/// The suffix of programs for kernels without `bpf_loop`.
const SHORT_SUFFIX: &str = "_short";

/// Used instead of a program name: the agent reads the environment.
pub const ENVIRON_BY_AGENT: &str = "";

/// What the rungs need to know about the machine.
pub struct KernelSupport<'a> {
    /// The cgroup v2 root, if there is one.
    pub cgroup: Option<&'a Path>,
    /// The kernel's types from our own reader, to compare them with what programs expect.
    pub prototypes: &'a Prototypes,
    /// The types in the loader's form, if they can be read: for LSM and fentry.
    pub types: Option<Btf>,
    /// Whether `bpf` is in the list of active LSMs: without it an LSM program attaches and never
    /// fires.
    pub lsm: bool,
    /// Whether io_uring's records contain their request, as they do from 5.19 on. Without it the
    /// program attaches and observes nothing.
    pub uring: bool,
    /// Whether programs may be attached to user space.
    pub uprobes: bool,
    /// The programs for multi-uprobe links, if the kernel has such links.
    pub multi: Option<MultiPrograms>,
}

/// Programs that are attached and detached while the agent runs.
#[derive(Debug, Default)]
pub struct SwitchablePrograms {
    pub uprobes: UprobePrograms,
    /// By program.
    pub packets: BTreeMap<&'static str, PacketProgram>,
    /// Uprobe programs that were loaded ahead, and what came of it.
    pub ahead: HashMap<&'static str, Result<LoadedUprobe, String>>,
}

/// A loaded program, and the number of instructions that the verifier processed, if the kernel reports
/// it.
type LoadedUprobe = (Uprobe, Option<u32>);

/// Loads the programs of the first rung for user-space functions; the verifier takes a while for each.
pub fn load_ahead(programs: &MultiPrograms) -> HashMap<&'static str, Result<LoadedUprobe, String>> {
    let ladders = LADDERS.iter();
    let present = ladders.filter(|ladder| ladder.probe == Probe::Present);
    present
        .filter_map(|ladder| ladder.rungs.first())
        .flat_map(|rung| rung.iter())
        .map(|step| (step.program, programs.load(step.program)))
        .collect()
}

impl HookLadder {
    /// Attaches the first rung that works; reports which one, and why the rungs above it do not
    /// work.
    pub fn attach(
        &self,
        ebpf: &mut Ebpf,
        machine: &KernelSupport<'_>,
        made: &mut SwitchablePrograms,
    ) -> Result<Vec<AttachedProgram>, SensorError> {
        let mut passed: Vec<String> = Vec::new();
        for rung in self.rungs {
            let mut attached: Vec<AttachedProgram> = Vec::new();
            let mut refused = None;
            for step in *rung {
                match step.attach(ebpf, machine, made)? {
                    Ok(instructions) => attached.push(AttachedProgram {
                        probe: self.probe,
                        program: step.program,
                        mechanism: step.hook.name(),
                        error: None,
                        missed: None,
                        passed: Vec::new(),
                        instructions,
                    }),
                    Err(error) if step.needed => {
                        refused = Some(format!("{}: {error}", step.hook.name()));
                        break;
                    }
                    Err(error) => {
                        tracing::debug!(hook = step.hook.name(), %error, "not available");
                    }
                }
            }
            match refused {
                None => {
                    if let Some(first) = attached.first_mut() {
                        first.passed = passed;
                    }
                    return Ok(attached);
                }
                // Whatever part of a rung is attached stays attached.
                Some(error) => passed.push(error),
            }
        }
        let last = self.rungs.last().and_then(|rung| rung.first());
        Ok(vec![AttachedProgram {
            probe: self.probe,
            program: last.map_or("", |step| step.program),
            mechanism: last.map_or_else(String::new, |step| step.hook.name()),
            error: Some(passed.join("; ")),
            missed: Some(self.missed),
            passed: Vec::new(),
            instructions: None,
        }])
    }
}

impl HookStep {
    /// Loads and attaches the step; returns the number of instructions that the verifier processed,
    /// if the kernel reports it.
    fn attach(
        &self,
        ebpf: &mut Ebpf,
        machine: &KernelSupport<'_>,
        made: &mut SwitchablePrograms,
    ) -> Result<Result<Option<u32>, String>, SensorError> {
        let kind = self.hook.name();
        let kind = kind.split('/').next().unwrap_or_default();
        if is_skipped(kind) {
            return Ok(Err(format!("skipped by {SKIP_HOOKS}")));
        }
        if self.program == "file_open_uring" && !machine.uring {
            return Ok(Err("its records do not contain the request".to_owned()));
        }
        if let Some(error) = self.hook.incompatibility(machine.prototypes) {
            return Ok(Err(error));
        }
        if let Hook::Proc(_) = self.hook {
            return Ok(Ok(None));
        }
        if let Hook::Uprobe(_) | Hook::Uretprobe(_) = self.hook {
            return Ok(self.load_uprobe(ebpf, machine, made));
        }
        let program = ebpf
            .program_mut(self.program)
            .ok_or(SensorError::NoProgram(self.program))?;
        let began = Instant::now();
        let result = match self.hook {
            Hook::Lsm(_) if !machine.lsm => Err("bpf is not in the list of active LSMs".to_owned()),
            Hook::Lsm(_) | Hook::Fentry(_) if machine.types.is_none() => {
                Err("cannot read the kernel's BTF".to_owned())
            }
            // Loading takes verifier time, wasted if there is nothing to attach to.
            Hook::Kprobe(_) if !Path::new(KPROBES).exists() => Err(format!(
                "this kernel has no kprobes ({KPROBES} does not exist)"
            )),
            Hook::Cgroup(kind) => attach_to_cgroup(program, kind, machine.cgroup).map(|packets| {
                made.packets
                    .extend(packets.map(|packets| (self.program, packets)));
            }),
            hook => {
                attach_hook(program, hook, machine.types.as_ref()).map_err(|error| explain(&error))
            }
        };
        let instructions = program
            .info()
            .ok()
            .and_then(|info| info.verified_instruction_count());
        tracing::debug!(
            program = self.program,
            instructions,
            milliseconds = began.elapsed().as_millis(),
            "tried"
        );
        if let (Ok(()), Hook::Called(map)) = (&result, self.hook) {
            self.add_to_program_array(ebpf, map)?;
        }
        Ok(result.map(|()| instructions))
    }

    /// Loads a program for user-space functions, and passes it to the uprobe threads.
    fn load_uprobe(
        &self,
        ebpf: &mut Ebpf,
        machine: &KernelSupport<'_>,
        made: &mut SwitchablePrograms,
    ) -> Result<Option<u32>, String> {
        uprobe::MECHANISM.as_ref().map_err(String::clone)?;
        if matches!(self.hook, Hook::Uretprobe(_)) && !*uprobe::RETURNS {
            return Err(uprobe::NO_RETURNS.to_owned());
        }
        let name = self
            .program
            .strip_suffix(SHORT_SUFFIX)
            .unwrap_or(self.program);
        if made.uprobes.contains_key(name) {
            return Ok(None);
        }
        let (program, instructions) = match (made.ahead.remove(self.program), &machine.multi) {
            (Some(loaded), _) => loaded?,
            (None, Some(programs)) => programs.load(self.program)?,
            (None, None) => load_with_aya(ebpf, self.program).map_err(|error| explain(&error))?,
        };
        made.uprobes.insert(name, program);
        Ok(instructions)
    }

    /// Stores the loaded program in the map from which its caller tail-calls it.
    fn add_to_program_array(&self, ebpf: &mut Ebpf, name: &'static str) -> Result<(), SensorError> {
        let program = ebpf
            .program(self.program)
            .and_then(|program| program.fd().ok())
            .ok_or(SensorError::NoProgram(self.program))?
            .try_clone()
            .map_err(|source| SensorError::Descriptor {
                program: self.program,
                source,
            })?;
        let failed = |source| SensorError::Map { name, source };
        let map = ebpf.map_mut(name).ok_or(SensorError::NoMap(name))?;
        let mut called: ProgramArray<_> = map.try_into().map_err(failed)?;
        called.set(0, &program, 0).map_err(failed)
    }
}

fn load_with_aya(ebpf: &mut Ebpf, name: &str) -> Result<(Uprobe, Option<u32>), ProgramError> {
    let program: &mut UProbe = ebpf
        .program_mut(name)
        .ok_or(ProgramError::UnexpectedProgramType)?
        .try_into()?;
    program.load()?;
    let instructions = program.info()?.verified_instruction_count();
    let fd = program.fd()?.as_fd().try_clone_to_owned();
    let loaded = Uprobe {
        fd: fd.map_err(ProgramError::IOError)?,
        at_return: matches!(program.kind(), ProbeKind::Return),
    };
    Ok((loaded, instructions))
}

/// Attaches a program to a hook in the kernel. A program that serves several hooks is loaded once.
fn attach_hook(program: &mut Program, hook: Hook, types: Option<&Btf>) -> Result<(), ProgramError> {
    let loaded = program.fd().is_ok();
    match (hook, types) {
        (Hook::Lsm(hook), Some(types)) => {
            let program: &mut Lsm = program.try_into()?;
            program.load(hook, types)?;
            program.attach().map(drop)
        }
        (Hook::Fentry(function), Some(types)) => {
            let program: &mut FEntry = program.try_into()?;
            program.load(function, types)?;
            program.attach().map(drop)
        }
        (Hook::Kprobe(function), _) => {
            let program: &mut KProbe = program.try_into()?;
            program.load()?;
            program.attach(function, 0).map(drop)
        }
        (Hook::Tracepoint(category, name), _) => {
            let program: &mut TracePoint = program.try_into()?;
            if !loaded {
                program.load()?;
            }
            program.attach(category, name).map(drop)
        }
        (Hook::RawTracepoint(name), _) => {
            let program: &mut RawTracePoint = program.try_into()?;
            program.load()?;
            program.attach(name).map(drop)
        }
        (Hook::Called(_), _) => {
            let program: &mut CgroupSkb = program.try_into()?;
            program.load()
        }
        (
            Hook::Cgroup(_)
            | Hook::Lsm(_)
            | Hook::Fentry(_)
            | Hook::Proc(_)
            | Hook::Uprobe(_)
            | Hook::Uretprobe(_),
            _,
        ) => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Attaches a program to the cgroup root; returns it if it sees packets.
fn attach_to_cgroup(
    program: &mut Program,
    kind: &str,
    cgroup: Option<&Path>,
) -> Result<Option<PacketProgram>, String> {
    let path = cgroup.ok_or("no cgroup v2 file system is mounted")?;
    let file =
        File::open(path).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
    let attach = || -> Result<Option<PacketProgram>, ProgramError> {
        if let Program::CgroupSkb(_) = program {
            let program: &mut CgroupSkb = program.try_into()?;
            program.load()?;
            let direction = if kind == "ingress" {
                PacketDirection::Ingress
            } else {
                PacketDirection::Egress
            };
            let fd = program.fd()?.as_fd().try_clone_to_owned();
            fd.and_then(|fd| PacketProgram::attach(fd, file, direction))
                .map(Some)
                .map_err(ProgramError::IOError)
        } else {
            let program: &mut CgroupSockAddr = program.try_into()?;
            program.load()?;
            program.attach(file, CgroupAttachMode::Single)?;
            Ok(None)
        }
    };
    attach().map_err(|error| explain(&error))
}

/// An error with its causes, without the verifier's log, which goes to the debug log.
fn explain(error: &ProgramError) -> String {
    if let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    {
        tracing::debug!(%verifier_log, "the verifier rejected a probe");
        return format!("rejected by the kernel: {io_error}");
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// The active LSMs, if securityfs lists them.
pub fn active_lsms() -> Option<String> {
    std::fs::read_to_string("/sys/kernel/security/lsm")
        .ok()
        .map(|list| list.trim().to_owned())
}

/// Helper functions that this kernel provides; probed once.
#[derive(Clone, Copy, Debug)]
pub struct HelperSupport {
    /// The current task as a typed pointer, for tracing programs and for socket programs. Without
    /// it they read what they need through a helper.
    pub typed_task: [bool; 2],
    /// The current task, for packet programs.
    pub task_of_packet: bool,
    /// Loops of any length (`bpf_loop`).
    pub loops: bool,
}

/// What this kernel supports.
pub static HELPERS: LazyLock<HelperSupport> = LazyLock::new(|| {
    let has = |kind, helper| is_helper_supported(kind, helper).unwrap_or(false);
    let typed_task = BpfHelper::BPF_FUNC_get_current_task_btf;
    HelperSupport {
        typed_task: [ProgramType::RawTracePoint, ProgramType::CgroupSockAddr]
            .map(|kind| has(kind, typed_task)),
        task_of_packet: has(ProgramType::CgroupSkb, BpfHelper::BPF_FUNC_get_current_task),
        loops: has(ProgramType::KProbe, BpfHelper::BPF_FUNC_loop),
    }
});

/// Exists if the kernel has kprobes.
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe";

#[cfg(test)]
mod tests;
