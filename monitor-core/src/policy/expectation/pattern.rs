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

/// A compiled glob. Most patterns are plain texts or begin with a wildcard: as such they need a
/// thousandth of a compiled glob's memory.
#[derive(Clone, Debug)]
pub(super) enum TextMatcher {
    Literal(Box<str>),
    /// `*` and this text.
    Suffix(Box<str>),
    /// `/**` and this text, which begins with `/`.
    Below(Box<str>),
    Glob(GlobMatcher),
}

impl TextMatcher {
    /// `paths` means that `*` stays in one directory.
    pub fn new(text: &str, paths: bool) -> Result<Self, globset::Error> {
        let is_literal = |text: &str| !text.contains(['*', '?', '[', ']', '{', '}', '\\']);
        if is_literal(text) {
            return Ok(Self::Literal(text.into()));
        }
        if let Some(rest) = text.strip_prefix('*').filter(|_| !paths)
            && is_literal(rest)
        {
            return Ok(Self::Suffix(rest.into()));
        }
        if let Some(rest) = text.strip_prefix("/**").filter(|_| paths)
            && rest.len() > 1
            && rest.starts_with('/')
            && is_literal(rest)
        {
            return Ok(Self::Below(rest.into()));
        }
        let glob = GlobBuilder::new(text).literal_separator(paths).build()?;
        Ok(Self::Glob(glob.compile_matcher()))
    }

    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Literal(literal) => **literal == *text,
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Below(rest) => text.starts_with('/') && text.ends_with(&**rest),
            Self::Glob(glob) => glob.is_match(text),
        }
    }

    pub fn is_glob(&self) -> bool {
        matches!(self, Self::Glob(_))
    }
}

/// A glob over names.
#[derive(Clone, Debug)]
pub struct NamePattern {
    pub text: String,
    matcher: TextMatcher,
}

/// A glob over paths: `*` stays in one directory, `**` does not.
#[derive(Clone, Debug)]
pub struct PathPattern(pub NamePattern);

impl NamePattern {
    fn new(text: &str, paths: bool) -> Result<Self, String> {
        let matcher = TextMatcher::new(text, paths)
            .map_err(|error| format!("`{text}` is not a valid glob: {}", error.kind()))?;
        Ok(Self {
            text: text.to_owned(),
            matcher,
        })
    }

    pub fn matches(&self, text: &str) -> bool {
        self.matcher.matches(text)
    }

    /// Whether it had to be compiled.
    pub(super) fn is_glob(&self) -> bool {
        self.matcher.is_glob()
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The short forms mean what the compiled glob means.
        #[test]
        fn every_form_matches_as_the_glob_does(
            pattern in "(\\*|/\\*\\*)?[ab./*]{0,6}",
            text in "[ab./]{0,8}",
            paths in any::<bool>(),
        ) {
            let Ok(glob) = GlobBuilder::new(&pattern).literal_separator(paths).build() else {
                return Ok(());
            };
            let matcher = TextMatcher::new(&pattern, paths).expect("the glob is valid");
            prop_assert_eq!(matcher.matches(&text), glob.compile_matcher().is_match(&text));
        }
    }
}
