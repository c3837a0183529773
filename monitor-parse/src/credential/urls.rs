//! Files with one URL per line, each with a password: `.git-credentials`.

use super::finder::{SecretFinder, percent_decode};

pub(super) fn find(finder: &mut SecretFinder<'_>, text: &str) {
    for line in text.lines() {
        let Ok(url) = url::Url::parse(line.trim()) else {
            continue;
        };
        if let (Some(password), Some(host)) = (url.password(), url.host_str()) {
            let password = percent_decode(password);
            let alias = finder.basic_form(&percent_decode(url.username()), &password);
            finder.add_for_host(host, &password, Some(host.to_owned()), vec![alias]);
        }
    }
}
