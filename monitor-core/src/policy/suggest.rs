//! Suggests expectations from what was recorded, for review.
//!
//! Similar entries are merged: names under one domain become a glob, addresses of one network a
//! network, workloads of one namespace the namespace, each with a comment on what it would
//! additionally allow. Flagged entries are left out, with a comment; so are destinations to which a
//! credential was only held, because whoever may connect to a server need not present it there.

use crate::{
    catalog::Catalog,
    history::{History, HopRow, UseRow},
    model::{
        Credential, CredentialId, Destination, Evidence, Finding, Role, Source, Verdict, Workload,
        WorkloadKind,
    },
    policy::{context::Context, expectation::Expectations},
};
use ipnet::IpNet;
use jiff::Timestamp;
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Debug, Write as _},
    net::IpAddr,
    sync::Arc,
};

/// More names, addresses or workloads than this are merged.
const LISTED_MAX: usize = 3;
/// Number of merged entries that are named.
const EXAMPLES_MAX: usize = 5;
/// Tokens that the built-in rule checks better than a list: each belongs to its own pod.
const OWN_PODS: &str = "k8s-service-account-token";

/// A line of a list, and a comment for the reviewer.
#[derive(Debug, PartialEq, Eq)]
struct SuggestedLine {
    text: String,
    note: String,
    /// It is shown, but not allowed.
    left_out: bool,
}

/// Credentials covered by one expectation.
#[derive(Default)]
struct ExpectationGroup<'a> {
    credentials: Vec<&'a Credential>,
    files: BTreeSet<String>,
    variables: BTreeSet<String>,
    uses: Vec<&'a UseRow>,
    hops: Vec<&'a HopRow>,
}

/// The text of a file of expectations.
pub fn suggest(history: &History, catalog: &Arc<Catalog>) -> String {
    let mut groups: BTreeMap<(String, String), ExpectationGroup<'_>> = BTreeMap::new();
    let mut placeless = 0;
    let mut keys: BTreeMap<&CredentialId, (String, String)> = BTreeMap::new();
    let sorted: BTreeMap<&CredentialId, &Credential> = history.credentials.iter().collect();
    for (id, credential) in sorted {
        let (files, variables) = places(credential);
        let Some(first) = files.first().or(variables.first()) else {
            placeless += 1;
            continue;
        };
        let key = (first.clone(), credential.class.clone());
        keys.insert(id, key.clone());
        let group = groups.entry(key).or_default();
        group.credentials.push(credential);
        group.files.extend(files);
        group.variables.extend(variables);
    }
    for used in &history.uses {
        if let Some(group) = keys
            .get(&used.credential)
            .and_then(|key| groups.get_mut(key))
        {
            group.uses.push(used);
        }
    }
    for hop in &history.hops {
        if let Some(group) = keys
            .get(&hop.credential)
            .and_then(|key| groups.get_mut(key))
        {
            group.hops.push(hop);
        }
    }
    let flagged = FlaggedItems::of(history);
    let plain = Context::new(Expectations::default(), Arc::clone(catalog));
    let mut out = heading(history);
    let mut names = BTreeSet::new();
    if groups.is_empty() {
        out.push_str("credentials: []\n");
    } else {
        out.push_str("credentials:\n");
    }
    for ((place, class), group) in &groups {
        let name = unique(&mut names, &slug(place));
        let last = group.credentials.len();
        let _ = writeln!(out, "  - name: {}", quoted(&name));
        let _ = writeln!(out, "    # {class}, {last} seen");
        let mut of = Vec::new();
        if !group.files.is_empty() {
            of.push(format!("file: {}", list(&group.files)));
        }
        if !group.variables.is_empty() {
            of.push(format!("environment: {}", list(&group.variables)));
        }
        let _ = writeln!(out, "    match: {{ {} }}", of.join(", "));
        if class == OWN_PODS {
            out.push_str(
                "    # no readers: the built-in rule checks that a token is used by its own pod\n",
            );
        } else {
            write_lines(&mut out, "    ", "readers", &readers(&group.uses, &flagged));
        }
        let lines = destinations(group, &plain, &flagged);
        write_lines(&mut out, "    ", "destinations", &lines);
    }
    let lines = authenticators(history, catalog);
    if !lines.is_empty() {
        out.push_str("authenticators:\n");
        for line in lines {
            let _ = writeln!(out, "  - {line}");
        }
    }
    if placeless > 0 {
        let _ = writeln!(
            out,
            "# {placeless} credentials were seen only when presented: without a place they can be matched only by id, which changes with each rotation."
        );
    }
    out
}

