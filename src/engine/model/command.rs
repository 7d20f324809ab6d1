//! What a shard is sent through its mailbox: commands, which keep their order, and control messages.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mio::net::TcpStream;

use crate::engine::model::job::Done;
use crate::engine::model::room::Room;
use crate::engine::model::verdict::Accepted;
use crate::engine::parts::id::Key;
use crate::engine::parts::mailbox::Weigh;
use crate::engine::parts::peer_limits::PeerSlot;
use crate::message::Message;
use crate::protocol::close::CloseCode;
use crate::protocol::connection::FrameReader;
use crate::protocol::http::Head;

/// Something to deliver, in order.
pub(crate) enum Command {
    Send(Key, Bytes),
    /// For one connection that may be sent it packed.
    #[cfg(feature = "deflate")]
    SendEither(Box<EitherForm>),
    /// For everyone.
    Broadcast(Bytes),
    /// For a room, or for some of everyone.
    Publish(Box<Publication>),
    Close(Key, CloseCode, Box<str>),
    Join(Box<Joining>),
    Leave(Key, Arc<Room>),
    Subscribe(Box<Subscribing>),
}

/// A message for one, in both forms.
#[cfg(feature = "deflate")]
pub(crate) struct EitherForm {
    pub(crate) to: Key,
    pub(crate) plain: Bytes,
    /// It refers to no other message.
    pub(crate) packed: Bytes,
}

/// A message for many.
pub(crate) struct Publication {
    /// None: everyone.
    pub(crate) room: Option<Arc<Room>>,
    /// None: nobody is there who would get a frame.
    pub(crate) frame: Option<Bytes>,
    pub(crate) form: Form,
    /// Who is not to get it.
    pub(crate) except: Option<Key>,
    /// What those get instead who get the room's messages with their ids.
    pub(crate) with_ids: Option<Bytes>,
    /// What event streams get instead, and which.
    pub(crate) event: Option<(Arc<Room>, Bytes)>,
}

/// In which form a message to many is sent.
#[derive(Debug, Clone, Default)]
pub(crate) enum Form {
    /// As each shard sees fit.
    #[default]
    Any,
    /// As it is: [`Message::uncompressed`](crate::Message::uncompressed).
    #[cfg(feature = "deflate")]
    Plain,
    /// It is long, and was packed by whoever has published it. It refers to no other message.
    #[cfg(feature = "deflate")]
    Packed(Bytes),
}

impl Form {
    fn weight(&self) -> usize {
        match self {
            Self::Any => 0,
            #[cfg(feature = "deflate")]
            Self::Plain => 0,
            #[cfg(feature = "deflate")]
            Self::Packed(frame) => frame.len(),
        }
    }

    pub(crate) const fn is_any(&self) -> bool {
        matches!(self, Self::Any)
    }
}

impl Publication {
    /// How long each of its forms is.
    pub(crate) fn lens(&self) -> [usize; 3] {
        let event = self.event.as_ref().map(|(_, event)| event);
        [self.frame.as_ref(), self.with_ids.as_ref(), event].map(|form| form.map_or(0, Bytes::len))
    }
}

impl Weigh for Command {
    fn weight(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Send(_, frame) | Self::Broadcast(frame) => frame.len(),
                Self::Publish(publication) => {
                    let forms = publication.lens().iter().sum::<usize>();
                    size_of::<Publication>() + forms + publication.form.weight()
                }
                #[cfg(feature = "deflate")]
                Self::SendEither(either) => {
                    size_of::<EitherForm>() + either.plain.len() + either.packed.len()
                }
                Self::Close(_, _, reason) => reason.len(),
                Self::Join(joining) => joining.weight(),
                Self::Leave(..) => 0,
                Self::Subscribe(subscribing) => subscribing.weight(),
            }
    }
}

