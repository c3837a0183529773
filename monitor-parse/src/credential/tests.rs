//! Tests of all formats.

use super::*;
use crate::peak;
use base64::Engine as _;
use monitor_common::fingerprint::fingerprint;
use proptest::prelude::*;

/// Maximum memory that parsing a one-megabyte file may use, whatever its contents.
const PEAK: usize = 48 << 20;

/// Files of the maximum size that anyone can write, each in every format.
#[test]
fn a_hostile_file_costs_bounded_memory() {
    const SIZE: usize = 1 << 20;
    let catalog = Catalog::new("", &[], &[]).expect("embedded");
    let repeated = |text: &str| text.repeat(SIZE / text.len());
    let doubling: String = (1..20_000)
        .map(|n| format!("A{n}=\"${{A{}}}${{A{}}}\"\n", n - 1, n - 1))
        .collect();
    let aliases: String = std::iter::once("a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned())
        .chain((1..2000).map(|n| {
            format!(
                "a{n}: &a{n} [{}]\n",
                vec![format!("*a{}", n - 1); 9].join(",")
            )
        }))
        .collect();
    let inputs = [
        doubling,
        aliases,
        repeated("["),
        repeated("{\"a\":"),
        repeated("a: {"),
        repeated("- "),
        repeated("[a]\nk=v\n"),
        repeated("machine a login b password FAKE\n"),
        repeated("-----BEGIN FAKE PRIVATE KEY-----\n"),
        repeated("https://u:p@h/\n"),
        repeated("{\"auths\":{"),
        repeated("a:b:c:d:e\n"),
        repeated("x"),
        repeated("\"\\u0041"),
        repeated("<a b=\"c\">"),
        repeated("<password>FAKE</password>"),
    ];
    for path in [
        "/home/a/.env",
        "/home/a/.kube/config",
        "/home/a/.docker/config.json",
        "/home/a/.m2/settings.xml",
        "/home/a/.netrc",
        "/home/a/.npmrc",
        "/home/a/.aws/credentials",
        "/home/a/.pgpass",
        "/home/a/.git-credentials",
        "/home/a/.ssh/id_rsa",
        "/home/a/.config/gcloud/application_default_credentials.json",
        "/run/secrets/kubernetes.io/serviceaccount/token",
    ] {
        let class = catalog.file(path).expect("a class");
        for input in &inputs {
            let bytes = peak::of(|| drop(find_secrets(&catalog, class, KEY, input.as_bytes())));
            assert!(
                bytes < PEAK,
                "{path}: {} MiB for {:?}…",
                bytes >> 20,
                &input[..20]
            );
        }
    }
}

const KEY: FingerprintKey = FingerprintKey { k0: 1, k1: 2 };

fn find(path: &str, text: &str) -> Vec<FoundSecret> {
    let catalog = Catalog::new("", &[], &[]).expect("embedded");
    let class = catalog.file(path).expect("a credential file").clone();
    find_secrets(&catalog, &class, KEY, text.as_bytes()).found
}

fn fingerprint_of(secret: &str) -> u64 {
    fingerprint(KEY, secret.as_bytes())
}

fn token(claims: &str) -> String {
    let part = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    format!(
        "{}.{}.{}",
        part(r#"{"alg":"RS256","typ":"JWT"}"#),
        part(claims),
        part("fakesignature")
    )
}

#[test]
fn aws_profiles_are_named_by_their_key_id() {
    let found = find(
        "/root/.aws/credentials",
        "[default]\naws_access_key_id = AKIAFAKEFAKEFAKEFAKE\naws_secret_access_key = fake/secret+half\n\
         [short]\naws_access_key_id=ASIAFAKEFAKEFAKEFAKE\naws_secret_access_key=other\naws_session_token=faketoken\n",
    );
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].class, "aws-access-key");
    assert_eq!(found[0].fingerprint, fingerprint_of("AKIAFAKEFAKEFAKEFAKE"));
    assert_eq!(found[0].aliases, [fingerprint_of("fake/secret+half")]);
    assert_eq!(found[0].label.as_deref(), Some("profile default"));
    assert_eq!(found[1].class, "aws-session-key");
    assert_eq!(
        found[1].aliases,
        [fingerprint_of("other"), fingerprint_of("faketoken")]
    );
}

