//! Expectations in the cluster: the custom resource `CredentialPolicy`.
//!
//! Every agent reads all of them. A resource that cannot be parsed keeps its last accepted version
//! in force, and its status says why. All agents compute the same status, so only the first one has
//! to write it. Accepted resources are kept in the state directory: an agent that starts while the
//! API is unavailable uses them.

use super::{WatchEvent, WatchHandler, follow};
use crate::{config::Config, private_file};
use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams},
    runtime::watcher,
};
use monitor_core::{
    catalog::Catalog,
    policy::expectation::{Expectations, limits::check_limits},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

const GROUP: &str = "keytrail.dev";
const VERSION: &str = "v1alpha1";
const KIND: &str = "CredentialPolicy";
const PLURAL: &str = "credentialpolicies";
/// File in the state directory with the accepted resources: specs by name.
const STATE_FILE: &str = "policies.json";
/// The only condition of a status.
const ACCEPTED_CONDITION: &str = "Accepted";

/// The expectations of the cluster.
#[derive(Clone, Debug, Default)]
pub struct ClusterPolicies(Arc<Mutex<PolicyState>>);

#[derive(Debug, Default)]
struct PolicyState {
    /// Accepted spec and its parsed form, by name; ordered, so that every agent uses the same
    /// order.
    accepted: BTreeMap<String, (Value, Expectations)>,
    /// Names of resources whose current version is not accepted.
    refused: BTreeSet<String>,
    version: u64,
    /// Where they are stored, if anywhere.
    file: Option<PathBuf>,
}

/// The expectations in force.
#[derive(Debug)]
pub struct PolicySnapshot {
    /// Changes whenever the expectations do.
    pub version: u64,
    pub expectations: Vec<Expectations>,
    /// Number of resources whose current version is not accepted.
    pub refused: usize,
}

impl ClusterPolicies {
    /// Restores the expectations stored by the previous run.
    pub fn restore(state_dir: &Path) -> Self {
        let file = state_dir.join(STATE_FILE);
        let kept = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(file = %file.display(), %error, "cannot read the stored expectations of the cluster; fetching them again");
                BTreeMap::new()
            }),
            Err(_) => BTreeMap::<String, Value>::new(),
        };
        let accepted: BTreeMap<_, _> = kept
            .into_iter()
            .filter_map(|(name, spec)| {
                let expectations = parse_policy(&name, &spec).ok()?;
                Some((name, (spec, expectations)))
            })
            .collect();
        Self(Arc::new(Mutex::new(PolicyState {
            version: u64::from(!accepted.is_empty()),
            accepted,
            refused: BTreeSet::new(),
            file: Some(file),
        })))
    }

    /// The current expectations, if they differ from those at `version`.
    pub fn since(&self, version: u64) -> Option<PolicySnapshot> {
        let held = self.lock();
        (held.version != version).then(|| PolicySnapshot {
            version: held.version,
            expectations: held
                .accepted
                .values()
                .map(|(_, expectations)| expectations.clone())
                .collect(),
            refused: held.refused.len(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, PolicyState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses expectations that are too large together with the others in force.
    fn check_limits_with(&self, name: &str, parsed: Expectations) -> Result<Expectations, String> {
        let held = self.lock();
        let others = held.accepted.iter().filter(|(other, _)| *other != name);
        let others = others.map(|(_, (_, expectations))| expectations);
        check_limits(others.chain([&parsed]))
            .map_err(|error| format!("together with the other policies: {error}"))?;
        drop(held);
        Ok(parsed)
    }

    fn put(&self, name: &str, spec: &Value, judged: &Result<Expectations, String>) {
        self.publish(|held| match judged {
            Ok(expectations) => {
                let same = held.accepted.get(name).is_some_and(|(old, _)| old == spec);
                let entry = (spec.clone(), expectations.clone());
                held.accepted.insert(name.to_owned(), entry);
                held.refused.remove(name) || !same
            }
            Err(_) => held.refused.insert(name.to_owned()),
        });
    }

    fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.publish(|held| {
            let before = (held.accepted.len(), held.refused.len());
            held.accepted.retain(|name, _| is_there(name));
            held.refused.retain(|name| is_there(name));
            before != (held.accepted.len(), held.refused.len())
        });
    }

    /// Publishes a change to the pipeline, and stores it.
    fn publish(&self, make: impl FnOnce(&mut PolicyState) -> bool) {
        let mut held = self.lock();
        if !make(&mut held) {
            return;
        }
        held.version += 1;
        let Some(file) = held.file.clone() else {
            return;
        };
        let specs: BTreeMap<String, Value> = held
            .accepted
            .iter()
            .map(|(name, (spec, _))| (name.clone(), spec.clone()))
            .collect();
        // The pipeline reads every second, and must not wait for a disk.
        drop(held);
        if let Err(error) = private_file::write(&file, &json!(specs).to_string(), None) {
            tracing::warn!(file = %file.display(), %error, "cannot store the expectations of the cluster for the next start");
        }
    }
}

/// Watches the resources, and writes their statuses.
#[derive(Debug)]
pub struct PolicyReviewer {
    policies: ClusterPolicies,
    api: Api<DynamicObject>,
}

impl PolicyReviewer {
    pub fn new(policies: ClusterPolicies, client: Client) -> Self {
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, KIND), PLURAL);
        Self {
            policies,
            api: Api::all_with(client, &resource),
        }
    }

    /// Never returns.
    pub async fn follow(&mut self, config: watcher::Config) {
        let (status_queue, statuses) = unbounded_channel();
        let memory = PolicyWatch {
            policies: self.policies.clone(),
            names: BTreeMap::new(),
            status_queue,
        };
        tokio::join!(
            follow(PLURAL, self.api.clone(), config, memory),
            self.write(statuses)
        );
    }

    async fn write(&self, mut statuses: UnboundedReceiver<(String, Value)>) {
        while let Some((name, status)) = statuses.recv().await {
            let patch = Patch::Merge(json!({ "status": status }));
            let written = self
                .api
                .patch_status(&name, &PatchParams::default(), &patch)
                .await;
            if let Err(error) = written {
                tracing::warn!(policy = name, %error, "cannot write the status of a CredentialPolicy");
            }
        }
    }
}

