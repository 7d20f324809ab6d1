//! Checks the invariant of a sleeping shard: every state that waits has a timer that ends it.
//!
//! For tests and fuzzers. Deadlines are derived here from what a connection waits for, independently of the code that
//! sets timers.

use std::time::{Duration, Instant};

use crate::engine::parts::timers::Tick;
use crate::engine::reactor::websocket::WebSocket;
use crate::engine::reactor::{Core, Stage, Stop};
use crate::transport::ShardTransport;

impl<T: ShardTransport> Core<T> {
    /// Panics if a connection waits for an event without a timer. The shard is about to sleep for `wait`.
    pub(crate) fn check_timers(&self, now: Instant, wait: Option<Duration>) {
        assert!(
            self.cx.timers.len() <= self.conns.len(),
            "a connection has more than one timer entry"
        );
        for key in self.conns.keys() {
            if let Some(conn) = self.conns.get(key) {
                let what = match &conn.stage {
                    Stage::Http(http) => Some(("HTTP", http.deadline())),
                    Stage::WebSocket(ws) => {
                        let settings = &self.cx.hub.settings;
                        assert!(
                            conn.socket.queued
                                || !ws.has_held_input()
                                || !ws.wants_input(&settings.limits),
                            "held input waits for nothing"
                        );
                        let due = ws.waits_until(
                            settings,
                            conn.socket.transport.is_some(),
                            conn.socket.dirty,
                        );
                        due.into_iter().min_by_key(|&(_, due)| due)
                    }
                    Stage::Lingering(until) => Some(("lingering", *until)),
                };
                if let Some((what, due)) = what {
                    self.check_timer(key.slot, conn.socket.timer, what, due);
                }
            }
        }
        self.check_sleep(now, wait);
    }

    fn check_timer(&self, slot: u32, timer: Option<Tick>, what: &str, due: Tick) {
        if due == Tick::NEVER {
            return;
        }
        let latest = due.max(self.cx.tick.after(Duration::from_nanos(1)));
        assert!(
            timer.is_some_and(|timer| timer <= latest && self.cx.timers.is_scheduled(timer, slot)),
            "slot {slot}: {what} is due at {due:?}, its timer is at {timer:?}, now is {:?}",
            self.cx.tick
        );
    }

    /// Checks that the shard does not sleep while it has work, or beyond a deadline.
    fn check_sleep(&self, now: Instant, wait: Option<Duration>) {
        let is_paused = self.cx.receive_budget.paused() > 0;
        let has_work = self.has_work()
            || self.has_jobs()
            || self.cx.fanout.can_take_commands()
            || !self.inspections.is_empty();
        if has_work || (is_paused && !self.cx.receive_budget.is_full()) {
            assert_eq!(
                wait,
                Some(Duration::ZERO),
                "the shard sleeps while it has work"
            );
        }
        let wakes_by = |due: Option<Duration>, what: &str| {
            if let Some(due) = due {
                assert!(
                    wait.is_some_and(|wait| wait <= due),
                    "sleeps {wait:?} past {what}"
                );
            }
        };
        wakes_by(self.cx.timers.wait(now), "a timer");
        let expiries = &self.cx.handle().expiries;
        wakes_by(expiries.wait(now), "an expiry");
        for key in expiries.keys() {
            assert!(
                self.conns.get(key).is_some(),
                "the session of a connection that has ended expires"
            );
        }
        if let Stop::Draining(deadline) | Stop::Closing(deadline) = self.cx.stop {
            let left = deadline.saturating_duration_since(now);
            wakes_by(Some(left), "the deadline for stopping");
        }
        if is_paused && self.cx.receive_budget.is_full() {
            // Handlers will return, or clients read on: there is a timer for each.
            assert!(
                self.sessions().any(|ws| ws.is_handled_or_held_back()),
                "reading is paused, and nothing ends the pause"
            );
        }
        if !self.cx.fanout.wants_commands() && !self.cx.fanout.can_take_commands() {
            assert!(
                self.sessions().any(|ws| ws.congested),
                "commands wait, but no member is congested"
            );
        }
    }

    fn sessions(&self) -> impl Iterator<Item = &WebSocket> {
        let keys = self.conns.keys().into_iter();
        keys.filter_map(|key| match self.conns.get(key).map(|conn| &conn.stage) {
            Some(Stage::WebSocket(ws)) => Some(ws),
            _ => None,
        })
    }
}
