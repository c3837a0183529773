//! Expectations in the cluster: the custom resource `CredentialPolicy`.
//!
//! Every agent reads all of them. What one of them says is taken where it can be understood; the last
//! that could stays where it cannot, and the resource's status says why. All agents come to the same
//! status, so that only the first has to write it. What holds is kept in the state directory: an agent that
//! starts while the API is away expects what it expected before.

use super::{Told, Watched, follow};
use crate::{credential::catalog::Catalog, policy::document::Document};
use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams},
    runtime::watcher,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

const GROUP: &str = "keytrail.dev";
const VERSION: &str = "v1alpha1";
const KIND: &str = "CredentialPolicy";
const PLURAL: &str = "credentialpolicies";
/// Where what holds is kept, in the state directory: specs by name.
const FILE: &str = "policies.json";
/// The one condition of a status.
const ACCEPTED: &str = "Accepted";

/// The expectations that the cluster has.
#[derive(Clone, Debug, Default)]
pub struct Policies(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    /// Spec and what it says by name; ordered, so that every agent has them in one order.
    accepted: BTreeMap<String, (Value, Document)>,
    /// Names of those that are not accepted as they are now.
    refused: BTreeSet<String>,
    version: u64,
    /// Where it is kept, if anywhere.
    file: Option<PathBuf>,
}

/// What holds now.
#[derive(Debug)]
pub struct Expected {
    /// Changes whenever something does.
    pub version: u64,
    pub documents: Vec<Document>,
    /// Resources that are not accepted as they are now.
    pub refused: usize,
}

impl Policies {
    /// With what held when the agent ran last.
    pub fn restore(state_dir: &Path) -> Self {
        let file = state_dir.join(FILE);
        let kept = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(file = %file.display(), %error, "what the cluster expected before is not readable; it is asked anew");
                BTreeMap::new()
            }),
            Err(_) => BTreeMap::<String, Value>::new(),
        };
        let accepted: BTreeMap<_, _> = kept
            .into_iter()
            .filter_map(|(name, spec)| {
                let document = judge(&name, &spec).ok()?;
                Some((name, (spec, document)))
            })
            .collect();
        Self(Arc::new(Mutex::new(Held {
            version: u64::from(!accepted.is_empty()),
            accepted,
            refused: BTreeSet::new(),
            file: Some(file),
        })))
    }

    /// What holds now, where it is not what held at `version`.
    pub fn since(&self, version: u64) -> Option<Expected> {
        let held = self.lock();
        (held.version != version).then(|| Expected {
            version: held.version,
            documents: held
                .accepted
                .values()
                .map(|(_, document)| document.clone())
                .collect(),
            refused: held.refused.len(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, name: &str, spec: &Value, judged: &Result<Document, String>) {
        self.change(|held| match judged {
            Ok(document) => {
                let same = held.accepted.get(name).is_some_and(|(old, _)| old == spec);
                let entry = (spec.clone(), document.clone());
                held.accepted.insert(name.to_owned(), entry);
                held.refused.remove(name) || !same
            }
            Err(_) => held.refused.insert(name.to_owned()),
        });
    }

    fn keep(&self, is_there: impl Fn(&str) -> bool) {
        self.change(|held| {
            let before = (held.accepted.len(), held.refused.len());
            held.accepted.retain(|name, _| is_there(name));
            held.refused.retain(|name| is_there(name));
            before != (held.accepted.len(), held.refused.len())
        });
    }

    /// Says to the pipeline, and keeps, what has changed.
    fn change(&self, make: impl FnOnce(&mut Held) -> bool) {
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
        // The pipeline looks every second, and is not to wait for a disk.
        drop(held);
        let new = file.with_extension("new");
        let written = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut out| out.write_all(json!(specs).to_string().as_bytes()))
            .and_then(|()| fs::rename(&new, &file));
        if let Err(error) = written {
            tracing::warn!(file = %file.display(), %error, "what the cluster expects is not kept for the next start");
        }
    }
}

/// Reads the resources, and writes what came of them.
#[derive(Debug)]
pub struct Reviewer {
    policies: Policies,
    api: Api<DynamicObject>,
}

impl Reviewer {
    pub fn new(policies: Policies, client: Client) -> Self {
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, KIND), PLURAL);
        Self {
            policies,
            api: Api::all_with(client, &resource),
        }
    }

    /// For good.
    pub async fn follow(&mut self, config: watcher::Config) {
        let (tell, told) = unbounded_channel();
        let memory = Memory {
            policies: self.policies.clone(),
            names: BTreeMap::new(),
            tell,
        };
        tokio::join!(
            follow(PLURAL, self.api.clone(), config, memory),
            self.write(told)
        );
    }

    async fn write(&self, mut told: UnboundedReceiver<(String, Value)>) {
        while let Some((name, status)) = told.recv().await {
            let patch = Patch::Merge(json!({ "status": status }));
            let written = self
                .api
                .patch_status(&name, &PatchParams::default(), &patch)
                .await;
            if let Err(error) = written {
                tracing::warn!(policy = name, %error, "the status of a CredentialPolicy is not written");
            }
        }
    }
}

