//! A WebSocket connection or an event stream, as everything above the engine knows it.

use std::any::Any;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::sync::{Arc, Mutex, OnceLock};

use crate::engine::model::memberships::{Membership, Memberships};
use crate::engine::model::room::Room;
use crate::engine::parts::compression::Ability;
use crate::engine::parts::encoding::Encoding;
use crate::engine::parts::id::ConnectionId;
use crate::engine::parts::users::{CloseReason, UserSlot};
use crate::report::Span;
use crate::request::RequestHead;
use crate::sync::lock;

/// One WebSocket connection, as everything above the engine knows it.
pub(crate) struct Session {
    pub(crate) id: ConnectionId,
    peer: Peer,
    cold: Option<Box<ColdSession>>,
    /// What its messages are sent as.
    pub(crate) encoding: Encoding,
    pub(crate) span: Span,
    /// The path of the request that opened it, with its query; nothing stands for `/`, which most ask for.
    target: Box<str>,
    /// What the program keeps for it; set by whoever needs it first.
    pub(crate) attachment: OnceLock<Arc<dyn Any + Send + Sync>>,
    status: AtomicU8,
    /// The rooms it is in.
    pub(crate) rooms: Mutex<Memberships>,
    /// Who is to tell of the close where the shard ends while a batch is with the handlers: see `BatchState`.
    batch: AtomicU8,
    /// What was agreed about compression.
    pub(crate) compression: Ability,
}

/// An address of IPv6 takes five times the memory of one of IPv4, and so does what may be either.
enum Peer {
    V4(SocketAddrV4),
    V6(Box<SocketAddrV6>),
}

/// What few sessions have.
#[derive(Default)]
struct ColdSession {
    /// Where the client is, if that is not its peer's address.
    client: Option<IpAddr>,
    /// What was chosen of the subprotocols that the client has offered.
    subprotocol: Option<Box<str>>,
    /// The subprotocol is one whose messages have ids (`Subscriptions::subprotocol_with_ids`).
    takes_ids: bool,
    /// What the program keeps for a session that speaks it. Set when the session begins, if at all.
    protocol_state: OnceLock<Arc<dyn Any + Send + Sync>>,
    /// Whom it belongs to.
    user: Option<Arc<str>>,
    /// What it counts as for that user, until it has ended.
    user_slot: Mutex<Option<UserSlot>>,
}

/// What has become of the batch that is with the handlers, as bits. Whoever sets the second tells of the close.
struct BatchState;

impl BatchState {
    const HANDED_OVER: u8 = 0;
    const DONE: u8 = 1;
    /// The shard has ended, and will not learn that it is done.
    const ABANDONED: u8 = 2;
}

// Its attachment is set once, by a handler that has not panicked.
impl UnwindSafe for Session {}

impl RefUnwindSafe for Session {}

/// Whether a session takes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    Open,
    /// Its outbox is over its bound: a message now would meet the slow-consumer policy.
    Full,
    Closed,
}

impl Session {
    pub(crate) fn new(
        id: ConnectionId,
        request: &RequestHead,
        subprotocol: Option<String>,
        takes_ids: bool,
        encoding: Encoding,
    ) -> Self {
        let peer = request.peer_addr();
        let client = request.client_ip();
        let target = request.head().target.as_str();
        let cold = ColdSession {
            client: (client != peer.ip()).then_some(client),
            subprotocol: subprotocol.map(String::into_boxed_str),
            takes_ids,
            ..ColdSession::default()
        };
        Self {
            span: Span::connection(id, peer, client, target),
            id,
            peer: match peer {
                SocketAddr::V4(v4) => Peer::V4(v4),
                SocketAddr::V6(v6) => Peer::V6(Box::new(v6)),
            },
            encoding,
            cold: (cold.client.is_some() || cold.subprotocol.is_some()).then(|| Box::new(cold)),
            target: if target == "/" { "" } else { target }.into(),
            attachment: OnceLock::new(),
            status: AtomicU8::new(Status::Open as u8),
            rooms: Mutex::default(),
            batch: AtomicU8::new(BatchState::HANDED_OVER),
            compression: Ability::default(),
        }
    }

    /// The path of the request that opened it, with its query.
    pub(crate) fn target(&self) -> &str {
        match &*self.target {
            "" => "/",
            target => target,
        }
    }

