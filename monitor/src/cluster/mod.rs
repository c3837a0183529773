//! The Kubernetes API: one client, in a thread of its own, and the watches that keep small memories up to
//! date. Whoever needs something reads a memory, and never waits for the API.

pub mod names;
pub mod policies;

use crate::policy::document;
use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::{
    Api, Client, Config, Resource,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt as _, watcher},
};
use names::{Addresses, Kubernetes};
use policies::{Policies, Reviewer};
use serde::de::DeserializeOwned;
use std::{
    collections::HashSet,
    fmt::Debug,
    path::{Path, PathBuf},
    time::Duration,
};

/// This node's name, as the DaemonSet gives it.
pub const NODE_NAME: &str = "KEYTRAIL_NODE_NAME";
/// Set in every pod.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";
/// Between two attempts to reach an API that was not to be had at the start.
const AGAIN: Duration = Duration::from_secs(5);

/// What is known from the API.
#[derive(Debug)]
pub struct Cluster {
    pub names: Kubernetes,
    pub addresses: Addresses,
    pub policies: Policies,
}

/// Where the API is, and which node this is.
#[derive(Clone, Debug)]
struct Place {
    kubeconfig: Option<PathBuf>,
    node: String,
}

/// Begins to watch, where there is an API to be asked: in a pod, or with a kubeconfig.
pub fn start(
    document: &document::Kubernetes,
    state_dir: &Path,
) -> std::io::Result<Option<Cluster>> {
    if document.kubeconfig.is_none() && std::env::var_os(IN_CLUSTER).is_none() {
        return Ok(None);
    }
    let node = std::env::var(NODE_NAME)
        .ok()
        .filter(|name| !name.is_empty())
        .or_else(|| document.node.clone())
        .unwrap_or_else(|| {
            let name = rustix::system::uname();
            name.nodename().to_string_lossy().to_lowercase()
        });
    let place = Place {
        kubeconfig: document.kubeconfig.clone(),
        node,
    };
    let known = names::Shared::default();
    let policies = Policies::restore(state_dir);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (watched, held) = (known.clone(), policies.clone());
    std::thread::Builder::new()
        .name("kubernetes".to_owned())
        .spawn(move || runtime.block_on(watch(&place, &watched, &held)))?;
    let (names, addresses) = Kubernetes::new(&known);
    Ok(Some(Cluster {
        names,
        addresses,
        policies,
    }))
}

/// Watches for good.
async fn watch(place: &Place, known: &names::Shared, policies: &Policies) {
    let client = loop {
        match client(place).await {
            Ok(client) => break client,
            Err(reason) => {
                tracing::warn!(%reason, "the Kubernetes API cannot be asked; it is tried again");
                tokio::time::sleep(AGAIN).await;
            }
        }
    };
    let own = watcher::Config::default().fields(&format!("spec.nodeName={}", place.node));
    let all = watcher::Config::default;
    let mut reviewer = Reviewer::new(policies.clone(), client.clone());
    let api = || client.clone();
    tokio::join!(
        follow::<Pod>("pods", Api::all(api()), own, known.clone()),
        follow::<Service>("services", Api::all(api()), all(), known.clone()),
        follow::<Node>("nodes", Api::all(api()), all(), known.clone()),
        reviewer.follow(all()),
    );
}

async fn client(place: &Place) -> Result<Client, String> {
    let config = match &place.kubeconfig {
        Some(path) => {
            let text = |error: &dyn std::error::Error| format!("{}: {error}", path.display());
            let kubeconfig = Kubeconfig::read_from(path).map_err(|error| text(&error))?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .map_err(|error| text(&error))?
        }
        None => Config::incluster().map_err(|error| error.to_string())?,
    };
    Client::try_from(config).map_err(|error| error.to_string())
}

/// What a watch tells.
#[derive(Debug)]
enum Told<'a, K> {
    /// An object is there, or has changed.
    There(&'a K),
    Gone(&'a K),
    /// Everything that there is has been told, by uid.
    All(&'a HashSet<String>),
    /// The watch begins anew, and why.
    Down(String),
}

/// Whoever wants to know.
trait Watched<K> {
    fn told(&mut self, told: Told<'_, K>);
}

async fn follow<K>(what: &str, api: Api<K>, config: watcher::Config, mut who: impl Watched<K>)
where
    K: Resource + Clone + Debug + Send + DeserializeOwned + 'static,
{
    let events = watcher(api, config).default_backoff();
    pin_mut!(events);
    let mut listed = HashSet::new();
    let mut down = false;
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(object)) => {
                listed.extend(object.meta().uid.clone());
                who.told(Told::There(&object));
            }
            Ok(watcher::Event::InitDone) => {
                if std::mem::take(&mut down) {
                    tracing::info!(what, "the Kubernetes API is watched again");
                }
                who.told(Told::All(&listed));
            }
            Ok(watcher::Event::Apply(object)) => who.told(Told::There(&object)),
            Ok(watcher::Event::Delete(object)) => who.told(Told::Gone(&object)),
            Err(error) => {
                let reason = with_causes(&error);
                if std::mem::replace(&mut down, true) {
                    tracing::debug!(what, reason, "a watch of the Kubernetes API begins anew");
                } else {
                    tracing::warn!(
                        what,
                        reason,
                        "the Kubernetes API cannot be watched; it is tried again"
                    );
                }
                who.told(Told::Down(reason));
            }
        }
    }
}

/// An error with what caused it, each once: libraries repeat their causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = inner.source();
    }
    text
}
