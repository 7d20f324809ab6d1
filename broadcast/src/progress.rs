//! The progress line: how many lines have passed, rewritten in place on a terminal's standard error.
//!
//! [`Progress::count`] is called for each line, from any thread, and costs a lock that is rarely contended. [`Progress::update`] is called
//! after events, and when it is due according to its last call: by an event loop, or by a thread that waits in between. It
//! formats and writes at most once in [`INTERVAL`]. Diagnostics erase the progress line before they are printed, and the next
//! update shows it again below them: see [`crate::diagnostics`].

use std::collections::VecDeque;
use std::env;
use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::diagnostics;

/// The shortest time between two updates of the line, and the delay of the first one: a short run shows none.
const INTERVAL: Duration = Duration::from_millis(250);

/// The time over which the rate is averaged.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// Counts lines, and shows their number, their bytes and their rate. Dropping it erases the line.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Not every system has atomic numbers of 64 bits.
    count: Mutex<Count>,
    display: Mutex<Display>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    lines: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Display {
    updated_at: Instant,
    rate: RateMeter,
}

impl Progress {
    /// Returns `None` if no progress is to be shown: with `quiet`, if standard error is not a terminal, or if that can't rewrite
    /// lines. The caller decides whether its other standard streams, on the same terminal, permit it.
    pub(crate) fn on_stderr(quiet: bool) -> Option<Self> {
        let is_shown = cfg!(unix)
            && !quiet
            && io::stderr().is_terminal()
            && env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
        is_shown.then(|| Self::starting_at(Instant::now()))
    }

    fn starting_at(now: Instant) -> Self {
        Self {
            count: Mutex::default(),
            display: Mutex::new(Display {
                updated_at: now,
                rate: RateMeter::starting_at(now),
            }),
        }
    }

    /// Counts a line of this many bytes.
    pub(crate) fn count(&self, bytes: usize) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        count.lines += 1;
        count.bytes += bytes as u64;
    }

    /// Rewrites the line if it is due; `add_details` appends to its text, beginning with a comma. To be called after each
    /// event, and at the time that it returns. `None`: not before the next event.
    pub(crate) fn update(
        &self,
        now: Instant,
        add_details: impl FnOnce(&mut String),
    ) -> Option<Instant> {
        let mut display = self.display.lock().unwrap_or_else(PoisonError::into_inner);
        let due = display.updated_at + INTERVAL;
        if now < due {
            return Some(due);
        }
        display.updated_at = now;
        let Count { lines, bytes } = *self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = display.rate.at(now, lines);
        let is_current = if terminal::is_ours() {
            terminal::columns().is_some_and(|columns| {
                let mut text = summary(lines, bytes, rate);
                add_details(&mut text);
                // The last column stays empty: some terminals continue on the next line after it.
                diagnostics::show_progress_line(truncated(&text, columns.saturating_sub(1)))
            })
        } else {
            // The other program has printed over the line.
            diagnostics::forget_progress_line();
            true
        };
        // Without further lines, the rate decreases to 0.
        (rate > 0.0 || !is_current).then_some(now + INTERVAL)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        diagnostics::erase_progress_line();
    }
}

/// The rate of the lines of the last [`RATE_WINDOW`]. Has no clock.
#[derive(Debug)]
struct RateMeter {
    /// Numbers of lines, the oldest first: those within the window, and the last one before it.
    samples: VecDeque<(Instant, u64)>,
}

impl RateMeter {
    fn starting_at(now: Instant) -> Self {
        Self {
            samples: [(now, 0)].into(),
        }
    }

    /// The rate per second, with `lines` so far.
    fn at(&mut self, now: Instant, lines: u64) -> f64 {
        self.samples.push_back((now, lines));
        while self
            .samples
            .get(1)
            .is_some_and(|(at, _)| *at + RATE_WINDOW <= now)
        {
            self.samples.pop_front();
        }
        let Some((at, before)) = self.samples.front() else {
            return 0.0;
        };
        // A sample that is much older was the last one before a time without lines.
        let elapsed = now.duration_since(*at).min(RATE_WINDOW + INTERVAL);
        if elapsed.is_zero() {
            return 0.0;
        }
        (lines - before) as f64 / elapsed.as_secs_f64()
    }
}

fn summary(lines: u64, bytes: u64, rate: f64) -> String {
    let mut text = String::new();
    push_count(&mut text, lines);
    text += if lines == 1 { " line, " } else { " lines, " };
    push_bytes(&mut text, bytes);
    text += ", ";
    if rate > 0.0 && rate < 9.95 {
        let _ = write!(text, "{rate:.1}");
    } else {
        push_count(&mut text, rate.round() as u64);
    }
    text += "/s";
    text
}

/// Appends a number with a comma between thousands.
pub(crate) fn push_count(text: &mut String, n: u64) {
    let digits = n.to_string();
    for (i, digit) in digits.char_indices() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
}

/// Appends a number of bytes in decimal units.
fn push_bytes(text: &mut String, bytes: u64) {
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in ["kB", "MB", "GB", "TB", "PB"] {
        // What would be rounded to 1000.0 has the larger unit.
        if value < 999.95 {
            break;
        }
        (value, unit) = (value / 1_000.0, larger);
    }
    let decimals = usize::from(unit != "B");
    let _ = write!(text, "{value:.decimals$} {unit}");
}

