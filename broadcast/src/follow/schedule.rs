//! When a path is checked.

use std::time::{Duration, Instant};

/// After so many changes in a row without an event, files are polled. A single one may be found just before its event.
const UNANNOUNCED_MAX: u8 = 2;

#[derive(Clone, Debug)]
pub(super) struct Timing {
    /// The interval of checks while events announce changes.
    pub(super) check: Duration,
    /// The interval of checks without events: after a change, and after a while without one.
    pub(super) poll_min: Duration,
    pub(super) poll_max: Duration,
    /// How often it is checked whether one of the following times is over.
    pub(super) deadline_check: Duration,
    /// How long to wait for the rest of the last line of a file when the next one has begun.
    pub(super) unfinished_line_wait: Duration,
    /// How long a finished or deleted file must not have been written to before it is closed.
    pub(super) quiet: Duration,
    /// How long it is kept at most.
    pub(super) finished_max: Duration,
    /// How long a path must have led to nothing before that is reported.
    pub(super) vanished: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            check: Duration::from_secs(2),
            poll_min: Duration::from_millis(250),
            poll_max: Duration::from_secs(1),
            deadline_check: Duration::from_millis(100),
            unfinished_line_wait: Duration::from_millis(500),
            quiet: Duration::from_secs(5),
            finished_max: Duration::from_secs(60),
            vanished: Duration::from_secs(2),
        }
    }
}

/// When to check a path, and why.
#[derive(Debug)]
pub(super) struct Schedule {
    /// Which file the path leads to may have changed.
    pub(super) path: bool,
    /// A file may have changed.
    pub(super) data: bool,
    /// There is more to be read at once.
    pub(super) has_more: bool,
    /// Which files are open has changed.
    pub(super) files: bool,
    /// Whether there was an event since the last visit.
    pub(super) signalled: bool,
    pub(super) next_check: Instant,
    /// Whether all directories and files are watched that events should announce changes of.
    pub(super) hops_are_watched: bool,
    pub(super) files_are_watched: bool,
    /// How many changes in a row were found without an event.
    unannounced: u8,
    /// How long to wait if files are polled.
    poll: Duration,
}

/// The result of one check of a path.
#[derive(Debug)]
pub(super) struct Visit {
    /// The interval was over.
    pub(super) is_due: bool,
    /// There was an event, or more to be read.
    pub(super) is_announced: bool,
    pub(super) has_changed: bool,
    /// Something will be due soon without an event.
    pub(super) has_deadline: bool,
}

impl Schedule {
    /// Begins with a check.
    pub(super) fn new(timing: &Timing) -> Self {
        Self {
            path: false,
            data: false,
            has_more: false,
            files: false,
            signalled: false,
            next_check: Instant::now(),
            hops_are_watched: false,
            files_are_watched: true,
            unannounced: 0,
            poll: timing.poll_min,
        }
    }

    /// There was an event.
    pub(super) fn signal(&mut self) {
        self.signalled = true;
        self.unannounced = 0;
    }

    /// Plans the next check.
    pub(super) fn plan(&mut self, visit: &Visit, timing: &Timing) {
        if visit.has_changed && !visit.is_announced {
            self.unannounced = self.unannounced.saturating_add(1);
        }
        if visit.has_changed {
            self.poll = timing.poll_min;
        } else if visit.is_due {
            self.poll = (self.poll * 2).min(timing.poll_max);
        }
        let is_watched = self.hops_are_watched && self.files_are_watched;
        let mut interval = if is_watched && self.unannounced < UNANNOUNCED_MAX {
            timing.check
        } else {
            self.poll
        };
        if visit.has_deadline {
            interval = interval.min(timing.deadline_check);
        }
        let next = Instant::now() + interval;
        self.next_check = if visit.is_due {
            next
        } else {
            self.next_check.min(next)
        };
    }
}
