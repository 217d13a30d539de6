//! Who asks, and may they: answers of the API server, remembered for a short time.
//!
//! A token is asked about once and its answer kept, a refusal for a shorter time. While the server
//! does not answer, only what is remembered is let in; beyond that everybody is refused. Tokens
//! themselves are not kept, and whoever tries many of them can neither push out those that are
//! let in nor keep the API server busy.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::registry::{Review, Reviewer};

/// How long a token is let in without asking again.
const ALLOWED: Duration = Duration::from_secs(120);
/// How long one is refused without asking again.
const REFUSED: Duration = Duration::from_secs(20);
/// Answers of each kind that are remembered.
const REMEMBERED: usize = 128;
/// Questions to the API server at one time.
const AT_ONCE: usize = 4;
/// A token is no longer than this, bytes; longer ones are not asked about.
const LONGEST: usize = 16 * 1024;

type Digested = [u8; 32];

/// See the module.
pub(super) struct Gate {
    reviewer: Reviewer,
    allowed: Mutex<Answers>,
    refused: Mutex<Answers>,
    asking: Semaphore,
}

impl Gate {
    pub(super) fn new(reviewer: Reviewer) -> Self {
        Self {
            reviewer,
            allowed: Mutex::default(),
            refused: Mutex::default(),
            asking: Semaphore::new(AT_ONCE),
        }
    }

    /// Lets whoever sent these headers in, or says why not.
    ///
    /// # Errors
    /// The answer: 401 without a token the server knows, 403 without the right, 503 where the
    /// server could not be asked.
    pub(super) async fn admit(&self, headers: &HeaderMap) -> Result<(), Response> {
        let Some(token) = bearer(headers) else {
            return Err(refusal(Review::Unknown));
        };
        let digested: Digested = Sha256::digest(token.as_bytes()).into();
        for answers in [&self.allowed, &self.refused] {
            match lock(answers).recall(&digested, Instant::now()) {
                Some(Review::Allowed) => return Ok(()),
                Some(review) => return Err(refusal(review)),
                None => {}
            }
        }
        let Ok(_turn) = self.asking.try_acquire() else {
            return Err(unavailable("too many tokens are being asked about"));
        };
        let review = self.reviewer.review(token, "/metrics", "get").await;
        let review = review.map_err(|error| {
            tracing::warn!(error, "metrics refused: the API server could not be asked");
            unavailable("the API server could not be asked about the token")
        })?;
        let (answers, time) = match review {
            Review::Allowed => (&self.allowed, ALLOWED),
            Review::Unknown | Review::Forbidden => (&self.refused, REFUSED),
        };
        lock(answers).remember(digested, review, Instant::now() + time);
        if review == Review::Allowed { Ok(()) } else { Err(refusal(review)) }
    }
}

fn lock(answers: &Mutex<Answers>) -> std::sync::MutexGuard<'_, Answers> {
    // Every change of it is one call: there is no half of one.
    answers.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    let usable = !token.is_empty() && token.len() <= LONGEST;
    (scheme.eq_ignore_ascii_case("bearer") && usable).then_some(token)
}

fn refusal(review: Review) -> Response {
    match review {
        Review::Forbidden => {
            (StatusCode::FORBIDDEN, "this account may not get the nonResourceURL /metrics\n")
                .into_response()
        }
        Review::Unknown | Review::Allowed => (
            StatusCode::UNAUTHORIZED,
            [(header::WWW_AUTHENTICATE, "Bearer")],
            "a bearer token that the API server knows is needed\n",
        )
            .into_response(),
    }
}

fn unavailable(why: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}; try again\n")).into_response()
}

/// Answers by token, each until a time.
#[derive(Default)]
struct Answers(BTreeMap<Digested, (Instant, Review)>);

impl Answers {
    fn recall(&self, token: &Digested, now: Instant) -> Option<Review> {
        self.0.get(token).and_then(|(until, review)| (now < *until).then_some(*review))
    }

    /// What ends first makes room.
    fn remember(&mut self, token: Digested, review: Review, until: Instant) {
        if self.0.len() >= REMEMBERED {
            let first = self.0.iter().min_by_key(|(_, (until, _))| *until);
            if let Some(first) = first.map(|(token, _)| *token) {
                self.0.remove(&first);
            }
        }
        self.0.insert(token, (until, review));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_end_and_are_bounded() {
        let now = Instant::now();
        let mut answers = Answers::default();
        let token = |number: usize| {
            let mut token = [0; 32];
            token[..8].copy_from_slice(&number.to_be_bytes());
            token
        };
        for number in 0..2 * REMEMBERED {
            let until = now + Duration::from_secs(1 + number as u64);
            answers.remember(token(number), Review::Forbidden, until);
        }
        assert_eq!(answers.0.len(), REMEMBERED);
        let last = token(2 * REMEMBERED - 1);
        assert_eq!(answers.recall(&last, now), Some(Review::Forbidden));
        assert_eq!(answers.recall(&last, now + Duration::from_secs(1000)), None);
        assert_eq!(answers.recall(&token(0), now), None);
    }

    #[test]
    fn only_a_bearer_token_is_one() {
        let token = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(token("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(token("bearer  abc ").as_deref(), Some("abc"));
        for other in ["Basic abc", "Bearer", "Bearer ", "abc"] {
            assert_eq!(token(other), None, "{other}");
        }
        assert_eq!(token(&format!("Bearer {}", "x".repeat(LONGEST + 1))), None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
