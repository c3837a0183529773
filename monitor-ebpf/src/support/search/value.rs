//! Fingerprints the values that were found, and emits them.

use crate::support::{
    maps::{BloomFilter, count},
    search::{
        source::{HUFFMAN, PlaintextSource, owns_scratch, repeat_step, scratch},
        stream::STREAMS,
    },
    secret::{secret_key, value_prefix_rule},
};
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use core::ffi::c_void;
use monitor_common::{
    fingerprint::MAX_WORDS,
    http2::HuffmanDecoder,
    map::{FoundCredential, SearchScratch},
    record::{Probe, Stage},
    scan::{
        self, Base64Decoder, FingerprintBuilder, HOST_MAX, HeaderValue, VALUES_MAX, WINDOW, form,
        wrapped,
    },
};

/// Values of one head that are fingerprinted without `bpf_loop`: the verifier walks every word of
/// each.
const UNROLLED_VALUES: usize = 2;

/// Fingerprints the server name and the first `found` values, and sends them.
#[inline(always)]
pub fn emit_values<S: PlaintextSource>(scratch: &mut SearchScratch, found: u64, number: u64) {
    scratch.number = number;
    if S::LOOPS {
        scratch.found = found;
        repeat_step(1 + 2 * VALUES_MAX as u32, next_value::<S>, scratch);
        return;
    }
    S::emit_host(scratch);
    for i in 0..UNROLLED_VALUES {
        if i as u64 >= found {
            break;
        }
        emit_one::<S>(scratch, i);
    }
}

extern "C" fn next_value<S: PlaintextSource>(i: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    if i > 2 * scratch.found {
        return 1;
    }
    // Prevents specialisation, so that the verifier sees identical iterations.
    value::<S>(scratch, core::hint::black_box(i));
    0
}

/// One iteration: the server name first, then two per value: the value as sent and what is wrapped
/// in it. The same code handles them all, so the verifier walks it once.
#[inline(always)]
pub fn value<S: PlaintextSource>(scratch: &mut SearchScratch, i: u64) {
    let ready = load_value::<S>(scratch, i);
    if !ready {
        return end_turn::<S>(scratch, i, false);
    }
    match scratch.secret.form {
        form::HUFFMAN => decode::<S>(scratch),
        WRAPPED => decode_base64::<S>(scratch),
        _ => copy_value(scratch),
    }
    let found = trim_value(scratch, i);
    if found {
        fingerprint_words::<S>(scratch);
    }
    end_turn::<S>(scratch, i, found);
}

/// A form of a value in the text that still has to be decoded.
const WRAPPED: u64 = 4;

/// Whether an iteration is about what is wrapped in the value of the previous one.
#[inline(always)]
fn is_inner(i: u64) -> bool {
    i > 0 && i & 1 == 0
}

/// Loads the value of an iteration; returns `false` if there is nothing to do.
#[inline(never)]
fn load_value<S: PlaintextSource>(scratch: &mut SearchScratch, i: u64) -> bool {
    if i == 0 {
        return take_host::<S>(scratch);
    }
    if is_inner(i) {
        scratch.secret.form = WRAPPED;
        return scratch.held.fingerprint != 0 && scratch.secret.wrapped != wrapped::NOT;
    }
    scratch.secret = scratch.values[(i as usize >> 1) & (VALUES_MAX - 1)];
    scratch.held = FoundCredential::NONE;
    if scratch.secret.form == form::INDEXED {
        emit_referenced(scratch);
        return false;
    }
    true
}

/// Finds the secret, the server name, or the password in the text.
#[inline(never)]
fn trim_value(scratch: &mut SearchScratch, i: u64) -> bool {
    if i == 0 {
        trim_host(scratch);
    } else if is_inner(i) {
        scratch.secret = scan::basic_password(&scratch.text, scratch.unwrap.len, scratch.secret);
    } else if scratch.secret.rule < scan::BARE_VALUE {
        return locate(scratch);
    } else {
        scratch.secret.at = 0;
    }
    scratch.secret.len > 0
}

#[inline(never)]
fn end_turn<S: PlaintextSource>(scratch: &mut SearchScratch, i: u64, printed: bool) {
    if i == 0 {
        end_host::<S>(scratch, printed);
    } else if is_inner(i) {
        if printed {
            scratch.held.inner = fingerprint_of(scratch, scratch.secret);
        }
        emit_held::<S>(scratch);
    } else if printed {
        hold_outer(scratch);
    }
}

