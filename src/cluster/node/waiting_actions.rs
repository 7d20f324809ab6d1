//! Actions on connections that wait until the history of a room has been read.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Node;
use crate::cluster::members::Delivered;
use crate::cluster::parked;
use crate::cluster::wire::{Content, DirectAction, Envelope, RemoteConnection};
use crate::report::debug;

/// How long an action waits for the history of its room.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// The most actions that wait for histories.
const ACTIONS_MAX: usize = 1_024;

/// An action that waits until the history of its room has been read.
pub(super) struct WaitingAction {
    until: Instant,
    to: RemoteConnection,
    envelope: Bytes,
}

impl Node {
    /// Whether an action on this connection has to follow one that waits.
    pub(super) fn is_waiting(&self, to: RemoteConnection) -> bool {
        self.waiting.iter().any(|waiting| waiting.to == to)
    }

    /// Lets an action wait for a room's history.
    pub(super) fn wait(&mut self, envelope: Bytes, now: Instant) {
        let decoded = Envelope::decode(&envelope);
        let Ok(Content::Direct(to, _)) = decoded.map(|it| it.content) else {
            return;
        };
        if self.waiting.len() >= ACTIONS_MAX {
            self.counters.dropped_full.add(1);
            return;
        }
        self.waiting.push(WaitingAction {
            until: now + WAIT_MAX,
            to,
            envelope,
        });
    }

    /// Lets those actions wait that could not be executed.
    pub(super) fn wait_later(&mut self, now: Instant) {
        for envelope in std::mem::take(&mut self.parked.later) {
            self.wait(envelope, now);
        }
    }

    /// Executes the actions whose rooms have been read, and those that have waited for too long.
    pub(super) fn act_later(&mut self, now: Instant) {
        self.wait_later(now);
        if self.waiting.is_empty() {
            return;
        }
        let mut still: Vec<WaitingAction> = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            let follows = still.iter().any(|earlier| earlier.to == waiting.to);
            let is_over = waiting.until <= now;
            if follows && !is_over {
                still.push(waiting);
                continue;
            }
            match parked::act(&waiting.envelope, &*self.members) {
                Delivered::Done => {}
                _ if is_over => {
                    self.counters.dropped_full.add(1);
                    if let Ok(Content::Direct(_, DirectAction::Join { room })) =
                        Envelope::decode(&waiting.envelope).map(|it| it.content)
                    {
                        debug!(
                            "a connection does not join {room:?}, whose history could not be read in time"
                        );
                    }
                }
                _ => still.push(waiting),
            }
        }
        self.waiting = still;
    }
}
