//! The engine's interface to the program.
//!
//! The engine calls up through the one trait [`Program`]; it knows neither the program's handlers nor its states.

use std::any::{Any, TypeId};
use std::sync::Arc;

use crate::engine::model::job::MessageRun;
use crate::engine::model::request::{Request, Response};
use crate::engine::model::room::{Presence, SharedRoom};
use crate::engine::model::session::Session;
use crate::engine::parts::expiry::Expiry;
use crate::message::Message;
use crate::protocol::close::CloseCode;
use crate::protocol::http::Head;
use crate::request::{Reject, RequestHead};

/// The program's acceptance of a handshake, or of a request for an event stream.
#[derive(Default)]
pub(crate) struct HandshakeAccept {
    pub(crate) subprotocol: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
    /// The attachment of the session.
    pub(crate) attachment: Option<Arc<dyn Any + Send + Sync>>,
    /// The user that the connection belongs to.
    pub(crate) user: Option<String>,
    pub(crate) expiry: Option<Expiry>,
    /// Whether the client receives rendered messages of rooms with a history.
    pub(crate) rendered: bool,
}

/// The events that the program has handlers for. Other events cost the program nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Subscriptions {
    pub(crate) open: bool,
    pub(crate) message: bool,
    pub(crate) close: bool,
    pub(crate) request: bool,
    pub(crate) handshake: bool,
    /// Whether requests with a body are authorised before the body is read.
    pub(crate) guard: bool,
    pub(crate) room: bool,
    /// Subprotocols that the program speaks itself. If the handshake handler has chosen none, the first that the client
    /// offers is used.
    pub(crate) subprotocols: &'static [&'static str],
    /// The subprotocol whose sessions receive the messages of rooms with history together with room and id.
    pub(crate) subprotocol_with_ids: Option<&'static str>,
}

/// The program's decision about a message that was just received.
pub(crate) enum MessageVerdict {
    /// Queue it for the handlers.
    Keep,
    /// It is dealt with: nothing is queued.
    Done,
    /// Send this reply at once.
    Answer(Message),
    /// Receive nothing more; handle the messages before it, then close the connection with this code and reason.
    Refuse(CloseCode, String),
}

/// Why nothing more is received from a session's client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerEnd {
    /// The client has broken the protocol. Earlier messages are still handled and answered.
    Refused,
    /// The client is gone, and can't receive answers.
    Gone,
}

/// The program, as the engine calls it.
///
/// `entered`, `left`, `ended_in`, `stream_ended`, `drained`, `emptied`, `received` and `ending` are called on the shard's thread and must return at
/// once. The others may block: they are called on a handler thread, or on the shard's own while the shard is lent out. For one
/// session, calls never overlap. Their order is `open`, `messages` for all messages in the order sent, and `close`, each
/// exactly once. `room` is called in between, once for each change, in order. `handshake` is called before the session
/// exists.
pub(crate) trait Program: Send + Sync + 'static {
    fn subscriptions(&self) -> Subscriptions;

    fn entered(&self, session: &Arc<Session>);
    fn left(&self, session: &Session);
    /// Called when a connection has ended that was in this room.
    fn ended_in(&self, _session: &Session, _room: &SharedRoom) {}
    /// Called when an event stream has ended, or when the request for one has.
    fn stream_ended(&self, _session: &Session) {}
    /// Called when a message arrives, possibly while handlers run for its session. Only for sessions with a protocol
    /// state (`Session::set_protocol_state`). `outbox_has_room`: a reply would fit into the outbox.
    fn received(
        &self,
        _session: &Arc<Session>,
        _message: &Message,
        _outbox_has_room: bool,
    ) -> MessageVerdict {
        MessageVerdict::Keep
    }
    /// Called when nothing more will be received, at least once, possibly while handlers run. Only for sessions with a
    /// protocol state.
    fn ending(&self, _session: &Session, _ending: PeerEnd) {}
    /// Called when the time of `Hub::drain` is over, or no connection is left before: the program stops the engine.
    fn drained(&self) {}
    /// Called when a room has become empty. It is retired then, unless it keeps a history.
    fn emptied(&self, room: &SharedRoom);

    /// The type of the program's attachments, and its name. An attachment of another type must not be granted.
    #[cfg_attr(not(feature = "axum"), allow(dead_code))]
    fn attachment_type(&self) -> (TypeId, &'static str) {
        (TypeId::of::<()>(), "()")
    }
    /// Decides whether a handshake is accepted.
    fn handshake(&self, request: &RequestHead) -> Result<HandshakeAccept, Reject>;
    /// Returns whether requests for this path are for an event stream. Called on the shard's thread: must return at
    /// once.
    fn has_event_stream(&self, _path: &str) -> bool {
        false
    }
    /// Decides about a request for an event stream. The granted attachment describes the messages that the client
    /// receives, and `open` subscribes the session to them. Such a session has no other events.
    fn event_stream(&self, _request: &RequestHead) -> Result<HandshakeAccept, Reject> {
        Err(Reject::new(404))
    }
    /// Called when a session begins, with its request if that is known.
    fn open(&self, session: &Arc<Session>, request: Option<&Arc<RequestHead>>);
    /// Called with messages that were received, to handle each of them in order.
    fn messages(&self, session: &Arc<Session>, messages: &mut MessageRun<'_, '_>);
    fn room(&self, session: &Arc<Session>, room: &Arc<SharedRoom>, change: Presence);
    /// Called after the program asked for it with `Hub::nudge`.
    fn nudged(&self, _session: &Arc<Session>) {}
    fn close(&self, session: &Arc<Session>);
    fn request(&self, request: Request) -> Response;
    /// Returns the response to a request that no route accepts, whatever its body. Called on the shard's thread: must
    /// return at once.
    fn refusal(&self, _request: &Head) -> Option<Vec<u8>> {
        None
    }
    /// Decides whether a request may have a body, before the body is read.
    fn guard(&self, _request: &RequestHead) -> Result<(), Reject> {
        Ok(())
    }
}
