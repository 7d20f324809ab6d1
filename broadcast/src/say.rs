//! What the program says: one line at a time, on standard error.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::stdio;

/// Says one line.
macro_rules! say {
    ($($text:tt)*) => { $crate::say::line(format_args!($($text)*)) };
}
pub(crate) use say;

/// Unlike `eprintln!`, goes on where nobody reads standard error any more: what is said is never worth the server.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    // In one piece, so that lines of several threads, or programs, do not mix.
    let line = format!("humphrey-broadcast: {text}\n");
    stdio::write_error(line.as_bytes());
}

/// A line that clients can cause: it is said once a minute at most, with the number of those that were left out.
#[derive(Debug, Default)]
pub(crate) struct Limited(Mutex<(Option<Instant>, u64)>);

/// How many lines were left out since the last that was said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LeftOut(u64);

impl Limited {
    const PAUSE: Duration = Duration::from_secs(60);

    /// Whether the line is to be said now, and what is to be said at its end.
    pub(crate) fn due(&self, now: Instant) -> Option<LeftOut> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, left_out) = &mut *state;
        if last.is_some_and(|last| now.saturating_duration_since(last) < Self::PAUSE) {
            *left_out += 1;
            return None;
        }
        *last = Some(now);
        Some(LeftOut(std::mem::take(left_out)))
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str(" (said once a minute at most)"),
            n => write!(
                f,
                " (said once a minute at most; {n} more since the last time)"
            ),
        }
    }
}

/// Has the library's warnings said, or its errors only.
pub(crate) fn init(quiet: bool) {
    // Fails only if there is a logger already, and this is the first.
    let _ = log::set_logger(&Library);
    log::set_max_level(if quiet {
        LevelFilter::Error
    } else {
        LevelFilter::Warn
    });
}

/// Where the library's log goes.
struct Library;

impl Log for Library {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let kind = match record.level() {
            Level::Error => "error",
            _ => "warning",
        };
        line(format_args!("{kind}: {}", record.args()));
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_said_once_a_minute_with_a_count() {
        let (limited, start) = (Limited::default(), Instant::now());
        let after = |seconds| limited.due(start + Duration::from_secs(seconds));
        assert_eq!(after(0), Some(LeftOut(0)));
        assert_eq!((after(1), after(59)), (None, None));
        assert_eq!(after(60), Some(LeftOut(2)));
        assert_eq!(after(61), None);
    }
}
