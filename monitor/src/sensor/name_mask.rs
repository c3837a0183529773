//! A name that contains a secret is itself secret: it is masked before anything else holds it. A
//! secret is recognised by its issuer's mark, or because its fingerprint is known; nothing is guessed
//! from how random a name looks.

use crate::sensor::observation::{Observation, ObservedSecret, PlaintextSecret};
use hashlink::LruCache;
use jiff::Timestamp;
use monitor_common::{
    fingerprint::{FingerprintKey, fingerprint},
    login::{LOGIN, protocol},
};
use monitor_core::catalog::Catalog;

/// Shorter labels are names, even if somebody uses one as a password.
const SECRET_MIN: usize = 16;
/// Characters after a mark that ends with a separator, such as `ghp_`.
const AFTER_MARK_MIN: usize = 16;
/// Letters and digits of an AWS key id, with its mark.
const AWS_KEY_ID: usize = 20;
/// Letters and digits in a row, with any other mark that is only letters.
const RUN_MIN: usize = 32;
/// Maximum number of known secrets; the least recently added are forgotten.
const KNOWN_MAX: usize = 16_384;

/// Shown instead of a label whose fingerprint is known.
const KNOWN: &str = "(secret)";

/// Masks names.
pub struct NameMask {
    key: FingerprintKey,
    /// Marks in lower case, with the classes that are shown instead.
    marks: Vec<(String, String)>,
    known: LruCache<u64, ()>,
}

impl NameMask {
    pub fn new(key: FingerprintKey, catalog: &Catalog) -> Self {
        let mut mask = Self {
            key,
            marks: Vec::new(),
            known: LruCache::new(KNOWN_MAX),
        };
        mask.set_catalog(catalog);
        mask
    }

    pub fn set_catalog(&mut self, catalog: &Catalog) {
        let marks = catalog.marks();
        self.marks = marks
            // Those of a format, such as a JWT's, are no issuer's.
            .filter(|(mark, _)| mark.len() >= 3 && !mark.starts_with("eyJ"))
            .map(|(mark, class)| (mark.to_ascii_lowercase(), class.to_owned()))
            .collect();
    }

    /// Adds fingerprints of secrets.
    pub fn learn(&mut self, fingerprints: impl IntoIterator<Item = u64>) {
        for fingerprint in fingerprints {
            self.known.insert(fingerprint, ());
        }
    }

    /// Masks the names of an observation, and puts them in lower case. Returns the presentations of
    /// the known secrets that they contained.
    pub fn apply(&self, observation: &mut Observation) -> Vec<Observation> {
        let mut found = Vec::new();
        let (time, cookie, protocol) = match observation {
            Observation::Payload(payload) => {
                let name = payload.hello.as_mut().map(|hello| &mut hello.server_name);
                self.mask_name(name.into_iter().flatten(), &mut found);
                (payload.time, payload.cookie, protocol::SERVER_NAME)
            }
            Observation::PlaintextHost(host) => {
                self.mask_name(&mut host.name, &mut found);
                (host.time, host.cookie, protocol::SERVER_NAME)
            }
            Observation::DnsResponse(time, answer) => {
                self.mask_name(&mut answer.names, &mut found);
                (*time, answer.cookie, protocol::DNS)
            }
            _ => return Vec::new(),
        };
        let presentation =
            |(fingerprint, len)| presentation(time, cookie, protocol, fingerprint, len);
        found.into_iter().map(presentation).collect()
    }

    fn mask_name<'a>(
        &self,
        names: impl IntoIterator<Item = &'a mut String>,
        found: &mut Vec<(u64, usize)>,
    ) {
        for name in names {
            *name = self.mask(name, found);
        }
    }

    /// The name in lower case, without secrets; adds the fingerprints and lengths of known ones.
    fn mask(&self, name: &str, found: &mut Vec<(u64, usize)>) -> String {
        let mut masked: Vec<String> = Vec::new();
        let mut rest = name;
        while !rest.is_empty() {
            let (label, after) = rest.split_once('.').unwrap_or((rest, ""));
            let lower = label.to_ascii_lowercase();
            let known = self.fingerprint_of_known(label);
            found.extend(known.map(|fingerprint| (fingerprint, label.len())));
            let text = if known.is_some() {
                KNOWN.to_owned()
            } else if let Some(class) = self.marked_class(&lower) {
                format!("({class})")
            } else if let Some(class) = self.class_of_dotted(&rest.to_ascii_lowercase()) {
                // The secret is this label and the next.
                masked.push(format!("({class})"));
                rest = after.split_once('.').map_or("", |(_, after)| after);
                continue;
            } else {
                lower
            };
            masked.push(text);
            rest = after;
        }
        masked.join(".")
    }

    fn fingerprint_of_known(&self, label: &str) -> Option<u64> {
        if label.len() < SECRET_MIN {
            return None;
        }
        let fingerprint = fingerprint(self.key, label.as_bytes());
        self.known.contains_key(&fingerprint).then_some(fingerprint)
    }

    /// The class of a mark at the start of a label, or of a part of it after a separator.
    fn marked_class(&self, label: &str) -> Option<&str> {
        let starts = label
            .char_indices()
            .filter(|(at, _)| *at == 0 || is_separator(label.as_bytes()[at - 1]))
            .map(|(at, _)| &label[at..]);
        starts.into_iter().find_map(|part| {
            self.marks
                .iter()
                .filter(|(mark, _)| !mark.contains('.'))
                .find(|(mark, class)| {
                    part.strip_prefix(mark.as_str())
                        .is_some_and(|rest| is_long_enough(mark, class, part, rest))
                })
                .map(|(_, class)| class.as_str())
        })
    }

    /// The class of a mark with a dot, such as `hvs.`, whose secret is the label after it.
    fn class_of_dotted(&self, name: &str) -> Option<&str> {
        self.marks
            .iter()
            .filter(|(mark, _)| mark.ends_with('.'))
            .find(|(mark, _)| {
                let secret = name.strip_prefix(mark.as_str());
                let label = secret.map(|secret| secret.split('.').next().unwrap_or_default());
                label.is_some_and(|label| label.len() >= AFTER_MARK_MIN)
            })
            .map(|(_, class)| class.as_str())
    }
}

