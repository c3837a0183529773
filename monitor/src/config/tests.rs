use super::*;
use jiff::SignedDuration;
use monitor_core::model::Destination;
use monitor_core::model::{NameSource, Transport};
use monitor_core::policy::expectation::destination::DestinationPattern;
use proptest::prelude::*;

const SAMPLE: &str = r#"
credentials:
  - name: payments-stripe
    match: { file: /var/run/secrets/payments/stripe, environment: STRIPE_*, class: stripe-key }
    owner: team-payments
    max_age: 30d
    revoked_at: null
    readers: [ { namespace: payments, workload: api }, { unit: nginx.service } ]
    destinations: [ "*.stripe.com:443", "10.0.0.0/8:5432", "ledger.payments.svc:8443" ]
authenticators:
  - { name: vault, destinations: [ "vault.internal:8200" ], mints: access }
mode: alert
"#;

fn destination(name: Option<&str>, address: &str, port: u16) -> Destination {
    Destination {
        address: address.parse().expect("an address"),
        port,
        name: name.map(str::to_owned),
        name_source: NameSource::None,
        transport: Transport::Tcp,
        ech: false,
        one_of: 0,
        disputed: Vec::new(),
        object: None,
        via: None,
    }
}

#[test]
fn the_sample_of_the_documentation() {
    let document = Config::parse(Path::new("x.yaml"), SAMPLE).expect("parses");
    let expectation = &document.expectations.credentials[0];
    assert_eq!(expectation.max_age, Some(SignedDuration::from_hours(720)));
    assert_eq!(
        document.expectations.places().0,
        ["/run/secrets/payments/stripe"]
    );
    let allowed = |name, address, port| {
        expectation
            .destinations
            .iter()
            .any(|pattern| pattern.matches(&destination(name, address, port)))
    };
    assert!(allowed(Some("api.stripe.com"), "203.0.113.5", 443));
    assert!(!allowed(Some("api.stripe.com"), "203.0.113.5", 8443));
    assert!(allowed(None, "10.1.2.3", 5432));
    assert!(!allowed(None, "11.1.2.3", 5432));
}

