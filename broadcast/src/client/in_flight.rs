//! Tracks the lines of a connection that the server has not confirmed, and decides what to resend when it ends. Has no
//! socket.

use std::collections::VecDeque;

use humphrey_ws::Message;

/// Memory for lines that have been written but not confirmed; they are resent if the server reports that it did not
/// read them. Older ones are only counted.
const UNCONFIRMED_BYTES_MAX: usize = 16 << 20;

/// Overhead of a line beside its bytes.
const LINE_OVERHEAD_BYTES: usize = 64;

/// On how many consecutive connections a line may be cut off before it is dropped.
pub(super) const ATTEMPTS_MAX: u32 = 5;

/// A line that was sent and is not confirmed.
#[derive(Debug)]
struct SentLine {
    /// The range of its frame, in bytes of the connection.
    begin: u64,
    end: u64,
    message: Message,
}

/// The unconfirmed lines of one connection, in order. The counters restart with each connection.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    sent: VecDeque<SentLine>,
    unconfirmed_bytes: usize,
    /// The number of older lines that were written and dropped from memory, and the longest of them.
    uncached: u64,
    uncached_longest: usize,
    /// Lines sent on this connection.
    sent_total: u64,
    /// Lines that the server has confirmed.
    confirmed: u64,
    /// The longest line that was ever confirmed.
    longest_confirmed: usize,
    /// How many consecutive connections broke while the first line was partly written.
    attempts: u32,
}

/// How a connection has ended, as far as its lines are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionResult {
    /// A clean closing handshake: all written lines were delivered.
    Clean,
    /// Close code 1009: a line is too long for the server.
    TooLong,
    /// Any other end.
    Other,
}

/// What has become of the lines of a connection.
#[derive(Debug, Default)]
pub(super) struct LineReport {
    /// Lines that have reached the server.
    pub(super) delivered: u64,
    /// Lines that were written and may or may not have reached the server.
    pub(super) unconfirmed: u64,
    /// A line that is not resent: its length and the reason.
    pub(super) dropped: Option<(usize, DropReason)>,
    /// Lines to send on the next connection, in order.
    pub(super) to_resend: Vec<Message>,
}

/// Why a line is not resent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DropReason {
    TooLong,
    RepeatedlyCut,
}

impl InFlight {
    /// Records a line whose frame is `begin..end`. `written`: bytes written to the connection so far.
    pub(super) fn push(&mut self, message: Message, begin: u64, end: u64, written: u64) {
        self.sent_total += 1;
        self.unconfirmed_bytes += message.bytes().len() + LINE_OVERHEAD_BYTES;
        self.sent.push_back(SentLine {
            begin,
            end,
            message,
        });
        while self.unconfirmed_bytes > UNCONFIRMED_BYTES_MAX
            && self.sent.front().is_some_and(|first| first.end <= written)
            && let Some(len) = self.pop()
        {
            self.uncached += 1;
            self.uncached_longest = self.uncached_longest.max(len);
        }
    }

    /// Removes the first line and returns its length.
    fn pop(&mut self) -> Option<usize> {
        let len = self.sent.pop_front()?.message.bytes().len();
        self.unconfirmed_bytes -= len + LINE_OVERHEAD_BYTES;
        Some(len)
    }

    /// Confirms the first `number` lines of this connection.
    pub(super) fn confirm(&mut self, number: u64) {
        while self.confirmed < number.min(self.sent_total) {
            self.confirmed += 1;
            self.attempts = 0;
            if self.uncached > 0 {
                self.uncached -= 1;
                if self.uncached == 0 {
                    let longest = std::mem::take(&mut self.uncached_longest);
                    self.longest_confirmed = self.longest_confirmed.max(longest);
                }
            } else if let Some(len) = self.pop() {
                self.longest_confirmed = self.longest_confirmed.max(len);
            }
        }
    }

    /// Lines sent on this connection.
    pub(super) const fn sent_count(&self) -> u64 {
        self.sent_total
    }

    /// Lines that the server has confirmed.
    pub(super) const fn confirmed_count(&self) -> u64 {
        self.confirmed
    }

