//! How a handshake is decided.

#![cfg_attr(not(feature = "axum"), allow(dead_code))] // Only features bring a host that asks.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

#[cfg(feature = "deflate")]
use crate::engine::model::negotiation;
use crate::engine::model::settings::Settings;
use crate::engine::parts::compression::Ability;
use crate::engine::parts::expiry::Expiry;
use crate::engine::parts::peer_limits::PeerSlot;
use crate::engine::parts::unwind::caught;
use crate::engine::parts::users::UserSlot;
use crate::protocol::handshake::ValidHandshake;
use crate::request::{Reject, RequestHead};

/// How a handshake is accepted.
#[derive(Default)]
pub(crate) struct Granted {
    pub(crate) subprotocol: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) kept: Option<PendingAttachment>,
    /// What it counts as for its user.
    pub(crate) user_slot: Option<UserSlot>,
    pub(crate) expiry: Option<Expiry>,
    /// What is agreed about compression, and how the client is told.
    #[cfg(feature = "deflate")]
    pub(crate) compression: Option<(Ability, String)>,
}

impl Granted {
    pub(crate) fn new(
        subprotocol: Option<String>,
        headers: Vec<(String, String)>,
        kept: Option<PendingAttachment>,
    ) -> Self {
        Self {
            subprotocol,
            headers,
            kept,
            user_slot: None,
            expiry: None,
            #[cfg(feature = "deflate")]
            compression: None,
        }
    }

    /// Agrees about compression, if the client offers it and is still to be answered.
    pub(crate) fn agree_compression(&mut self, settings: &Settings, request: &RequestHead) {
        #[cfg(feature = "deflate")]
        if let Some(agreement) = negotiation::negotiate(settings, request) {
            self.compression = Some((Ability::new(agreement), agreement.to_string()));
        }
        #[cfg(not(feature = "deflate"))]
        let _ = (settings, request);
    }

    /// What is agreed about compression.
    pub(crate) fn compression(&self) -> Ability {
        #[cfg(feature = "deflate")]
        if let Some((ability, _)) = &self.compression {
            return *ability;
        }
        Ability::default()
    }

    /// Where no handler is asked: with the first of these subprotocols that the client offers.
    pub(crate) fn choosing(request: &RequestHead, known: &[&str]) -> Self {
        Self {
            subprotocol: request.choose_subprotocol(known),
            ..Self::default()
        }
    }

    /// All headers of the 101 response.
    pub(crate) fn headers<'a>(&'a self, handshake: &'a ValidHandshake) -> Vec<(&'a str, &'a str)> {
        let mut headers = handshake.headers(self.subprotocol.as_deref());
        headers.extend(
            self.headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str())),
        );
        #[cfg(feature = "deflate")]
        if let Some((_, answer)) = &self.compression {
            headers.push(("Sec-WebSocket-Extensions", answer));
        }
        headers
    }
}

/// Why a request that a handler was asked about is refused.
pub(crate) enum Refusal {
    /// By the handler.
    Program(Reject),
    /// The handler has accepted it for a user who has as many connections as allowed.
    UserConnections,
}

impl From<Reject> for Refusal {
    fn from(reject: Reject) -> Self {
        Self::Program(reject)
    }
}

/// What the program keeps for a connection.
pub(crate) type Attachment = Arc<dyn Any + Send + Sync>;

/// The way to the handler threads, for [`PendingAttachment`].
pub(crate) trait DropOnHandler: Send + Sync {
    /// Has a handler drop an attachment. It comes back if the calling thread is a handler, or if there are none any more.
    fn drop_on_handler(&self, attachment: Attachment) -> Result<(), Attachment>;
}

/// What the program keeps for a connection that may never open. Dropping it is user code, so it is left to the handlers
/// wherever that happens.
pub(crate) struct PendingAttachment {
    attachment: Option<Attachment>,
    handlers: Box<dyn DropOnHandler>,
}

impl PendingAttachment {
    pub(crate) fn new(attachment: Attachment, handlers: Box<dyn DropOnHandler>) -> Self {
        Self {
            attachment: Some(attachment),
            handlers,
        }
    }

    /// The session has it from here on.
    pub(crate) fn take(mut self) -> Option<Attachment> {
        self.attachment.take()
    }
}

impl Drop for PendingAttachment {
    fn drop(&mut self) {
        if let Some(attachment) = self.attachment.take()
            && let Err(attachment) = self.handlers.drop_on_handler(attachment)
        {
            // Nobody is left to tell of a panic.
            caught(|| drop(attachment));
        }
    }
}

/// The answer to a request that finds no room among those that wait for handlers or for their clients.
pub(crate) fn busy() -> Reject {
    Reject::new(503)
        .with_header("Retry-After", "1")
        .with_body("the server is busy: try again in a moment\n")
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
    pub(crate) handshake: ValidHandshake,
    pub(crate) granted: Granted,
    pub(crate) peer_slot: Option<Box<PeerSlot>>,
    /// None once the connection has come.
    pub(crate) permit: Option<ConnectionPermit>,
}

impl Accepted {
    /// All headers of the 101 response.
    pub(crate) fn headers(&self) -> Vec<(&str, &str)> {
        self.granted.headers(&self.handshake)
    }

    /// The connection has come, and counts from here on itself. Returns whether it has counted already.
    pub(crate) fn take_permit(&mut self) -> bool {
        self.permit.take().is_some_and(|mut permit| {
            permit.is_given = true;
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

/// Whoever counts connections, for [`ConnectionPermit`].
pub(crate) trait CountConnections: Send + Sync {
    /// A request's bytes count no longer; nor does its connection, unless that has come.
    fn release_permit(&self, bytes: usize, has_come: bool);
}

/// Counts as a connection that is still to come, and for what its request takes.
pub(crate) struct ConnectionPermit {
    pub(crate) counts: Weak<dyn CountConnections>,
    pub(crate) bytes: usize,
    /// The connection counts instead.
    pub(crate) is_given: bool,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        if let Some(counts) = self.counts.upgrade() {
            counts.release_permit(self.bytes, self.is_given);
        }
    }
}

/// Who waits for a verdict; told in any case.
pub(crate) struct OnVerdict(pub(crate) Option<Box<dyn FnOnce(Verdict) + Send>>);

impl OnVerdict {
    pub(crate) fn tell(mut self, verdict: Verdict) {
        if let Some(then) = self.0.take() {
            then(verdict);
        }
    }
}

impl Drop for OnVerdict {
    fn drop(&mut self) {
        if let Some(then) = self.0.take() {
            then(Verdict::Rejected(shutting_down()));
        }
    }
}
