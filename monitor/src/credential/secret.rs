//! The only place where a secret may be in the agent: a locked, zeroized buffer.
//!
//! Parsers make copies of what they parse. So the allocator of the program zeroes every block
//! that it takes back (see `main.rs`), and this buffer, which lives longest, is kept out of swap
//! and out of core dumps as well.

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

// SAFETY: the pages belong to this value alone.
unsafe impl Send for SecretBuffer {}

impl SecretBuffer {
    /// Maps `size` bytes. That they could not be locked (a limit of the service) is logged and
    /// no error: they are zeroized all the same.
    pub fn new(size: usize) -> io::Result<Self> {
        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous};
        // SAFETY: a new private mapping at an address of the kernel's choice aliases nothing.
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
            if let Err(error) = mlock(pages, size) {
                tracing::warn!(%error, "the buffer for secrets cannot be locked into memory");
            }
            if let Err(error) = madvise(pages, size, Advice::LinuxDontDump) {
                tracing::warn!(%error, "the buffer for secrets cannot be kept out of core dumps");
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

    /// Reads a file, as much as fits, gives it to `look`, and zeroizes it.
    pub fn with_file<T>(
        &mut self,
        file: &mut File,
        look: impl FnOnce(&[u8]) -> T,
    ) -> io::Result<T> {
        let mut len = 0;
        let result = loop {
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
        let result = result.map(|()| look(&self.whole()[..len]));
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
        // SAFETY: the mapping is this value's, and nobody can use it any more.
        if let Err(error) = unsafe { rustix::mm::munmap(self.pages.as_ptr().cast(), self.size) } {
            tracing::warn!(%error, "the buffer for secrets cannot be unmapped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn nothing_stays_behind() {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(b"FAKE-secret").expect("written");
        std::io::Seek::rewind(&mut file).expect("rewound");
        let mut buffer = SecretBuffer::new(4096).expect("mapped");
        let seen = buffer.with_file(&mut file, <[u8]>::to_vec).expect("read");
        assert_eq!(seen, b"FAKE-secret");
        assert!(buffer.whole().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_large_file_is_cut() {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(&[7; 10_000]).expect("written");
        std::io::Seek::rewind(&mut file).expect("rewound");
        let mut buffer = SecretBuffer::new(4096).expect("mapped");
        assert_eq!(
            buffer.with_file(&mut file, <[u8]>::len).expect("read"),
            4096
        );
    }
}
