//! Decodes and validates the records of the probes.

use super::{
    dns,
    hello::{HelloPiece, host_name},
    observation::{
        FileId, Observation, ObservedSecret, OpenKind, ReadTarget, StdoutPipe, TaskInfo,
    },
};
use jiff::{SignedDuration, Timestamp};
use monitor_common::record::{
    self, BY_INODE, CONNECTED, ConnectRecord, FileRecord, ForeignReadRecord, INHERITED, NO_LOGIN,
    PayloadRecord, PlaintextRecord, PresentedRecord, ProcessRecord, RECEIVED, RecordHeader,
    RefusedRecord, SHARED_WITH_PARENT, TRUNCATED, UNLINKED, VariableRecord, WRITE_ONLY,
    WriteSocketRecord, foreign, kind,
};
use monitor_core::model::{Look, Subject, Transport};
use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::ffi::OsStringExt as _,
    path::PathBuf,
};
use thiserror::Error;

/// Why a record could not be decoded; it is counted and skipped.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("a record of {len} bytes ends before its {wanted} bytes of kind {kind}")]
    Short {
        kind: u32,
        len: usize,
        wanted: usize,
    },
    #[error("a record of unknown kind {0}")]
    Kind(u32),
}

/// Converts the kernel's boot-time clock to wall time.
#[derive(Clone, Copy, Debug)]
pub struct BootClock {
    /// Wall time at boot.
    boot: Timestamp,
}

/// Resolution of start times in `/proc`, in nanoseconds.
const TICK_NS: u64 = 10_000_000;

impl BootClock {
    /// Reads both clocks.
    pub fn now() -> Self {
        let since_boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let boot = Timestamp::now()
            .checked_sub(SignedDuration::new(
                since_boot.tv_sec,
                since_boot.tv_nsec as i32,
            ))
            .unwrap_or(Timestamp::UNIX_EPOCH);
        Self { boot }
    }

    /// The wall time of a number of nanoseconds since boot.
    pub fn at(self, nanoseconds: u64) -> Timestamp {
        let nanoseconds = i64::try_from(nanoseconds).unwrap_or(0);
        self.boot
            .checked_add(SignedDuration::from_nanos(nanoseconds))
            .unwrap_or(self.boot)
    }

    /// The wall time at which a process started.
    pub fn started(self, subject: Subject) -> Timestamp {
        self.at(subject.start.saturating_mul(TICK_NS))
    }
}

fn subject(pid: u32, start: u64) -> Subject {
    Subject {
        pid,
        start: start / TICK_NS,
    }
}

/// Reads a record's structure from the start of its bytes.
fn take<T: Copy>(kind: u32, bytes: &[u8]) -> Result<(T, &[u8]), DecodeError> {
    if bytes.len() < size_of::<T>() {
        return Err(DecodeError::Short {
            kind,
            len: bytes.len(),
            wanted: size_of::<T>(),
        });
    }
    // SAFETY: the records of monitor-common consist of integers without padding, so any bytes are
    // valid, and their number was checked.
    let value = unsafe { bytes.as_ptr().cast::<T>().read_unaligned() };
    Ok((value, &bytes[size_of::<T>()..]))
}

/// The result of decoding a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodedRecord {
    Whole(Observation),
    /// A payload that may have to be assembled with others.
    Payload(HelloPiece),
}

fn shown(record: &record::PresentedSecret) -> ObservedSecret {
    ObservedSecret {
        fingerprint: record.fingerprint,
        inner: (record.inner != 0).then_some(record.inner),
        secret_len: record.secret_len,
        header: record.name,
        prefix: record.prefix.checked_sub(1),
        dots: record.dots,
    }
}

