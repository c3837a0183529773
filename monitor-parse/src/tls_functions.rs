//! Recognises TLS libraries, and programs that contain one, by the functions they define.

use crate::{
    elf::{Elf, ElfError, ElfFunction, ReadAt, SymbolTable, UnwindEntry},
    go_table,
};

/// A TLS library: its functions that take or return plaintext, with the program for each.
#[derive(Debug)]
pub struct TlsStack {
    pub name: &'static str,
    functions: &'static [(&'static str, &'static str)],
}

/// The program at functions `(object, bytes, length)`.
pub const WRITE: &str = "present_write";
/// The program at the returns of these functions, if they are inside a program.
pub const WRITTEN: &str = "present_written";
/// The program at functions that free an object.
pub const FREED: &str = "present_freed";
/// The program at `SSL_ctrl`.
pub const SERVER: &str = "present_server";
/// The program at functions `(object, bytes, length)` that return received bytes, and at those that
/// take a pointer to the length as well. Attached to one process at a time.
pub const READ: &str = "tls_read_enter";
pub const READ_EX: &str = "tls_read_enter_ex";
/// The program at the returns of these functions.
pub const READ_RETURN: &str = "tls_read_exit";
/// The program at a Go function that takes `(object, bytes, length)`.
pub const GO: &str = "present_go";

/// Go's TLS stack, and its function.
const GO_STACK: &str = "go";
const GO_WRITE: &str = "crypto/tls.(*Conn).Write";

/// Every stack that is recognised by symbols.
pub const STACKS: [TlsStack; 2] = [
    TlsStack {
        name: "openssl",
        functions: &[
            ("SSL_write", WRITE),
            ("SSL_write_ex", WRITE),
            ("SSL_ctrl", SERVER),
            ("SSL_free", FREED),
            ("SSL_read", READ),
            ("SSL_read_ex", READ_EX),
        ],
    },
    TlsStack {
        name: "gnutls",
        functions: &[
            ("gnutls_record_send", WRITE),
            ("gnutls_record_recv", READ),
            ("gnutls_deinit", FREED),
        ],
    },
];

/// A program by its name, as received from another process.
pub fn known_program(name: &str) -> Option<&'static str> {
    let all = [
        WRITE,
        WRITTEN,
        FREED,
        SERVER,
        READ,
        READ_EX,
        READ_RETURN,
        GO,
    ];
    all.into_iter().find(|program| *program == name)
}

/// A TLS stack by its name, as received from another process.
pub fn known_stack(name: &str) -> Option<&'static str> {
    let all = STACKS.iter().map(|stack| stack.name).chain([GO_STACK]);
    all.into_iter().find(|stack| *stack == name)
}

/// Maximum functions with the same name; a library has one, or one per symbol version.
const SAME_NAME_MAX: usize = 4;
/// Maximum reasons kept per file.
const REASONS_MAX: usize = 4;
/// Bytes at a function's entry that are compared between a process and its file.
pub const ENTRY_BYTES: usize = 16;

/// A position in a file at which a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachPoint {
    pub program: &'static str,
    /// Offset in the file.
    pub offset: u64,
    pub entry: [u8; ENTRY_BYTES],
}

/// The attach points of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsInspection {
    /// The TLS stacks found, and the entries of their functions.
    pub stacks: Vec<(&'static str, Vec<AttachPoint>)>,
    /// Why functions that look like those of a TLS stack are not attached to.
    pub unproven: Vec<String>,
}

impl TlsInspection {
    pub fn is_empty(&self) -> bool {
        self.stacks.is_empty() && self.unproven.is_empty()
    }

    fn clear(&mut self, reason: String) {
        if self.unproven.len() < REASONS_MAX && !self.unproven.contains(&reason) {
            self.unproven.push(reason);
        }
    }
}

