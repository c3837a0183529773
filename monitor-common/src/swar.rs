//! Operations on eight bytes at a time (SIMD within a register), for data that a probe cannot
//! afford to read byte by byte.

const LOW: u64 = 0x0101_0101_0101_0101;

/// A word with every byte set to `byte`.
#[inline(always)]
pub const fn splat(byte: u8) -> u64 {
    LOW * byte as u64
}

/// Eight spaces. ORing with it makes letters lower-case; `-` and digits already have this bit set.
pub const SPACES: u64 = splat(b' ');

/// Sets the highest bit of each zero byte of a word. Only the lowest mark is reliable; marks above
/// it may be wrong.
#[inline(always)]
pub const fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(LOW) & !word & (LOW << 7)
}

/// A mask of the bytes below the first mark of [`zero_bytes`], or `None` if there is no mark.
#[inline(always)]
pub const fn mask_below(marks: u64) -> Option<u64> {
    if marks == 0 {
        return None;
    }
    Some(((marks & marks.wrapping_neg()) >> 7).wrapping_sub(1))
}

/// The number of bytes in a mask of [`mask_below`].
#[inline(always)]
pub const fn masked_bytes(mask: u64) -> u64 {
    (mask & LOW).wrapping_mul(LOW) >> 56
}

/// Adds the next eight bytes of a name to its sum.
#[inline(always)]
pub const fn add_name_word(sum: u64, word: u64) -> u64 {
    (sum ^ word)
        .wrapping_mul(0x9fb2_1c65_1e98_df25)
        .rotate_left(32)
}

/// Sets the highest bit of each zero byte. Unlike [`zero_bytes`], every mark is reliable.
#[inline(always)]
pub const fn exact_zero_bytes(word: u64) -> u64 {
    const LOW_BITS: u64 = !(LOW << 7);
    !(((word & LOW_BITS).wrapping_add(LOW_BITS)) | word | LOW_BITS)
}

/// Converts upper-case letters to lower case.
#[inline(always)]
pub const fn to_lower(word: u64) -> u64 {
    const HIGH: u64 = splat(0x80);
    let low = word & !HIGH;
    let from_a = low + splat(0x80 - b'A');
    let behind_z = low + splat(0x7f - b'Z');
    word | ((from_a ^ behind_z) & !word & HIGH) >> 2
}

/// The number of marks set by [`exact_zero_bytes`].
#[inline(always)]
pub const fn count_marks(marks: u64) -> u64 {
    (marks >> 7).wrapping_mul(LOW) >> 56
}

/// Writes a number to memory and reads it back. The value is unchanged, but the verifier no longer
/// knows how it was computed, so it verifies the code that follows once instead of once per path.
#[inline(always)]
pub fn hide_from_verifier(place: &mut u64, number: u64) -> u64 {
    let place = core::ptr::from_mut(place);
    // SAFETY: `place` is an exclusive reference to plain memory.
    unsafe {
        place.write_volatile(number);
        place.read_volatile()
    }
}

/// Loads eight bytes from an unaligned address. The BPF compiler would emit eight single-byte
/// loads, although the target machines need only one.
///
/// # Safety
/// Eight bytes must be readable at `place`.
#[inline(always)]
pub unsafe fn load_unaligned(place: *const u8) -> u64 {
    if cfg!(target_arch = "bpf") {
        // SAFETY: guaranteed by the caller; the verifier rejects the program on machines that
        // require alignment.
        unsafe { place.cast::<u64>().read_volatile() }
    } else {
        // SAFETY: guaranteed by the caller.
        unsafe { place.cast::<u64>().read_unaligned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn marks_are_at_the_matching_bytes(bytes: [u8; 8], wanted: u8) {
            let word = u64::from_le_bytes(bytes) ^ splat(wanted);
            let place = bytes.iter().position(|byte| *byte == wanted);
            prop_assert_eq!(mask_below(zero_bytes(word)).map(super::masked_bytes), place.map(|place| place as u64));
            let all = bytes.iter().filter(|byte| **byte == wanted).count();
            prop_assert_eq!(count_marks(exact_zero_bytes(word)), all as u64);
        }

        #[test]
        fn capitals_become_lower_case(bytes: [u8; 8]) {
            prop_assert_eq!(
                to_lower(u64::from_le_bytes(bytes)).to_le_bytes(),
                bytes.map(|byte| byte.to_ascii_lowercase())
            );
        }
    }
}
