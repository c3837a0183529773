//! The search for credentials in a copy of what a process sends or receives, and their
//! fingerprints.
//!
//! Shared by the programs at TLS libraries and at packets. Each source has its own scratch memory
//! per CPU and sends its findings in its own record type.

use crate::support::search::{
    head::{scan_frames, scan_lines},
    login::scan_login,
    source::PlaintextSource,
};
use monitor_common::map::{FIELDS, HEAD, SearchScratch};

pub mod carried;
pub mod head;
pub mod login;
pub mod plaintext_record;
pub mod response;
pub mod source;
pub mod stream;
pub mod value;

/// Searches the window; returns the number of values found.
#[inline(always)]
pub fn search<S: PlaintextSource>(scratch: &mut SearchScratch) -> u64 {
    let format = scratch.words.protocol;
    if format == HEAD || !S::LOOPS {
        scan_lines::<S>(scratch)
    } else if format == FIELDS {
        scan_frames::<S>(scratch)
    } else {
        scan_login::<S>(scratch, format)
    }
}
