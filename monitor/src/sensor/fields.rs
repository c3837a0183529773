//! Resolves the table of kernel fields on this machine, from its BTF.

use super::btf::{Btf, BtfError};
use monitor_common::fields::{ABSENT, COUNT, FieldOffsets, TABLE, layout_error};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The kernel's BTF.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why the fields could not be resolved.
#[derive(Debug, Error)]
pub enum FieldsError {
    #[error("cannot read {path}: {source}; the kernel needs CONFIG_DEBUG_INFO_BTF=y")]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}: {source}")]
    Btf { path: PathBuf, source: BtfError },
    #[error("this kernel has no field {0}, which the probes need")]
    Missing(String),
    #[error("field {field} is {found} bytes wide in this kernel, and {expected} in the probes")]
    Width {
        field: String,
        found: u32,
        expected: u32,
    },
    #[error("{0}")]
    Layout(&'static str),
}

/// Resolves the table of fields from a BTF file.
pub fn resolve(path: &Path) -> Result<FieldOffsets, FieldsError> {
    resolve_with_types(path).map(|(offsets, _)| offsets)
}

/// As [`resolve`], but also returns the types.
pub fn resolve_with_types(path: &Path) -> Result<(FieldOffsets, Btf), FieldsError> {
    let data = std::fs::read(path).map_err(|source| FieldsError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let broken = |source| FieldsError::Btf {
        path: path.to_owned(),
        source,
    };
    let btf = Btf::parse(&path.display().to_string(), data).map_err(broken)?;
    let mut offsets = [ABSENT; COUNT];
    for (offset, field) in offsets.iter_mut().zip(TABLE) {
        for candidate in field.paths {
            if let Some(member) = btf.member(field.structure, candidate).map_err(broken)? {
                if field.width != 0 && member.size != field.width {
                    return Err(FieldsError::Width {
                        field: format!("{}.{candidate}", field.structure),
                        found: member.size,
                        expected: field.width,
                    });
                }
                *offset = member.offset;
                break;
            }
        }
        if *offset == ABSENT && field.needed {
            return Err(FieldsError::Missing(format!(
                "{}.{}",
                field.structure, field.paths[0]
            )));
        }
    }
    match layout_error(&offsets) {
        Some(error) => Err(FieldsError::Layout(error)),
        None => Ok((offsets, btf)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_names_the_option() {
        let error = resolve(Path::new("/nonexistent/vmlinux")).expect_err("no such file");
        assert!(
            error.to_string().contains("CONFIG_DEBUG_INFO_BTF"),
            "{error}"
        );
    }

    #[test]
    fn every_field_of_this_kernel() {
        // The tests need a kernel with BTF.
        resolve(Path::new(VMLINUX)).expect("this kernel has every needed field");
    }
}
