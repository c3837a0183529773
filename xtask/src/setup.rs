//! What the build of the probes needs and a Rust installation lacks: the sources of `core`, for a
//! target without a prebuilt one, and bpf-linker.

use crate::build::succeed;
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

/// Links against the LLVM of the pinned rustc.
const BPF_LINKER: &str = "0.13.0";

/// Where tools are kept, beside the caches of other programs and outside any clone.
pub fn tools() -> PathBuf {
    if let Some(path) = std::env::var_os("KEYTRAIL_TOOLS") {
        return path.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
        PathBuf::from,
    );
    cache.join("keytrail").join("tools")
}

/// Puts in place what is missing, and says so; what is there stays.
pub fn run() -> Result<()> {
    let rustc = Rustc::pinned()?;
    sources(&rustc)?;
    linker(&rustc)
}

/// The compiler of this workspace.
struct Rustc {
    sysroot: PathBuf,
    /// `1.95.0`
    release: String,
    /// `22`
    llvm: String,
}

impl Rustc {
    fn pinned() -> Result<Self> {
        let print = |argument: &str| -> Result<String> {
            let output = Command::new("rustc")
                .args(argument.split(' '))
                .current_dir(crate::root())
                .output()
                .context("no rustc: install Rust with rustup")?;
            Ok(String::from_utf8(output.stdout)?)
        };
        let version = print("-vV")?;
        let field = |name: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|value| value.trim().to_owned())
                .with_context(|| format!("`rustc -vV` has no {name}"))
        };
        let llvm = field("LLVM version:")?;
        Ok(Self {
            sysroot: PathBuf::from(print("--print sysroot")?.trim()),
            release: field("release:")?,
            llvm: llvm.split('.').next().unwrap_or_default().to_owned(),
        })
    }
}

fn sources(rustc: &Rustc) -> Result<()> {
    let library = rustc.sysroot.join("lib/rustlib/src/rust/library");
    if library.join("core/src/lib.rs").is_file() {
        return Ok(());
    }
    eprintln!("setup: the sources of `core` are missing; asking rustup for rust-src");
    let added = Command::new("rustup")
        .args(["component", "add", "rust-src"])
        .current_dir(crate::root())
        .status()
        .is_ok_and(|status| status.success());
    if added && library.join("core/src/lib.rs").is_file() {
        return Ok(());
    }
    eprintln!("setup: rustup has none to give; looking for the same version in Debian's backports");
    from_debian(rustc, &library).with_context(|| {
        format!(
            "no sources of `core` for Rust {}; `rustup component add rust-src` puts them in place where rustup reaches its server",
            rustc.release
        )
    })
}

/// Takes rust-src of the very same version from Debian's backports, with a configuration of
/// apt's own, so that nothing on the system changes. The signature is checked with the system's
/// keyring.
fn from_debian(rustc: &Rustc, library: &Path) -> Result<()> {
    const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
    if !Path::new(KEYRING).exists() {
        bail!("this is no Debian: there is no {KEYRING}");
    }
    let mirror = debian_mirror().context("no mirror in the sources of apt")?;
    let work = tempfile::tempdir()?;
    let at = |name: &str| work.path().join(name);
    fs::create_dir_all(at("lists/partial"))?;
    fs::create_dir_all(at("cache/archives/partial"))?;
    fs::write(
        at("sources.list"),
        format!("deb [signed-by={KEYRING}] {mirror} trixie-backports main\n"),
    )?;
    let options = [
        format!("-oDir::Etc::sourcelist={}", at("sources.list").display()),
        "-oDir::Etc::sourceparts=/dev/null".to_owned(),
        format!("-oDir::State::lists={}", at("lists").display()),
        format!("-oDir::Cache={}", at("cache").display()),
        "-oAPT::Sandbox::User=root".to_owned(),
    ];
    succeed(
        Command::new("apt-get")
            .args(&options)
            .args(["update", "-qq"]),
    )?;
    let listed = Command::new("apt-cache")
        .args(&options)
        .args(["madison", "rust-src"])
        .output()?;
    let listed = String::from_utf8(listed.stdout)?;
    let version = listed
        .lines()
        .filter_map(|line| line.split('|').nth(1))
        .map(str::trim)
        .find(|version| {
            version.starts_with(&format!("{}+", rustc.release))
                || version.starts_with(&format!("{}-", rustc.release))
        })
        .with_context(|| format!("Debian has no rust-src {}", rustc.release))?;
    succeed(
        Command::new("apt-get")
            .args(&options)
            .args(["download", "-qq", &format!("rust-src={version}")])
            .current_dir(work.path()),
    )?;
    let package = fs::read_dir(work.path())?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("the package was not downloaded")?;
    succeed(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(package)
            .arg(at("unpacked")),
    )?;
    let unpacked = at("unpacked").join(format!("usr/src/rustc-{}/library", rustc.release));
    if let Some(above) = library.parent() {
        fs::create_dir_all(above)?;
    }
    succeed(Command::new("cp").arg("-r").arg(&unpacked).arg(library))?;
    eprintln!("setup: rust-src {version} is at {}", library.display());
    Ok(())
}

/// The mirror that the system's own sources name.
fn debian_mirror() -> Option<String> {
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

fn linker(rustc: &Rustc) -> Result<()> {
    let tools = tools();
    let binary = tools.join("bin").join("bpf-linker");
    let there = Command::new(&binary)
        .arg("--version")
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(BPF_LINKER));
    // bpf-linker loads rustc's own LLVM, which rustc shows it; called alone it may not start.
    if there || (binary.is_file() && installed(&tools)) {
        return Ok(());
    }
    eprintln!("setup: building bpf-linker {BPF_LINKER}, a minute or two");
    let prefix = tempfile::tempdir()?;
    let lib = prefix.path().join("lib");
    fs::create_dir(&lib)?;
    let shipped = shipped_llvm(rustc)?;
    let short = shipped
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .and_then(|name| name.split("-rust-").next().map(str::to_owned))
        .unwrap_or_default();
    for name in ["libLLVM.so", &format!("libLLVM-{}.so", rustc.llvm), &short] {
        symlink(&shipped, lib.join(name))?;
    }
    succeed(
        Command::new("cargo")
            .args(["install", "--quiet", "--locked", "--root"])
            .arg(&tools)
            .args([
                "--no-default-features",
                "--features",
                &format!("llvm-{}", rustc.llvm),
            ])
            .arg(format!("bpf-linker@{BPF_LINKER}"))
            .current_dir(crate::root())
            .env("LLVM_PREFIX", prefix.path()),
    )
    .context("bpf-linker does not build; it needs a C compiler")
}

/// Whether cargo installed the wanted version here.
fn installed(tools: &Path) -> bool {
    fs::read_to_string(tools.join(".crates.toml"))
        .is_ok_and(|text| text.contains(&format!("bpf-linker {BPF_LINKER} ")))
}

/// The LLVM that rustc ships: no package of LLVM is needed.
fn shipped_llvm(rustc: &Rustc) -> Result<PathBuf> {
    fs::read_dir(rustc.sysroot.join("lib"))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name().is_some_and(|name| {
                let name = name.to_string_lossy();
                name.starts_with("libLLVM.so.") && name.contains("-rust-")
            })
        })
        .context("rustc ships no libLLVM.so")
}
