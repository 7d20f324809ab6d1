//! The program as the engine calls it: each event is passed to the handler that the app has for it.

use std::any::{Any, TypeId, type_name};
use std::sync::Arc;

use super::event_stream::EventStreams;
use super::handler::{AnyMessageHandler, BodyGuard, EventHandler, HandshakeHandler, RoomHandler};
use super::history::matches;
use super::presence::PresentConnection;
use super::procedures::{self, Serving};
use super::publish::AppShared;
use super::room::Room;
use super::stream::AsyncStream;
use super::stream_link::MessageBatch;
use crate::engine::{
    self, Encoding, Expiry, HandshakeAccept, MessageRun, MessageVerdict, PeerEnd, Presence,
    Program, Request, Response, Session, Subscriptions,
};
use crate::host::Routes;
use crate::message::Message;
use crate::presence::Announced;
use crate::request::{Accept, Reject, RequestHead};

/// Implements the engine's `Program` for an app.
pub(super) struct AppProgram<State, StreamState>
where
    StreamState: Send + Sync + Default + 'static,
{
    pub(super) state: Arc<State>,
    pub(super) shared: Arc<AppShared>,
    pub(super) on_handshake: Option<Box<dyn HandshakeHandler<State, StreamState>>>,
    pub(super) on_connect: Option<Box<dyn EventHandler<State, StreamState>>>,
    pub(super) on_message: Option<AnyMessageHandler<State, StreamState>>,
    pub(super) on_disconnect: Option<Box<dyn EventHandler<State, StreamState>>>,
    pub(super) on_room: Option<Box<dyn RoomHandler<State, StreamState>>>,
    pub(super) serving: Option<Serving<State, StreamState>>,
    pub(super) on_body: Option<Box<dyn BodyGuard<State>>>,
    pub(super) routes: Option<Routes<State>>,
    pub(super) event_streams: EventStreams<State>,
}

impl<State, StreamState> AppProgram<State, StreamState>
where
    State: Send + Sync + 'static,
    StreamState: Send + Sync + Default + 'static,
{
    fn stream(&self, session: &Arc<Session>) -> AsyncStream<StreamState> {
        // Created on a handler thread, since `StreamState::default` is user code and may block.
        let attachment = session
            .attachment
            .get_or_init(|| Arc::new(StreamState::default()) as Arc<dyn Any + Send + Sync>);
        let state = attachment
            .clone()
            .downcast::<StreamState>()
            .unwrap_or_else(|_| unreachable!("only this app attaches anything to its sessions"));
        AsyncStream::of_session(session, &self.shared, state)
    }

    /// Whether clients can prolong their sessions.
    fn refreshes(&self) -> bool {
        self.serving.as_ref().is_some_and(Serving::refreshes)
    }

    /// Tells the room handler that a member of this node has come or gone.
    pub(super) fn announce(&self, announced: Announced<PresentConnection>) {
        let Announced {
            room,
            connection: PresentConnection(session),
            has_joined,
        } = announced;
        let Some(handler) = &self.on_room else {
            return;
        };
        let stream = match session.encoding {
            Encoding::Frames => self.stream(&session),
            // Its attachment is not a state of the app.
            Encoding::Events => {
                AsyncStream::of_session(&session, &self.shared, Arc::new(StreamState::default()))
            }
        };
        let change = match has_joined {
            true => Presence::Joined,
            false => Presence::Left,
        };
        let room = Room::of(self.shared.clone(), room);
        handler(room, stream, change, self.state.clone());
    }
}

