//! One followed path: the file that it leads to, and the notes about it.

use std::ffi::OsString;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use super::history::NameHistory;
use super::hops::Hop;
use super::identity::Identity;
use super::open_file::{EachLine, OpenFile};
use super::queue::{FileQueue, Turn};
use super::schedule::{Schedule, Timing};
use super::{Note, Signal, Start};

/// How many files may wait to be read. If more have passed while the reader was busy, they are missed.
const UNREAD_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    /// Where to start in a file that exists when following begins.
    start: Start,
    began: SystemTime,
    line_bytes_max: usize,
    pub(super) files: FileQueue,
    /// The file that the path leads to.
    current: Option<Identity>,
    has_opened: bool,
    /// Since when the path leads to nothing.
    missing_since: Option<Instant>,
    reported: Reported,
    notes: Vec<Note>,
    history: NameHistory,
    /// The directory of the file, its watch, and its name there.
    watched: Option<(PathBuf, i32, OsString)>,
    pub(super) schedule: Schedule,
}

/// The state of a path that was reported last.
#[derive(Debug, PartialEq, Eq)]
enum Reported {
    Nothing,
    Waiting,
    Unreadable(String),
    /// The file could be opened, but not be read.
    Failed(String),
}

/// The files that were opened for a path.
pub(super) struct Opened {
    /// When the names were known: see [`NameHistory::now`].
    since: u64,
    /// Those that had the name meanwhile, with their numbers in the history.
    passed: Vec<(u64, Option<OpenFile>)>,
    at_path: io::Result<OpenFile>,
}

impl Source {
    pub(super) fn new(path: PathBuf, start: Start, line_bytes_max: usize, timing: &Timing) -> Self {
        Self {
            path,
            start,
            began: SystemTime::now(),
            line_bytes_max,
            files: FileQueue::default(),
            current: None,
            has_opened: false,
            missing_since: None,
            reported: Reported::Nothing,
            notes: Vec::new(),
            history: NameHistory::new(OsString::new()),
            watched: None,
            schedule: Schedule::new(timing),
        }
    }

    /// The events are about these hops from now on; `watch` is that of the file's directory.
    pub(super) fn set_hops(&mut self, hops: Vec<Hop>, watch: Option<i32>, is_complete: bool) {
        self.schedule.hops_are_watched = is_complete;
        let file = hops.into_iter().find(|hop| hop.is_file);
        let watched = file.zip(watch);
        let watched = watched.map(|(hop, watch)| (hop.directory, watch, hop.name));
        let key = |watched: &Option<(PathBuf, i32, OsString)>| {
            (watched.as_ref()).map(|(_, watch, name)| (*watch, name.clone()))
        };
        if key(&watched) != key(&self.watched) {
            let name = (watched.as_ref()).map(|(_, _, name)| name.clone());
            self.history = NameHistory::new(name.unwrap_or_default());
        }
        self.watched = watched;
    }

    /// The directory of the file, if events about it arrive.
    pub(super) fn watched_directory(&self) -> Option<PathBuf> {
        (self.watched.as_ref()).map(|(directory, ..)| directory.clone())
    }

    pub(super) fn signal(&mut self, signal: Signal<'_>) {
        let schedule = &mut self.schedule;
        match signal {
            Signal::Nothing => return,
            Signal::Data => schedule.data = true,
            Signal::Path => schedule.path = true,
            Signal::Entry(change) => {
                if !self.history.apply(change) {
                    return;
                }
                schedule.path = true;
            }
        }
        schedule.signal();
    }

    /// Whether there is no file to be opened.
    pub(super) fn is_up_to_date(&mut self, timing: &Timing) -> bool {
        if self.history.has_passed() {
            return false;
        }
        match Identity::of_path(&self.path) {
            Ok(identity) => {
                let known = self.files.find(&identity);
                let is_known = known.is_some_and(|file| !file.is_broken);
                is_known && self.current.as_ref() == Some(&identity)
            }
            Err(error) if is_missing(&error) => {
                self.report_missed(0);
                self.path_is_missing(timing);
                true
            }
            Err(_) => false,
        }
    }

    /// Reports the files that were gone before they were opened: so many, and those that the history has counted.
    fn report_missed(&mut self, unopened: u64) {
        let missed = unopened + self.history.take_missed();
        if missed > 0 {
            self.notes.push(Note::Missed(missed));
        }
    }

    /// Opens the files that have and had the name.
    pub(super) fn open(&self) -> Opened {
        let room = UNREAD_MAX.saturating_sub(self.files.unread());
        let open = |name| {
            let (directory, ..) = self.watched.as_ref()?;
            OpenFile::open(&directory.join(name?), self.line_bytes_max).ok()
        };
        let passed = (self.history.passed()).enumerate();
        let passed = passed.map(|(at, (id, name))| (id, open(name.filter(|_| at < room))));
        Opened {
            since: self.history.now(),
            passed: passed.collect(),
            at_path: OpenFile::open(&self.path, self.line_bytes_max),
        }
    }

