//! The responder's page, in a real Chromium.

use anyhow::{Result, ensure};
use lab::{
    agent::Agent,
    web::WebServer,
    workload::{aws_credentials, present_aws_key},
};
use std::{fs, process::Command};

#[test]
fn a_responder_finds_the_hop() -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    let Some(modules) = std::env::var_os("KEYTRAIL_PLAYWRIGHT") else {
        return lab::skip::skip("the page", "no browser (KEYTRAIL_PLAYWRIGHT)");
    };
    let directory = tempfile::tempdir()?;
    const KEY_ID: &str = "AKIAFAKEFAKEPAGE0001";
    let home = directory.path().join("home");
    let key = aws_credentials(&home, KEY_ID, "FAKE00000000000000000000000000000page001")?;
    let agent = Agent::start(directory.path(), &[])?;
    let server = WebServer::start_plain("127.0.0.1")?;
    present_aws_key(&key, KEY_ID, server.address)?;
    let finding = agent.await_finding(|finding| finding["rule"] == "unexpected-hop")?;
    let credential = finding["credential"]["id"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    agent.await_json(&["query", "where", &credential], |answer| {
        answer["hops"]
            .as_array()
            .is_some_and(|hops| !hops.is_empty())
    })?;
    let mut page = Command::new("node");
    page.arg("--input-type=module")
        .arg("-")
        .arg(agent.page_link()?)
        .arg(&credential)
        .current_dir(&modules)
        .stdin(fs::File::open(lab::client("page.mjs"))?);
    // `KEYTRAIL_SCREENSHOTS=docs/images cargo xtask scenarios page` keeps the screenshots.
    page.args(std::env::var_os("KEYTRAIL_SCREENSHOTS"));
    let output = page.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{}", said.trim());
    ensure!(
        output.status.success(),
        "the page: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
