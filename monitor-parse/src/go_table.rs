//! Finds the entry of a function in a Go program from the tables that every Go program carries for
//! its stack traces, even if stripped. The layouts are those of Go's `runtime.pcHeader` and
//! `runtime.moduledata`, unchanged from 1.18 to 1.27.
//!
//! The table of functions (`pclntab`) gives offsets from `runtime.text`. Its own field for that
//! address is 0 in position-independent programs, and in every program from Go 1.26 on; the section
//! `.text` begins earlier if the C library's start-up code comes first. Therefore the address is
//! taken from the module data, which is accepted only if it agrees with the table in every value
//! that both contain.

use crate::elf::{Elf, ElfError, ElfSegment, LoadedWindow, ReadAt};
use std::collections::HashMap;
use thiserror::Error;

/// Magic numbers of Go 1.18 and 1.20.
const MAGIC: [u32; 2] = [0xffff_fff0, 0xffff_fff1];
/// The minimum instruction length, which follows the magic number and two zeros.
const QUANTUM: u8 = if cfg!(target_arch = "aarch64") { 4 } else { 1 };
const POINTER: u8 = 8;
/// Sections that contain only the table.
const TABLES: [&str; 2] = [".gopclntab", ".data.rel.ro.gopclntab"];
/// The section that every Go program has, whatever linker produced it.
const BUILD_INFO: &str = ".go.buildinfo";
/// The section of the module data, from Go 1.26 on.
const MODULE: &str = ".go.module";
/// Maximum number of functions; the largest Kubernetes program has a quarter of a million.
const FUNCTIONS_MAX: u64 = 4 << 20;
/// Maximum candidate positions for the table or the module data before giving up on a program.
const CANDIDATES_MAX: usize = 64;
/// Words of the module data that are read.
const MODULE_WORDS: usize = 24;