/// Decodes base64.
#[inline(always)]
fn decode_base64<S: PlaintextSource>(scratch: &mut SearchScratch) {
    scratch.unwrap = Base64Decoder::default();
    repeat_step(HUFFMAN_MAX / 4, next_four::<S>, scratch);
}

extern "C" fn next_four<S: PlaintextSource>(i: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    let secret = scratch.secret;
    i64::from(!scratch.unwrap.step(&mut scratch.text, secret, i))
}

/// Whether a request asks a proxy for a connection to another server.
#[inline(always)]
pub fn asks_for_tunnel(scratch: &SearchScratch) -> bool {
    const CONNECT: u64 = u64::from_le_bytes(*b"CONNECT ");
    scan::word_at(&scratch.window, 0) == CONNECT
}

/// Loads the value that holds the server name; returns `false` if there is none, or if it is
/// already known.
#[inline(always)]
fn take_host<S: PlaintextSource>(scratch: &mut SearchScratch) -> bool {
    let value = if scratch.lines.host.len != 0 {
        scratch.lines.host
    } else {
        scratch.frames.host
    };
    scratch.secret = value;
    // The target of a CONNECT is not the name of the server that reads it.
    if asks_for_tunnel(scratch) && !matches!(S::PROBE, Probe::Clear) {
        return false;
    }
    if value.form == form::INDEXED
        && let Some(stream) = STREAMS.get_ptr_mut(scratch.object)
    {
        // SAFETY: the pointer is into the map.
        let [entry, fingerprint] = unsafe { (*stream).host };
        if entry == value.table_index {
            scratch.host = fingerprint;
        }
    }
    value.len != 0
}

#[inline(always)]
fn trim_host(scratch: &mut SearchScratch) {
    let value = HeaderValue {
        at: 0,
        ..scratch.secret
    };
    scan::lowercase_front(&mut scratch.text);
    scratch.secret = scan::host_name(&scratch.text, value, &mut scratch.scratch_word);
    without_address(scratch);
}

/// A separate function, so that the verifier arrives here once, however the name ended.
#[inline(never)]
fn without_address(scratch: &mut SearchScratch) {
    if scan::is_address(&scratch.text, scratch.secret) {
        scratch.secret.len = 0;
    }
}

/// The server name is known and in the text, or there is none.
#[inline(always)]
fn end_host<S: PlaintextSource>(scratch: &mut SearchScratch, printed: bool) {
    let secret = scratch.secret;
    if !printed || secret.len > HOST_MAX as u64 {
        S::emit_host(scratch);
        return;
    }
    let fingerprint = fingerprint_of(scratch, secret);
    scratch.host = fingerprint;
    scratch.host_len = secret.len;
    S::emit_host(scratch);
    if asks_for_tunnel(scratch) {
        // A credential in this head is for the proxy.
        scratch.host = 0;
    }
    if secret.table_index != 0
        && let Some(stream) = STREAMS.get_ptr_mut(scratch.object)
    {
        // SAFETY: the pointer is into the map.
        unsafe { (*stream).host = [secret.table_index, fingerprint] };
    }
}

/// Fingerprints the `i`th value and sends its record, without `bpf_loop`.
#[inline(never)]
fn emit_one<S: PlaintextSource>(scratch: &mut SearchScratch, i: usize) {
    scratch.secret = scratch.values[i & (VALUES_MAX - 1)];
    copy_value(scratch);
    if locate(scratch) {
        fingerprint_words::<S>(scratch);
        hold_outer(scratch);
        emit_held::<S>(scratch);
    }
}

/// Hashes the full words of the secret.
#[inline(always)]
pub fn fingerprint_words<S: PlaintextSource>(scratch: &mut SearchScratch) {
    scratch.print = FingerprintBuilder::new(secret_key());
    if S::LOOPS {
        repeat_step(WORDS, next_word::<S>, scratch);
    } else {
        for i in 0..u64::from(WORDS) {
            if !word(scratch, i) {
                break;
            }
        }
    }
}

