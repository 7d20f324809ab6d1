//! What the program says: one line at a time, on standard error.

use std::fmt;

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
