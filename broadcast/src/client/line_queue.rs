//! The bounded queue of lines between the thread that reads standard input and the thread that sends.

use std::collections::VecDeque;
use std::io::{self, BufReader};
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use humphrey_ws::Limits;
use mio::Waker;

use super::pacer::Rate;
use crate::diagnostics::report;
use crate::lines::{self, Line};
use crate::stdio;

/// Size of the read buffer: the capacity of a pipe on Linux.
const READ_BYTES: usize = 64 << 10;

/// High-water mark of the queue, which one line may exceed.
const QUEUED_BYTES_MAX: usize = 1 << 20;

/// Overhead of a line beside its bytes.
const LINE_OVERHEAD_BYTES: usize = 32;

/// With `--rate`, lines are queued for this time.
const PACED_READ_AHEAD: Duration = Duration::from_millis(100);

/// Size of the read buffer with `--rate`: its lines are read from the input, though not sent.
const PACED_READ_BYTES: usize = 4 << 10;

/// How far the reader is ahead of the connection.
#[derive(Debug, Clone, Copy)]
struct ReadAhead {
    /// Size of the read buffer.
    buffer_bytes: usize,
    /// High-water mark of the queue, in lines.
    lines_max: usize,
}

impl ReadAhead {
    fn at(rate: Option<Rate>) -> Self {
        match rate {
            None => Self {
                buffer_bytes: READ_BYTES,
                lines_max: usize::MAX,
            },
            Some(rate) => Self {
                buffer_bytes: PACED_READ_BYTES,
                lines_max: rate.lines_in(PACED_READ_AHEAD),
            },
        }
    }
}

/// A bounded queue; the reader blocks while it is full.
pub(super) struct LineQueue {
    read_ahead: ReadAhead,
    state: Mutex<QueueState>,
    has_room: Condvar,
}

#[derive(Default)]
struct QueueState {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    ended: bool,
    /// Lines that were too long or could not be read.
    skipped: u64,
}

/// The result of [`LineQueue::pop`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextLine {
    Line(Vec<u8>),
    Nothing,
    End,
}

impl LineQueue {
    fn new(rate: Option<Rate>) -> Self {
        Self {
            read_ahead: ReadAhead::at(rate),
            state: Mutex::default(),
            has_room: Condvar::new(),
        }
    }

    /// Starts the thread that reads standard input. `rate`: the lines are sent no faster, so they are not read much earlier.
    pub(super) fn spawn_reader(waker: Arc<Waker>, rate: Option<Rate>) -> io::Result<Arc<Self>> {
        let queue = Arc::new(Self::new(rate));
        let reader = thread::Builder::new().name("standard input".into());
        {
            let queue = queue.clone();
            reader.spawn(move || queue.read_all(&waker))?;
        }
        Ok(queue)
    }

    fn read_all(&self, waker: &Waker) {
        let reader = BufReader::with_capacity(self.read_ahead.buffer_bytes, stdio::StandardInput);
        let line_bytes_max = Limits::default().message_bytes_max;
        let end = lines::for_each(reader, line_bytes_max, |number, line| match line {
            Line::Whole(line) => self.push(line, waker),
            Line::TooLong { bytes } => {
                report!(
                    "line {number} is {bytes} bytes long and is skipped: the limit is {line_bytes_max} bytes"
                );
                self.lock().skipped += 1;
                ControlFlow::Continue(())
            }
        });
        if let Err(error) = end
            && !stdio::is_hangup(&error, || self.lock().ended)
        {
            report!("standard input can't be read: {error}");
            self.lock().skipped += 1;
        }
        self.end();
        let _ = waker.wake();
    }

