//! What the engine tells the program, and about whom.
//!
//! The engine calls up through the one trait [`Program`]; it knows neither the program's handlers nor its states.

use std::any::{Any, TypeId};
use std::sync::Arc;

use crate::engine::model::request::{Request, Response};
use crate::engine::model::room::{Presence, Room};
use crate::engine::model::session::Session;
use crate::engine::parts::expiry::Expiry;
use crate::message::Message;
use crate::protocol::close::CloseCode;
use crate::protocol::http::Head;
use crate::request::{Reject, RequestHead};

/// How the program accepts a handshake, or a request for an event stream.
#[derive(Default)]
pub(crate) struct HandshakeAccept {
    pub(crate) subprotocol: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
    /// What the program keeps for the session from the start.
    pub(crate) attachment: Option<Arc<dyn Any + Send + Sync>>,
    /// Whom the connection belongs to.
    pub(crate) user: Option<String>,
    pub(crate) expiry: Option<Expiry>,
}

/// Which events the program has a handler for; the others cost it nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Subscriptions {
    pub(crate) open: bool,
    pub(crate) message: bool,
    pub(crate) close: bool,
    pub(crate) request: bool,
    pub(crate) handshake: bool,
    /// Requests with a body are asked about before it is read.
    pub(crate) guard: bool,
    pub(crate) room: bool,
    /// Subprotocols that the program speaks by itself. The first that a client offers is chosen, unless the handshake
    /// handler has chosen.
    pub(crate) subprotocols: &'static [&'static str],
    /// The subprotocol whose sessions receive the messages of rooms that keep a history with their room and id.
    pub(crate) subprotocol_with_ids: Option<&'static str>,
}

/// What becomes of a message that was just received.
pub(crate) enum MessageVerdict {
    /// It is kept for the handlers.
    Keep,
    /// Nothing more is to be done.
    Done,
    /// This is sent at once.
    Answer(Message),
    /// Nothing more is received; what came before is handled, then the connection is closed with this.
    Refuse(CloseCode, String),
}

/// Why a session's client is not listened to any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerEnd {
    /// It has broken the rules: what came before is still handled, and answered.
    Refused,
    /// Nobody waits for answers.
    Gone,
}

/// The program, as the engine sees it.
///
/// `entered`, `left`, `emptied`, `received` and `ending` are called on the shard's thread and return at once. The others are called where they
/// may block, on a handler thread, or on the shard's own while it is lent out: for one session never two at a time, and
/// in this order: `open`, each `message` as it was sent, `close`, each exactly once. In between is `room`, once for each
/// change, as they were made. `handshake` is before all of them, while there is no session yet.
pub(crate) trait Program: Send + Sync + 'static {
    fn subscriptions(&self) -> Subscriptions;

    fn entered(&self, session: &Arc<Session>);
    fn left(&self, session: &Session);
    /// A message has come, while handlers may still be at work for its session. Only for sessions that have a talk
    /// (`Session::set_protocol_state`); `outbox_has_room` is whether an answer would fit into the outbox.
    fn received(
        &self,
        _session: &Arc<Session>,
        _message: &Message,
        _outbox_has_room: bool,
    ) -> MessageVerdict {
        MessageVerdict::Keep
    }
    /// Nothing more will be received. Only for sessions that have a talk; told once or more, while handlers may still be
    /// at work.
    fn ending(&self, _session: &Session, _ending: PeerEnd) {}
    /// Nobody is in a room any more: it is no more, unless it stays.
    fn emptied(&self, room: &Room);

    /// The type of what the program keeps for a session, and its name: an attachment of another type must not be granted.
    #[cfg_attr(not(feature = "axum"), allow(dead_code))]
    fn attachment_type(&self) -> (TypeId, &'static str) {
        (TypeId::of::<()>(), "()")
    }
    /// May this client come in?
    fn handshake(&self, request: &RequestHead) -> Result<HandshakeAccept, Reject>;
    /// Whether requests for this path are for an event stream. Returns at once, like `entered`.
    fn has_event_stream(&self, _path: &str) -> bool {
        false
    }
    /// What the client of an event stream is to get, as its session's attachment, which `open` puts into effect. Such a
    /// session has no other events.
    fn event_stream(&self, _request: &RequestHead) -> Result<HandshakeAccept, Reject> {
        Err(Reject::new(404))
    }
    /// The request is the one that the session began with, if it is known.
    fn open(&self, session: &Arc<Session>, request: Option<&Arc<RequestHead>>);
    fn message(&self, session: &Arc<Session>, message: Message);
    fn room(&self, session: &Arc<Session>, room: &Arc<Room>, change: Presence);
    /// The program has asked for this (`Hub::nudge`).
    fn nudged(&self, _session: &Arc<Session>) {}
    fn close(&self, session: &Arc<Session>);
    fn request(&self, request: Request) -> Response;
    /// The answer to a request that no route would take, whatever its body. Returns at once, like `entered`.
    fn refusal(&self, _request: &Head) -> Option<Vec<u8>> {
        None
    }
    /// May a body be sent with this request? Asked before it is read, on a handler thread.
    fn guard(&self, _request: &RequestHead) -> Result<(), Reject> {
        Ok(())
    }
}
