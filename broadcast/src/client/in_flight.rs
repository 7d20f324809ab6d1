//! Lines that were given to a connection and are not known to have reached the server: what becomes of them when it ends. Knows
//! no socket.

use std::collections::VecDeque;

use humphrey_ws::Message;

/// What is kept of lines that have left, in bytes: to be sent again where the server says that it has not read them. Of earlier
/// ones only the number is kept.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// Beside the line itself.
const LINE_OVERHEAD_BYTES: usize = 64;

/// How often a line that never gets through whole is sent, on one connection after another.
const ATTEMPTS_MAX: u32 = 5;

/// A line on its way.
#[derive(Debug)]
struct Sent {
    /// Where its frame begins and ends, in bytes of the connection.
    begin: u64,
    end: u64,
    message: Message,
}

/// The lines of one connection, in order; counts begin anew with each.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    sent: VecDeque<Sent>,
    kept_bytes: usize,
    /// Lines in front of those, which have left and are not kept, and the longest of them.
    forgotten: u64,
    forgotten_longest: usize,
    /// Lines that were given to this connection.
    given: u64,
    /// Those of them that are known to have reached the server.
    confirmed: u64,
    /// The longest line that has ever reached it.
    longest_confirmed: usize,
    /// How often, one connection after the other, the first line had begun to leave and did not get through.
    attempts: u32,
}

/// How a connection has ended, as far as its lines are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// In good order: all that has left has arrived.
    Goodbye,
    /// With 1009: one of the lines is too long for the server.
    TooLong,
    /// In any other way.
    Other,
}

/// What has become of the lines of a connection.
#[derive(Debug, Default)]
pub(super) struct Remains {
    /// Lines that have reached the server.
    pub(super) arrived: u64,
    /// Lines that have left, and may have reached the server or not.
    pub(super) doubtful: u64,
    /// A line that is not sent again: its length, and why.
    pub(super) dropped: Option<(usize, Dropped)>,
    /// Lines to be sent on the next connection, in order.
    pub(super) again: Vec<Message>,
}

/// Why a line is not sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dropped {
    TooLong,
    Stuck,
}

impl InFlight {
    /// A line was given to the connection; its frame begins and ends there. `written`: so many bytes have left.
    pub(super) fn push(&mut self, message: Message, begin: u64, end: u64, written: u64) {
        self.given += 1;
        self.kept_bytes += message.bytes().len() + LINE_OVERHEAD_BYTES;
        self.sent.push_back(Sent {
            begin,
            end,
            message,
        });
        while self.kept_bytes > KEPT_BYTES_MAX
            && self.sent.front().is_some_and(|first| first.end <= written)
            && let Some(len) = self.pop()
        {
            self.forgotten += 1;
            self.forgotten_longest = self.forgotten_longest.max(len);
        }
    }

    /// Takes the first line out, and returns its length.
    fn pop(&mut self) -> Option<usize> {
        let len = self.sent.pop_front()?.message.bytes().len();
        self.kept_bytes -= len + LINE_OVERHEAD_BYTES;
        Some(len)
    }

    /// So many lines of this connection have reached the server.
    pub(super) fn confirm(&mut self, number: u64) {
        while self.confirmed < number.min(self.given) {
            self.confirmed += 1;
            self.attempts = 0;
            if self.forgotten > 0 {
                self.forgotten -= 1;
                if self.forgotten == 0 {
                    let longest = std::mem::take(&mut self.forgotten_longest);
                    self.longest_confirmed = self.longest_confirmed.max(longest);
                }
            } else if let Some(len) = self.pop() {
                self.longest_confirmed = self.longest_confirmed.max(len);
            }
        }
    }

    /// Lines that were given to this connection.
    pub(super) const fn given(&self) -> u64 {
        self.given
    }

    /// Those of them that are known to have reached the server.
    pub(super) const fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// Whether the server has taken a line of about that length, or a longer one: a quarter more counts as the same, so that
    /// lines which grow little by little are not all tried one by one.
    pub(super) const fn is_known_to_fit(&self, len: usize) -> bool {
        len <= self.longest_confirmed + self.longest_confirmed / 4
    }

