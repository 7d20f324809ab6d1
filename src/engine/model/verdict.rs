//! The decision about a handshake, and what waits for it.

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
use crate::engine::parts::unwind::catch_panic;
use crate::engine::parts::users::UserSlot;
#[cfg(feature = "deflate")]
use crate::protocol::deflate::negotiate::Agreement;
use crate::protocol::handshake::ValidHandshake;
use crate::request::{Reject, RequestHead};

/// The program's acceptance of a handshake, checked by the engine.
#[derive(Default)]
pub(crate) struct Granted {
    pub(crate) subprotocol: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) attachment: Option<PendingAttachment>,
    /// Counts the connection for its user.
    pub(crate) user_slot: Option<UserSlot>,
    pub(crate) expiry: Option<Expiry>,
    /// Whether the client receives rendered messages of rooms with a history.
    pub(crate) rendered: bool,
    /// The agreement about compression, and the extension header that tells the client.
    #[cfg(feature = "deflate")]
    pub(crate) compression: Option<(Ability, String)>,
}

impl Granted {
    /// Negotiates compression, if the client offers it and the response can still be changed.
    pub(crate) fn agree_compression(&mut self, settings: &Settings, request: &RequestHead) {
        #[cfg(feature = "deflate")]
        if let Some(compression) = &settings.compression
            && let Some(agreement) = negotiation::negotiate(compression, request.head())
        {
            self.compression = Some((Ability::new(agreement), agreement.to_string()));
        }
        #[cfg(not(feature = "deflate"))]
        let _ = (settings, request);
    }

    /// Sets the compression that a host has already agreed to in its 101 response.
    #[cfg(feature = "deflate")]
    pub(crate) fn continue_compression(&mut self, agreement: Agreement) {
        self.compression = Some((Ability::new(agreement), agreement.to_string()));
    }

    /// Returns the messages that the client can inflate, according to the negotiation.
    pub(crate) fn compression(&self) -> Ability {
        #[cfg(feature = "deflate")]
        if let Some((ability, _)) = &self.compression {
            return *ability;
        }
        Ability::default()
    }

    /// Accepts without a handler, with the first subprotocol in the client's order that is among `known`.
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

/// Why a request was refused after its handler was called.
pub(crate) enum NotGranted {
    /// The handler has rejected it.
    Program(Reject),
    /// The handler has accepted it for a user who already has as many connections as allowed.
    UserConnections,
}

impl From<Reject> for NotGranted {
    fn from(reject: Reject) -> Self {
        Self::Program(reject)
    }
}

/// A value that the program attaches to a connection.
pub(crate) type Attachment = Arc<dyn Any + Send + Sync>;

/// Access to the handler threads, for [`PendingAttachment`].
pub(crate) trait DropOnHandler: Send + Sync {
    /// Drops an attachment on a handler thread. Returns it if the calling thread is one, or if there are none any more.
    fn drop_on_handler(&self, attachment: Attachment) -> Result<(), Attachment>;
}

/// An attachment for a connection that may never open. Dropping an attachment runs user code, so this leaves it to a
/// handler thread.
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

    /// Gives the attachment to the session, which drops it from now on.
    pub(crate) fn take(mut self) -> Option<Attachment> {
        self.attachment.take()
    }
}

impl Drop for PendingAttachment {
    fn drop(&mut self) {
        if let Some(attachment) = self.attachment.take()
            && let Err(attachment) = self.handlers.drop_on_handler(attachment)
        {
            // No connection is left to report a panic to.
            catch_panic(|| drop(attachment));
        }
    }
}

/// The response to a request for which there is no memory, or no handler in time.
pub(crate) fn busy() -> Reject {
    Reject::new(503)
        .with_header("Retry-After", "1")
        .with_body("the server is busy: try again in a moment\n")
}

/// The response to a handshake while too many others are being authorised.
pub(crate) fn too_many() -> Reject {
    Reject::new(503)
        .with_header("Retry-After", "1")
        .with_body("too many handshakes wait\n")
}

/// The response to a handshake that arrives during shutdown.
pub(crate) fn shutting_down() -> Reject {
    Reject::new(503)
        .with_header("Retry-After", "5")
        .with_body("the server is shutting down\n")
}

/// The decision about a handshake that a host has read.
pub(crate) enum Verdict {
    /// The host answers with 101 and `AcceptedHandshake::headers`, then hands the connection to `adopt_accepted`.
    Accepted(Box<AcceptedHandshake>),
    /// The host answers with this response.
    Rejected(Reject),
}

/// An accepted handshake whose connection has yet to be handed over. It counts as a connection.
pub(crate) struct AcceptedHandshake {
    pub(crate) request: Arc<RequestHead>,
    pub(crate) handshake: ValidHandshake,
    pub(crate) granted: Granted,
    pub(crate) peer_slot: Option<Box<PeerSlot>>,
    /// `None` once the connection was handed over.
    pub(crate) permit: Option<ConnectionPermit>,
}

impl AcceptedHandshake {
    /// All headers of the 101 response.
    pub(crate) fn headers(&self) -> Vec<(&str, &str)> {
        self.granted.headers(&self.handshake)
    }

    /// Ends the permit, since the connection was handed over and counts itself from now on. Returns whether it was
    /// counted before.
    pub(crate) fn take_permit(&mut self) -> bool {
        self.permit.take().is_some_and(|mut permit| {
            permit.handed_over = true;
            true
        })
    }

    pub(crate) fn grant(&mut self, granted: Granted) {
        self.granted = granted;
    }

    pub(crate) fn into_parts(self) -> (Arc<RequestHead>, Granted) {
        (self.request, self.granted)
    }

    /// Sets the peer's address, for hosts that learn of it only with the connection.
    pub(crate) fn set_peer(&mut self, peer: SocketAddr) {
        // No other owner is left: the handler has returned, and the connection has not begun.
        if let Some(request) = Arc::get_mut(&mut self.request) {
            request.set_peer(peer);
        }
    }

    /// The request that was accepted.
    pub(crate) fn request(&self) -> &RequestHead {
        &self.request
    }
}

/// The counter of connections, for [`ConnectionPermit`].
pub(crate) trait CountConnections: Send + Sync {
    /// Stops counting a request's bytes, and its connection unless that was handed over.
    fn release_permit(&self, bytes: usize, was_handed_over: bool);
}

/// Counts a connection that has yet to be handed over, and the memory of its request.
pub(crate) struct ConnectionPermit {
    pub(crate) counts: Weak<dyn CountConnections>,
    pub(crate) bytes: usize,
    /// Whether the connection was handed over, and counts itself.
    pub(crate) handed_over: bool,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        if let Some(counts) = self.counts.upgrade() {
            counts.release_permit(self.bytes, self.handed_over);
        }
    }
}

/// The callback that waits for a verdict. It is called in any case: dropping it reports a shutdown.
pub(crate) struct OnVerdict(pub(crate) Option<Box<dyn FnOnce(Verdict) + Send>>);

impl OnVerdict {
    pub(crate) fn tell(mut self, verdict: Verdict) {
        if let Some(on_verdict) = self.0.take() {
            on_verdict(verdict);
        }
    }
}

impl Drop for OnVerdict {
    fn drop(&mut self) {
        if let Some(on_verdict) = self.0.take() {
            on_verdict(Verdict::Rejected(shutting_down()));
        }
    }
}
