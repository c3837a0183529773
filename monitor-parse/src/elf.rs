//! Reads untrusted ELF files.
//!
//! No size in such a file is trusted. Tables are read through a window of fixed size, so that a
//! small file that claims a section of gigabytes costs no memory, and all reads of a file together
//! are limited to `READ_BUDGET`, so that it costs little time. Only 64-bit little-endian files of
//! the agent's own architecture are parsed: others use a different calling convention.

use object::{
    LittleEndian as Le,
    elf::{
        DT_RELA, DT_RELASZ, Dyn64, EM_AARCH64, EM_X86_64, FileHeader64, PF_X, PT_DYNAMIC,
        PT_GNU_EH_FRAME, PT_INTERP, PT_LOAD, ProgramHeader64, Rela64, SHN_UNDEF, SHT_DYNSYM,
        SHT_NOBITS, SHT_SYMTAB, STT_FUNC, SectionHeader64, Sym64,
    },
    pod::{Pod, from_bytes},
    read::elf::{FileHeader as _, Sym as _},
};
use std::{cell::Cell, collections::BTreeSet, io};
use thiserror::Error;

/// Maximum bytes of one section or segment that are searched.
pub const SCAN_MAX: u64 = 256 << 20;
/// Maximum bytes read from one file in total: about a second.
const READ_BUDGET: u64 = 1 << 30;
/// Bytes kept in memory at once.
pub const WINDOW: usize = 64 << 10;
/// Maximum program headers read; a linker writes about a dozen.
const SEGMENTS_MAX: usize = 128;
/// Maximum section headers read; a linker writes about forty.
const SECTIONS_MAX: usize = 1024;
/// Bytes of a section's name that are compared.
const SECTION_NAME_MAX: usize = 32;
/// Maximum matches of searched names in a string table.
const NAMES_MAX: usize = 1024;

/// Why a file cannot be parsed.
#[derive(Debug, Error)]
pub enum ElfError {
    #[error("read failed: {0}")]
    Read(#[from] io::Error),
    #[error("not a 64-bit ELF file of this architecture")]
    Foreign,
    #[error("truncated: {0} is outside the file")]
    Truncated(&'static str),
    #[error("{0} exceeds the limit of {1}")]
    Limit(&'static str, u64),
}

/// Random access to bytes. A short read means the end of the file.
pub trait ReadAt {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for [u8] {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.get(offset..))
            .unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

/// A part of the file that is mapped into memory.
#[derive(Clone, Copy, Debug)]
pub struct ElfSegment {
    pub kind: u32,
    pub executable: bool,
    pub offset: u64,
    pub address: u64,
    /// Bytes that are backed by the file.
    pub size: u64,
}

#[derive(Clone, Copy, Debug)]
struct ElfSection {
    name: [u8; SECTION_NAME_MAX],
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
    link: usize,
}

/// The symbol table to search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SymbolTable {
    /// The symbols that the file exports.
    Dynamic,
    /// The symbols kept for debuggers.
    Static,
}

impl SymbolTable {
    fn section_kind(self) -> u32 {
        match self {
            Self::Dynamic => SHT_DYNSYM,
            Self::Static => SHT_SYMTAB,
        }
    }
}

/// A function defined by a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElfFunction {
    /// Index into the searched names.
    pub name: usize,
    pub address: u64,
}

/// What the unwind tables say about an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnwindEntry {
    /// A function begins at the address.
    Entry,
    /// The address is inside a function.
    Inside,
    /// The file has no unwind table.
    Unknown,
}

/// A file from which at most `READ_BUDGET` bytes are read.
#[derive(Debug)]
struct BudgetedFile<'a, F: ?Sized> {
    file: &'a F,
    left: Cell<u64>,
}

impl<F: ReadAt + ?Sized> BudgetedFile<'_, F> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, ElfError> {
        let left = self.left.get().checked_sub(buffer.len() as u64);
        let left = left.ok_or(ElfError::Limit("what is read of the file", READ_BUDGET))?;
        self.left.set(left);
        Ok(self.file.read_at(buffer, offset)?)
    }
}

/// The headers of a file, and access to its contents.
#[derive(Debug)]
pub struct Elf<'a, F: ReadAt + ?Sized> {
    file: BudgetedFile<'a, F>,
    segments: Vec<ElfSegment>,
    sections: Vec<ElfSection>,
}

