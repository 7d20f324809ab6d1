//! Tests with real files. Each waits for the line or note that it expects, up to a deadline.

mod appearing;
mod reading;
mod rotation;
mod running;
#[cfg(unix)]
mod special;
mod truncation;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::schedule::Timing;
use super::watches::Watches;
use super::{Follower, Note, Start, Waker};
use crate::lines::Line;

const DEADLINE: Duration = Duration::from_secs(30);

const LINE_BYTES_MAX: usize = 100_000;

const FROM_END: Start = Start::LastLines(0);

/// How changes are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// By events only.
    #[cfg(target_os = "linux")]
    Watched,
    /// By looking only.
    Polled,
}

#[cfg(target_os = "linux")]
const MODES: [Mode; 2] = [Mode::Watched, Mode::Polled];
#[cfg(not(target_os = "linux"))]
const MODES: [Mode; 1] = [Mode::Polled];

impl Mode {
    fn timing(self) -> Timing {
        Timing {
            check: Duration::from_secs(3600),
            poll_min: Duration::from_millis(5),
            poll_max: Duration::from_millis(20),
            ..Timing::default()
        }
    }

    fn watches(self) -> Watches {
        match self {
            #[cfg(target_os = "linux")]
            Self::Watched => Watches::new(),
            Self::Polled => Watches::none(),
        }
    }
}

/// A directory that is deleted at the end of the test.
pub(super) struct Directory(pub(super) PathBuf);

