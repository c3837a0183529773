//! Whether a token presented to the agent belongs to an account of the cluster that may ask: the
//! API server is asked (TokenReview, then SubjectAccessReview), and its answers are remembered.
//!
//! Rights are those to a resource of Keytrail's own. The path itself would not do: every account may
//! `get` some paths of the API server, which begin as ours do.

use futures_util::{StreamExt as _, stream};
use governor::{
    DefaultDirectRateLimiter, Quota, RateLimiter, clock::DefaultClock,
    state::keyed::HashMapStateStore,
};
use hashlink::LruCache;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use ring::digest;
use std::{
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use zeroize::Zeroizing;

/// How long an answer is used.
const ACCEPTED_LIFETIME: Duration = Duration::from_secs(60);
const REFUSED_LIFETIME: Duration = Duration::from_secs(10);
/// How much longer one that accepts is used while there is no other: strangers who present tokens,
/// and an API server that is down, must not keep Prometheus away.
const UNCONFIRMED_LIFETIME: Duration = Duration::from_secs(600);
/// Reviews per second, and at once.
const REVIEWS_PER_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("it is not zero");
const REVIEWS_BURST: NonZeroU32 = NonZeroU32::new(100).expect("it is not zero");
/// The same for one address, so that a few of them cannot use up all.
const PEER_REVIEWS_PER_SECOND: NonZeroU32 = NonZeroU32::new(1).expect("it is not zero");
const PEER_REVIEWS_BURST: NonZeroU32 = NonZeroU32::new(10).expect("it is not zero");
/// Addresses that are remembered for that.
const PEERS_MAX: usize = 1_024;
/// Maximum answers remembered of each kind.
const ANSWERS_MAX: usize = 256;
/// Maximum reviews that wait for the API server, and that run at once.
const WAITING_MAX: usize = 16;
const CONCURRENT_MAX: usize = 4;
/// How long the API server may take for both reviews.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum length of a token in bytes.
const TOKEN_LEN_MAX: usize = 16 * 1024;
const GROUP: &str = "keytrail.dev";
const RESOURCE: &str = "agents";

/// What an account may want to read, as a subresource of `agents` in the group `keytrail.dev`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadRight {
    Metrics,
    Api,
}

impl ReadRight {
    fn subresource(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Api => "api",
        }
    }
}

type AnswerKey = [u8; digest::SHA256_OUTPUT_LEN];

/// Until when answers are used. Those that refuse, which strangers can cause, do not displace the
/// others.
#[derive(Debug)]
struct ReviewAnswers {
    accepted: LruCache<AnswerKey, Instant>,
    refused: LruCache<AnswerKey, Instant>,
}

/// A request to the thread of the Kubernetes API.
#[derive(Debug)]
struct ReviewRequest {
    token: Zeroizing<String>,
    right: ReadRight,
    answer: oneshot::Sender<bool>,
}

/// Asks for reviews.
#[derive(Clone, Debug)]
pub struct TokenReviews {
    requests: mpsc::Sender<ReviewRequest>,
    answers: Arc<Mutex<ReviewAnswers>>,
    rate: Arc<DefaultDirectRateLimiter>,
    peer_rate: Arc<PeerRateLimiter>,
    /// Maximum time that a caller waits for an answer.
    patience: Duration,
}

/// By address.
type PeerRateLimiter = RateLimiter<IpAddr, HashMapStateStore<IpAddr>, DefaultClock>;

/// Receives what is asked for.
#[derive(Debug)]
pub struct ReviewRequests(mpsc::Receiver<ReviewRequest>);

/// A queue for reviews.
pub fn queue() -> (TokenReviews, ReviewRequests) {
    let (requests, received) = mpsc::channel(WAITING_MAX);
    let reviews = TokenReviews {
        requests,
        answers: Arc::new(Mutex::new(ReviewAnswers {
            accepted: LruCache::new(ANSWERS_MAX),
            refused: LruCache::new(ANSWERS_MAX),
        })),
        rate: Arc::new(RateLimiter::direct(
            Quota::per_second(REVIEWS_PER_SECOND).allow_burst(REVIEWS_BURST),
        )),
        peer_rate: Arc::new(RateLimiter::hashmap(
            Quota::per_second(PEER_REVIEWS_PER_SECOND).allow_burst(PEER_REVIEWS_BURST),
        )),
        patience: TIMEOUT,
    };
    (reviews, ReviewRequests(received))
}