impl<'a, F: ReadAt + ?Sized> Elf<'a, F> {
    /// Reads the headers.
    pub fn parse(file: &'a F) -> Result<Self, ElfError> {
        let file = BudgetedFile {
            file,
            left: Cell::new(READ_BUDGET),
        };
        let machine = if cfg!(target_arch = "aarch64") {
            EM_AARCH64
        } else {
            EM_X86_64
        };
        let header: FileHeader64<Le> = read_pod(&file, 0).map_err(|error| match error {
            ElfError::Truncated(_) => ElfError::Foreign,
            error => error,
        })?;
        if !header.is_supported()
            || header.e_ident.data != object::elf::ELFDATA2LSB
            || header.e_machine.get(Le) != machine
        {
            return Err(ElfError::Foreign);
        }
        let mut segments = Vec::new();
        let count = usize::from(header.e_phnum.get(Le));
        if count > SEGMENTS_MAX {
            return Err(ElfError::Limit("program headers", SEGMENTS_MAX as u64));
        }
        for index in 0..count {
            let size = size_of::<ProgramHeader64<Le>>() as u64;
            let at = place(header.e_phoff.get(Le), index as u64, size)?;
            let found: ProgramHeader64<Le> = read_pod(&file, at)?;
            segments.push(ElfSegment {
                kind: found.p_type.get(Le),
                executable: found.p_flags.get(Le) & PF_X != 0,
                offset: found.p_offset.get(Le),
                address: found.p_vaddr.get(Le),
                size: found.p_filesz.get(Le),
            });
        }
        let mut elf = Self {
            file,
            segments,
            sections: Vec::new(),
        };
        elf.read_sections(&header)?;
        Ok(elf)
    }

    fn read_sections(&mut self, header: &FileHeader64<Le>) -> Result<(), ElfError> {
        let count = usize::from(header.e_shnum.get(Le));
        if count > SECTIONS_MAX {
            return Err(ElfError::Limit("section headers", SECTIONS_MAX as u64));
        }
        let mut names = Vec::new();
        for index in 0..count {
            let size = size_of::<SectionHeader64<Le>>() as u64;
            let at = place(header.e_shoff.get(Le), index as u64, size)?;
            let found: SectionHeader64<Le> = read_pod(&self.file, at)?;
            names.push(found.sh_name.get(Le));
            let empty = found.sh_type.get(Le) == SHT_NOBITS;
            self.sections.push(ElfSection {
                name: [0; SECTION_NAME_MAX],
                kind: found.sh_type.get(Le),
                offset: found.sh_offset.get(Le),
                address: found.sh_addr.get(Le),
                size: if empty { 0 } else { found.sh_size.get(Le) },
                link: found.sh_link.get(Le) as usize,
            });
        }
        let strings = self
            .sections
            .get(usize::from(header.e_shstrndx.get(Le)))
            .copied();
        if let Some(strings) = strings {
            for (section, name) in self.sections.iter_mut().zip(names) {
                let at = strings.offset.saturating_add(u64::from(name));
                let read = self.file.read_at(&mut section.name, at)?;
                let end = section.name[..read].iter().position(|byte| *byte == 0);
                // A name that is not terminated within the limit matches nothing.
                section.name[end.unwrap_or(0)..].fill(0);
            }
        }
        Ok(())
    }

