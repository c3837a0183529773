//! YAML files, such as kubeconfigs: the same fields as in JSON.

use super::{finder::SecretFinder, json};
use serde_json::Value;

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
    if let Ok(value) = serde_saphyr::from_str_with_options::<Value>(text, options) {
        json::find_fields(finder, &value, None);
    }
}
