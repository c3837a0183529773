//! Measures peak memory use in tests of parsers: a global allocator that counts per thread.

use std::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
};

thread_local! {
    static CURRENT_BYTES: Cell<usize> = const { Cell::new(0) };
    static PEAK_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// Counts the allocations of another allocator.
#[derive(Debug)]
pub struct CountingAllocator<A>(pub A);

fn grow(bytes: usize) {
    // A thread that is ending has no counters any more.
    let _ = CURRENT_BYTES.try_with(|now| {
        now.set(now.get().wrapping_add(bytes));
        let _ = PEAK_BYTES.try_with(|peak| peak.set(peak.get().max(now.get())));
    });
}

fn shrink(bytes: usize) {
    // Memory allocated by another thread may be freed here.
    let _ = CURRENT_BYTES.try_with(|now| now.set(now.get().saturating_sub(bytes)));
}

// SAFETY: every call is passed on unchanged, and counting allocates nothing.
unsafe impl<A: GlobalAlloc> GlobalAlloc for CountingAllocator<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's guarantees are those that the inner allocator requires.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: as above.
        unsafe { self.0.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both blocks may exist for a moment.
        grow(size);
        shrink(layout.size());
        // SAFETY: as above.
        unsafe { self.0.realloc(at, layout, size) }
    }
}

/// Peak number of bytes that this thread allocates while `run` executes, beyond what it had before.
pub fn of(run: impl FnOnce()) -> usize {
    let before = CURRENT_BYTES.with(Cell::get);
    PEAK_BYTES.with(|peak| peak.set(before));
    run();
    PEAK_BYTES.with(Cell::get).saturating_sub(before)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_vector_is_counted() {
        let bytes = super::of(|| drop(vec![0u8; 1 << 20]));
        assert!((1 << 20..1 << 21).contains(&bytes), "{bytes}");
    }
}