impl TokenReviews {
    /// Whether an account with this token has a right. While there is no answer in time, or too many
    /// are asked for, only accounts have it that were accepted shortly before.
    pub async fn grants(&self, token: &str, right: ReadRight, peer: IpAddr) -> bool {
        if !is_service_account_token(token) {
            return false;
        }
        let key = answer_key(token, right);
        if let Some(known) = self.remembered(&key) {
            return known;
        }
        let reviewed = if self.has_room(peer) {
            self.ask(token, right).await
        } else {
            None
        };
        match reviewed {
            Some(may) => {
                self.remember(key, may);
                may
            }
            None => self.was_accepted(&key),
        }
    }

    fn has_room(&self, peer: IpAddr) -> bool {
        if self.peer_rate.len() >= PEERS_MAX {
            self.peer_rate.retain_recent();
        }
        self.peer_rate.check_key(&peer).is_ok() && self.rate.check().is_ok()
    }

    async fn ask(&self, token: &str, right: ReadRight) -> Option<bool> {
        let (answer, answered) = oneshot::channel();
        let request = ReviewRequest {
            token: Zeroizing::new(token.to_owned()),
            right,
            answer,
        };
        self.requests.try_send(request).ok()?;
        timeout(self.patience, answered).await.ok()?.ok()
    }

    fn remember(&self, key: AnswerKey, may: bool) {
        let now = Instant::now();
        let mut answers = self.answers();
        if may {
            answers.accepted.insert(key, now + ACCEPTED_LIFETIME);
        } else {
            answers.accepted.remove(&key);
            answers.refused.insert(key, now + REFUSED_LIFETIME);
        }
    }

    fn remembered(&self, key: &AnswerKey) -> Option<bool> {
        let now = Instant::now();
        let mut answers = self.answers();
        let accepted = answers.accepted.get(key).is_some_and(|until| now < *until);
        let refused = answers.refused.get(key).is_some_and(|until| now < *until);
        (accepted || refused).then_some(accepted)
    }

    fn was_accepted(&self, key: &AnswerKey) -> bool {
        let now = Instant::now();
        let until = self.answers().accepted.get(key).copied();
        until.is_some_and(|until| now < until + UNCONFIRMED_LIFETIME)
    }

    /// Every entry is a single value: a panic elsewhere cannot leave one half-written.
    fn answers(&self) -> MutexGuard<'_, ReviewAnswers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether it has the form of one: a JWT. Nothing else is worth a review.
fn is_service_account_token(token: &str) -> bool {
    let is_part = |part: &str| {
        let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        !part.is_empty() && part.bytes().all(is_digit)
    };
    token.len() <= TOKEN_LEN_MAX && token.split('.').count() == 3 && token.split('.').all(is_part)
}

/// The token itself is not remembered.
fn answer_key(token: &str, right: ReadRight) -> AnswerKey {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(right.subresource().as_bytes());
    hash.update(&[0]);
    hash.update(token.as_bytes());
    let mut key = [0; digest::SHA256_OUTPUT_LEN];
    key.copy_from_slice(hash.finish().as_ref());
    key
}

/// Answers requests; never returns.
pub(super) async fn answer(requests: ReviewRequests, client: Client) {
    let mut received = requests.0;
    let failing = &AtomicBool::new(false);
    stream::poll_fn(move |context| received.poll_recv(context))
        .for_each_concurrent(CONCURRENT_MAX, |request| {
            let client = client.clone();
            async move {
                let ReviewRequest {
                    token,
                    right,
                    answer,
                } = request;
                if answer.is_closed() {
                    return;
                }
                let reason = match timeout(TIMEOUT, review(&client, token, right)).await {
                    Ok(Ok(may)) => {
                        failing.store(false, Ordering::Relaxed);
                        // Nobody waits if it took too long.
                        let _ = answer.send(may);
                        return;
                    }
                    // Not an answer that should be remembered.
                    Ok(Err(error)) => super::with_causes(&error),
                    Err(_) => "no answer in time".to_owned(),
                };
                // Once per outage: strangers can cause reviews.
                if !failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        reason,
                        "the Kubernetes API cannot review tokens; allow tokenreviews and subjectaccessreviews, or scrape with the agent's token"
                    );
                }
            }
        })
        .await;
}

