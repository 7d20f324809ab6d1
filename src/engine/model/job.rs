//! What a connection has for the handlers, and what came of it.

use std::sync::{Arc, Weak};

use crate::engine::model::request::{Response, Ticket};
use crate::engine::model::room::{Presence, Room};
use crate::engine::model::session::Session;
use crate::engine::model::verdict::{Accepted, Attachment, Granted, OnVerdict, Refusal};
use crate::engine::parts::id::Key;
use crate::message::Message;
use crate::request::RequestHead;

/// What a connection has to handle.
pub(crate) enum Work {
    /// Events of a session, in order, and how many bytes of messages they are.
    Session(Arc<Session>, Vec<Event>, usize),
    /// A request of an HTTP connection.
    Request(Arc<Ticket>),
    /// A handshake of an HTTP connection, which waits for the verdict.
    Handshake(Weak<RequestHead>),
    /// A request for an event stream, which waits for the verdict.
    EventStream(Weak<RequestHead>),
    /// A request whose body is not read yet, and which waits for the body guard's verdict.
    Guard(Weak<RequestHead>),
    /// A handshake that a host has read; the host waits for the verdict.
    Authorize(Box<Accepted>, OnVerdict),
    /// Something that the program kept for a connection that has gone.
    Drop(Attachment),
    /// A session that has gone, and with it what the program kept for it; and whether it counts as ended until it is dropped.
    Release(Arc<Session>, bool),
}

pub(crate) enum Event {
    /// With the request that it began with, if that is known.
    Open(Option<Arc<RequestHead>>),
    Message(Message),
    /// Its presence in a room has changed.
    Room(Presence, Arc<Room>),
    /// The program has asked for it.
    Nudge,
    Close,
}

/// Work, and the connection that its outcome goes to.
pub(crate) struct Job {
    /// None: nobody waits for the outcome.
    pub(crate) to: Option<(u16, Key)>,
    pub(crate) work: Work,
}

/// What came of a job.
pub(crate) enum Done {
    /// The session's events are handled; or one of its handlers panicked, and this many messages behind it are not.
    Session {
        panicked: bool,
        unhandled: u32,
        bytes: usize,
        /// Where the events were: the next ones can be put there.
        memory: Vec<Event>,
    },
    /// The request is answered, and was of so many bytes; or the shard has taken it back.
    Request(Option<(Response, usize)>),
    /// The program has decided who may come in.
    Handshake(Box<Result<Granted, Refusal>>),
}
