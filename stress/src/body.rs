//! Numbered messages whose bytes follow from seed, sender and number, so that both sides can generate and verify them.
//!
//! ```text
//! mark (4 bytes)  length (4)  sender (4)  number (8)  filler, which follows from seed, sender and number
//! ```

use std::collections::BTreeMap;

use crate::check::{Failure, Outcome, ensure};
use crate::random::mix;

const MARK: [u8; 4] = *b"HWS\x01";
const HEAD_BYTES: usize = 20;
/// Minimum length of the filler, so that a changed header is detected.
const FILL_BYTES_MIN: usize = 8;
const BYTES_MIN: usize = HEAD_BYTES + FILL_BYTES_MIN;

/// Generates and verifies the messages of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MessageCodec {
    seed: u64,
}

impl MessageCodec {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Generates a message. Its length depends on its number, too.
    pub(crate) fn write(self, sender: u32, number: u64, bytes_max: usize) -> Vec<u8> {
        let origin = self.origin(sender, number);
        let room = bytes_max.saturating_sub(BYTES_MIN) as u64 + 1;
        let len = BYTES_MIN + (mix(origin) % room) as usize;
        let mut bytes = Vec::with_capacity(len + 8);
        bytes.extend(MARK);
        bytes.extend((len as u32).to_le_bytes());
        bytes.extend(sender.to_le_bytes());
        bytes.extend(number.to_le_bytes());
        let mut word = origin;
        while bytes.len() < len {
            word = next_word(word);
            bytes.extend(word.to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// Returns sender and number of a message. Fails if any byte differs from what was sent.
    pub(crate) fn read(self, bytes: &[u8]) -> Outcome<(u32, u64)> {
        let Some((head, fill)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
            return Err(Failure::new(format!(
                "a message of {} bytes is shorter than any that was sent",
                bytes.len()
            )));
        };
        let sender = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        let mut number = [0; 8];
        number.copy_from_slice(&head[12..]);
        let number = u64::from_le_bytes(number);
        let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        ensure!(
            head[..4] == MARK && len == bytes.len(),
            "a message of {} bytes begins with {:02x?} instead of the mark",
            bytes.len(),
            &head[..8]
        );
        let mut word = self.origin(sender, number);
        for piece in fill.chunks(8) {
            word = next_word(word);
            ensure!(
                piece == &word.to_le_bytes()[..piece.len()],
                "message {number} of sender {sender} was changed on the way"
            );
        }
        Ok((sender, number))
    }

    fn origin(self, sender: u32, number: u64) -> u64 {
        mix(self.seed ^ mix(number) ^ mix(!u64::from(sender)))
    }
}

fn next_word(word: u64) -> u64 {
    word.wrapping_mul(0x5851_f42d_4c95_7f2d)
        .wrapping_add(0x1405_7b7e_f767_814f)
}

/// The messages that one client has received from one sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SenderRun {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) count: u64,
}

impl SenderRun {
    /// How many messages between the first and the last are missing.
    pub(crate) fn missing(&self) -> u64 {
        self.last - self.first + 1 - self.count
    }
}

/// The messages that one client has received, by sender.
#[derive(Debug)]
pub(crate) struct ReceiveLog {
    codec: MessageCodec,
    pub(crate) runs: BTreeMap<u32, SenderRun>,
    pub(crate) count: u64,
}

impl ReceiveLog {
    pub(crate) fn new(codec: MessageCodec) -> Self {
        Self {
            codec,
            runs: BTreeMap::new(),
            count: 0,
        }
    }

    /// Records a message. Fails unless each sender's numbers rise.
    pub(crate) fn record(&mut self, bytes: &[u8]) -> Outcome<(u32, u64)> {
        let (sender, number) = self.codec.read(bytes)?;
        self.count += 1;
        match self.runs.get_mut(&sender) {
            None => {
                let run = SenderRun {
                    first: number,
                    last: number,
                    count: 1,
                };
                self.runs.insert(sender, run);
            }
            Some(run) => {
                ensure!(
                    number > run.last,
                    "message {number} of sender {sender} arrived after its message {}",
                    run.last
                );
                run.last = number;
                run.count += 1;
            }
        }
        Ok((sender, number))
    }

    /// Records a message. Fails unless it directly follows the sender's previous one.
    pub(crate) fn record_in_sequence(&mut self, bytes: &[u8]) -> Outcome<(u32, u64)> {
        let (sender, number) = self.record(bytes)?;
        let run = &self.runs[&sender];
        ensure!(
            run.missing() == 0,
            "between messages {} and {number} of sender {sender}, {} are missing",
            run.first,
            run.missing()
        );
        Ok((sender, number))
    }

    pub(crate) fn last(&self, sender: u32) -> u64 {
        self.runs.get(&sender).map_or(0, |run| run.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_with_a_changed_byte_or_length_is_refused() {
        let codec = MessageCodec::new(3);
        for number in 0..200 {
            let bytes = codec.write(5, number, 100);
            assert!((BYTES_MIN..=100).contains(&bytes.len()));
            assert_eq!(codec.read(&bytes).unwrap(), (5, number));
            for at in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[at] ^= 0x10;
                assert!(codec.read(&changed).is_err(), "{number} {at}");
            }
            assert!(codec.read(&bytes[..bytes.len() - 1]).is_err());
        }
    }

    #[test]
    fn missing_repeated_or_reordered_messages_are_refused() {
        let codec = MessageCodec::new(3);
        let message = |number| codec.write(1, number, 64);
        let mut log = ReceiveLog::new(codec);
        assert!(log.record_in_sequence(&message(4)).is_ok());
        assert!(log.record_in_sequence(&message(5)).is_ok());
        assert!(log.record(&message(5)).is_err());
        assert!(log.record(&message(3)).is_err());
        let mut log = ReceiveLog::new(codec);
        log.record(&message(4)).unwrap();
        assert!(log.record_in_sequence(&message(6)).is_err());
        assert_eq!(log.runs[&1].missing(), 1);
    }
}
