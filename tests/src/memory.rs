//! Compares the memory of a process with its files.

use anyhow::{Context as _, Result, ensure};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
};

/// The mappings of a program: addresses, permissions, file offset.
fn mapped(pid: u32, program: &Path) -> Result<Vec<(u64, u64, u64)>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let name = program.display().to_string();
    let mut found = Vec::new();
    for line in maps.lines().filter(|line| line.ends_with(&name)) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (start, end) = words[0].split_once('-').context("a range")?;
        if words[1].contains('x') {
            let hex = |text| u64::from_str_radix(text, 16);
            found.push((hex(start)?, hex(end)?, hex(words[2])?));
        }
    }
    ensure!(!found.is_empty(), "nothing is mapped of {name}");
    Ok(found)
}

/// The file offsets at which a program's code in memory differs from the file.
pub fn differences(pid: u32, program: &Path) -> Result<Vec<u64>> {
    let (memory, file) = (
        File::open(format!("/proc/{pid}/mem"))?,
        File::open(program)?,
    );
    let mut differing = Vec::new();
    for (start, end, offset) in mapped(pid, program)? {
        let mut here = vec![0; (end - start) as usize];
        let mut there = here.clone();
        memory.read_exact_at(&mut here, start)?;
        // The last page may extend past the end of the file.
        let mut read = 0;
        while read < there.len() {
            match file.read_at(&mut there[read..], offset + read as u64)? {
                0 => break,
                count => read += count,
            }
        }
        let unlike = here[..read].iter().zip(&there[..read]).enumerate();
        differing.extend(
            unlike
                .filter(|(_, (here, there))| here != there)
                .map(|(at, _)| offset + at as u64),
        );
    }
    Ok(differing)
}
