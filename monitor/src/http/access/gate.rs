//! The checks applied to every request: the host name, who asks, and how often.

use super::{link::PageSessions, token::ApiToken};
use crate::{
    cluster::reviews::{ReadRight, TokenReviews},
    http::problem::problem,
};
use axum::{
    Json,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use jiff::Timestamp;
use serde::Serialize;
use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
};

/// Requests per second of those who presented the token, and burst size.
const ANSWERED_PER_SECOND: NonZeroU32 = NonZeroU32::new(50).expect("it is not zero");
/// Anonymous scrapes on loopback per second: each copies up to a megabyte.
const ANONYMOUS_PER_SECOND: NonZeroU32 = NonZeroU32::new(100).expect("it is not zero");
/// Refused requests per second; faster ones are told to wait.
const REFUSED_PER_SECOND: NonZeroU32 = NonZeroU32::new(10).expect("it is not zero");
const BURST: NonZeroU32 = NonZeroU32::new(100).expect("it is not zero");
/// Maximum length of a code in bytes; the server does not read more.
pub const CODE_LEN_MAX: usize = 256;

/// Who may ask; shared by all listeners.
#[derive(Debug)]
pub struct AccessGate {
    token: ApiToken,
    sessions: PageSessions,
    /// Accounts of the cluster, on addresses other than loopback.
    reviews: Option<TokenReviews>,
    // Each kind of caller has a limit of its own, so that none can use up that of another.
    answered: DefaultDirectRateLimiter,
    anonymous: DefaultDirectRateLimiter,
    refused: DefaultDirectRateLimiter,
}

impl AccessGate {
    /// `instance` is of this run of the agent.
    pub fn new(token: ApiToken, reviews: Option<TokenReviews>, instance: String) -> Self {
        let limiter = |rate| RateLimiter::direct(Quota::per_second(rate).allow_burst(BURST));
        Self {
            token,
            sessions: PageSessions::new(Timestamp::now(), instance),
            reviews,
            answered: limiter(ANSWERED_PER_SECOND),
            anonymous: limiter(ANONYMOUS_PER_SECOND),
            refused: limiter(REFUSED_PER_SECOND),
        }
    }

    fn refuse(&self) -> Response {
        if self.refused.check().is_err() {
            return too_many();
        }
        let how = [(header::WWW_AUTHENTICATE, "Bearer")];
        let refused = problem(StatusCode::UNAUTHORIZED, "missing or invalid bearer token");
        (how, refused).into_response()
    }
}

fn too_many() -> Response {
    let again = [(header::RETRY_AFTER, "1")];
    let refused = problem(StatusCode::TOO_MANY_REQUESTS, "too many requests");
    (again, refused).into_response()
}

/// The rules of one listener.
#[derive(Clone, Debug)]
pub struct ListenerGate {
    pub access: Arc<AccessGate>,
    /// Whether other machines can reach it.
    pub network: bool,
    /// As in version 0.1: nothing needs the token here.
    pub open: bool,
    /// Whether it speaks TLS.
    pub encrypted: bool,
}

/// Who sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    /// Presented the token, a session, or a token of an account that may ask.
    Known,
    /// Presented nothing.
    Anonymous,
    /// Presented something else.
    Wrong,
}

/// How much metrics say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsDetail {
    Full,
    /// Without the values of `credential`.
    Redacted,
}

impl ListenerGate {
    async fn caller(&self, headers: &HeaderMap, right: ReadRight, peer: SocketAddr) -> Caller {
        if !headers.contains_key(header::AUTHORIZATION) {
            return Caller::Anonymous;
        }
        let Some(token) = bearer(headers) else {
            return Caller::Wrong;
        };
        let access = &self.access;
        if access.token.is(token) || access.sessions.knows(token, Timestamp::now()) {
            return Caller::Known;
        }
        match &access.reviews {
            Some(reviews)
                if self.network && reviews.grants(token, right, peer.ip().to_canonical()).await =>
            {
                Caller::Known
            }
            _ => Caller::Wrong,
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

/// Another site's page can make a browser send requests to loopback under a name of its own: such
/// names are rejected.
pub async fn names(
    State(gate): State<ListenerGate>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    if !gate.network && !gate.encrypted && !is_local(&headers) {
        return problem(
            StatusCode::FORBIDDEN,
            "use a loopback host name, or configure `tls`",
        );
    }
    next.run(request).await
}

/// Protects answers about credentials.
pub async fn questions(
    State(gate): State<ListenerGate>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let access = &gate.access;
    let caller = gate.caller(request.headers(), ReadRight::Api, peer).await;
    if caller != Caller::Known && !gate.open {
        return access.refuse();
    }
    if access.answered.check().is_err() {
        return too_many();
    }
    next.run(request).await
}

/// Decides how much metrics say.
pub async fn metrics(
    State(gate): State<ListenerGate>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    let access = &gate.access;
    let detail = match gate
        .caller(request.headers(), ReadRight::Metrics, peer)
        .await
    {
        Caller::Known => MetricsDetail::Full,
        _ if gate.open => MetricsDetail::Full,
        Caller::Anonymous if !gate.network => MetricsDetail::Redacted,
        // A wrong token on loopback is a mistake that somebody wants to know of.
        Caller::Anonymous | Caller::Wrong => return access.refuse(),
    };
    if detail == MetricsDetail::Redacted && access.anonymous.check().is_err() {
        return too_many();
    }
    request.extensions_mut().insert(detail);
    next.run(request).await
}

/// A session of the page.
#[derive(Serialize)]
struct SessionAnswer {
    session: String,
}

/// Exchanges the code of a link, or the token, for a session: the page keeps no token.
pub async fn exchange(
    State(gate): State<ListenerGate>,
    headers: HeaderMap,
    code: String,
) -> Response {
    let access = &gate.access;
    let now = Timestamp::now();
    let session = match bearer(&headers) {
        Some(token) if access.token.is(token) => access.sessions.start(now),
        Some(_) => None,
        None => access.sessions.exchange(&access.token, code.trim(), now),
    };
    match session {
        Some(session) => {
            let kept = [(header::CACHE_CONTROL, "no-store")];
            (kept, Json(SessionAnswer { session })).into_response()
        }
        None => access.refuse(),
    }
}

fn is_local(headers: &HeaderMap) -> bool {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.bytes().all(|byte| byte.is_ascii_digit()) {
            name
        } else {
            host
        }
    });
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost"
        || bare
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}
