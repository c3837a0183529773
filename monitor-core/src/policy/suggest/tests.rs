use super::*;
use proptest::prelude::*;

fn tally(evidence: Evidence, count: u64) -> EvidenceTally {
    let evidence = Some(evidence);
    EvidenceTally { evidence, count }
}

#[test]
fn presented_hops_are_not_counted_as_held_as_well() {
    let all = [
        tally(Evidence::Sole, 9),
        tally(Evidence::Presented, 2),
        tally(Evidence::Presented, 3),
        tally(Evidence::Sole, 1),
    ];
    assert_eq!(EvidenceTally::sum(all.iter()).to_string(), "presented, 5 ×");
}

fn lines(names: &[&str]) -> Vec<String> {
    let mut seen = NameTree::default();
    for name in names {
        seen.add(name, tally(Evidence::Presented, 1));
    }
    seen.lines(443).into_iter().map(|line| line.text).collect()
}

#[test]
fn names_under_one_domain_become_a_glob() {
    let forty: Vec<String> = (0..40).map(|n| format!("n{n}.api.example.com")).collect();
    let mut names: Vec<&str> = forty.iter().map(String::as_str).collect();
    names.push("other.test");
    assert_eq!(
        lines(&names),
        ["\"*.api.example.com:443\"", "\"other.test:443\""]
    );
    // Not merged at a public suffix.
    let shops = ["a.co.uk", "b.co.uk", "c.co.uk", "d.co.uk", "e.co.uk"];
    assert_eq!(lines(&shops).len(), 5);
    let few = ["a.example.com", "b.example.com", "c.example.com"];
    assert_eq!(lines(&few).len(), 3);
}

#[test]
fn addresses_of_one_network() {
    let all: BTreeMap<IpAddr, EvidenceTally> = (1..=4)
        .map(|last| IpAddr::from([10, 0, 0, last]))
        .chain([IpAddr::from([10, 9, 0, 1])])
        .map(|address| (address, tally(Evidence::Sole, 1)))
        .collect();
    let texts: Vec<String> = networks(5432, &all)
        .into_iter()
        .map(|line| line.text)
        .collect();
    assert_eq!(texts, ["\"10.0.0.0/24:5432\"", "\"10.9.0.1:5432\""]);
}

#[test]
fn places_that_change_are_globs() {
    let uid = "1b2c3d4e-0001-4002-8003-1234567890ab";
    assert_eq!(
        lasting(&format!("/var/lib/kubelet/pods/{uid}/volumes/x/token")),
        "/var/lib/kubelet/pods/*/volumes/x/token"
    );
    assert_eq!(lasting("/srv/[a]*/key"), "/srv/[[]a[]][*]/key");
}

proptest! {
    /// For any place and name, the suggestion can be parsed and matches it.
    #[test]
    fn any_place(place in "/[ -~]{1,30}", name in "[a-z*\\[\\]#:-]{1,20}") {
        let text = format!(
            "credentials:\n  - name: {}\n    match: {{ file: {} }}\n    readers:\n      - {{ workload: {} }} # {}\n",
            quoted(&slug(&place)), quoted(&lasting(&place)), quoted(&literal(&name)), some([place.as_str()].into_iter())
        );
        prop_assert!(serde_saphyr::from_str::<Expectations>(&text).is_ok(), "{}", text);
    }
}