/// The first `columns` characters. The text of the line is ASCII, of which each has one column.
fn truncated(text: &str, columns: usize) -> &str {
    let end = text.char_indices().nth(columns).map(|(at, _)| at);
    &text[..end.unwrap_or(text.len())]
}

#[cfg(unix)]
mod terminal {
    use std::io;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::getpgrp;
    use rustix::termios::{tcgetpgrp, tcgetwinsize};

    /// The width of a terminal that does not report one.
    const COLUMNS_DEFAULT: u16 = 80;

    /// Whether the program runs in the foreground. Otherwise the terminal belongs to another program.
    pub(super) fn is_ours() -> bool {
        // An error: this terminal does not control the process, so it has neither foreground nor background.
        tcgetpgrp(io::stderr()).map_or(true, |foreground| foreground == getpgrp())
    }

    /// The width of the terminal. `None` if it accepts no output now: writing to a terminal that was paused with Ctrl-S would
    /// block the program.
    pub(super) fn columns() -> Option<usize> {
        let stderr = io::stderr();
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let is_ready = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&at_once));
        if is_ready != Ok(1) {
            return None;
        }
        match tcgetwinsize(&stderr).ok()?.ws_col {
            0 => Some(COLUMNS_DEFAULT.into()),
            columns => Some(columns.into()),
        }
    }
}

#[cfg(not(unix))]
mod terminal {
    pub(super) fn is_ours() -> bool {
        false
    }

    pub(super) fn columns() -> Option<usize> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_names_lines_bytes_and_rate() {
        for (lines, bytes, rate, expected) in [
            (0, 0, 0.0, "0 lines, 0 B, 0/s"),
            (1, 1, 0.2, "1 line, 1 B, 0.2/s"),
            (1_204, 3_100_000, 239.7, "1,204 lines, 3.1 MB, 240/s"),
            (999, 999, 9.96, "999 lines, 999 B, 10/s"),
            (
                12_345_678,
                999_960,
                1e6,
                "12,345,678 lines, 1.0 MB, 1,000,000/s",
            ),
            (1_000, 1_000, 9.0, "1,000 lines, 1.0 kB, 9.0/s"),
            (5, 7 << 40, 1.0, "5 lines, 7.7 TB, 1.0/s"),
        ] {
            assert_eq!(summary(lines, bytes, rate), expected);
        }
        assert_eq!(
            summary(u64::MAX, u64::MAX, 0.0),
            "18,446,744,073,709,551,615 lines, 18446.7 PB, 0/s"
        );
    }

    #[test]
    fn text_wider_than_the_terminal_is_truncated() {
        for (columns, expected) in [(0, ""), (4, "12 l"), (8, "12 lines"), (99, "12 lines")] {
            assert_eq!(truncated("12 lines", columns), expected);
        }
    }

    /// Runs a meter for lines at these times, in milliseconds, with updates every 250 ms. Returns the rates.
    fn rates(lines_at: &[u64], until: u64) -> Vec<f64> {
        let start = Instant::now();
        let mut meter = RateMeter::starting_at(start);
        (1..=until / 250)
            .map(|update| {
                let ms = update * 250;
                let lines = lines_at.iter().filter(|at| **at <= ms).count();
                meter.at(start + Duration::from_millis(ms), lines as u64)
            })
            .collect()
    }

    #[test]
    fn rate_is_averaged_and_ends_at_0() {
        // 100 lines per second for 10 s, then none.
        let steady: Vec<u64> = (1..=1_000).map(|n| n * 10).collect();
        let rates = rates(&steady, 20_000);
        assert!(rates[..40].iter().all(|rate| (rate - 100.0).abs() < 0.1));
        assert!(rates[40..62].is_sorted_by(|a, b| a >= b));
        assert_eq!(rates[62..], [0.0; 18]);
    }

    #[test]
    fn rate_after_an_idle_time_counts_the_window_only() {
        let start = Instant::now();
        let mut meter = RateMeter::starting_at(start);
        meter.at(start + INTERVAL, 0);
        // No updates for an hour.
        let later = start + Duration::from_secs(3_600);
        let rate = meter.at(later, 21);
        assert!((rate - 4.0).abs() < 0.1, "{rate}");
        assert!(meter.samples.len() <= 2);
    }

    #[test]
    fn meter_keeps_few_samples() {
        let start = Instant::now();
        let mut meter = RateMeter::starting_at(start);
        for n in 0..10_000 {
            meter.at(start + INTERVAL * n, 0);
        }
        assert!(meter.samples.len() < 25, "{}", meter.samples.len());
    }

    #[test]
    fn update_is_due_four_times_a_second() {
        let start = Instant::now();
        let progress = Progress::starting_at(start);
        progress.count(5);
        let after = |ms| start + Duration::from_millis(ms);
        let unused = |_: &mut String| panic!("nothing is formatted before the line is due");
        assert_eq!(progress.update(after(0), unused), Some(after(250)));
        assert_eq!(progress.update(after(249), unused), Some(after(250)));
        // The next update follows even without events, since the rate is above 0.
        assert_eq!(progress.update(after(300), |_| {}), Some(after(550)));
    }
}
