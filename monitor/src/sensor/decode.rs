//! Decodes and validates the records of the probes.

use super::observation::{
    Observation, ObservedConnection, ObservedExec, ObservedForeignRead, ObservedOpen,
    ObservedPresentation, ObservedSecret, OpenKind, PlaintextHost, PlaintextSecret, ReadTarget,
    RecordOwner, StdoutPipe, TaskInfo,
};
use crate::observed::{file::FileId, variable::ObservedVariable};
use jiff::{SignedDuration, Timestamp};
use monitor_common::record::{
    self, ASKS_FOR_TUNNEL, BY_INODE, CONNECTED, ConnectRecord, FileRecord, ForeignReadRecord,
    INHERITED, NO_LOGIN, PayloadRecord, PlaintextRecord, PresentedRecord, ProcessRecord, RECEIVED,
    RecordHeader, RefusedRecord, SHARED_WITH_PARENT, TRUNCATED, UNLINKED, VariableRecord,
    WRITE_ONLY, WriteSocketRecord, foreign, kind,
};
use monitor_core::model::{Look, Subject, Transport};
use monitor_parse::{
    client_hello::{HelloPiece, host_name},
    dns,
};
use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::ffi::OsStringExt as _,
    path::PathBuf,
};
use thiserror::Error;
use zerocopy::FromBytes;

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

pub(super) fn subject(pid: u32, start: u64) -> Subject {
    Subject {
        pid,
        start: start / TICK_NS,
    }
}

/// The result of decoding a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodedRecord {
    Whole(Observation),
    /// A payload that may have to be assembled with others.
    Payload(RecordOwner, HelloPiece),
    /// A DNS response that resolves nothing.
    Nothing,
}

/// The bytes of one record, and the clock for its times.
#[derive(Clone, Copy, Debug)]
struct RawRecord<'a> {
    kind: u32,
    bytes: &'a [u8],
    clock: BootClock,
}

impl<'a> RawRecord<'a> {
    fn new(bytes: &'a [u8], clock: BootClock) -> Result<Self, DecodeError> {
        let kind = u32::read_from_prefix(bytes)
            .map_err(|_| DecodeError::Short {
                kind: 0,
                len: bytes.len(),
                wanted: size_of::<u32>(),
            })?
            .0;
        Ok(Self { kind, bytes, clock })
    }

    /// The structure at the start of the record, and the bytes that follow it.
    fn split<T: FromBytes>(self) -> Result<(T, &'a [u8]), DecodeError> {
        T::read_from_prefix(self.bytes).map_err(|_| DecodeError::Short {
            kind: self.kind,
            len: self.bytes.len(),
            wanted: size_of::<T>(),
        })
    }

    fn read<T: FromBytes>(self) -> Result<T, DecodeError> {
        Ok(self.split()?.0)
    }

    /// A payload record, and as many of the following bytes as it claims and has.
    fn payload(self) -> Result<(PayloadRecord, &'a [u8]), DecodeError> {
        let (record, rest) = self.split::<PayloadRecord>()?;
        Ok((record, &rest[..rest.len().min(record.len as usize)]))
    }

    /// When the probe took the record, in nanoseconds since boot.
    fn time(self) -> Result<u64, DecodeError> {
        Ok(match self.kind {
            kind::PAYLOAD | kind::HOST | kind::DNS_RESPONSE => self.read::<PayloadRecord>()?.time,
            kind::REFUSED => self.read::<RefusedRecord>()?.time,
            kind::WRITE_SENT | kind::WRITE_REJECTED => self.read::<WriteSocketRecord>()?.time,
            kind::PLAINTEXT | kind::ISSUED => self.read::<PlaintextRecord>()?.time,
            _ => self.read::<RecordHeader>()?.time,
        })
    }
}

