//! Maps of the probes, by name and type.

use super::SensorError;
use aya::{
    Ebpf,
    maps::{MapData, MapError, RingBuf},
};
use std::io;
use tokio::io::{Interest, unix::AsyncFd};
use zerocopy::{FromBytes, IntoBytes};

/// A key or value of [`monitor_common::map`], as bytes that the kernel copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Plain<T>(pub T);

// SAFETY: the conversions are derived, which proves that a T has no padding and may have any bytes.
unsafe impl<T: FromBytes + IntoBytes + Copy + 'static> aya::Pod for Plain<T> {}

/// Takes a map out of the loaded probes. It must be kept as long as they may be attached.
pub fn open_map<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, SensorError>
where
    T: TryFrom<aya::maps::Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(SensorError::NoMap(name))?;
    T::try_from(map).map_err(failed(name))
}

/// Takes a ring buffer, and registers its descriptor for waiting.
pub fn open_ring(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<AsyncFd<RingBuf<MapData>>, SensorError> {
    let ring = open_map(ebpf, name)?;
    // SAFETY: the descriptor belongs to the map, and stays open as long as the ring that is moved
    // in.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
        .map_err(|error| SensorError::Wait(io::Error::from(error)))
}

/// Names the map in an error.
pub fn failed(name: &'static str) -> impl Fn(MapError) -> SensorError {
    move |source| SensorError::Map { name, source }
}

/// Whether an entry was refused because the map is full.
pub fn is_full(inserted: &Result<(), MapError>) -> bool {
    let Err(MapError::SyscallError(error)) = inserted else {
        return false;
    };
    matches!(
        error.io_error.raw_os_error(),
        Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM)
    )
}

#[cfg(test)]
mod tests {
    use super::super::PROBES;
    use aya_obj::{Object, generated::bpf_map_type::BPF_MAP_TYPE_PROG_ARRAY};
    use monitor_common::{
        filter::BLOOM_WORDS,
        http2::{HALVES, STATES},
        map::*,
        record::{COUNTED_RUNS, COUNTERS, OwnerFields, PlaintextRecord, PresentedRecord},
    };

    /// A release's agent and probes agree on every map.
    #[test]
    fn every_map_has_the_layout_of_its_types() {
        let object = Object::parse(PROBES).expect("an object");
        let expected: [(&str, usize, usize); 36] = [
            ("AGENTS", 4, size_of::<AgentProcesses>()),
            ("AUTHENTICATORS", size_of::<PeerAddress>(), size_of::<u32>()),
            ("BLOOM", 4, size_of::<[u64; BLOOM_WORDS]>()),
            ("CALLS", size_of::<u64>(), size_of::<ReadCall>()),
            ("CARRIED", size_of::<StreamKey>(), size_of::<CarriedLine>()),
            ("CONNECTING", size_of::<u64>(), size_of::<OwnerFields>()),
            ("COUNTS", 4, size_of::<u64>()),
            ("ENVIRON_SCRATCH", 4, size_of::<EnvironScratch>()),
            ("EPOCH", 4, size_of::<u64>()),
            ("HUFFMAN", 4, size_of::<[u32; STATES * HALVES]>()),
            ("INODES", size_of::<InodeKey>(), size_of::<u32>()),
            (
                "LAST_REQUESTS",
                size_of::<StreamKey>(),
                size_of::<LastRequest>(),
            ),
            ("LOSSES", size_of::<LossKey>(), size_of::<u64>()),
            ("MAPS_FULL", 4, size_of::<u64>()),
            ("MAPS_GROWTH", 4, size_of::<u64>()),
            ("OPENED", 4, size_of::<ReaderOpens>()),
            ("PENDING_CONNECTS", size_of::<u64>(), size_of::<u64>()),
            ("PENDING_READS", size_of::<u64>(), size_of::<PendingRead>()),
            ("PENDING_WRITES", size_of::<u64>(), size_of::<TlsWrite>()),
            (
                "PLAINTEXT_PRESENTATIONS",
                size_of::<PresentationKey>(),
                size_of::<PlaintextRecord>(),
            ),
            ("PROCESS_HITS", size_of::<u32>(), size_of::<u64>()),
            ("READS", size_of::<ReadKey>(), size_of::<ReadCount>()),
            ("RESPONSES_PENDING", 4, size_of::<u64>()),
            ("RULES", size_of::<u64>(), size_of::<u32>()),
            ("RUNS", 4, size_of::<u64>()),
            ("SEARCH_QUOTA", 4, size_of::<SearchQuota>()),
            ("SEARCH_SCRATCH", 4, size_of::<SearchScratch>()),
            ("SEEN", 4, size_of::<u64>()),
            ("SERVER_NAMES", size_of::<StreamKey>(), size_of::<u64>()),
            ("SHARES", size_of::<OwnerKey>(), size_of::<RingShare>()),
            ("SOCKETS", size_of::<i32>(), size_of::<ExpectedResponse>()),
            ("STREAMS", size_of::<StreamKey>(), size_of::<StreamState>()),
            (
                "TLS_PRESENTATIONS",
                size_of::<PresentationKey>(),
                size_of::<PresentedRecord>(),
            ),
            ("UDP_SENDS", size_of::<UdpPeer>(), size_of::<u64>()),
            ("UNSEARCHED", 4, size_of::<u64>()),
            ("WRITES_PENDING", 4, size_of::<u64>()),
        ];
        for (name, key, value) in expected {
            let map = object
                .maps
                .get(name)
                .unwrap_or_else(|| panic!("no map {name}"));
            let found = (map.key_size() as usize, map.value_size() as usize);
            assert_eq!(found, (key, value), "{name}");
        }
        assert_eq!(object.maps["COUNTS"].max_entries() as usize, COUNTERS);
        let runs = object.maps["RUNS"].max_entries() as usize;
        assert_eq!(runs, COUNTED_RUNS);
        let full = object.maps["MAPS_FULL"].max_entries() as usize;
        assert_eq!(full, LIMITED_MAPS);
        // These hold no type: rings, programs, zeros, and the constants of the probes.
        let untyped = ["CREDENTIAL_RING", "NAME_RING", "PROCESS_RING", "ZEROS"];
        for (name, map) in &object.maps {
            let is_program_array = map.map_type() == BPF_MAP_TYPE_PROG_ARRAY as u32;
            let is_listed = expected.iter().any(|(known, ..)| known == name)
                || untyped.contains(&name.as_str())
                || name.starts_with('.')
                || is_program_array;
            assert!(is_listed, "the map {name} is not in this test");
        }
    }
}
