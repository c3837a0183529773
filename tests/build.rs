//! Generates the messages of CRI.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("proto");
    println!("cargo:rerun-if-changed={}", directory.display());
    let descriptors = protox::compile(["cri.proto"], [directory])?;
    Ok(prost_build::Config::new().compile_fds(descriptors)?)
}
