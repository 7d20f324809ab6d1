//! What a node knows of a room's history, and what it has to read to keep its copy complete.
//!
//! A copy begins with a read, and goes on with the messages that the broker publishes. They are numbered, so a message that
//! does not follow the last one shows that some were missed, which are then read. The broker executes a node's commands and
//! sends it messages in one order: what arrives before the answer to a read is contained in it. Should a broker not keep to
//! this, the node reads again.

use super::broker::History;
use crate::history_id::HistoryId;

/// A node's copy of the history of one room.
#[derive(Debug)]
pub(super) struct Replica {
    /// The last message that the copy contains, or its beginning. `None` until it was read for the first time.
    position: Option<HistoryId>,
    /// The incarnation of the broker server, as the node counts them, in which the copy began. The epoch of its position
    /// belongs to it.
    incarnation: u64,
    state: State,
    /// About the most bytes of a read.
    pub(super) read_bytes_max: usize,
    /// Whether the next read extends the time for which the broker keeps the history.
    pub(super) extends: bool,
    /// Whether the room's members were told that it is silent.
    pub(super) is_silent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The room is not subscribed on the current connection.
    Unsubscribed,
    /// The room waits to be read.
    Queued,
    /// The answer to a read after `since` is outstanding.
    Reading {
        since: Option<HistoryId>,
        /// The last message that has arrived meanwhile.
        newest: Option<HistoryId>,
    },
    /// Messages that follow the position are delivered.
    Live,
    /// Messages after the position were left out, because too many waited for the mailboxes.
    Behind,
}

/// What to do with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnMessage {
    Deliver,
    /// The copy contains it, or a read will.
    Skip,
    /// Messages before it were missed.
    Read,
}

/// What to do with the answer to a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnHistory {
    /// The answer is not the one that was expected.
    ReadAgain,
    /// The messages from this sequence on continue the copy.
    Continue { from: u64 },
    /// The copy begins anew. The messages from this sequence on are new to the members.
    Begin { from: u64, gap: Option<Gap> },
}

/// Why a room's members may have missed messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gap {
    /// Messages are no longer kept.
    Lost,
    /// The broker server has restarted, or another one has taken its place. Whether messages were lost is not known.
    ServerChanged,
}

impl Replica {
    pub(super) fn new(read_bytes_max: usize) -> Self {
        Self {
            position: None,
            incarnation: 0,
            state: State::Unsubscribed,
            read_bytes_max,
            extends: true,
            is_silent: false,
        }
    }

    /// The connection was lost.
    pub(super) fn disconnected(&mut self) {
        self.state = State::Unsubscribed;
    }

    /// The room is subscribed. Returns whether it has to be read.
    pub(super) fn subscribed(&mut self) -> bool {
        self.state == State::Unsubscribed && self.queue()
    }

    /// The app has begun an empty copy in place of the former one. Returns whether it has to be read now.
    pub(super) fn renewed(&mut self) -> bool {
        self.position = None;
        matches!(self.state, State::Live | State::Behind) && self.queue()
    }

    /// A read was refused, or the copy is live and has to be read again, or is behind. Returns whether it has to be read.
    pub(super) fn read_again(&mut self) -> bool {
        !matches!(self.state, State::Unsubscribed | State::Queued) && self.queue()
    }

    pub(super) fn is_live(&self) -> bool {
        self.state == State::Live
    }

    fn queue(&mut self) -> bool {
        self.state = State::Queued;
        true
    }

    /// Begins a read. Returns after which message, or `None` if the room no longer waits to be read.
    pub(super) fn begin_read(&mut self) -> Option<Option<HistoryId>> {
        if self.state != State::Queued {
            return None;
        }
        let since = self.position;
        self.state = State::Reading {
            since,
            newest: None,
        };
        Some(since)
    }

    /// Judges a message.
    pub(super) fn on_message(&mut self, id: HistoryId) -> OnMessage {
        match (&mut self.state, self.position) {
            (State::Reading { newest, .. }, _) => {
                *newest = Some(id);
                OnMessage::Skip
            }
            (State::Live, Some(position)) if position.epoch() == id.epoch() => {
                let (last, this) = (position.sequence(), id.sequence());
                if this <= last {
                    OnMessage::Skip
                } else if this == last + 1 {
                    OnMessage::Deliver
                } else {
                    self.queue();
                    OnMessage::Read
                }
            }
            (State::Live, _) => {
                self.queue();
                OnMessage::Read
            }
            _ => OnMessage::Skip,
        }
    }

    /// The copy contains this message, which follows the position, or was begun with it.
    pub(super) fn advance(&mut self, id: HistoryId) {
        self.position = Some(id);
    }

    /// The copy has begun, in this incarnation of the server.
    pub(super) fn begun(&mut self, incarnation: u64) {
        self.incarnation = incarnation;
    }

    /// A message or a part of the history could not be delivered.
    pub(super) fn fall_behind(&mut self) {
        self.state = State::Behind;
    }

