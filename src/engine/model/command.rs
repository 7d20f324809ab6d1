//! The messages in a shard's mailbox: commands, which keep their order, and control messages.

use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::engine::model::inspection::Question;
use crate::engine::model::job::Done;
use crate::engine::model::replay::{Replay, replay_weight};
use crate::engine::model::room::SharedRoom;
use crate::engine::model::verdict::AcceptedHandshake;
use crate::engine::parts::id::{ConflationKey, Key};
use crate::engine::parts::mailbox::Weigh;
use crate::engine::parts::peer_limits::PeerSlot;
use crate::message::Message;
use crate::protocol::close::CloseCode;
use crate::protocol::connection::FrameReader;
#[cfg(feature = "deflate")]
use crate::protocol::deflate::negotiate::Agreement;
use crate::protocol::event_stream::JoinedIds;
use crate::protocol::http::Head;
use crate::transport::ShardSocket;

/// A command for a shard, delivered in order.
pub(crate) enum Command {
    Send(Key, Bytes),
    /// Sends a message to one connection, compressed or plain.
    #[cfg(feature = "deflate")]
    SendEither(Box<EitherForm>),
    /// Sends a frame to every connection.
    Broadcast(Bytes),
    /// Sends a message to a room, or to everyone except one connection.
    Publish(Box<Publication>),
    Close(Key, CloseCode, Box<str>),
    Join(Box<Joining>),
    Leave(Key, Arc<SharedRoom>),
    Subscribe(Box<Subscribing>),
}

/// A message to one connection, in both forms.
#[cfg(feature = "deflate")]
pub(crate) struct EitherForm {
    pub(crate) to: Key,
    pub(crate) plain: Bytes,
    /// The compressed frame, which refers to no other message.
    pub(crate) compressed: Bytes,
}

/// A message for several recipients.
pub(crate) struct Publication {
    /// The room; `None`: every connection.
    pub(crate) room: Option<Arc<SharedRoom>>,
    /// The message as a frame; `None` if no recipient takes frames.
    pub(crate) frame: Option<Bytes>,
    pub(crate) form: Form,
    /// The key of the message: while it waits for a client, a newer one of this key replaces it.
    pub(crate) key: Option<ConflationKey>,
    /// A connection that must not receive the message.
    pub(crate) except: Option<Key>,
    /// The frame with room and id, for members that receive ids.
    pub(crate) with_ids: Option<Bytes>,
    /// For members that receive rendered messages.
    pub(crate) rendered: Option<Arc<RenderedFrames>>,
    /// The event stream room that follows the room, and the message as an event.
    pub(crate) event: Option<(Arc<SharedRoom>, Bytes)>,
}

/// A rendered message, in the encodings that have recipients.
#[derive(Debug, Default)]
pub(crate) struct RenderedFrames {
    /// The frame for members that receive no ids, and the form in which it is sent.
    pub(crate) frame: Option<(Bytes, Form)>,
    /// The frame with room and id.
    pub(crate) with_ids: Option<Bytes>,
}

impl RenderedFrames {
    /// The lengths of the frames.
    fn lens(&self) -> [usize; 2] {
        let frame = self.frame.as_ref().map(|(frame, _)| frame);
        [frame, self.with_ids.as_ref()].map(|frame| frame.map_or(0, Bytes::len))
    }

    fn weight(&self) -> usize {
        let compressed = self.frame.as_ref().map_or(0, |(_, form)| form.weight());
        size_of::<Self>() + self.lens().iter().sum::<usize>() + compressed
    }
}

/// The form in which a broadcast is sent.
#[derive(Debug, Clone, Default)]
pub(crate) enum Form {
    /// The shard decides.
    #[default]
    Any,
    /// Plain: [`Message::uncompressed`](crate::Message::uncompressed).
    #[cfg(feature = "deflate")]
    Plain,
    /// A long message that its sender has compressed. It refers to no other message.
    #[cfg(feature = "deflate")]
    Compressed(Bytes),
}

impl Form {
    fn weight(&self) -> usize {
        match self {
            Self::Any => 0,
            #[cfg(feature = "deflate")]
            Self::Plain => 0,
            #[cfg(feature = "deflate")]
            Self::Compressed(frame) => frame.len(),
        }
    }

    pub(crate) const fn is_any(&self) -> bool {
        matches!(self, Self::Any)
    }
}

impl Publication {
    /// The lengths of the message's encodings: frame, frame with id, event, and both for a rendered message.
    pub(crate) fn lens(&self) -> [usize; 5] {
        let event = self.event.as_ref().map(|(_, event)| event);
        let [frame, with_ids, event] = [self.frame.as_ref(), self.with_ids.as_ref(), event]
            .map(|form| form.map_or(0, Bytes::len));
        let rendered = self.rendered.as_ref();
        let [rendered, rendered_with_ids] = rendered.map_or([0; 2], |rendered| rendered.lens());
        [frame, with_ids, event, rendered, rendered_with_ids]
    }

    fn weight(&self) -> usize {
        let [frame, with_ids, event, ..] = self.lens();
        let rendered = self.rendered.as_ref();
        let rendered = rendered.map_or(0, |rendered| rendered.weight());
        size_of::<Self>() + frame + with_ids + event + self.form.weight() + rendered
    }
}