    /// Who is connected: the client, or a proxy of its.
    pub(crate) fn peer(&self) -> SocketAddr {
        match &self.peer {
            Peer::V4(v4) => SocketAddr::V4(*v4),
            Peer::V6(v6) => SocketAddr::V6(**v6),
        }
    }

    /// Where the client is, as far as can be known.
    pub(crate) fn client_ip(&self) -> IpAddr {
        let client = self.cold.as_ref().and_then(|cold| cold.client);
        client.unwrap_or_else(|| self.peer().ip())
    }

    /// What was chosen of the subprotocols that the client has offered.
    pub(crate) fn subprotocol(&self) -> Option<&str> {
        self.cold.as_ref()?.subprotocol.as_deref()
    }

    /// Whether it receives the messages of rooms that keep a history with their room and id.
    pub(crate) fn takes_ids(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| cold.takes_ids)
    }

    /// What the program keeps for what it speaks with this client; `None` if it speaks no subprotocol of its own.
    #[inline]
    pub(crate) fn protocol_state(&self) -> Option<&Arc<dyn Any + Send + Sync>> {
        self.cold.as_ref()?.protocol_state.get()
    }

    /// Has the program hear of what this session receives (`Program::received`). Only a session with a subprotocol can.
    pub(crate) fn set_protocol_state(&self, protocol_state: Arc<dyn Any + Send + Sync>) {
        if let Some(cold) = &self.cold {
            let _ = cold.protocol_state.set(protocol_state);
        }
    }

    /// It is open, and belongs to a user. Returns what it is to be closed with, if the user's connections were closed since
    /// it was accepted.
    pub(crate) fn set_user(&mut self, mut slot: UserSlot) -> Option<CloseReason> {
        let closed = slot.open(self.id, self.encoding);
        let cold = self.cold.get_or_insert_default();
        cold.user = Some(slot.user());
        cold.user_slot = Mutex::new(Some(slot));
        closed
    }

    /// Whom it belongs to.
    pub(crate) fn user(&self) -> Option<&str> {
        self.cold.as_ref()?.user.as_deref()
    }

    /// It has ended, and counts no longer for its user. Those who keep the session still see whose it was.
    pub(crate) fn leave_user(&self) {
        if let Some(cold) = &self.cold {
            let slot = lock(&cold.user_slot).take();
            drop(slot);
        }
    }

    pub(crate) fn status(&self) -> Status {
        match self.status.load(Relaxed) {
            0 => Status::Open,
            1 => Status::Full,
            _ => Status::Closed,
        }
    }

    /// A batch goes to the handlers; the one before is done.
    pub(crate) fn batch_handed_over(&self) {
        self.batch.store(BatchState::HANDED_OVER, Relaxed);
    }

    /// The handlers are done with a batch. Returns whether they are to tell of the close, too.
    pub(crate) fn batch_done(&self) -> bool {
        self.batch.fetch_or(BatchState::DONE, AcqRel) & BatchState::ABANDONED != 0
    }

    /// The shard ends. Returns whether the handlers will tell of the close when they are done.
    pub(crate) fn batch_abandoned(&self) -> bool {
        self.batch.fetch_or(BatchState::ABANDONED, AcqRel) & BatchState::DONE == 0
    }

    /// Only the session's shard writes this.
    pub(crate) fn set_status(&self, status: Status) {
        self.status.store(status as u8, Relaxed);
    }
}

impl Session {
    /// Its shard has come to see it join or leave. Returns whether it is still there to do so.
    pub(crate) fn is_seen(&self, room: &Arc<Room>) -> bool {
        lock(&self.rooms).seen(room)
    }

    /// Rooms that are to be told of its leaving by whoever is at work for it: its shard has ended.
    pub(crate) fn leave_behind(&self, rooms: Vec<Arc<Room>>) {
        let left = |room| Membership {
            room,
            wanted: false,
            pending: 0,
        };
        *lock(&self.rooms) = rooms.into_iter().map(left).collect::<Memberships>();
    }

    /// Takes what was left behind.
    pub(crate) fn rooms_left_behind(&self) -> Vec<Arc<Room>> {
        let rooms = std::mem::take(&mut *lock(&self.rooms)).into_vec();
        rooms.into_iter().map(|of| of.room).collect()
    }
}
