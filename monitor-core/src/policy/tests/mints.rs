//! What was obtained from an authenticator.

use super::*;

#[test]
fn unexpected_mint() {
    let text = "credentials:\n- name: node\n  match: { class: aws-session-key }\n  readers: [ { executable: /usr/bin/good } ]\nauthenticators:\n- { name: vault, destinations: [ '10.0.0.9:8200' ], mints: access, readers: [ { unit: good.service } ] }\n";
    let mut with = policy(text);
    let mint = |class: &str, exe: &str, address: &str, port: u16| Mint {
        time: at(0),
        workload: Workload::host(exe),
        process: process(exe),
        authenticator: Destination::unnamed(
            address.parse().expect("an address"),
            port,
            Transport::Tcp,
        ),
        presented: None,
        minted: Some(credential(class, "/x")),
    };
    let imds = "169.254.169.254";
    for (text, mint, found) in [
        ("", mint("aws-session-key", "/usr/bin/bad", imds, 80), false),
        (
            text,
            mint("aws-session-key", "/usr/bin/bad", imds, 80),
            true,
        ),
        (
            text,
            mint("aws-session-key", "/usr/bin/good", imds, 80),
            false,
        ),
        (text, mint("oauth-token", "/usr/bin/bad", imds, 80), false),
        (
            text,
            mint("vault-token", "/usr/bin/bad", "10.0.0.9", 8200),
            true,
        ),
        (
            text,
            mint("vault-token", "/usr/bin/bad", "10.0.0.8", 8200),
            false,
        ),
    ] {
        let findings = findings_of(policy(text).judge_mint(&mint));
        assert_eq!(
            rules_of(&findings),
            if found {
                vec![("unexpected-mint", Severity::High)]
            } else {
                vec![]
            },
            "{} {}",
            mint.process.exe,
            mint.authenticator.label()
        );
    }
    // A role that it may not mint.
    let mut identity = mint("oidc-token", "/usr/bin/x", "10.0.0.9", 8200);
    identity.workload.unit = Some("good.service".into());
    assert_eq!(with.judge_mint(&identity), Decision::Allowed);
    if let Some(minted) = &mut identity.minted {
        minted.role = Role::Identity;
    }
    assert_eq!(findings_of(with.judge_mint(&identity)).len(), 1);
}