/// A control message for a shard.
pub(crate) enum Control {
    Done(Key, Done),
    NewConnection(Box<NewConnection>),
    /// Stop; be done by then.
    Stop(Instant),
    /// A connection was closed somewhere: accepting may work again.
    Accept,
    /// The program has something of its own for the handlers of this connection.
    Nudge(Key),
    /// A session expires earlier than the shard knows (`Expiries`).
    Expiry,
}

/// A connection for a shard to take in.
pub(crate) struct NewConnection {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    /// What it counts as for its address.
    pub(crate) peer_slot: Option<Box<PeerSlot>>,
    /// None: its request is still to come.
    pub(crate) upgraded: Option<Upgraded>,
}

/// What is known of a connection whose request was read elsewhere, and found to be a handshake.
#[derive(Default)]
pub(crate) struct Upgraded {
    /// The request. None if nobody has kept it.
    pub(crate) head: Option<Box<Head>>,
    /// The handshake was answered, too. If not, the answer is part of what is owed.
    pub(crate) answered: bool,
    /// What it is still owed, before anything else.
    pub(crate) owed: Vec<u8>,
    /// Nothing more is to be received.
    pub(crate) ended: bool,
    /// The close frame that is the answer to that end.
    pub(crate) farewell: Option<Vec<u8>>,
    /// Nothing more may be sent either, but for what is owed.
    pub(crate) closed: bool,
    /// How far its stream has been read already.
    pub(crate) received: Option<Received>,
    /// What was read behind the request, and not looked at.
    pub(crate) early: Vec<u8>,
    /// It was asked about already (`handlers::pre_admission::authorize`), and answered. Its request is in there.
    pub(crate) accepted: Option<Box<Accepted>>,
}

/// What has been read from a connection before it was handed over.
pub(crate) struct Received {
    /// Whole messages.
    pub(crate) messages: Vec<Message>,
    /// Where in a frame the stream stands.
    pub(crate) protocol: FrameReader,
}

impl Upgraded {
    /// Messages that are still to be handled.
    pub(crate) fn messages(&self) -> usize {
        let received = self.received.as_ref();
        received.map_or(0, |received| received.messages.len())
    }
}

/// How much the command to join a room weighs in a mailbox: so many messages and bytes are replayed.
pub(crate) fn command_weight(messages: usize, bytes: usize) -> usize {
    size_of::<Command>() + size_of::<Joining>() + messages * size_of::<Bytes>() + bytes
}

/// A connection that joins a room.
pub(crate) struct Joining {
    pub(crate) key: Key,
    pub(crate) room: Arc<Room>,
    /// What it is sent first.
    pub(crate) replay: Vec<Bytes>,
}

impl Joining {
    /// Bytes of what it is sent first.
    pub(crate) fn replay_bytes(&self) -> usize {
        self.replay.iter().map(Bytes::len).sum()
    }

    /// Messages that it is sent first.
    pub(crate) fn replays(&self) -> usize {
        self.replay.len()
    }
}

impl Weigh for Joining {
    fn weight(&self) -> usize {
        command_weight(self.replays(), self.replay_bytes()) - size_of::<Command>()
    }
}

/// What becomes of an event stream, as decided by a handler.
pub(crate) struct Subscribing {
    pub(crate) key: Key,
    /// The head of the answer, and what leads to the first event.
    pub(crate) preface: Bytes,
    /// None: the preface is the whole answer.
    pub(crate) keep_alive: Option<Duration>,
    /// Whose messages it gets, each in the room of its event streams.
    pub(crate) rooms: Vec<Arc<Room>>,
    /// What it is sent first.
    pub(crate) replay: Vec<Bytes>,
}

impl Subscribing {
    /// Bytes of what it is sent first.
    pub(crate) fn replay_bytes(&self) -> usize {
        self.preface.len() + self.replay.iter().map(Bytes::len).sum::<usize>()
    }

    /// Messages that it is sent first.
    pub(crate) fn replays(&self) -> usize {
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