/// Decodes one record; also returns its time in nanoseconds since boot.
pub fn decode(bytes: &[u8], clock: BootClock) -> Result<(u64, DecodedRecord), DecodeError> {
    let raw = RawRecord::new(bytes, clock)?;
    let time = raw.time()?;
    let observation = match raw.kind {
        kind::EXEC => Observation::Exec(raw.try_into()?),
        kind::FORK => Observation::Fork(raw.try_into()?),
        kind::EXIT => Observation::Exit(raw.try_into()?),
        kind::FILE => Observation::FileOpened(raw.try_into()?),
        kind::VARIABLE => Observation::Variable(raw.try_into()?, raw.try_into()?),
        kind::CONNECT => Observation::Connected(raw.try_into()?),
        kind::PAYLOAD => {
            let owner = raw.payload()?.0.owner.into();
            return Ok((time, DecodedRecord::Payload(owner, raw.try_into()?)));
        }
        kind::PRESENTED => Observation::Presented(raw.try_into()?),
        kind::PLAINTEXT => Observation::Plaintext(raw.try_into()?),
        kind::ISSUED => Observation::Minted(raw.try_into()?),
        kind::HOST => Observation::PlaintextHost(raw.try_into()?),
        kind::WRITE_REJECTED => {
            let WriteSocketRecord { write, owner, .. } = raw.read()?;
            let owner = owner.into();
            Observation::WriteRejected { owner, write }
        }
        kind::WRITE_SENT => {
            let record: WriteSocketRecord = raw.read()?;
            Observation::WriteSent {
                owner: record.owner.into(),
                write: record.write,
                cookie: record.cookie,
            }
        }
        kind::DNS_RESPONSE => {
            let (record, message) = raw.payload()?;
            match dns::parse_response(message, record.cookie) {
                Some(answer) => {
                    Observation::DnsResponse(record.owner.into(), clock.at(record.time), answer)
                }
                None => return Ok((time, DecodedRecord::Nothing)),
            }
        }
        kind::FOREIGN => Observation::ForeignRead(raw.try_into()?),
        kind::REFUSED => {
            let RefusedRecord { cookie, owner, .. } = raw.read()?;
            let owner = owner.into();
            Observation::Refused { owner, cookie }
        }
        other => return Err(DecodeError::Kind(other)),
    };
    Ok((time, DecodedRecord::Whole(observation)))
}

impl TryFrom<RawRecord<'_>> for TaskInfo {
    type Error = DecodeError;

    fn try_from(raw: RawRecord<'_>) -> Result<Self, DecodeError> {
        Ok(task(&raw.read()?, raw.clock))
    }
}

impl TryFrom<RawRecord<'_>> for ObservedExec {
    type Error = DecodeError;

    fn try_from(raw: RawRecord<'_>) -> Result<Self, DecodeError> {
        let (record, rest) = raw.split::<ProcessRecord>()?;
        Ok(Self {
            task: task(&record.header, raw.clock),
            exe: path(rest, record.path_len, record.flags & TRUNCATED != 0),
            file: FileId {
                device: record.exe_device,
                inode: record.exe_inode,
                generation: record.exe_generation,
            },
            unlinked: record.flags & UNLINKED != 0,
        })
    }
}

impl TryFrom<RawRecord<'_>> for ObservedOpen {
    type Error = DecodeError;

    fn try_from(raw: RawRecord<'_>) -> Result<Self, DecodeError> {
        let (record, rest) = raw.split::<FileRecord>()?;
        let has = |flag| record.flags & flag != 0;
        Ok(Self {
            task: task(&record.header, raw.clock),
            path: path(rest, record.path_len, has(TRUNCATED)),
            source: source(rest, &record),
            file: FileId {
                device: record.device,
                inode: record.inode,
                generation: record.generation,
            },
            magic: record.magic,
            known: has(BY_INODE),
            kind: if has(WRITE_ONLY) {
                OpenKind::Written
            } else if has(CONNECTED) {
                OpenKind::Connected
            } else if has(RECEIVED) {
                OpenKind::Received
            } else if has(INHERITED) {
                OpenKind::Inherited
            } else {
                OpenKind::Opened
            },
            count: record.count.max(1),
            output: StdoutPipe {
                pipe: (record.stdout != 0).then_some(record.stdout),
                of_parent: has(SHARED_WITH_PARENT),
            },
        })
    }
}

impl TryFrom<RawRecord<'_>> for ObservedVariable {
    type Error = DecodeError;

    fn try_from(raw: RawRecord<'_>) -> Result<Self, DecodeError> {
        let record: VariableRecord = raw.read()?;
        let name = &record.name[..(record.name_len as usize).min(record.name.len())];
        Ok(Self {
            name: String::from_utf8_lossy(name).into_owned(),
            fingerprint: record.fingerprint,
            secret_len: record.secret_len,
            prefix: record.prefix.checked_sub(1),
            dots: record.dots,
            url: record.url != 0,
        })
    }
}

