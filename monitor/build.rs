//! Builds the probes for the BPF target and the responder's page, and embeds both in the agent;
//! generates the messages of CRI.
//!
//! The probes are built by a cargo inside cargo, because their target, standard library and linker
//! differ. `cargo xtask setup` installs what that needs (the sources of `core`, bpf-linker).

use std::{
    env,
    error::Error,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
};

fn main() -> Result<(), Box<dyn Error>> {
    probes()?;
    page()?;
    cri()
}

/// Generates the messages of the Container Runtime Interface, without `protoc`.
fn cri() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("proto");
    println!("cargo:rerun-if-changed={}", directory.display());
    let descriptors = protox::compile(["cri.proto"], [directory])?;
    Ok(prost_build::Config::new().compile_fds(descriptors)?)
}

/// Files of the page, below this package.
const PAGE: [&str; 9] = [
    ".npmrc",
    "build.mjs",
    "index.html",
    "package-lock.json",
    "package.json",
    "style.css",
    "tsconfig.json",
    "src",
    "absent.html",
];

/// Bundles the page with npm, from exactly the packages in its lock file. Without npm, the agent
/// embeds a page that says so, and is otherwise complete.
fn page() -> Result<(), Box<dyn Error>> {
    let source = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("web");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let (work, page) = (out.join("page-work"), out.join("page"));
    for name in PAGE {
        println!("cargo:rerun-if-changed={}", source.join(name).display());
    }
    if Command::new("npm").arg("--version").output().is_err() {
        println!("cargo:warning=npm not found: building the agent without the responder's page");
        std::fs::create_dir_all(&page)?;
        std::fs::copy(source.join("absent.html"), page.join("index.html"))?;
        std::fs::write(page.join("app.js"), "")?;
        std::fs::copy(source.join("style.css"), page.join("style.css"))?;
        return Ok(());
    }
    // In a copy, so that a build leaves nothing in the source tree.
    std::fs::create_dir_all(work.join("src"))?;
    for name in PAGE {
        let from = source.join(name);
        if from.is_dir() {
            std::fs::remove_dir_all(work.join(name))?;
            std::fs::create_dir(work.join(name))?;
            for entry in std::fs::read_dir(from)? {
                let entry = entry?;
                std::fs::copy(entry.path(), work.join(name).join(entry.file_name()))?;
            }
        } else {
            std::fs::copy(from, work.join(name))?;
        }
    }
    let run = |program: &str, arguments: &[&OsStr]| -> Result<(), Box<dyn Error>> {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(&work)
            .output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Err(format!(
            "building the page failed: {program} {}: {}{}",
            arguments.join(OsStr::new(" ")).display(),
            said(&output.stdout),
            said(&output.stderr)
        )
        .into())
    };
    let options = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"];
    run("npm", &options.map(OsStr::new))?;
    // A type error fails the build, as it does in Rust.
    let compiler = Path::new("node_modules/typescript/bin/tsc").as_os_str();
    run("node", &[compiler, OsStr::new("--noEmit")])?;
    run("node", &[OsStr::new("build.mjs"), page.as_os_str()])
}

fn probes() -> Result<(), Box<dyn Error>> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let root = manifest
        .parent()
        .ok_or("the package is outside its workspace")?;
    for watched in [
        "monitor-ebpf",
        "monitor-common",
        "Cargo.lock",
        "rust-toolchain.toml",
    ] {
        println!("cargo:rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo:rerun-if-env-changed=KEYTRAIL_TOOLS");
    let target = match env::var("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    // A separate target directory, because the outer build's lock is held while this runs. It is
    // shared between profiles, so that `core` is built once.
    let build_dir = root.join("target").join("bpf");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    cargo
        .current_dir(root)
        .args(["build", "--release", "--package", "monitor-ebpf"])
        .args(["--target", target, "-Zbuild-std=core"])
        .args(["--config", "profile.release.panic=\"abort\""])
        .arg("--target-dir")
        .arg(&build_dir)
        .env("PATH", path_with_tools()?)
        // bpfel-unknown-none needs unstable flags, here with the pinned stable compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            [
                &format!("--cfg=bpf_target_arch=\"{arch}\""),
                "-Cdebuginfo=2",
                "-Clink-arg=--btf",
                // With this optimisation LLVM turns every memory fill into a byte loop, which is
                // slow at run time and for the verifier.
                "-Clink-arg=--disable-expand-memcpy-in-order",
            ]
            .join("\u{1f}"),
        );
    for outer in [
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET",
    ] {
        cargo.env_remove(outer);
    }
    let status = cargo.status()?;
    if !status.success() {
        return Err("building the probes failed; `cargo xtask setup` installs what they need (rust-src, bpf-linker)".into());
    }
    let object = build_dir
        .join(target)
        .join("release")
        .join("keytrail-probes");
    let out = Path::new(&env::var("OUT_DIR")?).join("keytrail-probes");
    std::fs::write(out, without_debug_sections(&std::fs::read(object)?)?)?;
    Ok(())
}

/// The probes without what is for debuggers, which is most of them. The kernel and the agent read types
/// and lines from sections of their own (`.BTF`, `.BTF.ext`).
fn without_debug_sections(object: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut builder = object::build::elf::Builder::read(object)?;
    for section in &mut builder.sections {
        let name = section.name.to_string();
        section.delete = name.starts_with(".debug_") || name.starts_with(".rel.debug_");
    }
    builder.delete_orphans();
    // The linker put the names of sections among those of symbols.
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.data = object::build::elf::SectionData::SectionString;
    let mut written = Vec::new();
    builder.write(&mut written)?;
    Ok(written)
}

/// `PATH`, preceded by the directory in which `cargo xtask setup` installs bpf-linker.
fn path_with_tools() -> Result<OsString, Box<dyn Error>> {
    let tools = env::var_os("KEYTRAIL_TOOLS").map_or_else(
        || {
            let cache = env::var_os("XDG_CACHE_HOME").map_or_else(
                || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache"),
                PathBuf::from,
            );
            cache.join("keytrail").join("tools")
        },
        PathBuf::from,
    );
    let mut paths = vec![tools.join("bin")];
    paths.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    Ok(env::join_paths(paths)?)
}
