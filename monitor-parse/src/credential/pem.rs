//! PEM files.

use super::{FoundSecret, SecretFacts, finder::SecretFinder};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use monitor_common::fingerprint::trimmed;
use monitor_core::catalog::entry::FileFormat;

/// Private keys, by their base64 body without line breaks; an adjacent certificate provides the
/// dates.
pub(super) fn find(finder: &mut SecretFinder<'_>, text: &str) {
    let blocks = pem_blocks(text);
    let dates = blocks
        .iter()
        .filter(|(tag, _)| tag == "CERTIFICATE")
        .find_map(|(_, body)| certificate_dates(body))
        .unwrap_or_default();
    let mut any = false;
    for (tag, body) in &blocks {
        any = true;
        if !tag.contains("PRIVATE KEY") {
            continue;
        }
        let fingerprint = finder.fingerprint(body.as_bytes());
        finder.found.push(FoundSecret {
            class: if finder.is_general() {
                "private-key".to_owned()
            } else {
                finder.class.class.clone()
            },
            marked: true,
            whole: false,
            fingerprint,
            aliases: Vec::new(),
            label: None,
            facts: SecretFacts {
                issued_at: dates.0,
                expires_at: dates.1,
                ..SecretFacts::default()
            },
        });
    }
    if !any && finder.class.format == FileFormat::Pem {
        finder.whole_file(trimmed(text.as_bytes()));
    }
}

/// `(tag, base64 body without line breaks)` of every block.
pub(super) fn pem_blocks(text: &str) -> Vec<(String, String)> {
    // Keys in kubeconfigs and JSON may contain a literal `\n`.
    let text = text.replace("\\n", "\n");
    match pem::parse_many(text.as_bytes()) {
        Ok(blocks) => blocks
            .into_iter()
            .map(|block| {
                let body = STANDARD.encode(block.contents());
                (block.tag().to_owned(), body)
            })
            .collect(),
        Err(_) => Vec::new(),
    }
}

fn certificate_dates(body: &str) -> Option<(Option<Timestamp>, Option<Timestamp>)> {
    let der = STANDARD.decode(body).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    let validity = certificate.validity();
    Some((
        Timestamp::from_second(validity.not_before.timestamp()).ok(),
        Timestamp::from_second(validity.not_after.timestamp()).ok(),
    ))
}
