//! Names with wildcards, in a hundredth of the memory of compiled globs: every process of the agent
//! has a catalog.

/// A name in which each `*` stands for any text; without regard to case.
#[derive(Clone, Debug)]
pub struct Wildcard {
    /// What is between the wildcards, in lower case.
    parts: Box<[Box<str>]>,
}

impl Wildcard {
    pub fn new(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        Self {
            parts: text.split('*').map(Into::into).collect(),
        }
    }

    /// Whether a name in lower case fits.
    fn matches_lower(&self, name: &str) -> bool {
        let [first, middle @ .., last] = &*self.parts else {
            return self.parts.first().is_some_and(|only| **only == *name);
        };
        let Some(mut rest) = name.strip_prefix(&**first) else {
            return false;
        };
        for part in middle {
            let Some(at) = rest.find(&**part) else {
                return false;
            };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(&**last)
    }

    pub fn matches(&self, name: &str) -> bool {
        self.matches_lower(&name.to_ascii_lowercase())
    }
}

/// Several of them.
#[derive(Clone, Debug, Default)]
pub struct WildcardSet(Box<[Wildcard]>);

impl WildcardSet {
    pub fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        Self(names.map(Wildcard::new).collect())
    }

    pub fn matches(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        self.0.iter().any(|known| known.matches_lower(&name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use globset::GlobBuilder;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_matches_as_the_glob_does(pattern in "[a-cA*.]{0,8}", name in "[a-cB.]{0,10}") {
            let glob = GlobBuilder::new(&pattern).case_insensitive(true).build().expect("a glob");
            prop_assert_eq!(
                Wildcard::new(&pattern).matches(&name),
                glob.compile_matcher().is_match(&name),
                "{} {}", pattern, name
            );
        }
    }
}
