//! A WebSocket connection or an event stream, as the layers above the engine see it.

use std::any::Any;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::sync::{Arc, Mutex, OnceLock};

use crate::engine::model::memberships::{Membership, Memberships};
use crate::engine::model::room::{HistoryForm, SharedRoom};
use crate::engine::parts::compression::Ability;
use crate::engine::parts::encoding::Encoding;
use crate::engine::parts::id::LocalId;
use crate::engine::parts::users::{CloseReason, UserSlot};
use crate::report::Span;
use crate::request::RequestHead;
use crate::sync::lock;

/// One WebSocket connection or event stream, as the layers above the engine see it.
pub(crate) struct Session {
    pub(crate) id: LocalId,
    origin: Origin,
    cold: Option<Box<ColdSession>>,
    /// The form of its outgoing messages.
    pub(crate) encoding: Encoding,
    pub(crate) span: Span,
    /// The path and query of its request. An empty string stands for `/`, the most frequent.
    target: Box<str>,
    /// The program's attachment. The first caller to need it sets it.
    pub(crate) attachment: OnceLock<Arc<dyn Any + Send + Sync>>,
    status: AtomicU8,
    /// The rooms that the connection is in.
    pub(crate) rooms: Mutex<Memberships>,
    /// Decides who dispatches the close if the shard ends while handlers have a batch: see `BatchState`.
    batch: AtomicU8,
    /// What the client can inflate, as agreed.
    pub(crate) compression: Ability,
}

/// Where a session comes from: the peer's address, and when it was opened. A box for IPv6, whose addresses take five
/// times the memory, keeps sessions small; the time fits beside either.
enum Origin {
    V4 {
        peer: SocketAddrV4,
        opened_secs: u32,
    },
    V6 {
        peer: Box<SocketAddrV6>,
        opened_secs: u32,
    },
}

/// Fields that few sessions need.
#[derive(Default)]
struct ColdSession {
    /// The client's address, if it differs from the peer's.
    client: Option<IpAddr>,
    /// The subprotocol chosen from the client's offer.
    subprotocol: Option<Box<str>>,
    /// The form in which it receives the messages of rooms with a history.
    history_form: HistoryForm,
    /// The state of the program's subprotocol, set when the session begins.
    protocol_state: OnceLock<Arc<dyn Any + Send + Sync>>,
    /// The user that the connection belongs to.
    user: Option<Arc<str>>,
    /// Counts the connection for its user, until it has ended.
    user_slot: Mutex<Option<UserSlot>>,
}

/// The state of the batch that the handlers have, as bits. The side that sets the second of them dispatches the close.
struct BatchState;

impl BatchState {
    const HANDED_OVER: u8 = 0;
    const DONE: u8 = 1;
    /// The shard has ended, and will not learn that the batch is done.
    const ABANDONED: u8 = 2;
}

// The attachment is set once, by a handler that has not panicked.
impl UnwindSafe for Session {}

impl RefUnwindSafe for Session {}

/// Whether a session takes outgoing messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    Open,
    /// Its outbox is over its bound, so the slow-consumer policy would apply to a message.
    Full,
    Closed,
}

impl Session {
    /// `opened_secs`: see [`Session::opened_secs`].
    pub(crate) fn new(
        id: LocalId,
        request: &RequestHead,
        subprotocol: Option<String>,
        history_form: HistoryForm,
        encoding: Encoding,
        opened_secs: u32,
    ) -> Self {
        let peer = request.peer_addr();
        let client = request.client_ip();
        let target = request.head().target.as_str();
        let cold = ColdSession {
            client: (client != peer.ip()).then_some(client),
            subprotocol: subprotocol.map(String::into_boxed_str),
            history_form,
            ..ColdSession::default()
        };
        let is_cold = cold.client.is_some()
            || cold.subprotocol.is_some()
            || cold.history_form != HistoryForm::default();
        Self {
            span: Span::connection(id, peer, client, target),
            id,
            origin: match peer {
                SocketAddr::V4(peer) => Origin::V4 { peer, opened_secs },
                SocketAddr::V6(peer) => Origin::V6 {
                    peer: Box::new(peer),
                    opened_secs,
                },
            },
            encoding,
            cold: is_cold.then(|| Box::new(cold)),
            target: if target == "/" { "" } else { target }.into(),
            attachment: OnceLock::new(),
            status: AtomicU8::new(Status::Open as u8),
            rooms: Mutex::default(),
            batch: AtomicU8::new(BatchState::HANDED_OVER),
            compression: Ability::default(),
        }
    }

    /// The path and query of the request that opened it.
    pub(crate) fn target(&self) -> &str {
        match &*self.target {
            "" => "/",
            target => target,
        }
    }