/// The known resources, and the queue of statuses to write.
#[derive(Debug)]
struct PolicyWatch {
    policies: ClusterPolicies,
    /// Names by uid.
    names: BTreeMap<String, String>,
    status_queue: UnboundedSender<(String, Value)>,
}

impl WatchHandler<DynamicObject> for PolicyWatch {
    fn deliver(&mut self, event: WatchEvent<'_, DynamicObject>) {
        match event {
            WatchEvent::There(object) => {
                let (Some(name), Some(uid)) = (&object.metadata.name, &object.metadata.uid) else {
                    return;
                };
                let spec = object.data.get("spec").unwrap_or(&Value::Null);
                let judged = parse_policy(name, spec)
                    .and_then(|parsed| self.policies.check_limits_with(name, parsed));
                self.names.insert(uid.clone(), name.clone());
                self.policies.put(name, spec, &judged);
                if let Err(reason) = &judged {
                    tracing::error!(policy = name, %reason, "CredentialPolicy rejected; its previous version stays in force");
                }
                let generation = object.metadata.generation.unwrap_or(0);
                let before = object.data.get("status");
                if let Some(status) = status_update(before, generation, &judged, Timestamp::now()) {
                    // The receiver is dropped only with the agent.
                    let _ = self.status_queue.send((name.clone(), status));
                }
            }
            WatchEvent::Gone(object) => {
                if let Some(name) = &object.metadata.name {
                    self.policies.retain(|existing| existing != name);
                }
            }
            WatchEvent::All(uids) => self.retain(uids),
            WatchEvent::Down(_) => {}
        }
    }
}