/// Decodes one record; also returns its time in nanoseconds since boot.
pub fn decode(bytes: &[u8], clock: BootClock) -> Result<(u64, DecodedRecord), DecodeError> {
    let (kind, _) = take::<u32>(0, bytes)?;
    let time = match kind {
        kind::PAYLOAD => take::<PayloadRecord>(kind, bytes)?.0.time,
        kind::REFUSED => take::<RefusedRecord>(kind, bytes)?.0.time,
        kind::WRITE_SENT | kind::WRITE_REJECTED => take::<WriteSocketRecord>(kind, bytes)?.0.time,
        kind::PLAINTEXT | kind::ISSUED => take::<PlaintextRecord>(kind, bytes)?.0.time,
        kind::HOST | kind::DNS_RESPONSE => take::<PayloadRecord>(kind, bytes)?.0.time,
        _ => take::<RecordHeader>(kind, bytes)?.0.time,
    };
    let observation = match kind {
        kind::EXEC => {
            let (record, rest) = take::<ProcessRecord>(kind, bytes)?;
            Observation::Exec {
                stamp: stamp(&record.header, clock),
                exe: path(rest, record.path_len, record.flags & TRUNCATED != 0),
                file: FileId {
                    device: record.exe_device,
                    inode: record.exe_inode,
                    generation: record.exe_generation,
                },
                unlinked: record.flags & UNLINKED != 0,
            }
        }
        kind::FORK => Observation::Fork {
            stamp: stamp(&take::<RecordHeader>(kind, bytes)?.0, clock),
        },
        kind::EXIT => Observation::Exit {
            stamp: stamp(&take::<RecordHeader>(kind, bytes)?.0, clock),
        },
        kind::FILE => {
            let (record, rest) = take::<FileRecord>(kind, bytes)?;
            let file = FileId {
                device: record.device,
                inode: record.inode,
                generation: record.generation,
            };
            Observation::FileOpened {
                stamp: stamp(&record.header, clock),
                path: path(rest, record.path_len, record.flags & TRUNCATED != 0),
                source: source(rest, &record),
                file,
                known: record.flags & BY_INODE != 0,
                manner: if record.flags & WRITE_ONLY != 0 {
                    OpenKind::Written
                } else if record.flags & CONNECTED != 0 {
                    OpenKind::Connected
                } else if record.flags & RECEIVED != 0 {
                    OpenKind::Received
                } else if record.flags & INHERITED != 0 {
                    OpenKind::Inherited
                } else {
                    OpenKind::Opened
                },
                count: record.count.max(1),
                output: StdoutPipe {
                    pipe: (record.stdout != 0).then_some(record.stdout),
                    of_parent: record.flags & SHARED_WITH_PARENT != 0,
                },
            }
        }
        kind::VARIABLE => {
            let (record, _) = take::<VariableRecord>(kind, bytes)?;
            let name = &record.name[..(record.name_len as usize).min(record.name.len())];
            Observation::Variable {
                stamp: stamp(&record.header, clock),
                name: String::from_utf8_lossy(name).into_owned(),
                fingerprint: record.fingerprint,
                secret_len: record.secret_len,
                prefix: record.prefix.checked_sub(1),
                dots: record.dots,
                url: record.url != 0,
            }
        }
        kind::CONNECT => {
            let (record, _) = take::<ConnectRecord>(kind, bytes)?;
            let address = if i32::from(record.family) == 2 {
                let [a, b, c, d, ..] = record.address;
                IpAddr::V4(Ipv4Addr::new(a, b, c, d))
            } else {
                let v6 = Ipv6Addr::from(record.address);
                v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
            };
            Observation::Connected {
                stamp: stamp(&record.header, clock),
                cookie: record.cookie,
                address,
                port: record.port,
                transport: if record.protocol == 6 {
                    Transport::Tcp
                } else {
                    Transport::Udp
                },
                stdin: (record.stdin != 0).then_some(record.stdin),
            }
        }
        kind::PAYLOAD => {
            let (record, rest) = take::<PayloadRecord>(kind, bytes)?;
            let taken = &rest[..rest.len().min(record.len as usize)];
            return Ok((
                time,
                DecodedRecord::Payload(HelloPiece {
                    time: clock.at(record.time),
                    cookie: record.cookie,
                    sequence: record.sequence,
                    bytes: taken.to_vec(),
                }),
            ));
        }
        kind::PRESENTED => {
            let (record, _) = take::<PresentedRecord>(kind, bytes)?;
            Observation::Presented {
                stamp: stamp(&record.header, clock),
                write: record.write,
                server: (record.server != 0).then_some(record.server),
                host: (record.shown.host != 0).then_some(record.shown.host),
                shown: shown(&record.shown),
            }
        }
        kind::PLAINTEXT => {
            let (record, _) = take::<PlaintextRecord>(kind, bytes)?;
            Observation::Clear {
                time: clock.at(record.time),
                cookie: record.cookie,
                host: (record.shown.host != 0).then_some(record.shown.host),
                shown: shown(&record.shown),
            }
        }
        kind::ISSUED => {
            let (record, _) = take::<PlaintextRecord>(kind, bytes)?;
            Observation::Minted {
                time: clock.at(record.time),
                cookie: record.cookie,
                shown: shown(&record.shown),
            }
        }
        kind::HOST => {
            let (record, rest) = take::<PayloadRecord>(kind, bytes)?;
            let name = &rest[..rest.len().min(record.len as usize)];
            Observation::Host {
                time: clock.at(record.time),
                cookie: record.cookie,
                name: host_name(name),
            }
        }
        kind::WRITE_REJECTED => Observation::Withdrawn {
            write: take::<WriteSocketRecord>(kind, bytes)?.0.write,
        },
        kind::WRITE_SENT => {
            let (record, _) = take::<WriteSocketRecord>(kind, bytes)?;
            Observation::Tied {
                write: record.write,
                cookie: record.cookie,
            }
        }
        kind::DNS_RESPONSE => {
            let (record, rest) = take::<PayloadRecord>(kind, bytes)?;
            Observation::Answer {
                time: clock.at(record.time),
                resolved: dns::parse(&rest[..rest.len().min(record.len as usize)]),
            }
        }
        kind::FOREIGN => {
            let (record, _) = take::<ForeignReadRecord>(kind, bytes)?;
            Observation::Foreign {
                stamp: stamp(&record.header, clock),
                target: if record.target_start == 0 {
                    ReadTarget::Number(record.target)
                } else {
                    ReadTarget::Subject(subject(record.target, record.target_start))
                },
                look: match record.how {
                    foreign::ENVIRON => Look::Environ,
                    foreign::MEMORY | foreign::VM_READ => Look::Memory,
                    _ => Look::Trace,
                },
            }
        }
        kind::REFUSED => {
            let (record, _) = take::<RefusedRecord>(kind, bytes)?;
            Observation::Refused {
                time: clock.at(record.time),
                cookie: record.cookie,
            }
        }
        other => return Err(DecodeError::Kind(other)),
    };
    Ok((time, DecodedRecord::Whole(observation)))
}

