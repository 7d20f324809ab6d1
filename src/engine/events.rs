//! What the engine tells the program, and about whom.
//!
//! The engine calls up through the one trait [`Events`]; it knows neither the program's handlers nor its states.

use std::any::Any;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::AcqRel, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};

use super::form::Form;
use super::id::ConnectionId;
use super::memberships::Memberships;
use super::rooms::{Presence, Room};
use crate::message::Message;
use crate::protocol::close::CloseCode;
use crate::protocol::http::Head;
use crate::protocol::procedures;
use crate::report::Span;
use crate::request::{Reject, RequestHead};

/// One WebSocket connection, as everything above the engine knows it.
pub(crate) struct Session {
    pub(crate) id: ConnectionId,
    peer: Peer,
    rare: Option<Box<Rare>>,
    /// What its messages are sent as.
    pub(crate) form: Form,
    pub(super) span: Span,
    /// The path of the request that opened it, with its query; nothing stands for `/`, which most ask for.
    target: Box<str>,
    /// What the program keeps for it; set by whoever needs it first.
    pub(crate) attachment: OnceLock<Arc<dyn Any + Send + Sync>>,
    status: AtomicU8,
    /// The rooms it is in.
    pub(super) rooms: Mutex<Memberships>,
    /// Who is to tell of the close where the shard ends while a batch is with the handlers: see `Batch`.
    batch: AtomicU8,
}

/// An address of IPv6 takes five times the memory of one of IPv4, and so does what may be either.
enum Peer {
    V4(SocketAddrV4),
    V6(Box<SocketAddrV6>),
}

/// What few sessions have.
struct Rare {
    /// Where the client is, if that is not its peer's address.
    client: Option<IpAddr>,
    /// What was chosen of the subprotocols that the client has offered.
    subprotocol: Option<Box<str>>,
    /// What the program keeps for a session that speaks it. Set when the session begins, if at all.
    talk: OnceLock<Arc<dyn Any + Send + Sync>>,
}

/// What has become of the batch that is with the handlers, as bits. Whoever sets the second tells of the close.
struct Batch;

