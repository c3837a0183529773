//! The parsed files of the workspace, without tests.

use anyhow::{Context as _, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};
use syn::{Attribute, Item};

/// The crates that are checked.
const CRATES: [&str; 7] = [
    "monitor-common",
    "monitor-core",
    "monitor-ebpf",
    "monitor-parse",
    "monitor",
    "tests",
    "xtask",
];

/// One source file.
pub struct SourceFile {
    pub krate: &'static str,
    /// Path below the workspace.
    pub path: PathBuf,
    /// Names of the modules that lead to it; empty for the root of a crate.
    pub module: Vec<String>,
    pub lines: usize,
    /// Its items, without those that only tests have.
    pub items: Vec<Item>,
}

/// Every source file of the workspace.
pub struct Workspace {
    pub files: Vec<SourceFile>,
}

impl Workspace {
    pub fn read(root: &Path) -> Result<Self> {
        let mut files = Vec::new();
        for krate in CRATES {
            let source = root.join(krate).join("src");
            if source.is_dir() {
                read_directory(krate, root, &source, &mut files)?;
            }
        }
        files.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(Self { files })
    }

    /// The files of each crate.
    pub fn crates(&self) -> impl Iterator<Item = (&'static str, Vec<&SourceFile>)> {
        CRATES.into_iter().map(|krate| {
            let files = self.files.iter().filter(|file| file.krate == krate);
            (krate, files.collect())
        })
    }
}

fn read_directory(
    krate: &'static str,
    root: &Path,
    directory: &Path,
    files: &mut Vec<SourceFile>,
) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            read_directory(krate, root, &path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)?;
            let parsed = syn::parse_file(&text)
                .with_context(|| format!("cannot parse {}", path.display()))?;
            let source = root.join(krate).join("src");
            let module = module_of(path.strip_prefix(&source)?);
            if module.last().is_some_and(|name| name == "tests") {
                continue;
            }
            files.push(SourceFile {
                krate,
                path: path.strip_prefix(root)?.to_owned(),
                module,
                lines: text.lines().count(),
                items: parsed
                    .items
                    .into_iter()
                    .filter(|item| !is_test(attributes(item)))
                    .collect(),
            });
        }
    }
    Ok(())
}

/// The module of a file: `a/b.rs` and `a/b/mod.rs` are `a::b`. A program is a root of its own.
fn module_of(path: &Path) -> Vec<String> {
    let mut module: Vec<String> = path
        .with_extension("")
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    if module
        .last()
        .is_some_and(|name| ["mod", "lib", "main"].contains(&name.as_str()))
    {
        module.pop();
    }
    module
}

/// Whether an item exists only in tests.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .meta
                .require_list()
                .is_ok_and(|list| list.tokens.to_string() == "test")
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
