//! Files with one URL per line, each with a password: `.git-credentials`.

use super::finder::{SecretFinder, percent_decode};

/// What stands for the password where a token is the user.
const TOKEN_IS_USER: &str = "x-oauth-basic";

pub(super) fn find(finder: &mut SecretFinder<'_>, text: &str) {
    for line in text.lines() {
        find_in_url(finder, line);
    }
}

/// The password or the token in a URL.
pub(super) fn find_in_url(finder: &mut SecretFinder<'_>, text: &str) {
    let Ok(url) = url::Url::parse(text.trim()) else {
        return;
    };
    let Some(host) = url.host_str() else {
        return;
    };
    let user = percent_decode(url.username());
    let password = url.password().map(percent_decode);
    let secret = match password.as_deref() {
        // `https://TOKEN@host`, and `https://TOKEN:x-oauth-basic@host`.
        None | Some(TOKEN_IS_USER) => &user,
        Some(_) if finder.is_token(&user) => &user,
        Some(password) => password,
    };
    let alias = finder.basic_form(&user, password.as_deref().unwrap_or_default());
    finder.add_for_host(host, secret, Some(host.to_owned()), vec![alias]);
}
