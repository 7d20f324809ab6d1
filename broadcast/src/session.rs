//! Sessions of readers: what the cookie of a browser contains.
//!
//! A session is `EXPIRES.NONCE.MAC`. The server stores none: it recognises its own by the MAC, whose key is derived from the
//! token. So a session survives a restart, is valid on every server with the same token, and ends when the token changes.
//! Guessing the token from a session takes an HMAC for each guess, which is no cheaper than for any other MAC: only a
//! random token resists it.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::token::Token;

/// How long a session is valid by default.
pub(crate) const LIFETIME_DEFAULT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The number of sessions that a [`SessionSet`] remembers.
const SESSIONS_MAX: usize = 10_000;

/// Separates this key from others that might be derived from the same token.
const KEY_PURPOSE: &[u8] = b"humphrey-broadcast session of a reader, version 1";

/// The purpose of the key for proofs that a session was prolonged. A proof is no session: the page's script may see it.
const PROOF_KEY_PURPOSE: &[u8] = b"humphrey-broadcast proof of a prolonged session, version 1";

/// Distinguishes sessions, also those that begin in the same second. It is random, so a reader who
/// knows the token still cannot guess another reader's session.
type Nonce = [u8; 16];

/// Issues and verifies sessions, or proofs.
pub(crate) struct SessionKey(Hmac<Sha256>);

/// A valid session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) expires_at: SystemTime,
    nonce: Nonce,
}

/// Why a text is not a valid session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InvalidSession {
    /// It was valid once.
    Expired,
    /// It may be a guess.
    Unknown,
}

fn hmac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

impl SessionKey {
    pub(crate) fn new(token: &Token) -> Self {
        Self::derived(token, KEY_PURPOSE)
    }

    /// The key for proofs that a session was prolonged.
    pub(crate) fn for_proofs(token: &Token) -> Self {
        Self::derived(token, PROOF_KEY_PURPOSE)
    }

    fn derived(token: &Token, purpose: &[u8]) -> Self {
        let derived = hmac(token.secret().as_bytes()).chain_update(purpose);
        Self(hmac(&derived.finalize().into_bytes()))
    }

    /// Begins a session. Returns the text of the cookie.
    ///
    /// # Errors
    ///
    /// The error of the operating system's random source.
    pub(crate) fn issue(&self, now: SystemTime, lifetime: Duration) -> io::Result<String> {
        let mut nonce = Nonce::default();
        getrandom::fill(&mut nonce).map_err(|error| {
            io::Error::other(format!("the system has no random bytes: {error}"))
        })?;
        Ok(self.sign(now + lifetime, &nonce))
    }

    /// The text of a session, or of the proof of it.
    pub(crate) fn text_of(&self, session: &Session) -> String {
        self.sign(session.expires_at, &session.nonce)
    }

    fn sign(&self, expires_at: SystemTime, nonce: &Nonce) -> String {
        let nonce = URL_SAFE_NO_PAD.encode(nonce);
        let signed = format!("{}.{nonce}", seconds_since_1970(expires_at));
        let mac = self.0.clone().chain_update(&signed).finalize();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.into_bytes()))
    }

    /// Verifies the text of a cookie. The MAC is compared in constant time.
    pub(crate) fn verify(&self, text: &str, now: SystemTime) -> Result<Session, InvalidSession> {
        let (signed, mac) = text.rsplit_once('.').ok_or(InvalidSession::Unknown)?;
        let mac = URL_SAFE_NO_PAD.decode(mac);
        let mac = mac.map_err(|_| InvalidSession::Unknown)?;
        let expected = self.0.clone().chain_update(signed);
        expected
            .verify_slice(&mac)
            .map_err(|_| InvalidSession::Unknown)?;
        // From here on, the text is one that was issued.
        let session = Session::parse(signed).ok_or(InvalidSession::Unknown)?;
        match session.expires_at > now {
            true => Ok(session),
            false => Err(InvalidSession::Expired),
        }
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey(..)")
    }
}

impl Session {
    fn parse(signed: &str) -> Option<Self> {
        let (expires_at, nonce) = signed.split_once('.')?;
        let expires_at = Duration::from_secs(expires_at.parse().ok()?);
        Some(Self {
            expires_at: UNIX_EPOCH.checked_add(expires_at)?,
            nonce: URL_SAFE_NO_PAD.decode(nonce).ok()?.try_into().ok()?,
        })
    }

    /// The same session with another end.
    pub(crate) fn until(self, expires_at: SystemTime) -> Self {
        Self { expires_at, ..self }
    }

    /// The key by which the library counts and closes the connections of the session.
    pub(crate) fn user(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.nonce)
    }
}

