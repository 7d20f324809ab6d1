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

/// Logs one line, or writes it to standard error if nobody has set a logger, unless `$once` has shown one before.
macro_rules! log_or_stderr {
    ($level:ident, $log_level:ident, $name:literal, $once:expr, $($text:tt)*) => {{
        if $crate::report::has_logger() {
            $crate::report::say!($level, $log_level, $($text)*);
        } else {
            $once.show($name, format_args!($($text)*));
        }
    }};
}

/// Each place in the code is a kind of its own.
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

/// Logs a line that a client can cause, unless one of the same [`Limited`] was logged within the last minute:
/// `limited!(limited, warning, "…")`.
macro_rules! limited {
    (@ $limited:expr, $level:ident, $log_level:ident, $name:literal, $($text:tt)*) => {
        if let Some(left_out) = $limited.due() {
            let once = $limited.once();
            $crate::report::log_or_stderr!(
                $level, $log_level, $name, once, "{}{left_out}", format_args!($($text)*)
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
        if let Some(left_out) = $limited.due() {
            $crate::report::info!("{}{left_out}", format_args!($($text)*));
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
    // The logger of `log` that stands for none has no fields. One that the program has silenced seldom has none.
    log::max_level() != log::LevelFilter::Off || size_of_val(log::logger()) > 0
}

/// Whether warnings and errors that no logger gets go to standard error.
static ON_STDERR: AtomicBool = AtomicBool::new(true);

/// Keeps warnings and errors from standard error, in the whole process from now on.
pub(crate) fn silence_stderr() {
    ON_STDERR.store(false, Relaxed);
}

/// Whether a kind of line was written to standard error.
#[derive(Debug)]
pub(crate) struct Once(AtomicBool);

impl Once {
    pub(crate) const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Writes a line to standard error, unless one of its kind was. Standard error may block, so nonblocking code leaves it to
    /// another thread.
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
            // Nobody is left to tell of an error.
            let _ = io::stderr().write_all(line.as_bytes());
        };
        if user_threads::must_not_block() {
            on_log_thread(Box::new(write));
        } else {
            write();
        }
    }
}

/// Lines that may wait for a logger that blocks. Further ones are left out.
const WAITING_MAX: usize = 1_024;

/// Runs this on the thread of the log: one, so that lines keep their order.
fn on_log_thread(line: UserCode) {
    static LOGGER: OnceLock<UserThreads> = OnceLock::new();
    let logger = LOGGER.get_or_init(|| UserThreads::new("humphrey_ws log", 1));
    if logger.waiting() < WAITING_MAX {
        logger.run(line);
    }
}

/// Hands a line to the program's logger. The logger is user code, which may block or send to clients, so a line of nonblocking
/// code is handed over by another thread.
#[cfg(not(feature = "tracing"))]
pub(crate) fn log(level: log::Level, target: &'static str, text: fmt::Arguments<'_>) {
    // Checks the level first; the logger's own filter is user code, which may block.
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

/// Limits a log line that clients can cause to one a minute; the next line has the number of those left out.
#[derive(Debug)]
pub(crate) struct Limited {
    /// When the next line may be logged, in milliseconds since the first line of the process.
    next: AtomicU64,
    left_out: AtomicU64,
    once: Once,
}

/// How many lines like this one were left out since the last. Standard error gets one line in all, so it says nothing there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeftOut {
    Number(u64),
    Unsaid,
}

impl Limited {
    const PAUSE_MS: u64 = 60_000;

    pub(crate) const fn new() -> Self {
        Self {
            next: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
            once: Once::new(),
        }
    }

    /// What to append to the line if it is due now; `None` if it is left out.
    pub(crate) fn due(&self) -> Option<LeftOut> {
        if !has_logger() {
            self.left_out.fetch_add(1, Relaxed);
            return (!self.once.0.load(Relaxed)).then_some(LeftOut::Unsaid);
        }
        static START: OnceLock<Instant> = OnceLock::new();
        let since_start = START.get_or_init(Instant::now).elapsed();
        self.due_at(u64::try_from(since_start.as_millis()).unwrap_or(u64::MAX))
    }

    /// Whether a line was written to standard error.
    pub(crate) fn once(&self) -> &Once {
        &self.once
    }

    fn due_at(&self, now: u64) -> Option<LeftOut> {
        let next = self.next.load(Relaxed);
        // Of several threads at once, one logs the line.
        let is_due = next <= now
            && self
                .next
                .compare_exchange(next, now.saturating_add(Self::PAUSE_MS), Relaxed, Relaxed)
                .is_ok();
        if is_due {
            Some(LeftOut::Number(self.left_out.swap(0, Relaxed)))
        } else {
            self.left_out.fetch_add(1, Relaxed);
            None
        }
    }
}

impl Default for Limited {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsaid => Ok(()),
            Self::Number(0) => f.write_str(" (logged at most once a minute)"),
            Self::Number(n) => write!(
                f,
                " (logged at most once a minute; {n} more since the last time)"
            ),
        }
    }
}

/// What a connection does, and what its handlers do, belongs to its span.
#[cfg(feature = "tracing")]
#[derive(Debug, Clone)]
pub(crate) struct Span(tracing::Span);

/// Without `tracing` there are no spans, and this is nothing.
#[cfg(not(feature = "tracing"))]
#[derive(Debug, Clone)]
pub(crate) struct Span;

#[cfg(feature = "tracing")]
impl Span {
    /// A connection's span: which, from where, whose behind proxies, and what was asked for; without the query, where
    /// secrets may be.
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
        assert_eq!(limited.due_at(5), Some(LeftOut::Number(0)));
        for now in [5, 6, 60_004] {
            assert_eq!(limited.due_at(now), None);
        }
        assert_eq!(limited.due_at(60_005), Some(LeftOut::Number(3)));
        assert_eq!(limited.due_at(60_006), None);
        assert_eq!(limited.due_at(1_000_000), Some(LeftOut::Number(1)));
        assert!(LeftOut::Number(3).to_string().contains("3 more"));
    }

    #[test]
    fn each_kind_of_one_place_is_shown_once() {
        assert!(!has_logger(), "no test of the library sets one");
        for kind in [Limited::new(), Limited::new()] {
            assert_eq!(kind.due(), Some(LeftOut::Unsaid));
            for _ in 0..2 {
                limited!(kind, warning, "expected in a test");
            }
            assert_eq!(kind.due(), None);
        }
    }
}