    fn push(&self, line: &[u8], waker: &Waker) -> ControlFlow<()> {
        let mut state = self.lock();
        while self.is_full(&state) && !state.ended {
            state = self
                .has_room
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.ended {
            return ControlFlow::Break(());
        }
        let was_empty = state.lines.is_empty();
        state.bytes += line.len() + LINE_OVERHEAD_BYTES;
        state.lines.push_back(line.to_vec());
        drop(state);
        if was_empty {
            let _ = waker.wake();
        }
        ControlFlow::Continue(())
    }

    pub(super) fn pop(&self) -> NextLine {
        let mut state = self.lock();
        let was_full = self.is_full(&state);
        match state.lines.pop_front() {
            Some(line) => {
                state.bytes -= line.len() + LINE_OVERHEAD_BYTES;
                if was_full && !self.is_full(&state) {
                    self.has_room.notify_one();
                }
                NextLine::Line(line)
            }
            None if state.ended => NextLine::End,
            None => NextLine::Nothing,
        }
    }

    fn is_full(&self, state: &QueueState) -> bool {
        state.bytes >= QUEUED_BYTES_MAX || state.lines.len() >= self.read_ahead.lines_max
    }

    /// Stops reading. Queued lines remain.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.has_room.notify_one();
    }

    pub(super) fn is_drained(&self) -> bool {
        let state = self.lock();
        state.ended && state.lines.is_empty()
    }

    /// Number of queued lines.
    pub(super) fn len(&self) -> usize {
        self.lock().lines.len()
    }

    /// Lines that were too long or could not be read.
    pub(super) fn skipped(&self) -> u64 {
        self.lock().skipped
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Poll, Token};

    fn waker() -> (Poll, Waker) {
        let poll = Poll::new().unwrap();
        let waker = Waker::new(poll.registry(), Token(0)).unwrap();
        (poll, waker)
    }

    #[test]
    fn queue_yields_lines_in_order_and_then_the_end() {
        let (_poll, waker) = waker();
        let queue = LineQueue::new(None);
        assert_eq!(queue.pop(), NextLine::Nothing);
        for line in ["a", ""] {
            assert!(queue.push(line.as_bytes(), &waker).is_continue());
        }
        queue.end();
        assert!(queue.push(b"late", &waker).is_break());
        assert!(!queue.is_drained());
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.pop(), NextLine::Line(b"a".to_vec()));
        assert_eq!(queue.pop(), NextLine::Line(Vec::new()));
        assert!(queue.is_drained());
        assert_eq!(queue.pop(), NextLine::End);
    }

    #[test]
    fn paced_queue_holds_the_lines_of_a_short_time() {
        let (_poll, waker) = waker();
        let queue = Arc::new(LineQueue::new(Some("30".parse().unwrap())));
        let reader = {
            let queue = queue.clone();
            thread::spawn(move || {
                for n in 0..100 {
                    assert!(queue.push(n.to_string().as_bytes(), &waker).is_continue());
                }
                queue.end();
            })
        };
        let mut lines = Vec::new();
        while !queue.is_drained() {
            assert!(queue.len() <= 3);
            match queue.pop() {
                NextLine::Line(line) => lines.push(String::from_utf8(line).unwrap()),
                NextLine::Nothing | NextLine::End => thread::yield_now(),
            }
        }
        assert!((0..100).map(|n| n.to_string()).eq(lines));
        reader.join().unwrap();
    }

    #[test]
    fn reader_blocks_while_the_queue_is_full() {
        const LINES: u64 = 40;
        let (_poll, waker) = waker();
        let queue = Arc::new(LineQueue::new(None));
        let line = vec![b'x'; QUEUED_BYTES_MAX / 4];
        let reader = {
            let (queue, line) = (queue.clone(), line.clone());
            thread::spawn(move || {
                for _ in 0..LINES {
                    assert!(queue.push(&line, &waker).is_continue());
                }
                queue.end();
            })
        };
        let mut got = 0;
        loop {
            assert!(queue.len() <= 5);
            match queue.pop() {
                NextLine::Line(next) => {
                    assert_eq!(next, line);
                    got += 1;
                }
                NextLine::Nothing => thread::yield_now(),
                NextLine::End => break,
            }
        }
        assert_eq!(got, LINES);
        reader.join().unwrap();
    }
}
