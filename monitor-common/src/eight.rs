//! Eight bytes at a time: what a probe cannot afford to look at one by one.

const LOW: u64 = 0x0101_0101_0101_0101;

/// Eight times a byte.
#[inline(always)]
pub const fn eight_of(byte: u8) -> u64 {
    LOW * byte as u64
}

/// Eight spaces. A letter with this bit set is a small one; `-` and digits have it already.
pub const SPACES: u64 = eight_of(b' ');

/// The highest bit of each zero byte of a word; those above the first may be wrong.
#[inline(always)]
pub const fn zeros(word: u64) -> u64 {
    word.wrapping_sub(LOW) & !word & (LOW << 7)
}

/// A mask of the bytes before the first mark of [`zeros`], if there is one.
#[inline(always)]
pub const fn below(marks: u64) -> Option<u64> {
    if marks == 0 {
        return None;
    }
    Some(((marks & marks.wrapping_neg()) >> 7).wrapping_sub(1))
}

/// How many bytes a mask of [`below`] has.
#[inline(always)]
pub const fn bytes(mask: u64) -> u64 {
    (mask & LOW).wrapping_mul(LOW) >> 56
}

/// Adds the next eight bytes of a name to what stands for it.
#[inline(always)]
pub const fn sum(sum: u64, word: u64) -> u64 {
    (sum ^ word)
        .wrapping_mul(0x9fb2_1c65_1e98_df25)
        .rotate_left(32)
}

/// The high bit of each byte that is zero, without exception.
#[inline(always)]
pub const fn exact_zeros(word: u64) -> u64 {
    const BUT_HIGH: u64 = !(LOW << 7);
    !(((word & BUT_HIGH).wrapping_add(BUT_HIGH)) | word | BUT_HIGH)
}

/// Capital letters become small ones.
#[inline(always)]
pub const fn small(word: u64) -> u64 {
    const HIGH: u64 = eight_of(0x80);
    let low = word & !HIGH;
    let from_a = low + eight_of(0x80 - b'A');
    let behind_z = low + eight_of(0x7f - b'Z');
    word | ((from_a ^ behind_z) & !word & HIGH) >> 2
}

/// How many marks of [`exact_zeros`] there are.
#[inline(always)]
pub const fn count(marks: u64) -> u64 {
    (marks >> 7).wrapping_mul(LOW) >> 56
}

/// Sends a number through memory. What comes back is the same; but the verifier, which knew how it
/// came about, knows nothing of it any more, and walks what follows once and not once for each way.
#[inline(always)]
pub fn through(place: &mut u64, number: u64) -> u64 {
    let place = core::ptr::from_mut(place);
    // SAFETY: a plain place that nobody else has.
    unsafe {
        place.write_volatile(number);
        place.read_volatile()
    }
}

/// Eight bytes from anywhere. The compiler for BPF makes eight loads of an unaligned one, where
/// the machines that run it can do with one.
///
/// # Safety
/// Eight bytes must be readable at `place`.
#[inline(always)]
pub unsafe fn load(place: *const u8) -> u64 {
    if cfg!(target_arch = "bpf") {
        // SAFETY: as the caller vouches; the verifier refuses it where alignment matters.
        unsafe { place.cast::<u64>().read_volatile() }
    } else {
        // SAFETY: as the caller vouches.
        unsafe { place.cast::<u64>().read_unaligned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn marks_are_where_the_byte_is(bytes: [u8; 8], wanted: u8) {
            let word = u64::from_le_bytes(bytes) ^ eight_of(wanted);
            let place = bytes.iter().position(|byte| *byte == wanted);
            prop_assert_eq!(below(zeros(word)).map(super::bytes), place.map(|place| place as u64));
            let all = bytes.iter().filter(|byte| **byte == wanted).count();
            prop_assert_eq!(count(exact_zeros(word)), all as u64);
        }

        #[test]
        fn capitals_become_small(bytes: [u8; 8]) {
            prop_assert_eq!(
                small(u64::from_le_bytes(bytes)).to_le_bytes(),
                bytes.map(|byte| byte.to_ascii_lowercase())
            );
        }
    }
}
