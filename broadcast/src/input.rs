//! Standard input, and the account of all lines: what became of them.

use std::fmt;
use std::io::BufReader;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use humphrey_ws::{Limits, Message};

use crate::diagnostics::report;
use crate::lines::{self, Line};
use crate::progress::Progress;
use crate::room_name::RoomName;
use crate::rooms::{Channel, Rooms};
use crate::sources::split_prefix;
use crate::stdio;

/// Size of the read buffer: the capacity of a pipe on Linux.
const INPUT_BUFFER_BYTES: usize = 64 << 10;

/// Where the lines of standard input go.
pub(crate) struct InputRooms<'a> {
    rooms: &'a Rooms,
    /// The room of lines without a prefix. It is never evicted.
    default: Channel,
    /// Whether lines name their rooms (`--prefix-room`).
    by_prefix: bool,
}

impl<'a> InputRooms<'a> {
    pub(crate) fn new(rooms: &'a Rooms, default: &RoomName, by_prefix: bool) -> Self {
        Self {
            rooms,
            default: rooms.channel(default),
            by_prefix,
        }
    }

    fn publish(&self, line: &[u8]) {
        let prefixed = split_prefix(line).filter(|_| self.by_prefix);
        match prefixed.zip(self.rooms.sources()) {
            Some(((name, rest), sources)) => {
                self.rooms.source_channel(sources, &name).publish(rest);
            }
            None => self.default.publish(Message::new(line)),
        }
    }
}

/// The account of standard input and followed files: how many lines were sent, and whether some were lost.
#[derive(Debug, Default)]
pub(crate) struct InputAccount {
    /// The lines that were sent.
    lines: AtomicUsize,
    /// Set as soon as a line is skipped: a signal may end the program before the end of the input.
    has_failed: AtomicBool,
    /// Shown while the program runs, if at all.
    progress: Option<Arc<Progress>>,
}

impl InputAccount {
    pub(crate) fn new(progress: Option<Arc<Progress>>) -> Self {
        Self {
            progress,
            ..Self::default()
        }
    }

    pub(crate) fn lines(&self) -> u64 {
        self.lines.load(Ordering::Relaxed) as u64
    }

    /// Whether a line was skipped, or the input could not be read.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::SeqCst)
    }

    /// Records that some input could not be read.
    pub(crate) fn fail(&self) {
        self.has_failed.store(true, Ordering::SeqCst);
    }

    /// Counts a line that was sent.
    pub(crate) fn sent(&self, bytes: usize) {
        self.lines.fetch_add(1, Ordering::Relaxed);
        if let Some(progress) = &self.progress {
            progress.count(bytes);
        }
    }

    /// Records that a line was too long to be sent.
    pub(crate) fn skipped(&self, line: fmt::Arguments<'_>, bytes: u64) {
        self.fail();
        let limit = Limits::default().message_bytes_max;
        report!("{line} is {bytes} bytes long and is skipped: the limit is {limit} bytes");
    }

    /// Sends each line to its room, or to everyone, until the input ends or the program is stopping.
    pub(crate) fn broadcast(&self, to: InputRooms<'_>, stopping: &AtomicBool) {
        let input = BufReader::with_capacity(INPUT_BUFFER_BYTES, stdio::StandardInput);
        let line_bytes_max = Limits::default().message_bytes_max;
        let go_on = || match stopping.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let end = lines::for_each_read(input, line_bytes_max, |mut lines| {
            loop {
                let mut too_long = None;
                // A command that fills the pipe writes many lines at once, and so they are sent.
                let flow = to.rooms.cork(|| {
                    lines.for_each(|number, line| match line {
                        Line::Whole(line) => {
                            to.publish(line);
                            self.sent(line.len());
                            go_on()
                        }
                        Line::TooLong { bytes } => {
                            too_long = Some((number, bytes));
                            ControlFlow::Break(())
                        }
                    })
                });
                let Some((number, bytes)) = too_long else {
                    return flow;
                };
                // The lines before are on their way, since printing may block.
                self.skipped(format_args!("line {number}"), bytes);
                go_on()?;
            }
        });
        if let Err(error) = end
            && !stdio::is_hangup(&error, || stopping.load(Ordering::Relaxed))
        {
            self.fail();
            report!("standard input can't be read: {error}");
        }
    }
}