    /// The segments that are mapped.
    pub fn loaded(&self) -> impl Iterator<Item = ElfSegment> + '_ {
        self.segments
            .iter()
            .copied()
            .filter(|segment| segment.kind == PT_LOAD)
    }

    /// Whether the program is started by a dynamic loader.
    pub fn has_interpreter(&self) -> bool {
        self.segments
            .iter()
            .any(|segment| segment.kind == PT_INTERP)
    }

    /// Address, file offset and size of a section.
    pub fn section(&self, name: &str) -> Option<ElfSegment> {
        let found = self.sections.iter().find(|section| {
            section
                .name
                .strip_prefix(name.as_bytes())
                .is_some_and(|rest| rest.first() == Some(&0))
        })?;
        Some(ElfSegment {
            kind: found.kind,
            executable: false,
            offset: found.offset,
            address: found.address,
            size: found.size,
        })
    }

    /// The file offset of the code at an address; `None` if the address holds no code.
    pub fn code_offset(&self, address: u64) -> Option<u64> {
        let segment = self
            .loaded()
            .filter(|segment| segment.executable)
            .find(|segment| contains(segment, address))?;
        segment.offset.checked_add(address - segment.address)
    }

    /// The file offset of what is loaded at an address.
    fn offset_of(&self, address: u64) -> Option<u64> {
        let segment = self.loaded().find(|segment| contains(segment, address))?;
        segment.offset.checked_add(address - segment.address)
    }

    /// Reads what is loaded at an address, as it is in the file.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), ElfError> {
        let missing = ElfError::Truncated("an address");
        let Some(offset) = self.offset_of(address) else {
            return Err(missing);
        };
        match self.file.read_at(into, offset)? {
            count if count == into.len() => Ok(()),
            _ => Err(missing),
        }
    }

    pub fn read_u32(&self, address: u64) -> Result<u32, ElfError> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Finds the functions of the given names that the file defines. The names have no terminating
    /// zero.
    pub fn functions(
        &self,
        table: SymbolTable,
        names: &[&str],
    ) -> Result<Vec<ElfFunction>, ElfError> {
        let kind = table.section_kind();
        let Some(symbols) = self.sections.iter().find(|section| section.kind == kind) else {
            return Ok(Vec::new());
        };
        let Some(strings) = self.sections.get(symbols.link) else {
            return Ok(Vec::new());
        };
        if strings.size > SCAN_MAX || symbols.size > SCAN_MAX {
            return Err(ElfError::Limit("a table of symbols", SCAN_MAX));
        }
        let places = self.places_of(strings, names)?;
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        self.records(symbols.offset, symbols.size, |symbol: &Sym64<Le>| {
            let name = places.binary_search_by_key(&symbol.st_name(Le), |(at, _)| *at);
            if let Ok(name) = name
                && symbol.st_type() == STT_FUNC
                && symbol.st_shndx(Le) != SHN_UNDEF
            {
                found.push(ElfFunction {
                    name: places[name].1,
                    address: symbol.st_value(Le),
                });
            }
            found.len() <= NAMES_MAX
        })?;
        if found.len() > NAMES_MAX {
            return Err(ElfError::Limit("symbols of one name", NAMES_MAX as u64));
        }
        Ok(found)
    }

    /// Finds where the given names are in a string table, in ascending order. A name may be the end
    /// of a longer string.
    fn places_of(
        &self,
        strings: &ElfSection,
        names: &[&str],
    ) -> Result<Vec<(u32, usize)>, ElfError> {
        /// Names with the same first bytes are searched together.
        const NAME_PREFIX: usize = 4;
        let longest = names.iter().map(|name| name.len() + 1).max().unwrap_or(0);
        let fronts: BTreeSet<&[u8]> = names
            .iter()
            .filter_map(|name| name.as_bytes().get(..NAME_PREFIX))
            .collect();
        let mut places = Vec::new();
        for front in fronts {
            let mut visit = |at: u64, rest: &[u8]| {
                let name = names.iter().position(|name| {
                    rest.strip_prefix(name.as_bytes())
                        .is_some_and(|behind| behind.first() == Some(&0))
                });
                places.extend(
                    name.zip(u32::try_from(at).ok())
                        .map(|(name, at)| (at, name)),
                );
                places.len() < NAMES_MAX
            };
            scan(
                &self.file,
                strings.offset,
                strings.size,
                front,
                longest,
                &mut visit,
            )?;
        }
        if places.len() >= NAMES_MAX {
            return Err(ElfError::Limit("names of symbols", NAMES_MAX as u64));
        }
        // A match at the end of a window may have been found twice.
        places.sort_unstable();
        places.dedup();
        Ok(places)
    }

    /// What the table of `.eh_frame_hdr` says about an address.
    pub fn unwind(&self, address: u64) -> Result<UnwindEntry, ElfError> {
        /// Sorted pairs of 32-bit offsets relative to the header, the encoding that every linker
        /// writes.
        const TABLE: u8 = 0x3b;
        const COUNT: u8 = 0x03;
        let header = self
            .segments
            .iter()
            .find(|segment| segment.kind == PT_GNU_EH_FRAME);
        let Some(header) = header else {
            return Ok(UnwindEntry::Unknown);
        };
        let mut start = [0; 12];
        if self.read(header.address, &mut start).is_err()
            || start[0] != 1
            || start[2] != COUNT
            || start[3] != TABLE
        {
            return Ok(UnwindEntry::Unknown);
        }
        let count = u32::from_le_bytes([start[8], start[9], start[10], start[11]]);
        let table = header.address.wrapping_add(12);
        let entry = |index: u32| -> Result<u64, ElfError> {
            let at = table.wrapping_add(u64::from(index) * 8);
            let offset = self.read_u32(at)?.cast_signed();
            Ok(header.address.wrapping_add_signed(i64::from(offset)))
        };
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low + (high - low) / 2;
            match entry(middle)?.cmp(&address) {
                std::cmp::Ordering::Equal => return Ok(UnwindEntry::Entry),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(UnwindEntry::Inside)
    }

    /// Calls `visit` with the address of each word that the loader relocates, and its value
    /// relative to the load address, until `visit` returns `false`.
    pub fn relative_relocations(
        &self,
        mut visit: impl FnMut(u64, u64) -> bool,
    ) -> Result<(), ElfError> {
        const R_RELATIVE: u32 = if cfg!(target_arch = "aarch64") {
            object::elf::R_AARCH64_RELATIVE
        } else {
            object::elf::R_X86_64_RELATIVE
        };
        /// Maximum entries of `PT_DYNAMIC` read; a linker writes about forty.
        const ENTRIES_MAX: u64 = 512;
        let dynamic = self
            .segments
            .iter()
            .find(|segment| segment.kind == PT_DYNAMIC);
        let Some(dynamic) = dynamic else {
            return Ok(());
        };
        let (mut address, mut size) = (None, 0);
        for index in 0..(dynamic.size / size_of::<Dyn64<Le>>() as u64).min(ENTRIES_MAX) {
            let at = place(dynamic.offset, index, size_of::<Dyn64<Le>>() as u64)?;
            let entry: Dyn64<Le> = read_pod(&self.file, at)?;
            match entry.d_tag.get(Le) {
                tag if tag == DT_RELA => address = Some(entry.d_val.get(Le)),
                tag if tag == DT_RELASZ => size = entry.d_val.get(Le),
                0 => break,
                _ => {}
            }
        }
        let Some(offset) = address.and_then(|address| self.offset_of(address)) else {
            return Ok(());
        };
        if size > SCAN_MAX {
            return Err(ElfError::Limit("relocations", SCAN_MAX));
        }
        self.records(offset, size, |found: &Rela64<Le>| {
            let word = found.r_addend.get(Le).cast_unsigned();
            found.r_type(Le, false) != R_RELATIVE || visit(found.r_offset.get(Le), word)
        })
    }

    /// Calls `visit` with each record of a table of the given size, until `visit` returns `false`
    /// or the file ends.
    fn records<T: Pod>(
        &self,
        offset: u64,
        size: u64,
        mut visit: impl FnMut(&T) -> bool,
    ) -> Result<(), ElfError> {
        let each = size_of::<T>();
        let mut window = FileWindow::new(&self.file);
        for index in 0..size / each as u64 {
            let at = place(offset, index, each as u64)?;
            let Some(bytes) = window.bytes(at, each)? else {
                break;
            };
            let Ok((record, _)) = from_bytes::<T>(bytes) else {
                break;
            };
            if !visit(record) {
                break;
            }
        }
        Ok(())
    }

    /// Calls `visit` with the address of each match of `needle` in a segment or section, until
    /// `visit` returns `false`.
    pub fn find(
        &self,
        segment: &ElfSegment,
        needle: &[u8],
        mut visit: impl FnMut(u64) -> bool,
    ) -> Result<(), ElfError> {
        let size = segment.size.min(SCAN_MAX);
        let mut visit = |at, _: &[u8]| visit(segment.address.wrapping_add(at));
        scan(
            &self.file,
            segment.offset,
            size,
            needle,
            needle.len(),
            &mut visit,
        )
    }

    /// Sequential access to what is loaded from an address on.
    pub fn window(&self, address: u64) -> Result<LoadedWindow<'_, 'a, F>, ElfError> {
        let offset = self
            .offset_of(address)
            .ok_or(ElfError::Truncated("an address"))?;
        Ok(LoadedWindow {
            window: FileWindow::new(&self.file),
            offset,
        })
    }
}

