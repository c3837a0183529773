//! Expiry, age and revocation.

use super::*;

#[test]
fn expired_credential_used() {
    let mut late = hop("jwt", Some("x.example"), "10.0.0.1", Evidence::Presented);
    Arc::make_mut(&mut late.credential).expires_at = Some(at(-1));
    assert_eq!(
        rules_of(&policy("").judge_hop(&late).1),
        [("expired-credential-used", Severity::Medium)]
    );
    late.evidence = Evidence::Held;
    assert_eq!(rules_of(&policy("").judge_hop(&late).1), []);
    late.evidence = Evidence::Presented;
    Arc::make_mut(&mut late.credential).expires_at = Some(at(1));
    assert_eq!(rules_of(&policy("").judge_hop(&late).1), []);
}

#[test]
fn long_lived_credential() {
    let mut plain = policy("");
    let mut fixed = used("aws-access-key", "/x", "/a");
    Arc::make_mut(&mut fixed.credential).lifetime = Lifetime::Static;
    // A digest of each day, to which every credential is added once.
    let digest = |plain: &mut Policy, read: &Use| {
        let found = plain.judge_all(read);
        found.first().map(|finding| {
            assert_eq!(rules_of(&found), [("long-lived-credential", Severity::Low)]);
            assert_eq!(finding.credential, None);
            (finding.id.clone(), finding.summary.matches("kt-").count())
        })
    };
    let (today, named) = digest(&mut plain, &fixed).expect("a digest");
    assert_eq!(named, 1);
    assert_eq!(digest(&mut plain, &fixed), None);
    for number in 10..17 {
        let credential = Arc::make_mut(&mut fixed.credential);
        credential.id = CredentialId::from_fingerprint(number);
        let (id, named) = digest(&mut plain, &fixed).expect("it grows");
        assert_eq!(id, today);
        assert!(named <= 5);
    }
    fixed.time = at(86_400);
    let (tomorrow, named) = digest(&mut plain, &fixed).expect("another digest");
    assert_ne!(tomorrow, today);
    assert_eq!(named, 1);
    assert_eq!(rules_of(&plain.judge_all(&used("ssh-key", "/x", "/a"))), []);
    let mut with = policy(STRIPE);
    let mut aged = used("x", "/srv/key", "/usr/bin/good");
    aged.modified = Some(at(-31 * 86_400));
    assert_eq!(
        rules_of(&with.judge_all(&aged)),
        [("long-lived-credential", Severity::Low)]
    );
    aged.modified = Some(at(-29 * 86_400));
    assert_eq!(rules_of(&with.judge_all(&aged)), []);
}

#[test]
fn revoked_credential_used() {
    let text = "credentials:\n- name: old\n  match: { file: /srv/key }\n  revoked_at: 2023-11-14T22:13:20Z\n";
    let mut read = used("x", "/srv/key", "/a");
    assert_eq!(
        rules_of(&policy(text).judge_all(&read)),
        [],
        "at that very moment"
    );
    read.time = at(1);
    assert_eq!(
        rules_of(&policy(text).judge_all(&read)),
        [("revoked-credential-used", Severity::Critical)]
    );
    let mut late = hop("x", Some("x.example"), "10.0.0.1", Evidence::Sole);
    late.time = at(1);
    let by_one = policy(text).judge_hop(&late).1;
    assert_eq!(
        rules_of(&by_one),
        [("revoked-credential-used", Severity::Critical)]
    );
    assert!(by_one[0].destination.is_some(), "{by_one:?}");
    assert_ne!(by_one[0].id, policy(text).judge_all(&read)[0].id);
    let mut by_another = late.clone();
    by_another.workload = container("b");
    assert_ne!(by_one[0].id, policy(text).judge_hop(&by_another).1[0].id);
    late.evidence = Evidence::Held;
    assert_eq!(rules_of(&policy(text).judge_hop(&late).1), []);
}
