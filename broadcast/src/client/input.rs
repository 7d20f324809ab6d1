//! Lines on their way from standard input, which a thread of its own reads, to the thread that sends them.

use std::collections::VecDeque;
use std::io::{self, BufReader};
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use humphrey_ws::Limits;
use mio::Waker;

use crate::lines::{self, Line};
use crate::say::say;
use crate::stdio;

/// Read from standard input at once: what a pipe holds on Linux.
const READ_BYTES: usize = 64 << 10;

/// What may wait to be sent, and one line more.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// Beside the line itself.
const LINE_OVERHEAD_BYTES: usize = 32;

/// The lines that wait; the reader waits where they are too many.
#[derive(Default)]
pub(super) struct Input {
    state: Mutex<State>,
    room: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    ended: bool,
    /// Lines that were too long, or could not be read.
    skipped: u64,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Line(Vec<u8>),
    Nothing,
    End,
}

impl Input {
    /// Begins to read standard input.
    pub(super) fn read(waker: Arc<Waker>) -> io::Result<Arc<Self>> {
        let input = Arc::new(Self::default());
        let reader = thread::Builder::new().name("standard input".into());
        {
            let input = input.clone();
            reader.spawn(move || input.read_all(&waker))?;
        }
        Ok(input)
    }

    fn read_all(&self, waker: &Waker) {
        let reader = BufReader::with_capacity(READ_BYTES, stdio::Input);
        let line_bytes_max = Limits::default().message_bytes_max;
        let end = lines::for_each(reader, line_bytes_max, |number, line| match line {
            Line::Whole(line) => self.push(line, waker),
            Line::TooLong { bytes } => {
                say!(
                    "line {number} is {bytes} bytes long and is skipped: a message may have {line_bytes_max}"
                );
                self.lock().skipped += 1;
                ControlFlow::Continue(())
            }
        });
        if let Err(error) = end
            && !stdio::hangs_up(&error, || self.lock().ended)
        {
            say!("standard input can't be read: {error}");
            self.lock().skipped += 1;
        }
        self.end();
        let _ = waker.wake();
    }

    fn push(&self, line: &[u8], waker: &Waker) -> ControlFlow<()> {
        let mut state = self.lock();
        while state.bytes >= WAITING_BYTES_MAX && !state.ended {
            state = self
                .room
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

    pub(super) fn next(&self) -> Next {
        let mut state = self.lock();
        match state.lines.pop_front() {
            Some(line) => {
                let was_full = state.bytes >= WAITING_BYTES_MAX;
                state.bytes -= line.len() + LINE_OVERHEAD_BYTES;
                if was_full && state.bytes < WAITING_BYTES_MAX {
                    self.room.notify_one();
                }
                Next::Line(line)
            }
            None if state.ended => Next::End,
            None => Next::Nothing,
        }
    }

    /// Nothing more is read; what was read remains.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.room.notify_one();
    }

    pub(super) fn has_ended(&self) -> bool {
        let state = self.lock();
        state.ended && state.lines.is_empty()
    }

    /// Lines that wait.
    pub(super) fn waiting(&self) -> usize {
        self.lock().lines.len()
    }

    /// Lines that were too long, or could not be read.
    pub(super) fn skipped(&self) -> u64 {
        self.lock().skipped
    }

    fn lock(&self) -> MutexGuard<'_, State> {
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
    fn lines_come_out_in_order_and_then_the_end() {
        let (_poll, waker) = waker();
        let input = Input::default();
        assert_eq!(input.next(), Next::Nothing);
        for line in ["a", ""] {
            assert!(input.push(line.as_bytes(), &waker).is_continue());
        }
        input.end();
        assert!(input.push(b"late", &waker).is_break());
        assert!(!input.has_ended());
        assert_eq!(input.waiting(), 2);
        assert_eq!(input.next(), Next::Line(b"a".to_vec()));
        assert_eq!(input.next(), Next::Line(Vec::new()));
        assert!(input.has_ended());
        assert_eq!(input.next(), Next::End);
    }

    #[test]
    fn the_reader_waits_for_room_and_memory_is_bounded() {
        const LINES: u64 = 40;
        let (_poll, waker) = waker();
        let input = Arc::new(Input::default());
        let line = vec![b'x'; WAITING_BYTES_MAX / 4];
        let reader = {
            let (input, line) = (input.clone(), line.clone());
            thread::spawn(move || {
                for _ in 0..LINES {
                    assert!(input.push(&line, &waker).is_continue());
                }
                input.end();
            })
        };
        let mut got = 0;
        loop {
            assert!(input.waiting() <= 5);
            match input.next() {
                Next::Line(next) => {
                    assert_eq!(next, line);
                    got += 1;
                }
                Next::Nothing => thread::yield_now(),
                Next::End => break,
            }
        }
        assert_eq!(got, LINES);
        reader.join().unwrap();
    }
}
