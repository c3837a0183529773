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
    // What an archive of public keys or a presentation contains is no private key.
    let is_text = |char: char| !char.is_control() && char != char::REPLACEMENT_CHARACTER;
    let is_line = text.trim().chars().all(is_text) && !text.contains("PUBLIC");
    if !any && finder.class.format == FileFormat::Pem && is_line {
        finder.whole_file(trimmed(text.as_bytes()));
    }
}

/// `(tag, base64 body without line breaks)` of every block.
pub(super) fn pem_blocks(text: &str) -> Vec<(String, String)> {
    // Keys in kubeconfigs and JSON may contain a literal `\n`.
    let text = text.replace("\\n", "\n");
    // One that cannot be parsed costs itself.
    blocks_of(&text)
        .filter_map(|block| pem::parse(block).ok())
        .map(|block| {
            let body = STANDARD.encode(block.contents());
            (block.tag().to_owned(), body)
        })
        .collect()
}

/// The texts from each `-----BEGIN ` to the line of the next `-----END `.
fn blocks_of(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let block = &rest[rest.find("-----BEGIN ")?..];
        let end = block.find("-----END ")?;
        let line = block[end..].find('\n').map_or(block.len(), |at| end + at);
        rest = &block[line..];
        // A block that was cut off is followed by another one.
        let begin = block[..end].rfind("-----BEGIN ").unwrap_or(0);
        Some(&block[begin..line])
    })
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
