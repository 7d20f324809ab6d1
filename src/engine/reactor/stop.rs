//! The end of a shard: remaining commands are delivered, then all connections are closed, then those that are left are
//! disconnected.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use crate::engine::handlers::pool;
use crate::engine::model::command::Command;
use crate::engine::model::room::SharedRoom;
use crate::engine::reactor::{Core, ShardCx, Stage};
use crate::transport::ShardTransport;

/// The progress of stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    Running,
    /// Remaining commands are delivered, until this deadline.
    Draining(Instant),
    /// All connections were closed, and may take until this deadline to end.
    Closing(Instant),
}

impl Stop {
    /// The deadline, after which the shard ends in any state.
    pub(crate) fn deadline(self) -> Option<Instant> {
        match self {
            Self::Running => None,
            Self::Draining(deadline) | Self::Closing(deadline) => Some(deadline),
        }
    }
}

impl<T: ShardTransport> ShardCx<T> {
    pub(super) fn begin_stop(&mut self, deadline: Instant) {
        match self.stop {
            Stop::Running => self.stop = Stop::Draining(deadline),
            // A second call can only shorten the time.
            Stop::Draining(first) => self.stop = Stop::Draining(first.min(deadline)),
            Stop::Closing(first) => self.stop = Stop::Closing(first.min(deadline)),
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop != Stop::Running
    }

    /// Drops the remaining commands at the deadline, and counts them once for each recipient.
    fn give_up_commands(&mut self) {
        let members = self.handle().members.load(Relaxed);
        let mut rest = std::mem::take(&mut self.fanout.commands);
        let mut later = VecDeque::new();
        self.handle().mailbox.finish(&mut later);
        rest.append(&mut later);
        let undelivered = rest.iter().map(|command| match command {
            Command::Broadcast(_) => members.max(1),
            Command::Publish(publication) => {
                let rooms = &self.fanout.rooms;
                let in_room = |room: &Arc<SharedRoom>| {
                    let channels = room.channels().map(|(_, channel)| rooms.len(channel));
                    channels.sum::<usize>()
                };
                let members = publication.room.as_ref().map_or(members, in_room);
                let except = usize::from(publication.except.is_some());
                let event = publication.event.as_ref();
                let streams = event.map_or(0, |(streams, _)| in_room(streams));
                (members.saturating_sub(except) + streams).max(1)
            }
            Command::Send(..) => 1,
            #[cfg(feature = "deflate")]
            Command::SendEither(_) => 1,
            Command::Join(joining) => joining.replays(),
            Command::Subscribe(subscribing) => subscribing.replays(),
            Command::Close(..) | Command::Leave(..) => 0,
        });
        let undelivered: usize = undelivered.sum();
        self.counters().dropped_not_running.add(undelivered as u64);
    }
}

impl<T: ShardTransport> Core<T> {
    pub(super) fn go_on_stopping(&mut self) {
        if let Stop::Draining(deadline) = self.cx.stop
            && (self.cx.fanout.is_empty() || self.cx.now >= deadline)
        {
            if self.cx.now >= deadline {
                // Before connections are closed, while there still are recipients to count.
                self.cx.give_up_commands();
            }
            self.cx.stop = Stop::Closing(deadline);
            for key in self.conns.keys() {
                self.with(key, |stage, cx| stage.stop(cx));
            }
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.cx.is_stopping()
    }

    /// Whether nothing is left to do, or the deadline has passed.
    pub(crate) fn is_finished(&self) -> bool {
        let is_late = |deadline| self.cx.now >= deadline;
        match self.cx.stop {
            Stop::Running => false,
            Stop::Draining(deadline) => is_late(deadline),
            Stop::Closing(deadline) => self.conns.len() == 0 || is_late(deadline),
        }
    }

    /// Ends the shard: disconnects the remaining connections, and counts messages that were not delivered.
    pub(crate) fn finish(mut self) {
        self.cx.give_up_commands();
        for key in self.conns.keys() {
            self.with(key, |stage, cx| {
                if let Stage::WebSocket(ws) = stage {
                    ws.abandon(cx);
                }
                cx.free();
            });
        }
        pool::push(&self.cx.hub, &mut self.cx.jobs, self.cx.now);
    }
}