/// Finds the functions of every stack in a file. Go's functions are searched together with the
/// dynamic symbols.
pub fn inspect<F: ReadAt + ?Sized>(
    file: &F,
    symbols: SymbolTable,
) -> Result<TlsInspection, ElfError> {
    let elf = Elf::parse(file)?;
    let mut inspection = TlsInspection::default();
    let names: Vec<(&TlsStack, &str, &'static str)> = STACKS
        .iter()
        .flat_map(|stack| {
            let of_stack =
                move |(name, program): &(&'static str, &'static str)| (stack, *name, *program);
            stack.functions.iter().map(of_stack)
        })
        .collect();
    let wanted: Vec<&str> = names.iter().map(|(_, name, _)| *name).collect();
    let functions = elf.functions(symbols, &wanted)?;
    for ElfFunction { name, address } in &functions {
        let same_name = functions.iter().filter(|other| other.name == *name).count();
        let (stack, name, program) = names[*name];
        let address = *address;
        if same_name > SAME_NAME_MAX {
            inspection.clear(format!(
                "{}: {same_name} functions are named {name}",
                stack.name
            ));
            continue;
        }
        match prove_entry(&elf, program, address)? {
            Ok(point) => add_point(&mut inspection.stacks, stack.name, point),
            Err(reason) => {
                inspection.clear(format!("{}: {name} at {address:#x}: {reason}", stack.name));
            }
        }
    }
    // Unrelated functions of the same names do not make a TLS library.
    inspection
        .stacks
        .retain(|(_, points)| points.iter().any(|point| point.program == WRITE));
    if symbols == SymbolTable::Dynamic {
        inspect_go(&elf, &mut inspection)?;
    }
    Ok(inspection)
}

fn inspect_go<F: ReadAt + ?Sized>(
    elf: &Elf<'_, F>,
    inspection: &mut TlsInspection,
) -> Result<(), ElfError> {
    match go_table::find_function(elf, GO_WRITE) {
        Ok(None) => {}
        Ok(Some(address)) => match prove_entry(elf, GO, address)? {
            Ok(point) => add_point(&mut inspection.stacks, GO_STACK, point),
            Err(reason) => inspection.clear(format!("{GO_STACK}: {reason}")),
        },
        Err(go_table::GoError::Elf(error @ ElfError::Read(_))) => return Err(error),
        Err(error) => inspection.clear(format!("{GO_STACK}: {error}")),
    }
    Ok(())
}

/// The attach point at an address, if a function is proven to begin there; otherwise the reason why
/// not.
fn prove_entry<F: ReadAt + ?Sized>(
    elf: &Elf<'_, F>,
    program: &'static str,
    address: u64,
) -> Result<Result<AttachPoint, &'static str>, ElfError> {
    let Some(offset) = elf.code_offset(address) else {
        return Ok(Err("that address contains no code"));
    };
    // Go's functions have no unwind table, and a proof of their own.
    if program != GO && elf.unwind(address)? == UnwindEntry::Inside {
        return Ok(Err(
            "no function begins there according to the unwind tables",
        ));
    }
    let mut entry = [0; ENTRY_BYTES];
    match elf.read(address, &mut entry) {
        Err(ElfError::Truncated(_)) => return Ok(Err("the file ends there")),
        read => read?,
    }
    if is_filler(&entry) {
        return Ok(Err("the bytes there are not code"));
    }
    // Go's functions have no landing pads.
    let skipped = landing_pad_before_push(&entry);
    let offset = offset + skipped;
    if skipped > 0 && elf.read(address + skipped, &mut entry).is_err() {
        return Ok(Err("the file ends there"));
    }
    Ok(Ok(AttachPoint {
        program,
        offset,
        entry,
    }))
}

/// The length of a landing pad (`endbr64`) that a `push` follows. The kernel emulates a `push`, and lets
/// the processor execute a landing pad, which takes a second trap. Nothing that a program looks at
/// changes between the two: registers, and the return address on the stack.
fn landing_pad_before_push(entry: &[u8; ENTRY_BYTES]) -> u64 {
    const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
    const PUSH: std::ops::RangeInclusive<u8> = 0x50..=0x57;
    /// Makes it one of the registers from r8 on.
    const EXTENDED: u8 = 0x41;
    let is_push = PUSH.contains(&entry[4]) || (entry[4] == EXTENDED && PUSH.contains(&entry[5]));
    if cfg!(target_arch = "x86_64") && entry.starts_with(&ENDBR64) && is_push {
        ENDBR64.len() as u64
    } else {
        0
    }
}

/// Whether bytes are padding that linkers insert between functions.
fn is_filler(entry: &[u8; ENTRY_BYTES]) -> bool {
    entry.iter().all(|byte| *byte == 0) || entry[0] == 0xcc
}

