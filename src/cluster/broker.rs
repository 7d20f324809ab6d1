//! The seam to a broker: what a node asks of it, and what it reports.
//!
//! A [`Broker`] is one connection to one broker server, as a state machine without socket, thread and clock: commands
//! become bytes to send, received bytes become events. The link moves the bytes.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::history_id::HistoryId;

/// A channel of the broker. Each node receives the messages of the channels that it has subscribed to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Channel {
    /// Messages for all clients of all nodes.
    Everyone,
    /// What nodes tell each other. Every node subscribes to it.
    Nodes,
    /// Messages for one node.
    Node(u32),
    /// Messages of a room.
    Room(Arc<str>),
}

/// What a node asks of a broker server. The broker answers in the order of the commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Subscribes to channels. Answered by one [`Event::Subscribed`] for each.
    Subscribe(Vec<Channel>),
    /// Unsubscribes from channels. Not answered; messages that are on the way may still arrive.
    Unsubscribe(Vec<Channel>),
    /// Sends an envelope to the subscribers of a channel. Answered by [`Event::Published`].
    Publish { channel: Channel, envelope: Bytes },
    /// Appends an envelope to the history of a room, and sends it to the room's subscribers with its id. Answered by
    /// [`Event::Appended`].
    Append(Append),
    /// Reads the histories of rooms, and begins those that are missing. Answered by [`Event::History`],
    /// [`Event::ReadPostponed`] or [`Event::Refused`] for each. The first is never postponed.
    Read(Vec<Read>),
}

/// A [`Command::Read`] reads further rooms than the first as far as the messages of all together have no more bytes than this. So a
/// node may ask for many rooms at once, of which most have few messages.
pub(crate) const READ_SHARED_BYTES_MAX: usize = 1 << 20;

/// An envelope to append to the history of a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Append {
    pub(crate) room: Arc<str>,
    pub(crate) envelope: Bytes,
    /// The node that appends.
    pub(crate) node: u32,
    /// Increases with every append of this node on this server. The broker ignores an append whose counter is not
    /// higher than the node's last one, so that an append can be sent again after the connection was lost.
    pub(crate) counter: u64,
    /// The broker executes the append only if it knows the node's counter. For an append that is sent again: if the
    /// counter is lost, the broker can't tell whether it has executed the append before.
    pub(crate) needs_counter: bool,
    /// Appends only if this is the position of the history, which the append begins before if there is none: so
    /// `HistoryId::new(new_epoch, 0)` stands for no history.
    pub(crate) expected: Option<HistoryId>,
    /// The epoch of the history if the broker has none of this room, or one of another incarnation.
    pub(crate) new_epoch: u64,
    /// Of the history, once this envelope has been appended.
    pub(crate) messages_max: u32,
    /// Of the history in bytes, once this envelope has been appended. Envelopes count with their whole length.
    pub(crate) bytes_max: u64,
}

/// A request for the part of a room's history after an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) room: Arc<str>,
    /// `None` for all that is kept.
    pub(crate) since: Option<HistoryId>,
    /// The epoch of the history if the broker has none of this room, or one of another incarnation.
    pub(crate) new_epoch: u64,
    /// Whether the time is extended for which the broker keeps the history.
    pub(crate) extends: bool,
}

/// What a broker server reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The connection can be used. Reported first, once for each connection.
    Ready(Incarnation),
    /// Messages of this channel are reported from now on.
    Subscribed(Channel),
    /// A message of a channel. It is untrusted input.
    Message {
        channel: Channel,
        /// The id of a message in the history of a room.
        id: Option<HistoryId>,
        envelope: Bytes,
    },
    /// The oldest unanswered [`Command::Publish`] has been executed.
    Published {
        /// The number of subscribers that it was sent to, with this node if it is one.
        receivers: u64,
    },
    /// The oldest unanswered [`Command::Append`] has been executed.
    Appended(Appended),
    /// The oldest unanswered [`Read`] has been executed.
    History(History),
    /// The oldest unanswered [`Read`] has not been executed, since the answer to its command would have too many bytes.
    ReadPostponed,
    /// The oldest unanswered command was refused; it had no effect. Commands that are not answered on success, such as
    /// [`Command::Unsubscribe`], are not reported.
    Refused(Refused),
}

