//! A name that contains a secret is itself secret: it is masked before anything else holds it. A
//! secret is recognised by its issuer's mark, or because its fingerprint is known; nothing is guessed
//! from how random a name looks.

use crate::sensor::observation::{Observation, ObservedSecret, PlaintextSecret};
use hashlink::LruCache;
use monitor_common::{
    fingerprint::{FingerprintKey, fingerprint},
    login::{LOGIN, protocol},
};
use monitor_core::{
    catalog::{Catalog, secret_marks::SecretMarks},
    fair_cache::{FairCache, Tenant},
};

/// Shorter labels are names, even if somebody uses one as a password.
const SECRET_MIN: usize = 16;
/// Maximum number of known secrets; of whoever has the most, the least recently used is forgotten.
const KNOWN_MAX: usize = 16_384;

/// Shown instead of a label whose fingerprint is known.
const KNOWN: &str = "(secret)";

/// Masks names.
pub struct NameMask {
    key: FingerprintKey,
    marks: SecretMarks,
    known: FairCache<u64, ()>,
    /// Fingerprints of labels that were names before they were known as secrets.
    names: LruCache<u64, ()>,
}

impl NameMask {
    pub fn new(key: FingerprintKey, catalog: &Catalog) -> Self {
        Self {
            key,
            marks: SecretMarks::new(catalog),
            known: FairCache::new(KNOWN_MAX),
            names: LruCache::new(KNOWN_MAX),
        }
    }

    pub fn set_catalog(&mut self, catalog: &Catalog) {
        self.marks = SecretMarks::new(catalog);
    }

    /// Adds fingerprints of secrets, and who picked them up.
    pub fn learn(&mut self, secrets: impl IntoIterator<Item = (Tenant, u64)>) {
        for (tenant, fingerprint) in secrets {
            self.known.insert(&tenant, fingerprint, ());
        }
    }

    /// Known secrets that were forgotten for lack of room.
    pub fn forgotten(&self) -> u64 {
        self.known.evicted()
    }

    /// Masks the names of an observation, and puts them in lower case. Returns the presentations of
    /// the known secrets that they contained.
    pub fn apply(&mut self, observation: &mut Observation) -> Vec<Observation> {
        let mut found = Vec::new();
        let Some(owner) = observation.owner() else {
            return Vec::new();
        };
        let (time, cookie, protocol) = match observation {
            Observation::Payload(_, payload) => {
                let name = payload.hello.as_mut().map(|hello| &mut hello.server_name);
                self.mask_name(name.into_iter().flatten(), &mut found);
                (payload.time, payload.cookie, protocol::SERVER_NAME)
            }
            Observation::PlaintextHost(host) => {
                self.mask_name(&mut host.name, &mut found);
                (host.time, host.cookie, protocol::SERVER_NAME)
            }
            Observation::DnsResponse(_, time, answer) => {
                self.mask_name(&mut answer.names, &mut found);
                (*time, answer.cookie, protocol::DNS)
            }
            _ => return Vec::new(),
        };
        let presentation = |(fingerprint, len)| {
            Observation::Plaintext(PlaintextSecret {
                time,
                owner,
                cookie,
                to_loopback: false,
                host: None,
                secret: secret_in_name(protocol, fingerprint, len),
            })
        };
        found.into_iter().map(presentation).collect()
    }

    fn mask_name<'a>(
        &mut self,
        names: impl IntoIterator<Item = &'a mut String>,
        found: &mut Vec<(u64, usize)>,
    ) {
        for name in names {
            *name = self.mask(name, found);
        }
    }

    /// The name in lower case, without secrets; adds the fingerprints and lengths of known ones. The
    /// last two labels of three stay: a secret is in what its receiver has put in front of a domain.
    fn mask(&mut self, name: &str, found: &mut Vec<(u64, usize)>) -> String {
        let labels: Vec<&str> = name.split('.').collect();
        let end = if labels.len() > 2 {
            labels.len() - 2
        } else {
            labels.len()
        };
        let mut masked: Vec<String> = Vec::new();
        let mut at = 0;
        while at < labels.len() {
            let label = labels[at];
            let lower = label.to_ascii_lowercase();
            let rest = labels[at..end.max(at)].join(".").to_ascii_lowercase();
            at += 1;
            if at > end {
                masked.push(lower);
            } else if let Some(fingerprint) = self.known_secret(label) {
                found.push((fingerprint, label.len()));
                masked.push(KNOWN.to_owned());
            } else if let Some(class) = self.marks.class_of_label(&lower) {
                masked.push(format!("({class})"));
            } else if let Some((class, count)) = self.marks.dotted_secret(&rest) {
                masked.push(format!("({class})"));
                at += count - 1;
            } else {
                masked.push(lower);
            }
        }
        masked.join(".")
    }

    /// The fingerprint of a label that is known as a secret, and was not known as a name before that:
    /// anybody can give a variable the name of somebody's host as its value.
    fn known_secret(&mut self, label: &str) -> Option<u64> {
        let may_be_secret = label.len() >= SECRET_MIN
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric())
            && label.bytes().any(|byte| byte.is_ascii_digit());
        if !may_be_secret {
            return None;
        }
        let fingerprint = fingerprint(self.key, label.as_bytes());
        if !self.names.contains_key(&fingerprint) && self.known.contains_key(&fingerprint) {
            return Some(fingerprint);
        }
        self.names.insert(fingerprint, ());
        None
    }
}

