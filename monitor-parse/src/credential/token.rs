//! A file that contains one token, a PEM block or a JSON object.

use super::{finder::SecretFinder, json, pem};
use serde_json::Value;

pub(super) fn find(finder: &mut SecretFinder<'_>, text: &str) {
    if text.contains("-----BEGIN ") {
        pem::find(finder, text);
        return;
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => json::find_fields(finder, &Value::Object(object), None),
        _ => finder.add_secret(text, None, Vec::new()),
    }
}
