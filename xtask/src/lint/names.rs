//! Type names that are defined twice.

use super::source::Workspace;
use std::collections::BTreeMap;
use syn::Item;

pub fn repeated_types(workspace: &Workspace) -> Vec<String> {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in &workspace.files {
        for item in &file.items {
            let name = match item {
                Item::Enum(item) => &item.ident,
                Item::Struct(item) => &item.ident,
                Item::Trait(item) => &item.ident,
                Item::Type(item) => &item.ident,
                Item::Union(item) => &item.ident,
                _ => continue,
            };
            let place = file.path.display().to_string();
            places.entry(name.to_string()).or_default().push(place);
        }
    }
    places
        .into_iter()
        .filter(|(_, places)| places.len() > 1)
        .map(|(name, places)| format!("{name}: {}", places.join(", ")))
        .collect()
}
