//! Memory of the probes on each CPU. User space never reads it, and nothing shows it: it holds bytes of
//! processes.

use super::stream::{FIELDS, FoundCredential, HEAD, StreamKey};
use crate::{
    environ::NameWords,
    fingerprint::{MAX_SECRET, MAX_WORDS},
    http2::{FrameScan, HuffmanDecoder},
    login::LoginScan,
    record::{OwnerFields, PlaintextRecord, PresentedRecord, VariableRecord},
    response::ResponseScan,
    scan::{Base64Decoder, FingerprintBuilder, HeaderLines, HeaderValue, ScanWindow, VALUES_MAX},
};

/// Bytes of an entry that are read at once: a name, `=`, and a complete secret.
pub const CHUNK: usize = MAX_SECRET + 128;

/// Candidates per environment; any more are counted as not read.
pub const CANDIDATES_MAX: usize = 64;

/// The memory of the environ probe.
#[expect(missing_debug_implementations, reason = "it holds bytes of processes")]
#[repr(C)]
pub struct EnvironScratch {
    /// Offset at which entries are stored: on some kernels from 5.8 to 6.1, reading a string to the
    /// first byte of a per-CPU buffer can fault.
    pub offset: u64,
    pub entry: [u8; CHUNK],
    pub value: [u64; MAX_WORDS],
    pub record: VariableRecord,
    pub candidates: [VariableCandidate; CANDIDATES_MAX],
    /// Number of candidates. It is stored here and not on the stack, where the verifier would
    /// explore every value.
    pub candidate_count: u64,
    /// For the same reason the state of the name and of value trimming is stored here.
    pub name: VariableName,
    pub trim: ValueTrim,
}

/// A variable that matches a rule.
///
/// Candidates are collected first and fingerprinted afterwards, and all state passes through this
/// per-CPU memory: the verifier knows nothing about its contents, so it verifies each half once
/// instead of once per path through the other.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct VariableCandidate {
    /// Address of the entry, and then of the secret in it.
    pub at: u64,
    /// Length of the value, and then of the secret.
    pub len: u64,
    pub name_at: u64,
    pub name_len: u32,
    /// Value of the rule that matches a word of the name, plus 1; or 0.
    pub word: u32,
    /// Value of the rule that matches the first bytes, plus 1; or 0. Without the rule for JWTs.
    pub prefix: u32,
    pub jwt: u32,
    pub url: u32,
    pub dots: u32,
    /// 1 if the value is longer than what was read at once; its length is not known yet.
    pub cut: u32,
    pub reserved: u32,
}

/// What is known about a variable's name.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct VariableName {
    pub words: NameWords,
    /// Keys of the first and the last word that may match a rule.
    pub first_hit: u64,
    pub last_hit: u64,
    /// Bytes before the `=`; 0 if there is none.
    pub len: u64,
    /// The result of hashing its words.
    pub quick_hash: [u64; 2],
}

/// A value that is being trimmed.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ValueTrim {
    pub at: u64,
    pub len: u64,
    /// The next thing to strip: white space, quotes, white space, scheme word, white space, in this
    /// order.
    pub phase: u64,
}

/// This CPU's scratch memory. On some kernels another program of the same source can preempt this
/// one: each writes its own mark, and results found under another mark are counted as not read.
#[expect(missing_debug_implementations, reason = "it holds bytes of processes")]
#[repr(C)]
pub struct SearchScratch {
    pub mark: u64,
    pub object: StreamKey,
    /// Whose the socket is; not set for a write to a TLS library.
    pub owner: OwnerFields,
    /// Fingerprint of the server name in the head; 0 if there is none.
    pub host: u64,
    /// The last one on the same connection that was sent to the agent.
    pub known_host: u64,
    /// The length of that name, whose position in the text is in [`SearchScratch::secret`] while
    /// the name is sent.
    pub host_len: u64,
    /// Number of values to process, and the mark with which this search began.
    pub found: u64,
    pub number: u64,
    /// 1 if a record of this search was sent.
    pub is_sent: u64,
    /// 1 if repeats on its connection are counted.
    pub counts_repeats: u64,
    /// Scratch space for [`crate::swar::hide_from_verifier`].
    pub scratch_word: u64,
    /// The fingerprinted credential to be sent.
    pub held: FoundCredential,
    pub unwrap: Base64Decoder,
    pub lines: HeaderLines,
    pub frames: FrameScan,
    pub words: LoginScan,
    pub fields: ResponseScan,
    pub values: [HeaderValue; VALUES_MAX],
    /// The current value in [`SearchScratch::text`], and then the secret in it.
    pub secret: HeaderValue,
    /// Bytes of the write. Later code reads it from here: in a register the verifier would track
    /// every possible value.
    pub len: u64,
    /// Bytes of the window that were copied, and how many of them were carried over.
    pub copied: u64,
    pub carried: u64,
    /// No text since the last wipe was longer than this.
    pub texts: u64,
    pub decoder: HuffmanDecoder,
    pub print: FingerprintBuilder,
    pub presented: PresentedRecord,
    pub clear: PlaintextRecord,
    pub window: ScanWindow,
    pub text: ScanWindow,
}

impl SearchScratch {
    /// Whether the write is an HTTP request.
    #[inline(always)]
    pub fn is_request(&self) -> bool {
        self.words.protocol == HEAD || self.words.protocol == FIELDS
    }
}