/// Copies the value to the front of the text.
#[inline(never)]
fn copy_value(scratch: &mut SearchScratch) {
    let HeaderValue { at, len, .. } = scratch.secret;
    let len = if len > WINDOW as u64 {
        WINDOW as u64
    } else {
        len
    };
    // SAFETY: at most WINDOW bytes, and the text has SLACK bytes more; the helper checks the
    // source.
    unsafe {
        bpf_probe_read_kernel(
            scratch.text.as_mut_ptr().cast(),
            len as u32 & (2 * WINDOW as u32 - 1),
            scratch
                .window
                .as_ptr()
                .add(at as usize & (WINDOW - 1))
                .cast(),
        );
    }
    scratch.secret.len = len;
    scratch.texts |= len;
}

/// Maximum bytes of a Huffman-coded value that are decoded.
const HUFFMAN_MAX: u32 = 4096;

/// Decodes the value to the front of the text.
#[inline(always)]
fn decode<S: PlaintextSource>(scratch: &mut SearchScratch) {
    scratch.decoder = HuffmanDecoder::default();
    repeat_step(HUFFMAN_MAX, next_byte::<S>, scratch);
    scratch.secret.len = scratch.decoder.len;
    scratch.texts |= scratch.decoder.len;
}

extern "C" fn next_byte<S: PlaintextSource>(i: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    i64::from(!byte(scratch, i))
}

#[inline(always)]
pub fn byte(scratch: &mut SearchScratch, i: u64) -> bool {
    let Some(table) = HUFFMAN.get(0) else {
        return false;
    };
    scratch
        .decoder
        .step(&scratch.window, scratch.secret, i, table, &mut scratch.text)
}

/// Finds the secret in the text.
#[inline(never)]
fn locate(scratch: &mut SearchScratch) -> bool {
    let value = HeaderValue {
        at: 0,
        ..scratch.secret
    };
    let (secret, _) = scan::find_secret(&scratch.text, value, &mut scratch.scratch_word);
    scratch.secret = secret;
    secret.len > 0
}

const WORDS: u32 = MAX_WORDS as u32 + 1;

extern "C" fn next_word<S: PlaintextSource>(i: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    i64::from(!word(scratch, i))
}

#[inline(always)]
pub fn word(scratch: &mut SearchScratch, i: u64) -> bool {
    let secret = scratch.secret;
    scratch.print.step(&scratch.text, secret, i)
}

/// Keeps the fingerprint until what is wrapped in the value is known.
#[inline(always)]
fn hold_outer(scratch: &mut SearchScratch) {
    let Some(bloom) = BloomFilter::rules() else {
        return;
    };
    let secret = scratch.secret;
    let (fingerprint, dots) = scratch.print.finish(&scratch.text, secret);
    let (prefix, _) = value_prefix_rule(scan::word_at(&scratch.text, secret.at), bloom);
    scratch.held = FoundCredential {
        table_index: secret.table_index,
        fingerprint,
        inner: 0,
        secret_len: secret.len as u32,
        name: secret.rule as u32,
        prefix,
        dots: dots as u32,
    };
}

/// Emits a credential referenced from the connection's HPACK table.
#[inline(always)]
fn emit_referenced(scratch: &mut SearchScratch) {
    let Some(stream) = STREAMS.get_ptr_mut(scratch.object) else {
        return;
    };
    // SAFETY: the pointer is into the map.
    let known = unsafe { (*stream).known };
    let entry = scratch.secret.table_index;
    if known[0].table_index == entry {
        scratch.held = known[0];
    } else if known[1].table_index == entry {
        scratch.held = known[1];
    }
    // It is in the table already.
    scratch.held.table_index = 0;
    scratch.secret.wrapped = wrapped::NOT;
}

/// Sends the held credential, and remembers it if it is in the connection's HPACK table.
#[inline(always)]
fn emit_held<S: PlaintextSource>(scratch: &mut SearchScratch) {
    let held = scratch.held;
    if held.fingerprint == 0 {
        return;
    }
    if !owns_scratch(scratch, scratch.number) {
        // Another program used the scratch in between: its results are not valid either.
        scratch.mark = 0;
        count(S::PROBE, Stage::Read);
        return;
    }
    if held.table_index != 0
        && let Some(stream) = STREAMS.get_ptr_mut(scratch.object)
    {
        // SAFETY: the pointer is into the map.
        let place = unsafe { &mut (*stream).known };
        place[1] = place[0];
        place[0] = held;
    }
    S::emit(scratch, &held);
}

/// The fingerprint of the words hashed by [`fingerprint_words`].
#[inline(always)]
pub fn fingerprint_of(scratch: &SearchScratch, secret: HeaderValue) -> u64 {
    scratch.print.finish(&scratch.text, secret).0
}
