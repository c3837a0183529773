//! Audiences: for whom a token says that it is meant.

use crate::model::{Credential, is_in_domain};

/// Application ids that Microsoft uses as audiences instead of names, and their hosts.
const WELL_KNOWN_IDS: [(&str, &str); 9] = [
    (
        "00000003-0000-0000-c000-000000000000",
        "graph.microsoft.com",
    ),
    ("00000002-0000-0000-c000-000000000000", "graph.windows.net"),
    (
        "797f4846-ba00-4fd7-ba43-dac1f8f63013",
        "management.azure.com",
    ),
    ("cfa8b339-82a2-471a-a3c9-0fc0be7a4093", "vault.azure.net"),
    ("499b84ac-1321-427f-aa17-267ca6975798", "dev.azure.com"),
    (
        "2ff814a6-3304-4ab8-85cb-cd0e6f879c1d",
        "azuredatabricks.net",
    ),
    ("e406a681-f3d4-42a8-90b6-c2b029497af1", "core.windows.net"),
    (
        "022907d3-0f1b-48f7-badc-1ba6abab6d66",
        "database.windows.net",
    ),
    ("00000009-0000-0000-c000-000000000000", "powerbi.com"),
];

/// Whether a host is an audience that the credential itself names: alone, as a URL, as a parent
/// domain of at least two labels, or by a well-known id.
///
/// An audience that is only a word, or an application's own id, names no host.
pub fn is_audience(credential: &Credential, host: &str) -> bool {
    credential
        .audience
        .iter()
        .any(|audience| is_host_of(audience, host))
}

fn is_host_of(audience: &str, host: &str) -> bool {
    let id = audience
        .strip_prefix("api://")
        .unwrap_or(audience)
        .trim_end_matches('/');
    if let Some((_, known)) = WELL_KNOWN_IDS
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(id))
    {
        return is_in_domain(known, host);
    }
    match url::Url::parse(audience) {
        Ok(url) => url.host_str().is_some_and(|name| is_in_domain(name, host)),
        Err(_) => is_in_domain(audience, host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn audiences_in_every_form() {
        for (audience, host, is) in [
            ("vault.corp.example", "vault.corp.example", true),
            (
                "https://vault.corp.example:8200/v1",
                "VAULT.corp.example",
                true,
            ),
            ("https://vault.azure.net", "payments.vault.azure.net", true),
            ("https://storage.azure.com/", "evil.example", false),
            (
                "cfa8b339-82a2-471a-a3c9-0fc0be7a4093",
                "payments.vault.azure.net",
                true,
            ),
            (
                "api://499b84ac-1321-427f-aa17-267ca6975798",
                "dev.azure.com",
                true,
            ),
            // It is an application of the tenant, at a host that nobody knows.
            (
                "api://11111111-2222-3333-4444-555555555555",
                "shop.example",
                false,
            ),
            ("corp.example", "xcorp.example", false),
            ("example", "corp.example", false),
            ("10.0.0.1", "x.10.0.0.1", false),
            ("", "", false),
        ] {
            assert_eq!(is_host_of(audience, host), is, "{audience} {host}");
        }
    }

    proptest! {
        #[test]
        fn any_audience_can_be_compared(audience in "\\PC{0,40}", host in "\\PC{0,40}") {
            let _ = is_host_of(&audience, &host);
        }
    }
}