/// What is remembered of the resources, and where statuses go to be written.
#[derive(Debug)]
struct Memory {
    policies: Policies,
    /// Names by uid.
    names: BTreeMap<String, String>,
    tell: UnboundedSender<(String, Value)>,
}

impl Watched<DynamicObject> for Memory {
    fn told(&mut self, told: Told<'_, DynamicObject>) {
        match told {
            Told::There(object) => {
                let (Some(name), Some(uid)) = (&object.metadata.name, &object.metadata.uid) else {
                    return;
                };
                let spec = object.data.get("spec").unwrap_or(&Value::Null);
                let judged = judge(name, spec);
                self.names.insert(uid.clone(), name.clone());
                self.policies.put(name, spec, &judged);
                if let Err(reason) = &judged {
                    tracing::error!(policy = name, %reason, "a CredentialPolicy is not accepted; what it said before stays");
                }
                let generation = object.metadata.generation.unwrap_or(0);
                let before = object.data.get("status");
                if let Some(status) = status(before, generation, &judged, Timestamp::now()) {
                    // The other end is gone only with the agent.
                    let _ = self.tell.send((name.clone(), status));
                }
            }
            Told::Gone(object) => {
                if let Some(name) = &object.metadata.name {
                    self.policies.keep(|there| there != name);
                }
            }
            Told::All(uids) => self.keep(uids),
            Told::Down(_) => {}
        }
    }
}

impl Memory {
    fn keep(&mut self, uids: &HashSet<String>) {
        self.names.retain(|uid, _| uids.contains(uid));
        let there: HashSet<&String> = self.names.values().collect();
        self.policies.keep(|name| there.contains(&name.to_owned()));
    }
}

/// What a resource says, or what is wrong with it.
fn judge(name: &str, spec: &Value) -> Result<Document, String> {
    // Settings of an agent are not the cluster's to change.
    const FIELDS: [&str; 2] = ["credentials", "authenticators"];
    let fields = spec.as_object().ok_or("it has no spec")?;
    if let Some(field) = fields
        .keys()
        .find(|field| !FIELDS.contains(&field.as_str()))
    {
        return Err(format!("spec.{field} is none of {}", FIELDS.join(", ")));
    }
    let place = Path::new("spec");
    let document =
        Document::parse(place, &spec.to_string()).map_err(|error| plain(&error.to_string()))?;
    let (files, variables) = document.places();
    Catalog::new("", &files, &variables).map_err(|error| format!("{name}: {error}"))?;
    Ok(document)
}

/// Without line and column: those of the text that it was made into say nothing.
fn plain(error: &str) -> String {
    let reason = error.splitn(4, ':').nth(3).unwrap_or(error);
    reason.trim().to_owned()
}

