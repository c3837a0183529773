//! YAML files, such as kubeconfigs: the same fields as in JSON.

use super::{finder::SecretFinder, json};
use serde_json::Value;

/// Maximum number of documents in a file.
const DOCUMENTS_MAX: usize = 64;

pub(super) fn find(finder: &mut SecretFinder<'_>, text: &str) {
    /// Far more than a credential file has, and cheap enough to parse.
    const YAML_NODES_MAX: usize = 50_000;
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 4 * YAML_NODES_MAX,
            max_recorded_anchor_events: YAML_NODES_MAX,
            max_nodes: YAML_NODES_MAX,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: YAML_NODES_MAX,
        },
    };
    // A document that cannot be parsed costs itself.
    for document in documents(text).take(DOCUMENTS_MAX) {
        if let Ok(value) = serde_saphyr::from_str_with_options::<Value>(document, options.clone()) {
            json::find_fields(finder, &value, None);
        }
    }
}

/// The documents of a file, which lines of `---` separate.
fn documents(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let mut begin = 0;
        let end = text.split_inclusive('\n').find_map(|line| {
            let at = begin;
            begin += line.len();
            (at > 0 && line.trim_end() == "---").then_some(at)
        });
        rest = end.map(|at| &text[at..]);
        Some(&text[..end.unwrap_or(text.len())])
    })
}
