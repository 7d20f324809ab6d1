//! Commands that a broker server has not answered. It answers them in their order.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use super::{Node, Server};
use crate::cluster::broker::Append;
use crate::cluster::outgoing::AppendOutcome;

/// A command that is not answered, and when it was handed to the connection.
pub(super) struct Unanswered {
    pub(super) published: Published,
    sent_at: Instant,
}

/// What a command was about.
pub(super) enum Published {
    /// A message of the app, which the metrics count.
    Message,
    /// A heartbeat or an answer.
    Own,
    /// A message of the app to a room with a history.
    Append(Box<InFlight>),
    /// A read of a room's history, and about the most bytes of the answer.
    Read { room: Arc<str>, bytes: usize },
    /// A read for the id of a message.
    Find(Box<InFlight>),
}

/// An append that is not answered.
pub(super) struct InFlight {
    pub(super) append: Append,
    pub(super) waiting: Option<Sender<AppendOutcome>>,
    /// When the message was queued.
    pub(super) at: Instant,
    /// Whether it was sent before, on a connection that was lost.
    pub(super) is_again: bool,
}

impl InFlight {
    pub(super) fn tell(&self, outcome: AppendOutcome) {
        if let Some(waiting) = &self.waiting {
            // The thread may have given up.
            let _ = waiting.send(outcome);
        }
    }
}

impl Server {
    /// A command is about to be sent.
    pub(super) fn sent(&mut self, published: Published, now: Instant) {
        self.unanswered.push_back(Unanswered {
            published,
            sent_at: now,
        });
    }
}

impl Node {
    /// Takes the oldest unanswered command, which the server has answered.
    pub(super) fn answered(&mut self, at: usize, now: Instant) -> Option<Published> {
        let Unanswered { published, sent_at } = self.servers[at].unanswered.pop_front()?;
        let took = now.saturating_duration_since(sent_at);
        self.counters.round_trips.add(took, 1);
        Some(published)
    }
}