/// What distinguishes one life of a broker server from another. It changes when the server restarts, and when another
/// server takes its place; so a loss of messages that were acknowledged is noticed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Incarnation(pub(crate) Arc<str>);

/// The outcome of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Appended {
    /// The envelope has this id.
    Id(HistoryId),
    /// An append with this counter was executed before.
    Before,
    /// It is not known whether it was executed before, and it was not executed now.
    Unknown,
    /// The position of the history is another than the expected one.
    Conflict { position: HistoryId },
}

/// The answer to a [`Read`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct History {
    pub(crate) room: Arc<str>,
    /// The id of the last message, whether it is kept or not. Sequence 0 if there was none yet.
    pub(crate) position: HistoryId,
    /// The sequence at which the epoch began. Messages up to it have survived from an earlier epoch, under other ids.
    pub(crate) base: u64,
    /// The sequence of the first of `messages`.
    pub(crate) first: u64,
    /// The kept envelopes, oldest first and without gaps, up to the position. It begins after the requested id; if
    /// messages after that are no longer kept, or the id is of another epoch, with the oldest one that is kept.
    pub(crate) messages: Vec<Bytes>,
}

/// Why the broker refused a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) command: Kind,
    /// In the words of the broker, without secrets.
    pub(crate) error: Arc<str>,
    /// Whether the same command can succeed later, for example once the server has memory again.
    pub(crate) passes: bool,
}

/// The kinds of commands that are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Subscribe,
    Publish,
    Append,
    Read,
}

/// Why a connection can't be used any longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BrokerError {
    /// The server sent something that is not in its protocol.
    Protocol(Arc<str>),
    /// The server rejected the user, the password or the token.
    Authentication(Arc<str>),
    /// The server can't be used, for example because it is a replica, or loads its data.
    Unusable(Arc<str>),
}

impl fmt::Display for BrokerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(error) => write!(f, "the broker violates its protocol: {error}"),
            Self::Authentication(error) => {
                write!(f, "the broker rejects the credentials of its URL: {error}")
            }
            Self::Unusable(error) => write!(f, "the broker can't be used: {error}"),
        }
    }
}

/// The most characters of an error that are reported.
const REPORTED_CHARS_MAX: usize = 200;

/// Shortens what a server says, for people. `None` if it contains the secret.
pub(super) fn reported(text: &str, secret: Option<&str>) -> Option<Arc<str>> {
    if secret.is_some_and(|secret| !secret.is_empty() && text.contains(secret)) {
        return None;
    }
    let text = text.chars().take(REPORTED_CHARS_MAX);
    let text: String = text
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect();
    Some(text.into())
}

/// One connection to a broker server.
pub(crate) trait Broker: Send {
    /// The bytes to send on a new connection. What an earlier connection left unanswered is forgotten.
    fn connect(&mut self, out: &mut Vec<u8>);

    /// Whether TLS begins now: on a new connection, or after the server has sent something in plain text first.
    fn begins_tls(&self) -> bool {
        false
    }

    /// The longest envelope that the server takes. It is known from [`Event::Ready`] on, and may change.
    fn message_bytes_max(&self) -> usize {
        usize::MAX
    }

    /// Encodes a command. Called after [`Event::Ready`] only.
    fn command(&mut self, command: Command, out: &mut Vec<u8>);

    /// Appends bytes that the protocol demands at the end of a turn, after all commands of the turn.
    fn flush(&mut self, _: &mut Vec<u8>) {}

    /// Takes received bytes, in any pieces, and appends the events that they complete. After an error, the connection
    /// must be closed.
    fn received(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), BrokerError>;
}