    /// Judges the answer to a read.
    pub(super) fn on_history(&mut self, history: &History, incarnation: u64) -> OnHistory {
        let State::Reading { since, newest } = self.state else {
            // The room was unsubscribed meanwhile.
            return OnHistory::ReadAgain;
        };
        let now = history.position;
        let is_beyond =
            |newest: HistoryId| newest.epoch() != now.epoch() || newest.sequence() > now.sequence();
        if since != self.position || newest.is_some_and(is_beyond) {
            self.queue();
            return OnHistory::ReadAgain;
        }
        self.state = State::Live;
        let (last, kept_from) = (now.sequence(), history.first);
        match self.position {
            None => OnHistory::Begin {
                from: last + 1,
                gap: None,
            },
            Some(before) if before.epoch() == now.epoch() && before.sequence() <= last => {
                match before.sequence() + 1 {
                    from if kept_from <= from => OnHistory::Continue { from },
                    _ => OnHistory::Begin {
                        from: kept_from,
                        gap: Some(Gap::Lost),
                    },
                }
            }
            Some(_) => OnHistory::Begin {
                from: kept_from.max(history.base + 1),
                gap: Some(match self.incarnation == incarnation {
                    true => Gap::Lost,
                    false => Gap::ServerChanged,
                }),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(epoch: u64, sequence: u64) -> HistoryId {
        HistoryId::new(epoch, sequence)
    }

    fn history(epoch: u64, base: u64, first: u64, last: u64) -> History {
        History {
            room: "a".into(),
            position: id(epoch, last),
            base,
            first,
            messages: vec![bytes::Bytes::new(); (last + 1 - first) as usize],
        }
    }

    /// A live copy at this position.
    fn live(position: HistoryId) -> Replica {
        let mut replica = Replica::new(0);
        assert!(replica.subscribed());
        assert_eq!(replica.begin_read(), Some(None));
        let last = position.sequence();
        let begun = replica.on_history(&history(position.epoch(), 0, last + 1, last), 1);
        assert_eq!(
            begun,
            OnHistory::Begin {
                from: last + 1,
                gap: None
            }
        );
        replica.advance(position);
        replica.begun(1);
        replica
    }

    fn reconnect(replica: &mut Replica) {
        replica.disconnected();
        assert!(replica.subscribed());
        assert!(replica.begin_read().is_some());
    }

    #[test]
    fn message_is_delivered_only_right_after_the_position() {
        let mut replica = live(id(1, 5));
        assert_eq!(replica.on_message(id(1, 5)), OnMessage::Skip);
        assert_eq!(replica.on_message(id(1, 6)), OnMessage::Deliver);
        replica.advance(id(1, 6));
        assert_eq!(replica.on_message(id(1, 8)), OnMessage::Read);
        assert_eq!(live(id(1, 5)).on_message(id(2, 6)), OnMessage::Read);
    }

    #[test]
    fn history_that_reaches_back_continues_the_copy() {
        for first in 1..=6 {
            let mut replica = live(id(1, 5));
            reconnect(&mut replica);
            let outcome = replica.on_history(&history(1, 0, first, 9), 2);
            assert_eq!(outcome, OnHistory::Continue { from: 6 });
        }
    }

    #[test]
    fn history_that_does_not_reach_back_is_a_gap() {
        let lost = |from| OnHistory::Begin {
            from,
            gap: Some(Gap::Lost),
        };
        let changed = |from| OnHistory::Begin {
            from,
            gap: Some(Gap::ServerChanged),
        };
        for (read, incarnation, expected) in [
            (history(1, 0, 8, 9), 1, lost(8)),
            (history(1, 0, 8, 9), 2, lost(8)),
            // Messages that survived from the former epoch may have been delivered.
            (history(2, 4, 1, 7), 2, changed(5)),
            (history(2, 4, 1, 4), 2, changed(5)),
            (history(2, 0, 1, 3), 1, lost(1)),
            (history(2, 0, 2, 3), 1, lost(2)),
            // Ids that were given are gone.
            (history(1, 0, 1, 3), 1, lost(1)),
        ] {
            let mut replica = live(id(1, 5));
            reconnect(&mut replica);
            assert_eq!(replica.on_history(&read, incarnation), expected, "{read:?}");
        }
    }

    #[test]
    fn message_beyond_the_answer_is_read_again() {
        let mut replica = live(id(1, 5));
        reconnect(&mut replica);
        assert_eq!(replica.on_message(id(1, 9)), OnMessage::Skip);
        let outcome = replica.on_history(&history(1, 0, 1, 8), 1);
        assert_eq!(outcome, OnHistory::ReadAgain);
        assert_eq!(replica.begin_read(), Some(Some(id(1, 5))));
        assert_eq!(replica.on_message(id(1, 9)), OnMessage::Skip);
        let outcome = replica.on_history(&history(1, 0, 1, 9), 1);
        assert_eq!(outcome, OnHistory::Continue { from: 6 });
    }

    #[test]
    fn answer_that_was_asked_for_a_former_copy_is_read_again() {
        let mut replica = live(id(1, 5));
        reconnect(&mut replica);
        assert!(!replica.renewed(), "the answer is still to come");
        let outcome = replica.on_history(&history(1, 0, 6, 9), 1);
        assert_eq!(outcome, OnHistory::ReadAgain);
        assert_eq!(replica.begin_read(), Some(None));
    }

    #[test]
    fn copy_that_fell_behind_skips_messages_until_it_is_read() {
        let mut replica = live(id(1, 5));
        replica.fall_behind();
        assert_eq!(replica.on_message(id(1, 6)), OnMessage::Skip);
        assert!(replica.read_again());
        assert!(!replica.read_again(), "it is queued");
    }
}
