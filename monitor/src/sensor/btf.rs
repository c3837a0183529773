//! Reads offsets of kernel structures from BTF.
//!
//! Existing crates do not fit: `btf` keeps one type per name (a function hides a structure of the
//! same name) and uses 85 MB for a vmlinux, and `btf-rs` is licensed under the LGPL, which is a
//! problem for a statically linked Apache-2.0 program. Little is needed: walk the types once, note
//! where each begins, and read the members of a few structures.

use thiserror::Error;

/// Why offsets could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    #[error("{0} is not BTF: wrong magic number or version")]
    Magic(String),
    #[error("BTF is truncated or malformed at byte {0}")]
    Malformed(usize),
}

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Maximum depth of type references; anything deeper is a loop.
const DEPTH: usize = 32;

/// The BTF of a kernel: the raw bytes, and the offset of each type.
#[derive(Debug)]
pub struct Btf {
    data: Vec<u8>,
    types: Vec<u32>,
    strings: usize,
}

/// A structure member: its offset in the outermost structure, and its width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BtfMember {
    /// Bytes from the start of the structure.
    pub offset: u32,
    /// Size in bytes; 0 if BTF does not tell.
    pub size: u32,
}

/// A parameter of a function, described as far as attached programs depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BtfParameter {
    /// A pointer to the structure of this name; empty if it points to anything else.
    Pointer(String),
    /// A value of this many bytes.
    Value(u32),
}

impl Btf {
    /// The parameters of a kernel function, or of a raw tracepoint (named `btf_trace_…`), whose
    /// first parameter is internal to the tracepoint. `None` if the kernel does not have it.
    pub fn parameters(&self, function: &str) -> Result<Option<Vec<BtfParameter>>, BtfError> {
        for at in self.types.iter().skip(1) {
            let at = *at as usize;
            let kind = self.kind(at)?;
            if !(kind == KIND_FUNC || kind == KIND_TYPEDEF)
                || !self.name_is(self.read_word(at)?, function)?
            {
                continue;
            }
            let mut target = self.resolve(self.read_word(at + 8)?)?;
            if let Some(pointer) = target
                && self.kind(pointer)? == KIND_PTR
            {
                target = self.resolve(self.read_word(pointer + 8)?)?;
            }
            let Some(prototype) = target else { continue };
            if self.kind(prototype)? != KIND_FUNC_PROTO {
                continue;
            }
            let count = (self.read_word(prototype + 4)? & 0xffff) as usize;
            return (0..count)
                .map(|i| self.parameter(self.read_word(prototype + 16 + i * 8)?))
                .collect::<Result<_, _>>()
                .map(Some);
        }
        Ok(None)
    }

    fn parameter(&self, id: u32) -> Result<BtfParameter, BtfError> {
        let target = self.resolve(id)?;
        match target {
            Some(at) if self.kind(at)? == KIND_PTR => {
                let name = match self.resolve(self.read_word(at + 8)?)? {
                    Some(to) if self.kind(to)? == KIND_STRUCT => {
                        self.name_at(self.read_word(to)?)?
                    }
                    _ => String::new(),
                };
                Ok(BtfParameter::Pointer(name))
            }
            other => Ok(BtfParameter::Value(self.size(other, DEPTH)?)),
        }
    }