impl PolicyWatch {
    fn retain(&mut self, uids: &HashSet<String>) {
        self.names.retain(|uid, _| uids.contains(uid));
        let existing: HashSet<&String> = self.names.values().collect();
        self.policies
            .retain(|name| existing.contains(&name.to_owned()));
    }
}

/// Parses a resource, or says what is wrong with it.
fn parse_policy(name: &str, spec: &Value) -> Result<Expectations, String> {
    // The cluster must not change an agent's settings.
    const FIELDS: [&str; 2] = ["credentials", "authenticators"];
    let fields = spec.as_object().ok_or("spec is missing")?;
    if let Some(field) = fields
        .keys()
        .find(|field| !FIELDS.contains(&field.as_str()))
    {
        return Err(format!("spec.{field} is not one of {}", FIELDS.join(", ")));
    }
    let place = Path::new("spec");
    let expectations = Config::parse(place, &spec.to_string())
        .map_err(|error| without_position(&error.to_string()))?
        .expectations;
    let (files, variables) = expectations.places();
    Catalog::new("", &files, &variables).map_err(|error| format!("{name}: {error}"))?;
    Ok(expectations)
}

/// Removes line and column, which refer to a text that the user has never seen.
fn without_position(error: &str) -> String {
    let reason = error.splitn(4, ':').nth(3).unwrap_or(error);
    reason.trim().to_owned()
}

