//! `inspect.exclude`: programs to which no uprobe is attached.

use globset::{GlobBuilder, GlobMatcher};
use serde::{Deserialize, Deserializer};

/// A glob over paths of executables (if it begins with `/`), names of units, and images.
#[derive(Clone, Debug)]
pub struct ExcludePattern {
    text: String,
    glob: GlobMatcher,
}

impl<'de> Deserialize<'de> for ExcludePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

impl ExcludePattern {
    pub fn new(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty pattern excludes nothing; write the path of an executable, a unit, or an image".to_owned());
        }
        let glob = GlobBuilder::new(text)
            .literal_separator(text.starts_with('/'))
            .build()
            .map_err(|error| format!("`{text}` is not a valid glob: {}", error.kind()))?;
        Ok(Self {
            text: text.to_owned(),
            glob: glob.compile_matcher(),
        })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is matched with paths of executables, and with nothing else.
    pub fn is_path(&self) -> bool {
        self.text.starts_with('/')
    }

    pub fn matches(&self, name: &str) -> bool {
        self.glob.is_match(name)
    }
}

impl PartialEq for ExcludePattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for ExcludePattern {}
