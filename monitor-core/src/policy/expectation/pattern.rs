//! Patterns over names and paths.

use crate::catalog::glob::{in_any_home, normalise};
use globset::{GlobBuilder, GlobMatcher};
use serde::{Deserialize, Deserializer};
use std::fmt::Debug;

/// A pattern or a list of them.
#[derive(Clone, Debug)]
pub enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrManyVisitor<T>(std::marker::PhantomData<T>);
        // Written by hand, because an untagged enum hides the error of a single pattern.
        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for OneOrManyVisitor<T> {
            type Value = OneOrMany<T>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a pattern or a list of patterns")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                T::deserialize(serde::de::value::StrDeserializer::new(text)).map(OneOrMany::One)
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                items: A,
            ) -> Result<Self::Value, A::Error> {
                Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(items))
                    .map(OneOrMany::Many)
            }
        }
        deserializer.deserialize_any(OneOrManyVisitor(std::marker::PhantomData))
    }
}

impl<T> OneOrMany<T> {
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        match self {
            Self::One(one) => std::slice::from_ref(one).iter(),
            Self::Many(many) => many.iter(),
        }
    }
}

/// A glob over names.
#[derive(Clone, Debug)]
pub struct NamePattern {
    pub text: String,
    glob: GlobMatcher,
}

/// A glob over paths: `*` stays in one directory, `**` does not.
#[derive(Clone, Debug)]
pub struct PathPattern(pub NamePattern);

impl NamePattern {
    fn new(text: &str, paths: bool) -> Result<Self, String> {
        let glob = GlobBuilder::new(text)
            .literal_separator(paths)
            .build()
            .map_err(|error| format!("`{text}` is not a valid glob: {}", error.kind()))?;
        Ok(Self {
            text: text.to_owned(),
            glob: glob.compile_matcher(),
        })
    }

    pub fn matches(&self, text: &str) -> bool {
        self.glob.is_match(text)
    }
}

impl PathPattern {
    pub fn text(&self) -> &str {
        &self.0.text
    }

    pub fn matches(&self, path: &str) -> bool {
        self.0.matches(path)
    }
}

impl<'de> Deserialize<'de> for NamePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text, false).map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for PathPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // The catalog uses only `/run`, and matches homes by what is below them.
        let normal = in_any_home(&normalise(&text));
        NamePattern::new(&normal, true)
            .map(Self)
            .map_err(serde::de::Error::custom)
    }
}
