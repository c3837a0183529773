//! Parts that several answers share: credentials, uses, hops, links, findings, gaps.

use super::{
    table::{FAINT, GREEN, RED, STRONG, TableBuilder, TableCell, YELLOW, clean, paint},
    times::{local_time, relative_time},
};
use anstyle::Style;
use monitor_core::{
    history::{HopRow, MintLink, UseRow},
    model::{Credential, CredentialId, Evidence, Finding, Gap, NOT_COVERED, Severity, Verdict},
};
use std::{collections::HashMap, fmt::Write as _};

/// Where a hop went, with its verdict and evidence.
pub fn hop_detail(row: &HopRow) -> TableCell {
    TableCell::from(format!("→ {} ", row.destination.label()))
        .then_painted(verdict_style(row.verdict), row.verdict.as_str())
        .then(&format!(" {}", row.evidence))
}

pub fn verdict_style(verdict: Verdict) -> Style {
    match verdict {
        Verdict::Expected => GREEN,
        Verdict::Unproven => YELLOW,
        Verdict::Unexpected => RED,
    }
}

pub fn severity_style(severity: Severity) -> Style {
    match severity {
        Severity::Low => YELLOW,
        _ => RED,
    }
}

/// A credential, and the places where it was found.
pub fn credential_heading(out: &mut String, credential: &Credential) {
    let name = credential.name.as_deref().unwrap_or(&credential.class);
    let _ = write!(
        out,
        "{} {} ({}, {}, {}",
        paint(STRONG, &credential.id.0),
        clean(name),
        credential.class,
        credential.role,
        credential.lifetime
    );
    if let Some(label) = &credential.label {
        let _ = write!(out, ", {}", clean(label));
    }
    if let Some(expiry) = credential.expires_at {
        let _ = write!(out, ", expires {}", local_time(expiry));
    }
    out.push_str(")\n");
    for place in &credential.sources {
        let _ = writeln!(out, "  {} {}", place.source, clean(&place.place));
    }
}

/// Several credentials, as [`credential_heading`].
pub fn credential_headings(out: &mut String, credentials: &[Credential]) {
    for credential in credentials {
        credential_heading(out, credential);
    }
}

/// What was not observed.
pub fn gaps(out: &mut String, gaps: &[Gap]) {
    // Gaps of every release are the same in every answer: summarised in one line.
    let (standing, own): (Vec<&Gap>, Vec<&Gap>) =
        gaps.iter().partition(|gap| gap.kind == NOT_COVERED);
    if gaps.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{}", paint(STRONG, "Not seen"));
    for gap in own {
        let until = gap.until.map_or_else(|| "now".to_owned(), local_time);
        let count = if gap.count > 0 {
            format!(" ({} events)", gap.count)
        } else {
            String::new()
        };
        let _ = writeln!(
            out,
            "  {} {}{count}: {}",
            paint(FAINT, &format!("{} – {until}", local_time(gap.since))),
            paint(YELLOW, &gap.kind),
            shorten(&clean(&gap.detail))
        );
    }
    if !standing.is_empty() {
        let _ = writeln!(
            out,
            "  {} {} kinds of use and traffic, listed by `keytrail doctor`",
            paint(YELLOW, NOT_COVERED),
            standing.len()
        );
    }
}

/// Longest reason that is shown completely; `keytrail doctor` and JSON have the full text.
const REASON_WIDTH_MAX: usize = 160;

