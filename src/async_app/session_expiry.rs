//! When sessions expire, and what their clients are told of it.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Instant, SystemTime};

use super::publish::{AppShared, Blocking, Recipients};
use crate::engine::{Expiry, Session};
use crate::message::Message;
use crate::protocol::procedures::{self, EXPIRES, V1};

impl AppShared {
    /// Sets when a session expires; `None` for never. Tells its client, if it can prolong it.
    pub(super) fn set_expires_at(&self, session: &Session, time: Option<SystemTime>) {
        if let Some(hub) = self.engine() {
            let expiry = time.and_then(Expiry::at_time);
            hub.set_expiry(session, expiry);
            self.tell_expiry(session, expiry);
        }
    }

    /// Tells the client of a new session when it expires, if it can prolong it.
    pub(super) fn tell_first_expiry(&self, session: &Session) {
        if let Some(hub) = self.engine().filter(|_| self.refreshes.load(Relaxed))
            && let Some(expiry) = hub.expiry_of(session)
        {
            self.tell_expiry(session, Some(expiry));
        }
    }

    /// When a session expires, if it does.
    pub(super) fn expires(&self, session: &Session) -> bool {
        let expiry = self.engine().and_then(|hub| hub.expiry_of(session));
        expiry.is_some()
    }

    /// Never waits: a client that is not told gets a new session after its old one.
    fn tell_expiry(&self, session: &Session, expiry: Option<Expiry>) {
        if session.subprotocol() != Some(V1) || !self.refreshes.load(Relaxed) {
            return;
        }
        let left = expiry.map(|expiry| {
            let left = expiry.instant().saturating_duration_since(Instant::now());
            left.as_secs_f64().to_string()
        });
        let frame = procedures::notification(EXPIRES, left.unwrap_or_default().as_bytes());
        let message = Message::new_binary(frame);
        let _ = self.publish(Recipients::Session(session), message, Blocking::Try);
    }
}