/// See [`Elf::window`].
#[derive(Debug)]
pub struct LoadedWindow<'e, 'a, F: ReadAt + ?Sized> {
    window: FileWindow<'e, 'a, F>,
    offset: u64,
}

impl<F: ReadAt + ?Sized> LoadedWindow<'_, '_, F> {
    /// Two 32-bit numbers at an offset from the start.
    pub fn pair(&mut self, from_start: u64) -> Result<(u32, u32), ElfError> {
        let at = self.offset.checked_add(from_start);
        let bytes = match at {
            Some(at) => self.window.bytes(at, 8)?,
            None => None,
        };
        let Some([a, b, c, d, e, f, g, h]) = bytes else {
            return Err(ElfError::Truncated("a table"));
        };
        Ok((
            u32::from_le_bytes([*a, *b, *c, *d]),
            u32::from_le_bytes([*e, *f, *g, *h]),
        ))
    }
}

/// A window into a file that moves forward as it is used.
#[derive(Debug)]
struct FileWindow<'e, 'a, F: ReadAt + ?Sized> {
    file: &'e BudgetedFile<'a, F>,
    bytes: Vec<u8>,
    start: u64,
}

impl<'e, 'a, F: ReadAt + ?Sized> FileWindow<'e, 'a, F> {
    fn new(file: &'e BudgetedFile<'a, F>) -> Self {
        Self {
            file,
            bytes: Vec::new(),
            start: 0,
        }
    }

