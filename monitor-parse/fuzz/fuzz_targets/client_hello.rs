//! ClientHellos, whole and in pieces.
#![no_main]

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use monitor_parse::{
    client_hello::{HelloAssembler, HelloPiece, parse_client_hello},
    peak,
};

/// Bytes for a ClientHello and its pieces.
const PEAK: usize = 4 << 20;

fuzz_target!(|bytes: &[u8]| {
    let peak = peak::of(|| {
        drop(parse_client_hello(bytes));
        let mut assembler = HelloAssembler::default();
        let mut rest = bytes;
        // Each piece begins with its connection, the distance from the previous one, and its length.
        let mut sequence = 0u32;
        while let [cookie, distance, len, after @ ..] = rest {
            let (piece, left) = after.split_at(usize::from(*len).min(after.len()));
            sequence = sequence.wrapping_add(u32::from(*distance));
            drop(assembler.add_piece(HelloPiece {
                time: Timestamp::UNIX_EPOCH,
                cookie: u64::from(*cookie),
                sequence,
                bytes: piece.to_vec(),
            }));
            rest = left;
        }
    });
    assert!(peak < PEAK, "{peak} bytes");
});
