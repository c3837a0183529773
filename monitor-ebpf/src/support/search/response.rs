//! Finds issued credentials in a response.

use crate::support::{
    maps::BloomFilter,
    search::{
        head::{LINES_MAX, header, next_line},
        source::{PlaintextSource, repeat_step, scratch},
    },
};
use core::ffi::c_void;
use monitor_common::{
    map::SearchScratch,
    response,
    scan::{self, HeaderValue},
};

/// Maximum tokens of a response that are scanned.
const TOKENS_MAX: u32 = 1024;

/// Searches the window for fields with credentials; returns the number of values found.
#[inline(always)]
pub fn fields<S: PlaintextSource>(scratch: &mut SearchScratch) -> u64 {
    repeat_step(TOKENS_MAX, next_piece::<S>, scratch);
    end_fields::<S>()
}

#[inline(never)]
fn end_fields<S: PlaintextSource>() -> u64 {
    scratch::<S>().map_or(0, |scratch| scratch.fields.found)
}

extern "C" fn next_piece<S: PlaintextSource>(_: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    i64::from(!piece(scratch))
}

#[inline(never)]
fn piece(scratch: &mut SearchScratch) -> bool {
    let Some(bloom) = BloomFilter::rules() else {
        return false;
    };
    response::step(
        &scratch.window,
        &mut scratch.fields,
        &mut scratch.values,
        |key| header(key, bloom),
    )
}

/// Takes the whole body of a response as the only value; returns 0 if the body is still to come.
#[inline(always)]
pub fn take_whole_body<S: PlaintextSource>(scratch: &mut SearchScratch) -> u64 {
    repeat_step(LINES_MAX, next_line::<S>, scratch);
    end_whole_body::<S>()
}

#[inline(never)]
fn end_whole_body<S: PlaintextSource>() -> u64 {
    let Some(scratch) = scratch::<S>() else {
        return 0;
    };
    const HTTP: u32 = u32::from_le_bytes(*b"HTTP");
    let end = scratch.lines.end;
    let at = if scan::word_at(&scratch.window, 0) as u32 != HTTP {
        0
    } else if scratch.lines.ended != 0 {
        let line = scratch.lines.at;
        line + 1 + u64::from(scan::word_at(&scratch.window, line) as u8 == b'\r')
    } else {
        end
    };
    scratch.values[0] = HeaderValue {
        at,
        len: end.saturating_sub(at),
        rule: response::RESPONSE_FIELD | response::WHOLE_BODY,
        ..HeaderValue::default()
    };
    u64::from(at < end)
}
