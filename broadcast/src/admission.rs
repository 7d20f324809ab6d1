//! Admission of clients: which room a client joins, in which message form, and which kept messages it has already seen.

use std::time::Instant;

use humphrey_ws::{
    Accept, AsyncStream, CloseCode, HistoryId, JoinError, JoinErrorReason, Message, Reject,
    RequestHead,
};

use crate::diagnostics::{RateLimit, report};
use crate::json::{Envelope, ReplayEnd, now_ms};
use crate::on_message::{ON_MESSAGE_HEADER, OnMessage};
use crate::room_name::RoomName;
use crate::rooms::{MessageForm, Rooms};

/// The subprotocols that select the message form. A client that offers neither gets plain messages.
const PLAIN: &str = "plain.humphrey-broadcast";
const JSON: &str = "json.humphrey-broadcast";

/// The library's own subprotocol, accepted only from clients that ask for JSON with `form=json`, as the page does:
/// plain binary messages would not be valid frames of it.
const PROCEDURES: &str = "humphrey_ws.procedures.v1";

/// The state of a client since its handshake.
#[derive(Debug, Default)]
pub(crate) struct ClientState {
    pub(crate) room: RoomName,
    /// Where the messages to everyone begin, and those to the room.
    starts: [Start; 2],
}

/// Where the messages of a room begin for a client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Start {
    /// With the next message, since none are kept.
    #[default]
    Next,
    /// With all kept messages.
    All,
    /// With those after this one.
    After(HistoryId),
}

impl Start {
    /// The start after the last message of a room.
    fn after(last: Option<HistoryId>) -> Self {
        last.map_or(Self::All, Self::After)
    }

    /// Parses an id. An empty one stands for all kept messages, as `all` does.
    fn parse(text: &str) -> Result<Self, Reject> {
        match text {
            "" | "all" => Ok(Self::All),
            id => id.parse().map(Self::After).map_err(bad_request),
        }
    }
}

pub(crate) type ClientStream = AsyncStream<ClientState>;

/// Accepts handshakes and joins clients to their rooms.
pub(crate) struct Admission {
    pub(crate) rooms: Rooms,
    /// Whether new clients are announced.
    pub(crate) announces_clients: bool,
    on_message: OnMessage,
    rooms_full_warning: RateLimit,
}

impl Admission {
    pub(crate) fn new(rooms: Rooms, announces_clients: bool, on_message: OnMessage) -> Self {
        Self {
            rooms,
            announces_clients,
            on_message,
            rooms_full_warning: RateLimit::default(),
        }
    }

    /// Parses the request: room, subprotocol and the position to resume from. Rejects malformed ones with 400.
    pub(crate) fn on_handshake(
        &self,
        request: &RequestHead,
    ) -> Result<Accept<ClientState>, Reject> {
        let room = RoomName::from_path(request.path()).map_err(bad_request)?;
        let subprotocol = self.subprotocol(request)?;
        let form = form_for(subprotocol);
        let starts = match self.rooms.has_history() {
            true => self.starts(request, &room, form)?,
            false => [Start::Next; 2],
        };
        let accept = Accept::new()
            .with_state(ClientState { room, starts })
            .with_header(ON_MESSAGE_HEADER, self.on_message.name());
        let accept = match form {
            MessageForm::Plain => accept,
            MessageForm::Json => accept.rendered(),
        };
        Ok(match subprotocol {
            Some(subprotocol) => accept.with_subprotocol(subprotocol),
            // A subprotocol would make the client parse plain messages as frames.
            None => accept.without_subprotocol(),
        })
    }