/// Why the entry of a Go function could not be proven.
#[derive(Debug, Error)]
pub enum GoError {
    #[error(transparent)]
    Elf(#[from] ElfError),
    #[error("no table of functions that this version of Keytrail can read")]
    NoTable,
    #[error("no module data that agrees with the table of functions")]
    NoModule,
    #[error("the table of functions contradicts itself at {0}")]
    Contradiction(&'static str),
    #[error("the bytes at {0:#x} are not the beginning of a Go function")]
    NoPrologue(u64),
}

/// The address of a function by its name. `None` if the file is not a Go program or has no such
/// function.
///
/// # Errors
///
/// If it is a Go program and the address cannot be proven.
pub fn find_function<F: ReadAt + ?Sized>(
    elf: &Elf<'_, F>,
    name: &str,
) -> Result<Option<u64>, GoError> {
    let named = TABLES.iter().find_map(|table| elf.section(table));
    if named.is_none() && elf.section(BUILD_INFO).is_none() {
        return Ok(None);
    }
    let table = match named.map(|section| PclnTable::parse_at(elf, section.address)) {
        Some(Ok(Some(table))) => table,
        _ => PclnTable::scan_for(elf)?.ok_or(GoError::NoTable)?,
    };
    let Some(name_offset) = table.name_offset(elf, name)? else {
        return Ok(None);
    };
    let module = ModuleData::scan_for(elf, &table)?.ok_or(GoError::NoModule)?;
    let Some(entry) = table.entry_offset(elf, name_offset)? else {
        return Ok(None);
    };
    let address = module
        .text
        .checked_add(u64::from(entry))
        .filter(|address| (module.first..module.last).contains(address))
        .ok_or(GoError::Contradiction("the function's address"))?;
    if elf.code_offset(address).is_none() {
        return Err(GoError::Contradiction("the segment of the function"));
    }
    let mut bytes = [0; 16];
    elf.read(address, &mut bytes)?;
    if !begins_function(&bytes) {
        return Err(GoError::NoPrologue(address));
    }
    Ok(Some(address))
}

/// Whether bytes are the first instructions of a Go function that may grow its stack: they compare
/// the stack pointer, minus the size of a large frame, with the limit at offset 16 of the
/// goroutine.
fn begins_function(bytes: &[u8; 16]) -> bool {
    if cfg!(target_arch = "aarch64") {
        // ldr x16, [x28, #16]
        return bytes.starts_with(&[0x90, 0x0b, 0x40, 0xf9]);
    }
    const COMPARE_R12: [u8; 4] = [0x4d, 0x3b, 0x66, 0x10];
    match bytes {
        // cmp rsp, [r14 + 16]
        [0x49, 0x3b, 0x66, 0x10, ..] => true,
        // lea r12, [rsp - n]; cmp r12, [r14 + 16]
        [0x4c, 0x8d, 0x64, 0x24, _, rest @ ..] => rest.starts_with(&COMPARE_R12),
        [0x4c, 0x8d, 0xa4, 0x24, _, _, _, _, rest @ ..] => rest.starts_with(&COMPARE_R12),
        // mov r12, rsp; sub r12, n
        [0x49, 0x89, 0xe4, 0x49, 0x81, 0xec, ..] => true,
        _ => false,
    }
}

/// The header of `pclntab`.
#[derive(Clone, Copy, Debug)]
struct PclnTable {
    address: u64,
    functions: u64,
    /// 0 if the table does not contain it.
    text: u64,
    names: u64,
    /// End of the function names.
    units: u64,
    /// End of the compilation units.
    files: u64,
    /// The list of functions, and their records.
    entries: u64,
}

impl PclnTable {
    /// Parses a header; `None` if there is none at this address.
    fn parse_at<F: ReadAt + ?Sized>(
        elf: &Elf<'_, F>,
        address: u64,
    ) -> Result<Option<Self>, ElfError> {
        let mut header = [0; 72];
        match elf.read(address, &mut header) {
            Err(ElfError::Truncated(_)) => return Ok(None),
            read => read?,
        }
        let word = |index: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[8 + index * 8..16 + index * 8]);
            u64::from_le_bytes(bytes)
        };
        let magic = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let table = Self {
            address,
            functions: word(0),
            text: word(2),
            names: word(3),
            units: word(4),
            files: word(5),
            entries: word(7),
        };
        let header_holds = MAGIC.contains(&magic)
            && header[4..8] == [0, 0, QUANTUM, POINTER]
            && (1..=FUNCTIONS_MAX).contains(&table.functions);
        let ordered = [
            72,
            table.names,
            table.units,
            table.files,
            word(6),
            table.entries,
        ]
        .is_sorted();
        Ok((header_holds && ordered).then_some(table))
    }

    /// Searches the mapped non-code data for the table: some linkers merge it with other data.
    fn scan_for<F: ReadAt + ?Sized>(elf: &Elf<'_, F>) -> Result<Option<Self>, ElfError> {
        for magic in MAGIC {
            let [a, b, c, d] = magic.to_le_bytes();
            let needle = [a, b, c, d, 0, 0, QUANTUM, POINTER];
            for segment in elf.loaded().filter(|segment| !segment.executable) {
                let mut places = Vec::new();
                elf.find(&segment, &needle, |at| {
                    places.extend(at.is_multiple_of(8).then_some(at));
                    places.len() < CANDIDATES_MAX
                })?;
                for place in places {
                    if let Some(table) = Self::parse_at(elf, place)? {
                        return Ok(Some(table));
                    }
                }
            }
        }
        Ok(None)
    }

    fn read_word(&self, offset: u64) -> u64 {
        self.address.wrapping_add(offset)
    }

