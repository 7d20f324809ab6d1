//! Closing all connections evenly over a time, before the engine stops.

use std::time::{Duration, Instant};

use crate::engine::reactor::websocket::WebSocket;
use crate::engine::reactor::{ConnCx, Core};
use crate::protocol::close::{CloseCode, restart_reason};
use crate::protocol::event_stream;
use crate::transport::ShardTransport;

/// The maximum number of connections closed in one turn, so that thousands of them do not delay the others.
const CLOSED_PER_TURN: usize = 256;

/// How soon a shard without connections looks whether some have come.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The progress of a drain.
pub(crate) struct Draining {
    until: Instant,
    /// How long clients wait before they reconnect.
    retry_after: Duration,
    /// When to close the next connection.
    next: Instant,
    /// Counts the closed connections.
    closed: usize,
    /// Whether there was nobody to close at the last look.
    was_empty: bool,
    /// Whether the program was told that the drain is over.
    is_over: bool,
}

impl Draining {
    pub(crate) fn retry_after(&self) -> Duration {
        self.retry_after
    }

    /// How long until there is something to do; `None`: nothing more.
    pub(super) fn wait(&self, now: Instant, is_empty: bool) -> Option<Duration> {
        let wait = match is_empty {
            true => Duration::ZERO,
            false => self.next.min(self.until).saturating_duration_since(now),
        };
        (!self.is_over).then_some(wait)
    }
}

impl<T: ShardTransport> Core<T> {
    pub(super) fn begin_draining(&mut self, until: Instant, retry_after: Duration) {
        let now = self.cx.now;
        let open = self.cx.fanout.open_len();
        let interval =
            until.saturating_duration_since(now) / u32::try_from(open.max(1)).unwrap_or(u32::MAX);
        match &mut self.cx.draining {
            Some(draining) => {
                draining.retry_after = retry_after;
                // A second call can only shorten the time.
                if until < draining.until {
                    draining.until = until;
                    draining.next = draining.next.min(now + interval);
                }
            }
            none => {
                *none = Some(Draining {
                    until,
                    retry_after,
                    // The closings are in the middle of equal parts of the time.
                    next: now + interval / 2,
                    closed: 0,
                    was_empty: open == 0,
                    is_over: false,
                });
            }
        }
    }

    /// Closes the connections whose turn it is. Those that have come since the drain began share the rest of the time with the
    /// others.
    pub(super) fn go_on_draining(&mut self) {
        for _ in 0..CLOSED_PER_TURN {
            let now = self.cx.now;
            let (stopping, open) = (self.cx.is_stopping(), self.cx.fanout.open_len());
            let Some(draining) = &mut self.cx.draining else {
                return;
            };
            if draining.is_over {
                return;
            }
            if stopping || now >= draining.until || self.cx.hub.is_unused() {
                draining.is_over = true;
                self.cx.program.drained();
                return;
            }
            if now < draining.next {
                return;
            }
            let equal_part =
                |of: Duration, parts: usize| of / u32::try_from(parts).unwrap_or(u32::MAX);
            if open == 0 {
                // Whoever comes now has the time that is left then.
                draining.was_empty = true;
                draining.next = draining.until.min(now + LOOK_INTERVAL);
                return;
            }
            if std::mem::take(&mut draining.was_empty) {
                let left = draining.until.saturating_duration_since(now);
                draining.next = now + equal_part(left, open + 1);
                return;
            }
            let left = draining.until.saturating_duration_since(draining.next);
            draining.next += equal_part(left, open);
            let (nth, retry_after) = (draining.closed, draining.retry_after);
            if let Some(slot) = self.cx.fanout.open_slot(nth) {
                draining.closed += 1;
                self.with_member(slot, |ws, cx| ws.restart(cx, retry_after));
            }
        }
    }
}

impl WebSocket {
    /// Closes the connection since the server restarts, and tells its client how long to wait before it reconnects (RFC 6455
    /// §7.4.1, 1012).
    pub(crate) fn restart<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        retry_after: Duration,
    ) {
        if self.is_open() && self.stream().is_some() {
            // The client of an event stream waits for the time that it was told last.
            let retry_ms = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
            self.take_batches(cx);
            let retry = event_stream::retry(retry_ms).into();
            self.outbox.push_last(retry, cx.shard.tick);
        }
        let reason = restart_reason(retry_after);
        self.close(cx, CloseCode::SERVICE_RESTART, &reason);
    }
}