    /// Takes the files that were opened, except those of which the names have changed meanwhile: these may be other ones.
    /// Returns false if there are such files.
    pub(super) fn accept(&mut self, opened: Opened, timing: &Timing) -> bool {
        let mut unopened = 0;
        let mut passed = opened.passed.into_iter();
        while let Some(id) = self.history.take_passed(opened.since) {
            match passed.find(|(other, _)| *other == id) {
                Some((_, Some(file))) => self.add(file),
                _ => unopened += 1,
            }
        }
        self.report_missed(unopened);
        if self.history.has_passed() || self.history.has_changed(opened.since) {
            return false;
        }
        match opened.at_path {
            Ok(file) => {
                self.missing_since = None;
                self.current = Some(file.identity().clone());
                self.history.occupant_is_opened();
                self.add(file);
            }
            Err(error) if is_missing(&error) => self.path_is_missing(timing),
            Err(error) => self.path_is_unreadable(error),
        }
        true
    }

    fn add(&mut self, mut file: OpenFile) {
        if let Some(known) = self.files.find(file.identity()) {
            if known.is_broken {
                known.replace_handle(file);
                self.schedule.files = true;
            }
            self.report_readable();
            return;
        }
        let is_first = !self.has_opened;
        if is_first
            && let Start::LastLines(lines) = self.start
            // That at the start may have been another one, which could not be opened.
            && !file.is_newer_than(self.began)
            && let Err(error) = file.skip_to_last(lines)
        {
            self.path_is_unreadable(error);
            return;
        }
        self.has_opened = true;
        self.files.push(file);
        self.schedule.files = true;
        if !self.report_readable() && !is_first {
            self.notes.push(Note::Rotated);
        }
    }

    /// Reports that a file can be opened again, if it was reported that none can.
    fn report_readable(&mut self) -> bool {
        let was_reported = matches!(self.reported, Reported::Waiting | Reported::Unreadable(_));
        if was_reported {
            self.reported = Reported::Nothing;
            self.notes.push(Note::Appeared);
        }
        was_reported
    }

    fn path_is_missing(&mut self, timing: &Timing) {
        let now = Instant::now();
        self.current = None;
        let since = *self.missing_since.get_or_insert(now);
        if !self.has_opened {
            // A file that appears later is new, so it is read from its beginning.
            self.start = Start::Beginning;
        }
        // Between the two steps of a rotation, it is no news.
        let is_news = !self.has_opened || now.duration_since(since) >= timing.vanished;
        if is_news && self.reported != Reported::Waiting {
            self.reported = Reported::Waiting;
            self.notes.push(Note::Waiting);
        }
    }

    fn path_is_unreadable(&mut self, error: io::Error) {
        self.current = None;
        self.missing_since = None;
        let reported = Reported::Unreadable(error.to_string());
        if self.reported != reported {
            self.reported = reported;
            self.notes.push(Note::Unreadable(error));
        }
    }

    /// Whether something will be due soon without an event.
    pub(super) fn has_deadline(&self) -> bool {
        self.missing_since.is_some() && self.reported != Reported::Waiting
    }

    pub(super) fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// Delivers lines until `each` breaks.
    pub(super) fn read(
        &mut self,
        buffer: &mut [u8],
        timing: &Timing,
        each: &mut EachLine<'_>,
    ) -> ControlFlow<(), ReadResult> {
        let mut turn = Turn {
            buffer,
            timing,
            now: Instant::now(),
            current: self.current.as_ref(),
            missing_since: self.missing_since,
            verify: std::mem::take(&mut self.schedule.data),
            outcome: super::queue::Outcome::default(),
        };
        let flow = self.files.read(&mut turn, each);
        let outcome = turn.outcome;
        if outcome.is_truncated {
            self.notes.push(Note::Truncated);
        }
        if outcome.has_read && matches!(self.reported, Reported::Failed(_)) {
            self.reported = Reported::Nothing;
            self.notes.push(Note::Appeared);
        }
        if let Some(error) = outcome.error {
            let reported = Reported::Failed(error.to_string());
            if self.reported != reported {
                self.reported = reported;
                self.notes.push(Note::Unreadable(error));
            }
        }
        self.schedule.has_more = outcome.has_more;
        self.schedule.files |= outcome.has_closed;
        flow?;
        ControlFlow::Continue(ReadResult {
            has_changed: outcome.has_read || outcome.is_truncated,
            has_deadline: outcome.has_deadline,
        })
    }
}

pub(super) struct ReadResult {
    pub(super) has_changed: bool,
    pub(super) has_deadline: bool,
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