#[test]
fn a_service_account_token_has_dates_and_an_audience() {
    let jwt = token(
        r#"{"iss":"x","sub":"system:serviceaccount:shop:api","aud":["https://kubernetes.default.svc"],"iat":1700000000,"exp":1700003600}"#,
    );
    let found = find(
        "/run/secrets/kubernetes.io/serviceaccount/token",
        &format!("{jwt}\n"),
    );
    assert_eq!(found[0].fingerprint, fingerprint_of(&jwt));
    assert_eq!(found[0].class, "k8s-service-account-token");
    assert_eq!(
        found[0].facts.expires_at,
        Timestamp::from_second(1_700_003_600).ok()
    );
    assert_eq!(found[0].facts.audience, ["https://kubernetes.default.svc"]);
    assert_eq!(
        found[0].label.as_deref(),
        Some("system:serviceaccount:shop:api")
    );
}

#[test]
fn the_host_beside_a_secret_is_its_audience() {
    for (path, text, hosts) in [
        (
            "/root/.netrc",
            "machine git.Example login a password FAKE-one\n",
            vec!["git.example"],
        ),
        (
            "/root/.netrc",
            "default login a password FAKE-one\n",
            vec![],
        ),
        (
            "/root/.pgpass",
            "db.example:5432:shop:a:FAKE-one\n",
            vec!["db.example"],
        ),
        ("/root/.pgpass", "*:*:*:a:FAKE-one\n", vec![]),
        (
            "/root/.git-credentials",
            "https://a:FAKE-one@git.example:8443/x\n",
            vec!["git.example"],
        ),
        (
            "/root/.docker/config.json",
            r#"{ "auths": { "registry.example:5000": { "auth": "YTpGQUtFLW9uZQ==" } } }"#,
            vec!["registry.example"],
        ),
        (
            "/root/.docker/config.json",
            r#"{ "auths": { "https://index.docker.io/v1/": { "auth": "YTpGQUtFLW9uZQ==" } } }"#,
            vec![
                "docker.io",
                "index.docker.io",
                "registry-1.docker.io",
                "auth.docker.io",
            ],
        ),
    ] {
        let found = find(path, text);
        assert_eq!(found[0].fingerprint, fingerprint_of("FAKE-one"), "{text}");
        assert_eq!(found[0].facts.audience, hosts, "{text}");
    }
}

#[test]
fn files_of_several_secrets() {
    let kubeconfig = "apiVersion: v1\nusers:\n- name: a\n  user: {token: faketoken-a}\n- name: b\n  user: {password: fakepass-b}\n";
    let found = find("/root/.kube/config", kubeconfig);
    assert_eq!(
        found
            .iter()
            .map(|f| (f.fingerprint, f.label.clone()))
            .collect::<Vec<_>>(),
        [
            (fingerprint_of("faketoken-a"), Some("a".into())),
            (fingerprint_of("fakepass-b"), Some("b".into()))
        ]
    );
    let auth = base64::engine::general_purpose::STANDARD.encode("user:fakepass");
    let found = find(
        "/root/.docker/config.json",
        &format!(
            r#"{{"auths":{{"registry.example":{{"auth":"{auth}"}},"other":{{"identitytoken":"fakeidentity"}}}}}}"#
        ),
    );
    assert!(found.iter().any(
        |f| f.fingerprint == fingerprint_of("fakepass") && f.aliases == [fingerprint_of(&auth)]
    ));
    assert!(
        found
            .iter()
            .any(|f| f.fingerprint == fingerprint_of("fakeidentity"))
    );
    let found = find(
        "/root/.netrc",
        "machine a.example login u password fakepw-a\nmachine b.example login v password fakepw-b\n",
    );
    assert_eq!(found.len(), 2);
    assert!(
        found[0].fingerprint == fingerprint_of("fakepw-a")
            && found[0].label.as_deref() == Some("a.example")
    );
    let found = find(
        "/root/.npmrc",
        "//registry.example/:_authToken=npm_fakefakefakefake\nfoo=bar\n",
    );
    assert_eq!(found[0].fingerprint, fingerprint_of("npm_fakefakefakefake"));
    assert_eq!(found[0].class, "npm-token");
    let found = find("/root/.pgpass", "db:5432:shop:app:fake\\:pass\n");
    assert_eq!(found[0].fingerprint, fingerprint_of("fake:pass"));
    let found = find(
        "/root/.git-credentials",
        "https://user:fakepass@git.example\n",
    );
    assert_eq!(found[0].fingerprint, fingerprint_of("fakepass"));
    let found = find(
        "/srv/.env",
        "PORT=80\nexport GITHUB_TOKEN=\"ghp_fakefakefakefakefake\"\nDATABASE_URL=postgres://u:fakedbpass@db/x\nDEBUG=true\n",
    );
    let classes: Vec<_> = found.iter().map(|f| f.class.as_str()).collect();
    assert_eq!(classes, ["database-password", "github-token"]);
    assert_eq!(found[0].fingerprint, fingerprint_of("fakedbpass"));
}

