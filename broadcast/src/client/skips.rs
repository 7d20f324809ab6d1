//! Reports messages that the server has skipped, in few lines. Has no clock.

use std::time::{Duration, Instant};

/// How long skipped messages are added up before the first report, since they come in groups.
const FIRST_DELAY: Duration = Duration::from_secs(1);

/// The shortest time between two reports.
const INTERVAL: Duration = Duration::from_secs(10);

/// Adds up skipped messages, and decides when their number is reported.
#[derive(Debug, Default)]
pub(super) struct SkipReport {
    unreported: u64,
    /// When the messages in `unreported` are to be reported.
    due: Option<Instant>,
    reported_at: Option<Instant>,
}

impl SkipReport {
    pub(super) fn add(&mut self, skipped: u64, now: Instant) {
        if skipped == 0 {
            return;
        }
        self.unreported = self.unreported.saturating_add(skipped);
        if self.due.is_none() {
            let soon = now + FIRST_DELAY;
            let by = self.reported_at.map_or(soon, |at| soon.max(at + INTERVAL));
            self.due = Some(by);
        }
    }

    /// When [`take_due`](Self::take_due) returns the next number.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The number to report now, if any.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<u64> {
        self.due.filter(|due| *due <= now)?;
        self.reported_at = Some(now);
        self.take()
    }

    /// The number that is not reported yet, for the end of a connection.
    pub(super) fn take(&mut self) -> Option<u64> {
        self.due = None;
        let skipped = std::mem::take(&mut self.unreported);
        (skipped > 0).then_some(skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_messages_are_reported_together_every_ten_seconds() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut report = SkipReport::default();
        report.add(0, after(0));
        assert_eq!(report.due(), None);
        report.add(2, after(0));
        report.add(3, after(900));
        assert_eq!(report.due(), Some(after(1_000)));
        assert_eq!(report.take_due(after(999)), None);
        assert_eq!(report.take_due(after(1_001)), Some(5));
        assert_eq!((report.due(), report.take_due(after(5_000))), (None, None));
        report.add(1, after(2_000));
        report.add(1, after(11_000));
        assert_eq!(report.due(), Some(after(11_001)));
        assert_eq!(report.take_due(after(11_001)), Some(2));
        // After a pause, the first delay applies again.
        report.add(7, after(60_000));
        assert_eq!(report.due(), Some(after(61_000)));
    }

    #[test]
    fn end_of_a_connection_reports_the_rest() {
        let mut report = SkipReport::default();
        assert_eq!(report.take(), None);
        report.add(4, Instant::now());
        assert_eq!(report.take(), Some(4));
        assert_eq!((report.take(), report.due()), (None, None));
    }
}
