//! Compiles the catalog to the entries of the kernel filter.

use crate::catalog::{Catalog, glob::is_literal};
use monitor_common::{
    environ::word_key,
    filter::{
        FilterKind, HOST, JWT_VALUE, NEEDS_PAIR, PLAIN, URL_WORD, hash_of_name, key, pair_key,
        prefix_word, value_key,
    },
    http2::coded_header_key,
    response::field_key,
    scan::header_key,
};
use std::{collections::BTreeMap, fmt::Debug};

impl Catalog {
    /// The entries of the kernel filter.
    ///
    /// A rule concerns the last component, or one of the two directories above it: files deeper
    /// below a directory of secrets are recognised only once their inode is known.
    ///
    /// `pointed` are paths that variables named: they may be anywhere, and be links, so only their
    /// last component is used.
    pub fn filter_rules<'a>(&self, pointed: impl IntoIterator<Item = &'a str>) -> FilterRules {
        let mut rules = BTreeMap::new();
        for path in pointed {
            let name = path.rsplit('/').next().unwrap_or_default();
            rules.insert(key(FilterKind::Name, hash_of_name(name.as_bytes())), PLAIN);
        }
        for pointer in &self.pointers {
            if let Some(word) = longest_word(&pointer.variable) {
                rules.entry(word).or_insert(PLAIN);
            }
        }
        for glob in &self.file_globs {
            file_rule(glob, &mut rules);
        }
        for class in &self.classes {
            for name in &class.environment {
                if let Some(word) = filter_word(name) {
                    rules.entry(word).or_insert(PLAIN);
                }
            }
            for name in &class.url_environment {
                if let Some(word) = filter_word(name) {
                    rules.insert(word, URL_WORD);
                }
            }
        }
        for (index, (prefix, _)) in self.prefixes.iter().enumerate() {
            // A PEM block may be a certificate: for variables the name decides.
            if prefix.starts_with('-') || prefix.len() < 3 {
                continue;
            }
            let value = index as u32 | if prefix == "eyJ" { JWT_VALUE } else { 0 };
            let len = prefix.len().min(8);
            rules.insert(value_key(prefix_word(prefix.as_bytes()), len as u64), value);
        }
        // The first entry that lists a header owns it.
        for (index, (header, _)) in self.headers.iter().enumerate().rev() {
            rules.insert(header_key(header), index as u32);
            let mut coded = Vec::new();
            // Every byte has a code.
            if httlib_huffman::encode(header.as_bytes(), &mut coded).is_ok() {
                rules.insert(coded_header_key(&coded), index as u32);
            }
        }
        for (index, answer) in self.answers.iter().enumerate().rev() {
            rules.insert(field_key(&answer.field), index as u32);
        }
        for header in ["host", ":authority"] {
            rules.insert(header_key(header), HOST);
        }
        FilterRules(rules)
    }
}

/// The kernel filter's rule for a file glob.
fn file_rule(glob: &str, rules: &mut BTreeMap<u64, u32>) {
    let (directory, name) = glob.rsplit_once('/').unwrap_or(("", glob));
    let parent = directory.rsplit('/').next().unwrap_or_default();
    if is_literal(name) {
        let hash = hash_of_name(name.as_bytes());
        // A rule that matches alone makes pairs with the same name unnecessary.
        if is_literal(parent) && !parent.is_empty() {
            rules
                .entry(key(FilterKind::Name, hash))
                .or_insert(NEEDS_PAIR);
            rules.insert(pair_key(hash_of_name(parent.as_bytes()), hash), PLAIN);
        } else {
            rules.insert(key(FilterKind::Name, hash), PLAIN);
        }
        return;
    }
    let literal_end = name.rsplit(['*', '?', ']', '}']).next().unwrap_or_default();
    let literal_start = name.split(['*', '?', '[', '{']).next().unwrap_or_default();
    if literal_end.len() >= 4 {
        let last = &literal_end.as_bytes()[literal_end.len() - 4..];
        rules.insert(key(FilterKind::Suffix, prefix_word(last)), PLAIN);
    } else if literal_start.len() >= 4 {
        let first = &literal_start.as_bytes()[..4];
        rules.insert(key(FilterKind::Prefix, prefix_word(first)), PLAIN);
    } else {
        // Any file name: the directory decides, or its parent if the directory is a wildcard too.
        let named = directory.split('/').rev().find(|part| is_literal(part));
        if let Some(named) = named.filter(|named| !named.is_empty()) {
            rules.insert(
                key(FilterKind::Parent, hash_of_name(named.as_bytes())),
                PLAIN,
            );
        }
    }
}

/// The key of the word in a variable's name by which the kernel recognises it: the last one, unless
/// every environment contains it.
fn filter_word(glob: &str) -> Option<u64> {
    let words: Vec<String> = glob
        .split(['_', '-', '.', '*', '?', '[', ']', '{', '}'])
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    let last = words.last()?;
    let word = if last == "pwd" { words.first()? } else { last };
    (word != "pwd").then(|| word_key(word)).flatten()
}

/// The key of the longest word of a name, which most names do not contain.
fn longest_word(name: &str) -> Option<u64> {
    let longest = name.split('_').rev().max_by_key(|word| word.len())?;
    word_key(&longest.to_ascii_lowercase())
}

/// Entries of the kernel-side filter, compiled from the catalog: see [`monitor_common::filter`].
#[derive(Clone, Debug, Default)]
pub struct FilterRules(pub BTreeMap<u64, u32>);