impl<State, StreamState> Program for AppProgram<State, StreamState>
where
    State: Send + Sync + 'static,
    StreamState: Send + Sync + Default + 'static,
{
    fn subscriptions(&self) -> Subscriptions {
        Subscriptions {
            open: self.on_connect.is_some() || self.refreshes(),
            message: self.on_message.is_some() || self.serving.is_some(),
            close: self.on_disconnect.is_some() || self.serving.is_some(),
            request: self.routes.is_some(),
            handshake: self.on_handshake.is_some(),
            guard: self.on_body.is_some(),
            room: self.on_room.is_some(),
            subprotocol_with_ids: Some(crate::protocol::procedures::V1),
            subprotocols: match self.serving {
                Some(_) => procedures::SUBPROTOCOLS,
                None => &[],
            },
        }
    }

    fn entered(&self, session: &Arc<Session>) {
        if let Some(serving) = &self.serving {
            serving.begin(session);
        }
        self.shared.directory.enter(session);
    }

    fn left(&self, session: &Session) {
        self.shared.directory.leave(session);
        self.ending(session, PeerEnd::Gone);
    }

    fn drained(&self) {
        self.shared.end_drain();
    }

    fn stream_ended(&self, session: &Session) {
        if let Some(presence) = self.shared.rooms.presence() {
            presence.stream_ended(session);
        }
    }

    fn received(
        &self,
        session: &Arc<Session>,
        message: &Message,
        outbox_has_room: bool,
    ) -> MessageVerdict {
        procedures::received(session, &self.shared, message, outbox_has_room)
    }

    fn ending(&self, session: &Session, ending: PeerEnd) {
        procedures::ends(session, &self.shared, ending);
    }

    fn ended_in(&self, session: &Session, room: &engine::SharedRoom) {
        if let Some(presence) = self.shared.rooms.presence() {
            presence.ended_in(room, session);
        }
    }

    fn emptied(&self, room: &engine::SharedRoom) {
        self.shared.rooms.emptied(room);
    }

    fn attachment_type(&self) -> (TypeId, &'static str) {
        (TypeId::of::<StreamState>(), type_name::<StreamState>())
    }

    fn handshake(&self, request: &RequestHead) -> Result<HandshakeAccept, Reject> {
        let Some(handler) = &self.on_handshake else {
            return Ok(HandshakeAccept::default());
        };
        let Accept {
            state,
            subprotocol,
            no_subprotocol,
            headers,
            user,
            expires_at,
            rendered,
        } = handler(request, self.state.clone())?;
        let subprotocol = subprotocol.or_else(|| {
            let known = self.subscriptions().subprotocols;
            (!no_subprotocol).then(|| request.choose_subprotocol(known))?
        });
        Ok(HandshakeAccept {
            subprotocol,
            headers,
            attachment: state.map(|state| Arc::new(state) as Arc<dyn Any + Send + Sync>),
            user,
            expiry: expires_at.and_then(Expiry::at_time),
            rendered: rendered && self.shared.has_renderer(),
        })
    }

    fn has_event_stream(&self, path: &str) -> bool {
        self.event_streams
            .iter()
            .any(|(pattern, _)| matches(pattern, path))
    }

    fn event_stream(&self, request: &RequestHead) -> Result<HandshakeAccept, Reject> {
        let mut streams = self.event_streams.iter();
        let (_, handler) = streams
            .find(|(pattern, _)| matches(pattern, request.path()))
            .ok_or_else(|| Reject::new(404))?;
        let mut subscription = handler(request, self.state.clone())?;
        Ok(HandshakeAccept {
            user: subscription.user.take(),
            expiry: subscription.expires_at.and_then(Expiry::at_time),
            attachment: Some(self.shared.pending_subscription(request, subscription)),
            ..HandshakeAccept::default()
        })
    }

    fn open(&self, session: &Arc<Session>, request: Option<&Arc<RequestHead>>) {
        if session.encoding == Encoding::Events {
            self.shared.subscribe(session);
            return;
        }
        self.shared.tell_first_expiry(session);
        if let Some(handler) = &self.on_connect {
            let stream = self.stream(session).with_request(request);
            handler(stream, self.state.clone());
        }
    }

    fn messages(&self, session: &Arc<Session>, messages: &mut MessageRun<'_, '_>) {
        let _batch = MessageBatch::begin(session);
        let mut lent = None;
        for message in messages {
            if let Some(serving) = &self.serving
                && serving.takes(session, &message)
            {
                let stream = || self.stream(session);
                serving.serve(session, &self.shared, &message, stream, self.state.clone());
                continue;
            }
            match &self.on_message {
                Some(AnyMessageHandler::Owning(handler)) => {
                    handler(self.stream(session), message, self.state.clone());
                }
                Some(AnyMessageHandler::Borrowing(handler)) => {
                    let stream = lent.get_or_insert_with(|| self.stream(session));
                    handler(stream, message, &self.state);
                }
                None => self.shared.counters.dropped_unhandled.add(1),
            }
        }
    }

    fn nudged(&self, session: &Arc<Session>) {
        procedures::nudged(session, &self.shared);
    }

    fn room(&self, session: &Arc<Session>, room: &Arc<engine::SharedRoom>, change: Presence) {
        let presence = self.shared.rooms.presence();
        if presence.is_some_and(|presence| presence.covers(&room.name)) {
            // It is announced once for each member.
            return;
        }
        if let Some(handler) = &self.on_room {
            let room = Room::of(self.shared.clone(), room.name.clone());
            handler(room, self.stream(session), change, self.state.clone());
        }
    }

    fn close(&self, session: &Arc<Session>) {
        procedures::close(session, &self.shared);
        if let Some(handler) = &self.on_disconnect
            && session.encoding == Encoding::Frames
        {
            handler(self.stream(session), self.state.clone());
        }
    }

    fn request(&self, request: Request) -> Response {
        match &self.routes {
            Some(routes) => routes.serve(request, &self.state),
            None => unreachable!("the engine asks only where there are routes"),
        }
    }

    fn refusal(&self, request: &engine::Head) -> Option<Vec<u8>> {
        self.routes.as_ref()?.refusal(request)
    }

    fn guard(&self, request: &RequestHead) -> Result<(), Reject> {
        match &self.on_body {
            Some(guard) => {
                guard(request, self.state.clone()).map_err(|reject| match &self.routes {
                    Some(routes) => routes.readable(reject, request.head()),
                    None => reject,
                })
            }
            None => Ok(()),
        }
    }
}