    /// The peer's address: the client's, or a proxy's.
    pub(crate) fn peer(&self) -> SocketAddr {
        match &self.origin {
            Origin::V4 { peer, .. } => SocketAddr::V4(*peer),
            Origin::V6 { peer, .. } => SocketAddr::V6(**peer),
        }
    }

    /// When it was opened, in seconds since the engine's start (`Hub::seconds_since_start`).
    pub(crate) fn opened_secs(&self) -> u32 {
        match self.origin {
            Origin::V4 { opened_secs, .. } | Origin::V6 { opened_secs, .. } => opened_secs,
        }
    }

    /// The client's address, as far as it is known.
    pub(crate) fn client_ip(&self) -> IpAddr {
        let client = self.cold.as_ref().and_then(|cold| cold.client);
        client.unwrap_or_else(|| self.peer().ip())
    }

    /// The subprotocol chosen from the client's offer.
    pub(crate) fn subprotocol(&self) -> Option<&str> {
        self.cold.as_ref()?.subprotocol.as_deref()
    }

    /// The form in which it receives the messages of rooms with a history.
    pub(crate) fn history_form(&self) -> HistoryForm {
        self.cold
            .as_ref()
            .map_or(HistoryForm::default(), |cold| cold.history_form)
    }

    /// The state of the program's subprotocol; `None` if the session speaks none.
    #[inline]
    pub(crate) fn protocol_state(&self) -> Option<&Arc<dyn Any + Send + Sync>> {
        self.cold.as_ref()?.protocol_state.get()
    }

    /// Sets the state of the program's subprotocol, which makes the engine call `Program::received` for this session.
    /// Has no effect on a session without a subprotocol.
    pub(crate) fn set_protocol_state(&self, protocol_state: Arc<dyn Any + Send + Sync>) {
        if let Some(cold) = &self.cold {
            let _ = cold.protocol_state.set(protocol_state);
        }
    }

    /// Assigns the connection to a user.
    pub(crate) fn set_user(&mut self, slot: UserSlot) {
        let cold = self.cold.get_or_insert_default();
        cold.user = Some(slot.user());
        cold.user_slot = Mutex::new(Some(slot));
    }

    /// Lists the connection, which is open now, as one of its user. Returns a close reason if the user's connections were
    /// closed since this one was accepted.
    pub(crate) fn open_for_user(&self) -> Option<CloseReason> {
        let mut slot = lock(&self.cold.as_ref()?.user_slot);
        slot.as_mut()?.open(self.id, self.encoding)
    }

    /// The user that the connection belongs to.
    pub(crate) fn user(&self) -> Option<&str> {
        self.user_key().map(|user| &**user)
    }

    /// The user, to be kept.
    pub(crate) fn user_key(&self) -> Option<&Arc<str>> {
        self.cold.as_ref()?.user.as_ref()
    }

    /// Stops counting the connection for its user, since it has ended. The session still returns the user's name.
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

    /// Records that a batch goes to the handlers, and that the one before is done.
    pub(crate) fn batch_handed_over(&self) {
        self.batch.store(BatchState::HANDED_OVER, Relaxed);
    }

    /// Records that the handlers are done with a batch. Returns whether they must call the close handler too.
    pub(crate) fn batch_done(&self) -> bool {
        self.batch.fetch_or(BatchState::DONE, AcqRel) & BatchState::ABANDONED != 0
    }

    /// Records that the shard ends. Returns whether the handlers will call the close handler when they are done.
    pub(crate) fn batch_abandoned(&self) -> bool {
        self.batch.fetch_or(BatchState::ABANDONED, AcqRel) & BatchState::DONE == 0
    }

    /// Sets whether the session takes messages. Only its shard calls this.
    pub(crate) fn set_status(&self, status: Status) {
        self.status.store(status as u8, Relaxed);
    }
}

impl Session {
    /// Whether the connection has joined the room, and not left it.
    pub(crate) fn wants(&self, room: &Arc<SharedRoom>) -> bool {
        lock(&self.rooms).wants(room)
    }

    /// Records that the shard has applied a join or leave. Returns whether the change was still pending.
    pub(crate) fn note_change_seen(&self, room: &Arc<SharedRoom>) -> bool {
        lock(&self.rooms).seen(room)
    }

    /// Keeps the rooms whose handlers must be called for its leaving, when its shard ends while handlers run for it.
    pub(crate) fn leave_behind(&self, rooms: Vec<Arc<SharedRoom>>) {
        let left = |room| Membership {
            room,
            wanted: false,
            pending: 0,
        };
        *lock(&self.rooms) = rooms.into_iter().map(left).collect::<Memberships>();
    }

    /// Takes the rooms that were left behind.
    pub(crate) fn rooms_left_behind(&self) -> Vec<Arc<SharedRoom>> {
        let rooms = std::mem::take(&mut *lock(&self.rooms)).into_vec();
        rooms.into_iter().map(|of| of.room).collect()
    }
}
