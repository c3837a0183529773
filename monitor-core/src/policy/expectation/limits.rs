//! How large expectations may be. What is larger would take the memory of the node, or does not fit
//! into the maps of the probes, so it is refused as a whole.

use super::{Expectations, pattern::OneOrMany};
use thiserror::Error;

/// Maximum number of credentials in all files and policies together.
pub const CREDENTIALS_MAX: usize = 5_000;
/// Maximum number of authenticators.
pub const AUTHENTICATORS_MAX: usize = 1_000;
/// Maximum number of addresses of authenticators, as the probes know them.
pub const AUTHENTICATOR_ADDRESSES_MAX: usize = 1_024;
/// Maximum number of files and variables that are named: the probes know each by up to two rules.
pub const PLACES_MAX: usize = 6_000;
/// Maximum number of readers, destinations and other patterns.
pub const PATTERNS_MAX: usize = 50_000;
/// Maximum number of patterns with wildcards that have to be compiled, which takes much memory.
pub const GLOBS_MAX: usize = 1_000;

/// Expectations are too large.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "the expectations have {found} {what}, and at most {limit} are supported: combine them with patterns, or remove those that are not needed"
)]
pub struct PolicyLimitError {
    pub what: &'static str,
    pub found: usize,
    pub limit: usize,
}

/// What is limited, of expectations that are in force together.
#[derive(Clone, Copy, Debug, Default)]
pub struct PolicySize {
    credentials: usize,
    authenticators: usize,
    addresses: usize,
    places: usize,
    patterns: usize,
    globs: usize,
}

impl PolicySize {
    /// The size with more expectations, if all of them fit.
    pub fn plus(mut self, more: &Expectations) -> Result<Self, PolicyLimitError> {
        self.add(more);
        for (what, found, limit) in [
            ("credentials", self.credentials, CREDENTIALS_MAX),
            ("authenticators", self.authenticators, AUTHENTICATORS_MAX),
            (
                "addresses of authenticators",
                self.addresses,
                AUTHENTICATOR_ADDRESSES_MAX,
            ),
            ("files and variables", self.places, PLACES_MAX),
            ("patterns", self.patterns, PATTERNS_MAX),
            (
                "patterns with wildcards other than at the front",
                self.globs,
                GLOBS_MAX,
            ),
        ] {
            if found > limit {
                return Err(PolicyLimitError { what, found, limit });
            }
        }
        Ok(self)
    }

    fn add(&mut self, expectations: &Expectations) {
        self.credentials += expectations.credentials.len();
        self.authenticators += expectations.authenticators.len();
        for expectation in &expectations.credentials {
            let matches = &expectation.matches;
            let files = matches.file.iter().flat_map(OneOrMany::iter);
            for file in files {
                self.places += 1;
                self.add_pattern(file.0.is_glob());
            }
            for variable in matches.environment.iter().flat_map(OneOrMany::iter) {
                self.places += 1;
                self.add_pattern(variable.is_glob());
            }
            let names = matches.class.iter().chain(&matches.id);
            for name in names.flat_map(OneOrMany::iter) {
                self.add_pattern(name.is_glob());
            }
            for reader in &expectation.readers {
                for is_glob in reader.patterns_are_globs() {
                    self.add_pattern(is_glob);
                }
            }
            for destination in &expectation.destinations {
                self.add_pattern(destination.is_glob());
            }
        }
        for authenticator in &expectations.authenticators {
            self.addresses += authenticator.addresses().count();
            for destination in &authenticator.destinations {
                self.add_pattern(destination.is_glob());
            }
            for reader in &authenticator.readers {
                for is_glob in reader.patterns_are_globs() {
                    self.add_pattern(is_glob);
                }
            }
        }
        for gateway in &expectations.gateways {
            for destination in &gateway.destinations {
                self.add_pattern(destination.is_glob());
            }
            for class in &gateway.classes {
                self.add_pattern(class.is_glob());
            }
        }
        for inspector in &expectations.inspectors {
            for is_glob in inspector.patterns_are_globs() {
                self.add_pattern(is_glob);
            }
        }
    }

    fn add_pattern(&mut self, is_glob: bool) {
        self.patterns += 1;
        self.globs += usize::from(is_glob);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(yaml: &str) -> Result<(), PolicyLimitError> {
        let expectations = serde_saphyr::from_str(yaml).expect("valid");
        PolicySize::default().plus(&expectations).map(drop)
    }

    fn refused(yaml: &str) -> (&'static str, usize) {
        let error = check(yaml).expect_err("too large");
        (error.what, error.found)
    }

    #[test]
    fn each_limit_is_inclusive() {
        let credentials = |count: usize| {
            let entry = "  - { name: a, match: { class: github-token } }\n";
            format!("credentials:\n{}", entry.repeat(count))
        };
        assert_eq!(check(&credentials(CREDENTIALS_MAX)), Ok(()));
        let too_many = CREDENTIALS_MAX + 1;
        assert_eq!(refused(&credentials(too_many)), ("credentials", too_many));

        let addresses = |count: usize| {
            let all: Vec<String> = (0..count)
                .map(|number| format!("10.0.{}.{}:443", number / 256, number % 256))
                .collect();
            let all = all.join("\", \"");
            format!("authenticators: [ {{ name: a, destinations: [ \"{all}\" ] }} ]")
        };
        assert_eq!(check(&addresses(AUTHENTICATOR_ADDRESSES_MAX)), Ok(()));
        let too_many = AUTHENTICATOR_ADDRESSES_MAX + 1;
        assert_eq!(
            refused(&addresses(too_many)),
            ("addresses of authenticators", too_many)
        );
    }

    #[test]
    fn patterns_with_wildcards_are_counted_wherever_they_are() {
        let half = GLOBS_MAX / 2;
        let readers = "{ namespace: a*, workload: b }, ".repeat(half);
        let files = "/srv/*/key, ".repeat(GLOBS_MAX - half);
        let yaml = |more: &str| {
            format!(
                "credentials: [ {{ name: a, match: {{ file: [ {files} ], class: x{more} }}, readers: [ {readers} ] }} ]"
            )
        };
        assert_eq!(check(&yaml("")), Ok(()));
        let found = GLOBS_MAX + 1;
        assert_eq!(
            refused(&yaml("*")),
            ("patterns with wildcards other than at the front", found)
        );
    }
}