#[test]
fn pem_keys_and_their_dates() {
    let text = "-----BEGIN PRIVATE KEY-----\nRkFLRQ==\n-----END PRIVATE KEY-----\n";
    let found = find("/srv/tls/server.key", text);
    assert_eq!(found[0].fingerprint, fingerprint_of("RkFLRQ=="));
    let found = find(
        "/etc/ssl/private/snake.pem",
        "-----BEGIN CERTIFICATE-----\nRkFLRQ==\n-----END CERTIFICATE-----\n",
    );
    assert!(found.is_empty(), "a certificate alone is no secret");
}

#[test]
fn what_is_left_out_of_a_file_is_told() {
    let catalog = Catalog::new("", &[], &[]).expect("embedded");
    let read = |path: &str, bytes: &[u8]| {
        let class = catalog.file(path).expect("a credential file");
        find_secrets(&catalog, class, KEY, bytes)
    };
    let many: String = (0..300)
        .map(|number| format!("machine h{number} login a password FAKE-{number}\n"))
        .collect();
    let secrets = read("/root/.netrc", many.as_bytes());
    assert_eq!(secrets.found.len(), 256);
    assert_eq!(secrets.left_out, Some(LeftOut::Secrets));
    // A name in Latin-1 beside a secret, and a secret with such a byte.
    let latin = b"# M\xfcller\nmachine a login b password FAKE-secret\n";
    let secrets = read("/root/.netrc", latin);
    assert_eq!(secrets.found[0].fingerprint, fingerprint_of("FAKE-secret"));
    assert_eq!(secrets.left_out, None);
    let latin = b"machine a login b password FAKE-secret\nmachine c login d password FAKE-\xfc\n";
    let secrets = read("/root/.netrc", latin);
    assert_eq!(secrets.found.len(), 1);
    assert_eq!(secrets.left_out, Some(LeftOut::NotText));
    let zero = b"machine a login b password FAKE-secret\n# \0\n";
    let secrets = read("/root/.netrc", zero);
    assert_eq!(secrets.found[0].fingerprint, fingerprint_of("FAKE-secret"));
    // Neither text nor a known format.
    let secrets = read("/root/.netrc", b"FAKE\xff\xfe\0binary");
    assert!(secrets.found[0].whole);
}

#[test]
fn unsupported_formats_find_nothing() {
    assert!(find("/etc/shadow", "root:$6$fake:1::::::").is_empty());
}

proptest! {
    #[test]
    fn any_bytes_in_any_format(bytes in proptest::collection::vec(any::<u8>(), 0..400), text in "[a-z=:{}\\[\\]\"\n -]{0,200}") {
        let catalog = Catalog::new("", &[], &[]).expect("embedded");
        for path in ["/root/.aws/credentials", "/root/.kube/config", "/root/.docker/config.json", "/root/.netrc",
                     "/root/.npmrc", "/srv/.env", "/root/.pgpass", "/root/.git-credentials", "/srv/x.key", "/srv/x.p12",
                     "/run/secrets/x", "/root/.aws/cli/cache/x.json"] {
            let class = catalog.file(path).expect("a credential file");
            let _ = find_secrets(&catalog, class, KEY, &bytes);
            let _ = find_secrets(&catalog, class, KEY, text.as_bytes());
        }
    }
}

/// The class and the secret of everything that is found, the secret by its fingerprint among these.
fn named<'a>(path: &str, text: &str, secrets: &[&'a str]) -> Vec<(String, &'a str)> {
    let found = find(path, text);
    let all = found.iter().map(|found| {
        let known = secrets
            .iter()
            .find(|secret| fingerprint_of(secret) == found.fingerprint);
        (found.class.clone(), known.copied().unwrap_or("another"))
    });
    let mut all: Vec<_> = all.collect();
    all.sort();
    all
}

fn basic(user: &str, password: &str) -> u64 {
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    fingerprint_of(&pair)
}

