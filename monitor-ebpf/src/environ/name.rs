//! Classifies the name of a variable.

use crate::{
    environ::scratch::scratch,
    support::{
        kernel::repeat,
        maps::{BloomFilter, SeenSlot, rule},
        secret::secret_key,
    },
};
use core::ffi::c_void;
use monitor_common::{
    environ::{NAME_MAX, NameWords},
    fingerprint::SipHasher,
    map::EnvironScratch,
    swar,
};

/// Classifies the name at the start of the entry. Programs are passed the same few names again and
/// again: a name that matched no rule before is recognised by its tag.
///
/// The steps are separate functions that exchange data through this CPU's memory: the verifier
/// forgets how each one ended and verifies the next one once.
#[inline(always)]
pub fn classify_name(scratch: &mut EnvironScratch) {
    hash_name(scratch);
    if !is_known_plain(scratch) {
        split_name(scratch);
        remember_plain(scratch);
    }
}

/// The slot of the name among seen names, if the name is complete.
#[inline(always)]
fn name_slot(scratch: &EnvironScratch) -> Option<SeenSlot> {
    // SAFETY: this CPU's own memory; volatile, because it passes through memory.
    let [hash, len] = unsafe { (&raw const scratch.name.quick_hash).read_volatile() };
    if len == 0 {
        return None;
    }
    SeenSlot::find(|_| [hash, len, 0, 0, 0])
}

/// Whether the name is known to match no rule.
#[inline(never)]
fn is_known_plain(scratch: &mut EnvironScratch) -> bool {
    let seen = name_slot(scratch).is_some_and(SeenSlot::is_seen);
    if seen {
        let found = &raw mut scratch.name;
        // SAFETY: as above.
        unsafe {
            (&raw mut (*found).first_hit).write_volatile(0);
            (&raw mut (*found).last_hit).write_volatile(0);
            let len = (&raw const (*found).quick_hash[1]).read_volatile();
            (&raw mut (*found).len).write_volatile(len);
        }
    }
    seen
}

/// Remembers that a name matches no rule.
#[inline(never)]
fn remember_plain(scratch: &mut EnvironScratch) {
    // SAFETY: as above.
    let hit = unsafe { (&raw const scratch.name.first_hit).read_volatile() };
    if hit == 0
        && let Some(slot) = name_slot(scratch)
    {
        slot.remember();
    }
}

/// Hashes the bytes before the `=`, eight at a time, and counts them; 0 if there is no `=`. The hash
/// has a key, because whoever could construct a name with the hash of another would hide that one.
#[inline(never)]
fn hash_name(scratch: &mut EnvironScratch) {
    let (mut name, mut len) = (SipHasher::new(secret_key()), 0u64);
    for (i, bytes) in scratch.entry.chunks_exact(8).enumerate().take(NAME_MAX / 8) {
        // SAFETY: a chunk has eight bytes, and an entry starts at a multiple of eight.
        let word = unsafe { bytes.as_ptr().cast::<u64>().read() };
        let (equals, ends) = (
            swar::zero_bytes(word ^ swar::splat(b'=')),
            swar::zero_bytes(word),
        );
        let Some(below) = swar::mask_below(equals | ends) else {
            name.push_name_word(word);
            continue;
        };
        if swar::mask_below(equals) == Some(below) {
            name.push_name_word(word & below);
            len = i as u64 * 8 + swar::masked_bytes(below);
        }
        break;
    }
    let hash = name.finish_name(len);
    // SAFETY: this CPU's own memory.
    unsafe { (&raw mut scratch.name.quick_hash).write_volatile([hash, len]) };
}

/// Splits the name at the front of an entry into words.
#[inline(always)]
fn split_name(scratch: &mut EnvironScratch) {
    let found = &raw mut scratch.name;
    // SAFETY: this CPU's own memory.
    unsafe {
        (&raw mut (*found).words).write_volatile(NameWords::new());
        (&raw mut (*found).first_hit).write_volatile(0);
        (&raw mut (*found).last_hit).write_volatile(0);
        (&raw mut (*found).len).write_volatile(0);
    }
    repeat(
        NAME_MAX as u32,
        next_letter,
        &mut core::ptr::from_mut(scratch),
    );
}

extern "C" fn next_letter(i: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch() else { return 1 };
    i64::from(!push_letter(scratch, i))
}

/// Processes the `i`th byte of the entry; returns `false` at the end of the name.
#[inline(always)]
fn push_letter(scratch: &mut EnvironScratch, i: u64) -> bool {
    let Some(bloom) = BloomFilter::rules() else {
        return false;
    };
    let byte = scratch.entry[i as usize & (NAME_MAX - 1)];
    let ends = byte == b'=' || byte == 0;
    let key = if ends {
        scratch.name.words.end()
    } else {
        scratch.name.words.push(byte)
    };
    if let Some(key) = key
        && bloom.contains(key)
    {
        if scratch.name.first_hit == 0 {
            scratch.name.first_hit = key;
        }
        scratch.name.last_hit = key;
    }
    if byte == b'=' {
        scratch.name.len = i;
    }
    !ends
}

/// The rule for a word of a name, if the key is set and has one.
#[inline(always)]
pub fn word_rule(key: u64) -> Option<u32> {
    if key == 0 { None } else { rule(key) }
}
