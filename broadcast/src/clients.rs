//! How a client comes in: which room it wants, in what form, and what it has seen already.

use std::time::Instant;

use humphrey_ws::{
    Accept, AsyncStream, CloseCode, HistoryId, JoinError, JoinErrorReason, Message, Reject,
    RequestHead,
};

use crate::json::{Envelope, Live, now_ms};
use crate::name::RoomName;
use crate::on_message::{ON_MESSAGE_HEADER, OnMessage};
use crate::rooms::{Form, Rooms};
use crate::say::{Limited, say};

/// The subprotocols that tell the forms apart. Where a client offers neither, it gets messages as they are.
const PLAIN: &str = "plain.humphrey-broadcast";
const JSON: &str = "json.humphrey-broadcast";

/// The library's own, for clients that ask for JSON with `form=json`, as the page does. Only for them: of messages as they
/// are, the binary ones are no frames of it.
const PROCEDURES: &str = "humphrey_ws.procedures.v1";

/// What is known of a client since its handshake.
#[derive(Debug, Default)]
pub(crate) struct Client {
    pub(crate) room: RoomName,
    /// The last message to everyone, and to its room, that it has seen; of each `None` if it is to get all that is kept.
    seen: [Option<HistoryId>; 2],
}

pub(crate) type Stream = AsyncStream<Client>;

/// Lets clients in.
pub(crate) struct Door {
    pub(crate) rooms: Rooms,
    /// New clients are announced.
    pub(crate) announces: bool,
    on_message: OnMessage,
    said_full: Limited,
}

impl Door {
    pub(crate) fn new(rooms: Rooms, announces: bool, on_message: OnMessage) -> Self {
        Self {
            rooms,
            announces,
            on_message,
            said_full: Limited::default(),
        }
    }

    /// Reads what a client asks for.
    pub(crate) fn handshake(&self, request: &RequestHead) -> Result<Accept<Client>, Reject> {
        let room = RoomName::of_path(request.path()).map_err(bad_request)?;
        let subprotocol = self.subprotocol(request)?;
        let form = form_of(subprotocol);
        let seen = if self.rooms.keeps() {
            self.seen(request, &room, form)?
        } else {
            [None; 2]
        };
        let accept = Accept::new()
            .with_state(Client { room, seen })
            .with_header(ON_MESSAGE_HEADER, self.on_message.name());
        Ok(match subprotocol {
            Some(subprotocol) => accept.with_subprotocol(subprotocol),
            // Messages as they are must not be taken for frames.
            None => accept.without_subprotocol(),
        })
    }

    /// The one that the client likes best, of those that can be had.
    fn subprotocol(&self, request: &RequestHead) -> Result<Option<&'static str>, Reject> {
        let asks_json = request.query_param("form").as_deref() == Some("json");
        let mut wants_json = false;
        for offered in request.subprotocols() {
            match offered {
                PROCEDURES if asks_json && self.rooms.keeps() => return Ok(Some(PROCEDURES)),
                PLAIN => return Ok(Some(PLAIN)),
                JSON if self.rooms.keeps() => return Ok(Some(JSON)),
                JSON => wants_json = true,
                _ => {}
            }
        }
        if wants_json {
            return Err(bad_request(format_args!("{JSON} needs --history")));
        }
        Ok(None)
    }

    fn seen(
        &self,
        request: &RequestHead,
        room: &RoomName,
        form: Form,
    ) -> Result<[Option<HistoryId>; 2], Reject> {
        let since = request.query_param("since").unwrap_or_default();
        if since == "now" {
            // As it is now: what is sent until the client has joined is not lost.
            let last = |name| self.rooms.last_id(name, form);
            return Ok([last(&RoomName::everyone()), last(room)]);
        }
        let id = |text: &str| match text {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(bad_request),
        };
        let room_since = request.query_param("room_since").unwrap_or_default();
        Ok([id(&since)?, id(&room_since)?])
    }

    /// Has a client join its room, and be sent what it has missed; or turns it away.
    pub(crate) fn enter(&self, stream: &Stream) {
        match self.join(stream) {
            Ok(()) if self.announces => {
                let text = format!("Welcome, {}!", stream.peer_addr());
                self.rooms.announce(&stream.state.room, text);
            }
            Ok(()) => {}
            Err(error) => self.turn_away(stream, &error),
        }
    }

    fn join(&self, stream: &Stream) -> Result<(), JoinError> {
        let everyone = RoomName::everyone();
        let room = &stream.state.room;
        let form = form_of(stream.subprotocol());
        let [seen, room_seen] = stream.state.seen;
        let mut complete = self.join_one(stream, &everyone, form, seen)?;
        if !room.is_everyone() {
            complete &= self.join_one(stream, room, form, room_seen)?;
        }
        if form == Form::Json {
            let last = |name| self.rooms.last_id(name, form);
            let live = Live {
                server: self.rooms.server(),
                complete,
                last: [
                    last(&everyone),
                    (!room.is_everyone()).then(|| last(room)).flatten(),
                ],
            };
            stream.send(live.render());
        }
        Ok(())
    }

    /// Whether the client gets all that it has missed.
    fn join_one(
        &self,
        stream: &Stream,
        room: &RoomName,
        form: Form,
        seen: Option<HistoryId>,
    ) -> Result<bool, JoinError> {
        if self.announces
            && let Some(name) = self.rooms.library_name(room, form, true)
        {
            stream.try_join(&name)?;
        }
        let Some(name) = self.rooms.library_name(room, form, false) else {
            // Everyone is in it already.
            return Ok(true);
        };
        match stream.join_since(&name, seen) {
            // Who has seen nothing yet gets all there was, if all of it is kept.
            Ok(_) => Ok(seen.is_some() || self.rooms.keeps_all(&name)),
            Err(error) if error.reason == JoinErrorReason::HistoryGone => {
                stream.join_since(&name, None).map(|_| false)
            }
            Err(error) => Err(error),
        }
    }

    fn turn_away(&self, stream: &Stream, error: &JoinError) {
        match error.reason {
            // It has gone by itself.
            JoinErrorReason::Closed => {}
            JoinErrorReason::Rooms => {
                if let Some(left_out) = self.said_full.due(Instant::now()) {
                    say!(
                        "warning: there are as many rooms as --max-rooms allows: clients that ask for others are turned \
                         away{left_out}"
                    );
                }
                stream.close(CloseCode::TRY_AGAIN_LATER, "there are too many rooms");
            }
            _ => stream.close(CloseCode::POLICY_VIOLATION, "the room can't be joined"),
        }
    }
}

/// Sends a client its own message back.
pub(crate) fn echo(stream: &Stream, message: Message, bytes_max: usize) {
    let message = match form_of(stream.subprotocol()) {
        Form::Plain => message,
        Form::Json => {
            let reply = Envelope {
                kind: "reply",
                room: &stream.state.room,
                id: None,
                at_ms: now_ms(),
                message: &message,
            };
            reply.render(bytes_max)
        }
    };
    stream.send(message);
}

fn form_of(subprotocol: Option<&str>) -> Form {
    match subprotocol {
        Some(JSON | PROCEDURES) => Form::Json,
        _ => Form::Plain,
    }
}

pub(crate) fn bad_request(why: impl std::fmt::Display) -> Reject {
    Reject::new(400).with_body(format!("{why}\n"))
}