    /// Whether some are not known to have arrived.
    pub(super) const fn has_unconfirmed(&self) -> bool {
        self.given > self.confirmed
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// The connection has ended, after so many bytes had left.
    pub(super) fn end(&mut self, ending: Ending, written: u64) -> Remains {
        if ending == Ending::Goodbye {
            let left = self.sent.iter().take_while(|line| line.end <= written);
            self.confirm(self.confirmed + self.forgotten + left.count() as u64);
        }
        let mut remains = Remains {
            arrived: self.confirmed,
            ..Remains::default()
        };
        let mut lines = std::mem::take(&mut self.sent);
        let too_long = match ending {
            Ending::TooLong => self.too_long(&lines, written),
            Ending::Goodbye | Ending::Other => None,
        };
        if let Some(at) = too_long {
            // A server reads in order, and nothing behind the line that it closes at (RFC 6455 §7.1.7).
            remains.doubtful = self.forgotten + at as u64;
            remains.dropped = Some((lines[at].message.bytes().len(), Dropped::TooLong));
            remains.again = lines.drain(at + 1..).map(|line| line.message).collect();
            self.attempts = 0;
        } else {
            let left = lines.iter().take_while(|line| line.end <= written).count();
            remains.doubtful = self.forgotten + left as u64;
            // The first line of a connection, which it did not outlive.
            let is_stuck = left == 0
                && self.given > 0
                && remains.arrived + remains.doubtful == 0
                && lines.front().is_some_and(|line| line.begin < written);
            self.attempts = if is_stuck { self.attempts + 1 } else { 0 };
            if self.attempts >= ATTEMPTS_MAX
                && let Some(line) = lines.pop_front()
            {
                self.attempts = 0;
                remains.dropped = Some((line.message.bytes().len(), Dropped::Stuck));
            }
            remains.again = lines
                .drain(left.min(lines.len())..)
                .map(|line| line.message)
                .collect();
        }
        *self = Self {
            longest_confirmed: self.longest_confirmed,
            attempts: self.attempts,
            ..Self::default()
        };
        remains
    }

    /// Which line a server that has closed with 1009 does not take: of those that have begun to leave, the longest, if it is
    /// longer than all that it has taken. If the server has closed at an earlier one, that was shorter, so this one is too long
    /// as well.
    fn too_long(&self, lines: &VecDeque<Sent>, written: u64) -> Option<usize> {
        let mut longest = None;
        let mut bytes = self.longest_confirmed.max(self.forgotten_longest);
        let begun = lines.iter().take_while(|line| line.begin < written);
        for (at, line) in begun.enumerate() {
            let len = line.message.bytes().len();
            if len > bytes {
                (longest, bytes) = (Some(at), len);
            }
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives lines of these lengths to a connection, one byte of it for each of theirs.
    fn give(in_flight: &mut InFlight, lens: &[usize]) {
        let mut at = in_flight.sent.back().map_or(0, |line| line.end);
        for len in lens {
            let end = at + *len as u64;
            in_flight.push(Message::new("x".repeat(*len)), at, end, at);
            at = end;
        }
    }

    fn lens(remains: &Remains) -> Vec<usize> {
        remains
            .again
            .iter()
            .map(|message| message.bytes().len())
            .collect()
    }

    #[test]
    fn lines_that_have_left_are_in_doubt_and_others_are_sent_again() {
        let mut in_flight = InFlight::default();
        give(&mut in_flight, &[1, 2, 3, 4]);
        in_flight.confirm(1);
        let remains = in_flight.end(Ending::Other, 5);
        assert_eq!((remains.arrived, remains.doubtful), (1, 1));
        assert_eq!(lens(&remains), [3, 4]);
        assert!(remains.dropped.is_none());
        assert!(in_flight.is_empty() && in_flight.given() == 0);
    }

    #[test]
    fn after_a_goodbye_all_that_has_left_has_arrived() {
        let mut in_flight = InFlight::default();
        give(&mut in_flight, &[1, 2]);
        let remains = in_flight.end(Ending::Goodbye, 3);
        assert_eq!((remains.arrived, remains.doubtful), (2, 0));
        assert_eq!(lens(&remains), [0; 0]);
    }

    #[test]
    fn line_that_is_too_long_is_dropped_and_those_behind_it_are_sent_again() {
        // It has left only in part, or whole and others behind it.
        for written in [20, 111, 112] {
            let mut in_flight = InFlight::default();
            give(&mut in_flight, &[5, 5, 100, 1, 1, 1]);
            in_flight.confirm(2);
            let remains = in_flight.end(Ending::TooLong, written);
            assert_eq!((remains.arrived, remains.doubtful), (2, 0));
            assert_eq!(remains.dropped, Some((100, Dropped::TooLong)));
            assert_eq!(lens(&remains), [1, 1, 1], "{written}");
        }
    }

    #[test]
    fn of_several_long_lines_the_longest_is_too_long_for_certain() {
        let mut in_flight = InFlight::default();
        give(&mut in_flight, &[5, 50, 5, 100, 7, 100]);
        let remains = in_flight.end(Ending::TooLong, 300);
        assert_eq!(remains.dropped, Some((100, Dropped::TooLong)));
        assert_eq!((remains.doubtful, lens(&remains)), (3, vec![7, 100]));
    }

    #[test]
    fn line_no_longer_than_one_that_has_arrived_is_not_blamed() {
        let mut in_flight = InFlight::default();
        give(&mut in_flight, &[9, 5, 9]);
        in_flight.confirm(1);
        let remains = in_flight.end(Ending::TooLong, 14);
        assert!(remains.dropped.is_none());
        assert_eq!((remains.doubtful, lens(&remains)), (1, vec![9]));
        // That holds on later connections, too.
        assert!(in_flight.is_known_to_fit(11) && !in_flight.is_known_to_fit(12));
        give(&mut in_flight, &[9]);
        assert!(in_flight.end(Ending::TooLong, 3).dropped.is_none());
    }

    #[test]
    fn line_that_has_not_begun_to_leave_is_not_blamed() {
        let mut in_flight = InFlight::default();
        give(&mut in_flight, &[5, 100]);
        let remains = in_flight.end(Ending::TooLong, 5);
        assert_eq!(remains.dropped, Some((5, Dropped::TooLong)));
        assert_eq!(lens(&remains), [100]);
    }

    #[test]
    fn line_that_never_gets_through_is_dropped_after_five_attempts() {
        let mut in_flight = InFlight::default();
        for _ in 1..ATTEMPTS_MAX {
            give(&mut in_flight, &[100, 1]);
            let remains = in_flight.end(Ending::Other, 50);
            assert!(remains.dropped.is_none());
            assert_eq!(lens(&remains), [100, 1]);
        }
        // A connection on which nothing left says nothing of it, but begins the count anew.
        give(&mut in_flight, &[100, 1]);
        let remains = in_flight.end(Ending::Other, 50);
        assert_eq!(remains.dropped, Some((100, Dropped::Stuck)));
        assert_eq!((remains.doubtful, lens(&remains)), (0, vec![1]));
        for written in [50, 50, 50, 0, 50] {
            give(&mut in_flight, &[100]);
            assert!(in_flight.end(Ending::Other, written).dropped.is_none());
        }
    }

    #[test]
    fn memory_of_lines_that_are_never_confirmed_is_bounded() {
        let mut in_flight = InFlight::default();
        let message = Message::new("x".repeat(1 << 20));
        for at in 0..100 {
            in_flight.push(message.clone(), at, at + 1, at);
            assert!(in_flight.kept_bytes <= KEPT_BYTES_MAX + (2 << 20));
        }
        in_flight.confirm(50);
        assert!(in_flight.is_known_to_fit(0));
        in_flight.confirm(90);
        assert!(in_flight.is_known_to_fit(1 << 20));
        let remains = in_flight.end(Ending::Other, 100);
        assert_eq!((remains.arrived, remains.doubtful), (90, 10));
    }
}