impl Weigh for Command {
    fn weight(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Send(_, frame) | Self::Broadcast(frame) => frame.len(),
                Self::Publish(publication) => publication.weight(),
                #[cfg(feature = "deflate")]
                Self::SendEither(either) => {
                    size_of::<EitherForm>() + either.plain.len() + either.compressed.len()
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
    /// Stop, at the latest at this instant.
    Stop(Instant),
    /// Tell that the shard has taken a turn.
    Probe(mpsc::Sender<()>),
    /// Close all connections evenly until an instant, and tell clients how long to wait before they reconnect.
    Drain {
        until: Instant,
        retry_after: Duration,
    },
    /// A connection was closed on some shard, so accepting may work again.
    Accept,
    /// The program has asked to be called by the handlers of this connection.
    Nudge(Key),
    /// A session expires earlier than the shard knows (`Expiries`).
    Expiry,
    /// A thread asks for the connections.
    Inspect(Box<Question>),
}

/// A connection to hand over to a shard.
pub(crate) struct NewConnection {
    pub(crate) stream: ShardSocket,
    pub(crate) peer: SocketAddr,
    /// Counts the connection for its address.
    pub(crate) peer_slot: Option<Box<PeerSlot>>,
    /// The handshake, if a host has read it; `None`: the request has yet to arrive.
    pub(crate) upgraded: Option<Upgraded>,
}

/// The state of a connection whose handshake was read by a host.
#[derive(Default)]
pub(crate) struct Upgraded {
    /// The request; `None` if the host has not kept it.
    pub(crate) head: Option<Box<Head>>,
    /// Whether the host has already answered the handshake. If not, `pending_out` contains the answer.
    pub(crate) is_answered: bool,
    /// Bytes to send before anything else.
    pub(crate) pending_out: Vec<u8>,
    /// Whether the client will send nothing more.
    pub(crate) has_input_ended: bool,
    /// The close frame that replies to the client's close.
    pub(crate) close_reply: Option<Vec<u8>>,
    /// Whether nothing may be sent after `pending_out` and `close_reply`.
    pub(crate) has_output_ended: bool,
    /// The messages that the host has read, and its position in the stream.
    pub(crate) received: Option<Received>,
    /// The negotiated compression, if the host has answered the handshake itself.
    #[cfg(feature = "deflate")]
    pub(crate) compression: Option<Agreement>,
    /// Bytes behind the request that the host has read, and not decoded.
    pub(crate) early: Vec<u8>,
    /// The verdict, if the handshake was authorised before (`handlers::pre_admission::authorize`). Contains the
    /// request.
    pub(crate) accepted: Option<Box<AcceptedHandshake>>,
}

/// What a host has received on a connection before it handed the connection over.
pub(crate) struct Received {
    /// Complete messages.
    pub(crate) messages: Vec<Message>,
    /// The position in the frame that is being received.
    pub(crate) protocol: FrameReader,
}

impl Upgraded {
    /// The number of received messages that are not handled yet.
    pub(crate) fn messages(&self) -> usize {
        let received = self.received.as_ref();
        received.map_or(0, |received| received.messages.len())
    }
}

/// The weight in a mailbox of a command to join a room, with so much more.
pub(crate) const fn command_weight(more: usize) -> usize {
    (size_of::<Command>() + size_of::<Joining>()).saturating_add(more)
}

/// The weight in a mailbox of a command to join a room with a replay ([`replay_weight`]).
pub(crate) const fn joining_weight(pieces: usize, bytes: usize) -> usize {
    command_weight(replay_weight(pieces, bytes))
}

/// The weight of a snapshot of keyed rooms with this many messages. Their bytes are shared with the rooms.
pub(crate) const fn snapshot_weight(messages: usize) -> usize {
    messages.saturating_mul(size_of::<(ConflationKey, Bytes)>())
}

/// The newest message of each key of a keyed room.
pub(crate) type KeyedSnapshot = Vec<(ConflationKey, Bytes)>;

/// A connection that joins a room.
pub(crate) struct Joining {
    pub(crate) key: Key,
    pub(crate) room: Arc<SharedRoom>,
    /// Kept messages of the room, to be sent first.
    pub(crate) replay: Replay,
    /// If the room is keyed: the newest message of each key, to be sent first.
    pub(crate) snapshot: KeyedSnapshot,
}

impl Joining {
    /// The number of messages in the replay and the snapshot.
    pub(crate) fn replays(&self) -> usize {
        self.replay.messages() as usize + self.snapshot.len()
    }
}

impl Weigh for Joining {
    fn weight(&self) -> usize {
        size_of::<Self>() + self.replay.weight() + snapshot_weight(self.snapshot.len())
    }
}

/// A handler's decision about a request for an event stream.
pub(crate) struct Subscribing {
    pub(crate) key: Key,
    /// The head of the response, and the bytes before the first event.
    pub(crate) preface: Bytes,
    /// The interval of comments; `None`: the preface is the whole response.
    pub(crate) keep_alive: Option<Duration>,
    /// The rooms of event streams whose messages the stream receives.
    pub(crate) rooms: Vec<Arc<SharedRoom>>,
    /// Kept messages of the rooms, to be sent after the preface.
    pub(crate) replay: Replay,
    /// The newest message of each key of the keyed rooms, to be sent after the replay.
    pub(crate) snapshot: KeyedSnapshot,
    /// The positions that the ids of the events have to name, if they name several.
    pub(crate) joined_ids: Option<Box<JoinedIds>>,
}

impl Subscribing {
    /// The number of messages in the replay and the snapshot.
    pub(crate) fn replays(&self) -> usize {
        self.replay.messages() as usize + self.snapshot.len()
    }
}

impl Weigh for Subscribing {
    fn weight(&self) -> usize {
        let rooms = self.rooms.len() * size_of::<Arc<SharedRoom>>();
        let replay = self.preface.len() + self.replay.weight();
        size_of::<Self>() + rooms + replay + snapshot_weight(self.snapshot.len())
    }
}
