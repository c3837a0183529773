//! Links to the page: `keytrail page` prints one with a code, which the page exchanges once for a
//! session.
//!
//! Whoever can read the token can make a code, without asking the agent: it is a message with an
//! authentication code under the token. The agent accepts each once, for some minutes.

use super::token::ApiToken;
use crate::private_file::{self, hex, random_hex};
use jiff::{SignedDuration, Timestamp};
use ring::{digest, hmac};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// How long a code can be exchanged.
const CODE_LIFETIME: SignedDuration = SignedDuration::from_mins(10);
/// How far the clock may have been set back since a code was made.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(5);
/// How long a session lasts.
const SESSION_LIFETIME: SignedDuration = SignedDuration::from_hours(12);
/// Maximum sessions; beyond it the one that ends first is ended.
const SESSIONS_MAX: usize = 64;
/// Separates a code from other messages that might be authenticated with the token.
const CODE_PURPOSE: &str = "keytrail page";
/// The file in the state directory with the address of a running agent.
const FILE_NAME: &str = "api.json";

/// Where the agent that uses a state directory answers; written when it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiPlace {
    pub url: String,
    pub token_file: PathBuf,
    /// Of this run of the agent: several agents can have one token.
    pub instance: String,
}

impl ApiPlace {
    pub fn write(&self, state_dir: &Path) -> io::Result<()> {
        let text = serde_json::to_string(self)?;
        private_file::write(&state_dir.join(FILE_NAME), &text, None)
    }

    pub fn read(state_dir: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(
            state_dir.join(FILE_NAME),
        )?)?)
    }
}

/// A code that can be exchanged once for a session.
pub fn code(token: &ApiToken, instance: &str, now: Timestamp) -> Result<String, getrandom::Error> {
    let nonce = random_hex::<16>()?;
    let time = now.as_second();
    let tag = tag(token, &message(instance, &nonce, time));
    Ok(format!("{}.{time}.{tag}", *nonce))
}

fn key(token: &ApiToken) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes())
}

fn message(instance: &str, nonce: &str, time: i64) -> String {
    format!("{CODE_PURPOSE} {instance} {nonce} {time}")
}

fn tag(token: &ApiToken, message: &str) -> String {
    hex(hmac::sign(&key(token), message.as_bytes()).as_ref())
}

/// Whether a code was made with this token for this agent, and when: its nonce and time.
fn verify<'a>(token: &ApiToken, instance: &str, code: &'a str) -> Option<(&'a str, Timestamp)> {
    let mut parts = code.splitn(3, '.');
    let (nonce, time, tag) = (parts.next()?, parts.next()?, parts.next()?);
    let time: i64 = time.parse().ok()?;
    let tag = from_hex(tag)?;
    let message = message(instance, nonce, time);
    hmac::verify(&key(token), message.as_bytes(), &tag).ok()?;
    Some((nonce, Timestamp::from_second(time).ok()?))
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| u8::try_from(digit.to_digit(16)?).ok())
        .collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect(),
    )
}

/// The sessions of the page. They end with the agent.
#[derive(Debug)]
pub struct PageSessions {
    /// Codes made before are refused: those that were exchanged then are forgotten.
    since: Timestamp,
    instance: String,
    state: Mutex<SessionState>,
}

#[derive(Debug, Default)]
struct SessionState {
    /// When each exchanged code becomes too old, by nonce.
    exchanged: HashMap<String, Timestamp>,
    /// When each session ends, by the hash of its secret.
    sessions: HashMap<[u8; digest::SHA256_OUTPUT_LEN], Timestamp>,
}

impl PageSessions {
    pub fn new(since: Timestamp, instance: String) -> Self {
        Self {
            since,
            instance,
            state: Mutex::default(),
        }
    }

    /// Exchanges a code for a session's secret; `None` if the code is wrong, too old, or used.
    pub fn exchange(&self, token: &ApiToken, code: &str, now: Timestamp) -> Option<String> {
        let (nonce, made) = verify(token, &self.instance, code)?;
        // Codes have whole seconds.
        let old = made < self.since - SignedDuration::from_secs(1) || made + CODE_LIFETIME < now;
        if old || made > now + CLOCK_TOLERANCE {
            return None;
        }
        {
            let mut state = self.lock();
            state.exchanged.retain(|_, until| *until >= now);
            let until = made + CODE_LIFETIME;
            if state.exchanged.insert(nonce.to_owned(), until).is_some() {
                return None;
            }
        }
        self.start(now)
    }

