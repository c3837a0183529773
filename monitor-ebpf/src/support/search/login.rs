//! Finds the secret of a login.

use crate::support::{
    maps::{insert_counted, remove_counted},
    search::{
        source::{PlaintextSource, repeat_step, scratch},
        stream::STREAMS,
    },
};
use core::ffi::c_void;
use monitor_common::{
    login::{self, protocol},
    map::{EvictingMap, SearchScratch, StreamState},
};

/// Scans the words of a login.
#[inline(always)]
pub fn scan_login<S: PlaintextSource>(scratch: &mut SearchScratch, format: u64) -> u64 {
    match format {
        protocol::POSTGRES => postgres(scratch),
        protocol::MYSQL => mysql(scratch),
        protocol::MQTT => mqtt(scratch),
        protocol::LDAP => ldap(scratch),
        _ => repeat_step(LOGIN_WORDS_MAX, next_word_of_login::<S>, scratch),
    }
    end_login::<S>()
}

/// Maximum words, or pieces of long ones, in a login.
const LOGIN_WORDS_MAX: u32 = 64;

extern "C" fn next_word_of_login<S: PlaintextSource>(_: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    i64::from(!word_of_login(scratch))
}

#[inline(never)]
fn word_of_login(scratch: &mut SearchScratch) -> bool {
    login::step(&scratch.window, &mut scratch.words)
}

#[inline(never)]
fn postgres(scratch: &mut SearchScratch) {
    login::postgres(&scratch.window, &mut scratch.words);
}

#[inline(never)]
fn mysql(scratch: &mut SearchScratch) {
    login::mysql(&scratch.window, &mut scratch.words);
}

#[inline(never)]
fn mqtt(scratch: &mut SearchScratch) {
    login::mqtt(&scratch.window, &mut scratch.words);
}

#[inline(never)]
fn ldap(scratch: &mut SearchScratch) {
    login::ldap(&scratch.window, &mut scratch.words);
}

/// Takes the secret of a login as the only value, and remembers the format of the next write.
#[inline(never)]
fn end_login<S: PlaintextSource>() -> u64 {
    let Some(scratch) = scratch::<S>() else {
        return 0;
    };
    let words = &scratch.words;
    if words.next == 0 || words.secret.len != 0 {
        remove_counted(&STREAMS, EvictingMap::Streams, scratch.object);
    } else {
        insert_counted(
            &STREAMS,
            EvictingMap::Streams,
            scratch.object,
            &StreamState::new(words.next),
        );
    }
    scratch.values[0] = words.secret;
    u64::from(words.secret.len != 0)
}