fn secret_in_name(protocol: u64, fingerprint: u64, len: usize) -> ObservedSecret {
    ObservedSecret {
        fingerprint,
        inner: None,
        secret_len: len as u32,
        header: (LOGIN | protocol) as u32,
        prefix: None,
        dots: 0,
        count: 1,
    }
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
        // Without a domain of somebody's, it is masked wherever it is.
        assert_eq!(masked(token), "(github-token)");
    }

    /// Every issuer's mark, before what its secrets consist of.
    #[test]
    fn every_mark_of_the_catalog_is_masked() {
        let catalog = Catalog::new("", &[], &[]).expect("the catalog");
        for (mark, class) in catalog.marks() {
            let is_name = mark
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
            if mark.len() < 3 || mark.starts_with("eyJ") || mark.starts_with('-') || !is_name {
                continue;
            }
            let rest = match class {
                class if class.starts_with("aws-") => "FAKE".repeat(4),
                _ if mark == "AIza" => format!("FAKE_-{}", "FAKE5".repeat(6))[..35].to_owned(),
                _ => "FAKE5".repeat(8),
            };
            let name = masked(&format!("{mark}{rest}.evil.example"));
            assert!(
                name.starts_with('(') && name.ends_with(").evil.example"),
                "{mark}: {name}"
            );
        }
        let parts = ("Fake5_".repeat(4), "FAKE5".repeat(9));
        let two = masked(&format!("SG.{}.{}.evil.example", parts.0, parts.1));
        assert!(
            two.starts_with('(') && two.ends_with(").evil.example"),
            "{two}"
        );
        assert!(!two.contains("fake5"), "{two}");
    }

    #[test]
    fn names_of_honest_hosts_stay() {
        for name in [
            "api.github.com",
            "akia-servers.example.com",
            "sk-ant-hill.example.com",
            "ciofficemanagement.example.com",
            "eyjafjallajokull-webcam-live.example.com",
            "sg.example.com",
            "ip-10-0-0-1.eu-central-1.compute.internal",
            "a1b2c3d4e5f60718293a4b5c6d7e8f90.gr7.us-east-1.eks.amazonaws.com",
            "x.glpat-0123456789abcdef0123.example",
        ] {
            assert_eq!(masked(name), name);
        }
        assert_eq!(masked("API.Example"), "api.example");
    }

    #[test]
    fn a_known_secret_is_masked_and_presented_unless_it_was_a_name_before() {
        let mut mask = mask();
        let (secret, name) = ("FAKEsecret0123456789", "internal1database2");
        let known = |text: &str| fingerprint(KEY, text.as_bytes());
        let before = format!("{name}.prod.example");
        assert_eq!(mask.mask(&before, &mut Vec::new()), before);
        let secrets = [secret, name, "githubusercontent"];
        mask.learn(secrets.map(|secret| (Tenant::default(), known(secret))));
        let mut found = Vec::new();
        for (name, expected) in [
            (format!("{secret}.evil.example"), "(secret).evil.example"),
            (before.clone(), &before),
            (
                "raw.githubusercontent.com".to_owned(),
                "raw.githubusercontent.com",
            ),
            (
                "githubusercontent.cdn.example".to_owned(),
                "githubusercontent.cdn.example",
            ),
        ] {
            assert_eq!(mask.mask(&name, &mut found), expected);
        }
        assert_eq!(found, [(known(secret), secret.len())]);
    }

    proptest! {
        #[test]
        fn any_name_is_masked(name in "[-._a-zA-Z0-9]{0,253}") {
            masked(&name);
        }
    }
}
