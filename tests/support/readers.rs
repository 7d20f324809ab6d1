//! Clients that read numbered messages on threads of their own, so that a test can tell which messages each of them has received.

use std::io::{BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use humphrey_ws::{AsyncSender, Message};

use crate::support::{close_code, eventually, read_frame};

/// The input of a client: the numbers of its messages, and the code of the close frame after them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Got {
    pub(crate) numbers: Vec<u64>,
    pub(crate) close: Option<u16>,
}

impl Got {
    /// Returns whether the client got all of so many messages in order, and then the close frame of the shutdown.
    pub(crate) fn is_all(&self, messages: u64) -> bool {
        self.numbers.iter().copied().eq(0..messages) && self.close == Some(1001)
    }

    pub(crate) fn has_no_gap(&self) -> bool {
        self.numbers
            .iter()
            .copied()
            .eq(0..self.numbers.len() as u64)
    }
}

/// Reads numbered messages up to the end of the stream. `number_of` checks the payload of a message, and returns its number.
pub(crate) fn read_all(stream: impl Read, number_of: fn(&[u8]) -> u64) -> Got {
    count_all(stream, number_of, &AtomicU64::new(0))
}

fn count_all(stream: impl Read, number_of: fn(&[u8]) -> u64, progress: &AtomicU64) -> Got {
    let mut stream = BufReader::new(stream);
    let mut numbers = Vec::new();
    let close = loop {
        match read_frame(&mut stream) {
            Ok((0x82, payload)) => {
                numbers.push(number_of(&payload));
                progress.store(numbers.len() as u64, Ordering::Relaxed);
            }
            Ok((0x88, payload)) => break Some(close_code(&payload)),
            Ok((first, payload)) => {
                panic!("unexpected frame {first:#x} of {} bytes", payload.len())
            }
            Err(_) => break None,
        }
    };
    Got { numbers, close }
}

/// A client that reads as fast as its stream allows, on its own thread.
pub(crate) struct Reader {
    /// How many messages it has received.
    progress: Arc<AtomicU64>,
    thread: JoinHandle<Got>,
}

impl Reader {
    pub(crate) fn start(stream: impl Read + Send + 'static, number_of: fn(&[u8]) -> u64) -> Self {
        let progress = Arc::<AtomicU64>::default();
        let of_thread = progress.clone();
        Self {
            progress,
            thread: std::thread::spawn(move || count_all(stream, number_of, &of_thread)),
        }
    }

    /// Waits for the end of the stream.
    pub(crate) fn join(self) -> Got {
        self.thread.join().unwrap()
    }
}

/// Broadcasts messages at a rate that the readers sustain: about `window` messages are in flight at most.
pub(crate) fn broadcast_all(
    sender: &AsyncSender,
    readers: &[Reader],
    window: u64,
    messages: impl IntoIterator<Item = Message>,
) {
    for (n, message) in (0..).zip(messages) {
        sender.broadcast(message);
        if n % window == window - 1 {
            let kept_up = |reader: &Reader| reader.progress.load(Ordering::Relaxed) + window >= n;
            eventually("the readers keep up", || readers.iter().all(kept_up));
        }
    }
}

/// Checks that each reader gets all of so many messages, and then the close frame of the shutdown.
pub(crate) fn expect_all(readers: impl IntoIterator<Item = Reader>, messages: u64) {
    for reader in readers {
        assert!(reader.join().is_all(messages), "a reader lost a message");
    }
}