/// What was flagged, by subject.
struct FlaggedItems {
    hops: BTreeSet<(String, String)>,
    readers: BTreeSet<(String, String)>,
    /// Workloads that were flagged for more than one credential.
    workloads: BTreeSet<String>,
}

/// Rules about the age of a credential, which say nothing of its users.
const ABOUT_AGE: [&str; 2] = ["long-lived-credential", "expired-credential-used"];

impl FlaggedItems {
    fn of(history: &History) -> Self {
        let mut this = Self {
            hops: BTreeSet::new(),
            readers: BTreeSet::new(),
            workloads: BTreeSet::new(),
        };
        let about_use = |finding: &&Finding| !ABOUT_AGE.contains(&finding.rule.as_str());
        for finding in history.findings.iter().filter(about_use) {
            let workload = finding.workload.key();
            let rules = [finding.rule.as_str()];
            let mut rules = rules
                .into_iter()
                .chain(finding.also.iter().map(String::as_str));
            if rules.any(|rule| matches!(rule, "harvest" | "foreign-process-read")) {
                this.workloads.insert(workload.clone());
            }
            let Some(credential) = &finding.credential else {
                continue;
            };
            let id = credential.id.0.clone();
            match &finding.destination {
                Some(destination) => {
                    this.hops.insert((id, destination.label()));
                }
                None => {
                    this.readers.insert((id, workload));
                }
            }
        }
        this
    }

    fn has_reader(&self, credential: &CredentialId, workload: &str) -> bool {
        let pair = (credential.0.clone(), workload.to_owned());
        self.readers.contains(&pair) || self.workloads.contains(workload)
    }
}

fn heading(history: &History) -> String {
    let first = history
        .uses
        .iter()
        .map(|row| row.first_seen)
        .chain(history.hops.iter().map(|row| row.first_seen))
        .min();
    let last = history
        .uses
        .iter()
        .map(|row| row.last_seen)
        .chain(history.hops.iter().map(|row| row.last_seen))
        .max();
    let when =
        |time: Option<Timestamp>| time.map_or_else(|| "–".to_owned(), |time| time.to_string());
    let gaps = history
        .gaps
        .iter()
        .filter(|gap| gap.kind != crate::model::NOT_COVERED)
        .count();
    format!(
        "# Suggested by `keytrail policy suggest` from what was recorded, {} to {}.\n# Review it: it allows what happened, whether or not it should have, and nothing else.\n# {gaps} gaps overlap that time: what was not observed is not included.\n",
        when(history.range.since.or(first)),
        when(history.range.until.or(last)),
    )
}

/// The files and variables in which a credential was found.
fn places(credential: &Credential) -> (Vec<String>, Vec<String>) {
    let mut files = Vec::new();
    let mut variables = Vec::new();
    for place in &credential.sources {
        match place.source {
            Source::File => files.push(lasting(&place.place)),
            Source::Environment => {
                variables.push(place.place.trim_start_matches("env:").to_owned());
            }
            _ => {}
        }
    }
    (files, variables)
}

/// Replaces the parts of a path that differ per pod or process by `*`.
fn lasting(path: &str) -> String {
    let mut before = "";
    let parts: Vec<String> = path
        .split('/')
        .map(|part| {
            let changes = before == "pods" && part.len() >= 32
                || before == "proc" && part.bytes().all(|byte| byte.is_ascii_digit());
            before = part;
            if changes {
                "*".to_owned()
            } else {
                literal(part)
            }
        })
        .collect();
    parts.join("/")
}

/// A glob that matches only this text.
fn literal(text: &str) -> String {
    // It does not escape backslashes, which escape the next character.
    globset::escape(text).replace('\\', "\\\\")
}

