//! Credential files of every format: the first byte selects the place, which tells the format.
#![no_main]

use libfuzzer_sys::fuzz_target;
use monitor_common::fingerprint::FingerprintKey;
use monitor_core::catalog::Catalog;
use monitor_parse::{credential::find_secrets, peak};
use std::sync::LazyLock;

/// Bytes for a file of one megabyte, as in the crate's own test.
const PEAK: usize = 48 << 20;
const KEY: FingerprintKey = FingerprintKey { k0: 1, k1: 2 };
const PLACES: [&str; 14] = [
    "/root/.aws/credentials",
    "/root/.aws/cli/cache/x.json",
    "/root/.config/gcloud/application_default_credentials.json",
    "/root/.docker/config.json",
    "/root/.git-credentials",
    "/root/.kube/config",
    "/root/.m2/settings.xml",
    "/root/.netrc",
    "/root/.npmrc",
    "/root/.pgpass",
    "/run/secrets/x",
    "/srv/.env",
    "/srv/x.key",
    "/srv/x.p12",
];

static CATALOG: LazyLock<Catalog> =
    LazyLock::new(|| Catalog::new("", &[], &[]).expect("the embedded catalog"));

fuzz_target!(|input: (u8, &[u8])| {
    let (place, bytes) = input;
    let class = CATALOG.file(PLACES[usize::from(place) % PLACES.len()]);
    let class = class.expect("a credential's place");
    let peak = peak::of(|| drop(find_secrets(&CATALOG, class, KEY, bytes)));
    assert!(peak < PEAK, "{peak} bytes");
});
