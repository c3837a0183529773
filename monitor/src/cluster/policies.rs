//! Expectations in the cluster: the custom resource `CredentialPolicy`.
//!
//! Every agent reads all of them. A resource that cannot be parsed, or for which there is no room
//! beside the others, keeps its last accepted version in force, and its status says why. All agents
//! compute the same status, from the resources alone, so only the first one has to write it. Accepted
//! resources are kept in the state directory: an agent that starts while the API is unavailable uses
//! them.

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
    policy::expectation::{Expectations, limits::PolicySize},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
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
    /// By name, so that every agent uses the same order.
    accepted: BTreeMap<String, AcceptedPolicy>,
    /// Number of resources whose current version is not accepted.
    refused: usize,
    version: u64,
    /// Where they are stored, if anywhere.
    file: Option<PathBuf>,
}

/// A spec that is in force, and its parsed form.
#[derive(Clone, Debug)]
struct AcceptedPolicy {
    spec: Value,
    expectations: Arc<Expectations>,
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
                let expectations = Arc::new(parse_policy(&name, &spec).ok()?);
                Some((name, AcceptedPolicy { spec, expectations }))
            })
            .collect();
        Self(Arc::new(Mutex::new(PolicyState {
            version: u64::from(!accepted.is_empty()),
            accepted,
            refused: 0,
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
                .map(|policy| (*policy.expectations).clone())
                .collect(),
            refused: held.refused,
        })
    }

    fn lock(&self) -> MutexGuard<'_, PolicyState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes what was accepted to the pipeline, and stores it. Of a resource whose current version
    /// is refused, the last accepted version stays, as far as there is room.
    fn replace(
        &self,
        mut accepted: BTreeMap<String, AcceptedPolicy>,
        mut size: PolicySize,
        refused: &[&String],
    ) {
        let mut held = self.lock();
        for name in refused {
            let Some(previous) = held.accepted.get(*name) else {
                continue;
            };
            match size.plus(&previous.expectations) {
                Ok(larger) => {
                    size = larger;
                    accepted.insert((*name).clone(), previous.clone());
                }
                Err(error) => {
                    tracing::error!(policy = name.as_str(), %error, "the previous version of a CredentialPolicy is no longer in force");
                }
            }
        }
        let specs = |policies: &BTreeMap<String, AcceptedPolicy>| {
            let specs = policies.iter();
            specs
                .map(|(name, policy)| (name.clone(), policy.spec.clone()))
                .collect::<BTreeMap<String, Value>>()
        };
        let (before, after) = (specs(&held.accepted), specs(&accepted));
        if before == after && held.refused == refused.len() {
            return;
        }
        (held.accepted, held.refused) = (accepted, refused.len());
        held.version += 1;
        let Some(file) = held.file.clone() else {
            return;
        };
        // The pipeline reads every second, and must not wait for a disk.
        drop(held);
        if let Err(error) = private_file::write(&file, &json!(after).to_string(), None) {
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
        let memory = PolicyWatch::new(self.policies.clone(), status_queue);
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

/// A resource as the cluster has it.
#[derive(Debug)]
struct KnownPolicy {
    uid: String,
    created: Option<Timestamp>,
    generation: i64,
    spec: Value,
    parsed: Result<Arc<Expectations>, String>,
    /// As the cluster has it, or as it was last sent there.
    status: Option<Value>,
    /// Why it was last refused.
    refused: Option<String>,
}

impl KnownPolicy {
    /// What is in force must not be displaced by changes of others, on any agent: the status says what
    /// is. Among the rest, the oldest come first.
    fn precedence<'a>(&self, name: &'a str) -> (bool, Option<Timestamp>, &'a str) {
        let condition = self.status.as_ref().and_then(accepted_condition);
        let is_accepted = condition.is_some_and(|condition| {
            condition["status"] == "True" && condition["observedGeneration"] == self.generation
        });
        (!is_accepted, self.created, name)
    }
}

/// The known resources by name, and the queue of statuses to write.
#[derive(Debug)]
struct PolicyWatch {
    policies: ClusterPolicies,
    known: BTreeMap<String, KnownPolicy>,
    /// All resources are known: until then what was stored stays in force.
    listed: bool,
    status_queue: UnboundedSender<(String, Value)>,
}

impl WatchHandler<DynamicObject> for PolicyWatch {
    fn deliver(&mut self, event: WatchEvent<'_, DynamicObject>) {
        match event {
            WatchEvent::There(object) => self.remember(object),
            WatchEvent::Gone(object) => {
                let (name, uid) = (&object.metadata.name, &object.metadata.uid);
                self.known.retain(|known, policy| {
                    Some(known) != name.as_ref() || Some(&policy.uid) != uid.as_ref()
                });
            }
            WatchEvent::All(uids) => {
                self.known.retain(|_, policy| uids.contains(&policy.uid));
                self.listed = true;
            }
            WatchEvent::Down(_) => return,
        }
        if self.listed {
            self.judge();
        }
    }
}

impl PolicyWatch {
    fn new(policies: ClusterPolicies, status_queue: UnboundedSender<(String, Value)>) -> Self {
        Self {
            policies,
            known: BTreeMap::new(),
            listed: false,
            status_queue,
        }
    }

    fn remember(&mut self, object: &DynamicObject) {
        let (Some(name), Some(uid)) = (&object.metadata.name, &object.metadata.uid) else {
            return;
        };
        let spec = object.data.get("spec").unwrap_or(&Value::Null);
        let before = self.known.remove(name);
        let created = object.metadata.creation_timestamp.as_ref();
        let policy = KnownPolicy {
            uid: uid.clone(),
            created: created.map(|time| time.0),
            generation: object.metadata.generation.unwrap_or(0),
            spec: spec.clone(),
            parsed: parse_policy(name, spec).map(Arc::new),
            status: object.data.get("status").cloned(),
            refused: before.and_then(|before| before.refused),
        };
        self.known.insert(name.clone(), policy);
    }

    /// Decides which resources are in force, and tells their statuses.
    fn judge(&mut self) {
        let mut ordered: Vec<(&String, &mut KnownPolicy)> = self.known.iter_mut().collect();
        ordered.sort_by(|(one, first), (other, second)| {
            first.precedence(one).cmp(&second.precedence(other))
        });
        let mut size = PolicySize::default();
        let (mut accepted, mut refused) = (BTreeMap::new(), Vec::new());
        for (name, policy) in ordered {
            let judged = policy.parsed.clone().and_then(|expectations| {
                size = size
                    .plus(&expectations)
                    .map_err(|error| format!("together with the other policies: {error}"))?;
                Ok(expectations)
            });
            let status = status_update(
                policy.status.as_ref(),
                policy.generation,
                &judged,
                Timestamp::now(),
            );
            match judged {
                Ok(expectations) => {
                    policy.refused = None;
                    let spec = policy.spec.clone();
                    accepted.insert(name.clone(), AcceptedPolicy { spec, expectations });
                }
                Err(reason) => {
                    if policy.refused.as_ref() != Some(&reason) {
                        tracing::error!(policy = name.as_str(), %reason, "CredentialPolicy rejected; its previous version stays in force");
                    }
                    policy.refused = Some(reason);
                    refused.push(name);
                }
            }
            if let Some(status) = status {
                policy.status = Some(status.clone());
                // The receiver is dropped only with the agent.
                let _ = self.status_queue.send((name.clone(), status));
            }
        }
        self.policies.replace(accepted, size, &refused);
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

/// The condition of a status that says whether the resource is accepted.
fn accepted_condition(status: &Value) -> Option<&Value> {
    let conditions = status.get("conditions")?.as_array()?;
    conditions
        .iter()
        .find(|condition| condition["type"] == ACCEPTED_CONDITION)
}

/// The status that a resource should have; `None` if it has it already.
fn status_update(
    before: Option<&Value>,
    generation: i64,
    judged: &Result<Arc<Expectations>, String>,
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
    let condition = before.and_then(accepted_condition);
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
mod tests;