    /// The offset of a function's name in the name table.
    fn name_offset<F: ReadAt + ?Sized>(
        &self,
        elf: &Elf<'_, F>,
        name: &str,
    ) -> Result<Option<u32>, GoError> {
        let needle = [b"\0", name.as_bytes(), b"\0"].concat();
        let offset = self.read_word(self.names);
        let names = elf
            .loaded()
            .find(|segment| offset.wrapping_sub(segment.address) < segment.size)
            .map(|segment| ElfSegment {
                offset: segment.offset + (offset - segment.address),
                address: 0,
                size: (self.units - self.names).min(segment.size - (offset - segment.address)),
                ..segment
            })
            .ok_or(GoError::Contradiction("the place of the names"))?;
        let mut found = None;
        elf.find(&names, &needle, |at| {
            // After the zero that terminates the previous name.
            found = u32::try_from(at + 1).ok();
            false
        })?;
        Ok(found)
    }

    /// The offset from `runtime.text` of the function with that name.
    fn entry_offset<F: ReadAt + ?Sized>(
        &self,
        elf: &Elf<'_, F>,
        name_offset: u32,
    ) -> Result<Option<u32>, GoError> {
        let start = self.read_word(self.entries);
        // Both advance: a function's record follows the record of the function before it.
        let mut list: LoadedWindow<'_, '_, F> = elf.window(start)?;
        let mut records = elf.window(start)?;
        for index in 0..self.functions {
            let (entry, record) = list.pair(index * 8)?;
            let (same_entry, name) = records.pair(u64::from(record))?;
            if entry != same_entry {
                return Err(GoError::Contradiction("a function's record"));
            }
            if name == name_offset {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }
}

/// The used parts of `runtime.moduledata`.
#[derive(Clone, Copy, Debug)]
struct ModuleData {
    /// `runtime.text`.
    text: u64,
    /// The address range of all functions.
    first: u64,
    last: u64,
}

impl ModuleData {
    /// Searches for module data that agrees with the table. It begins with the table's address.
    fn scan_for<F: ReadAt + ?Sized>(
        elf: &Elf<'_, F>,
        table: &PclnTable,
    ) -> Result<Option<Self>, ElfError> {
        let mut places: Vec<u64> = elf
            .section(MODULE)
            .map(|section| section.address)
            .into_iter()
            .collect();
        // In a position-independent program the loader writes this address.
        elf.relative_relocations(|at, word| {
            places.extend((word == table.address).then_some(at));
            places.len() < CANDIDATES_MAX
        })?;
        let needle = table.address.to_le_bytes();
        for segment in elf.loaded().filter(|segment| !segment.executable) {
            elf.find(&segment, &needle, |at| {
                places.extend(at.is_multiple_of(8).then_some(at));
                places.len() < CANDIDATES_MAX
            })?;
        }
        places.sort_unstable();
        places.dedup();
        let relocated = relocated_words(elf, &places)?;
        for place in places {
            if let Some(module) = Self::parse_at(elf, table, place, &relocated)? {
                return Ok(Some(module));
            }
        }
        Ok(None)
    }

    fn parse_at<F: ReadAt + ?Sized>(
        elf: &Elf<'_, F>,
        table: &PclnTable,
        place: u64,
        relocated: &HashMap<u64, u64>,
    ) -> Result<Option<Self>, ElfError> {
        let mut bytes = [0; MODULE_WORDS * 8];
        match elf.read(place, &mut bytes) {
            Err(ElfError::Truncated(_)) => return Ok(None),
            read => read?,
        }
        let mut words = [0u64; MODULE_WORDS];
        for (index, (word, chunk)) in words.iter_mut().zip(bytes.chunks_exact(8)).enumerate() {
            let mut value = [0; 8];
            value.copy_from_slice(chunk);
            let loaded = relocated.get(&place.wrapping_add(index as u64 * 8));
            *word = loaded.copied().unwrap_or(u64::from_le_bytes(value));
        }
        // pcHeader; five slices; the slice of functions; findfunctab; minpc, maxpc, text, etext.
        let agrees = words[0] == table.address
            && words[1] == table.read_word(table.names)
            && words[4] == table.read_word(table.units)
            && words[7] == table.read_word(table.files)
            && words[13] == table.read_word(table.entries)
            && words[16] == table.read_word(table.entries)
            && words[17] == table.functions + 1;
        let [first, last, text, end] = [words[20], words[21], words[22], words[23]];
        if !agrees || ![text, first, last, end].is_sorted() || first == last {
            return Ok(None);
        }
        if table.text != 0 && table.text != text {
            return Ok(None);
        }
        let mut list = elf.window(table.read_word(table.entries))?;
        let (first_entry, _) = list.pair(0)?;
        let holds = text.checked_add(u64::from(first_entry)) == Some(first)
            && elf.code_offset(first).is_some();
        Ok(holds.then_some(Self { text, first, last }))
    }
}

/// The words that the loader writes at possible positions of module data.
fn relocated_words<F: ReadAt + ?Sized>(
    elf: &Elf<'_, F>,
    places: &[u64],
) -> Result<HashMap<u64, u64>, ElfError> {
    let mut found = HashMap::new();
    elf.relative_relocations(|at, word| {
        let before = places.partition_point(|place| *place <= at);
        let inside = before
            .checked_sub(1)
            .is_some_and(|index| at - places[index] < (MODULE_WORDS * 8) as u64);
        if inside {
            found.insert(at, word);
        }
        true
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: u64 = 0x1100;
    const DATA: u64 = 0x4000;
    const PROLOGUE: [u8; 4] = if cfg!(target_arch = "aarch64") {
        [0x90, 0x0b, 0x40, 0xf9]
    } else {
        [0x49, 0x3b, 0x66, 0x10]
    };

    /// A Go program as an external linker produces it: start-up code comes first, so the text
    /// begins 256 bytes into the segment; `text` is the value in its table.
    fn program(functions: &[(&str, u32)], text: u64) -> Vec<u8> {
        let mut names = vec![0];
        let mut records = vec![0; functions.len() * 8 + 8];
        for (index, (name, entry)) in functions.iter().enumerate() {
            let at = records.len() as u32;
            records[index * 8..index * 8 + 4].copy_from_slice(&entry.to_le_bytes());
            records[index * 8 + 4..index * 8 + 8].copy_from_slice(&at.to_le_bytes());
            records.extend(entry.to_le_bytes());
            records.extend((names.len() as u32).to_le_bytes());
            names.extend(name.as_bytes());
            names.push(0);
        }
        names.resize(names.len().next_multiple_of(8), 0);
        let last = functions.last().map_or(0, |(_, entry)| entry + 64);
        let end = functions.len() * 8;
        records[end..end + 4].copy_from_slice(&last.to_le_bytes());
        let names_at = 72u64;
        let entries_at = names_at + names.len() as u64;
        let mut table = 0xffff_fff1_u32.to_le_bytes().to_vec();
        table.extend([0, 0, QUANTUM, POINTER]);
        for word in [
            functions.len() as u64,
            1,
            text,
            names_at,
            entries_at,
            entries_at,
            entries_at,
            entries_at,
        ] {
            table.extend(word.to_le_bytes());
        }
        table.extend(names);
        table.extend(records);
        table.resize(table.len().next_multiple_of(8), 0);
        let mut module = [0u64; MODULE_WORDS];
        for (index, word) in [
            (0, DATA),
            (1, DATA + names_at),
            (4, DATA + entries_at),
            (7, DATA + entries_at),
            (13, DATA + entries_at),
            (16, DATA + entries_at),
            (17, functions.len() as u64 + 1),
            (
                20,
                TEXT + functions.first().map_or(0, |(_, entry)| u64::from(*entry)),
            ),
            (21, TEXT + u64::from(last)),
            (22, TEXT),
            (23, TEXT + u64::from(last)),
        ] {
            module[index] = word;
        }
        let mut data = table;
        data.extend(module.map(u64::to_le_bytes).concat());
        let mut code = vec![0xcc; 0x1000];
        for (_, entry) in functions {
            let at = 0x100 + *entry as usize;
            code[at..at + 4].copy_from_slice(&PROLOGUE);
        }
        elf_file(&code, &data)
    }

    /// Code at 0x1000, data at 0x4000, and a section that identifies it as a Go program.
    fn elf_file(code: &[u8], data: &[u8]) -> Vec<u8> {
        let machine: u16 = if cfg!(target_arch = "aarch64") {
            183
        } else {
            62
        };
        let (code_at, data_at) = (0x1000u64, 0x2000u64);
        let sections_at = data_at + data.len() as u64;
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend([2u16, machine].map(u16::to_le_bytes).concat());
        file.extend(1u32.to_le_bytes());
        file.extend([0u64, 64, sections_at].map(u64::to_le_bytes).concat());
        file.extend(0u32.to_le_bytes());
        file.extend([64u16, 56, 2, 64, 3, 2].map(u16::to_le_bytes).concat());
        for (flags, offset, address, size) in [
            (5u32, code_at, 0x1000u64, code.len() as u64),
            (6, data_at, DATA, data.len() as u64),
        ] {
            file.extend([1u32, flags].map(u32::to_le_bytes).concat());
            file.extend(
                [offset, address, address, size, size, 0x1000]
                    .map(u64::to_le_bytes)
                    .concat(),
            );
        }
        file.resize(code_at as usize, 0);
        file.extend(code);
        file.resize(data_at as usize, 0);
        file.extend(data);
        let names = b"\0.go.buildinfo\0.shstrtab\0";
        let names_at = sections_at + 3 * 64;
        for (name, kind, offset, size) in [
            (0u32, 0u32, 0u64, 0u64),
            (1, 1, 0, 0),
            (15, 3, names_at, names.len() as u64),
        ] {
            file.extend([name, kind].map(u32::to_le_bytes).concat());
            file.extend([0, 0, offset, size].map(u64::to_le_bytes).concat());
            file.extend([0u32, 0].map(u32::to_le_bytes).concat());
            file.extend([1u64, 0].map(u64::to_le_bytes).concat());
        }
        file.extend(names);
        file
    }

    fn find(file: &[u8], name: &str) -> Result<Option<u64>, GoError> {
        find_function(&Elf::parse(file).expect("an ELF file"), name)
    }

    const FUNCTIONS: [(&str, u32); 3] = [("main.ma", 0), ("main.main", 64), ("main.mainly", 128)];

    #[test]
    fn functions_are_found_by_their_whole_name() {
        for text in [0, TEXT] {
            let file = program(&FUNCTIONS, text);
            assert_eq!(
                find(&file, "main.mainly").expect("proven"),
                Some(TEXT + 128)
            );
            assert_eq!(find(&file, "main.ma").expect("proven"), Some(TEXT));
            assert_eq!(find(&file, "main.m").expect("read"), None);
        }
    }

    /// Neither the section nor the segment begins where Go's text begins.
    #[test]
    fn a_table_with_another_text_address_is_not_trusted() {
        let file = program(&FUNCTIONS, 0x1000);
        assert!(matches!(find(&file, "main.main"), Err(GoError::NoModule)));
    }

    #[test]
    fn an_address_without_a_function_is_not_proven() {
        let mut file = program(&FUNCTIONS, 0);
        file[0x1100 + 64] = 0x90;
        assert!(matches!(
            find(&file, "main.main"),
            Err(GoError::NoPrologue(_))
        ));
    }

    proptest! {
        #[test]
        fn any_damage(place in 0usize..0x3000, byte: u8, cut in 0usize..0x3000) {
            let mut file = program(&FUNCTIONS, 0);
            let len = file.len();
            file[place % len] = byte;
            let whole = file.clone();
            file.truncate(len - cut % len);
            for file in [whole, file] {
                if let Ok(elf) = Elf::parse(file.as_slice())
                    && let Ok(Some(address)) = find_function(&elf, "main.main")
                {
                    // Whatever else is changed, an accepted address is the beginning of a function.
                    let mut bytes = [0; 4];
                    elf.read(address, &mut bytes).expect("there");
                    prop_assert_eq!(bytes, PROLOGUE);
                }
            }
        }
    }
}