    /// The first offered subprotocol that is available.
    fn subprotocol(&self, request: &RequestHead) -> Result<Option<&'static str>, Reject> {
        let requests_json = request.query_param("form").as_deref() == Some("json");
        let mut wants_json = false;
        for offered in request.subprotocols() {
            match offered {
                PROCEDURES if requests_json && self.rooms.has_history() => {
                    return Ok(Some(PROCEDURES));
                }
                PLAIN => return Ok(Some(PLAIN)),
                JSON if self.rooms.has_history() => return Ok(Some(JSON)),
                JSON => wants_json = true,
                _ => {}
            }
        }
        if wants_json {
            return Err(bad_request(format_args!(
                "the subprotocol {JSON} needs a server that keeps a history (--history)"
            )));
        }
        Ok(None)
    }

    /// Where a client wants to begin. Only clients that ask for it get kept messages: with `since`, or by asking for JSON.
    fn starts(
        &self,
        request: &RequestHead,
        room: &RoomName,
        form: MessageForm,
    ) -> Result<[Start; 2], Reject> {
        let since = request.query_param("since");
        let room_since = request.query_param("room_since");
        let asks = since.is_some() || room_since.is_some() || form == MessageForm::Json;
        if !asks || since.as_deref() == Some("now") {
            // Taken now, so that messages sent between the handshake and the join are replayed.
            let last = |name: Option<String>| {
                Start::after(name.and_then(|name| self.rooms.last_id(&name)))
            };
            let everyone = self.rooms.library_name(&RoomName::everyone());
            return Ok([last(everyone), last(self.rooms.second_library_name(room))]);
        }
        let start = |id: Option<String>| Start::parse(id.as_deref().unwrap_or_default());
        Ok([start(since)?, start(room_since)?])
    }

    /// Joins a client to its room and replays missed messages; disconnects it if the room cannot be joined.
    pub(crate) fn on_connect(&self, stream: &ClientStream) {
        match self.join(stream) {
            Ok(()) if self.announces_clients => {
                let text = format!("Welcome, {}!", address_of(stream));
                self.rooms.announce(&stream.state.room, text);
            }
            Ok(()) => {}
            Err(error) => self.disconnect(stream, &error),
        }
    }

    fn join(&self, stream: &ClientStream) -> Result<(), JoinError> {
        let everyone = RoomName::everyone();
        let room = &stream.state.room;
        let form = form_for(stream.subprotocol());
        if self.announces_clients {
            self.join_announcements(stream, &everyone, form)?;
            if !room.is_everyone() {
                self.join_announcements(stream, room, form)?;
            }
        }
        // Without a history, every connection belongs to the library's broadcast group.
        let names = [
            self.rooms.library_name(&everyone),
            self.rooms.second_library_name(room),
        ];
        let mut is_complete = true;
        for (name, start) in names.iter().zip(stream.state.starts) {
            if let Some(name) = name {
                is_complete &= self.join_room(stream, name, start)?;
            }
        }
        if form == MessageForm::Json {
            let replay_end = ReplayEnd {
                server_id: self.rooms.server_id(),
                is_complete,
                last_ids: names.map(|name| self.rooms.last_id(&name?)),
            };
            stream.send(replay_end.render());
        }
        Ok(())
    }

    /// Joins the room for announcements to a room, if announcements have one.
    fn join_announcements(
        &self,
        stream: &ClientStream,
        room: &RoomName,
        form: MessageForm,
    ) -> Result<(), JoinError> {
        match self.rooms.announcement_name(room, form) {
            Some(name) => stream.try_join(&name),
            None => Ok(()),
        }
    }

    /// Joins one of the library's rooms. Returns whether the replay is complete.
    fn join_room(
        &self,
        stream: &ClientStream,
        name: &str,
        start: Start,
    ) -> Result<bool, JoinError> {
        let seen = match start {
            Start::Next => return stream.try_join(name).map(|()| true),
            Start::All => None,
            Start::After(id) => Some(id),
        };
        match stream.join_since(name, seen) {
            // A client that has seen nothing gets a complete replay only if nothing was evicted from the history.
            Ok(_) => Ok(seen.is_some() || self.rooms.has_full_history(name)),
            Err(error) if error.reason == JoinErrorReason::HistoryGone => {
                stream.join_since(name, None).map(|_| false)
            }
            Err(error) => Err(error),
        }
    }

    fn disconnect(&self, stream: &ClientStream, error: &JoinError) {
        match error.reason {
            // The client disconnected first.
            JoinErrorReason::Closed => {}
            JoinErrorReason::Rooms => {
                if let Some(suppressed) = self.rooms_full_warning.due(Instant::now()) {
                    report!(
                        "warning: the limit of --max-rooms is reached: clients that ask for further rooms are disconnected \
                         with code 1013{suppressed}"
                    );
                }
                stream.close(CloseCode::TRY_AGAIN_LATER, "there are too many rooms");
            }
            #[cfg(feature = "cluster")]
            JoinErrorReason::Broker => {
                let why = "the history can't be read, since the server can't reach its broker";
                stream.close(CloseCode::TRY_AGAIN_LATER, why);
            }
            _ => stream.close(CloseCode::POLICY_VIOLATION, "the room can't be joined"),
        }
    }
}

/// Sends a client's message back to that client.
pub(crate) fn echo(stream: &ClientStream, message: Message, bytes_max: usize) {
    let message = match form_for(stream.subprotocol()) {
        MessageForm::Plain => message,
        MessageForm::Json => {
            let reply = Envelope {
                kind: "reply",
                room: stream.state.room.as_str(),
                id: None,
                at_ms: now_ms(),
                message: &message,
            };
            reply.render(bytes_max)
        }
    };
    stream.send(message);
}

/// The address of a client. Behind a trusted proxy, only its IP is known.
fn address_of(stream: &ClientStream) -> String {
    let (peer, client) = (stream.peer_addr(), stream.client_ip());
    match peer.ip().to_canonical() == client.to_canonical() {
        true => peer.to_string(),
        false => client.to_string(),
    }
}

fn form_for(subprotocol: Option<&str>) -> MessageForm {
    match subprotocol {
        Some(JSON | PROCEDURES) => MessageForm::Json,
        _ => MessageForm::Plain,
    }
}

pub(crate) fn bad_request(why: impl std::fmt::Display) -> Reject {
    Reject::new(400).with_body(format!("{why}\n"))
}