fn readers(uses: &[&UseRow], flagged: &FlaggedItems) -> Vec<SuggestedLine> {
    let mut by: BTreeMap<String, (&Workload, u64, bool)> = BTreeMap::new();
    for row in uses {
        let key = row.workload.key();
        let bad = flagged.has_reader(&row.credential, &key);
        let known = by.entry(key).or_insert((&row.workload, 0, false));
        known.1 += row.count;
        known.2 |= bad;
    }
    let mut lines = Vec::new();
    let mut namespaces: BTreeMap<&str, Vec<(&Workload, u64)>> = BTreeMap::new();
    for (key, (workload, count, bad)) in &by {
        let simple = |text: String| SuggestedLine {
            text,
            note: if *bad {
                format!("{count} ×; flagged")
            } else {
                format!("{count} ×")
            },
            left_out: *bad,
        };
        match (&workload.namespace, workload.kind) {
            (Some(namespace), _) if !bad => {
                namespaces
                    .entry(namespace)
                    .or_default()
                    .push((workload, *count));
            }
            (Some(namespace), _) => lines.push(simple(format!(
                "{{ namespace: {}, workload: {} }}",
                quoted(&literal(namespace)),
                quoted(&literal(&workload.name))
            ))),
            (None, WorkloadKind::Unit) => {
                lines.push(simple(format!("{{ unit: {} }}", quoted(&literal(key)))));
            }
            (None, WorkloadKind::Host) => {
                lines.push(simple(format!(
                    "{{ executable: {} }}",
                    quoted(&literal(key))
                )));
            }
            (None, _) => lines.push(SuggestedLine {
                text: format!("{{ workload: {} }}", quoted(&literal(&workload.name))),
                note: format!(
                    "{count} ×; a container without a name: its id changes with each start"
                ),
                left_out: *bad,
            }),
        }
    }
    for (namespace, workloads) in namespaces {
        let total: u64 = workloads.iter().map(|(_, count)| count).sum();
        if workloads.len() > LISTED_MAX {
            let names = workloads.iter().map(|(workload, _)| workload.name.as_str());
            lines.push(SuggestedLine {
                text: format!("{{ namespace: {} }}", quoted(&literal(namespace))),
                note: format!(
                    "{total} ×, by {}; newly allows every other workload of {namespace}",
                    some(names)
                ),
                left_out: false,
            });
        } else {
            lines.extend(
                workloads
                    .into_iter()
                    .map(|(workload, count)| SuggestedLine {
                        text: format!(
                            "{{ namespace: {}, workload: {} }}",
                            quoted(&literal(namespace)),
                            quoted(&literal(&workload.name))
                        ),
                        note: format!("{count} ×"),
                        left_out: false,
                    }),
            );
        }
    }
    lines
}

fn destinations(
    group: &ExpectationGroup<'_>,
    plain: &Context,
    flagged: &FlaggedItems,
) -> Vec<SuggestedLine> {
    let mut names: BTreeMap<u16, NameTree> = BTreeMap::new();
    let mut addresses: BTreeMap<u16, BTreeMap<IpAddr, EvidenceTally>> = BTreeMap::new();
    let mut bad: BTreeMap<String, EvidenceTally> = BTreeMap::new();
    let mut homes: BTreeMap<String, EvidenceTally> = BTreeMap::new();
    let mut held: BTreeMap<String, EvidenceTally> = BTreeMap::new();
    let presented: BTreeSet<String> = group
        .hops
        .iter()
        .filter(|row| row.evidence == Evidence::Presented)
        .map(|row| pattern(&row.destination))
        .collect();
    for row in &group.hops {
        let destination = &row.destination;
        let certain = row.evidence != Evidence::Held && destination.one_of == 0;
        if !certain {
            continue;
        }
        let text = pattern(destination);
        if is_home(group, row, plain) {
            homes.entry(text).or_default().add(EvidenceTally::of(row));
            continue;
        }
        if flagged
            .hops
            .contains(&(row.credential.0.clone(), destination.label()))
        {
            bad.entry(text).or_default().add(EvidenceTally::of(row));
            continue;
        }
        if !presented.contains(&text) {
            held.entry(text).or_default().add(EvidenceTally::of(row));
            continue;
        }
        match &destination.name {
            Some(name) => names
                .entry(destination.port)
                .or_default()
                .add(name, EvidenceTally::of(row)),
            None => {
                let known = addresses
                    .entry(destination.port)
                    .or_default()
                    .entry(destination.address)
                    .or_default();
                known.add(EvidenceTally::of(row));
            }
        }
    }
    let mut lines: Vec<SuggestedLine> = bad
        .into_iter()
        .map(|(text, tally)| SuggestedLine {
            text: quoted(&text),
            note: format!("{tally}; flagged"),
            left_out: true,
        })
        .collect();
    lines.extend(held.into_iter().map(|(text, tally)| SuggestedLine {
        text: quoted(&text),
        note: format!("{tally}; add it if the credential may be presented there"),
        left_out: true,
    }));
    // With them, a credential that is only held elsewhere is medium.
    lines.extend(homes.into_iter().map(|(text, tally)| SuggestedLine {
        text: quoted(&text),
        note: format!("{tally}; the home of its class"),
        left_out: false,
    }));
    for (port, seen) in names {
        lines.extend(seen.lines(port));
    }
    for (port, all) in addresses {
        lines.extend(networks(port, &all));
    }
    lines.dedup();
    lines
}