/// The path of a file inside its own file system, if a mount shows it under another path.
fn source(bytes: &[u8], record: &FileRecord) -> Option<PathBuf> {
    let (path_len, source_len) = (record.path_len as usize, record.source_len as usize);
    if record.inside_len == record.path_len || source_len <= path_len {
        return None;
    }
    let inside = bytes.get(..record.inside_len as usize)?;
    let above = bytes.get(path_len..source_len)?;
    let whole = [inside, above].concat();
    Some(path(&whole, whole.len() as u32, false))
}

fn stamp(header: &RecordHeader, clock: BootClock) -> TaskInfo {
    let comm = header
        .comm
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    TaskInfo {
        time: clock.at(header.time),
        subject: subject(header.pid, header.start),
        parent: (header.parent != 0).then(|| subject(header.parent, header.parent_start)),
        cgroup: header.cgroup,
        uid: header.uid,
        loginuid: (header.loginuid != NO_LOGIN).then_some(header.loginuid),
        tty: header.tty != 0,
        comm: String::from_utf8_lossy(comm).into_owned(),
    }
}

/// Converts path components, ordered from last to first and terminated by zero bytes, to a path.
fn path(bytes: &[u8], len: u32, cut: bool) -> PathBuf {
    let bytes = &bytes[..bytes.len().min(len as usize)];
    let mut path = Vec::with_capacity(bytes.len() + 5);
    if cut {
        path.extend_from_slice("/…".as_bytes());
    }
    for component in bytes.split(|byte| *byte == 0).rev() {
        if !component.is_empty() {
            path.push(b'/');
            path.extend_from_slice(component);
        }
    }
    if path.is_empty() {
        path.push(b'/');
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_turned_around() {
        assert_eq!(
            path(b"credentials\0.aws\0root\0", 22, false),
            PathBuf::from("/root/.aws/credentials")
        );
        assert_eq!(path(b"", 0, false), PathBuf::from("/"));
        assert_eq!(path(b"memfd:x\0", 200, false), PathBuf::from("/memfd:x"));
        assert_eq!(path(b"token\0x\0", 8, true), PathBuf::from("/…/x/token"));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(kind in 0u32..18, rest in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut bytes = kind.to_ne_bytes().to_vec();
            bytes.extend(rest);
            let _ = decode(&bytes, BootClock::now());
        }
    }
}
