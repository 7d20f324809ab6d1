//! Messages on their way into the histories of rooms.
//!
//! Each is numbered, so that the broker recognises one that is sent again after a connection was lost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::unanswered::{InFlight, Published};
use super::{Action, Node, QUEUED_MAX};
use crate::cluster::broker::{Append, Appended, Command, History, Read};
use crate::cluster::outgoing::{AppendOutcome, AppendRequest};
use crate::cluster::wire::{EncodedContent, Envelope};
use crate::history_id::{HistoryId, random_epoch};

/// The most bytes of envelopes whose append is not answered. They are kept to be sent again.
const BYTES_MAX: usize = 4 << 20;

/// For at least this time, a server knows the counter of the last append.
const COUNTER_KEPT: Duration = Duration::from_secs(30 * 60);

/// The appends of this node on one server.
#[derive(Default)]
pub(super) struct Appends {
    /// The number of the last one.
    counter: u64,
    /// The bytes of all unanswered envelopes.
    bytes: usize,
    /// To be sent again once the server is connected.
    again: VecDeque<Box<InFlight>>,
    /// The last message of this node that has come back, its number and id.
    returned: Option<(u64, HistoryId)>,
    /// When this incarnation of the server has last executed an append, as far as the node knows.
    executed: Option<Instant>,
}

impl Appends {
    pub(super) fn takes_more(&self) -> bool {
        self.bytes < BYTES_MAX
    }

    /// A message of this node has come back from the broker.
    pub(super) fn has_returned(&mut self, counter: u64, id: HistoryId, now: Instant) {
        self.returned = Some((counter, id));
        self.executed = Some(now);
    }

    /// Whether the server must still know a counter of this node.
    fn has_counter(&self, now: Instant) -> bool {
        self.executed
            .is_some_and(|at| now.saturating_duration_since(at) < COUNTER_KEPT)
    }

    fn has_been_executed(&self, counter: u64) -> bool {
        self.returned
            .is_some_and(|(returned, _)| counter <= returned)
    }
}

impl Node {
    /// Appends a message to the history of a room.
    pub(super) fn append(
        &mut self,
        at: usize,
        room: Arc<str>,
        (encoded, request): (&EncodedContent, AppendRequest),
        queued_at: Instant,
    ) -> (Published, Command) {
        let appends = &mut self.servers[at].appends;
        appends.counter += 1;
        let counter = appends.counter;
        let append = Append {
            room,
            envelope: encoded.envelope(self.id, counter),
            node: self.id,
            counter,
            needs_counter: false,
            expected: request.expected,
            new_epoch: request.new_epoch,
            messages_max: request.messages_max,
            bytes_max: request.bytes_max,
        };
        appends.bytes += append.envelope.len();
        let in_flight = InFlight {
            append: append.clone(),
            waiting: request.waiting,
            at: queued_at,
            is_again: false,
        };
        let published = Published::Append(Box::new(in_flight));
        (published, Command::Append(append))
    }

    /// Handles the answer to the oldest append.
    pub(super) fn appended(
        &mut self,
        at: usize,
        appended: Appended,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(Published::Append(in_flight)) = self.answered(at, now) else {
            return;
        };
        let server = &mut self.servers[at];
        server.appends.bytes -= in_flight.append.envelope.len();
        server.appends.executed = Some(self.now);
        match appended {
            Appended::Id(id) => {
                self.counters.confirmed.add(1);
                in_flight.tell(AppendOutcome::Id(id));
            }
            Appended::Conflict { position } => {
                self.counters.confirmed.add(1);
                // If its answer was lost, and then the history with the counters, it may have been appended before.
                let is_same_history = in_flight
                    .append
                    .expected
                    .is_some_and(|expected| expected.epoch() == position.epoch());
                if !in_flight.is_again || is_same_history {
                    in_flight.tell(AppendOutcome::Conflict { position });
                }
            }
            Appended::Unknown => self.counters.unconfirmed.add(1),
            Appended::Before => {
                self.counters.confirmed.add(1);
                if in_flight.waiting.is_some() {
                    self.find(at, in_flight, now, actions);
                }
            }
        }
    }

    /// Finds the id of a message whose append was executed, but whose answer was lost.
    fn find(
        &mut self,
        at: usize,
        in_flight: Box<InFlight>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if let Some((counter, id)) = self.servers[at].appends.returned
            && counter == in_flight.append.counter
        {
            in_flight.tell(AppendOutcome::Id(id));
            return;
        }
        let read = Read {
            room: in_flight.append.room.clone(),
            // The message follows the expected position.
            since: in_flight.append.expected,
            // The append may have begun its own.
            new_epoch: random_epoch(),
            extends: false,
        };
        let server = &mut self.servers[at];
        server.sent(Published::Find(in_flight), now);
        actions.push(Action::Command(at, Command::Read(vec![read])));
    }

