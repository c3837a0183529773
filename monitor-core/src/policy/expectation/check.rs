//! Finds expectations that are valid but probably not intended.

use super::{
    Expectations,
    pattern::{NamePattern, OneOrMany},
};
use crate::catalog::Catalog;
use crate::spelling::nearest;
use std::collections::HashSet;

/// Valid but probably unintended content.
pub fn warnings(expectations: &Expectations, catalog: &Catalog) -> Vec<String> {
    let mut warnings = Vec::new();
    let unknown_class = |class: &NamePattern| {
        let known: Vec<&str> = catalog.class_names().collect();
        if known.iter().any(|known| class.matches(known)) {
            return None;
        }
        let like = nearest(&class.text, known.into_iter())
            .map_or_else(String::new, |like| format!("; did you mean `{like}`?"));
        Some(format!(
            "matches the class `{}`, which the catalog does not have{like}",
            class.text
        ))
    };
    for gateway in &expectations.gateways {
        let unknown = gateway.classes.iter().filter_map(unknown_class);
        warnings.extend(unknown.map(|text| format!("the gateway `{}` {text}", gateway.name)));
        if gateway.destinations.is_empty() {
            warnings.push(format!(
                "the gateway `{}` has no destinations, so it has no effect",
                gateway.name
            ));
        }
    }
    for inspector in &expectations.inspectors {
        if inspector.text().is_empty() {
            warnings.push("an inspector is empty: it matches every workload".to_owned());
        }
    }
    let mut names = HashSet::new();
    for expectation in &expectations.credentials {
        let name = &expectation.name;
        if !names.insert(name) {
            warnings.push(format!(
                "several credentials are named `{name}`: if two match, the first one applies"
            ));
        }
        let of = &expectation.matches;
        if of.file.is_none() && of.environment.is_none() && of.class.is_none() && of.id.is_none() {
            warnings.push(format!(
                "`{name}` matches nothing: write `file`, `environment`, `class` or `id` in its `match`"
            ));
        }
        if name.trim().is_empty() {
            warnings.push(
                "a credential has an empty name, which findings and answers would show".to_owned(),
            );
        }
        if expectation
            .readers
            .iter()
            .any(|reader| reader.text().is_empty())
        {
            warnings.push(format!(
                "`{name}` has an empty reader: it matches every workload"
            ));
        }
        for unit in expectation
            .readers
            .iter()
            .filter_map(|reader| reader.unit.as_ref())
        {
            if !unit.text.contains(['.', '*', '?', '[', '{']) {
                warnings.push(format!(
                    "`{name}` has the reader unit `{unit}` without a suffix: write `{unit}.service`",
                    unit = unit.text
                ));
            }
        }
        for file in of.file.iter().flat_map(OneOrMany::iter) {
            if !file.text().starts_with(['/', '*', '?', '[', '{']) {
                warnings.push(format!(
                    "`{name}` matches the file `{}`, but paths begin with `/`: it never matches; write `/**/{}` to match it anywhere",
                    file.text(),
                    file.text().trim_start_matches("./")
                ));
            }
        }
        for id in of.id.iter().flat_map(OneOrMany::iter) {
            if !may_be_an_id(&id.text) {
                warnings.push(format!(
                    "`{name}` matches the id `{}`, but an id is `kt-` or `loc-` and 16 hex digits: `keytrail inventory` lists them",
                    id.text
                ));
            }
        }
        for class in of.class.iter().flat_map(OneOrMany::iter) {
            warnings.extend(unknown_class(class).map(|text| format!("`{name}` {text}")));
        }
    }
    warnings
}

/// Whether a pattern can match an id.
fn may_be_an_id(pattern: &str) -> bool {
    let digits = ["kt-", "loc-"]
        .iter()
        .find_map(|prefix| pattern.strip_prefix(prefix));
    let whole = digits.is_some_and(|digits| {
        digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    whole || pattern.contains(['*', '?', '[', '{'])
}
