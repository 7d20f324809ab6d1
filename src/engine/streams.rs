//! Event streams: connections that are sent a room's messages, or everyone's, as server-sent events.
//!
//! A stream is in rooms of its own, beside those of WebSockets: what is published is rendered once for each form, and
//! nobody gets the other's. Its request is decided by the program on a handler thread (`Entry::EventStream`). Then it is
//! open, and another handler joins its rooms: the head of the answer, what the client has missed and what is new leave in
//! that order, since they come by the same mailbox.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::core::Core;
use super::events::{Session, Status};
use super::hub::{Hub, Mail};
use super::id::Key;
use super::mailbox::Weigh;
use super::pool;
use super::rooms::{NotJoined, Reserved, Room, lock};
use super::timers::Tick;
use crate::origins::Origins;
use crate::protocol::event_stream;
use crate::protocol::http::{self, Head};
use crate::request::Reject;
use crate::transport::Transport;

/// What an event stream has that a WebSocket has not.
pub(super) struct Stream {
    pub(super) keep_alive: Duration,
    /// When the next comment is due.
    pub(super) comment_at: Tick,
}

/// What becomes of an event stream, as decided by a handler.
pub(crate) struct Subscribing {
    key: Key,
    /// The head of the answer, and what leads to the first event.
    preface: Bytes,
    /// None: the preface is the whole answer.
    keep_alive: Option<Duration>,
    /// Whose messages it gets, each in the room of its event streams.
    rooms: Vec<Arc<Room>>,
    /// What it is sent first.
    replay: Vec<Bytes>,
}

impl Subscribing {
    /// Bytes of what it is sent first.
    pub(super) fn replay_bytes(&self) -> usize {
        self.preface.len() + self.replay.iter().map(Bytes::len).sum::<usize>()
    }

    /// Messages that it is sent first.
    pub(super) fn replays(&self) -> usize {
        self.replay.len()
    }
}

impl Weigh for Subscribing {
    fn weight(&self) -> usize {
        let pieces =
            self.rooms.len() * size_of::<Arc<Room>>() + self.replays() * size_of::<Bytes>();
        size_of::<Self>() + pieces + self.replay_bytes()
    }
}

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
    pub(crate) fn streams_of_all(&self) -> Option<&Arc<Room>> {
        Some(&self.streams_of_all).filter(|streams| streams.len() > 0)
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
            size_of::<Mail>() + size_of::<Subscribing>() + bytes,
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
        let of_all = broadcasts.then_some(&self.streams_of_all);
        preface.shrink_to_fit();
        let subscribing = Subscribing {
            key: session.id.key(),
            preface: preface.into(),
            keep_alive: Some(keep_alive.max(KEEP_ALIVE_MIN)),
            rooms: rooms.iter().chain(of_all).cloned().collect(),
            replay,
        };
        let rooms = subscribing.rooms.clone();
        let mail = Mail::Subscribe(Box::new(subscribing));
        if !reserved.shrink(mail.weight()) {
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
        let _ = reserved.push(mail, pool::when(self));
        Ok(())
    }

    /// Answers a request for an event stream otherwise. Waits while its shard's mailbox is full.
    pub(crate) fn refuse_stream(&self, session: &Session, reject: &Reject) {
        let subscribing = Subscribing {
            key: session.id.key(),
            preface: reject.response(true, false).into(),
            keep_alive: None,
            rooms: Vec::new(),
            replay: Vec::new(),
        };
        // Refused only by an engine that stops, and answers by itself.
        let _ = self.post(session.id, Mail::Subscribe(Box::new(subscribing)), true);
    }
}

impl<T: Transport> Core<T> {
    /// A handler has decided how an event stream begins, or that it does not.
    pub(super) fn begin_stream(&mut self, subscribing: Subscribing) {
        let Subscribing {
            key,
            preface,
            keep_alive,
            rooms,
            replay,
        } = subscribing;
        let tick = self.tick;
        let slot = self.conns.find(key);
        let Some((slot, ws)) = slot.and_then(|slot| Some((slot, self.open_ws(slot)?))) else {
            rooms.iter().for_each(|room| room.unreach(self.index));
            self.lose_replay(replay.len() as u64);
            return;
        };
        ws.outbox.push_preface(preface);
        let Some(keep_alive) = keep_alive else {
            self.end_stream(slot);
            return;
        };
        ws.begin_stream(Stream {
            keep_alive,
            comment_at: tick.after(keep_alive),
        });
        let session = ws.session.clone();
        self.counters().event_streams.add(1);
        self.counters().event_streams_opened.add(1);
        // What the rooms have gathered before is not for it.
        self.take_run(slot);
        for room in rooms {
            if session.is_seen(&room) {
                self.delivery.rooms.insert(room.number(), key);
            } else {
                room.unreach(self.index);
            }
        }
        self.replay(slot, replay);
        self.want_write(slot);
        self.arm(slot);
    }
}

impl Hub {
    /// The head of the answer to a request for an event stream.
    pub(crate) fn stream_head(&self, request: &Head) -> Vec<u8> {
        event_stream::response_head(&self.cors(request))
    }

    /// Which pages may read the answer: those that may connect. Where any may, they may not with their visitors' cookies.
    fn cors<'a>(&self, request: &'a Head) -> Vec<(&'static str, &'a str)> {
        let origins = match &self.settings.origins {
            None | Some(Origins::Any) => return vec![("Access-Control-Allow-Origin", "*")],
            Some(origins) => origins,
        };
        // The answer depends on it, so caches must tell them apart.
        let mut headers = vec![("Vary", "Origin")];
        let origin = request.header("Origin");
        if let Some(origin) = origin
            && origins.allows(Some(origin), request.header("Host"))
        {
            headers.push(("Access-Control-Allow-Origin", origin));
            headers.push(("Access-Control-Allow-Credentials", "true"));
        }
        headers
    }

    /// The answer to a method that is neither GET nor HEAD. Pages ask by OPTIONS whether they may send certain headers
    /// (WHATWG Fetch §3.3.5).
    pub(super) fn other_method(&self, request: &Head) -> Vec<u8> {
        if request.method != "OPTIONS" {
            // RFC 9110 §15.5.6: 405 must name the methods allowed.
            let body = "This is an event stream: it is asked for by GET.\n";
            return http::refusal(405, &[("Allow", METHODS)], body, false);
        }
        let mut headers = self.cors(request);
        headers.extend(http::SAFE_HEADERS);
        headers.push(("Allow", METHODS));
        headers.push(("Access-Control-Allow-Methods", METHODS));
        if let Some(wanted) = request.header("Access-Control-Request-Headers") {
            headers.push(("Access-Control-Allow-Headers", wanted));
        }
        http::response(204, &headers, b"", true, false)
    }
}

const METHODS: &str = "GET, HEAD, OPTIONS";