    /// Handles the history in which a message is to be found.
    pub(super) fn found(&self, in_flight: &InFlight, history: &History) {
        let append = &in_flight.append;
        let is_it = |envelope: &[u8]| {
            Envelope::decode(envelope)
                .is_ok_and(|it| it.node == self.id && it.serial == append.counter)
        };
        let found = history.messages.iter().position(|envelope| is_it(envelope));
        let position = history.position;
        match (found, append.expected) {
            (Some(index), None) => {
                let sequence = history.first + index as u64;
                in_flight.tell(AppendOutcome::Id(HistoryId::new(
                    position.epoch(),
                    sequence,
                )));
            }
            // It may have survived from an earlier epoch, but was appended under this id.
            (Some(_), Some(expected)) => in_flight.tell(AppendOutcome::Id(HistoryId::new(
                expected.epoch(),
                expected.sequence() + 1,
            ))),
            // Its place is known, and it is not there.
            (None, Some(expected))
                if expected.epoch() == position.epoch()
                    && history.first <= expected.sequence() + 1 =>
            {
                in_flight.tell(AppendOutcome::Conflict { position });
            }
            // It may have been appended and is no longer kept.
            (None, _) => {}
        }
    }

    pub(super) fn append_refused(&mut self, at: usize, in_flight: &InFlight) {
        if in_flight.is_again {
            // A broker that is busy refuses it without looking whether it was executed before.
            self.give_up_append(at, in_flight);
            return;
        }
        self.servers[at].appends.bytes -= in_flight.append.envelope.len();
        self.counters.dropped_broker.add(1);
        in_flight.tell(AppendOutcome::Refused);
    }

    /// The connection on which an append was sent is lost.
    pub(super) fn append_disconnected(&mut self, at: usize, in_flight: Box<InFlight>) {
        self.servers[at].appends.again.push_back(in_flight);
    }

    /// Sends unanswered appends again, unless the server has lost the numbers of those that it has executed.
    pub(super) fn append_again(
        &mut self,
        at: usize,
        same_server: bool,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let appends = &mut self.servers[at].appends;
        if !same_server {
            appends.executed = None;
        }
        let has_counter = appends.has_counter(self.now);
        for mut in_flight in std::mem::take(&mut self.servers[at].appends.again) {
            if same_server {
                in_flight.is_again = true;
                in_flight.append.needs_counter = has_counter;
                // The append may have begun its epoch, and the history may have been deleted since.
                in_flight.append.new_epoch = random_epoch();
                let command = Command::Append(in_flight.append.clone());
                let server = &mut self.servers[at];
                server.sent(Published::Append(in_flight), now);
                actions.push(Action::Command(at, command));
            } else {
                self.give_up_append(at, &in_flight);
            }
        }
    }

    /// Counts an append that is not sent again.
    fn give_up_append(&mut self, at: usize, in_flight: &InFlight) {
        let appends = &mut self.servers[at].appends;
        appends.bytes -= in_flight.append.envelope.len();
        match appends.has_been_executed(in_flight.append.counter) {
            true => self.counters.confirmed.add(1),
            false => self.counters.unconfirmed.add(1),
        }
    }

    /// Gives up unanswered appends that are too old to be sent again.
    pub(super) fn expire_appends(&mut self, at: usize, now: Instant) {
        let is_old =
            |in_flight: &InFlight| now.saturating_duration_since(in_flight.at) >= QUEUED_MAX;
        while self.servers[at]
            .appends
            .again
            .front()
            .is_some_and(|it| is_old(it))
        {
            if let Some(in_flight) = self.servers[at].appends.again.pop_front() {
                self.give_up_append(at, &in_flight);
            }
        }
    }

    /// Gives up all unanswered appends, because the node stops.
    pub(super) fn give_up_appends(&mut self, at: usize) {
        for in_flight in std::mem::take(&mut self.servers[at].appends.again) {
            self.give_up_append(at, &in_flight);
        }
    }
}

/// What a node keeps in memory.
#[cfg(all(test, not(loom)))]
impl Node {
    /// The bytes of the envelopes whose appends are not answered, or whose ids are being looked for.
    pub(crate) fn unanswered_append_bytes(&self) -> usize {
        let unanswered = self.servers.iter().flat_map(|server| &server.unanswered);
        let unanswered = unanswered.filter_map(|it| match &it.published {
            Published::Append(in_flight) | Published::Find(in_flight) => Some(in_flight),
            Published::Message | Published::Own | Published::Read { .. } => None,
        });
        let again = self.servers.iter().flat_map(|server| &server.appends.again);
        let in_flight = unanswered.chain(again);
        in_flight.map(|it| it.append.envelope.len()).sum()
    }

    /// The bytes of the messages and actions that wait until the mailboxes of local members have room.
    pub(crate) fn parked_bytes(&self) -> usize {
        self.parked.weight()
    }
}