    /// Bytes at an offset; `None` if the file ends before.
    fn bytes(&mut self, offset: u64, count: usize) -> Result<Option<&[u8]>, ElfError> {
        let inside = |start: u64, len: usize| {
            let from = usize::try_from(offset.checked_sub(start)?).ok()?;
            (from.checked_add(count)? <= len).then_some(from)
        };
        if inside(self.start, self.bytes.len()).is_none() {
            self.bytes.resize(WINDOW, 0);
            let read = self.file.read_at(&mut self.bytes, offset)?;
            self.bytes.truncate(read);
            self.start = offset;
        }
        let from = inside(self.start, self.bytes.len());
        Ok(from.map(|from| &self.bytes[from..from + count]))
    }
}

/// Calls `visit` with the distance of each match of `needle` from `offset`, and the bytes that
/// begin there, until `visit` returns `false`. At least `whole` bytes are provided if the file has
/// them.
fn scan<F: ReadAt + ?Sized>(
    file: &BudgetedFile<'_, F>,
    offset: u64,
    size: u64,
    needle: &[u8],
    whole: usize,
    visit: &mut dyn FnMut(u64, &[u8]) -> bool,
) -> Result<(), ElfError> {
    let finder = memchr::memmem::Finder::new(needle);
    let mut buffer = vec![0; WINDOW];
    let mut done = 0;
    while done < size {
        let wanted = usize::try_from(size - done).unwrap_or(WINDOW).min(WINDOW);
        let Some(at) = offset.checked_add(done) else {
            break;
        };
        let read = file.read_at(&mut buffer[..wanted], at)?;
        for found in finder.find_iter(&buffer[..read]) {
            if !visit(done + found as u64, &buffer[found..read]) {
                return Ok(());
            }
        }
        if read < wanted || done + read as u64 >= size {
            break;
        }
        // What the end of the window truncates is complete in the next one.
        done += (read - whole.saturating_sub(1).min(read - 1)) as u64;
    }
    Ok(())
}

fn contains(segment: &ElfSegment, address: u64) -> bool {
    address
        .checked_sub(segment.address)
        .is_some_and(|inside| inside < segment.size)
}

/// The offset of a table entry.
fn place(start: u64, index: u64, size: u64) -> Result<u64, ElfError> {
    index
        .checked_mul(size)
        .and_then(|inside| start.checked_add(inside))
        .ok_or(ElfError::Truncated("a table"))
}

fn read_pod<T: Pod, F: ReadAt + ?Sized>(
    file: &BudgetedFile<'_, F>,
    offset: u64,
) -> Result<T, ElfError> {
    // No header is larger.
    let mut buffer = [0; 64];
    let bytes = &mut buffer[..size_of::<T>()];
    if file.read_at(bytes, offset)? != bytes.len() {
        return Err(ElfError::Truncated("a header"));
    }
    from_bytes::<T>(bytes)
        .map(|(value, _)| *value)
        .map_err(|()| ElfError::Truncated("a header"))
}
