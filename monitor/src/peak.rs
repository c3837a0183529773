//! How much memory something takes at most, for the tests of parsers: a global allocator that counts
//! for each thread.

use std::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
};

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

/// Counts what goes through another allocator.
#[derive(Debug)]
pub struct Counting<A>(pub A);

fn grow(bytes: usize) {
    // A thread that ends has no counters any more.
    let _ = NOW.try_with(|now| {
        now.set(now.get().wrapping_add(bytes));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now.get())));
    });
}

fn shrink(bytes: usize) {
    // What another thread allocated may be freed here.
    let _ = NOW.try_with(|now| now.set(now.get().saturating_sub(bytes)));
}

// SAFETY: every call is passed on as it is, and what is counted needs no memory of its own.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counting<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are those that the inner allocator asks for.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: as above.
        unsafe { self.0.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may exist for a moment.
        grow(size);
        shrink(layout.size());
        // SAFETY: as above.
        unsafe { self.0.realloc(at, layout, size) }
    }
}

/// Bytes that this thread has at most while something runs, beyond what it had before.
pub fn of(run: impl FnOnce()) -> usize {
    let before = NOW.with(Cell::get);
    PEAK.with(|peak| peak.set(before));
    run();
    PEAK.with(Cell::get).saturating_sub(before)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_vector_is_counted() {
        let bytes = super::of(|| drop(vec![0u8; 1 << 20]));
        assert!((1 << 20..1 << 21).contains(&bytes), "{bytes}");
    }
}
