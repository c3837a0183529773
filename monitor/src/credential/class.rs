//! The class of a secret, from what is known about it.

use monitor_core::catalog::{Catalog, entry::CredentialClass};
use monitor_parse::credential::{FoundSecret, SecretFacts};

/// The class of a credential about which nothing else is known.
pub const GENERIC_CLASS: &str = "generic-secret";

/// Short prefixes match by chance; a real token is at least this long.
const FORM_SECRET_MIN: u32 = 20;

/// The class of a secret by its first bytes. A JWT also has two dots.
pub fn by_form(
    catalog: &Catalog,
    prefix: Option<u32>,
    secret_len: u32,
    dots: u32,
) -> Option<&CredentialClass> {
    let (_, class) = catalog.prefix(prefix?)?;
    (secret_len >= FORM_SECRET_MIN && (class.class != "jwt" || dots >= 2)).then_some(class)
}

/// A secret of which only the fingerprint and the first bytes are known.
pub fn by_fingerprint(
    catalog: &Catalog,
    class: &str,
    fingerprint: u64,
    prefix: Option<u32>,
) -> FoundSecret {
    FoundSecret {
        class: class.to_owned(),
        marked: catalog.is_prefix_of(class, prefix),
        whole: false,
        fingerprint,
        aliases: Vec::new(),
        label: None,
        facts: SecretFacts::default(),
    }
}