fn add_point(
    stacks: &mut Vec<(&'static str, Vec<AttachPoint>)>,
    stack: &'static str,
    point: AttachPoint,
) {
    match stacks.iter_mut().find(|(known, _)| *known == stack) {
        Some((_, points)) if points.contains(&point) => {}
        Some((_, points)) => points.push(point),
        None => stacks.push((stack, vec![point])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{elf::WINDOW, peak};
    use proptest::prelude::*;
    use std::{fs::File, io, io::Write as _, os::unix::fs::FileExt as _};

    impl ReadAt for File {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            // A regular file on a local disk is read in full.
            std::os::unix::fs::FileExt::read_at(self, buffer, offset)
        }
    }

    const TABLES: [SymbolTable; 2] = [SymbolTable::Dynamic, SymbolTable::Static];

    #[test]
    fn a_program_without_tls_has_nothing() {
        let file = File::open("/proc/self/exe").expect("this program");
        for symbols in TABLES {
            let found = inspect(&file, symbols).expect("an ELF file");
            assert_eq!(found, TlsInspection::default());
        }
    }

    /// An ELF file of two pages on disk whose tables claim the given size.
    fn sparse(kind: u32, size: u64) -> File {
        let mut header = b"\x7fELF\x02\x01\x01".to_vec();
        header.resize(16, 0);
        let machine: u16 = if cfg!(target_arch = "aarch64") {
            183
        } else {
            62
        };
        header.extend(3u16.to_le_bytes());
        header.extend(machine.to_le_bytes());
        header.extend(1u32.to_le_bytes());
        for word in [0u64, 64, 4096] {
            header.extend(word.to_le_bytes());
        }
        header.extend(0u32.to_le_bytes());
        for half in [64u16, 56, 1, 64, 3, 0] {
            header.extend(half.to_le_bytes());
        }
        let mut sections = vec![0; 64];
        for (kind, link) in [(kind, 2u32), (3, 0)] {
            sections.extend(0u32.to_le_bytes());
            sections.extend(kind.to_le_bytes());
            for word in [0u64, 0, 8192, size] {
                sections.extend(word.to_le_bytes());
            }
            sections.extend(link.to_le_bytes());
            sections.extend(0u32.to_le_bytes());
            sections.extend([1u64, 24].map(u64::to_le_bytes).concat());
        }
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&header, 0).expect("written");
        file.write_all_at(&sections, 4096).expect("written");
        file.set_len(1 << 30).expect("sparse");
        file
    }

    #[test]
    fn sizes_claimed_by_a_header_allocate_nothing() {
        for (kind, symbols) in [(11, SymbolTable::Dynamic), (2, SymbolTable::Static)] {
            for size in [1 << 20, 200 << 20, 1 << 30, 1 << 62, u64::MAX] {
                let file = sparse(kind, size);
                let bytes = peak::of(|| drop(inspect(&file, symbols)));
                assert!(bytes < 8 * WINDOW, "{bytes} bytes for a claim of {size}");
            }
        }
    }

    #[test]
    fn this_machines_libraries_are_proven() {
        let mut proven = 0;
        for directory in ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"] {
            for name in ["libssl.so.3", "libgnutls.so.30"] {
                let Ok(file) = File::open(format!("{directory}/{name}")) else {
                    continue;
                };
                let mut found = TlsInspection::default();
                let bytes = peak::of(|| {
                    found = inspect(&file, SymbolTable::Dynamic).expect("an ELF file");
                });
                assert!(bytes < 8 * WINDOW, "{bytes} bytes for {name}");
                assert_eq!(found.unproven, Vec::<String>::new(), "{name}");
                assert!(!found.stacks.is_empty(), "{name} has functions");
                proven += 1;
            }
        }
        assert!(proven > 0, "the tests need libssl.so.3 or libgnutls.so.30");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_landing_pad_is_skipped_before_a_push_only() {
        let skipped = |front: &[u8]| {
            let mut entry = [0x90; ENTRY_BYTES];
            entry[..front.len()].copy_from_slice(front);
            landing_pad_before_push(&entry)
        };
        assert_eq!(skipped(&[0xf3, 0x0f, 0x1e, 0xfa, 0x53]), 4);
        assert_eq!(skipped(&[0xf3, 0x0f, 0x1e, 0xfa, 0x41, 0x57]), 4);
        // `sub`, which is executed in any case; the landing pad of 32-bit code; no landing pad.
        assert_eq!(skipped(&[0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0x83, 0xec]), 0);
        assert_eq!(skipped(&[0xf3, 0x0f, 0x1e, 0xfb, 0x53]), 0);
        assert_eq!(skipped(&[0x53]), 0);
    }

    /// A symbol that points into a function must not be attached to.
    #[test]
    fn a_symbol_inside_a_function_is_not_proven() {
        let multiarch = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        let bytes = std::fs::read(format!("{multiarch}/libssl.so.3"))
            .expect("the tests need libssl.so.3, with which curl comes");
        let elf = Elf::parse(bytes.as_slice()).expect("an ELF file");
        let found = elf
            .functions(SymbolTable::Dynamic, &["SSL_write"])
            .expect("symbols");
        let address = found[0].address;
        assert!(prove_entry(&elf, WRITE, address).expect("read").is_ok());
        for inside in [1, 3, 7] {
            let proof = prove_entry(&elf, WRITE, address + inside).expect("read");
            assert!(proof.is_err(), "{inside} bytes inside");
        }
    }

    proptest! {
        #[test]
        fn any_file(bytes in proptest::collection::vec(any::<u8>(), 0..2000), elf: bool) {
            let front: &[u8] = if elf { b"\x7fELF\x02\x01\x01\0" } else { b"" };
            let bytes = [front, &bytes].concat();
            for symbols in TABLES {
                let _ = inspect(bytes.as_slice(), symbols);
            }
        }

        #[test]
        fn a_program_with_any_byte_changed(place in 0usize..4096, byte: u8, cut in 0usize..20_000) {
            let mut bytes = std::fs::read("/bin/true").expect("a program");
            let place = place % bytes.len();
            bytes[place] = byte;
            let cut = cut % bytes.len();
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(&bytes).expect("written");
            for symbols in TABLES {
                let _ = inspect(&file, symbols);
                let _ = inspect(&bytes[..cut], symbols);
            }
        }
    }
}