/// The status that a resource is to have; `None` where it has it.
fn status(
    before: Option<&Value>,
    generation: i64,
    judged: &Result<Document, String>,
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
        .find(|condition| condition["type"] == ACCEPTED);
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
            "type": ACCEPTED,
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
    fn what_is_wrong_is_said_and_does_not_replace_what_was_right() {
        let policies = Policies::default();
        let (tell, mut told) = unbounded_channel();
        let mut memory = Memory {
            policies: policies.clone(),
            names: BTreeMap::new(),
            tell,
        };
        memory.told(Told::There(&object("a", &good(), None)));
        let held = policies.since(0).expect("it has changed");
        assert_eq!((held.documents.len(), held.refused), (1, 0));
        let (name, status) = told.try_recv().expect("a status");
        assert_eq!(name, "a");
        assert_eq!(status["conditions"][0]["status"], "True");
        assert_eq!(status["credentials"], 1);
        // The same again needs no writing.
        memory.told(Told::There(&object("a", &good(), Some(&status))));
        assert!(told.try_recv().is_err());
        for wrong in [
            json!({ "credentials": [{ "name": "x", "match": { "file": "/a" }, "readerz": [] }] }),
            json!({ "credentials": [{ "name": "x", "match": { "file": "/a/[" } }] }),
            json!({ "state_dir": "/etc" }),
            Value::Null,
        ] {
            memory.told(Told::There(&object("a", &wrong, Some(&status))));
            let held = policies.since(0).expect("it has changed");
            assert_eq!((held.documents.len(), held.refused), (1, 1), "{wrong}");
            let (_, status) = told.try_recv().expect("a status");
            let condition = &status["conditions"][0];
            assert_eq!(condition["status"], "False", "{wrong}");
            assert_ne!(condition["message"], "", "{wrong}");
        }
        memory.told(Told::Gone(&object("a", &good(), None)));
        let held = policies.since(0).expect("it has changed");
        assert_eq!((held.documents.len(), held.refused), (0, 0));
        assert!(policies.since(held.version).is_none());
    }

    #[test]
    fn what_held_before_holds_until_the_cluster_says_otherwise() {
        let state = tempfile::tempdir().expect("a directory");
        let remember = |policies: &Policies| Memory {
            policies: policies.clone(),
            names: BTreeMap::new(),
            tell: unbounded_channel().0,
        };
        let first = Policies::restore(state.path());
        assert!(first.since(0).is_none());
        let mut memory = remember(&first);
        memory.told(Told::There(&object("a", &good(), None)));
        memory.told(Told::There(&object("b", &good(), None)));
        let version = first.since(0).expect("it has changed").version;
        // A status that was written is no change of what is expected.
        memory.told(Told::There(&object("b", &good(), None)));
        assert!(first.since(version).is_none());
        let second = Policies::restore(state.path());
        let held = second.since(0).expect("what was kept");
        assert_eq!(held.documents.len(), 2);
        let mut memory = remember(&second);
        memory.told(Told::There(&object("b", &good(), None)));
        memory.told(Told::All(&HashSet::from(["uid-b".to_owned()])));
        let third = Policies::restore(state.path());
        assert_eq!(third.since(0).expect("what was kept").documents.len(), 1);
        fs::write(state.path().join(FILE), "[1,").expect("a file");
        assert!(Policies::restore(state.path()).since(0).is_none());
    }

    #[test]
    fn what_went_while_nobody_watched_is_gone() {
        let policies = Policies::default();
        let (tell, _told) = unbounded_channel();
        let mut memory = Memory {
            policies: policies.clone(),
            names: BTreeMap::new(),
            tell,
        };
        memory.told(Told::There(&object("a", &good(), None)));
        memory.told(Told::There(&object("b", &good(), None)));
        memory.told(Told::All(&HashSet::from(["uid-b".to_owned()])));
        let held = policies.since(0).expect("it has changed");
        assert_eq!(held.documents.len(), 1);
    }

    proptest! {
        #[test]
        fn any_text_is_judged(text in "\\PC{0,40}", field in "[a-z]{0,12}") {
            let _ = judge("x", &json!({ "credentials": text }));
            let _ = judge("x", &json!({ field: [text] }));
        }
    }
}
