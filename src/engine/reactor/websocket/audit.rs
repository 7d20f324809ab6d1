//! Derives from the state of a WebSocket the events for which it waits, and their deadlines, for tests and fuzzers.

use crate::engine::model::settings::Settings;
use crate::engine::parts::timers::Tick;
use crate::engine::reactor::websocket::{Handlers, Receiving, Sending, WebSocket};
use crate::limits::SlowConsumer;

impl WebSocket {
    /// Everything that the connection waits for and that must end, with its deadline.
    pub(crate) fn waits_until(
        &self,
        settings: &Settings,
        has_transport: bool,
        is_to_be_written: bool,
    ) -> Vec<(&'static str, Tick)> {
        let limits = &settings.limits;
        let mut due = Vec::new();
        let is_open = self.is_open();
        let cold = self.cold.as_deref();
        if !self.outbox.is_empty() {
            assert!(
                has_transport,
                "bytes are queued for a connection that broke"
            );
            // The shard does not sleep before it has tried to write.
            if !is_to_be_written {
                let deadline = self
                    .drain_deadline()
                    .expect("bytes that wait have a deadline");
                due.push(("a stalled write", deadline));
            }
        }
        let paces = matches!(settings.slow_consumer, SlowConsumer::Pace { .. });
        if self.congested && paces {
            let pace = cold.and_then(|cold| cold.pace.as_ref());
            let pace = pace.expect("a congested member has a pace account");
            due.push((
                "producers",
                pace.deadline()
                    .expect("the time of a congested member runs"),
            ));
        }
        if self.sending == Sending::Closing {
            let deadline = self
                .closing_deadline()
                .expect("a closing connection has a deadline");
            due.push(("closing", deadline));
        }
        if self.protocol.is_mid_message() && !self.receiving.is_over() {
            let unfinished = self.unfinished().expect("an unfinished message is timed");
            due.push(("a message", unfinished.since.after(limits.message_timeout)));
        }
        let is_heard = self.receiving == Receiving::Open && is_open && !self.is_stream();
        if let Some(heartbeat) = settings.heartbeat.filter(|_| is_heard) {
            let silence = match self.pinged {
                true => heartbeat.silence_max(),
                false => heartbeat.interval,
            };
            due.push(("a heartbeat", self.last_received.after(silence)));
        }
        if self.receiving == Receiving::Open
            && let Some(until) = cold.and_then(|cold| cold.delayed_until())
        {
            due.push(("a delay", until));
        }
        if let Some(stream) = cold
            .and_then(|cold| cold.stream.as_ref())
            .filter(|_| is_open)
        {
            due.push(("a comment", stream.comment_at));
        }
        // Without these, it waits for handlers, or for messages of its rooms or its client.
        let waits_for_handlers = self.handlers == Handlers::Running || self.inbox.is_empty();
        let waits_for_room = self.holds_back(limits) && !self.outbox.is_empty();
        assert!(
            waits_for_handlers || waits_for_room,
            "events wait, but no handler gets them"
        );
        due
    }

    /// Whether handlers run for it, or hold back since its replies find no room.
    pub(crate) fn is_handled_or_held_back(&self) -> bool {
        self.handlers != Handlers::Idle || (!self.inbox.is_empty() && !self.outbox.is_empty())
    }
}
