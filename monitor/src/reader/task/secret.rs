//! The only place where a secret may be in the agent: a locked, zeroized buffer.
//!
//! Parsers copy what they parse. Therefore the program's allocator zeroes every freed block (see
//! `main.rs`), and this buffer, which lives longest, is also kept out of swap and core dumps.

use std::{
    fs::File,
    io::{self, Read as _},
    ptr::NonNull,
};
use zeroize::Zeroize as _;

/// A buffer of fixed size in pages of its own.
#[derive(Debug)]
pub struct SecretBuffer {
    pages: NonNull<u8>,
    size: usize,
    len: usize,
}

// SAFETY: this value alone owns the pages.
unsafe impl Send for SecretBuffer {}

impl SecretBuffer {
    /// Maps memory for `size` bytes of a file. If they cannot be locked (a limit of the service), that is logged but not
    /// an error: they are zeroized all the same.
    pub fn new(size: usize) -> io::Result<Self> {
        let size = size + 1;
        use rustix::mm::{
            Advice, MapFlags, MlockFlags, ProtFlags, madvise, mlock_with, mmap_anonymous,
        };
        // SAFETY: a new private mapping at an address chosen by the kernel aliases nothing.
        let pages = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                size,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        // SAFETY: the range is the mapping just made.
        unsafe {
            // Pages are locked as they are used.
            if let Err(error) = mlock_with(pages, size, MlockFlags::ONFAULT) {
                tracing::warn!(%error, "cannot lock the buffer for secrets into memory");
            }
            if let Err(error) = madvise(pages, size, Advice::LinuxDontDump) {
                tracing::warn!(%error, "cannot exclude the buffer for secrets from core dumps");
            }
        }
        let pages = NonNull::new(pages.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            pages,
            size,
            len: 0,
        })
    }

    fn whole(&mut self) -> &mut [u8] {
        // SAFETY: `size` bytes at `pages` are this value's mapping.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_ptr(), self.size) }
    }

    /// Reads a file, up to the buffer's size, passes the bytes to `look`, and zeroizes them; also
    /// returns whether the file has more bytes.
    pub fn with_file<T>(
        &mut self,
        file: &mut File,
        look: impl FnOnce(&[u8]) -> T,
    ) -> io::Result<(T, bool)> {
        let (mut len, max) = (0, self.size - 1);
        let result = loop {
            // One byte more than is used.
            let place = &mut self.whole()[len..];
            if place.is_empty() {
                break Ok(());
            }
            match file.read(place) {
                Ok(0) => break Ok(()),
                Ok(read) => len += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.len = len;
        let result = result.map(|()| (look(&self.whole()[..len.min(max)]), len > max));
        self.clear();
        result
    }

    fn clear(&mut self) {
        let len = std::mem::take(&mut self.len);
        self.whole()[..len].zeroize();
    }
}

impl Drop for SecretBuffer {
    fn drop(&mut self) {
        self.clear();
        // SAFETY: this value owns the mapping, and nothing uses it any more.
        if let Err(error) = unsafe { rustix::mm::munmap(self.pages.as_ptr().cast(), self.size) } {
            tracing::warn!(%error, "cannot unmap the buffer for secrets");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn the_buffer_is_zeroed() {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(b"FAKE-secret").expect("written");
        std::io::Seek::rewind(&mut file).expect("rewound");
        let mut buffer = SecretBuffer::new(4096).expect("mapped");
        let seen = buffer.with_file(&mut file, <[u8]>::to_vec).expect("read");
        assert_eq!(seen, (b"FAKE-secret".to_vec(), false));
        assert!(buffer.whole().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_large_file_is_cut() {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(&[7; 4097]).expect("written");
        let mut buffer = SecretBuffer::new(4096).expect("mapped");
        for (len, expected) in [(4097, (4096, true)), (4096, (4096, false))] {
            file.set_len(len).expect("cut");
            std::io::Seek::rewind(&mut file).expect("rewound");
            let read = buffer.with_file(&mut file, <[u8]>::len);
            assert_eq!(read.expect("read"), expected);
        }
    }
}
