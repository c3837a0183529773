//! The public claims of a JSON Web Token.

use super::SecretFacts;
use jiff::Timestamp;
use monitor_core::model::IssuedTo;
use serde_json::Value;

/// The public claims of a JWT. Its signature is not verified: the claims are used only to describe
/// the token.
pub(super) fn facts(secret: &[u8]) -> Option<SecretFacts> {
    if !secret.starts_with(b"eyJ") {
        return None;
    }
    let token = std::str::from_utf8(secret).ok()?;
    let claims = jsonwebtoken::dangerous::insecure_decode_claims::<Value>(token).ok()?;
    let time = |name: &str| {
        let seconds = claims.get(name)?.as_f64()?;
        Timestamp::from_second(seconds as i64).ok()
    };
    let audience = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        _ => Vec::new(),
    };
    Some(SecretFacts {
        issued_at: time("iat").or_else(|| time("nbf")),
        expires_at: time("exp"),
        subject: claims.get("sub").and_then(Value::as_str).map(printable),
        audience: audience.iter().map(|text| printable(text)).collect(),
        issued_to: issued_to(&claims).map(Box::new),
    })
}

/// The pod that a service-account token is bound to.
fn issued_to(claims: &Value) -> Option<IssuedTo> {
    let claims = claims.get("kubernetes.io")?;
    let text = |path: &str| claims.pointer(path).and_then(Value::as_str).map(printable);
    Some(IssuedTo {
        namespace: text("/namespace")?,
        pod: text("/pod/name")?,
        pod_uid: text("/pod/uid")?,
        service_account: text("/serviceaccount/name")?,
        workload: None,
        kind: None,
    })
}

/// Claims are shown in terminals and logs.
fn printable(text: &str) -> String {
    text.chars()
        .filter(|character| !character.is_control())
        .take(256)
        .collect()
}