    /// Starts a session for somebody who presented the token; `None` without random bytes.
    pub fn start(&self, now: Timestamp) -> Option<String> {
        let session = random_hex::<32>().ok()?;
        let mut state = self.lock();
        if state.sessions.len() >= SESSIONS_MAX {
            let first = state.sessions.iter().min_by_key(|(_, end)| **end);
            let first = first.map(|(hash, _)| *hash);
            first.and_then(|hash| state.sessions.remove(&hash));
        }
        state
            .sessions
            .insert(hash(&session), now + SESSION_LIFETIME);
        Some((*session).clone())
    }

    /// Whether this is the secret of a session that has not ended.
    pub fn knows(&self, session: &str, now: Timestamp) -> bool {
        let end = self.lock().sessions.get(&hash(session)).copied();
        end.is_some_and(|end| now < end)
    }

    /// Its tables hold single values: a panic elsewhere cannot leave them half-written.
    fn lock(&self) -> MutexGuard<'_, SessionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hash(session: &str) -> [u8; digest::SHA256_OUTPUT_LEN] {
    let hash = digest::digest(&digest::SHA256, session.as_bytes());
    let mut bytes = [0; digest::SHA256_OUTPUT_LEN];
    bytes.copy_from_slice(hash.as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AGENT: &str = "of-this-agent";

    fn token(text: &str) -> ApiToken {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("token");
        fs::write(&file, text).expect("written");
        ApiToken::read(&file).expect("valid")
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("a time")
    }

    #[test]
    fn a_code_is_exchanged_once() {
        let token = token("FAKE-token-of-the-page-0001");
        let sessions = PageSessions::new(at(0), AGENT.to_owned());
        let code = code(&token, AGENT, at(1)).expect("random bytes");
        let session = sessions.exchange(&token, &code, at(2)).expect("a session");
        assert!(sessions.knows(&session, at(3)));
        assert!(!sessions.knows(&session, at(3) + SESSION_LIFETIME));
        assert!(!sessions.knows(&code, at(3)));
        assert_eq!(sessions.exchange(&token, &code, at(3)), None, "used");
    }

    #[test]
    fn a_code_is_refused_when_it_is_old_or_of_another_token() {
        let own = token("FAKE-token-of-the-page-0001");
        let other = token("FAKE-token-of-the-page-0002");
        let sessions = PageSessions::new(at(0), AGENT.to_owned());
        let made = |time| code(&own, AGENT, time).expect("random bytes");
        for (code, now, why) in [
            (made(at(-2)), at(1), "made before the agent started"),
            (made(at(1)), at(602), "too old"),
            (made(at(60)), at(1), "made in the future"),
            (
                code(&own, "of-another-agent", at(1)).expect("random bytes"),
                at(1),
                "for another agent",
            ),
            (
                code(&other, AGENT, at(1)).expect("random bytes"),
                at(1),
                "of another token",
            ),
        ] {
            assert_eq!(sessions.exchange(&own, &code, now), None, "{why}");
        }
        assert!(sessions.exchange(&own, &made(at(1)), at(601)).is_some());
    }

    #[test]
    fn sessions_are_limited() {
        let token = token("FAKE-token-of-the-page-0001");
        let sessions = PageSessions::new(at(0), AGENT.to_owned());
        let made: Vec<String> = (0..=SESSIONS_MAX)
            .map(|number| {
                let now = at(i64::try_from(number).expect("small"));
                let code = code(&token, AGENT, now).expect("random bytes");
                sessions.exchange(&token, &code, now).expect("a session")
            })
            .collect();
        assert!(!sessions.knows(&made[0], at(100)));
        assert!(made[1..].iter().all(|made| sessions.knows(made, at(100))));
    }

    proptest! {
        #[test]
        fn any_text_is_refused(code in ".*", hex in "[0-9a-f]{32}\\.[0-9]{1,20}\\.[0-9a-fA-F+]{0,64}") {
            let token = token("FAKE-token-of-the-page-0001");
            let sessions = PageSessions::new(at(0), AGENT.to_owned());
            prop_assert_eq!(sessions.exchange(&token, &code, at(1)), None);
            prop_assert_eq!(sessions.exchange(&token, &hex, at(1)), None);
        }
    }
}