impl Directory {
    pub(super) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("humphrey-follow-{}-{n}", process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file with this content.
    pub(super) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn append_to(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.append(true).create(true).open(path).unwrap()
}

fn append(path: &Path, content: &str) {
    append_to(path).write_all(content.as_bytes()).unwrap();
}

/// The index of a file, and a line of it, or the length of one over the limit.
type FileLine = (usize, Result<Vec<u8>, u64>);

#[derive(Debug)]
enum Heard {
    Line(FileLine),
    Note(usize, Note),
}

/// A follower in a thread of its own, which is stopped at the end of the test.
struct Following {
    /// How often the follower has asked whether it is to stop: in each turn, and before each line. Where the system does not tell
    /// changes, the follower looks again and again.
    #[cfg_attr(not(any(target_os = "linux", target_os = "android")), allow(dead_code))]
    asked: Arc<AtomicUsize>,
    heard: Receiver<Heard>,
    lines: RefCell<VecDeque<FileLine>>,
    notes: RefCell<VecDeque<(usize, Note)>>,
    stopping: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// Follows a new and empty file.
fn follow_empty_log(mode: Mode) -> (Directory, PathBuf, Following) {
    follow_empty_log_with(mode, mode.timing())
}

/// Follows a new and empty file with this timing.
fn follow_empty_log_with(mode: Mode, timing: Timing) -> (Directory, PathBuf, Following) {
    let directory = Directory::new();
    let log = directory.file("log", "");
    let following = follow_with(mode, FROM_END, &[&log], timing);
    (directory, log, following)
}

/// Follows one file from its end.
fn follow(mode: Mode, path: &Path) -> Following {
    follow_from(mode, FROM_END, &[path])
}

fn follow_from(mode: Mode, start: Start, paths: &[&Path]) -> Following {
    follow_with(mode, start, paths, mode.timing())
}

fn follow_with(mode: Mode, start: Start, paths: &[&Path], timing: Timing) -> Following {
    follow_delayed(mode, start, paths, timing, || {})
}

/// Holds a follower at its first line until it is dropped.
struct Gate {
    entered: Receiver<()>,
    _leave: mpsc::Sender<()>,
}

impl Gate {
    /// Waits until the follower is held.
    fn await_follower(&self) {
        self.entered.recv_timeout(DEADLINE).unwrap();
    }
}

fn follow_held(mode: Mode, start: Start, paths: &[&Path]) -> (Following, Gate) {
    let (enter, entered) = mpsc::channel();
    let (leave, left) = mpsc::channel::<()>();
    let delay = move || {
        let _ = enter.send(());
        let _ = left.recv();
    };
    let gate = Gate {
        entered,
        _leave: leave,
    };
    (
        follow_delayed(mode, start, paths, mode.timing(), delay),
        gate,
    )
}

/// Calls `delay` before each line.
fn follow_delayed(
    mode: Mode,
    start: Start,
    paths: &[&Path],
    timing: Timing,
    delay: impl Fn() + Send + 'static,
) -> Following {
    let paths = paths.iter().map(|path| path.to_path_buf()).collect();
    let follower = Follower::with(paths, start, LINE_BYTES_MAX, mode.watches(), timing).unwrap();
    let (stopping, asked) = <(Arc<AtomicBool>, Arc<AtomicUsize>)>::default();
    let waker = follower.waker();
    let (hear, heard) = mpsc::channel();
    let thread = {
        let (stopping, asked) = (stopping.clone(), asked.clone());
        let note_hear = hear.clone();
        thread::spawn(move || {
            follower.run(
                || {
                    asked.fetch_add(1, Ordering::Relaxed);
                    stopping.load(Ordering::Relaxed)
                },
                |file, line| {
                    delay();
                    let line = match line {
                        Line::Whole(line) => Ok(line.to_vec()),
                        Line::TooLong { bytes } => Err(bytes),
                    };
                    let _ = hear.send(Heard::Line((file, line)));
                    ControlFlow::Continue(())
                },
                |file, note| {
                    let _ = note_hear.send(Heard::Note(file, note));
                },
            )
        })
    };
    Following {
        asked,
        heard,
        lines: RefCell::default(),
        notes: RefCell::default(),
        stopping,
        waker,
        thread: Some(thread),
    }
}

impl Following {
    /// Receives one line or note; false after the deadline.
    fn receive(&self, by: Instant) -> bool {
        let left = by.saturating_duration_since(Instant::now());
        match self.heard.recv_timeout(left) {
            Ok(heard) => self.keep(heard),
            Err(RecvTimeoutError::Timeout) => return false,
            Err(RecvTimeoutError::Disconnected) => panic!("the follower has ended"),
        }
        true
    }

    fn keep(&self, heard: Heard) {
        match heard {
            Heard::Line(line) => self.lines.borrow_mut().push_back(line),
            Heard::Note(file, note) => self.notes.borrow_mut().push_back((file, note)),
        }
    }

    #[track_caller]
    fn next(&self) -> FileLine {
        let by = Instant::now() + DEADLINE;
        loop {
            if let Some(line) = self.lines.borrow_mut().pop_front() {
                return line;
            }
            let notes = &self.notes;
            assert!(self.receive(by), "no line; {notes:?}");
        }
    }

    /// Expects these lines of the first file and no others between them.
    #[track_caller]
    fn expect(&self, lines: &[&str]) {
        for line in lines {
            let (file, heard) = self.next();
            let heard = heard.map(|heard| String::from_utf8_lossy(&heard).into_owned());
            assert_eq!((file, heard), (0, Ok((*line).to_owned())));
        }
    }

    /// Waits for a note of this kind about a file, and returns it.
    #[track_caller]
    fn expect_note_about(&self, file: usize, is_wanted: fn(&Note) -> bool) -> Note {
        let by = Instant::now() + DEADLINE;
        loop {
            let mut notes = self.notes.borrow_mut();
            let wanted = |(of, note): &(usize, Note)| *of == file && is_wanted(note);
            if let Some(at) = notes.iter().position(wanted) {
                return notes.remove(at).unwrap().1;
            }
            drop(notes);
            assert!(self.receive(by), "no such note, but {:?}", self.notes);
        }
    }

    #[track_caller]
    fn expect_note(&self, is_wanted: fn(&Note) -> bool) -> Note {
        self.expect_note_about(0, is_wanted)
    }

    /// The notes so far that no `expect_note` has taken.
    fn other_notes(&self) -> Vec<String> {
        while self.receive(Instant::now()) {}
        let notes = self.notes.borrow();
        notes.iter().map(|(_, note)| format!("{note:?}")).collect()
    }

    /// Asserts that neither a line nor a note arrives for a while.
    #[track_caller]
    fn expect_nothing(&self) {
        assert!(!self.receive(Instant::now() + Duration::from_millis(100)));
        assert!(self.lines.borrow().is_empty(), "{:?}", self.lines);
    }

    /// Stops the follower, and waits until its thread has ended.
    fn stop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.waker.wake();
        loop {
            match self.heard.recv_timeout(DEADLINE) {
                Ok(heard) => self.keep(heard),
                Err(RecvTimeoutError::Timeout) => panic!("the follower does not stop"),
                // The thread has dropped its ends of the channel.
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.stop();
        }
    }
}

/// A follower that the test drives itself.
struct Driven {
    follower: Follower,
    notes: Vec<Note>,
}

impl Driven {
    /// Polls at each visit, or relies on events alone.
    fn new(mode: Mode, paths: &[&Path]) -> Self {
        let timing = Timing {
            poll_min: Duration::ZERO,
            poll_max: Duration::ZERO,
            ..mode.timing()
        };
        let paths = paths.iter().map(|path| path.to_path_buf()).collect();
        let watches = mode.watches();
        Self {
            follower: Follower::with(paths, FROM_END, LINE_BYTES_MAX, watches, timing).unwrap(),
            notes: Vec::new(),
        }
    }

    /// Visits the files, and returns the lines that this delivers.
    fn visit(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut each = |_, line: Line<'_>| {
            if let Line::Whole(line) = line {
                lines.push(String::from_utf8(line.to_vec()).unwrap());
            }
            ControlFlow::Continue(())
        };
        let notes = &mut self.notes;
        let flow = self
            .follower
            .visit_all(&mut each, &mut |_, note| notes.push(note));
        assert!(flow.is_continue());
        lines
    }
}

fn is_waiting(note: &Note) -> bool {
    matches!(note, Note::Waiting)
}

fn is_appeared(note: &Note) -> bool {
    matches!(note, Note::Appeared)
}

fn is_rotated(note: &Note) -> bool {
    matches!(note, Note::Rotated)
}

fn is_truncated(note: &Note) -> bool {
    matches!(note, Note::Truncated)
}

fn is_unreadable(note: &Note) -> bool {
    matches!(note, Note::Unreadable(_))
}
