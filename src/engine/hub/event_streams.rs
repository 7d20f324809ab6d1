//! Beginning and refusing an event stream, from any thread.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::engine::hub::Hub;
use crate::engine::hub::job_port;
use crate::engine::hub::rooms::Reserved;
use crate::engine::model::command::{Command, Subscribing};
use crate::engine::model::room::{NotJoined, Room};
use crate::engine::model::session::{Session, Status};
use crate::engine::parts::mailbox::Weigh;
use crate::origins::Origins;
use crate::protocol::http::{self, BodyMode, Head, Persistence};
use crate::protocol::{cors, event_stream};
use crate::request::Reject;
use crate::sync::lock;

/// What an event stream begins with.
pub(crate) struct Beginning<'a> {
    /// The head of the answer, and what leads to the first event.
    pub(crate) preface: Vec<u8>,
    /// Whose messages it gets, as [`Room::follow`] has returned them.
    pub(crate) rooms: &'a [Arc<Room>],
    pub(crate) keep_alive: Duration,
    /// What it is sent first.
    pub(crate) replay: Vec<Bytes>,
    /// Whether it is in the audience of everyone.
    pub(crate) broadcasts: bool,
}

/// A comment is not sent more often.
const KEEP_ALIVE_MIN: Duration = Duration::from_secs(1);

impl Hub {
    /// The event streams that get what everyone gets, if there are any.
    pub(crate) fn everyone_streams(&self) -> Option<&Arc<Room>> {
        Some(&self.everyone_streams).filter(|streams| streams.len() > 0)
    }

    /// Counts an event stream into the room whose messages it is to get, unless that room is no more: see
    /// [`Room::follow`].
    pub(crate) fn follow(&self, room: &Arc<Room>) -> Option<Arc<Room>> {
        room.follow(|| self.next_channel())
    }

    /// Keeps room in the mailbox of an event stream's shard for its beginning. Waits while it is full.
    pub(crate) fn reserve_stream(
        &self,
        session: &Session,
        bytes: usize,
    ) -> Result<Reserved<'_>, NotJoined> {
        let mailbox = &self.shards[usize::from(session.id.shard)].mailbox;
        Reserved::new(
            mailbox,
            size_of::<Command>() + size_of::<Subscribing>() + bytes,
        )
    }

    /// Has an event stream begin: from now on it gets what the rooms are sent, behind the replay. Never waits, so it may be
    /// called with locks held. If it does not, whoever has followed the rooms is to part from them.
    pub(crate) fn begin_stream(
        &self,
        mut reserved: Reserved<'_>,
        session: &Session,
        beginning: Beginning<'_>,
    ) -> Result<(), NotJoined> {
        let Beginning {
            mut preface,
            rooms,
            keep_alive,
            replay,
            broadcasts,
        } = beginning;
        let of_all = broadcasts.then_some(&self.everyone_streams);
        preface.shrink_to_fit();
        let subscribing = Subscribing {
            key: session.id.key(),
            preface: preface.into(),
            keep_alive: Some(keep_alive.max(KEEP_ALIVE_MIN)),
            rooms: rooms.iter().chain(of_all).cloned().collect(),
            replay,
        };
        let rooms = subscribing.rooms.clone();
        let command = Command::Subscribe(Box::new(subscribing));
        if !reserved.shrink(command.weight()) {
            return Err(NotJoined::Full);
        }
        let mut memberships = lock(&session.rooms);
        if session.status() == Status::Closed {
            return Err(NotJoined::Closed);
        }
        of_all.map(|room| room.enter());
        for room in rooms {
            room.add(session.id);
            memberships.change(&room);
        }
        // Under the session's lock, as for joining a room. Refused only by an engine that stops, and with it goes everything.
        let _ = reserved.push(command, job_port::when(self));
        Ok(())
    }

    /// Answers a request for an event stream otherwise. Waits while its shard's mailbox is full.
    pub(crate) fn refuse_stream(&self, session: &Session, reject: &Reject) {
        let subscribing = Subscribing {
            key: session.id.key(),
            preface: reject.response(BodyMode::Full).into(),
            keep_alive: None,
            rooms: Vec::new(),
            replay: Vec::new(),
        };
        // Refused only by an engine that stops, and answers by itself.
        let _ = self.post(session.id, Command::Subscribe(Box::new(subscribing)), true);
    }
}

impl Hub {
    /// The head of the answer to a request for an event stream.
    pub(crate) fn stream_head(&self, request: &Head) -> Vec<u8> {
        event_stream::response_head(&cors::response_headers(self.access(request), None))
    }

    /// Which pages may read the answer: those that may connect. Where any may, they may not with their visitors' cookies.
    fn access<'a>(&self, request: &'a Head) -> cors::Access<'a> {
        let origins = match &self.settings.origins {
            None | Some(Origins::Any) => return cors::Access::ANY,
            Some(origins) => origins,
        };
        let host = request.header("Host");
        let origin = request.header("Origin");
        let origin = origin.filter(|origin| origins.allows(Some(origin), host));
        cors::Access {
            allows_credentials: origin.is_some(),
            ..cors::Access::checked(origin)
        }
    }

    /// The answer to a method that is neither GET nor HEAD. Pages ask by OPTIONS whether they may send certain headers
    /// (WHATWG Fetch §3.3.5).
    pub(crate) fn other_method(&self, request: &Head) -> Vec<u8> {
        if request.method != "OPTIONS" {
            // RFC 9110 §15.5.6: 405 must name the methods allowed.
            let body = "This is an event stream: it is asked for by GET.\n";
            return http::refusal(405, &[("Allow", METHODS)], body, BodyMode::Full);
        }
        let wanted = request.header("Access-Control-Request-Headers");
        let preflight = cors::Preflight {
            methods: METHODS,
            headers: wanted.unwrap_or_default(),
        };
        let mut headers = cors::response_headers(self.access(request), Some(preflight));
        headers.extend(http::SAFE_HEADERS);
        headers.push(("Allow", METHODS));
        http::response(204, &headers, b"", Persistence::Close, BodyMode::Full)
    }
}

const METHODS: &str = "GET, HEAD, OPTIONS";