/// Whether a hop is allowed without an expectation.
fn is_home(group: &ExpectationGroup<'_>, row: &HopRow, plain: &Context) -> bool {
    let credential = group
        .credentials
        .iter()
        .find(|credential| credential.id == row.credential);
    credential.is_some_and(|credential| {
        let hop = row.to_hop(Arc::new((*credential).clone()));
        plain.assess(&hop).verdict == Verdict::Expected
    })
}

pub fn pattern(destination: &Destination) -> String {
    let port = destination.port;
    match (&destination.name, destination.address) {
        (Some(name), _) => format!("{}:{port}", literal(name)),
        (None, IpAddr::V6(address)) => format!("[{address}]:{port}"),
        (None, address) => format!("{address}:{port}"),
    }
}

/// How often something was seen, counted for its strongest evidence: what is presented was also
/// held.
#[derive(Clone, Copy, Default)]
struct EvidenceTally {
    evidence: Option<Evidence>,
    count: u64,
}

impl EvidenceTally {
    fn of(row: &HopRow) -> Self {
        Self {
            evidence: Some(row.evidence),
            count: row.count,
        }
    }

    fn add(&mut self, more: Self) {
        match more.evidence.cmp(&self.evidence) {
            Ordering::Greater => *self = more,
            Ordering::Equal => self.count += more.count,
            Ordering::Less => {}
        }
    }

    fn sum<'a>(all: impl Iterator<Item = &'a Self>) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            sum.add(*one);
            sum
        })
    }
}

impl fmt::Display for EvidenceTally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(evidence) = self.evidence {
            write!(f, "{evidence}, ")?;
        }
        write!(f, "{} ×", self.count)
    }
}

/// Names on one port, as a tree of their labels from last to first.
#[derive(Default)]
struct NameTree {
    names: BTreeMap<String, EvidenceTally>,
}

impl NameTree {
    fn add(&mut self, name: &str, tally: EvidenceTally) {
        let known = self.names.entry(name.to_ascii_lowercase());
        known.or_default().add(tally);
    }

    fn lines(&self, port: u16) -> Vec<SuggestedLine> {
        // From the longest domains to the shortest: a merged pattern counts as one entry above.
        let mut patterns: BTreeMap<String, Vec<&String>> = self
            .names
            .keys()
            .map(|name| (name.clone(), vec![name]))
            .collect();
        let mut domains: BTreeSet<(usize, String)> = BTreeSet::new();
        for name in self.names.keys() {
            // Public suffixes belong to no one: `co.uk` is not a company's domain, nor is a cloud's
            // `s3` region.
            let Some(root) = psl::domain_str(name) else {
                continue;
            };
            let mut rest = name.as_str();
            while let Some((_, above)) = rest.split_once('.') {
                if above.len() < root.len() {
                    break;
                }
                domains.insert((above.split('.').count(), above.to_owned()));
                rest = above;
            }
        }
        for (_, domain) in domains.iter().rev() {
            let suffix = format!(".{domain}");
            let below: Vec<String> = patterns
                .keys()
                .filter(|pattern| pattern.ends_with(&suffix))
                .cloned()
                .collect();
            if below.len() <= LISTED_MAX {
                continue;
            }
            let mut names: Vec<&String> = below
                .iter()
                .filter_map(|pattern| patterns.remove(pattern))
                .flatten()
                .collect();
            names.sort();
            patterns.insert(format!("*.{domain}"), names);
        }
        patterns
            .into_iter()
            .map(|(text, names)| {
                let tally =
                    EvidenceTally::sum(names.iter().filter_map(|name| self.names.get(*name)));
                let note = match text.strip_prefix("*.") {
                    Some(domain) => format!(
                        "{tally}, {} names: {}; newly allows every other name under {domain}",
                        names.len(),
                        some(names.iter().map(|name| name.as_str()))
                    ),
                    None => tally.to_string(),
                };
                let text = match text.strip_prefix("*.") {
                    Some(domain) => format!("*.{}", literal(domain)),
                    None => literal(&text),
                };
                SuggestedLine {
                    text: quoted(&format!("{text}:{port}")),
                    note,
                    left_out: false,
                }
            })
            .collect()
    }
}