impl Batch {
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
        form: Form,
    ) -> Self {
        let peer = request.peer_addr();
        let client = request.client_ip();
        let target = request.head().target.as_str();
        let rare = Rare {
            client: (client != peer.ip()).then_some(client),
            subprotocol: subprotocol.map(String::into_boxed_str),
            talk: OnceLock::new(),
        };
        Self {
            span: Span::connection(id, peer, client, target),
            id,
            peer: match peer {
                SocketAddr::V4(v4) => Peer::V4(v4),
                SocketAddr::V6(v6) => Peer::V6(Box::new(v6)),
            },
            form,
            rare: (rare.client.is_some() || rare.subprotocol.is_some()).then(|| Box::new(rare)),
            target: if target == "/" { "" } else { target }.into(),
            attachment: OnceLock::new(),
            status: AtomicU8::new(Status::Open as u8),
            rooms: Mutex::default(),
            batch: AtomicU8::new(Batch::HANDED_OVER),
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
        let client = self.rare.as_ref().and_then(|rare| rare.client);
        client.unwrap_or_else(|| self.peer().ip())
    }

    /// What was chosen of the subprotocols that the client has offered.
    pub(crate) fn subprotocol(&self) -> Option<&str> {
        self.rare.as_ref()?.subprotocol.as_deref()
    }

    /// Whether it gets messages of rooms with their ids there.
    pub(crate) fn is_numbered(&self) -> bool {
        self.subprotocol() == Some(procedures::V1)
    }

    /// What the program keeps for what it speaks with this client; `None` if it speaks no subprotocol of its own.
    #[inline]
    pub(crate) fn talk(&self) -> Option<&Arc<dyn Any + Send + Sync>> {
        self.rare.as_ref()?.talk.get()
    }

    /// Has the program hear of what this session receives (`Events::received`). Only a session with a subprotocol can.
    pub(crate) fn set_talk(&self, talk: Arc<dyn Any + Send + Sync>) {
        if let Some(rare) = &self.rare {
            let _ = rare.talk.set(talk);
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
    pub(super) fn batch_handed_over(&self) {
        self.batch.store(Batch::HANDED_OVER, Relaxed);
    }

    /// The handlers are done with a batch. Returns whether they are to tell of the close, too.
    pub(super) fn batch_done(&self) -> bool {
        self.batch.fetch_or(Batch::DONE, AcqRel) & Batch::ABANDONED != 0
    }

    /// The shard ends. Returns whether the handlers will tell of the close when they are done.
    pub(super) fn batch_abandoned(&self) -> bool {
        self.batch.fetch_or(Batch::ABANDONED, AcqRel) & Batch::DONE == 0
    }

    /// Only the session's shard writes this.
    pub(super) fn set_status(&self, status: Status) {
        self.status.store(status as u8, Relaxed);
    }
}

/// A request for a mounted route.
pub(crate) struct Request {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) peer: SocketAddr,
    /// Where the client is, as far as can be known.
    pub(crate) client: IpAddr,
    /// Whether the client can use the connection again.
    pub(crate) keep_alive: bool,
}

/// The answer to a request.
pub(crate) struct Response {
    pub(crate) head: Vec<u8>,
    pub(crate) body: Vec<u8>,
    /// Whether the connection may be used again.
    pub(crate) keep_alive: bool,
    /// It counts among all answers until this is dropped.
    pub(crate) charge: Option<Charge>,
}

/// How much answers hold. Not of interest to models of threads.
pub(super) type Account = AtomicUsize;

/// What answers hold, counted from when a handler has made them until their clients have them.
pub(crate) struct Charge {
    account: Arc<Account>,
    bytes: usize,
}

impl Charge {
    pub(super) fn new(account: &Arc<Account>, bytes: usize) -> Self {
        account.fetch_add(bytes, Relaxed);
        Self {
            account: account.clone(),
            bytes,
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.fetch_sub(self.bytes, Relaxed);
    }
}

/// How the program accepts a handshake.
#[derive(Default)]
pub(crate) struct Welcome {
    pub(crate) subprotocol: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
    /// What the program keeps for the session from the start.
    pub(crate) attachment: Option<Arc<dyn Any + Send + Sync>>,
}

/// Which events the program has a handler for; the others cost it nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Interests {
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
}

/// What becomes of a message that was just received.
pub(crate) enum Receipt {
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
pub(crate) enum Ending {
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
pub(crate) trait Events: Send + Sync + 'static {
    fn interests(&self) -> Interests;

    fn entered(&self, session: &Arc<Session>);
    fn left(&self, session: &Session);
    /// A message has come, while handlers may still be at work for its session. Only for sessions that have a talk
    /// (`Session::set_talk`); `is_roomy` is whether an answer would find room in the outbox.
    fn received(&self, _session: &Arc<Session>, _message: &Message, _is_roomy: bool) -> Receipt {
        Receipt::Keep
    }
    /// Nothing more will be received. Only for sessions that have a talk; told once or more, while handlers may still be
    /// at work.
    fn ending(&self, _session: &Session, _ending: Ending) {}
    /// Nobody is in a room any more: it is no more, unless it stays.
    fn emptied(&self, room: &Room);

    /// May this client come in?
    fn handshake(&self, request: &RequestHead) -> Result<Welcome, Reject>;
    /// Whether requests for this path are for an event stream. Returns at once, like `entered`.
    fn has_event_stream(&self, _path: &str) -> bool {
        false
    }
    /// What the client of an event stream is to get: its session's attachment, which `open` puts into effect. Such a
    /// session has no other events.
    fn event_stream(&self, _request: &RequestHead) -> Result<Arc<dyn Any + Send + Sync>, Reject> {
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