async fn review(
    client: &Client,
    token: Zeroizing<String>,
    right: ReadRight,
) -> Result<bool, kube::Error> {
    let reviewed = Api::<TokenReview>::all(client.clone())
        .create(
            &PostParams::default(),
            &TokenReview {
                spec: TokenReviewSpec {
                    token: Some((*token).clone()),
                    ..TokenReviewSpec::default()
                },
                ..TokenReview::default()
            },
        )
        .await?;
    let status = reviewed.status.unwrap_or_default();
    let Some(user) = status.user.filter(|_| status.authenticated == Some(true)) else {
        return Ok(false);
    };
    let access = Api::<SubjectAccessReview>::all(client.clone())
        .create(&PostParams::default(), &access_review(user, right))
        .await?;
    Ok(access.status.is_some_and(|status| status.allowed))
}

fn access_review(user: UserInfo, right: ReadRight) -> SubjectAccessReview {
    SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: user.username,
            groups: user.groups,
            uid: user.uid,
            extra: user.extra,
            resource_attributes: Some(ResourceAttributes {
                group: Some(GROUP.to_owned()),
                resource: Some(RESOURCE.to_owned()),
                subresource: Some(right.subresource().to_owned()),
                verb: Some("get".to_owned()),
                ..ResourceAttributes::default()
            }),
            non_resource_attributes: None,
        },
        ..SubjectAccessReview::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMETHEUS: &str = "FAKE.of.prometheus";
    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn stranger(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a63_0000 + number).into()
    }

    /// Answers as the API server would; returns how often it was asked.
    fn api_server(mut requests: ReviewRequests) -> tokio::task::JoinHandle<u32> {
        tokio::spawn(async move {
            let mut asked = 0;
            while let Some(request) = requests.0.recv().await {
                asked += 1;
                let may =
                    request.token.as_str() == PROMETHEUS && request.right == ReadRight::Metrics;
                request.answer.send(may).expect("awaited");
            }
            asked
        })
    }

    #[tokio::test]
    async fn an_answer_is_remembered_for_its_token_and_right_only() {
        let (reviews, requests) = queue();
        let asked = api_server(requests);
        for _ in 0..3 {
            assert!(reviews.grants(PROMETHEUS, ReadRight::Metrics, PEER).await);
            assert!(!reviews.grants(PROMETHEUS, ReadRight::Api, PEER).await);
            assert!(
                !reviews
                    .grants("FAKE.of.a-pod", ReadRight::Metrics, PEER)
                    .await
            );
        }
        // What is no token of an account is not even asked for.
        for text in [
            "",
            "FAKE",
            "FAKE.a",
            "FAKE..b",
            "FAKE.a.b.c",
            "FAKE.a.b c",
            &"x".repeat(20_000),
        ] {
            assert!(
                !reviews.grants(text, ReadRight::Metrics, PEER).await,
                "{text}"
            );
        }
        drop(reviews);
        assert_eq!(asked.await.expect("ends"), 3, "each once");
    }

    #[tokio::test]
    async fn an_api_server_that_does_not_answer_refuses_and_is_asked_again() {
        let (mut reviews, mut requests) = queue();
        reviews.patience = Duration::from_millis(10);
        for _ in 0..2 {
            assert!(!reviews.grants(PROMETHEUS, ReadRight::Metrics, PEER).await);
        }
        assert!(requests.0.recv().await.is_some() && requests.0.recv().await.is_some());
    }

    #[tokio::test]
    async fn strangers_who_present_tokens_keep_no_account_away() {
        let (reviews, requests) = queue();
        let asked = api_server(requests);
        for number in 0..2_000 {
            let token = format!("FAKE.of.stranger-{number}");
            let peer = stranger(number % 5);
            assert!(!reviews.grants(&token, ReadRight::Metrics, peer).await);
        }
        // One that was never seen before.
        assert!(reviews.grants(PROMETHEUS, ReadRight::Metrics, PEER).await);
        // Even if all reviews are used up, one that was accepted a minute ago goes on.
        let key = answer_key(PROMETHEUS, ReadRight::Metrics);
        reviews.answers().accepted.insert(key, Instant::now());
        for number in 0..2_000 {
            let token = format!("FAKE.of.many-{number}");
            reviews
                .grants(&token, ReadRight::Metrics, stranger(number))
                .await;
        }
        assert!(reviews.grants(PROMETHEUS, ReadRight::Metrics, PEER).await);
        drop(reviews);
        let asked = asked.await.expect("ends");
        assert!(asked < 300, "{asked} reviews");
    }
}