/// The beginning of a long reason.
pub fn shorten(text: &str) -> String {
    match text.char_indices().nth(REASON_WIDTH_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Drops hops for which stronger evidence was seen as often, as late, and with no milder verdict: a
/// presented credential was also held when connecting. JSON contains them all.
pub fn strongest_hops(hops: &[HopRow]) -> Vec<&HopRow> {
    let key = |hop: &HopRow| {
        (
            hop.credential.clone(),
            hop.workload.key(),
            hop.destination.clone(),
        )
    };
    let mut strong: HashMap<_, &HopRow> = HashMap::new();
    for hop in hops {
        let best = strong.entry(key(hop)).or_insert(hop);
        if hop.evidence > best.evidence {
            *best = hop;
        }
    }
    let adds_something = |hop: &&HopRow| {
        strong.get(&key(hop)).is_none_or(|best| {
            best.evidence <= hop.evidence
                || best.count < hop.count
                || best.last_seen < hop.last_seen
                || best.verdict < hop.verdict
        })
    };
    hops.iter().filter(adds_something).collect()
}

/// Whether rows concern several credentials, so that each must be named.
fn has_several_credentials<'a>(mut ids: impl Iterator<Item = &'a CredentialId>) -> bool {
    let first = ids.next();
    ids.any(|id| Some(id) != first)
}

/// A count, marked as an upper bound if only part of it is in the range.
pub fn count_text(count: u64, partial: bool) -> String {
    if partial {
        format!("≤ {count}")
    } else {
        count.to_string()
    }
}

/// A table of uses.
pub fn use_rows(out: &mut String, uses: &[UseRow]) {
    let several = has_several_credentials(uses.iter().map(|row| &row.credential));
    let mut head = vec![
        "WORKLOAD", "PROCESS", "UID", "SOURCE", "PLACE", "COUNT", "FIRST", "LAST",
    ];
    head.extend(several.then_some("CREDENTIAL"));
    let mut rows = TableBuilder::new(&head);
    for row in uses {
        let mut cells = vec![
            row.workload.label(),
            format!("{}[{}]", row.process.comm, row.process.pid),
            row.process.uid.to_string(),
            row.source.to_string(),
            row.place.clone(),
            count_text(row.count, row.partial),
            local_time(row.first_seen),
            relative_time(row.last_seen),
        ];
        cells.extend(several.then(|| row.credential.to_string()));
        rows.add(cells);
    }
    rows.show(out);
}

/// A table of hops, each with its strongest evidence.
pub fn hop_rows(out: &mut String, hops: &[HopRow]) {
    let several = has_several_credentials(hops.iter().map(|row| &row.credential));
    let mut head = vec![
        "VERDICT",
        "EVIDENCE",
        "DESTINATION",
        "ADDRESS",
        "NAME FROM",
        "WORKLOAD",
        "COUNT",
        "FIRST",
        "LAST",
    ];
    head.extend(several.then_some("CREDENTIAL"));
    let mut rows = TableBuilder::new(&head);
    for row in strongest_hops(hops) {
        let evidence = row.evidence.as_str();
        let mut cells = vec![
            TableCell::painted(verdict_style(row.verdict), row.verdict.as_str()),
            if row.evidence == Evidence::Presented {
                TableCell::painted(STRONG, evidence)
            } else {
                evidence.to_owned().into()
            },
            row.destination.label().into(),
            row.destination.address.to_string().into(),
            row.destination.name_source.to_string().into(),
            row.workload.label().into(),
            count_text(row.count, row.partial).into(),
            local_time(row.first_seen).into(),
            relative_time(row.last_seen).into(),
        ];
        cells.extend(several.then(|| row.credential.to_string().into()));
        rows.add(cells);
    }
    rows.show(out);
}

/// A link of a chain, in two lines.
pub fn link_lines(
    out: &mut String,
    link: &MintLink,
    class: impl Fn(&Option<CredentialId>, &str) -> String,
) {
    let _ = writeln!(
        out,
        "{} → {} → {}\n  by {} × {}, last {}",
        class(&link.presented, "(nothing seen)"),
        clean(&link.authenticator.label()),
        class(&link.minted, "(response not observed)"),
        clean(&link.workload.label()),
        link.count,
        relative_time(link.last_seen)
    );
}

/// The first two values, and the number of others.
pub fn first_two(values: &[String]) -> String {
    match values {
        [] => "–".to_owned(),
        [first] => clean(first),
        [first, second] => format!("{}, {}", clean(first), clean(second)),
        [first, second, rest @ ..] => {
            format!("{}, {}, +{}", clean(first), clean(second), rest.len())
        }
    }
}

/// Findings, each in two or three lines.
pub fn finding_lines(out: &mut String, findings: &[Finding]) {
    for finding in findings {
        let severity = paint(severity_style(finding.severity), finding.severity.as_str());
        let _ = writeln!(
            out,
            "{severity} {}  {}",
            paint(STRONG, &finding.rule),
            clean(&finding.summary)
        );
        let evidence = finding
            .evidence
            .map_or_else(String::new, |evidence| format!("evidence {evidence}, "));
        let _ = writeln!(
            out,
            "  {}",
            paint(
                FAINT,
                &format!(
                    "{evidence}× {}, first {}, last {}; {}",
                    finding.count,
                    local_time(finding.first_seen),
                    relative_time(finding.last_seen),
                    finding.references.join(", ")
                )
            )
        );
        if !finding.expected.is_empty() {
            let _ = writeln!(
                out,
                "  {}",
                paint(
                    FAINT,
                    &format!("expected: {}", first_two(&finding.expected))
                )
            );
        }
    }
}
