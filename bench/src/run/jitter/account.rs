//! The account of a client: which messages of its room have arrived.

use std::collections::BTreeSet;
use std::ops::AddAssign;

/// The messages that a client has received. Those of its room are numbered from 0, without gaps.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// One more than the highest number received.
    next: u64,
    /// The numbers below `next` that have not arrived.
    skipped: BTreeSet<u64>,
    twice: u64,
    out_of_order: u64,
}

/// Counts of messages, of one client or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Messages that were to be received.
    pub(super) due: u64,
    /// Of these, messages that arrived.
    pub(super) received: u64,
    /// Of these, messages that never arrived.
    pub(super) lost: u64,
    /// Arrivals of a message that had arrived before.
    pub(super) twice: u64,
    /// Messages that arrived after a later one.
    pub(super) out_of_order: u64,
    /// Arrivals of messages that were never sent.
    pub(super) unknown: u64,
}

impl Totals {
    /// Whether every message arrived once, and in order.
    pub(super) fn is_exact(self) -> bool {
        (self.lost, self.twice, self.out_of_order, self.unknown) == (0, 0, 0, 0)
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.due += other.due;
        self.received += other.received;
        self.lost += other.lost;
        self.twice += other.twice;
        self.out_of_order += other.out_of_order;
        self.unknown += other.unknown;
    }
}

impl Account {
    /// Records an arrival.
    pub(super) fn receive(&mut self, number: u64) {
        if number >= self.next {
            self.skipped.extend(self.next..number);
            self.next = number + 1;
        } else if self.skipped.remove(&number) {
            self.out_of_order += 1;
        } else {
            self.twice += 1;
        }
    }

    /// Whether all of the first `published` messages have arrived.
    pub(super) fn is_complete(&self, published: u64) -> bool {
        self.next >= published && self.skipped.range(..published).next().is_none()
    }

    /// Returns the counts, if the room has `published` messages.
    pub(super) fn totals(&self, published: u64) -> Totals {
        let skipped = self.skipped.range(..published).count() as u64;
        let lost = skipped + published.saturating_sub(self.next);
        let received_unknown = self.next.saturating_sub(published);
        let skipped_unknown = self.skipped.len() as u64 - skipped;
        Totals {
            due: published,
            received: published - lost,
            lost,
            twice: self.twice,
            out_of_order: self.out_of_order,
            unknown: received_unknown - skipped_unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(numbers: &[u64], published: u64) -> Totals {
        let mut account = Account::default();
        numbers.iter().for_each(|number| account.receive(*number));
        let totals = account.totals(published);
        assert_eq!(account.is_complete(published), totals.lost == 0);
        totals
    }

    #[test]
    fn messages_in_order_are_exact() {
        let exact = Totals {
            due: 4,
            received: 4,
            ..Totals::default()
        };
        assert_eq!(totals(&[0, 1, 2, 3], 4), exact);
        assert!(exact.is_exact() && totals(&[], 0).is_exact());
    }

    #[test]
    fn missing_messages_are_lost_in_the_middle_and_at_the_end() {
        let counted = totals(&[0, 3, 4], 7);
        assert_eq!((counted.received, counted.lost), (3, 4));
        assert!(!counted.is_exact());
        assert_eq!(totals(&[], 3).lost, 3);
    }

    #[test]
    fn late_message_is_out_of_order_but_not_lost() {
        let counted = totals(&[0, 2, 3, 1], 4);
        assert_eq!((counted.received, counted.lost), (4, 0));
        assert_eq!((counted.out_of_order, counted.twice), (1, 0));
        assert!(!counted.is_exact());
    }

    #[test]
    fn repeated_message_is_counted_each_time() {
        let counted = totals(&[0, 1, 1, 0, 2, 1], 3);
        assert_eq!((counted.received, counted.twice), (3, 3));
        assert_eq!((counted.out_of_order, counted.lost), (0, 0));
    }

    #[test]
    fn message_that_was_never_sent_is_unknown() {
        let counted = totals(&[0, 1, 5], 3);
        assert_eq!((counted.received, counted.lost), (2, 1));
        assert_eq!(counted.unknown, 1);
    }

    #[test]
    fn totals_of_all_clients_add_up() {
        let mut sum = totals(&[0, 2], 3);
        sum += totals(&[0, 0, 2, 1], 3);
        let expected = Totals {
            due: 6,
            received: 5,
            lost: 1,
            twice: 1,
            out_of_order: 1,
            unknown: 0,
        };
        assert_eq!(sum, expected);
    }
}
