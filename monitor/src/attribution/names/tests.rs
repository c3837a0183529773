use super::*;
use monitor_core::catalog::Catalog;
use monitor_parse::cgroup::parse;
use std::sync::{Arc, Mutex};

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const UID: &str = "1b2c3d4e-0001-4002-8003-1234567890ab";

type FakeListing = Option<Result<Vec<ContainerNames>, String>>;

/// A provider with scripted listings.
#[derive(Clone, Debug, Default)]
struct FakeProvider(Arc<Mutex<FakeListing>>);

impl FakeProvider {
    fn say(&self, what: Result<Vec<ContainerNames>, String>) {
        *self.0.lock().expect("nobody panicked") = Some(what);
    }
}

impl NameProvider for FakeProvider {
    fn is_here(&self) -> bool {
        self.0.lock().expect("nobody panicked").is_some()
    }

    fn list(&mut self, _: &Runtime) -> Result<Vec<ContainerNames>, ProviderError> {
        let answer = self.0.lock().expect("nobody panicked").clone();
        answer
            .unwrap_or_else(|| Ok(Vec::new()))
            .map_err(|reason| ProviderError {
                provider: "a provider".into(),
                reason,
            })
    }
}

fn container() -> Cgroup {
    parse(&format!("/kubepods/burstable/pod{UID}/{ID}"))
}

fn named() -> ContainerNames {
    ContainerNames {
        id: ID.into(),
        pod_uid: Some(UID.into()),
        namespace: Some("payments".into()),
        pod: Some("api-0".into()),
        container: Some("api".into()),
        ..ContainerNames::default()
    }
}

/// The next reply.
fn next(names: &mut NameResolver) -> WorkloadRename {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(renamed) = names.take_replies(&SecretMarks::default()).pop() {
            return renamed;
        }
        assert!(Instant::now() < end, "nothing was answered");
        std::thread::yield_now();
    }
}

#[test]
fn a_workload_is_renamed_when_its_name_arrives() {
    let answer = FakeProvider::default();
    let mut names = NameResolver::from(vec![Box::new(answer.clone())], None).expect("a thread");
    let group = container();
    names.request(&group);
    let unnamed = names.workload(&group).expect("it has its ids");
    assert_eq!(unnamed.name, format!("pod-{UID}"));
    // No provider is available.
    let renamed = next(&mut names);
    assert_eq!(renamed.old, unnamed);
    assert!(unnamed.partial && !renamed.new.partial);
    let unnamed = renamed.new;
    assert_eq!(names.workload(&group).as_ref(), Some(&unnamed));
    assert_eq!(names.unnamed.get(NO_SOURCE), Some(&1));
    answer.say(Err("not now".into()));
    answer.say(Ok(vec![named()]));
    let renamed = next(&mut names);
    assert_eq!(renamed.old, unnamed);
    assert_eq!(renamed.new.key(), "payments/api-0");
    assert_eq!(renamed.new.container.as_deref(), Some("api"));
    assert_eq!(names.workload(&group), Some(renamed.new));
}

#[test]
fn a_foreign_name_is_never_used() {
    let answer = FakeProvider::default();
    answer.say(Ok(vec![ContainerNames {
        id: ID.replace('0', "1"),
        ..named()
    }]));
    let mut names = NameResolver::from(vec![Box::new(answer)], None).expect("a thread");
    let group = container();
    names.request(&group);
    let renamed = next(&mut names);
    assert_eq!(renamed.old, renamed.new);
    assert_eq!(names.unnamed.get("unknown"), Some(&1));
}

/// A scripted provider that knows owners.
#[derive(Debug)]
struct FakeOwnerProvider(FakeProvider);

impl NameProvider for FakeOwnerProvider {
    fn is_here(&self) -> bool {
        true
    }

    fn list(&mut self, runtime: &Runtime) -> Result<Vec<ContainerNames>, ProviderError> {
        self.0.list(runtime)
    }

    fn knows_owners(&self) -> bool {
        true
    }
}

#[test]
fn the_next_source_is_asked_for_unknown_names() {
    let (api, runtime) = (FakeProvider::default(), FakeProvider::default());
    runtime.say(Ok(vec![named()]));
    let sources: Vec<Box<dyn NameProvider>> =
        vec![Box::new(FakeOwnerProvider(api.clone())), Box::new(runtime)];
    let mut names = NameResolver::from(sources, None).expect("a thread");
    let group = container();
    names.request(&group);
    let renamed = next(&mut names);
    assert_eq!(renamed.new.key(), "payments/api-0", "the owner is late");
    api.say(Ok(vec![ContainerNames {
        id: String::new(),
        api_uid: Some(UID.into()),
        container: None,
        owner: Some(PodOwner {
            kind: WorkloadKind::StatefulSet,
            name: "api".into(),
        }),
        service_account: Some("payer".into()),
        ..named()
    }]));
    let better = next(&mut names);
    assert_eq!(better.old, renamed.new);
    assert_eq!(better.new.key(), "payments/api");
    assert_eq!(better.new.kind, WorkloadKind::StatefulSet);
    assert_eq!(better.new.container.as_deref(), Some("api"));
    assert_eq!(better.new.service_account.as_deref(), Some("payer"));
    assert_eq!(names.workload(&group), Some(better.new));
}

#[test]
fn host_processes_need_no_name_source() {
    let mut names = NameResolver::from(vec![], None).expect("a thread");
    let group = parse("/system.slice/nginx.service");
    names.request(&group);
    assert_eq!(names.workload(&group), None);
    assert!(names.requested.is_empty());
}

#[test]
fn names_show_no_secret() {
    let token = "ghp_FAKEFAKEFAKEFAKEFAKEFAKEFAKEFAKE0001";
    let secret = ContainerNames {
        namespace: Some(format!("of-{token}")),
        pod: Some(token.to_lowercase()),
        container: Some(format!("run-{token}")),
        image: Some(format!("registry.example/{token}/app:1")),
        owner: Some(PodOwner {
            kind: WorkloadKind::Deployment,
            name: token.into(),
        }),
        service_account: Some(token.into()),
        ..named()
    };
    let marks = SecretMarks::new(&Catalog::new("", &[], &[]).expect("embedded"));
    let shown = format!("{:?}", secret.masked(&marks).workload());
    assert_eq!(shown.matches("(github-token)").count(), 6, "{shown}");
    assert!(!shown.to_lowercase().contains("fake"), "{shown}");
    assert_eq!(named().masked(&marks), named());
}
