//! The open files of one path, and the order in which they are read.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::time::Instant;

use super::identity::Identity;
use super::open_file::{Chunk, EachLine, OpenFile};
use super::schedule::Timing;

/// The most that is read of a file in one turn, give or take a buffer.
const TURN_BYTES: usize = 256 << 10;

/// How many finished files are read for late lines.
const FINISHED_MAX: usize = 4;

/// The files that have had the path. They are read one after the other: a program that has begun to write to the next
/// one has finished the one before. Several programs, or threads, need not move on at the same time, so that a finished
/// file is read on for a while.
#[derive(Debug, Default)]
pub(super) struct FileQueue {
    /// Oldest first. Only the first one is read.
    unread: VecDeque<OpenFile>,
    finished: Vec<Finished>,
    /// Since when the first file ends within a line although the next one has data.
    unfinished_since: Option<Instant>,
}

#[derive(Debug)]
struct Finished {
    file: OpenFile,
    since: Instant,
}

/// One turn of reading.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    pub(super) buffer: &'a mut [u8],
    pub(super) timing: &'a Timing,
    pub(super) now: Instant,
    /// The file that the path leads to.
    pub(super) current: Option<&'a Identity>,
    /// Since when there is none.
    pub(super) missing_since: Option<Instant>,
    /// Whether a file has changed: see [`Position::read`](super::position::Position::read).
    pub(super) verify: bool,
    pub(super) outcome: Outcome,
}

#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// There may be more to be read at once.
    pub(super) has_more: bool,
    /// Something was read.
    pub(super) has_read: bool,
    /// The path's file was truncated.
    pub(super) is_truncated: bool,
    /// Something will be due soon without an event.
    pub(super) has_deadline: bool,
    /// A file was closed.
    pub(super) has_closed: bool,
    /// A file can't be read.
    pub(super) error: Option<io::Error>,
}

#[derive(PartialEq, Eq)]
enum End {
    Reached,
    NotReached,
    Truncated,
}

impl Turn<'_> {
    fn is_current(&self, file: &OpenFile) -> bool {
        self.current == Some(file.identity())
    }

    /// Reads a file until its end, or until the budget is used up.
    fn read(
        &mut self,
        file: &mut OpenFile,
        budget: &mut usize,
        each: &mut EachLine<'_>,
    ) -> ControlFlow<(), End> {
        let mut verify = self.verify;
        while *budget > 0 {
            match file.read(self.buffer, verify, each) {
                Ok(Chunk::Read(bytes)) => {
                    *budget = budget.saturating_sub(bytes.max(1));
                    self.outcome.has_read = true;
                }
                Ok(Chunk::End) => return ControlFlow::Continue(End::Reached),
                Ok(Chunk::Truncated) => return ControlFlow::Continue(End::Truncated),
                Ok(Chunk::Stopped) => return ControlFlow::Break(()),
                Err(error) => {
                    file.is_broken = true;
                    self.outcome.error = Some(error);
                    return ControlFlow::Continue(End::Reached);
                }
            }
            verify = false;
        }
        self.outcome.has_more = true;
        ControlFlow::Continue(End::NotReached)
    }

    /// Whether a file that lost the path then can be closed: it has been quiet for a while, or has been kept for long.
    fn is_over(&self, file: &OpenFile, since: Instant) -> bool {
        let quiet = self.now.duration_since(file.active.max(since));
        quiet >= self.timing.quiet || self.now.duration_since(since) >= self.timing.finished_max
    }

    /// The path's file is read again from its beginning when it was truncated. Another file is not read any more.
    fn handle_truncation(&mut self, file: &mut OpenFile) {
        if self.is_current(file) {
            self.outcome.is_truncated = true;
            self.outcome.has_more = true;
        } else {
            file.is_broken = true;
        }
    }
}

impl FileQueue {
    /// Adds the file that is to be read after the others.
    pub(super) fn push(&mut self, file: OpenFile) {
        self.unread.push_back(file);
    }

    pub(super) fn find(&mut self, identity: &Identity) -> Option<&mut OpenFile> {
        self.iter_mut().find(|file| file.identity() == identity)
    }

    pub(super) fn unread(&self) -> usize {
        self.unread.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &OpenFile> {
        let finished = self.finished.iter().map(|finished| &finished.file);
        self.unread.iter().chain(finished)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut OpenFile> {
        let finished = self.finished.iter_mut().map(|finished| &mut finished.file);
        self.unread.iter_mut().chain(finished)
    }

    /// Delivers lines until `each` breaks.
    pub(super) fn read(&mut self, turn: &mut Turn<'_>, each: &mut EachLine<'_>) -> ControlFlow<()> {
        self.read_finished(turn, each)?;
        self.read_unread(turn, each)
    }

    fn read_unread(&mut self, turn: &mut Turn<'_>, each: &mut EachLine<'_>) -> ControlFlow<()> {
        let mut budget = TURN_BYTES;
        loop {
            // Looked up before the first file is read: a program that writes to the first file after that has not moved on to
            // the next one yet.
            let next_has_data = self.unread.iter().skip(1).any(OpenFile::has_data);
            let left_since = self.unread.get(1).map(|next| next.opened);
            let left_since = left_since.or(turn.missing_since);
            let Some(first) = self.unread.front_mut() else {
                return ControlFlow::Continue(());
            };
            match turn.read(first, &mut budget, each)? {
                End::Reached => {}
                End::NotReached => return ControlFlow::Continue(()),
                End::Truncated => {
                    turn.handle_truncation(first);
                    if !first.is_broken {
                        return ControlFlow::Continue(());
                    }
                }
            }
            if !next_has_data {
                if is_gone(first, left_since, turn) {
                    first.finish_line(each)?;
                    self.unread.pop_front();
                    turn.outcome.has_closed = true;
                }
                return ControlFlow::Continue(());
            }
            if first.has_unfinished_line() && !first.is_broken {
                let since = *self.unfinished_since.get_or_insert(turn.now);
                if turn.now.duration_since(since) < turn.timing.unfinished_line_wait {
                    turn.outcome.has_deadline = true;
                    return ControlFlow::Continue(());
                }
            }
            first.finish_line(each)?;
            self.unfinished_since = None;
            let since = turn.now;
            let file = self.unread.pop_front();
            (self.finished).extend(file.map(|file| Finished { file, since }));
        }
    }

    fn read_finished(&mut self, turn: &mut Turn<'_>, each: &mut EachLine<'_>) -> ControlFlow<()> {
        let mut surplus = self.finished.len().saturating_sub(FINISHED_MAX);
        let mut at = 0;
        while let Some(Finished { file, since }) = self.finished.get_mut(at) {
            let mut budget = TURN_BYTES;
            let end = turn.read(file, &mut budget, each)?;
            if end == End::Truncated {
                turn.handle_truncation(file);
            }
            let is_over = turn.is_over(file, *since) || surplus > 0;
            let is_over = end == End::Reached && is_over || file.is_broken;
            if is_over && !turn.is_current(file) {
                file.finish_line(each)?;
                self.finished.remove(at);
                surplus = surplus.saturating_sub(1);
                turn.outcome.has_closed = true;
            } else {
                at += 1;
            }
        }
        ControlFlow::Continue(())
    }
}

/// Whether a file that was read to its end can be closed although no other one has data: it was deleted, and is quiet.
/// Kept open, it would use up disk space.
fn is_gone(file: &OpenFile, left_since: Option<Instant>, turn: &Turn<'_>) -> bool {
    let Some(left_since) = left_since.filter(|_| !turn.is_current(file)) else {
        return false;
    };
    turn.is_over(file, left_since) && file.is_deleted()
}
