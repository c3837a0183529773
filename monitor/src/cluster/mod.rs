//! The Kubernetes API: one client in a separate thread, and watches that maintain indexes. Other
//! threads read an index and never wait for the API.

pub mod names;
pub mod policies;
pub mod reviews;

use crate::{config::settings::KubernetesSettings, host};
use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::{
    Api, Client, Config, Resource,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt as _, watcher},
};
use names::{AddressIndex, KubernetesNames};
use policies::{ClusterPolicies, PolicyReviewer};
use reviews::{ReviewRequests, TokenReviews};
use serde::de::DeserializeOwned;
use std::{
    collections::HashSet,
    fmt::Debug,
    path::{Path, PathBuf},
    time::Duration,
};

/// This node's name, set by the DaemonSet.
pub const NODE_NAME: &str = "KEYTRAIL_NODE_NAME";
/// Set in every pod.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";
/// Interval between attempts to reach an API that was unavailable at start.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(5);

/// The data obtained from the API.
#[derive(Debug)]
pub struct KubernetesClient {
    pub names: KubernetesNames,
    pub addresses: AddressIndex,
    pub policies: ClusterPolicies,
    pub reviews: TokenReviews,
}

/// How to reach the API, and the name of this node.
#[derive(Clone, Debug)]
struct ApiLocation {
    kubeconfig: Option<PathBuf>,
    node: String,
}

/// This node's name, if the DaemonSet says it.
pub fn node_name() -> Option<String> {
    std::env::var(NODE_NAME)
        .ok()
        .filter(|name| !name.is_empty())
}

/// Starts the watches if an API is configured: in a pod, or with a kubeconfig.
pub fn start(
    settings: &KubernetesSettings,
    state_dir: &Path,
) -> std::io::Result<Option<KubernetesClient>> {
    if settings.kubeconfig.is_none() && std::env::var_os(IN_CLUSTER).is_none() {
        return Ok(None);
    }
    let node = node_name()
        .or_else(|| settings.node.clone())
        .unwrap_or_else(host::name);
    let place = ApiLocation {
        kubeconfig: settings.kubeconfig.clone(),
        node,
    };
    let known = names::SharedNameIndex::default();
    let policies = ClusterPolicies::restore(state_dir);
    let (reviews, requests) = reviews::queue();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (watched, held) = (known.clone(), policies.clone());
    std::thread::Builder::new()
        .name("kubernetes".to_owned())
        .spawn(move || runtime.block_on(watch(&place, &watched, &held, requests)))?;
    let (names, addresses) = KubernetesNames::new(&known);
    Ok(Some(KubernetesClient {
        names,
        addresses,
        policies,
        reviews,
    }))
}

/// Runs the watches; never returns.
async fn watch(
    place: &ApiLocation,
    known: &names::SharedNameIndex,
    policies: &ClusterPolicies,
    requests: ReviewRequests,
) {
    let client = loop {
        match client(place).await {
            Ok(client) => break client,
            Err(reason) => {
                tracing::warn!(%reason, "cannot reach the Kubernetes API; retrying");
                tokio::time::sleep(RECONNECT_INTERVAL).await;
            }
        }
    };
    let own = watcher::Config::default().fields(&format!("spec.nodeName={}", place.node));
    let all = watcher::Config::default;
    let mut reviewer = PolicyReviewer::new(policies.clone(), client.clone());
    let api = || client.clone();
    tokio::join!(
        follow::<Pod>("pods", Api::all(api()), own, known.clone()),
        follow::<Service>("services", Api::all(api()), all(), known.clone()),
        follow::<Node>("nodes", Api::all(api()), all(), known.clone()),
        reviewer.follow(all()),
        reviews::answer(requests, client.clone()),
    );
}

async fn client(place: &ApiLocation) -> Result<Client, String> {
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

/// An event of a watch.
#[derive(Debug)]
enum WatchEvent<'a, K> {
    /// An object exists, or has changed.
    There(&'a K),
    Gone(&'a K),
    /// Every existing object was listed, by uid.
    All(&'a HashSet<String>),
    /// The watch restarts, and why.
    Down(String),
}

/// Receives the events of a watch.
trait WatchHandler<K> {
    fn deliver(&mut self, event: WatchEvent<'_, K>);
}

async fn follow<K>(what: &str, api: Api<K>, config: watcher::Config, mut who: impl WatchHandler<K>)
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
                who.deliver(WatchEvent::There(&object));
            }
            Ok(watcher::Event::InitDone) => {
                if std::mem::take(&mut down) {
                    tracing::info!(what, "watching the Kubernetes API again");
                }
                who.deliver(WatchEvent::All(&listed));
            }
            Ok(watcher::Event::Apply(object)) => who.deliver(WatchEvent::There(&object)),
            Ok(watcher::Event::Delete(object)) => who.deliver(WatchEvent::Gone(&object)),
            Err(error) => {
                let reason = with_causes(&error);
                if std::mem::replace(&mut down, true) {
                    tracing::debug!(what, reason, "restarting a watch of the Kubernetes API");
                } else {
                    tracing::warn!(what, reason, "cannot watch the Kubernetes API; retrying");
                }
                who.deliver(WatchEvent::Down(reason));
            }
        }
    }
}

/// An error with its causes, each once: libraries repeat their causes.
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
