//! Judges credentials, and limits the wrong ones of each address: those for reading, publishing and administration together.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use humphrey_ws::Reject;

use crate::attempts::{Attempts, FAILURES_MAX};
use crate::diagnostics::RateLimit;
use crate::session::{Session, SessionSet};

/// Why a request is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// It has no credential.
    Missing,
    /// Its credential was valid once.
    Expired,
    /// Its credential is wrong.
    Wrong,
    /// Its address has presented too many wrong credentials. Its own was not judged, so that it can't be guessed meanwhile.
    TooMany { wait: Duration },
}

/// The credentials of a request, compared with the right ones.
#[derive(Debug, Default)]
pub(crate) struct Judged<'a> {
    /// One of them is right.
    pub(crate) is_right: bool,
    /// The session, if the right one is a session.
    pub(crate) session: Option<Session>,
    /// The wrong ones, each with its kind. One text may be a guess of several secrets.
    pub(crate) wrong: Vec<(&'static str, &'a str)>,
    /// One of them has expired.
    pub(crate) has_expired: bool,
}

/// The wrong credentials of each address.
#[derive(Debug, Default)]
pub(crate) struct AttemptLimiter {
    state: Mutex<State>,
    /// Its keys are random, so that an attacker can't choose credentials with the same fingerprint.
    fingerprints: RandomState,
    blocked_warning: RateLimit,
}

#[derive(Debug, Default)]
struct State {
    attempts: Attempts,
    /// The sessions that were accepted. They may go on while their address is blocked: an attacker who shares the address can't have
    /// guessed their random bytes.
    known_sessions: SessionSet,
}

impl AttemptLimiter {
    /// Decides by the credentials of a request, and counts the wrong ones.
    ///
    /// While an address is blocked, right credentials are refused like wrong ones. Only a session that was accepted before
    /// goes on.
    pub(crate) fn admit(
        &self,
        client: IpAddr,
        judged: &Judged<'_>,
        now: Instant,
    ) -> Result<(), Denied> {
        let is_presented = judged.is_right || !judged.wrong.is_empty();
        if !is_presented {
            return Err(match judged.has_expired {
                true => Denied::Expired,
                false => Denied::Missing,
            });
        }
        // One lock for the decision and the count, so that simultaneous requests are counted as well.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(wait) = state.attempts.blocked_for(client, now) {
            let session = judged.session.as_ref();
            if !session.is_some_and(|session| state.known_sessions.contains(session)) {
                return Err(Denied::TooMany { wait });
            }
        }
        if judged.is_right {
            if let Some(session) = &judged.session {
                state.known_sessions.insert(session);
            }
            return Ok(());
        }
        let mut is_blocked = false;
        for wrong in &judged.wrong {
            let fingerprint = self.fingerprints.hash_one(wrong);
            is_blocked = state.attempts.add_failure(client, fingerprint, now);
        }
        drop(state);
        if is_blocked && let Some(suppressed) = self.blocked_warning.due(now) {
            log::warn!(
                "{FAILURES_MAX} wrong tokens or sessions from {client} within a minute: for up to a minute, requests from there \
                 that present one get 429{suppressed}"
            );
        }
        Err(Denied::Wrong)
    }
}

impl Denied {
    /// The refusal. `realm` is what the credential is for (RFC 6750 §3), and `needed` says which one is needed.
    pub(crate) fn reject(self, realm: &str, needed: &str) -> Reject {
        let what = match self {
            Self::Missing => "",
            Self::Expired => "the session has expired: ",
            Self::Wrong => "the credential is wrong: ",
            Self::TooMany { wait } => {
                let seconds = whole_seconds(wait);
                let words = too_many_words(wait);
                return plain(429, &words).with_header("Retry-After", seconds.to_string());
            }
        };
        let error = match self {
            Self::Missing => "",
            _ => ", error=\"invalid_token\"",
        };
        let challenge = format!("Bearer realm=\"{realm}\"{error}");
        plain(401, &format!("{what}{needed}")).with_header("WWW-Authenticate", challenge)
    }
}

