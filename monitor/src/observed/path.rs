//! Paths in messages: they need not be text.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// A path, which need not be text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "OsString", into = "OsString")]
pub struct RawPath(PathBuf);

impl RawPath {
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    pub fn into_path(self) -> PathBuf {
        self.0
    }
}

impl From<&Path> for RawPath {
    fn from(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl From<PathBuf> for RawPath {
    fn from(path: PathBuf) -> Self {
        Self(path)
    }
}

impl From<OsString> for RawPath {
    fn from(path: OsString) -> Self {
        Self(path.into())
    }
}

impl From<RawPath> for OsString {
    fn from(path: RawPath) -> Self {
        path.0.into_os_string()
    }
}

/// For `#[serde(with = "…")]` at a field of type [`PathBuf`].
pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_os_str().serialize(serializer)
}

/// As [`serialize`].
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    OsString::deserialize(deserializer).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt as _;

    #[test]
    fn a_path_that_is_not_text_is_preserved() {
        let path = RawPath::from(OsString::from_vec(b"/srv/\xff\x01 x".to_vec()));
        let text = serde_json::to_string(&path).expect("encoded");
        assert_eq!(
            serde_json::from_str::<RawPath>(&text).expect("decoded"),
            path
        );
    }
}
