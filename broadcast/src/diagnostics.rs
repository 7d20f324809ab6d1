//! Diagnostics: single lines on standard error, and the progress line below them.

use std::fmt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::stdio;

/// Prints one line to standard error.
macro_rules! report {
    ($($text:tt)*) => { $crate::diagnostics::print_line(format_args!($($text)*)) };
}
pub(crate) use report;

/// Whether a progress line is shown. The lock is held during every write to standard error.
static HAS_PROGRESS_LINE: Mutex<bool> = Mutex::new(false);

/// Moves the cursor to the start of the terminal's line, and erases the line (ECMA-48 §8.3.41).
const ERASE_LINE: &str = "\r\x1b[K";

/// Prints one line, in place of the progress line if one is shown. Unlike `eprintln!`, it ignores errors: a closed standard
/// error must not end the server.
pub(crate) fn print_line(text: fmt::Arguments<'_>) {
    // A single write keeps lines of several threads and processes apart.
    let mut line = format!("humphrey-broadcast: {text}\n");
    let mut has_progress_line = lock_progress_line();
    if std::mem::take(&mut *has_progress_line) {
        line.insert_str(0, ERASE_LINE);
    }
    stdio::write_error(line.as_bytes());
}

/// Shows the progress line, in place of the previous one. `text` has to fit in one line of the terminal. Does nothing, and
/// returns false, while another thread prints a diagnostic.
pub(crate) fn show_progress_line(text: &str) -> bool {
    let Some(mut has_progress_line) = try_lock_progress_line() else {
        return false;
    };
    *has_progress_line = true;
    stdio::write_error(format!("\r{text}\x1b[K").as_bytes());
    true
}

/// Erases the progress line if one is shown. Does nothing while another thread prints a diagnostic, which erases the line
/// first: a terminal that accepts no output must not delay the end of the program.
pub(crate) fn erase_progress_line() {
    if let Some(mut has_progress_line) = try_lock_progress_line()
        && std::mem::take(&mut *has_progress_line)
    {
        stdio::write_error(ERASE_LINE.as_bytes());
    }
}

/// Records that something else was printed over the progress line, which thus cannot be erased any more.
pub(crate) fn forget_progress_line() {
    if let Some(mut has_progress_line) = try_lock_progress_line() {
        *has_progress_line = false;
    }
}

fn lock_progress_line() -> MutexGuard<'static, bool> {
    HAS_PROGRESS_LINE
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

fn try_lock_progress_line() -> Option<MutexGuard<'static, bool>> {
    match HAS_PROGRESS_LINE.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Limits a line that clients can trigger to one a minute, and counts the suppressed ones. The library has the same
/// internally (`src/report.rs`); it is no part of its public API, so it cannot be shared.
#[derive(Debug, Default)]
pub(crate) struct RateLimit(Mutex<(Option<Instant>, u64)>);

/// The number of lines suppressed since the last one that was printed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Suppressed(u64);

impl RateLimit {
    const INTERVAL: Duration = Duration::from_secs(60);

    /// Whether to print the line now; if so, the suffix to print behind it.
    pub(crate) fn due(&self, now: Instant) -> Option<Suppressed> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, suppressed) = &mut *state;
        if last.is_some_and(|last| now.saturating_duration_since(last) < Self::INTERVAL) {
            *suppressed += 1;
            return None;
        }
        *last = Some(now);
        Some(Suppressed(std::mem::take(suppressed)))
    }
}

impl fmt::Display for Suppressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str(" (logged at most once a minute)"),
            n => write!(
                f,
                " (logged at most once a minute; {n} more since the last time)"
            ),
        }
    }
}

/// A path for a message. Control characters in it are escaped, since a terminal would execute them.
pub(crate) fn printable(path: &Path) -> String {
    let visible = |char: char| match char.is_control() {
        true => char.escape_default().to_string(),
        false => char.to_string(),
    };
    path.to_string_lossy().chars().map(visible).collect()
}

/// Prints the library's log to standard error: warnings and errors, or with `quiet` errors only.
pub(crate) fn init(quiet: bool) {
    // Fails only if a logger is already set, and none is.
    let _ = log::set_logger(&StderrLogger);
    log::set_max_level(if quiet {
        LevelFilter::Error
    } else {
        LevelFilter::Warn
    });
}

/// Prints log records to standard error.
struct StderrLogger;

impl Log for StderrLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // This crate logs each certificate that it refuses. The client already reports the reason.
        let is_reported = metadata.target().starts_with("rustls_platform_verifier");
        metadata.level() <= log::max_level() && !is_reported
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let kind = match record.level() {
            Level::Error => "error",
            _ => "warning",
        };
        print_line(format_args!("{kind}: {}", record.args()));
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_is_printed_once_a_minute_with_a_count() {
        let (limit, start) = (RateLimit::default(), Instant::now());
        let after = |seconds| limit.due(start + Duration::from_secs(seconds));
        assert_eq!(after(0), Some(Suppressed(0)));
        assert_eq!((after(1), after(59)), (None, None));
        assert_eq!(after(60), Some(Suppressed(2)));
        assert_eq!(after(61), None);
    }
}