fn is_separator(byte: u8) -> bool {
    !byte.is_ascii_alphanumeric()
}

/// Whether enough follows a mark. `part` is both together.
fn is_long_enough(mark: &str, class: &str, part: &str, rest: &str) -> bool {
    if mark.bytes().last().is_some_and(is_separator) {
        return rest.len() >= AFTER_MARK_MIN;
    }
    let run = part.bytes().take_while(u8::is_ascii_alphanumeric).count();
    if class.starts_with("aws-") {
        run == AWS_KEY_ID
    } else {
        run >= RUN_MIN
    }
}

fn presentation(
    time: Timestamp,
    cookie: u64,
    protocol: u64,
    fingerprint: u64,
    len: usize,
) -> Observation {
    Observation::Plaintext(PlaintextSecret {
        time,
        cookie,
        host: None,
        secret: ObservedSecret {
            fingerprint,
            inner: None,
            secret_len: len as u32,
            header: (LOGIN | protocol) as u32,
            prefix: None,
            dots: 0,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: FingerprintKey = FingerprintKey { k0: 1, k1: 2 };

    fn mask() -> NameMask {
        NameMask::new(KEY, &Catalog::new("", &[], &[]).expect("the catalog"))
    }

    fn masked(name: &str) -> String {
        mask().mask(name, &mut Vec::new())
    }

    #[test]
    fn a_token_in_a_name_is_masked_in_any_case() {
        let token = "ghp_FAKE0FAKE0FAKE0FAKE0FAKE0FAKE0FAKE0F";
        for name in [
            format!("{token}.evil.example"),
            format!("{}.evil.example", token.to_lowercase()),
            format!("x-{token}.evil.example"),
        ] {
            assert_eq!(masked(&name), "(github-token).evil.example", "{name}");
        }
        for (name, expected) in [
            (
                "AKIAFAKEFAKEFAKEFAKE.evil.example",
                "(aws-access-key).evil.example",
            ),
            (
                "a.akiafakefakefakefake.example",
                "a.(aws-access-key).example",
            ),
            (
                "hvs.FAKEFAKEFAKEFAKEFAKE.evil.example",
                "(vault-token).evil.example",
            ),
            (
                "glpat-FAKEFAKEFAKEFAKEFAKE.example",
                "(gitlab-token).example",
            ),
        ] {
            assert_eq!(masked(name), expected, "{name}");
        }
    }

    #[test]
    fn names_of_honest_hosts_stay() {
        for name in [
            "api.github.com",
            "akia-servers.example.com",
            "sk-ant-hill.example",
            "ciofficemanagement.example",
            "eyjafjallajokull-webcam-live.example",
            "sg.example.com",
            "ip-10-0-0-1.eu-central-1.compute.internal",
            "a1b2c3d4e5f60718293a4b5c6d7e8f90.gr7.us-east-1.eks.amazonaws.com",
        ] {
            assert_eq!(masked(name), name);
        }
        assert_eq!(masked("API.Example"), "api.example");
    }

    #[test]
    fn a_known_secret_is_masked_and_presented() {
        let mut mask = mask();
        let secret = "FAKE-secret-0123456789";
        mask.learn([
            fingerprint(KEY, secret.as_bytes()),
            fingerprint(KEY, b"short"),
        ]);
        let mut found = Vec::new();
        let name = mask.mask(&format!("{secret}.short.example"), &mut found);
        assert_eq!(name, "(secret).short.example");
        assert_eq!(found, [(fingerprint(KEY, secret.as_bytes()), secret.len())]);
    }

    proptest! {
        #[test]
        fn any_name_is_masked(name in "[-._a-zA-Z0-9]{0,253}") {
            masked(&name);
        }
    }
}