/// A refusal in plain text.
fn plain(status: u16, words: &str) -> Reject {
    Reject::new(status)
        .with_body(format!("{words}\n"))
        .with_header("Content-Type", "text/plain; charset=utf-8")
        .with_header("Cache-Control", "no-store")
}

/// The sentence for a blocked address.
pub(crate) fn too_many_words(wait: Duration) -> String {
    let seconds = whole_seconds(wait);
    let s = if seconds == 1 { "" } else { "s" };
    format!("too many wrong tokens from your address: try again in {seconds} second{s}")
}

/// A wait in seconds, rounded up.
pub(crate) fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::SessionKey;
    use crate::token::Token;
    use std::time::SystemTime;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn wrong(text: &str) -> Judged<'_> {
        Judged {
            wrong: vec![("token", text)],
            ..Judged::default()
        }
    }

    fn right(session: Option<Session>) -> Judged<'static> {
        Judged {
            is_right: true,
            session,
            ..Judged::default()
        }
    }

    fn session() -> Session {
        let key = SessionKey::new(&Token::new("s3cret").unwrap());
        let now = SystemTime::now();
        key.verify(
            &key.issue(now, crate::session::LIFETIME_DEFAULT).unwrap(),
            now,
        )
        .unwrap()
    }

    fn block(limiter: &AttemptLimiter, client: IpAddr, now: Instant) {
        for n in 0..FAILURES_MAX {
            let denied = limiter.admit(client, &wrong(&n.to_string()), now);
            assert_eq!(denied, Err(Denied::Wrong));
        }
    }

    #[test]
    fn blocked_address_is_denied_with_the_right_token() {
        let (limiter, now) = (AttemptLimiter::default(), Instant::now());
        block(&limiter, A, now);
        let wait = Duration::from_secs(60);
        for judged in [right(None), right(Some(session())), wrong("x")] {
            let denied = limiter.admit(A, &judged, now);
            assert_eq!(denied, Err(Denied::TooMany { wait }));
        }
        assert_eq!(limiter.admit(B, &right(None), now), Ok(()));
        assert_eq!(limiter.admit(A, &right(None), now + wait), Ok(()));
    }

    #[test]
    fn accepted_session_goes_on_while_its_address_is_blocked() {
        let (limiter, now) = (AttemptLimiter::default(), Instant::now());
        let session = session();
        assert_eq!(limiter.admit(A, &right(Some(session)), now), Ok(()));
        block(&limiter, A, now);
        assert_eq!(limiter.admit(A, &right(Some(session)), now), Ok(()));
    }

    #[test]
    fn missing_and_expired_credentials_do_not_count() {
        let (limiter, now) = (AttemptLimiter::default(), Instant::now());
        let expired = Judged {
            has_expired: true,
            ..Judged::default()
        };
        for _ in 0..100 {
            let denied = limiter.admit(A, &Judged::default(), now);
            assert_eq!(denied, Err(Denied::Missing));
            assert_eq!(limiter.admit(A, &expired, now), Err(Denied::Expired));
        }
        assert_eq!(limiter.admit(A, &right(None), now), Ok(()));
    }

    #[test]
    fn same_text_counts_for_each_kind_of_credential() {
        let (limiter, now) = (AttemptLimiter::default(), Instant::now());
        for _ in 0..3 {
            for kind in ["a", "b", "c", "d", "e", "f", "g", "h", "i"] {
                let judged = Judged {
                    wrong: vec![(kind, "text")],
                    ..Judged::default()
                };
                assert_eq!(limiter.admit(A, &judged, now), Err(Denied::Wrong));
            }
        }
        assert_eq!(limiter.admit(A, &wrong("text"), now), Err(Denied::Wrong));
        let denied = limiter.admit(A, &wrong("text"), now).unwrap_err();
        assert!(matches!(denied, Denied::TooMany { .. }));
    }

    #[test]
    fn wait_is_rounded_up_to_seconds() {
        let wait = Duration::from_millis(58_001);
        let reject = Denied::TooMany { wait }.reject("read", "");
        assert_eq!(reject.status(), 429);
        assert!(
            reject
                .headers()
                .any(|header| header == ("Retry-After", "59"))
        );
        assert!(String::from_utf8_lossy(reject.body()).contains("in 59 seconds"));
    }
}
