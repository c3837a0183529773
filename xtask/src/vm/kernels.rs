//! Debian's own kernels, the newest of each series.

use crate::{debian::Apt, setup::tools};
use anyhow::{Context as _, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A series of the matrix, and the suites that contain its newest release.
struct KernelSeries {
    name: &'static str,
    suites: &'static [&'static str],
    /// Package name pattern for apt.
    pattern: &'static str,
}

const MATRIX: [KernelSeries; 4] = [
    KernelSeries {
        name: "5.10",
        suites: &["bullseye"],
        pattern: r"^linux-image-5\.10\..*-cloud-amd64$",
    },
    KernelSeries {
        name: "6.1",
        suites: &["bookworm", "bookworm-security"],
        pattern: r"^linux-image-6\.1\..*-cloud-amd64$",
    },
    KernelSeries {
        name: "6.12",
        suites: &["trixie"],
        pattern: r"^linux-image-6\.12\..*-cloud-amd64$",
    },
    KernelSeries {
        name: "7",
        suites: &["trixie-backports"],
        pattern: r"^linux-binary-7\..*-cloud-amd64$",
    },
];

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub struct KernelImage {
    pub series: &'static str,
    /// As in `uname -r`.
    pub release: String,
    pub image: PathBuf,
}

impl KernelImage {
    /// `6.1.0`
    pub fn short(&self) -> &str {
        self.release.split(['-', '+']).next().unwrap_or_default()
    }
}

/// The names of the series.
pub fn series() -> Vec<&'static str> {
    MATRIX.iter().map(|series| series.name).collect()
}

/// The kernels of the requested series, fetched if needed.
pub fn fetch(wanted: &[String]) -> Result<Vec<KernelImage>> {
    MATRIX
        .iter()
        .filter(|series| wanted.is_empty() || wanted.iter().any(|name| name == series.name))
        .map(|series| {
            let place = tools().join("kernels").join(series.name);
            if image(&place).is_none() {
                eprintln!("vm: fetching Debian's kernel {}", series.name);
                download(series, &place)
                    .with_context(|| format!("no kernel {} to test on", series.name))?;
            }
            let image = image(&place)
                .with_context(|| format!("{} has no kernel image; remove it", place.display()))?;
            Ok(KernelImage {
                series: series.name,
                release: fs::read_to_string(place.join("release"))?.trim().to_owned(),
                image,
            })
        })
        .collect()
}

fn image(place: &Path) -> Option<PathBuf> {
    Some(place.join("vmlinuz")).filter(|path| path.is_file())
}

fn download(series: &KernelSeries, place: &Path) -> Result<()> {
    let apt = Apt::new(series.suites)?;
    let name = apt
        .names(series.pattern)?
        .into_iter()
        .max_by_key(|name| numbers(name))
        .context("Debian has no such package")?;
    let work = tempfile::tempdir()?;
    apt.unpack(std::slice::from_ref(&name), work.path())?;
    let release = name
        .trim_start_matches("linux-image-")
        .trim_start_matches("linux-binary-")
        .to_owned();
    let found = [
        work.path().join(format!("boot/vmlinuz-{release}")),
        work.path()
            .join(format!("usr/lib/modules/{release}/vmlinuz")),
    ]
    .into_iter()
    .find(|path| path.is_file())
    .with_context(|| format!("{name} has no kernel image where it is looked for"))?;
    fs::create_dir_all(place)?;
    fs::write(place.join("release"), release)?;
    fs::copy(found, place.join("vmlinuz"))?;
    Ok(())
}

/// The numbers in a name, for sorting 5.10.0-9 before 5.10.0-32.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}