/// The status that a resource should have; `None` if it has it already.
fn status_update(
    before: Option<&Value>,
    generation: i64,
    judged: &Result<Expectations, String>,
    now: Timestamp,
) -> Option<Value> {
    let (status, reason, message, credentials) = match judged {
        Ok(document) => {
            let count = document.credentials.len();
            let message = match count {
                1 => "1 credential".to_owned(),
                _ => format!("{count} credentials"),
            };
            ("True", "Loaded", message, count)
        }
        Err(message) => ("False", "Invalid", message.clone(), 0),
    };
    let condition = before
        .and_then(|before| before.get("conditions")?.as_array())
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == ACCEPTED_CONDITION);
    let same = condition.is_some_and(|condition| {
        condition["status"] == status
            && condition["reason"] == reason
            && condition["message"] == message.as_str()
            && condition["observedGeneration"] == generation
    });
    if same {
        return None;
    }
    let since = condition
        .filter(|condition| condition["status"] == status)
        .and_then(|condition| condition["lastTransitionTime"].as_str())
        .map_or_else(|| now.to_string(), str::to_owned);
    Some(json!({
        "observedGeneration": generation,
        "credentials": credentials,
        "conditions": [{
            "type": ACCEPTED_CONDITION,
            "status": status,
            "reason": reason,
            "message": message,
            "observedGeneration": generation,
            "lastTransitionTime": since,
        }],
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn good() -> Value {
        json!({ "credentials": [{ "name": "payments",
            "match": { "file": "/run/secrets/payments" }, "destinations": ["*.example:443"] }] })
    }

    fn object(name: &str, spec: &Value, status: Option<&Value>) -> DynamicObject {
        let mut object = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"), "kind": KIND,
            "metadata": { "name": name, "uid": format!("uid-{name}"), "generation": 3 },
            "spec": spec,
        });
        if let Some(status) = status {
            object["status"] = status.clone();
        }
        serde_json::from_value(object).expect("an object")
    }

    #[test]
    fn an_invalid_policy_is_reported_and_does_not_replace_a_valid_one() {
        let policies = ClusterPolicies::default();
        let (status_queue, mut statuses) = unbounded_channel();
        let mut memory = PolicyWatch {
            policies: policies.clone(),
            names: BTreeMap::new(),
            status_queue,
        };
        memory.deliver(WatchEvent::There(&object("a", &good(), None)));
        let held = policies.since(0).expect("it has changed");
        assert_eq!((held.expectations.len(), held.refused), (1, 0));
        let (name, status) = statuses.try_recv().expect("a status");
        assert_eq!(name, "a");
        assert_eq!(status["conditions"][0]["status"], "True");
        assert_eq!(status["credentials"], 1);
        // An identical resource needs no status update.
        memory.deliver(WatchEvent::There(&object("a", &good(), Some(&status))));
        assert!(statuses.try_recv().is_err());
        for wrong in [
            json!({ "credentials": [{ "name": "x", "match": { "file": "/a" }, "readerz": [] }] }),
            json!({ "credentials": [{ "name": "x", "match": { "file": "/a/[" } }] }),
            json!({ "state_dir": "/etc" }),
            Value::Null,
        ] {
            memory.deliver(WatchEvent::There(&object("a", &wrong, Some(&status))));
            let held = policies.since(0).expect("it has changed");
            assert_eq!((held.expectations.len(), held.refused), (1, 1), "{wrong}");
            let (_, status) = statuses.try_recv().expect("a status");
            let condition = &status["conditions"][0];
            assert_eq!(condition["status"], "False", "{wrong}");
            assert_ne!(condition["message"], "", "{wrong}");
        }
        memory.deliver(WatchEvent::Gone(&object("a", &good(), None)));
        let held = policies.since(0).expect("it has changed");
        assert_eq!((held.expectations.len(), held.refused), (0, 0));
        assert!(policies.since(held.version).is_none());
    }

    #[test]
    fn stored_policies_apply_until_the_cluster_answers() {
        let state = tempfile::tempdir().expect("a directory");
        let remember = |policies: &ClusterPolicies| PolicyWatch {
            policies: policies.clone(),
            names: BTreeMap::new(),
            status_queue: unbounded_channel().0,
        };
        let first = ClusterPolicies::restore(state.path());
        assert!(first.since(0).is_none());
        let mut memory = remember(&first);
        memory.deliver(WatchEvent::There(&object("a", &good(), None)));
        memory.deliver(WatchEvent::There(&object("b", &good(), None)));
        let version = first.since(0).expect("it has changed").version;
        // A status update does not change the expectations.
        memory.deliver(WatchEvent::There(&object("b", &good(), None)));
        assert!(first.since(version).is_none());
        let second = ClusterPolicies::restore(state.path());
        let held = second.since(0).expect("what was kept");
        assert_eq!(held.expectations.len(), 2);
        let mut memory = remember(&second);
        memory.deliver(WatchEvent::There(&object("b", &good(), None)));
        memory.deliver(WatchEvent::All(&HashSet::from(["uid-b".to_owned()])));
        let third = ClusterPolicies::restore(state.path());
        assert_eq!(third.since(0).expect("what was kept").expectations.len(), 1);
        fs::write(state.path().join(STATE_FILE), "[1,").expect("a file");
        assert!(ClusterPolicies::restore(state.path()).since(0).is_none());
    }

    #[test]
    fn policies_deleted_during_an_outage_are_removed() {
        let policies = ClusterPolicies::default();
        let (status_queue, _told) = unbounded_channel();
        let mut memory = PolicyWatch {
            policies: policies.clone(),
            names: BTreeMap::new(),
            status_queue,
        };
        memory.deliver(WatchEvent::There(&object("a", &good(), None)));
        memory.deliver(WatchEvent::There(&object("b", &good(), None)));
        memory.deliver(WatchEvent::All(&HashSet::from(["uid-b".to_owned()])));
        let held = policies.since(0).expect("it has changed");
        assert_eq!(held.expectations.len(), 1);
    }

    proptest! {
        #[test]
        fn any_text_is_accepted_or_refused(text in "\\PC{0,40}", field in "[a-z]{0,12}") {
            let _ = parse_policy("x", &json!({ "credentials": text }));
            let _ = parse_policy("x", &json!({ field: [text] }));
        }
    }
}
