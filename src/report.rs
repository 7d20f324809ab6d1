//! Log lines of the library: to `log`, or with the feature `tracing` to `tracing`; never to both.
//!
//! A warning is for the person who runs the server and says what to do; what a single client did is at most information.
//! Text from the network is logged with its control characters escaped.
//!
//! Where the program has set neither a logger nor a subscriber, warnings and errors go to standard error: each kind once, so that
//! clients cannot fill it.

use std::fmt;
use std::io::{self, Write as _};
use std::sync::OnceLock;
// Flags of the process, which models do not check.
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use crate::atomic::AtomicU64;
use crate::user_threads::{self, UserCode, UserThreads};

/// Logs one line. With `tracing` it is an event of the crate; without a subscriber, `tracing` itself forwards it to `log`.
macro_rules! say {
    ($level:ident, $log_level:ident, $($text:tt)*) => {{
        #[cfg(feature = "tracing")]
        ::tracing::$level!($($text)*);
        #[cfg(not(feature = "tracing"))]
        $crate::report::log(::log::Level::$log_level, module_path!(), format_args!($($text)*));
    }};
}

/// Logs one line. Without a logger, writes it to standard error, unless `$once` has already written a line.
macro_rules! log_or_stderr {
    ($level:ident, $log_level:ident, $name:literal, $once:expr, $($text:tt)*) => {{
        if $crate::report::has_logger() {
            $crate::report::say!($level, $log_level, $($text)*);
        } else {
            $once.show($name, format_args!($($text)*));
        }
    }};
}

/// Logs as `log_or_stderr` does. Each place in the code that calls it writes at most one line to standard error.
macro_rules! once_per_place {
    ($level:ident, $log_level:ident, $name:literal, $($text:tt)*) => {{
        static ONCE: $crate::report::Once = $crate::report::Once::new();
        $crate::report::log_or_stderr!($level, $log_level, $name, ONCE, $($text)*);
    }};
}

macro_rules! error {
    ($($text:tt)*) => { $crate::report::once_per_place!(error, Error, "error", $($text)*) };
}
macro_rules! warning {
    ($($text:tt)*) => { $crate::report::once_per_place!(warn, Warn, "warning", $($text)*) };
}
macro_rules! info { ($($text:tt)*) => { $crate::report::say!(info, Info, $($text)*) }; }
macro_rules! debug { ($($text:tt)*) => { $crate::report::say!(debug, Debug, $($text)*) }; }

/// Logs a line that a client can cause, at most once a minute for each [`Limited`]: `limited!(limited, warning, "…")`.
macro_rules! limited {
    (@ $limited:expr, $level:ident, $log_level:ident, $name:literal, $($text:tt)*) => {
        if let Some(omitted) = $limited.due() {
            let once = $limited.once();
            $crate::report::log_or_stderr!(
                $level, $log_level, $name, once, "{}{omitted}", format_args!($($text)*)
            );
        }
    };
    ($limited:expr, error, $($text:tt)*) => {
        $crate::report::limited!(@ $limited, error, Error, "error", $($text)*)
    };
    ($limited:expr, warning, $($text:tt)*) => {
        $crate::report::limited!(@ $limited, warn, Warn, "warning", $($text)*)
    };
    ($limited:expr, info, $($text:tt)*) => {
        if let Some(omitted) = $limited.due() {
            $crate::report::info!("{}{omitted}", format_args!($($text)*));
        }
    };
}

pub(crate) use {debug, error, info, limited, log_or_stderr, once_per_place, say, warning};

/// Whether the program has set a logger, or with the feature `tracing` a subscriber.
pub(crate) fn has_logger() -> bool {
    #[cfg(feature = "tracing")]
    if tracing::dispatcher::get_default(|subscriber| {
        !subscriber.is::<tracing::subscriber::NoSubscriber>()
    }) {
        return true;
    }
    // The default logger of `log`, which does nothing, has no fields. The logger of a program usually has some.
    log::max_level() != log::LevelFilter::Off || size_of_val(log::logger()) > 0
}

/// Whether warnings and errors go to standard error if there is no logger.
static ON_STDERR: AtomicBool = AtomicBool::new(true);

/// Keeps warnings and errors from standard error, in the whole process from now on.
pub(crate) fn silence_stderr() {
    ON_STDERR.store(false, Relaxed);
}

/// Remembers whether a line was written to standard error.
#[derive(Debug)]
pub(crate) struct Once(AtomicBool);

impl Once {
    pub(crate) const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Writes a line to standard error on the first call only. Standard error may block, so for code that must not
    /// block, another thread writes the line.
    #[cold]
    pub(crate) fn show(&self, level: &'static str, text: fmt::Arguments<'_>) {
        if !ON_STDERR.load(Relaxed) || self.0.swap(true, Relaxed) {
            return;
        }
        let line = format!(
            "humphrey_ws: {level}: {text} [shown once: set a logger to get all, or turn this off with \
             with_warnings_on_stderr(false)]\n"
        );
        let write = move || {
            // An error of standard error can't be reported anywhere.
            let _ = io::stderr().write_all(line.as_bytes());
        };
        if user_threads::must_not_block() {
            on_log_thread(Box::new(write));
        } else {
            write();
        }
    }
}

/// The maximum number of lines that wait for a blocked logger. Further lines are dropped.
const WAITING_MAX: usize = 1_024;

