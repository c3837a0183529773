//! Builds the probes for the BPF target and hands the object to the agent.
//!
//! A cargo inside cargo, as the target, the standard library and the linker are others. What it
//! needs (the sources of `core`, bpf-linker) is put in place by `cargo xtask setup`.

use std::{
    env,
    error::Error,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

fn main() -> Result<(), Box<dyn Error>> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let root = manifest
        .parent()
        .ok_or("the package stands outside its workspace")?;
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
    // A target folder of its own: the lock of the outer build is held while this runs. It is
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
        // bpfel-unknown-none is built with unstable flags by the pinned stable compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            [
                &format!("--cfg=bpf_target_arch=\"{arch}\""),
                "-Cdebuginfo=2",
                "-Clink-arg=--btf",
                // With it, LLVM leaves every fill of memory to a loop over its bytes, which costs
                // at each run, and the verifier more.
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
        return Err("the probes do not build; `cargo xtask setup` puts in place what they need (rust-src, bpf-linker)".into());
    }
    let object = build_dir
        .join(target)
        .join("release")
        .join("keytrail-probes");
    let out = Path::new(&env::var("OUT_DIR")?).join("keytrail-probes");
    std::fs::copy(object, out)?;
    Ok(())
}

/// `PATH` with the folder first where `cargo xtask setup` puts bpf-linker.
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