/// Addresses without names, merged to a network if there are many in one.
fn networks(port: u16, all: &BTreeMap<IpAddr, EvidenceTally>) -> Vec<SuggestedLine> {
    let mut by: BTreeMap<IpNet, Vec<&IpAddr>> = BTreeMap::new();
    for address in all.keys() {
        let length = if address.is_ipv4() { 24 } else { 64 };
        if let Ok(network) = IpNet::new(*address, length) {
            by.entry(network.trunc()).or_default().push(address);
        }
    }
    let mut lines = Vec::new();
    for (network, addresses) in by {
        let bracketed = |text: String, v6: bool| {
            if v6 {
                format!("[{text}]:{port}")
            } else {
                format!("{text}:{port}")
            }
        };
        if addresses.len() > LISTED_MAX {
            let tally =
                EvidenceTally::sum(addresses.iter().filter_map(|address| all.get(*address)));
            lines.push(SuggestedLine {
                text: quoted(&bracketed(network.to_string(), network.addr().is_ipv6())),
                note: format!(
                    "{tally}, {} addresses; newly allows every other address of the network",
                    addresses.len()
                ),
                left_out: false,
            });
        } else {
            lines.extend(addresses.into_iter().map(|address| SuggestedLine {
                text: quoted(&bracketed(address.to_string(), address.is_ipv6())),
                note: all.get(address).copied().unwrap_or_default().to_string(),
                left_out: false,
            }));
        }
    }
    lines
}

/// Systems that minted something and are missing from the catalog, as list entries.
pub fn authenticators(history: &History, catalog: &Catalog) -> Vec<String> {
    let mut known: BTreeMap<String, (BTreeSet<Role>, &Destination)> = BTreeMap::new();
    for link in &history.mints {
        let at = &link.authenticator;
        let host = at.name.clone().unwrap_or_else(|| at.address.to_string());
        if catalog.authenticator(&host, at.port).is_some() || catalog.is_metadata(at.address) {
            continue;
        }
        let minted = link
            .minted
            .as_ref()
            .and_then(|id| history.credentials.get(id));
        let roles = &mut known.entry(pattern(at)).or_insert((BTreeSet::new(), at)).0;
        roles.extend(minted.map(|credential| credential.role));
    }
    known
        .into_iter()
        .map(|(text, (roles, at))| {
            let host = at.name.clone().unwrap_or_else(|| at.address.to_string());
            let mints = match roles.iter().collect::<Vec<_>>()[..] {
                [role] => format!(", mints: {role}"),
                _ => String::new(),
            };
            format!(
                "{{ name: {}, destinations: [ {} ]{mints} }}",
                quoted(&slug(&host)),
                quoted(&text)
            )
        })
        .collect()
}

fn write_lines(out: &mut String, indent: &str, key: &str, lines: &[SuggestedLine]) {
    if lines.iter().all(|line| line.left_out) {
        for line in lines {
            let _ = writeln!(
                out,
                "{indent}# {key}: {} # left out: {}",
                line.text, line.note
            );
        }
        return;
    }
    let _ = writeln!(out, "{indent}{key}:");
    for line in lines {
        if line.left_out {
            let _ = writeln!(out, "{indent}  # - {} # left out: {}", line.text, line.note);
        } else {
            let _ = writeln!(out, "{indent}  - {} # {}", line.text, line.note);
        }
    }
}

/// The first of some names, and the number of others.
fn some<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let all: Vec<&str> = names.collect();
    let mut text = all
        .iter()
        .take(EXAMPLES_MAX)
        .copied()
        .collect::<Vec<_>>()
        .join(", ");
    if all.len() > EXAMPLES_MAX {
        let _ = write!(text, ", +{}", all.len() - EXAMPLES_MAX);
    }
    // For a comment: names are controlled by the observed workloads.
    text.chars()
        .filter(|character| !character.is_control())
        .collect()
}

fn list(texts: &BTreeSet<String>) -> String {
    let all: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
    match &all[..] {
        [one] => one.clone(),
        all => format!("[ {} ]", all.join(", ")),
    }
}

/// A text quoted for YAML, whatever it contains: JSON is YAML.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

/// A short name for a place: its last two parts.
fn slug(place: &str) -> String {
    let parts: Vec<&str> = place.split('/').filter(|part| !part.is_empty()).collect();
    let last = parts[parts.len().saturating_sub(2)..].join("-");
    let mut slug = String::new();
    for character in last.to_ascii_lowercase().chars() {
        if character.is_ascii_alphanumeric() {
            slug.push(character);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let slug = slug.trim_matches('-');
    if slug.is_empty() {
        "credential".to_owned()
    } else {
        slug.to_owned()
    }
}

fn unique(taken: &mut BTreeSet<String>, name: &str) -> String {
    let mut candidate = name.to_owned();
    let mut number = 2;
    while !taken.insert(candidate.clone()) {
        candidate = format!("{name}-{number}");
        number += 1;
    }
    candidate
}

#[cfg(test)]
mod tests;
