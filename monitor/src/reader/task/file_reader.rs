//! Lets the parsers read an open file at any offset.

use monitor_parse::elf::ReadAt;
use std::{fs::File, io, os::unix::fs::FileExt as _};

/// An open file. The parsers themselves open and read nothing.
#[derive(Clone, Copy, Debug)]
pub struct FileReader<'a>(pub &'a File);

impl ReadAt for FileReader<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let Some(place) = offset.checked_add(filled as u64) else {
                break;
            };
            match self.0.read_at(&mut buffer[filled..], place) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}
