//! Runs the fuzz targets of the parsers.

use crate::{commands::run_checked, root, setup};
use anyhow::{Context as _, Result, bail};
use std::{fs, path::Path, process::Command};

/// Runs on the pinned, stable toolchain: without a sanitizer, which parsers in safe Rust do not
/// need.
const CARGO_FUZZ: &str = "0.13.2";

/// The targets, each with the maximum bytes of an input.
const TARGETS: [(&str, usize); 6] = [
    ("cgroup", 4 << 10),
    ("client_hello", 16 << 10),
    ("credential", 64 << 10),
    ("dns", 64 << 10),
    ("program", 1 << 20),
    ("resolvers", 64 << 10),
];
/// Maximum time for one input, in seconds.
const INPUT_SECONDS: u64 = 5;
/// Maximum resident memory of a target, in MiB: twice what one input may use, and the corpus.
const MEMORY_MIB: u64 = 512;

/// Runs each target for this many seconds; one with a name only runs that one. What is found is kept
/// in `target/fuzz/corpus`, so that the next run begins there.
pub fn run(name: Option<&str>, seconds: u64) -> Result<()> {
    if let Some(name) = name
        && !TARGETS.iter().any(|(target, _)| *target == name)
    {
        let known: Vec<&str> = TARGETS.iter().map(|(target, _)| *target).collect();
        bail!("no fuzz target `{name}`; there are {}", known.join(", "));
    }
    let program = setup::cargo_tool("cargo-fuzz", CARGO_FUZZ)?;
    let (source, work) = (
        root().join("monitor-parse/fuzz"),
        root().join("target/fuzz"),
    );
    for (target, input_max) in TARGETS {
        if name.is_some_and(|name| name != target) {
            continue;
        }
        let corpus = work.join("corpus").join(target);
        fs::create_dir_all(&corpus)?;
        let mut corpora = vec![corpus.clone()];
        let seeds = source.join("seeds").join(target);
        if seeds.is_dir() {
            corpora.push(seeds);
        }
        if target == "program" {
            add_programs(&corpus, input_max)?;
        }
        let artifacts = work.join("artifacts").join(target);
        fs::create_dir_all(&artifacts)?;
        eprintln!("fuzz: {target} for {seconds} s");
        // The outer cargo's environment would have everything built again.
        let mut command = Command::new(&program);
        command
            .current_dir(root())
            .args(["run", "--sanitizer", "none", "--fuzz-dir"])
            .arg(&source)
            .arg("--target-dir")
            .arg(&work)
            .arg(target)
            .args(corpora)
            .arg("--")
            .args([
                format!("-max_total_time={seconds}"),
                format!("-timeout={INPUT_SECONDS}"),
                format!("-max_len={input_max}"),
                format!("-rss_limit_mb={MEMORY_MIB}"),
                format!("-artifact_prefix={}/", artifacts.display()),
                "-verbosity=0".to_owned(),
                "-print_final_stats=1".to_owned(),
            ]);
        crate::commands::clear_cargo_environment(&mut command);
        run_checked(&mut command).with_context(|| {
            format!(
                "an input that fails is in {}; run `{target}` again with it to debug",
                artifacts.display()
            )
        })?;
    }
    Ok(())
}

/// A program and a TLS library of this machine: an ELF file cannot be guessed.
fn add_programs(corpus: &Path, bytes_max: usize) -> Result<()> {
    let library = format!("/usr/lib/{}-linux-gnu/libssl.so.3", std::env::consts::ARCH);
    for program in ["/usr/bin/true", &library] {
        if let Ok(bytes) = fs::read(program)
            && bytes.len() <= bytes_max
        {
            fs::write(
                corpus.join(program.trim_start_matches('/').replace('/', "-")),
                bytes,
            )?;
        }
    }
    Ok(())
}
