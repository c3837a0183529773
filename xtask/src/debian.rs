//! Fetches and unpacks Debian packages without changing the system: apt with its own configuration,
//! lists and cache. Signatures are checked with the system's keyring.

use crate::commands::run_checked;
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt that is limited to some suites.
#[derive(Debug)]
pub struct Apt {
    work: TempDir,
    options: Vec<String>,
}

impl Apt {
    /// Fetches the lists of these suites; a suite that ends in `-security` has its own mirror.
    pub fn new(suites: &[&str]) -> Result<Self> {
        Self::new_for("deb", suites)
    }

    /// As [`new`](Self::new_for), for source packages.
    pub fn with_sources(suites: &[&str]) -> Result<Self> {
        Self::new_for("deb-src", suites)
    }

    fn new_for(kind: &str, suites: &[&str]) -> Result<Self> {
        if !Path::new(KEYRING).exists() {
            bail!("this system is not Debian: {KEYRING} does not exist");
        }
        let mirror = mirror().context("apt's sources contain no mirror")?;
        let work = tempfile::tempdir()?;
        let at = |name: &str| work.path().join(name);
        fs::create_dir_all(at("lists/partial"))?;
        fs::create_dir_all(at("cache/archives/partial"))?;
        let sources: String = suites
            .iter()
            .map(|suite| {
                let more = if suite.ends_with("-security") {
                    "-security"
                } else {
                    ""
                };
                format!("{kind} [signed-by={KEYRING}] {mirror}{more} {suite} main\n")
            })
            .collect();
        fs::write(at("sources.list"), sources)?;
        let options = vec![
            format!("-oDir::Etc::sourcelist={}", at("sources.list").display()),
            "-oDir::Etc::sourceparts=/dev/null".to_owned(),
            format!("-oDir::State::lists={}", at("lists").display()),
            format!("-oDir::Cache={}", at("cache").display()),
            "-oAPT::Sandbox::User=root".to_owned(),
        ];
        let apt = Self { work, options };
        run_checked(apt.tool("apt-get").args(["update", "-qq"]))?;
        Ok(apt)
    }

    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.args(&self.options).current_dir(self.work.path());
        command
    }

    /// The versions of a package, the newest first.
    pub fn versions(&self, package: &str) -> Result<Vec<String>> {
        let listed = self
            .tool("apt-cache")
            .args(["madison", package])
            .output()
            .context("cannot run apt-cache")?;
        Ok(String::from_utf8(listed.stdout)?
            .lines()
            .filter_map(|line| line.split('|').nth(1))
            .map(|version| version.trim().to_owned())
            .collect())
    }

    /// The names of the packages that match a regular expression.
    pub fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let listed = self
            .tool("apt-cache")
            .args(["search", "--names-only", pattern])
            .output()
            .context("cannot run apt-cache")?;
        Ok(String::from_utf8(listed.stdout)?
            .lines()
            .filter_map(|line| line.split(' ').next())
            .map(str::to_owned)
            .collect())
    }

    /// Downloads packages, given as `name` or `name=version`, and unpacks them into a directory.
    pub fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        run_checked(
            self.tool("apt-get")
                .args(["download", "-qq"])
                .args(packages),
        )?;
        unpack_all(self.work.path(), into)
    }

    /// Downloads a package's source and unpacks it to a directory that does not exist yet; returns
    /// the upstream version.
    pub fn unpack_source(&self, package: &str, into: &Path) -> Result<String> {
        run_checked(
            self.tool("apt-get")
                .args(["source", "--download-only", "-qq", package]),
        )?;
        let description = fs::read_dir(self.work.path())?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "dsc"))
            .with_context(|| format!("apt downloaded no sources of {package}"))?;
        if let Some(above) = into.parent() {
            fs::create_dir_all(above)?;
        }
        run_checked(
            Command::new("dpkg-source")
                .args(["--no-check", "-q", "-x"])
                .arg(&description)
                .arg(into),
        )?;
        let name = description.to_string_lossy();
        let version = name
            .rsplit('_')
            .next()
            .and_then(|version| version.rsplit_once('-'))
            .map(|(version, _)| version)
            .with_context(|| format!("{name} has no version"))?;
        // `1.20.5+really1.20.2` is 1.20.2.
        let version = version.rsplit("+really").next().unwrap_or(version);
        Ok(version.to_owned())
    }

    /// Downloads packages, given as `name` or `name/suite`, with all dependencies that this system
    /// lacks, and unpacks them into a directory.
    pub fn unpack_with_needed(&self, packages: &[&str], into: &Path) -> Result<()> {
        run_checked(
            self.tool("apt-get")
                .args(["install", "--download-only", "-y", "-qq"])
                .arg("--no-install-recommends")
                .args(packages),
        )?;
        unpack_all(&self.work.path().join("cache/archives"), into)
    }
}

fn unpack_all(from: &Path, into: &Path) -> Result<()> {
    fs::create_dir_all(into)?;
    let packages: Vec<PathBuf> = fs::read_dir(from)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    if packages.is_empty() {
        bail!("apt downloaded no package to {}", from.display());
    }
    for package in packages {
        run_checked(Command::new("dpkg-deb").arg("-x").arg(&package).arg(into))?;
        fs::remove_file(&package)?;
    }
    Ok(())
}

/// The codename of this system's release, such as `bookworm`.
pub fn codename() -> Result<String> {
    fs::read_to_string("/etc/os-release")
        .context("cannot read /etc/os-release")?
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .context("/etc/os-release has no VERSION_CODENAME")
}

/// The mirror in the system's own sources.
fn mirror() -> Option<String> {
    let deb822 = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .find_map(|text| {
            let debian = text.contains("debian-archive-keyring");
            text.lines()
                .find_map(|line| line.strip_prefix("URIs:"))
                .filter(|_| debian)
                .map(|mirror| mirror.trim().to_owned())
        });
    deb822.or_else(|| {
        fs::read_to_string("/etc/apt/sources.list")
            .ok()?
            .lines()
            .filter(|line| line.starts_with("deb "))
            .find_map(|line| line.split(' ').find(|word| word.starts_with("http")))
            .map(str::to_owned)
    })
}
