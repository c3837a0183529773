//! Answers as tables: columns fit the terminal, the worst comes first, gaps are listed.

use crate::{
    ledger::{
        chain::Chain,
        first::FirstUse,
        read::{BlastRadius, Findings, Inventory, Timeline, TimelineEvent, WhereAnswer, WhoAnswer},
    },
    sensor::doctor::{DoctorReport, UnattachedProgram},
};
use anstyle::{AnsiColor, Style};
use comfy_table::{ContentArrangement, Table, presets};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use monitor_core::{
    history::{HopRow, MintLink, UseRow},
    model::{Credential, CredentialId, Evidence, Finding, Gap, NOT_COVERED, Severity, Verdict},
    policy::trial::Trial,
};
use std::{collections::HashMap, fmt::Write as _};

const STRONG: Style = Style::new().bold();
const FAINT: Style = Style::new().dimmed();
const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const GREEN: Style = AnsiColor::Green.on_default();

/// Colours a word; `anstream` removes the colour if the output is not a terminal.
fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// The text of a cell, safe to print, with colours.
struct TableCell(String);

impl From<String> for TableCell {
    fn from(text: String) -> Self {
        Self(clean(&text))
    }
}

impl TableCell {
    fn painted(style: Style, text: &str) -> Self {
        Self(paint(style, &clean(text)))
    }

    /// Adds more text.
    fn then(mut self, text: &str) -> Self {
        self.0.push_str(&clean(text));
        self
    }

    /// Adds coloured text.
    fn then_painted(mut self, style: Style, text: &str) -> Self {
        self.0.push_str(&paint(style, &clean(text)));
        self
    }
}

/// A table being built. Columns are sized by visible text.
struct TableBuilder(Table);