    fn name_at(&self, offset: u32) -> Result<String, BtfError> {
        let start = self.strings + offset as usize;
        let bytes = self.data.get(start..).ok_or(BtfError::Malformed(start))?;
        let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    /// Parses BTF in the format of `/sys/kernel/btf/vmlinux`; `name` is used in errors.
    pub fn parse(name: &str, data: Vec<u8>) -> Result<Self, BtfError> {
        let mut btf = Self {
            data,
            types: vec![0],
            strings: 0,
        };
        let magic = btf.data.get(..3).ok_or(BtfError::Malformed(0))?;
        if magic[..2] != 0xeb9f_u16.to_ne_bytes() || magic[2] != 1 {
            return Err(BtfError::Magic(name.to_owned()));
        }
        let header = btf.read_word(4)? as usize;
        let section = |start: u32, len: u32| -> Option<(usize, usize)> {
            let start = header.checked_add(start as usize)?;
            let end = start.checked_add(len as usize)?;
            (end <= btf.data.len()).then_some((start, end))
        };
        let (mut at, end) =
            section(btf.read_word(8)?, btf.read_word(12)?).ok_or(BtfError::Malformed(8))?;
        let (strings, _) =
            section(btf.read_word(16)?, btf.read_word(20)?).ok_or(BtfError::Malformed(16))?;
        btf.strings = strings;
        while at < end {
            btf.types.push(at as u32);
            let info = btf.read_word(at + 4)?;
            let members = (info & 0xffff) as usize;
            at += 12
                + match (info >> 24) & 0x1f {
                    KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                    KIND_ARRAY => 12,
                    KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => members * 12,
                    KIND_ENUM | KIND_FUNC_PROTO => members * 8,
                    _ => 0,
                };
        }
        Ok(btf)
    }

    /// Finds the member at the end of a dotted path in a structure, descending into anonymous
    /// structures and unions. `None` if the kernel does not have it.
    pub fn member(&self, structure: &str, path: &str) -> Result<Option<BtfMember>, BtfError> {
        for at in self.types.iter().skip(1) {
            let at = *at as usize;
            let kind = self.kind(at)?;
            if kind == KIND_STRUCT
                && self.name_is(self.read_word(at)?, structure)?
                && let Some(found) = self.descend(at, path, 0, DEPTH)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn descend(
        &self,
        at: usize,
        path: &str,
        base: u32,
        depth: usize,
    ) -> Result<Option<BtfMember>, BtfError> {
        if depth == 0 {
            return Err(BtfError::Malformed(at));
        }
        let (first, rest) = path.split_once('.').unwrap_or((path, ""));
        let info = self.read_word(at + 4)?;
        for i in 0..(info & 0xffff) as usize {
            let member = at + 12 + i * 12;
            let (name, kind) = (self.read_word(member)?, self.read_word(member + 4)?);
            let mut bits = self.read_word(member + 8)?;
            if info >> 31 == 1 {
                if bits >> 24 != 0 {
                    continue;
                }
                bits &= 0xff_ffff;
            }
            let offset = base.wrapping_add(bits / 8);
            if self.name_is(name, first)? {
                let target = self.resolve(kind)?;
                if rest.is_empty() {
                    let size = self.size(target, DEPTH)?;
                    return Ok(Some(BtfMember { offset, size }));
                }
                let Some(target) = target.filter(|at| self.is_composite(*at)) else {
                    return Ok(None);
                };
                return self.descend(target, rest, offset, depth - 1);
            }
            if self.name_is(name, "")?
                && let Some(target) = self.resolve(kind)?
                && self.is_composite(target)
                && let Some(found) = self.descend(target, path, offset, depth - 1)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Follows typedefs and qualifiers; `None` means void.
    fn resolve(&self, id: u32) -> Result<Option<usize>, BtfError> {
        let mut id = id as usize;
        for _ in 0..DEPTH {
            if id == 0 {
                return Ok(None);
            }
            let at = *self.types.get(id).ok_or(BtfError::Malformed(id))? as usize;
            match self.kind(at)? {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = self.read_word(at + 8)? as usize;
                }
                _ => return Ok(Some(at)),
            }
        }
        Err(BtfError::Malformed(id))
    }

    fn size(&self, at: Option<usize>, depth: usize) -> Result<u32, BtfError> {
        let Some(at) = at else { return Ok(0) };
        if depth == 0 {
            return Err(BtfError::Malformed(at));
        }
        Ok(match self.kind(at)? {
            KIND_PTR => 8,
            KIND_INT | KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64 => {
                self.read_word(at + 8)?
            }
            KIND_ARRAY => {
                let element = self.resolve(self.read_word(at + 12)?)?;
                self.size(element, depth - 1)?
                    .saturating_mul(self.read_word(at + 20)?)
            }
            _ => 0,
        })
    }

    fn is_composite(&self, at: usize) -> bool {
        matches!(self.kind(at), Ok(KIND_STRUCT | KIND_UNION))
    }

    fn kind(&self, at: usize) -> Result<u32, BtfError> {
        Ok((self.read_word(at + 4)? >> 24) & 0x1f)
    }

    fn read_word(&self, at: usize) -> Result<u32, BtfError> {
        self.data
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u32::from_ne_bytes)
            .ok_or(BtfError::Malformed(at))
    }

    fn name_is(&self, offset: u32, name: &str) -> Result<bool, BtfError> {
        let start = self.strings + offset as usize;
        let end = start + name.len();
        let stored = self.data.get(start..=end).ok_or(BtfError::Malformed(start));
        match stored {
            Ok(stored) => Ok(&stored[..name.len()] == name.as_bytes() && stored[name.len()] == 0),
            // The last strings of the section can be shorter than the name.
            Err(_) if start < self.data.len() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn own_kernel() -> Vec<u8> {
        std::fs::read("/sys/kernel/btf/vmlinux").expect("the tests need a kernel with BTF")
    }

    #[test]
    fn reads_this_kernel() {
        let data = own_kernel();
        let btf = Btf::parse("vmlinux", data).expect("the kernel's own BTF parses");
        let member = |s, p| btf.member(s, p).expect("well-formed");
        assert_eq!(
            member("list_head", "prev"),
            Some(BtfMember { offset: 8, size: 8 })
        );
        assert_eq!(
            member("qstr", "len"),
            Some(BtfMember { offset: 4, size: 4 })
        );
        assert_eq!(member("list_head", "nothing"), None);
        assert_eq!(member("no_such_structure", "x"), None);
        assert_eq!(
            member("path", "mnt.mnt_root"),
            None,
            "pointers are not followed"
        );
    }

    #[test]
    fn other_bytes_are_refused() {
        assert!(matches!(
            Btf::parse("x", vec![0; 64]),
            Err(BtfError::Magic(_))
        ));
        assert_eq!(Btf::parse("x", vec![]).err(), Some(BtfError::Malformed(0)));
    }

    proptest! {
        #[test]
        fn damaged_btf_never_panics(
            cut in 0usize..4096, damage in proptest::collection::vec((0usize..4096, any::<u8>()), 0..40)
        ) {
            let mut data = own_kernel();
            // A short excerpt with a header of its own: the first types and strings of the kernel.
            data.truncate(24);
            data.extend((0..4096u32).flat_map(|i| (i.wrapping_mul(2_654_435_761)).to_ne_bytes()));
            data[12..16].copy_from_slice(&3000u32.to_ne_bytes());
            data[16..20].copy_from_slice(&3000u32.to_ne_bytes());
            data[20..24].copy_from_slice(&1000u32.to_ne_bytes());
            for (at, byte) in damage {
                let len = data.len();
                data[at % len] = byte;
            }
            data.truncate(24 + cut);
            if let Ok(btf) = Btf::parse("damaged", data) {
                let _ = btf.member("task_struct", "pid.x");
            }
        }
    }
}
