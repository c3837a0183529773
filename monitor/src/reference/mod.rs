//! Generates the reference in `docs/` and the alerts in `dashboards/rules/` from the code, and checks
//! in tests that they are up to date.
//!
//! `cargo xtask reference` rewrites it.

mod alerts;

use crate::{cli, config::Config, http::api, metrics::Metrics};
use monitor_core::{catalog::Catalog, policy::rules::metas};
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

const HEAD: &str = "# Reference

Generated from the code by `cargo xtask reference`: the commands, the metrics, the rules, and the classes of the
catalog. The API is described in [openapi.json](openapi.json), which an agent serves as `/api/v1/openapi.json`;
configuration and expectations are in [expectations.md](expectations.md).
";

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A table row; the cell separator is escaped.
fn row(page: &mut String, cells: &[&str]) {
    let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    writeln!(page, "| {} |", cells.join(" | ")).expect("a string takes it");
}

fn code(words: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let words: Vec<String> = words
        .into_iter()
        .map(|word| format!("`{}`", word.as_ref()))
        .collect();
    words.join(", ")
}

/// A command and its subcommands, each with its help.
fn commands(page: &mut String, command: &clap::Command, above: &str) {
    let name = format!("{above}{}", command.get_name());
    if command.has_subcommands() {
        for below in command
            .get_subcommands()
            .filter(|one| one.get_name() != "help")
        {
            commands(page, below, &format!("{name} "));
        }
        return;
    }
    let mut help = command.clone().bin_name(&name).term_width(100);
    write!(
        page,
        "\n### {name}\n\n```\n{}```\n",
        help.render_long_help().to_string().trim_end().to_owned() + "\n"
    )
    .expect("a string takes it");
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    page.push_str("\n## Commands\n");
    commands(&mut page, &cli::command(), "");
    page.push_str("\n## Metrics\n\n");
    row(&mut page, &["family", "labels", "what it counts or says"]);
    row(&mut page, &["---"; 3]);
    let metrics = Metrics::new().expect("registers");
    for (name, labels, help) in metrics.family_docs() {
        let labels: Vec<&str> = labels
            .split(", ")
            .filter(|label| !label.is_empty())
            .collect();
        row(&mut page, &[&code([name]), &code(labels), &help]);
    }
    page.push_str("\n## Rules\n\n");
    row(&mut page, &["rule", "when", "refers to"]);
    row(&mut page, &["---"; 3]);
    for rule in metas() {
        row(
            &mut page,
            &[
                &code([rule.name]),
                rule.description,
                &rule.references.join("; "),
            ],
        );
    }
    page.push_str("\n## Classes\n\n");
    row(
        &mut page,
        &[
            "class",
            "role",
            "lifetime",
            "files and sockets",
            "environment",
            "home",
        ],
    );
    row(&mut page, &["---"; 6]);
    let catalog = Catalog::new("", &[], &[]).expect("the embedded catalog is right");
    for class in catalog.class_entries() {
        let mut home = code(&class.home);
        if class.self_hosted {
            home.push_str(" or wherever it is run");
        }
        if class.marked {
            home.push_str(&format!("; only with {}", code(&class.prefixes)));
        }
        row(
            &mut page,
            &[
                &code([&class.class]),
                class.role.as_str(),
                class.lifetime.as_str(),
                &code(class.files.iter().chain(&class.sockets)),
                &code(class.environment.iter().chain(&class.url_environment)),
                &home,
            ],
        );
    }
    page
}

/// Compares a file with its expected text, or rewrites it if requested.
fn check(name: &str, text: &str) {
    let path = root().join(name);
    if std::env::var_os("KEYTRAIL_WRITE_REFERENCE").is_some() {
        fs::write(&path, text).expect("written");
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == text,
        "{name} is out of date: run `cargo xtask reference`"
    );
}

#[test]
fn the_reference_matches_the_code() {
    check("docs/reference.md", &page());
}

#[test]
fn the_api_is_described() {
    let document = api::document().to_pretty_json().expect("it is JSON");
    check("docs/openapi.json", &(document + "\n"));
}

/// Every key of a document is in the guide, where people look for it.
#[test]
fn the_guide_has_every_key() {
    let guide = fs::read_to_string(root().join("docs/expectations.md")).expect("it is there");
    let whole = [
        "KEY: 1",
        "retention: { KEY: 1 }",
        "kubernetes: { KEY: 1 }",
        "inspect: { KEY: 1 }",
        "tls: { KEY: 1 }",
        "credentials: [ { KEY: 1 } ]",
        "credentials: [ { match: { KEY: 1 } } ]",
        "credentials: [ { readers: [ { KEY: 1 } ] } ]",
        "authenticators: [ { KEY: 1 } ]",
        "gateways: [ { KEY: 1 } ]",
    ];
    for text in whole {
        // On an unknown key, the parser lists the known ones.
        let error = Config::parse(Path::new("guide.yaml"), &text.replace("KEY", "zzzzzzzz"))
            .expect_err("no such key");
        let error_text = error.to_string();
        let (_, known) = error_text
            .split_once("expected one of ")
            .expect("it lists the known keys");
        for key in known.split(", ") {
            assert!(
                guide.contains(&format!("{key}:")),
                "the guide does not say `{key}` ({text})"
            );
        }
    }
}

#[test]
fn every_rule_with_an_alert_is_in_the_alert_file() {
    let rules = alerts::rules();
    check("dashboards/rules/keytrail.rules.yaml", &rules);
    // The chart must be self-contained.
    check("deploy/helm/keytrail/files/keytrail.rules.yaml", &rules);
    check(
        "dashboards/rules/keytrail.test.yaml",
        &alerts::promtool_tests(),
    );
}