impl TableBuilder {
    fn new(header: &[&str]) -> Self {
        let mut table = Table::new();
        table
            .load_preset(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(header);
        Self(table)
    }

    fn add(&mut self, cells: impl IntoIterator<Item = impl Into<TableCell>>) {
        self.0.add_row(cells.into_iter().map(|cell| cell.into().0));
    }

    fn show(&self, out: &mut String) {
        for (number, line) in self.0.to_string().lines().enumerate() {
            let line = line.trim_end();
            if number == 0 {
                out.push_str(&paint(FAINT, line));
            } else {
                out.push_str(line);
            }
            out.push('\n');
        }
    }
}

/// Names and paths are controlled by the observed workloads: control characters are escaped.
fn clean(text: &str) -> String {
    text.chars()
        .map(|character| {
            if character.is_control() || matches!(character, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
                character.escape_default().to_string()
            } else {
                character.to_string()
            }
        })
        .collect()
}

/// A local time with its offset, in seconds.
fn local_time(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S%:z")
        .to_string()
}

/// The same time in UTC.
fn utc_time(time: Timestamp) -> String {
    time.strftime("%H:%M:%SZ").to_string()
}

/// How long ago, in the largest suitable unit.
fn relative_time(time: Timestamp) -> String {
    let passed = Timestamp::now().duration_since(time);
    format!("{} ago", display_width(passed))
}

fn display_width(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Where a hop went, with its verdict and evidence.
fn hop_detail(row: &HopRow) -> TableCell {
    TableCell::from(format!("→ {} ", row.destination.label()))
        .then_painted(verdict_style(row.verdict), row.verdict.as_str())
        .then(&format!(" {}", row.evidence))
}

fn verdict_style(verdict: Verdict) -> Style {
    match verdict {
        Verdict::Expected => GREEN,
        Verdict::Unproven => YELLOW,
        Verdict::Unexpected => RED,
    }
}

fn severity_style(severity: Severity) -> Style {
    match severity {
        Severity::Low => YELLOW,
        _ => RED,
    }
}

fn heading(out: &mut String, credential: &Credential) {
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

fn gaps(out: &mut String, gaps: &[Gap]) {
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

fn shorten(text: &str) -> String {
    match text.char_indices().nth(REASON_WIDTH_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Drops hops for which stronger evidence was seen as often, as late, and with no milder verdict: a
/// presented credential was also held when connecting. JSON contains them all.
fn strongest_hops(hops: &[HopRow]) -> Vec<&HopRow> {
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
    let told = |hop: &&HopRow| {
        strong.get(&key(hop)).is_none_or(|best| {
            best.evidence <= hop.evidence
                || best.count < hop.count
                || best.last_seen < hop.last_seen
                || best.verdict < hop.verdict
        })
    };
    hops.iter().filter(told).collect()
}

/// Whether rows concern several credentials, so that each must be named.
fn has_several_credentials<'a>(mut ids: impl Iterator<Item = &'a CredentialId>) -> bool {
    let first = ids.next();
    ids.any(|id| Some(id) != first)
}

/// A count, marked as an upper bound if only part of it is in the range.
fn count_text(count: u64, partial: bool) -> String {
    if partial {
        format!("≤ {count}")
    } else {
        count.to_string()
    }
}

fn use_rows(out: &mut String, uses: &[UseRow]) {
    let several = has_several_credentials(uses.iter().map(|row| &row.credential));
    let mut head = vec![
        "WORKLOAD", "PROCESS", "UID", "SOURCE", "PLACE", "COUNT", "FIRST", "LAST",
    ];
    head.extend(several.then_some("CREDENTIAL"));
    let mut rows = TableBuilder::new(&head);
    for row in uses {
        let mut cells = vec![
            row.workload.key(),
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

fn hop_rows(out: &mut String, hops: &[HopRow]) {
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
            row.workload.key().into(),
            count_text(row.count, row.partial).into(),
            local_time(row.first_seen).into(),
            relative_time(row.last_seen).into(),
        ];
        cells.extend(several.then(|| row.credential.to_string().into()));
        rows.add(cells);
    }
    rows.show(out);
}

pub fn who(answer: &WhoAnswer) -> String {
    let mut out = String::new();
    for credential in &answer.credentials {
        heading(&mut out, credential);
    }
    out.push('\n');
    use_rows(&mut out, &answer.uses);
    gaps(&mut out, &answer.gaps);
    out
}

pub fn where_to(answer: &WhereAnswer) -> String {
    let mut out = String::new();
    for credential in &answer.credentials {
        heading(&mut out, credential);
    }
    out.push('\n');
    if answer.hops.is_empty() {
        out.push_str("No hops observed.\n");
    } else {
        hop_rows(&mut out, &answer.hops);
    }
    gaps(&mut out, &answer.gaps);
    out
}

pub fn chain(answer: &Chain) -> String {
    let mut out = String::new();
    for credential in &answer.credentials {
        heading(&mut out, credential);
    }
    out.push('\n');
    if answer.links.is_empty() {
        out.push_str("Nothing was observed to be minted from it or with it.\n");
    }
    let class = |id: &Option<CredentialId>, otherwise: &str| match id {
        Some(id) => {
            let known = answer
                .credentials
                .iter()
                .find(|credential| credential.id == *id);
            let class = known.map_or("", |known| known.name.as_deref().unwrap_or(&known.class));
            format!("{} {}", paint(STRONG, &id.0), clean(class))
        }
        None => otherwise.to_owned(),
    };
    for link in &answer.links {
        link_lines(&mut out, link, class);
    }
    if !answer.hops.is_empty() {
        out.push('\n');
        hop_rows(&mut out, &answer.hops);
    }
    gaps(&mut out, &answer.gaps);
    out
}

/// A link of a chain, in two lines.
fn link_lines(
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
        clean(&link.workload.key()),
        link.count,
        relative_time(link.last_seen)
    );
}

pub fn first_use(answer: &FirstUse) -> String {
    let mut out = String::new();
    for credential in &answer.credentials {
        heading(&mut out, credential);
    }
    let _ = writeln!(
        out,
        "\nAfter {} ({}); used before by {}",
        local_time(answer.after),
        utc_time(answer.after),
        first_two(&answer.known)
    );
    if answer.new.is_empty() {
        out.push_str("No new workload was observed using it.\n");
    } else {
        let mut rows = TableBuilder::new(&["TIME", "UTC", "WHAT", "WORKLOAD", "PROCESS", "DETAIL"]);
        for event in &answer.new {
            let (what, workload, process, detail) = match event {
                TimelineEvent::Use { row, .. } => (
                    "use",
                    &row.workload,
                    &row.process,
                    format!("{} {}", row.source, row.place).into(),
                ),
                TimelineEvent::Hop { row, .. } => {
                    ("hop", &row.workload, &row.process, hop_detail(row))
                }
                TimelineEvent::Finding { .. } | TimelineEvent::Gap { .. } => continue,
            };
            rows.add([
                local_time(event.time()).into(),
                utc_time(event.time()).into(),
                what.to_owned().into(),
                workload.key().into(),
                format!("{}[{}]", process.comm, process.pid).into(),
                detail,
            ]);
        }
        rows.show(&mut out);
    }
    if !answer.new_destinations.is_empty() {
        let _ = writeln!(out, "\n{}", paint(STRONG, "New destinations"));
        hop_rows(&mut out, &answer.new_destinations);
    }
    gaps(&mut out, &answer.gaps);
    out
}

pub fn trial(answer: &Trial) -> String {
    let mut out = format!(
        "{} uses, {} hops and {} mints were evaluated.\n",
        answer.uses, answer.hops, answer.mints
    );
    if answer.findings.is_empty() {
        out.push_str("Nothing would have been flagged.\n");
    } else {
        let _ = writeln!(out, "{}", paint(STRONG, "Would have been flagged"));
        finding_lines(&mut out, &answer.findings);
    }
    if !answer.settled.is_empty() {
        let _ = writeln!(
            out,
            "\n{}",
            paint(STRONG, "Was flagged, and would no longer be")
        );
        finding_lines(&mut out, &answer.settled);
    }
    let _ = writeln!(
        out,
        "\nNot evaluated, because the ledger does not contain what they need: {}",
        answer.not_judged.join(", ")
    );
    gaps(&mut out, &answer.gaps);
    out
}

pub fn blast_radius(answer: &BlastRadius) -> String {
    let mut out = String::new();
    for workload in &answer.workloads {
        let _ = writeln!(
            out,
            "{} ({})",
            paint(STRONG, &clean(&workload.key())),
            workload.kind
        );
    }
    let _ = writeln!(
        out,
        "{} credentials within its reach\n",
        answer.credentials.len()
    );
    for reach in &answer.credentials {
        heading(&mut out, &reach.credential);
        for row in &reach.uses {
            let _ = writeln!(
                out,
                "  picked up from {} {} × {}, last {}",
                row.source,
                clean(&row.place),
                row.count,
                relative_time(row.last_seen)
            );
        }
        for row in strongest_hops(&reach.hops) {
            let verdict = paint(verdict_style(row.verdict), row.verdict.as_str());
            let _ = writeln!(
                out,
                "  → {} {verdict}, {} × {}, last {}",
                clean(&row.destination.label()),
                row.evidence,
                row.count,
                relative_time(row.last_seen)
            );
        }
        out.push('\n');
    }
    for link in &answer.minted {
        link_lines(&mut out, link, |id, otherwise| {
            id.as_ref()
                .map_or_else(|| otherwise.to_owned(), |id| paint(STRONG, &id.0))
        });
    }
    gaps(&mut out, &answer.gaps);
    out
}

pub fn timeline(answer: &Timeline) -> String {
    let mut out = String::new();
    let mut rows = TableBuilder::new(&["TIME", "UTC", "WHAT", "CREDENTIAL", "WORKLOAD", "DETAIL"]);
    for event in &answer.events {
        let time = event.time();
        let cells: [TableCell; 4] = match event {
            TimelineEvent::Use { row, .. } => [
                "use".to_owned().into(),
                row.credential.to_string().into(),
                row.workload.key().into(),
                format!(
                    "{} {} × {}",
                    row.source,
                    row.place,
                    count_text(row.count, row.partial)
                )
                .into(),
            ],
            TimelineEvent::Hop { row, .. } => [
                "hop".to_owned().into(),
                row.credential.to_string().into(),
                row.workload.key().into(),
                hop_detail(row).then(&format!(" × {}", count_text(row.count, row.partial))),
            ],
            TimelineEvent::Finding { finding, .. } => [
                "finding".to_owned().into(),
                finding
                    .credential
                    .as_ref()
                    .map_or_else(String::new, |known| known.id.to_string())
                    .into(),
                finding.workload.key().into(),
                TableCell::from(format!("{} ", finding.rule))
                    .then_painted(severity_style(finding.severity), finding.severity.as_str())
                    .then(&format!(" × {}", finding.count)),
            ],
            TimelineEvent::Gap { gap, .. } if gap.kind == NOT_COVERED => continue,
            TimelineEvent::Gap { gap, .. } => [
                TableCell::painted(YELLOW, "gap"),
                String::new().into(),
                String::new().into(),
                format!("{}: {}", gap.kind, shorten(&gap.detail)).into(),
            ],
        };
        let times = [local_time(time), utc_time(time)].map(TableCell::from);
        rows.add(times.into_iter().chain(cells));
    }
    if answer.older {
        let _ = writeln!(
            out,
            "{}",
            paint(
                YELLOW,
                "Earlier events exist: narrow the range with --since and --until."
            )
        );
    }
    rows.show(&mut out);
    gaps(&mut out, &answer.gaps);
    out
}

pub fn inventory(answer: &Inventory) -> String {
    let mut out = String::new();
    let mut rows = TableBuilder::new(&[
        "CREDENTIAL",
        "NAME",
        "CLASS",
        "ROLE",
        "LIFETIME",
        "AGE",
        "EXPIRES",
        "OWNER",
        "WORKLOADS",
        "LAST USE",
        "PLACE",
    ]);
    for item in &answer.credentials {
        let credential = &item.credential;
        rows.add(vec![
            credential.id.to_string(),
            credential
                .name
                .clone()
                .or_else(|| credential.label.clone())
                .unwrap_or_else(|| "–".to_owned()),
            credential.class.clone(),
            credential.role.to_string(),
            credential.lifetime.to_string(),
            display_width(SignedDuration::from_secs(item.age_seconds)),
            credential
                .expires_at
                .map_or_else(|| "–".to_owned(), local_time),
            credential.owner.clone().unwrap_or_else(|| "–".to_owned()),
            first_two(&item.workloads),
            relative_time(item.last_used),
            first_two(
                &credential
                    .sources
                    .iter()
                    .map(|place| place.place.clone())
                    .collect::<Vec<_>>(),
            ),
        ]);
    }
    rows.show(&mut out);
    gaps(&mut out, &answer.gaps);
    out
}

/// The first two values, and the number of others.
fn first_two(values: &[String]) -> String {
    match values {
        [] => "–".to_owned(),
        [first] => clean(first),
        [first, second] => format!("{}, {}", clean(first), clean(second)),
        [first, second, rest @ ..] => {
            format!("{}, {}, +{}", clean(first), clean(second), rest.len())
        }
    }
}

pub fn findings(answer: &Findings) -> String {
    let mut out = String::new();
    if answer.findings.is_empty() {
        out.push_str("No findings.\n");
    }
    finding_lines(&mut out, &answer.findings);
    gaps(&mut out, &answer.gaps);
    out
}

fn finding_lines(out: &mut String, findings: &[Finding]) {
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

pub fn doctor(report: &DoctorReport) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{} {}", paint(STRONG, "Linux"), report.kernel);
    for check in &report.checks {
        let mark = match (check.ok, check.needed) {
            (true, _) => paint(GREEN, "ok  "),
            (false, true) => paint(RED, "no  "),
            (false, false) => paint(FAINT, "–   "),
        };
        let _ = writeln!(out, "{mark} {}: {}", check.name, check.detail);
    }
    for probe in &report.probes {
        let mark = if probe.attached {
            paint(GREEN, "ok  ")
        } else {
            paint(RED, "no  ")
        };
        let error = probe
            .error
            .as_ref()
            .map_or_else(String::new, |error| format!(": {error}"));
        let _ = writeln!(out, "{mark} {} by {}{error}", probe.probe, probe.mechanism);
        for passed in &probe.passed {
            let _ = writeln!(out, "       {}", paint(FAINT, &format!("not {passed}")));
        }
    }
    if !report.not_attached.is_empty() {
        let _ = writeln!(out, "\n{}", paint(STRONG, "Running without TLS probes"));
        for UnattachedProgram { file, reason } in &report.not_attached {
            let _ = writeln!(out, "  {}: {}", clean(file), clean(reason));
        }
    }
    let _ = writeln!(out, "\n{}", paint(STRONG, "Not seen"));
    for missed in &report.missed {
        let _ = writeln!(out, "  {missed}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_nobody_who_is_watched() {
        let evil = "/tmp/\u{1b}[2J\u{202e}gpj.key\nfake row";
        let shown = clean(evil);
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
        assert!(!shown.contains('\u{202e}'));
        let mut rows = TableBuilder::new(&["PLACE"]);
        rows.add(vec![evil.to_owned()]);
        let mut out = String::new();
        rows.show(&mut out);
        assert_eq!(out.lines().count(), 2, "{out:?}");
        assert!(!out.contains("\u{1b}[2J"), "{out:?}");
    }

    /// A place may contain a word that is coloured elsewhere.
    #[test]
    fn only_the_column_of_a_verdict_has_its_colour() {
        let mut rows = TableBuilder::new(&["PLACE", "SEVERITY", "WORKLOAD"]);
        rows.add([
            TableCell::from("/srv/a high b".to_owned()),
            TableCell::painted(RED, "high"),
            TableCell::from("wide 漢字".to_owned()),
        ]);
        let mut out = String::new();
        rows.show(&mut out);
        let row = out.lines().nth(1).expect("a row");
        let painted = paint(RED, "high");
        assert_eq!(row.matches(&painted).count(), 1, "{row:?}");
        let visible = row.replace(&painted, "high");
        assert_eq!(visible, " /srv/a high b  high      wide 漢字");
    }
}
