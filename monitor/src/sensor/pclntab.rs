//! Where a function of a Go program is, from the table that every such program has for its stack
//! traces, stripped or not. No library reads it; the layout is that of Go's `debug/gosym` and
//! `runtime.pcHeader`, since 1.18.

/// From 1.18, and from 1.20.
const MAGIC: [u32; 2] = [0xffff_fff0, 0xffff_fff1];
/// Bytes before the numbers of the header: magic, two zeros, least instruction, size of a pointer.
const FRONT: usize = 8;

/// The address of a function by its name; `text` is where the program's code begins, which the
/// table of a position-independent program leaves out. `None` where the table is of another
/// version, has no such function, or is damaged.
pub fn function(table: &[u8], text: u64, name: &str) -> Option<u64> {
    let magic = u32_at(table, 0)?;
    let pointer = usize::from(*table.get(7)?);
    if !MAGIC.contains(&magic) || (pointer != 8 && pointer != 4) {
        return None;
    }
    let number = |index: usize| -> Option<u64> {
        let at = FRONT + index * pointer;
        if pointer == 8 {
            u64_at(table, at)
        } else {
            u32_at(table, at).map(u64::from)
        }
    };
    let place = |index: usize| number(index).and_then(|place| usize::try_from(place).ok());
    let functions = place(0)?;
    let start = match number(2)? {
        0 => text,
        start => start,
    };
    let (names, entries) = (place(3)?, place(7)?);
    let entries = table.get(entries..)?;
    for index in 0..functions {
        let function = usize::try_from(u32_at(entries, index * 8 + 4)?).ok()?;
        let (entry, name_at) = (u32_at(entries, function)?, u32_at(entries, function + 4)?);
        let found = table.get(names.checked_add(usize::try_from(name_at).ok()?)?..)?;
        let behind = found.strip_prefix(name.as_bytes());
        if behind.and_then(<[u8]>::first) == Some(&0) {
            return start.checked_add(u64::from(entry));
        }
    }
    None
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A table as the linker of Go 1.20 writes it, with these functions.
    fn table(start: u64, functions: &[(&str, u32)]) -> Vec<u8> {
        let header = FRONT + 8 * 8;
        let mut names = Vec::new();
        let mut entries = vec![0; functions.len() * 8 + 4];
        for (index, (name, entry)) in functions.iter().enumerate() {
            let at = entries.len() as u32;
            entries[index * 8..index * 8 + 4].copy_from_slice(&entry.to_le_bytes());
            entries[index * 8 + 4..index * 8 + 8].copy_from_slice(&at.to_le_bytes());
            entries.extend(entry.to_le_bytes());
            entries.extend((names.len() as u32).to_le_bytes());
            names.extend(name.as_bytes());
            names.push(0);
        }
        let mut table = 0xffff_fff1_u32.to_le_bytes().to_vec();
        table.extend([0, 0, 1, 8]);
        let (at_names, at_entries) = (header as u64, (header + names.len()) as u64);
        for number in [
            functions.len() as u64,
            1,
            start,
            at_names,
            0,
            0,
            0,
            at_entries,
        ] {
            table.extend(number.to_le_bytes());
        }
        table.extend(names);
        table.extend(entries);
        table
    }

    #[test]
    fn functions_are_found_by_their_whole_name() {
        let table = table(
            0x1000,
            &[("main.main", 0), ("main.mainly", 64), ("main.ma", 96)],
        );
        assert_eq!(function(&table, 0, "main.mainly"), Some(0x1040));
        assert_eq!(function(&table, 0, "main.ma"), Some(0x1060));
        assert_eq!(function(&table, 0, "main.m"), None);
    }

    #[test]
    fn a_position_independent_program_begins_at_its_text() {
        let table = table(0, &[("main.main", 16)]);
        assert_eq!(function(&table, 0x4000, "main.main"), Some(0x4010));
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400), text: u64) {
            let _ = function(&bytes, text, "main.main");
        }

        #[test]
        fn any_damage(place in 0usize..200, byte: u8, cut in 0usize..200) {
            let mut table = table(0x1000, &[("main.main", 0), ("main.other", 64)]);
            let len = table.len();
            table[place % len] = byte;
            table.truncate(len - cut % len);
            let _ = function(&table, 0, "main.other");
        }
    }
}
