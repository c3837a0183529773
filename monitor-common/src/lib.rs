//! The kernel/user boundary of Keytrail.
//!
//! Everything that both sides must agree on lives here. It is `no_std`, compiled for BPF and for
//! the host, and tested on the host: the layout of [`record`]s and of [`map`] keys and values, the [`fingerprint`], the [`filter`]
//! that decides in the kernel what is worth a record, the [`scan`]ners that find credentials, and
//! the table of kernel [`fields`].
#![cfg_attr(not(test), no_std)]

pub mod environ;
pub mod fields;
pub mod filter;
pub mod fingerprint;
pub mod http2;
pub mod login;
pub mod map;
pub mod record;
pub mod response;
pub mod scan;
pub mod swar;