#[test]
fn npm_registries_with_ports_variables_and_passwords() {
    let text = "registry=http://localhost:4873/
//localhost:4873/:_authToken=\"FAKEfakeFAKEfake-verdaccio\"
//nexus.example:8081/repository/npm/:_auth=ZGVwbG95OkZha2VOZXh1czEyMw==
//npm-registry.example/:_authToken=${NODE_AUTH_TOKEN}
//reg.example/:username=deploy
//reg.example/:_password=RmFrZVBhc3N3b3JkMTIz
";
    let found = find("/root/.npmrc", text);
    let by = |secret: &str| {
        found
            .iter()
            .find(|found| found.fingerprint == fingerprint_of(secret))
    };
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(
        by("FAKEfakeFAKEfake-verdaccio")
            .expect("a token")
            .facts
            .audience,
        ["localhost"]
    );
    let nexus = by("FakeNexus123").expect("the password of the pair");
    assert_eq!(
        nexus.aliases,
        [fingerprint_of("ZGVwbG95OkZha2VOZXh1czEyMw==")]
    );
    assert_eq!(nexus.facts.audience, ["nexus.example"]);
    let password = by("FakePassword123").expect("the password");
    assert!(
        password
            .aliases
            .contains(&basic("deploy", "FakePassword123"))
    );
    // The issuer's mark goes before the host in the file.
    let token = "npm_FAKEfakeFAKEfakeFAKEfakeFAKEfake0001";
    let text = format!("//evil.example/:_authToken={token}\n");
    assert!(find("/root/.npmrc", &text)[0].facts.audience.is_empty());
}

#[test]
fn netrc_entry_by_entry() {
    let text = "#GitHub token of the build user
machine github.com login x-access-token password ghp_FAKEfakeFAKEfakeFAKEfakeFAKEfake0001

# staging
machine api.example port 8443 login a password FakeSecret-0001
machine api.example login b password \"Fake Secret\\\"0002\" strange
macdef init
machine not.a.machine password no-secret

machine git.example login ghp_FAKEfakeFAKEfakeFAKEfakeFAKEfake0002 password x-oauth-basic
default login anonymous password #FakeAnon-0003
";
    let secrets = [
        "ghp_FAKEfakeFAKEfakeFAKEfakeFAKEfake0001",
        "ghp_FAKEfakeFAKEfakeFAKEfakeFAKEfake0002",
        "FakeSecret-0001",
        "Fake Secret\"0002",
        "#FakeAnon-0003",
    ];
    assert_eq!(
        named("/root/.netrc", text, &secrets),
        [
            ("github-token".to_owned(), secrets[0]),
            ("github-token".to_owned(), secrets[1]),
            ("netrc-password".to_owned(), secrets[4]),
            ("netrc-password".to_owned(), secrets[3]),
            ("netrc-password".to_owned(), secrets[2]),
        ]
    );
}

#[test]
fn tokens_as_users_of_urls() {
    let tokens = [
        "ghp_FAKEfakeFAKEfakeFAKEfakeFAKEfake0002",
        "ghp_FAKEfakeFAKEfakeFAKEfakeFAKEfake0003",
    ];
    let text = format!(
        "https://{}:x-oauth-basic@github.com\nhttps://{}@github.com\nhttps://user%40corp:p%40ss%3Aword-01@git.example\n",
        tokens[0], tokens[1]
    );
    let secrets = [tokens[0], tokens[1], "p@ss:word-01"];
    assert_eq!(
        named("/root/.git-credentials", &text, &secrets),
        [
            ("git-credential".to_owned(), secrets[2]),
            ("github-token".to_owned(), secrets[0]),
            ("github-token".to_owned(), secrets[1]),
        ]
    );
    let text = "[global]\nindex-url = https://deploy:FakePip-0001@pypi.example/simple\n";
    assert_eq!(
        named("/root/.config/pip/pip.conf", text, &["FakePip-0001"]),
        [("package-registry-credential".to_owned(), "FakePip-0001")]
    );
}

#[test]
fn aws_profiles_as_people_write_them() {
    let text = "\u{feff}[default]
  # rotated monthly
  AWS_ACCESS_KEY_ID = AKIAFAKEFAKEFAKE0001
  aws_secret_access_key = FAKE/fakeFAKEfakeFAKEfakeFAKEfakeFAKEfake1
[ci]
credential_process = /usr/local/bin/bmx print --account x
";
    let found = find("/root/.aws/credentials", text);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].fingerprint, fingerprint_of("AKIAFAKEFAKEFAKE0001"));
    assert_eq!(
        found[0].aliases,
        [fingerprint_of("FAKE/fakeFAKEfakeFAKEfakeFAKEfakeFAKEfake1")]
    );
}

