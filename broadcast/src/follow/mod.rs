//! Follows files as they grow, across rotations, like `tail -F`.
//!
//! One thread follows all files. It checks which file a path leads to, and whether a file has grown or was truncated, with
//! `stat`, and by comparing bytes. On Linux, inotify events tell it when to check. They also tell it the new names of files
//! that were renamed before it opened them. Without events, as on network file systems, it polls once a second or more
//! often.

mod history;
mod hops;
mod identity;
mod last_lines;
mod open_file;
mod position;
mod queue;
mod schedule;
mod source;
mod wait;
#[cfg_attr(not(target_os = "linux"), path = "no_watches.rs")]
mod watches;

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use self::history::EntryChange;
use self::open_file::OpenFile;
use self::schedule::{Timing, Visit};
use self::source::Source;
use self::wait::Waiter;
pub(crate) use self::wait::Waker;
use self::watches::Watches;
use crate::diagnostics::printable;
use crate::lines::Line;

const BUFFER_BYTES: usize = 64 << 10;

/// How often files are opened again in one turn because they were renamed meanwhile.
const OPEN_ATTEMPTS: usize = 32;

/// How often the symbolic links of a path are read again because they have changed meanwhile.
const HOPS_ATTEMPTS: usize = 4;

/// Where to start in a file that exists. One that appears later is read from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Beginning,
    /// Before as many terminated lines at its end. An unterminated line behind them is delivered when it is finished,
    /// even with `LastLines(0)`. The lines are found within the last 16 MiB.
    LastLines(u64),
}

/// A change of a followed file, for a message to people. Each is reported once, not again and again.
#[derive(Debug)]
pub(crate) enum Note {
    /// It does not exist, or not any more. It is waited for.
    Waiting,
    /// It can be read, after `Waiting` or `Unreadable`.
    Appeared,
    /// Another file has its name. That is read from its beginning, after the rest of the earlier one.
    Rotated,
    /// It was truncated. It is read from its beginning.
    Truncated,
    /// So many files had the name, and were deleted or moved to another directory before they were opened.
    Missed(u64),
    /// It can't be opened or read. That is tried again and again.
    Unreadable(io::Error),
}

impl Note {
    /// The message to people.
    pub(crate) fn message(&self, path: &Path) -> String {
        let path = printable(path);
        match self {
            Self::Waiting => format!("{path} does not exist; waiting for it"),
            Self::Appeared => format!("{path} can be read now"),
            Self::Rotated => format!("{path} was replaced; following the new file"),
            Self::Truncated => format!("{path} was truncated; reading it from its beginning"),
            Self::Missed(n) => {
                let (files, were, they) = match n {
                    1 => ("file", "was", "it"),
                    _ => ("files", "were", "they"),
                };
                format!(
                    "{n} {files} with the name {path} {were} deleted or moved to another directory before {they} \
                     could be read: lines are missing"
                )
            }
            Self::Unreadable(error) => format!("{path} can't be read: {error}; trying again"),
        }
    }
}

/// What an event means for a source.
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "only Linux has events of paths")
)]
enum Signal<'a> {
    Nothing,
    /// A file has changed.
    Data,
    /// The path may lead to another file.
    Path,
    /// An entry of the directory of the file has changed.
    Entry(EntryChange<'a>),
}

/// Follows files.
#[derive(Debug)]
pub(crate) struct Follower {
    sources: Vec<Source>,
    watches: Watches,
    waiter: Waiter,
    buffer: Vec<u8>,
    timing: Timing,
}

impl Follower {
    /// Opens the files that exist. Lines that are written to them from now on will be delivered.
    ///
    /// Lines of more than `line_bytes_max` bytes are skipped.
    ///
    /// # Errors
    ///
    /// The system has no resources for an event loop. A file that can't be opened is no error, but a [`Note`].
    pub(crate) fn new(
        paths: Vec<PathBuf>,
        start: Start,
        line_bytes_max: usize,
    ) -> io::Result<Self> {
        let (watches, timing) = (Watches::new(), Timing::default());
        Self::with(paths, start, line_bytes_max, watches, timing)
    }

    fn with(
        paths: Vec<PathBuf>,
        start: Start,
        line_bytes_max: usize,
        watches: Watches,
        timing: Timing,
    ) -> io::Result<Self> {
        let waiter = Waiter::new()?;
        watches.register(&waiter)?;
        let new_source = |path| Source::new(path, start, line_bytes_max, &timing);
        let mut follower = Self {
            sources: paths.into_iter().map(new_source).collect(),
            watches,
            waiter,
            buffer: vec![0; BUFFER_BYTES],
            timing,
        };
        for index in 0..follower.sources.len() {
            follower.locate(index);
            follower.watch_files(index);
        }
        Ok(follower)
    }

    /// Wakes [`Follower::run`] when `stopping` has turned true.
    pub(crate) fn waker(&self) -> Waker {
        self.waiter.waker()
    }

