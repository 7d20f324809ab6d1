//! What all clients of a cluster have received, and what an id means.

use std::collections::{BTreeMap, HashMap, HashSet};

use humphrey_ws::HistoryId;

use super::NODES;
use super::node::{END, PLAIN};
use crate::body::MessageCodec;
use crate::check::{Outcome, ensure};

/// The sender of a message, and its number.
pub(crate) type Origin = (u32, u64);

/// What one client has received of one room.
#[derive(Debug, Default)]
pub(crate) struct RoomLog {
    /// The id of the last message, or the position from which the client goes on. `None` before the first message, and after
    /// a replay has told of a gap.
    pub(crate) position: Option<HistoryId>,
    /// The last number of each sender since the last gap in a replay.
    last: Vec<Origin>,
    pub(crate) received: u64,
    /// Senders whose last message has arrived.
    pub(crate) ends: u32,
}

impl RoomLog {
    /// Records that the origin's number rises: nothing is repeated, and a sender's messages keep their order.
    fn rise(&mut self, (sender, number): Origin) -> Outcome {
        match self.last.iter_mut().find(|(known, _)| *known == sender) {
            None => self.last.push((sender, number)),
            Some((_, last)) => {
                ensure!(
                    number > *last,
                    "message {number} of sender {sender} arrived after its message {last}"
                );
                *last = number;
            }
        }
        self.received += 1;
        if sender & END != 0 {
            self.ends |= 1 << (sender & 0xffff);
        }
        Ok(())
    }

    /// The client was told of a gap in a replay: all messages that the room keeps follow.
    pub(crate) fn replays_all(&mut self) {
        self.position = None;
        self.last.clear();
    }
}

/// What all clients have received.
#[derive(Debug)]
pub(crate) struct Accounts {
    codec: MessageCodec,
    /// The message with an id in a room.
    meanings: HashMap<(u32, HistoryId), Origin>,
    /// The messages of rooms with a history that some client has received, by sender.
    pub(crate) delivered: BTreeMap<u32, HashSet<u64>>,
    /// How many of them were in each room.
    pub(crate) delivered_in: Vec<u64>,
    /// The different messages of rooms without a history that clients of a node have received, by sender.
    pub(crate) plain: [BTreeMap<u32, HashSet<u64>>; NODES],
}

impl Accounts {
    pub(crate) fn new(codec: MessageCodec, rooms: u32) -> Self {
        Self {
            codec,
            meanings: HashMap::new(),
            delivered: BTreeMap::new(),
            delivered_in: vec![0; rooms as usize],
            plain: Default::default(),
        }
    }

    /// Records a message of a room with a history. Fails unless it follows the client's last one in order.
    pub(crate) fn kept(
        &mut self,
        log: &mut RoomLog,
        room: u32,
        id: HistoryId,
        message: &[u8],
    ) -> Outcome<Origin> {
        let origin = self.codec.read(message)?;
        let (sender, number) = origin;
        ensure!(
            sender & PLAIN == 0,
            "message {number} of sender {sender} arrived in a room with a history"
        );
        if let Some(before) = log.position {
            ensure!(
                id.epoch() == before.epoch() && id.sequence() == before.sequence() + 1,
                "message {number} of sender {sender} has the id {id}, which does not follow {before}, and no gap was told"
            );
        }
        log.position = Some(id);
        let meaning = *self.meanings.entry((room, id)).or_insert(origin);
        ensure!(
            meaning == origin,
            "the id {id} has two meanings: message {} of sender {}, and message {number} of sender {sender}",
            meaning.1,
            meaning.0
        );
        log.rise(origin)?;
        if self.delivered.entry(sender).or_default().insert(number) {
            self.delivered_in[room as usize] += 1;
        }
        Ok(origin)
    }

    /// Records a message of a room without a history.
    pub(crate) fn plain(
        &mut self,
        log: &mut RoomLog,
        node: usize,
        message: &[u8],
    ) -> Outcome<Origin> {
        let origin = self.codec.read(message)?;
        let (sender, number) = origin;
        ensure!(
            sender & PLAIN != 0,
            "message {number} of sender {sender} arrived without an id"
        );
        log.rise(origin)?;
        self.plain[node].entry(sender).or_default().insert(number);
        Ok(origin)
    }

    /// How many different messages of a sender have arrived at some client.
    pub(crate) fn delivered_of(&self, sender: u32) -> u64 {
        self.delivered.get(&sender).map_or(0, HashSet::len) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> HistoryId {
        text.parse().unwrap()
    }

    #[test]
    fn missing_repeated_or_ambiguous_messages_are_refused() {
        let codec = MessageCodec::new(3);
        let message = |number| codec.write(1, number, 64);
        let mut accounts = Accounts::new(codec, 1);
        let (mut first, mut second) = (RoomLog::default(), RoomLog::default());
        accounts
            .kept(&mut first, 0, id("a-1"), &message(1))
            .unwrap();
        accounts
            .kept(&mut first, 0, id("a-2"), &message(2))
            .unwrap();
        assert_eq!(accounts.delivered_of(1), 2);
        let mut refuses = |log: &mut RoomLog, text, number| {
            let outcome = accounts.kept(log, 0, id(text), &message(number));
            outcome.is_err()
        };
        assert!(refuses(&mut second, "a-2", 3), "another meaning");
        assert!(refuses(&mut first, "a-4", 3), "a missing id");
        first.position = Some(id("a-2"));
        assert!(refuses(&mut first, "b-3", 3), "another epoch");
        first.position = Some(id("b-0"));
        assert!(refuses(&mut first, "b-1", 2), "a repeated message");
    }
}