#[test]
fn errors_name_line_and_column() {
    for (text, line, part) in [
        (
            "credentials:\n  - name: x\n    match: { file: \"/a[\" }\n",
            3,
            "glob",
        ),
        (
            "credentials:\n  - name: x\n    match: {}\n    destinations: [ \"a:99999\" ]\n",
            4,
            "port",
        ),
        (
            "credentials:\n  - name: x\n    match: {}\n    reader: []\n",
            4,
            "reader",
        ),
        ("mode: maybe\n", 1, "maybe"),
        ("credentials: [\n", 2, ""),
    ] {
        match Config::parse(Path::new("p.yaml"), text) {
            Err(ConfigError::Syntax { error, .. }) => {
                assert!(error.line.abs_diff(line) <= 1, "{text}: {error}");
                assert!(error.reason.contains(part), "{text}: {error}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

/// No terms of the YAML library, and the position only in front.
#[test]
fn errors_are_in_words_of_the_user() {
    for (text, message) in [
        ("mode: [\n", "p.yaml:1:7: expected one word"),
        ("credentials: 5\n", "p.yaml:1:14: expected a list"),
        (
            "credentials: [ 3 ]\n",
            "p.yaml:1:16: expected keys and values (`key: value`)",
        ),
        (
            "credentials: [ { name: [ x ] } ]\n",
            "p.yaml:1:24: expected a text",
        ),
        (
            "mode: alart\n",
            "p.yaml:1:7: unknown value `alart`, expected one of alert, learn; did you mean `alert`?",
        ),
        (
            "mode: alert\n---\nmode: [\n",
            "p.yaml:3:7: expected one word",
        ),
        (
            "mode: alert\nmode: learn\n",
            "p.yaml:2:1: the key `mode` is set twice",
        ),
        (
            "mode: *x\n",
            "p.yaml:1:7: an alias (`*name`) refers to an anchor (`&name`) that is not defined before it",
        ),
        (
            "retention: { max_age: soon }\n",
            "p.yaml:1:23: `soon` is not a duration: write for example 90s, 12h or 30d",
        ),
    ] {
        let error = Config::parse(Path::new("p.yaml"), text).expect_err("invalid");
        assert_eq!(error.to_string(), message, "{text}");
    }
    let error = Catalog::new("clases: []\n", &[], &[]).expect_err("invalid");
    let message = error.to_string();
    assert!(
        message.starts_with("catalog:1:1: unknown field `clases`"),
        "{message}"
    );
    assert!(message.ends_with("did you mean `classes`?"), "{message}");
}

#[test]
fn a_misspelling_gets_a_suggestion() {
    for (text, meant) in [
        (
            "credentials:\n  - name: x\n    match: {}\n    reader: []\n",
            Some("readers"),
        ),
        ("mode: lern\n", Some("learn")),
        ("credentails: []\n", Some("credentials")),
        ("entirely: []\n", None),
    ] {
        let error = Config::parse(Path::new("p.yaml"), text).expect_err("wrong");
        let error_text = error.to_string();
        match meant {
            Some(meant) => {
                assert!(
                    error_text.ends_with(&format!("did you mean `{meant}`?")),
                    "{error_text}"
                );
            }
            None => assert!(!error_text.contains("did you mean"), "{error_text}"),
        }
    }
    let catalog = Catalog::new("", &[], &[]).expect("compiles");
    let text = "credentials:\n- { name: a, match: { class: aws-acess-key } }\n- { name: a, match: {} }\n- { name: b, match: { class: 'aws-*' } }\n";
    let doubts = Config::parse(Path::new("p.yaml"), text)
        .expect("parses")
        .warnings(&catalog);
    assert_eq!(doubts.len(), 3, "{doubts:?}");
    assert!(
        doubts[0].ends_with("did you mean `aws-access-key`?"),
        "{doubts:?}"
    );
}

#[test]
fn patterns_that_match_nothing_or_everything_are_warned_about() {
    let catalog = Catalog::new("", &[], &[]).expect("compiles");
    let doubts = |text: &str| {
        let text = format!("credentials: [ {{ {text} }} ]");
        Config::parse(Path::new("p.yaml"), &text)
            .unwrap_or_else(|error| panic!("{error}"))
            .warnings(&catalog)
    };
    for (text, part) in [
        (
            "name: a, match: { file: /x }, readers: [ {} ]",
            "every workload",
        ),
        ("name: ' ', match: { file: /x }", "empty name"),
        ("name: a, match: { file: run/x }", "begin with `/`"),
        ("name: a, match: { id: kt-12 }", "16 hex digits"),
        ("name: a, match: { id: my-key }", "16 hex digits"),
        (
            "name: a, match: { file: /x }, readers: [ { unit: nginx } ]",
            "write `nginx.service`",
        ),
    ] {
        let warnings = doubts(text);
        assert!(
            warnings.len() == 1 && warnings[0].contains(part),
            "{text}: {warnings:?}"
        );
    }
    for text in [
        "name: a, match: { file: [ /x, '**/y' ], id: [ kt-0123456789abcdef, 'kt-0*' ] }",
        "name: a, match: { file: /x }, readers: [ { unit: a.service }, { unit: 'a*' } ]",
        "name: a, match: { file: '~/.aws/credentials' }",
    ] {
        assert_eq!(doubts(text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn a_directory_is_read_under_any_path() {
    let parent = tempfile::tempdir().expect("a directory");
    let one = |name: &str| format!("credentials: [ {{ name: {name}, match: {{ file: /x }} }} ]");
    let directory = parent.path().join("policies");
    std::fs::create_dir(&directory).expect("made");
    std::fs::write(parent.path().join("other.yaml"), one("other")).expect("written");
    std::fs::write(directory.join("b.yaml"), one("b")).expect("written");
    std::fs::write(directory.join("a.yml"), one("a")).expect("written");
    std::fs::write(directory.join(".#a.yaml"), one("hidden")).expect("written");
    for path in [directory.clone(), directory.join("."), directory.join("")] {
        let names: Vec<String> = Config::load(&path)
            .expect("read")
            .expectations
            .credentials
            .into_iter()
            .map(|one| one.name)
            .collect();
        assert_eq!(names, ["a", "b"], "{}", path.display());
    }
}

#[test]
fn settings_belong_to_the_agents_file_and_a_mode_to_any_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text);
    write(
        "a.yaml",
        "listen: 127.0.0.1:1\nretention: { max_age: 1d }\n",
    )
    .expect("written");
    write("b.yaml", "mode: learn\n").expect("written");
    write("c.yaml", "mode: alert\n").expect("written");
    let document = Config::load(directory.path()).expect("read");
    assert_eq!(
        document.expectations.mode,
        Some(PolicyMode::Learn),
        "the first that says one"
    );
    let catalog = Catalog::new("", &[], &[]).expect("compiles");
    let [doubt] = &document.warnings(&catalog)[..] else {
        panic!("one doubt");
    };
    assert!(doubt.contains("a.yaml: `listen`, `retention`"), "{doubt}");
}

#[test]
fn several_documents_and_manifests_are_one() {
    let one = |name: &str| format!("credentials: [ {{ name: {name}, match: {{ file: /x }} }} ]\n");
    let manifest = |name: &str| {
        format!(
            "apiVersion: keytrail.dev/v1alpha1\nkind: CredentialPolicy\nmetadata: {{ name: {name} }}\nspec:\n  {}",
            one(name)
        )
    };
    let names = |text: &str| -> Result<Vec<String>, String> {
        Config::parse(Path::new("p.yaml"), text)
            .map(|document| {
                document
                    .expectations
                    .credentials
                    .into_iter()
                    .map(|one| one.name)
                    .collect()
            })
            .map_err(|error| error.to_string())
    };
    let both = ["a".to_owned(), "b".to_owned()];
    for text in [
        format!("{}---\n{}", one("a"), one("b")),
        format!("---\n{}---\n{}", manifest("a"), manifest("b")),
    ] {
        assert_eq!(names(&text).expect(&text), both);
    }
    let wrong = format!(
        "{}---\n{}",
        manifest("a"),
        manifest("b").replace("match", "mach")
    );
    let error_text = names(&wrong).expect_err("wrong");
    assert!(
        error_text.starts_with("p.yaml:11:") && error_text.ends_with("did you mean `match`?"),
        "{error_text}"
    );
}

#[test]
fn invalid_destinations_are_refused() {
    for text in [
        "",
        " ",
        ":443",
        "a b",
        "[fe80::1%eth0]:443",
        "10.0.0.0/33",
        "a:0",
        ".",
    ] {
        assert!(DestinationPattern::new(text).is_err(), "{text:?}");
    }
}

#[test]
fn destinations_of_every_form() {
    for (pattern, name, address, port, expected) in [
        ("[fd00::1]:443", None, "fd00::1", 443, true),
        ("fd00::/8", None, "fd00::2", 1, true),
        ("fd00::1", None, "fd00::1", 80, true),
        ("example.com", Some("example.com"), "10.0.0.1", 80, true),
        ("example.com:*", Some("example.com"), "10.0.0.1", 80, true),
        ("EXAMPLE.com", Some("example.com"), "10.0.0.1", 80, true),
        ("*.example.com", Some("example.com"), "10.0.0.1", 80, false),
        ("example.com", None, "10.0.0.1", 80, false),
        (
            " example.com.:443 ",
            Some("example.com"),
            "10.0.0.1",
            443,
            true,
        ),
        ("a.ns.svc:1", Some("a.ns.svc"), "10.0.0.1", 1, true),
        (
            "a.ns.svc:1",
            Some("a.ns.svc.cluster.local"),
            "10.0.0.1",
            1,
            true,
        ),
        (
            "a.ns.svc:1",
            Some("a.ns.svc.evil.example"),
            "10.0.0.1",
            1,
            false,
        ),
    ] {
        let parsed = DestinationPattern::new(pattern).expect(pattern);
        assert_eq!(
            parsed.matches(&destination(name, address, port)),
            expected,
            "{pattern}"
        );
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,80}") {
        let _ = Config::parse(Path::new("x"), &text);
        let _ = DestinationPattern::new(&text);
    }
}
