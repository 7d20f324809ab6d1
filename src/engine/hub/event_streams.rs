//! Beginning and refusing an event stream, from any thread.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::hub::Hub;
use crate::engine::hub::job_port;
use crate::engine::hub::rooms::Reserved;
use crate::engine::model::command::{Command, KeyedSnapshot, Subscribing};
use crate::engine::model::replay::Replay;
use crate::engine::model::room::{NotJoined, SharedRoom};
use crate::engine::model::session::{Session, Status};
use crate::engine::parts::mailbox::Weigh;
use crate::origins::Origins;
use crate::protocol::event_stream::JoinedIds;
use crate::protocol::http::{self, BodyMode, Head, Persistence};
use crate::protocol::{cors, event_stream};
use crate::request::Reject;
use crate::sync::lock;

/// The beginning of an event stream.
pub(crate) struct Beginning<'a> {
    /// The head of the response, and the bytes before the first event.
    pub(crate) preface: Vec<u8>,
    /// The rooms whose messages the stream receives, as returned by [`SharedRoom::follow`].
    pub(crate) rooms: &'a [Arc<SharedRoom>],
    pub(crate) keep_alive: Duration,
    /// Kept messages of the rooms, to be sent after the preface.
    pub(crate) replay: Replay,
    /// The newest message of each key of the keyed rooms, to be sent after the replay.
    pub(crate) snapshot: KeyedSnapshot,
    /// Whether it receives broadcasts to everyone.
    pub(crate) broadcasts: bool,
    /// The positions that the ids of all events after the preface have to name, if they name several.
    pub(crate) joined_ids: Option<JoinedIds>,
}

/// The shortest interval of comments.
const KEEP_ALIVE_MIN: Duration = Duration::from_secs(1);

impl Hub {
    /// The room of the event streams that receive broadcasts to everyone, if there are any.
    pub(crate) fn everyone_streams(&self) -> Option<&Arc<SharedRoom>> {
        Some(&self.everyone_streams).filter(|streams| streams.is_held())
    }

    /// Counts a new event stream of a room, unless the room is retired. See [`SharedRoom::follow`].
    pub(crate) fn follow(&self, room: &Arc<SharedRoom>) -> Option<Arc<SharedRoom>> {
        room.follow(|| self.next_channel())
    }

    /// Reserves space in the mailbox of an event stream's shard for its beginning. Blocks while the mailbox is full.
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

    /// Begins an event stream: its client receives the replay, then the messages sent to the rooms from now on. Never
    /// blocks, so it may be called while holding locks. If it fails, the caller must call [`SharedRoom::leave`] for
    /// each room of the stream.
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
            snapshot,
            broadcasts,
            joined_ids,
        } = beginning;
        let of_all = broadcasts.then_some(&self.everyone_streams);
        preface.shrink_to_fit();
        let subscribing = Subscribing {
            key: session.id.key(),
            preface: preface.into(),
            keep_alive: Some(keep_alive.max(KEEP_ALIVE_MIN)),
            rooms: rooms.iter().chain(of_all).cloned().collect(),
            replay,
            snapshot,
            joined_ids: joined_ids.map(Box::new),
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
        for room in &rooms {
            room.reach(session.id.shard);
            memberships.change(room);
        }
        // Pushed under the session's lock, as for joining a room. Refused only while the engine stops, which ends all
        // streams.
        let _ = reserved.push(command, job_port::when(self));
        for room in rooms {
            room.add(session.id);
        }
        Ok(())
    }

    /// Answers a request for an event stream with a rejection. Blocks while its shard's mailbox is full.
    pub(crate) fn refuse_stream(&self, session: &Session, reject: &Reject) {
        let subscribing = Subscribing {
            key: session.id.key(),
            preface: reject.response(BodyMode::Full).into(),
            keep_alive: None,
            rooms: Vec::new(),
            replay: Replay::default(),
            snapshot: Vec::new(),
            joined_ids: None,
        };
        // Refused only while the engine stops, which then answers by itself.
        let _ = self.post(session.id, Command::Subscribe(Box::new(subscribing)), true);
    }
}

impl Hub {
    /// The head of the response to a request for an event stream.
    pub(crate) fn stream_head(&self, request: &Head) -> Vec<u8> {
        event_stream::response_head(&cors::response_headers(self.access(request), None))
    }

    /// The pages that may read the response: those of allowed origins. If any origin is allowed, every page may, but
    /// requests must not carry cookies.
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

    /// The response to a method other than GET and HEAD. Browsers send OPTIONS to ask whether a page may send certain
    /// headers (WHATWG Fetch §3.3.5).
    pub(crate) fn other_method(&self, request: &Head) -> Vec<u8> {
        if request.method != "OPTIONS" {
            // RFC 9110 §15.5.6: a 405 response must list the allowed methods.
            let body = "This is an event stream: request it with GET.\n";
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
