//! How a handshake is decided.

#![cfg_attr(not(feature = "axum"), allow(dead_code))] // Only features bring a host that asks.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};

use crate::engine::handlers::pool::Pool;
use crate::engine::hub::Hub;
use crate::engine::hub::admission::quoted;
use crate::engine::model::job::Work;
use crate::engine::model::program::Welcome;
use crate::engine::parts::peer_limits::Place;
use crate::protocol::handshake::Handshake;
use crate::report::limited;
use crate::request::{Reject, RequestHead, check_accept};

/// How a handshake is accepted.
#[derive(Default)]
pub(crate) struct Granted {
    pub(crate) subprotocol: Option<String>,
    headers: Vec<(String, String)>,
    pub(crate) kept: Option<Kept>,
}

impl Granted {
    /// What the program says to a request, if it can be sent. A handler's thread asks.
    pub(crate) fn by(
        hub: &Arc<Hub>,
        request: &RequestHead,
        answer: Result<Welcome, Reject>,
    ) -> Result<Self, Reject> {
        let Welcome {
            subprotocol,
            headers,
            attachment,
        } = answer.map_err(Reject::checked)?;
        let kept = attachment.map(|attachment| Kept::new(hub, attachment));
        if let Err(wrong) = check_accept(request, subprotocol.as_deref(), &headers) {
            limited!(
                hub.said.bad_accept,
                error,
                "the handshake handler has accepted a request for \"{}\", but {wrong}: the client gets 500",
                quoted(request.path())
            );
            return Err(Reject::internal_error());
        }
        Ok(Self {
            subprotocol,
            headers,
            kept,
        })
    }

    /// Where no handler is asked: with the first of these subprotocols that the client offers.
    pub(crate) fn choosing(request: &RequestHead, known: &[&str]) -> Self {
        Self {
            subprotocol: request.choose_subprotocol(known),
            ..Self::default()
        }
    }

    /// All headers of the 101 response.
    pub(crate) fn headers<'a>(&'a self, handshake: &'a Handshake) -> Vec<(&'a str, &'a str)> {
        let mut headers = handshake.headers(self.subprotocol.as_deref());
        headers.extend(
            self.headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str())),
        );
        headers
    }
}

/// What the program keeps for a connection that may never open. Dropping it is user code, so it is left to the handlers
/// wherever that happens.
pub(crate) struct Kept {
    attachment: Option<Arc<dyn Any + Send + Sync>>,
    pub(crate) hub: Weak<Hub>,
}

impl Kept {
    fn new(hub: &Arc<Hub>, attachment: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            attachment: Some(attachment),
            hub: Arc::downgrade(hub),
        }
    }

    /// The session has it from here on.
    pub(crate) fn take(mut self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.attachment.take()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Some(attachment) = self.attachment.take() else {
            return;
        };
        let here = |attachment| {
            // Nobody is left to tell of a panic.
            crate::engine::hub::job_port::caught(|| drop(attachment));
        };
        match self.hub.upgrade() {
            Some(hub) if !crate::engine::hub::job_port::is_handler_of(&hub) => {
                let kept = Self {
                    attachment: Some(attachment),
                    hub: std::mem::take(&mut self.hub),
                };
                // Without handlers, it is dropped here after all.
                if let Err(Work::Drop(mut kept)) = Pool::push_work(&hub, Work::Drop(kept)) {
                    kept.attachment.take().map(here);
                }
            }
            _ => here(attachment),
        }
    }
}

/// The answer to a handshake that finds no room among those that are asked about.
pub(crate) fn too_many() -> Reject {
    Reject::new(503)
        .with_header("Retry-After", "1")
        .with_body("too many handshakes wait\n")
}

/// The answer to a handshake that has come too late.
pub(crate) fn shutting_down() -> Reject {
    Reject::new(503)
        .with_header("Retry-After", "5")
        .with_body("the server is shutting down\n")
}

/// What becomes of a handshake that somebody else has read.
pub(crate) enum Verdict {
    /// It is to be answered with 101 and `Accepted::headers`; then the connection is brought to `Hub::adopt_accepted`.
    Accepted(Box<Accepted>),
    /// It is to be answered with this.
    Rejected(Reject),
}

/// A handshake that is accepted, and whose connection is still to come. It counts as one.
pub(crate) struct Accepted {
    pub(crate) request: Arc<RequestHead>,
    pub(crate) handshake: Handshake,
    pub(crate) granted: Granted,
    pub(crate) place: Option<Box<Place>>,
    /// None once the connection has come.
    pub(crate) seat: Option<Seat>,
}

impl Accepted {
    /// All headers of the 101 response.
    pub(crate) fn headers(&self) -> Vec<(&str, &str)> {
        self.granted.headers(&self.handshake)
    }

    /// The connection has come, and counts from here on itself. Returns whether it has counted already.
    pub(crate) fn give_seat(&mut self) -> bool {
        self.seat.take().is_some_and(|mut seat| {
            seat.is_given = true;
            true
        })
    }

    pub(crate) fn grant(&mut self, granted: Granted) {
        self.granted = granted;
    }

    pub(crate) fn into_parts(self) -> (Arc<RequestHead>, Granted) {
        (self.request, self.granted)
    }

    /// Its host did not know where it comes from before it came.
    pub(crate) fn found_at(&mut self, peer: SocketAddr) {
        // Nobody else has it: the handler has returned, and the connection has not begun.
        if let Some(request) = Arc::get_mut(&mut self.request) {
            request.found_at(peer);
        }
    }

    /// Who asks.
    pub(crate) fn request(&self) -> &RequestHead {
        &self.request
    }
}

/// Counts as a connection that is still to come, and for what its request takes.
pub(crate) struct Seat {
    pub(crate) hub: Weak<Hub>,
    pub(crate) bytes: usize,
    /// The connection counts instead.
    pub(crate) is_given: bool,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.asked_bytes.fetch_sub(self.bytes, Relaxed);
            if !self.is_given {
                hub.disconnected();
            }
        }
    }
}

/// Who waits for a verdict; told in any case.
pub(crate) struct Then(pub(crate) Option<Box<dyn FnOnce(Verdict) + Send>>);

impl Then {
    pub(crate) fn tell(mut self, verdict: Verdict) {
        if let Some(then) = self.0.take() {
            then(verdict);
        }
    }
}

impl Drop for Then {
    fn drop(&mut self) {
        if let Some(then) = self.0.take() {
            then(Verdict::Rejected(shutting_down()));
        }
    }
}