/// Runs a closure on the log thread. There is only one, so that lines keep their order.
fn on_log_thread(line: UserCode) {
    static LOGGER: OnceLock<UserThreads> = OnceLock::new();
    let logger = LOGGER.get_or_init(|| UserThreads::new("humphrey_ws log", 1));
    if logger.waiting() < WAITING_MAX {
        logger.run(line);
    }
}

/// Passes a line to the program's logger. The logger is user code, which may block or send to clients. So for code that
/// must not block, another thread passes the line on.
#[cfg(not(feature = "tracing"))]
pub(crate) fn log(level: log::Level, target: &'static str, text: fmt::Arguments<'_>) {
    // Check the level before formatting. The filter of the logger can't be asked here, because it is user code, which
    // may block.
    if level > log::STATIC_MAX_LEVEL || level > log::max_level() {
        return;
    }
    if !user_threads::must_not_block() {
        log::log!(target: target, level, "{text}");
        return;
    }
    let text = text.to_string();
    on_log_thread(Box::new(move || log::log!(target: target, level, "{text}")));
}

/// Limits a log line that clients can cause to one a minute. The next line contains the number of omitted ones.
#[derive(Debug)]
pub(crate) struct Limited {
    /// When the next line may be logged, in milliseconds since the first line of the process.
    next: AtomicU64,
    omitted: AtomicU64,
    once: Once,
}

/// The number of lines omitted since the last one. Not written to standard error, which gets only one line in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Omitted {
    Number(u64),
    Unstated,
}

impl Limited {
    const PAUSE_MS: u64 = 60_000;

    pub(crate) const fn new() -> Self {
        Self {
            next: AtomicU64::new(0),
            omitted: AtomicU64::new(0),
            once: Once::new(),
        }
    }

    /// Returns the suffix of the line if it is to be logged now, and `None` if it is to be omitted.
    pub(crate) fn due(&self) -> Option<Omitted> {
        if !has_logger() {
            self.omitted.fetch_add(1, Relaxed);
            return (!self.once.0.load(Relaxed)).then_some(Omitted::Unstated);
        }
        static START: OnceLock<Instant> = OnceLock::new();
        let since_start = START.get_or_init(Instant::now).elapsed();
        self.due_at(u64::try_from(since_start.as_millis()).unwrap_or(u64::MAX))
    }

    /// Returns the record of whether a line was written to standard error.
    pub(crate) fn once(&self) -> &Once {
        &self.once
    }

    fn due_at(&self, now: u64) -> Option<Omitted> {
        let next = self.next.load(Relaxed);
        // If several threads arrive here at once, one of them logs the line.
        let is_due = next <= now
            && self
                .next
                .compare_exchange(next, now.saturating_add(Self::PAUSE_MS), Relaxed, Relaxed)
                .is_ok();
        if is_due {
            Some(Omitted::Number(self.omitted.swap(0, Relaxed)))
        } else {
            self.omitted.fetch_add(1, Relaxed);
            None
        }
    }
}

impl Default for Limited {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Omitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unstated => Ok(()),
            Self::Number(0) => f.write_str(" (logged at most once a minute)"),
            Self::Number(n) => write!(
                f,
                " (logged at most once a minute; {n} more since the last time)"
            ),
        }
    }
}

/// The `tracing` span of a connection. It contains the events of the connection and of its handlers.
#[cfg(feature = "tracing")]
#[derive(Debug, Clone)]
pub(crate) struct Span(tracing::Span);

/// Replaces the span in builds without `tracing`.
#[cfg(not(feature = "tracing"))]
#[derive(Debug, Clone)]
pub(crate) struct Span;

#[cfg(feature = "tracing")]
impl Span {
    /// Creates the span of a connection, with its id, peer address, client address behind proxies, and path. It omits
    /// the query, which may contain secrets.
    pub(crate) fn connection(
        id: impl fmt::Display,
        peer: std::net::SocketAddr,
        client: std::net::IpAddr,
        target: &str,
    ) -> Self {
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        Self(tracing::info_span!("connection", %id, %peer, %client, path))
    }

    pub(crate) fn within<R>(&self, f: impl FnOnce() -> R) -> R {
        self.0.in_scope(f)
    }
}

#[cfg(not(feature = "tracing"))]
impl Span {
    pub(crate) fn connection(
        _: impl fmt::Display,
        _: std::net::SocketAddr,
        _: std::net::IpAddr,
        _: &str,
    ) -> Self {
        Self
    }

    pub(crate) fn within<R>(&self, f: impl FnOnce() -> R) -> R {
        f()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_is_logged_once_a_minute_with_a_count() {
        let limited = Limited::new();
        assert_eq!(limited.due_at(5), Some(Omitted::Number(0)));
        for now in [5, 6, 60_004] {
            assert_eq!(limited.due_at(now), None);
        }
        assert_eq!(limited.due_at(60_005), Some(Omitted::Number(3)));
        assert_eq!(limited.due_at(60_006), None);
        assert_eq!(limited.due_at(1_000_000), Some(Omitted::Number(1)));
        assert!(Omitted::Number(3).to_string().contains("3 more"));
    }

    #[test]
    fn each_kind_of_one_place_is_shown_once() {
        assert!(!has_logger(), "no test of the library sets one");
        for kind in [Limited::new(), Limited::new()] {
            assert_eq!(kind.due(), Some(Omitted::Unstated));
            for _ in 0..2 {
                limited!(kind, warning, "expected in a test");
            }
            assert_eq!(kind.due(), None);
        }
    }
}
