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
        if let Some(hub) = self.engine().filter(|_| self.refreshes.load(Relaxed)) {
            self.tell_expiry(session, hub.expiry_of(session));
        }
    }

    fn tell_expiry(&self, session: &Session, expiry: Option<Expiry>) {
        let knows = session.subprotocol() == Some(V1);
        if let Some(expiry) = expiry.filter(|_| knows && self.refreshes.load(Relaxed)) {
            let left = expiry.instant().saturating_duration_since(Instant::now());
            let frame =
                procedures::notification(EXPIRES, left.as_secs_f64().to_string().as_bytes());
            let message = Message::new_binary(frame);
            let _ = self.publish(Recipients::Session(session), message, Blocking::Wait);
        }
    }
}
