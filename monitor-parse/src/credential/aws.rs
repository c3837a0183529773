//! AWS credential files: one key pair per profile.

use super::{finder::SecretFinder, ini};
use monitor_common::fingerprint::trimmed;

/// The fields of an AWS profile.
#[derive(Debug, Default)]
struct AwsProfile<'a> {
    name: Option<&'a str>,
    id: Option<&'a str>,
    secret: Option<&'a str>,
    token: Option<&'a str>,
}

pub(super) fn find(finder: &mut SecretFinder<'_>, text: &str) {
    let mut profile = AwsProfile::default();
    let mut heading = 0;
    for entry in ini::parse(text) {
        if entry.heading != heading {
            find_in_profile(finder, &std::mem::take(&mut profile));
            heading = entry.heading;
        }
        profile.name = entry.section;
        let is = |name: &str| entry.name.eq_ignore_ascii_case(name);
        if is("aws_access_key_id") {
            profile.id = Some(entry.value);
        } else if is("aws_secret_access_key") {
            profile.secret = Some(entry.value);
        } else if is("aws_session_token") {
            profile.token = Some(entry.value);
        }
    }
    find_in_profile(finder, &profile);
}

/// The key pair of one profile.
fn find_in_profile(finder: &mut SecretFinder<'_>, profile: &AwsProfile<'_>) {
    let label = profile.name.map(|name| format!("profile {name}"));
    let halves = [profile.secret, profile.token].into_iter().flatten();
    let aliases = halves
        .map(|secret| finder.fingerprint(trimmed(secret.as_bytes())))
        .collect();
    match (profile.id, profile.secret) {
        (Some(id), _) => finder.add_secret(id, label, aliases),
        (None, Some(secret)) => finder.add_secret(secret, label, Vec::new()),
        (None, None) => {}
    }
}