#[test]
fn registries_without_auth() {
    let path = "/root/.docker/config.json";
    let text = r#"{"auths":{"reg.example:5000":{"username":"ci","password":"FakeRegistry-0001"}},"credHelpers":{"x":"ecr-login"}}"#;
    let found = find(path, text);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].fingerprint, fingerprint_of("FakeRegistry-0001"));
    assert_eq!(found[0].aliases, [basic("ci", "FakeRegistry-0001")]);
    assert_eq!(found[0].facts.audience, ["reg.example"]);
    let nothing = r#"{"credsStore":"desktop","HttpHeaders":{"User-Agent":"Docker-Client/19"}}"#;
    assert_eq!(find(path, nothing), []);
}

#[test]
fn secrets_of_pods_in_json() {
    let path = "/var/lib/kubelet/pods/1-2/volumes/kubernetes.io~secret/s3/creds.json";
    for (text, secret) in [
        (
            r#"{"access_key":"AKIAFAKEFAKEFAKE0003","secret_key":"FAKE/fakeFAKEfakeFAKEfakeFAKEfakeFAKEfake3"}"#,
            "AKIAFAKEFAKEFAKE0003",
        ),
        (
            r#"{"auths":{"reg.example":{"auth":"Y2k6RmFrZVJlZzAwMDE="}}}"#,
            "FakeReg0001",
        ),
        (
            r#"{"connectionString":"Server=db;Password=FakePass-01"}"#,
            "FakePass-01",
        ),
        (
            r#"{"db":{"main":{"user":"a","pwd":"FakePass-02"}}}"#,
            "FakePass-02",
        ),
        (
            r#"{"headers":{"Authorization":"Bearer FakeBearer-01"}}"#,
            "FakeBearer-01",
        ),
        (
            r#"{"anything":"ghp_FAKEfakeFAKEfakeFAKEfakeFAKEfake0004"}"#,
            "ghp_FAKEfakeFAKEfakeFAKEfakeFAKEfake0004",
        ),
    ] {
        let found = find(path, text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert_eq!(found[0].fingerprint, fingerprint_of(secret), "{text}");
    }
}

#[test]
fn files_of_ai_tools() {
    let claude = r#"{"claudeAiOauth":{"accessToken":"sk-ant-oat01-FAKEfakeFAKEfake","refreshToken":"sk-ant-ort01-FAKEfakeFAKEfake","expiresAt":1769960788154},"mcpOAuth":{"linear|abc":{"serverName":"linear","accessToken":"FAKEfakeFAKE","refreshToken":"FAKEfakeFAKf"}}}"#;
    let found = find("/home/u/.claude/.credentials.json", claude);
    assert_eq!(found.len(), 4, "{found:?}");
    let token = fingerprint_of("sk-ant-oat01-FAKEfakeFAKEfake");
    let token = found
        .iter()
        .find(|found| found.fingerprint == token)
        .expect("the token");
    let expiry = token.facts.expires_at.expect("a time in milliseconds");
    assert_eq!(expiry.as_millisecond(), 1_769_960_788_154);
    let mcp = r#"{"mcpServers":{"db":{"command":"npx","env":{"SDE_API_KEY":"FAKEkeyFAKEkey"}},"web":{"url":"https://x","headers":{"Authorization":"Bearer FAKEbearer"}}}}"#;
    let secrets = ["FAKEkeyFAKEkey", "FAKEbearer"];
    assert_eq!(
        named("/home/u/project/.mcp.json", mcp, &secrets),
        [
            ("mcp-credential".to_owned(), "FAKEbearer"),
            ("mcp-credential".to_owned(), "FAKEkeyFAKEkey"),
        ]
    );
    let copilot = r#"{"github.com:Iv1.FAKE":{"user":"octo","oauth_token":"ghu_FAKEfakeFAKEfakeFAKEfakeFAKEfake"}}"#;
    assert_eq!(
        find("/home/u/.config/github-copilot/apps.json", copilot)[0].class,
        "github-app-token"
    );
}

#[test]
fn several_kubeconfigs_in_one_file() {
    let text = "apiVersion: v1
users:
- name: a
  user: { token: FakeToken-a }
---
users: [ { name: b, user: { token: FakeToken-b
---
users:
- name: c
  user:
    exec:
      env: [ { name: CLUSTER_TOKEN, value: FakeToken-c } ]
";
    let secrets = ["FakeToken-a", "FakeToken-c"];
    assert_eq!(
        named("/root/.kube/config", text, &secrets),
        [
            ("kubeconfig".to_owned(), "FakeToken-a"),
            ("kubeconfig".to_owned(), "FakeToken-c"),
        ]
    );
}

#[test]
fn what_is_public_is_no_credential() {
    let path = "/root/.config/gcloud/application_default_credentials.json";
    let text = r#"{"type":"authorized_user","client_secret":"d-FL95Q19q7MQmFpd7hHD0Ty","refresh_token":"1//0FAKEfakeFAKEfake"}"#;
    assert_eq!(
        named(path, text, &["1//0FAKEfakeFAKEfake"]),
        [("gcp-service-account-key".to_owned(), "1//0FAKEfakeFAKEfake")]
    );
    let text = r#"{"type":"external_account","credential_source":{"url":"https://x","headers":{"Authorization":"Bearer FAKEactionsIdTokenRequest"}}}"#;
    assert_eq!(find(path, text).len(), 1, "the token that requests tokens");
    assert_eq!(
        find("/srv/app/.env", "STRIPE_KEY=pk_live_FAKEfakeFAKEfake\n"),
        []
    );
    let pgp = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQINBFAKE\n=FAKE\n-----END PGP PUBLIC KEY BLOCK-----\n";
    assert_eq!(find("/etc/apt/keyrings/x.key", pgp), []);
    let catalog = Catalog::new("", &[], &[]).expect("embedded");
    let class = catalog.file("/home/u/deck.key").expect("a class");
    let zip = b"PK\x03\x04\xff\xfe\x00";
    assert_eq!(find_secrets(&catalog, class, KEY, zip).found, []);
}

#[test]
fn a_broken_block_costs_itself() {
    let key = "-----BEGIN PRIVATE KEY-----\nRkFLRWZha2VGQUtF\n-----END PRIVATE KEY-----\n";
    for garbage in [
        "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nAAAA\n",
        "some text\n",
    ] {
        let found = find("/etc/ssl/private/x.pem", &format!("{garbage}{key}"));
        assert_eq!(found.len(), 1, "{garbage}");
        assert_eq!(found[0].fingerprint, fingerprint_of("RkFLRWZha2VGQUtF"));
    }
}

#[test]
fn settings_of_maven_and_nuget() {
    let maven = "<?xml version=\"1.0\"?>\n<settings>\n <!-- by hand -->\n <servers>
  <server><id>releases</id><username>ci</username><password>Fake&amp;Maven-0001</password></server>
  <server><id>encrypted</id><username>ci</username><password>{COQLCE6DU6GtcS5P=}</password></server>
  <server><id>variable</id><password>${env.TOKEN}</password></server>
  <server><id>key</id><privateKey>/home/a/.ssh/id</privateKey><passphrase><![CDATA[FakePhrase-0002]]></passphrase></server>
 </servers>
 <profiles><profile><repositories><repository><id>releases</id><url>https://nexus.example:8443/r</url></repository></repositories></profile></profiles>
</settings>";
    let found = find("/home/a/.m2/settings.xml", maven);
    let prints: Vec<u64> = found.iter().map(|found| found.fingerprint).collect();
    let wanted = ["Fake&Maven-0001", "FakePhrase-0002"].map(fingerprint_of);
    assert_eq!(prints, wanted);
    let pair = base64::engine::general_purpose::STANDARD.encode("ci:Fake&Maven-0001");
    assert_eq!(found[0].aliases, [fingerprint_of(&pair)]);
    assert_eq!(found[0].label.as_deref(), Some("releases"));
    assert_eq!(found[0].facts.audience, ["nexus.example"]);
    let nuget = "\u{feff}<configuration>
 <packageSources><add key=\"corp\" value=\"https://nuget.example/v3/index.json\" /></packageSources>
 <packageSourceCredentials><corp>
  <add key=\"Username\" value=\"ci\" /><add key=\"ClearTextPassword\" value=\"FakeNuget-0003\" />
 </corp></packageSourceCredentials>";
    // It is cut off, which costs what is missing.
    let found = find("/home/a/.nuget/NuGet/NuGet.Config", nuget);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].fingerprint, fingerprint_of("FakeNuget-0003"));
    assert_eq!(found[0].label.as_deref(), Some("corp"));
    assert_eq!(found[0].facts.audience, ["nuget.example"]);
}
