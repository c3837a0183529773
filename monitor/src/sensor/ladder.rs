//! The hook ladder: for each observation the hooks that can serve it, the best first. The first
//! one that this kernel accepts is used; that is found by trying, not by version.

use super::{
    Attached, SensorError,
    attacher::Programs,
    btf::{Btf as Prototypes, Parameter},
    multi::MultiPrograms,
    tls,
    uprobe::{self, Program as Uprobe},
};
use aya::{
    Btf, Ebpf,
    maps::ProgramArray,
    programs::{
        CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, FEntry, KProbe, Lsm,
        ProbeKind, Program, ProgramError, ProgramType, RawTracePoint, TracePoint, UProbe,
    },
    sys::{BpfHelper, is_helper_supported},
};
use monitor_common::record::Probe;
use std::{fs::File, os::fd::AsFd as _, path::Path, sync::LazyLock, time::Instant};

/// One program at one hook.
#[derive(Clone, Copy, Debug)]
struct Step {
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
    /// A function of TLS libraries: the program is loaded, and attached to files as they are found.
    Uprobe(&'static str),
    /// The same at its return.
    Uretprobe(&'static str),
    /// Called by another program, which finds it in a map.
    Called(&'static str),
    /// No hook: the agent looks in `/proc` when a process has become another program.
    Proc(&'static str),
}

impl Hook {
    /// How it is named in metrics and by `doctor`.
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
            Self::Called("MINTED") => "cgroup_skb/ingress".to_owned(),
            Self::Called(_) => "cgroup_skb/egress".to_owned(),
            Self::Proc(file) => format!("proc/{file}"),
        }
    }
}

/// A parameter as a program expects it: a pointer to a structure, or a value of so many bytes.
#[derive(Clone, Copy, Debug)]
enum Expected {
    Pointer(&'static str),
    Value(u32),
    /// The program does not look at it.
    Any,
}

impl Expected {
    fn is(self, found: &Parameter) -> bool {
        match (self, found) {
            (Self::Any, _) => true,
            (Self::Pointer(name), Parameter::Pointer(found)) => name == found,
            (Self::Value(size), Parameter::Value(found)) => size == *found,
            _ => false,
        }
    }
}

impl Hook {
    /// The function whose parameters the programs at this hook read, and what they take them for.
    /// A raw tracepoint's first parameter is its own.
    fn contract(self) -> Option<(String, &'static [Expected])> {
        use Expected::{Any, Pointer, Value};
        const TASK: Expected = Pointer("task_struct");
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
        let expected: &[Expected] = match hook {
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

    /// What is wrong with the hook on this kernel. A function that its types do not name is left
    /// to the loader.
    fn broken(self, prototypes: &Prototypes) -> Option<String> {
        let (name, expected) = self.contract()?;
        let found = match prototypes.parameters(&name) {
            Ok(found) => found?,
            Err(error) => return Some(format!("its prototype cannot be read: {error}")),
        };
        let holds = found.len() >= expected.len()
            && expected
                .iter()
                .zip(&found)
                .all(|(expected, found)| expected.is(found));
        (!holds).then(|| format!("its prototype on this kernel is {found:?}"))
    }
}

const fn step(program: &'static str, hook: Hook) -> Step {
    Step {
        program,
        hook,
        needed: true,
    }
}

const fn optional(program: &'static str, hook: Hook) -> Step {
    Step {
        program,
        hook,
        needed: false,
    }
}

/// What serves one observation.
#[derive(Clone, Copy, Debug)]
pub struct Ladder {
    pub probe: Probe,
    /// Said where no rung holds.
    missed: &'static str,
    rungs: &'static [&'static [Step]],
}

/// Some architectures have no open(2) of their own.
const OPEN: Step = optional(
    "file_open_exit",
    Hook::Tracepoint("syscalls", "sys_exit_open"),
);

/// Every ladder, in the order of attachment: processes first, as what they do is attributed to
/// them.
pub const LADDERS: &[Ladder] = &[
    Ladder {
        probe: Probe::Process,
        missed: "which process belongs to which",
        rungs: &[&[
            step("process_fork", Hook::RawTracepoint("sched_process_fork")),
            step("process_exec", Hook::RawTracepoint("sched_process_exec")),
            step("process_exit", Hook::RawTracepoint("sched_process_exit")),
        ]],
    },
    Ladder {
        probe: Probe::Environ,
        missed: "variables of a process that ends before the agent has read its environment",
        rungs: &[
            &[step(
                "environ_exec",
                Hook::RawTracepoint("sched_process_exec"),
            )],
            &[step(ENVIRON_BY_AGENT, Hook::Proc("environ"))],
        ],
    },
    Ladder {
        probe: Probe::File,
        missed: "credential files that are opened",
        rungs: &[
            &[step("file_open_lsm", Hook::Lsm("file_open"))],
            &[step("file_open_fentry", Hook::Fentry("security_file_open"))],
            &[step("file_open_kprobe", Hook::Kprobe("security_file_open"))],
            &[
                step(
                    "file_open_exit",
                    Hook::Tracepoint("syscalls", "sys_exit_openat"),
                ),
                OPEN,
                step(
                    "file_open_exit",
                    Hook::Tracepoint("syscalls", "sys_exit_openat2"),
                ),
                step(
                    "file_open_exit",
                    Hook::Tracepoint("syscalls", "sys_exit_open_by_handle_at"),
                ),
                optional(
                    "file_open_uring",
                    Hook::Tracepoint("io_uring", "io_uring_complete"),
                ),
            ],
        ],
    },
    Ladder {
        probe: Probe::File,
        missed: "descriptors of credential files that are received from another process",
        rungs: &[
            &[step("file_receive_lsm", Hook::Lsm("file_receive"))],
            &[step(
                "file_receive_fentry",
                Hook::Fentry("security_file_receive"),
            )],
            &[step(
                "file_receive_kprobe",
                Hook::Kprobe("security_file_receive"),
            )],
        ],
    },
    Ladder {
        probe: Probe::File,
        missed: "descriptors of credential files that a program is started with, across a change of user or control group",
        rungs: &[&[step(
            "file_inherited",
            Hook::RawTracepoint("sched_process_exec"),
        )]],
    },
    Ladder {
        probe: Probe::Memory,
        missed: "memory of a process that another one reads, and descriptors taken from it",
        rungs: &[
            &[step("memory_lsm", Hook::Lsm("ptrace_access_check"))],
            &[step(
                "memory_fentry",
                Hook::Fentry("security_ptrace_access_check"),
            )],
            &[step(
                "memory_kprobe",
                Hook::Kprobe("security_ptrace_access_check"),
            )],
            &[
                step(
                    "memory_ptrace",
                    Hook::Tracepoint("syscalls", "sys_enter_ptrace"),
                ),
                step(
                    "memory_exit",
                    Hook::Tracepoint("syscalls", "sys_exit_ptrace"),
                ),
                step(
                    "memory_vm_readv",
                    Hook::Tracepoint("syscalls", "sys_enter_process_vm_readv"),
                ),
                step(
                    "memory_exit",
                    Hook::Tracepoint("syscalls", "sys_exit_process_vm_readv"),
                ),
            ],
        ],
    },
    Ladder {
        probe: Probe::Connect,
        missed: "connections over IPv4",
        rungs: &[&[step("connect_v4", Hook::Cgroup("connect4"))]],
    },
    Ladder {
        probe: Probe::Connect,
        missed: "connections over IPv6",
        rungs: &[&[step("connect_v6", Hook::Cgroup("connect6"))]],
    },
    Ladder {
        probe: Probe::Connect,
        missed: "datagrams over IPv4",
        rungs: &[&[step("connect_udp_v4", Hook::Cgroup("sendmsg4"))]],
    },
    Ladder {
        probe: Probe::Connect,
        missed: "datagrams over IPv6",
        rungs: &[&[step("connect_udp_v6", Hook::Cgroup("sendmsg6"))]],
    },
    Ladder {
        probe: Probe::Connect,
        missed: "credentials that are handed out over unix sockets",
        rungs: &[&[
            step(
                "unix_connect",
                Hook::Tracepoint("syscalls", "sys_enter_connect"),
            ),
            step(
                "unix_connected",
                Hook::Tracepoint("syscalls", "sys_exit_connect"),
            ),
        ]],
    },
    Ladder {
        probe: Probe::Connect,
        missed: "that a connection was refused: it is shown as a hop",
        rungs: &[&[step(
            "connect_outcome",
            Hook::RawTracepoint("inet_sock_set_state"),
        )]],
    },
    Ladder {
        probe: Probe::Hello,
        missed: "server names of TLS connections",
        rungs: &[&[step("hello_egress", Hook::Cgroup("egress"))]],
    },
    Ladder {
        probe: Probe::Dns,
        missed: "names of destinations that name servers gave",
        rungs: &[&[step("answer_ingress", Hook::Cgroup("ingress"))]],
    },
    Ladder {
        probe: Probe::Clear,
        missed: "credentials that are presented in clear",
        rungs: &[&[step("clear_egress", Hook::Called("CLEAR"))]],
    },
    Ladder {
        probe: Probe::Clear,
        missed: "what authenticators mint in clear",
        rungs: &[&[step("minted_ingress", Hook::Called("MINTED"))]],
    },
    Ladder {
        probe: Probe::Present,
        missed: "credentials that are presented inside TLS",
        rungs: &[
            &[
                step(tls::WRITE, Hook::Uprobe("write")),
                optional(tls::WRITTEN, Hook::Uretprobe("written")),
                step(tls::FREED, Hook::Uprobe("freed")),
                step(tls::SERVER, Hook::Uprobe("server")),
                step(tls::GO, Hook::Uprobe("go")),
                step(tls::READ, Hook::Uprobe("read")),
                step(tls::READ_EX, Hook::Uprobe("read")),
                optional(tls::RETURNED, Hook::Uretprobe("returned")),
            ],
            &[
                step("present_write_short", Hook::Uprobe("write")),
                optional(tls::WRITTEN, Hook::Uretprobe("written")),
                step(tls::FREED, Hook::Uprobe("freed")),
                step("present_go_short", Hook::Uprobe("go")),
            ],
        ],
    },
];

/// What ends the names of programs for kernels without `bpf_loop`.
const SHORT: &str = "_short";

/// In place of the name of a program: the environment is read by the agent.
pub const ENVIRON_BY_AGENT: &str = "";

/// What the rungs need to know of the machine.
pub struct Machine<'a> {
    /// The cgroup v2 root, where there is one.
    pub cgroup: Option<&'a Path>,
    /// The kernel's types, read by ourselves: what the programs expect of a hook is compared.
    pub prototypes: &'a Prototypes,
    /// The same as the loader wants them, where they can be read: for LSM and fentry.
    pub types: Option<Btf>,
    /// Whether `bpf` is in the list of active LSMs: without it an LSM program attaches, and never
    /// fires.
    pub lsm: bool,
    /// Whether the records of io_uring name their request; they do from 5.19 on. Without it the
    /// program attaches, and sees nothing.
    pub uring: bool,
    /// The programs for multi-uprobe links, where the kernel has such links.
    pub multi: Option<MultiPrograms>,
}

/// Kinds of hooks that are passed over, such as `lsm,fentry`, and of uprobes (`multi`, `pmu`): where
/// one of them is in the way of another tool, and for tests of those below.
pub const SKIP_HOOKS: &str = "KEYTRAIL_SKIP_HOOKS";

/// Whether a kind of hooks is passed over.
pub fn is_skipped(kind: &str) -> bool {
    static SKIPPED: LazyLock<String> =
        LazyLock::new(|| std::env::var(SKIP_HOOKS).unwrap_or_default());
    SKIPPED.split(',').any(|skipped| skipped.trim() == kind)
}

impl Ladder {
    /// Attaches the first rung that holds; tells which one, and why those above it do not.
    pub fn attach(
        &self,
        ebpf: &mut Ebpf,
        machine: &Machine<'_>,
        uprobes: &mut Programs,
    ) -> Result<Vec<Attached>, SensorError> {
        let mut passed: Vec<String> = Vec::new();
        for rung in self.rungs {
            let mut attached: Vec<Attached> = Vec::new();
            let mut refused = None;
            for step in *rung {
                match step.attach(ebpf, machine, uprobes)? {
                    Ok(instructions) => attached.push(Attached {
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
                // What of a rung is attached stays, and sees what it sees.
                Some(error) => passed.push(error),
            }
        }
        let last = self.rungs.last().and_then(|rung| rung.first());
        Ok(vec![Attached {
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

impl Step {
    /// Loads and attaches; gives what the verifier walked, where the kernel tells.
    fn attach(
        &self,
        ebpf: &mut Ebpf,
        machine: &Machine<'_>,
        uprobes: &mut Programs,
    ) -> Result<Result<Option<u32>, String>, SensorError> {
        let kind = self.hook.name();
        let kind = kind.split('/').next().unwrap_or_default();
        if is_skipped(kind) {
            return Ok(Err(format!("passed over, as {SKIP_HOOKS} says")));
        }
        if self.program == "file_open_uring" && !machine.uring {
            return Ok(Err("its records do not name the request".to_owned()));
        }
        if let Some(error) = self.hook.broken(machine.prototypes) {
            return Ok(Err(error));
        }
        if let Hook::Proc(_) = self.hook {
            return Ok(Ok(None));
        }
        if let Hook::Uprobe(_) | Hook::Uretprobe(_) = self.hook {
            return Ok(self.load_uprobe(ebpf, machine, uprobes));
        }
        let program = ebpf
            .program_mut(self.program)
            .ok_or(SensorError::NoProgram(self.program))?;
        let began = Instant::now();
        let result = match self.hook {
            Hook::Lsm(_) if !machine.lsm => Err("bpf is not in the list of active LSMs".to_owned()),
            Hook::Lsm(_) | Hook::Fentry(_) if machine.types.is_none() => {
                Err("the kernel's types cannot be read".to_owned())
            }
            // Loading takes the verifier's time, in vain where there is nothing to attach to.
            Hook::Kprobe(_) if !Path::new(KPROBES).exists() => Err(format!(
                "this kernel has no kprobes ({KPROBES} is not there)"
            )),
            Hook::Cgroup(kind) => at_cgroup(program, kind, machine.cgroup),
            hook => plain(program, hook, machine.types.as_ref()).map_err(|error| explain(&error)),
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
            self.put_in(ebpf, map)?;
        }
        Ok(result.map(|()| instructions))
    }

    /// Loads a program for functions of user space, and hands it to those who attach it.
    fn load_uprobe(
        &self,
        ebpf: &mut Ebpf,
        machine: &Machine<'_>,
        uprobes: &mut Programs,
    ) -> Result<Option<u32>, String> {
        uprobe::MECHANISM.as_ref().map_err(String::clone)?;
        if matches!(self.hook, Hook::Uretprobe(_)) && !*uprobe::RETURNS {
            return Err(uprobe::NO_RETURNS.to_owned());
        }
        let name = self.program.strip_suffix(SHORT).unwrap_or(self.program);
        if uprobes.contains_key(name) {
            return Ok(None);
        }
        let (program, instructions) = match &machine.multi {
            Some(programs) => programs.load(self.program)?,
            None => load_with_aya(ebpf, self.program).map_err(|error| explain(&error))?,
        };
        uprobes.insert(name, program);
        Ok(instructions)
    }

    /// Puts the loaded program where its caller looks for it.
    fn put_in(&self, ebpf: &mut Ebpf, name: &'static str) -> Result<(), SensorError> {
        let program = ebpf
            .program(self.program)
            .and_then(|program| program.fd().ok())
            .ok_or(SensorError::NoProgram(self.program))?
            .try_clone()
            .map_err(SensorError::Wait)?;
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

/// Everything that is attached to the kernel as a whole. A program that serves several hooks is
/// loaded once.
fn plain(program: &mut Program, hook: Hook, types: Option<&Btf>) -> Result<(), ProgramError> {
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

fn at_cgroup(program: &mut Program, kind: &str, cgroup: Option<&Path>) -> Result<(), String> {
    let path = cgroup.ok_or("no cgroup v2 file system is mounted")?;
    let file =
        File::open(path).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
    let attach = || -> Result<(), ProgramError> {
        if let Program::CgroupSkb(_) = program {
            let program: &mut CgroupSkb = program.try_into()?;
            program.load()?;
            let way = if kind == "ingress" {
                CgroupSkbAttachType::Ingress
            } else {
                CgroupSkbAttachType::Egress
            };
            program
                .attach(file, way, CgroupAttachMode::Single)
                .map(drop)
        } else {
            let program: &mut CgroupSockAddr = program.try_into()?;
            program.load()?;
            program.attach(file, CgroupAttachMode::Single).map(drop)
        }
    };
    attach().map_err(|error| explain(&error))
}

/// An error with its causes, and without the verifier's log, which goes to the debug log.
fn explain(error: &ProgramError) -> String {
    if let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    {
        tracing::debug!(%verifier_log, "the verifier refused a probe");
        return format!("the kernel refused it: {io_error}");
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

/// The LSMs that are active, where securityfs shows them.
pub fn active_lsms() -> Option<String> {
    std::fs::read_to_string("/sys/kernel/security/lsm")
        .ok()
        .map(|list| list.trim().to_owned())
}

/// Where a tracepoint's record has its fields, from its description in tracefs: zeros where it
/// has none of these names.
pub fn tracepoint_fields<const N: usize>(
    category: &str,
    name: &str,
    fields: [(&str, u32); N],
) -> [u32; N] {
    let text = std::fs::read_to_string(format!("{TRACEFS}/events/{category}/{name}/format"))
        .unwrap_or_default();
    fields.map(|(field, size)| parse_field(&text, field, size).unwrap_or(0))
}

fn parse_field(format: &str, field: &str, size: u32) -> Option<u32> {
    format.lines().find_map(|line| {
        let mut parts = line
            .trim()
            .strip_prefix("field:")?
            .split(';')
            .map(str::trim);
        let declared = parts.next()?.rsplit([' ', '*']).next()?;
        let offset = parts.next()?.strip_prefix("offset:")?.parse().ok()?;
        let width: u32 = parts.next()?.strip_prefix("size:")?.parse().ok()?;
        (declared == field && width == size).then_some(offset)
    })
}

/// What this kernel gives programs, besides hooks; tried once.
#[derive(Clone, Copy, Debug)]
pub struct Helpers {
    /// The current task as a pointer of a known type, for programs that trace and for those of
    /// sockets. Without it they read what they need through a helper.
    pub typed_task: [bool; 2],
    /// The current task at all, for programs of packets.
    pub task_of_packet: bool,
    /// A loop of any length.
    pub loops: bool,
}

/// See [`Helpers`].
pub static HELPERS: LazyLock<Helpers> = LazyLock::new(|| {
    let has = |kind, helper| is_helper_supported(kind, helper).unwrap_or(false);
    let typed_task = BpfHelper::BPF_FUNC_get_current_task_btf;
    Helpers {
        typed_task: [ProgramType::RawTracePoint, ProgramType::CgroupSockAddr]
            .map(|kind| has(kind, typed_task)),
        task_of_packet: has(ProgramType::CgroupSkb, BpfHelper::BPF_FUNC_get_current_task),
        loops: has(ProgramType::KProbe, BpfHelper::BPF_FUNC_loop),
    }
});

/// Where a kernel with kprobes says so.
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe";

/// Where the kernel expects tracefs to be.
pub const TRACEFS: &str = "/sys/kernel/tracing";

/// Mounts tracefs where nobody has: hosts without systemd leave it out, and tracepoints are
/// found by the numbers in it.
pub fn ensure_tracefs() {
    let there = |path: &str| Path::new(path).join("events").is_dir();
    if there(TRACEFS) || there("/sys/kernel/debug/tracing") {
        return;
    }
    let flags = rustix::mount::MountFlags::NOSUID
        | rustix::mount::MountFlags::NODEV
        | rustix::mount::MountFlags::NOEXEC;
    match rustix::mount::mount("tracefs", TRACEFS, "tracefs", flags, None) {
        Ok(()) => tracing::info!("mounted tracefs at {TRACEFS}"),
        Err(error) => tracing::warn!(%error, "tracefs is not mounted at {TRACEFS}, and cannot be"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensor::fields::VMLINUX;
    use proptest::prelude::*;

    #[test]
    fn every_hook_of_this_kernel_is_as_the_programs_take_it() {
        let Ok(data) = std::fs::read(VMLINUX) else {
            eprintln!("skipped: this kernel has no BTF");
            return;
        };
        let prototypes = Prototypes::parse(VMLINUX, data).expect("BTF");
        let hooks = LADDERS
            .iter()
            .flat_map(|ladder| ladder.rungs.iter())
            .flat_map(|rung| rung.iter())
            .map(|step| step.hook);
        let mut compared = 0;
        for hook in hooks {
            assert_eq!(hook.broken(&prototypes), None, "{}", hook.name());
            let contract = hook.contract();
            compared += usize::from(contract.is_some_and(|(name, _)| {
                prototypes
                    .parameters(&name)
                    .is_ok_and(|found| found.is_some())
            }));
        }
        assert!(
            compared > 5,
            "this kernel's types name the hooks: {compared}"
        );
    }

    #[test]
    fn another_prototype_is_told() {
        let Ok(data) = std::fs::read(VMLINUX) else {
            eprintln!("skipped: this kernel has no BTF");
            return;
        };
        let prototypes = Prototypes::parse(VMLINUX, data).expect("BTF");
        assert!(!Expected::Pointer("file").is(&Parameter::Pointer("task_struct".to_owned())));
        assert!(!Expected::Value(4).is(&Parameter::Value(8)));
        let parameters = prototypes.parameters("vfs_fsync").expect("readable");
        assert_eq!(
            parameters,
            Some(vec![
                Parameter::Pointer("file".to_owned()),
                Parameter::Value(4)
            ])
        );
    }

    proptest! {
        #[test]
        fn any_description_of_a_tracepoint(text in "(field:|offset:|size:|[ a-z0-9;:*\t\n-]){0,60}") {
            let _ = parse_field(&text, "res", 4);
        }
    }

    #[test]
    fn fields_of_a_tracepoint() {
        let text = "name: io_uring_complete\nformat:\n\tfield:void * req;\toffset:16;\tsize:8;\tsigned:0;\n\tfield:int res;\toffset:32;\tsize:4;\tsigned:1;\n";
        assert_eq!(parse_field(text, "req", 8), Some(16));
        assert_eq!(parse_field(text, "res", 4), Some(32));
        assert_eq!(parse_field(text, "res", 8), None, "of another width");
        assert_eq!(parse_field("field:;;offset", "res", 4), None);
        assert_eq!(parse_field("", "res", 4), None);
    }
}