impl TryFrom<RawRecord<'_>> for ObservedConnection {
    type Error = DecodeError;

    fn try_from(raw: RawRecord<'_>) -> Result<Self, DecodeError> {
        /// `AF_INET`.
        const IPV4: u16 = 2;
        /// `IPPROTO_TCP`.
        const TCP: u32 = 6;
        let record: ConnectRecord = raw.read()?;
        let address = if record.family == IPV4 {
            let [a, b, c, d, ..] = record.address;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            IpAddr::V6(Ipv6Addr::from(record.address)).to_canonical()
        };
        Ok(Self {
            task: task(&record.header, raw.clock),
            cookie: record.cookie,
            address,
            port: record.port,
            transport: if record.protocol == TCP {
                Transport::Tcp
            } else {
                Transport::Udp
            },
            stdin: (record.stdin != 0).then_some(record.stdin),
            network: record.network,
        })
    }
}

impl TryFrom<RawRecord<'_>> for HelloPiece {
    type Error = DecodeError;

    fn try_from(raw: RawRecord<'_>) -> Result<Self, DecodeError> {
        let (record, bytes) = raw.payload()?;
        Ok(Self {
            time: raw.clock.at(record.time),
            cookie: record.cookie,
            sequence: record.sequence,
            bytes: bytes.to_vec(),
        })
    }
}

impl TryFrom<RawRecord<'_>> for PlaintextHost {
    type Error = DecodeError;

    fn try_from(raw: RawRecord<'_>) -> Result<Self, DecodeError> {
        let (record, name) = raw.payload()?;
        Ok(Self {
            time: raw.clock.at(record.time),
            owner: record.owner.into(),
            cookie: record.cookie,
            name: host_name(name),
            asks_for_tunnel: record.payload_len == ASKS_FOR_TUNNEL,
        })
    }
}

impl TryFrom<RawRecord<'_>> for ObservedPresentation {
    type Error = DecodeError;

    fn try_from(raw: RawRecord<'_>) -> Result<Self, DecodeError> {
        let record: PresentedRecord = raw.read()?;
        Ok(presentation(&record, raw.clock))
    }
}

/// A credential that was presented inside TLS.
pub fn presentation(record: &PresentedRecord, clock: BootClock) -> ObservedPresentation {
    ObservedPresentation {
        task: task(&record.header, clock),
        write: record.write,
        server: (record.server != 0).then_some(record.server),
        host: (record.secret.host != 0).then_some(record.secret.host),
        secret: (&record.secret).into(),
    }
}

impl TryFrom<RawRecord<'_>> for PlaintextSecret {
    type Error = DecodeError;

    fn try_from(raw: RawRecord<'_>) -> Result<Self, DecodeError> {
        let record: PlaintextRecord = raw.read()?;
        Ok(plaintext(&record, raw.clock))
    }
}

/// A credential that was presented outside TLS.
pub fn plaintext(record: &PlaintextRecord, clock: BootClock) -> PlaintextSecret {
    PlaintextSecret {
        time: clock.at(record.time),
        owner: record.owner.into(),
        cookie: record.cookie,
        to_loopback: record.to_loopback != 0,
        host: (record.secret.host != 0).then_some(record.secret.host),
        secret: (&record.secret).into(),
    }
}

impl From<record::OwnerFields> for RecordOwner {
    fn from(owner: record::OwnerFields) -> Self {
        Self {
            cgroup: owner.cgroup,
            user: owner.user,
        }
    }
}

impl From<&record::PresentedSecret> for ObservedSecret {
    fn from(secret: &record::PresentedSecret) -> Self {
        Self {
            fingerprint: secret.fingerprint,
            inner: (secret.inner != 0).then_some(secret.inner),
            secret_len: secret.secret_len,
            header: secret.name,
            prefix: secret.prefix.checked_sub(1),
            dots: secret.dots,
            count: secret.count,
        }
    }
}

impl TryFrom<RawRecord<'_>> for ObservedForeignRead {
    type Error = DecodeError;

    fn try_from(raw: RawRecord<'_>) -> Result<Self, DecodeError> {
        let record: ForeignReadRecord = raw.read()?;
        Ok(Self {
            task: task(&record.header, raw.clock),
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
        })
    }
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

fn task(header: &RecordHeader, clock: BootClock) -> TaskInfo {
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
    fn path_components_are_reversed() {
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