    /// Whether the server has accepted a line of about this length. A quarter more counts as the same, so that slowly
    /// growing lines are not all probed.
    pub(super) const fn is_known_to_fit(&self, len: usize) -> bool {
        len <= self.longest_confirmed + self.longest_confirmed / 4
    }

    /// Whether lines are unconfirmed.
    pub(super) const fn has_unconfirmed(&self) -> bool {
        self.sent_total > self.confirmed
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Ends the connection, on which `written` bytes have been written.
    pub(super) fn end(&mut self, result: ConnectionResult, written: u64) -> LineReport {
        if result == ConnectionResult::Clean {
            let left = self.sent.iter().take_while(|line| line.end <= written);
            self.confirm(self.confirmed + self.uncached + left.count() as u64);
        }
        let mut report = LineReport {
            delivered: self.confirmed,
            ..LineReport::default()
        };
        let mut lines = std::mem::take(&mut self.sent);
        let too_long = match result {
            ConnectionResult::TooLong => self.too_long(&lines, written),
            ConnectionResult::Clean | ConnectionResult::Other => None,
        };
        if let Some(at) = too_long {
            // A server reads in order and ignores everything after the frame that makes it close (RFC 6455 §7.1.7).
            report.unconfirmed = self.uncached + at as u64;
            report.dropped = Some((lines[at].message.bytes().len(), DropReason::TooLong));
            report.to_resend = lines.drain(at + 1..).map(|line| line.message).collect();
            self.attempts = 0;
        } else {
            let left = lines.iter().take_while(|line| line.end <= written).count();
            report.unconfirmed = self.uncached + left as u64;
            // The connection broke while its first line was partly written.
            let is_stuck = left == 0
                && self.sent_total > 0
                && report.delivered + report.unconfirmed == 0
                && lines.front().is_some_and(|line| line.begin < written);
            self.attempts = if is_stuck { self.attempts + 1 } else { 0 };
            if self.attempts >= ATTEMPTS_MAX
                && let Some(line) = lines.pop_front()
            {
                self.attempts = 0;
                report.dropped = Some((line.message.bytes().len(), DropReason::RepeatedlyCut));
            }
            report.to_resend = lines
                .drain(left.min(lines.len())..)
                .map(|line| line.message)
                .collect();
        }
        *self = Self {
            longest_confirmed: self.longest_confirmed,
            attempts: self.attempts,
            ..Self::default()
        };
        report
    }

    /// The line that a server which closed with 1009 rejects: the longest one that was at least partly written, if it
    /// is longer than all accepted ones. If the server closed at an earlier line, that line was shorter, so this one is
    /// too long as well.
    fn too_long(&self, lines: &VecDeque<SentLine>, written: u64) -> Option<usize> {
        let mut longest = None;
        let mut bytes = self.longest_confirmed.max(self.uncached_longest);
        let partly_written = lines.iter().take_while(|line| line.begin < written);
        for (at, line) in partly_written.enumerate() {
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

    /// Sends lines of these lengths, with frames as long as the lines.
    fn give(in_flight: &mut InFlight, lens: &[usize]) {
        let mut at = in_flight.sent.back().map_or(0, |line| line.end);
        for len in lens {
            let end = at + *len as u64;
            in_flight.push(Message::new("x".repeat(*len)), at, end, at);
            at = end;
        }
    }

    fn lens(report: &LineReport) -> Vec<usize> {
        report
            .to_resend
            .iter()
            .map(|message| message.bytes().len())
            .collect()
    }

    #[test]
    fn written_lines_are_unconfirmed_and_others_are_resent() {
        let mut in_flight = InFlight::default();
        give(&mut in_flight, &[1, 2, 3, 4]);
        in_flight.confirm(1);
        let report = in_flight.end(ConnectionResult::Other, 5);
        assert_eq!((report.delivered, report.unconfirmed), (1, 1));
        assert_eq!(lens(&report), [3, 4]);
        assert!(report.dropped.is_none());
        assert!(in_flight.is_empty() && in_flight.sent_count() == 0);
    }

    #[test]
    fn clean_close_confirms_all_written_lines() {
        let mut in_flight = InFlight::default();
        give(&mut in_flight, &[1, 2]);
        let report = in_flight.end(ConnectionResult::Clean, 3);
        assert_eq!((report.delivered, report.unconfirmed), (2, 0));
        assert_eq!(lens(&report), [0; 0]);
    }

    #[test]
    fn too_long_line_is_dropped_and_later_ones_are_resent() {
        // The line was written in part, or whole with others behind it.
        for written in [20, 111, 112] {
            let mut in_flight = InFlight::default();
            give(&mut in_flight, &[5, 5, 100, 1, 1, 1]);
            in_flight.confirm(2);
            let report = in_flight.end(ConnectionResult::TooLong, written);
            assert_eq!((report.delivered, report.unconfirmed), (2, 0));
            assert_eq!(report.dropped, Some((100, DropReason::TooLong)));
            assert_eq!(lens(&report), [1, 1, 1], "{written}");
        }
    }

    #[test]
    fn longest_of_several_lines_is_the_too_long_one() {
        let mut in_flight = InFlight::default();
        give(&mut in_flight, &[5, 50, 5, 100, 7, 100]);
        let report = in_flight.end(ConnectionResult::TooLong, 300);
        assert_eq!(report.dropped, Some((100, DropReason::TooLong)));
        assert_eq!((report.unconfirmed, lens(&report)), (3, vec![7, 100]));
    }

    #[test]
    fn line_no_longer_than_a_confirmed_one_is_not_dropped() {
        let mut in_flight = InFlight::default();
        give(&mut in_flight, &[9, 5, 9]);
        in_flight.confirm(1);
        let report = in_flight.end(ConnectionResult::TooLong, 14);
        assert!(report.dropped.is_none());
        assert_eq!((report.unconfirmed, lens(&report)), (1, vec![9]));
        // The confirmed length is remembered for later connections.
        assert!(in_flight.is_known_to_fit(11) && !in_flight.is_known_to_fit(12));
        give(&mut in_flight, &[9]);
        assert!(
            in_flight
                .end(ConnectionResult::TooLong, 3)
                .dropped
                .is_none()
        );
    }

    #[test]
    fn unwritten_line_is_not_the_too_long_one() {
        let mut in_flight = InFlight::default();
        give(&mut in_flight, &[5, 100]);
        let report = in_flight.end(ConnectionResult::TooLong, 5);
        assert_eq!(report.dropped, Some((5, DropReason::TooLong)));
        assert_eq!(lens(&report), [100]);
    }

    #[test]
    fn line_cut_on_five_connections_is_dropped() {
        let mut in_flight = InFlight::default();
        for _ in 1..ATTEMPTS_MAX {
            give(&mut in_flight, &[100, 1]);
            let report = in_flight.end(ConnectionResult::Other, 50);
            assert!(report.dropped.is_none());
            assert_eq!(lens(&report), [100, 1]);
        }
        // A connection on which nothing was written resets the count.
        give(&mut in_flight, &[100, 1]);
        let report = in_flight.end(ConnectionResult::Other, 50);
        assert_eq!(report.dropped, Some((100, DropReason::RepeatedlyCut)));
        assert_eq!((report.unconfirmed, lens(&report)), (0, vec![1]));
        for written in [50, 50, 50, 0, 50] {
            give(&mut in_flight, &[100]);
            assert!(
                in_flight
                    .end(ConnectionResult::Other, written)
                    .dropped
                    .is_none()
            );
        }
    }

    #[test]
    fn unconfirmed_lines_use_bounded_memory() {
        let mut in_flight = InFlight::default();
        let message = Message::new("x".repeat(1 << 20));
        for at in 0..100 {
            in_flight.push(message.clone(), at, at + 1, at);
            assert!(in_flight.unconfirmed_bytes <= UNCONFIRMED_BYTES_MAX + (2 << 20));
        }
        in_flight.confirm(50);
        assert!(in_flight.is_known_to_fit(0));
        in_flight.confirm(90);
        assert!(in_flight.is_known_to_fit(1 << 20));
        let report = in_flight.end(ConnectionResult::Other, 100);
        assert_eq!((report.delivered, report.unconfirmed), (90, 10));
    }
}
