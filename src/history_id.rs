//! Ids of messages in a room's history.

use std::error::Error;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;

/// The id of a message in a room's history: an epoch and a sequence.
///
/// Every history has a random **epoch**, drawn when the room is created: another room, or the same room after a
/// restart, has another epoch. Within it the messages are numbered by their **sequence**: 1, 2, 3, without gaps. So an
/// id says how far a client has read, and an id from another history is recognised as such.
///
/// An id is displayed and parsed as `epoch-sequence`, with the epoch in hexadecimal and the sequence in decimal digits.
/// Only this canonical form is parsed. Ids can be compared for equality; order is defined within an epoch only, by
/// [`sequence`](Self::sequence).
///
/// ```
/// use humphrey_ws::HistoryId;
///
/// let id: HistoryId = "5f3a9c0b12d4e678-42".parse()?;
/// assert_eq!(id.sequence(), 42);
/// assert_eq!(id.to_string(), "5f3a9c0b12d4e678-42");
/// assert!("42".parse::<HistoryId>().is_err());
/// # Ok::<(), humphrey_ws::InvalidHistoryId>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HistoryId {
    epoch: u64,
    sequence: u64,
}

impl HistoryId {
    pub(crate) const fn new(epoch: u64, sequence: u64) -> Self {
        Self { epoch, sequence }
    }

    /// Returns the epoch: which history the message is in.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns the position in the history. The first message has 1; 0 is the position before it.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

/// Draws the epoch of a new history, which is never 0.
pub(crate) fn random_epoch() -> u64 {
    // A new `RandomState` has random keys, so its hash serves as a random number.
    RandomState::new().hash_one(()).max(1)
}

impl fmt::Display for HistoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{}", self.epoch, self.sequence)
    }
}

/// The error of a text that is not a history id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidHistoryId {
    reason: &'static str,
}

impl fmt::Display for InvalidHistoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a history id (epoch-sequence): {}", self.reason)
    }
}

impl Error for InvalidHistoryId {}

impl FromStr for HistoryId {
    type Err = InvalidHistoryId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |reason| InvalidHistoryId { reason };
        let (epoch, sequence) = text
            .split_once('-')
            .ok_or_else(|| invalid("it has no '-'"))?;
        // Only the canonical form, so that equal ids are equal texts.
        let is_canonical = |digits: &str| digits == "0" || !digits.starts_with('0');
        let is_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if epoch.is_empty() || !epoch.bytes().all(is_hex) || !is_canonical(epoch) {
            return Err(invalid(
                "the epoch is not a lower-case hexadecimal number without leading zeros",
            ));
        }
        if sequence.is_empty()
            || !sequence.bytes().all(|b| b.is_ascii_digit())
            || !is_canonical(sequence)
        {
            return Err(invalid(
                "the sequence is not a decimal number without leading zeros",
            ));
        }
        Ok(Self {
            epoch: u64::from_str_radix(epoch, 16)
                .map_err(|_| invalid("the epoch is longer than 64 bits"))?,
            sequence: sequence
                .parse()
                .map_err(|_| invalid("the sequence is longer than 64 bits"))?,
        })
    }
}

/// The error of a replay whose start is no longer in the history.
///
/// Messages after it have been dropped, or the id is from another history: another room, or before a restart. The
/// client must reload its data; the messages from [`oldest`](Self::oldest) on can still be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HistoryGone {
    /// The id after which messages were requested.
    pub asked: HistoryId,
    /// The oldest message that is still kept; `None` if none is.
    pub oldest: Option<HistoryId>,
}

impl HistoryGone {
    pub(crate) fn new(asked: HistoryId, oldest: Option<HistoryId>) -> Self {
        Self { asked, oldest }
    }
}

impl fmt::Display for HistoryGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the history does not contain all messages after {}: ",
            self.asked
        )?;
        match self.oldest {
            Some(oldest) => write!(f, "its oldest message is {oldest}"),
            None => f.write_str("it is empty"),
        }
    }
}

impl Error for HistoryGone {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displayed_id_is_parsed_back() {
        for (epoch, sequence, text) in [
            (0, 0, "0-0"),
            (0xab, 7, "ab-7"),
            (u64::MAX, u64::MAX, "ffffffffffffffff-18446744073709551615"),
        ] {
            let id = HistoryId::new(epoch, sequence);
            assert_eq!(id.to_string(), text);
            assert_eq!(text.parse(), Ok(id));
        }
    }

    #[test]
    fn invalid_id_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "it has no '-'"),
            ("12", "it has no '-'"),
            ("-", "the epoch"),
            ("-1", "the epoch"),
            ("AB-1", "the epoch"),
            ("+1-1", "the epoch"),
            ("0x1-1", "the epoch"),
            ("01-1", "the epoch"),
            ("00-1", "the epoch"),
            (" 1-1", "the epoch"),
            ("é-1", "the epoch"),
            ("10000000000000000-1", "the epoch is longer"),
            ("1-", "the sequence"),
            ("1-+1", "the sequence"),
            ("1--1", "the sequence"),
            ("1-01", "the sequence"),
            ("1-a", "the sequence"),
            ("1-1 ", "the sequence"),
            ("1-1\n", "the sequence"),
            ("1-1-1", "the sequence"),
            ("1-18446744073709551616", "the sequence is longer"),
        ] {
            let error = text.parse::<HistoryId>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }

    #[test]
    fn history_gone_names_the_requested_and_the_oldest_id() {
        let gone = HistoryGone::new(HistoryId::new(1, 2), Some(HistoryId::new(1, 9)));
        assert_eq!(
            gone.to_string(),
            "the history does not contain all messages after 1-2: its oldest message is 1-9"
        );
        let gone = HistoryGone::new(HistoryId::new(1, 2), None);
        assert!(gone.to_string().ends_with("it is empty"));
    }
}