    /// Calls `each` with every line and the index of its file, and `note` with what else happens to that file, until
    /// `each` breaks or `stopping` is true.
    ///
    /// `stopping` is asked before each line and whenever the follower wakes up, so that a [`Waker`] ends it at once;
    /// without one, it may take two seconds. `each` may block: the files wait meanwhile. An unterminated last line is
    /// delivered when its file was replaced, truncated or deleted, but not at the end of the run.
    ///
    /// # Errors
    ///
    /// Waiting for events fails.
    pub(crate) fn run(
        mut self,
        stopping: impl Fn() -> bool,
        mut each: impl FnMut(usize, Line<'_>) -> ControlFlow<()>,
        mut note: impl FnMut(usize, Note),
    ) -> io::Result<()> {
        loop {
            if stopping() {
                return Ok(());
            }
            let mut each = |index, line: Line<'_>| {
                if stopping() {
                    return ControlFlow::Break(());
                }
                each(index, line)
            };
            if self.visit_all(&mut each, &mut note).is_break() {
                return Ok(());
            }
            let timeout = self.timeout();
            for index in self.waiter.wait(timeout)? {
                self.sources[index].signal(Signal::Data);
            }
        }
    }

    /// Visits the sources with events, and those whose next check is due.
    fn visit_all(
        &mut self,
        each: &mut dyn FnMut(usize, Line<'_>) -> ControlFlow<()>,
        note: &mut dyn FnMut(usize, Note),
    ) -> ControlFlow<()> {
        self.apply_events();
        for index in 0..self.sources.len() {
            self.visit(index, &mut |line| each(index, line), &mut |n| {
                note(index, n);
            })?;
        }
        ControlFlow::Continue(())
    }

    /// How long to wait for events.
    fn timeout(&self) -> Duration {
        let schedules = self.sources.iter().map(|source| &source.schedule);
        let mut next = None;
        for schedule in schedules {
            if schedule.path || schedule.data || schedule.has_more {
                return Duration::ZERO;
            }
            next = Some(next.map_or(schedule.next_check, |next| schedule.next_check.min(next)));
        }
        let now = Instant::now();
        next.map_or(self.timing.check, |next: Instant| {
            next.saturating_duration_since(now)
        })
    }

    /// Checks a source and reads its files, if there was an event or the next check is due.
    fn visit(
        &mut self,
        index: usize,
        each: &mut dyn FnMut(Line<'_>) -> ControlFlow<()>,
        note: &mut dyn FnMut(Note),
    ) -> ControlFlow<()> {
        let schedule = &self.sources[index].schedule;
        let is_due = Instant::now() >= schedule.next_check;
        let is_announced = schedule.data || schedule.has_more;
        if is_due || schedule.path {
            self.locate(index);
        } else if !is_announced {
            return ControlFlow::Continue(());
        }
        let source = &mut self.sources[index];
        source.take_notes().into_iter().for_each(&mut *note);
        let has_new_files = source.schedule.files;
        let result = source.read(&mut self.buffer, &self.timing, each);
        source.take_notes().into_iter().for_each(note);
        let result = result?;
        self.watch_files(index);
        let source = &mut self.sources[index];
        let visit = Visit {
            is_due,
            is_announced: is_announced || std::mem::take(&mut source.schedule.signalled),
            has_changed: has_new_files || result.has_changed,
            has_deadline: result.has_deadline || source.has_deadline(),
        };
        source.schedule.plan(&visit, &self.timing);
        ControlFlow::Continue(())
    }

    /// Opens the file that a path leads to, and those that it has led to meanwhile, unless they are open.
    fn locate(&mut self, index: usize) {
        self.sources[index].schedule.path = false;
        self.watch_hops(index);
        for _ in 0..OPEN_ATTEMPTS {
            self.apply_events();
            let source = &mut self.sources[index];
            if source.is_up_to_date(&self.timing) {
                return;
            }
            let opened = source.open();
            if let Some(directory) = source.watched_directory() {
                await_directory_events(&directory);
                self.apply_events();
            }
            if self.sources[index].accept(opened, &self.timing) {
                return;
            }
        }
        // Files are renamed faster than they are opened. The other sources have their turn first.
        self.sources[index].schedule.path = true;
    }

    fn apply_events(&mut self) {
        let sources = &mut self.sources;
        (self.watches).drain(|source, signal| sources[source].signal(signal));
    }

    fn watch_hops(&mut self, index: usize) {
        let source = &mut self.sources[index];
        let mut hops = hops::of(&source.path);
        for _ in 0..HOPS_ATTEMPTS {
            let (watch, is_complete) = self.watches.watch_hops(index, &hops);
            source.set_hops(hops.clone(), watch, is_complete);
            let before = std::mem::replace(&mut hops, hops::of(&source.path));
            if hops == before {
                return;
            }
        }
    }

    /// Watches the open files of a source, if other files are open than before. Data that a program wrote before the watch is
    /// read in the next turn.
    fn watch_files(&mut self, index: usize) {
        let source = &mut self.sources[index];
        if !std::mem::take(&mut source.schedule.files) {
            return;
        }
        let mut is_complete = true;
        for stream in (source.files.iter_mut()).filter(|file| file.is_stream()) {
            stream.is_watched |= self.waiter.add_stream(index, stream.file());
            is_complete &= stream.is_watched;
        }
        let regular = source.files.iter().filter(|file| !file.is_stream());
        is_complete &= (self.watches).watch_files(index, regular.map(OpenFile::file));
        source.schedule.files_are_watched = is_complete;
        source.schedule.data = true;
    }
}

/// Waits until the events of all changes of a directory that can be seen in it have been queued. The kernel holds a lock
/// of the directory from the change until then, and reading the directory needs that lock, too.
fn await_directory_events(directory: &Path) {
    if let Ok(mut entries) = fs::read_dir(directory) {
        let _ = entries.next();
    }
}

#[cfg(test)]
mod tests;
