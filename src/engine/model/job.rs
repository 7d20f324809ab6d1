//! Jobs, which connections give to handlers, and their outcomes.

use std::sync::{Arc, Weak};
use std::vec::Drain;

use crate::engine::model::request::{PieceTicket, Response, Ticket};
use crate::engine::model::room::{Presence, SharedRoom};
use crate::engine::model::session::Session;
use crate::engine::model::verdict::{
    AcceptedHandshake, Attachment, Granted, NotGranted, OnVerdict,
};
use crate::engine::parts::id::Key;
use crate::message::Message;
use crate::request::RequestHead;

/// The content of a job.
pub(crate) enum Work {
    /// A session's events in order, and the number of bytes in their messages.
    Session(Arc<Session>, Vec<SessionEvent>, usize),
    /// A request on an HTTP connection.
    Request(Arc<Ticket>),
    /// The rest of a response. The connection waits for its next piece.
    Piece(Weak<PieceTicket>),
    /// A handshake on an HTTP connection, which waits for the verdict.
    Handshake(Weak<RequestHead>),
    /// A request for an event stream, whose connection waits for the verdict.
    EventStream(Weak<RequestHead>),
    /// A request whose body is not read yet. Its connection waits for the verdict of the body guard.
    Guard(Weak<RequestHead>),
    /// A handshake that a host has read. The host waits for the verdict.
    Authorize(Box<AcceptedHandshake>, OnVerdict),
    /// An attachment whose connection has ended, to be dropped.
    Drop(Attachment),
    /// A session that has ended, to be dropped with its attachment; and whether it counts as ended until then
    /// (`Hub::ended`).
    Release(Arc<Session>, bool),
}

pub(crate) enum SessionEvent {
    /// The session was opened, by this request if that is known.
    Open(Option<Arc<RequestHead>>),
    Message(Message),
    /// The session has joined or left a room.
    Room(Presence, Arc<SharedRoom>),
    /// The program has asked to be called (`Hub::nudge`).
    Nudge,
    Close,
}

/// The consecutive messages at the front of a batch. A message that the program does not take stays in the batch.
pub(crate) struct MessageRun<'a, 'b>(pub(crate) &'a mut Drain<'b, SessionEvent>);

impl Iterator for MessageRun<'_, '_> {
    type Item = Message;

    #[inline]
    fn next(&mut self) -> Option<Message> {
        match self.0.as_slice().first() {
            Some(SessionEvent::Message(_)) => match self.0.next() {
                Some(SessionEvent::Message(message)) => Some(message),
                _ => None,
            },
            _ => None,
        }
    }
}

/// A job: the work, and the connection that its outcome goes to.
pub(crate) struct Job {
    /// The shard and key of the connection; `None`: no outcome is needed.
    pub(crate) to: Option<(u16, Key)>,
    pub(crate) work: Work,
}

/// The outcome of a job.
pub(crate) enum Done {
    /// The session's events were handled. After a panic, `unhandled` counts the messages behind it.
    Session {
        panicked: bool,
        unhandled: u32,
        bytes: usize,
        /// The emptied list of events, whose memory the next ones can use.
        memory: Vec<SessionEvent>,
    },
    /// The response, and the bytes that the request took; `None` if the shard has taken the request back.
    Request(Option<(Response, usize)>),
    /// The next piece of a response; `None` if it can't be read, or if the connection has ended.
    Piece(Option<Response>),
    /// The program's verdict.
    Handshake(Box<Result<Granted, NotGranted>>),
}