fn seconds_since_1970(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// Sessions that this process remembers: [`SESSIONS_MAX`] at most, the newest ones.
#[derive(Debug)]
pub(crate) struct SessionSet {
    nonces: HashSet<Nonce>,
    /// The oldest first.
    order: VecDeque<Nonce>,
    max: usize,
}

impl Default for SessionSet {
    fn default() -> Self {
        Self {
            nonces: HashSet::new(),
            order: VecDeque::new(),
            max: SESSIONS_MAX,
        }
    }
}

impl SessionSet {
    pub(crate) fn contains(&self, session: &Session) -> bool {
        self.nonces.contains(&session.nonce)
    }

    /// Remembers a session, and forgets the oldest one if there are too many.
    pub(crate) fn insert(&mut self, session: &Session) {
        if !self.nonces.insert(session.nonce) {
            return;
        }
        self.order.push_back(session.nonce);
        if self.order.len() > self.max
            && let Some(oldest) = self.order.pop_front()
        {
            self.nonces.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(token: &str) -> SessionKey {
        SessionKey::new(&Token::new(token).unwrap())
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn session_is_valid_for_thirty_days_with_the_same_token() {
        let text = key("s3cret").issue(at(1_000), LIFETIME_DEFAULT).unwrap();
        let end = 1_000 + 30 * 24 * 60 * 60;
        // Another process with the same token.
        let session = key("s3cret").verify(&text, at(end - 1)).unwrap();
        assert_eq!(session.expires_at, at(end));
        let verify = |key: SessionKey, now| key.verify(&text, at(now));
        assert_eq!(verify(key("s3cret"), end), Err(InvalidSession::Expired));
        assert_eq!(verify(key("other"), 1_000), Err(InvalidSession::Unknown));
    }

    #[test]
    fn session_format_is_fixed() {
        // Computed with Python's hmac. Sessions must survive an update of the program.
        let text = key("s3cret").sign(at(2_000_000_000), &[7; 16]);
        assert_eq!(text, EXPECTED);
    }

    const EXPECTED: &str =
        "2000000000.BwcHBwcHBwcHBwcHBwcHBw.Un0FdbxfKi1YVgPIY03aF1XP9mEa-NC1DKMlFnhoXuQ";

    #[test]
    fn proof_is_no_session_and_a_session_no_proof() {
        let token = Token::new("s3cret").unwrap();
        let (sessions, proofs) = (SessionKey::new(&token), SessionKey::for_proofs(&token));
        let session = sessions.issue(at(0), Duration::from_secs(60)).unwrap();
        let begun = sessions.verify(&session, at(0)).unwrap();
        let prolonged = begun.until(at(100));
        let proof = proofs.text_of(&prolonged);
        assert_eq!(proofs.verify(&proof, at(99)), Ok(prolonged));
        assert_eq!(prolonged.user(), begun.user());
        let unknown = Err(InvalidSession::Unknown);
        assert_eq!(sessions.verify(&proof, at(0)), unknown);
        assert_eq!(proofs.verify(&session, at(0)), unknown);
    }

    #[test]
    fn two_sessions_of_one_second_differ() {
        let key = key("s3cret");
        let [one, other] = [(); 2].map(|()| key.issue(at(0), LIFETIME_DEFAULT).unwrap());
        assert_ne!(one, other);
        let [one, other] = [one, other].map(|text| key.verify(&text, at(0)).unwrap());
        assert_ne!(one.user(), other.user());
        assert!(one.user().len() <= 255);
    }

    #[test]
    fn changed_session_is_refused() {
        let key = key("s3cret");
        let text = key.sign(at(2_000_000_000), &[7; 16]);
        assert!(key.verify(&text, at(0)).is_ok());
        for n in 0..text.len() {
            for byte in [b'A', b'9', b'.', b'='] {
                let mut changed = text.clone().into_bytes();
                if changed[n] == byte {
                    continue;
                }
                changed[n] = byte;
                let changed = String::from_utf8(changed).unwrap();
                let verified = key.verify(&changed, at(0));
                assert_eq!(verified, Err(InvalidSession::Unknown), "{changed}");
            }
            let cut = key.verify(&text[..n], at(0));
            assert_eq!(cut, Err(InvalidSession::Unknown), "{n}");
        }
        let longer = format!("{text}A");
        for other in [
            "",
            ".",
            "..",
            "s3cret",
            &longer,
            &text[1..],
            "\u{fc}.\u{fc}",
        ] {
            let verified = key.verify(other, at(0));
            assert_eq!(verified, Err(InvalidSession::Unknown), "{other}");
        }
    }

    #[test]
    fn oldest_known_session_is_forgotten() {
        let mut known = SessionSet {
            max: 2,
            ..SessionSet::default()
        };
        let session = |n| Session {
            expires_at: at(0),
            nonce: [n; 16],
        };
        for n in [1, 2, 2, 3] {
            known.insert(&session(n));
        }
        let contained = [1, 2, 3].map(|n| known.contains(&session(n)));
        assert_eq!(contained, [false, true, true]);
        assert_eq!(known.order.len(), known.nonces.len());
    }
}
