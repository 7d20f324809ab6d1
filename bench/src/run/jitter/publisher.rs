//! Publishes messages to all rooms in turn, at a steady rate, through a node.

use std::fs::File;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::node::{MESSAGE_BYTES, NodeCommand};

/// How often messages are published that are due.
const TICK: Duration = Duration::from_millis(2);

/// The thread that publishes.
pub(super) struct Publisher {
    thread: JoinHandle<io::Result<u64>>,
    ends: Arc<AtomicBool>,
}

impl Publisher {
    /// Publishes `rate` messages per second, through the node at the other end of the pipe.
    pub(super) fn start(pipe: File, rooms: usize, rate: f64) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let thread = {
            let ends = ends.clone();
            thread::spawn(move || publish(pipe, rooms as u64, rate, &ends))
        };
        Self { thread, ends }
    }

    /// Ends the thread. Returns the number of messages that it has published.
    pub(super) fn finish(self) -> io::Result<u64> {
        self.ends.store(true, Relaxed);
        match self.thread.join() {
            Ok(published) => published,
            Err(_) => Err(io::Error::other("the thread that publishes has panicked")),
        }
    }
}

fn publish(mut pipe: File, rooms: u64, rate: f64, ends: &AtomicBool) -> io::Result<u64> {
    let begun = Instant::now();
    let (mut published, mut lines) = (0, String::new());
    while !ends.load(Relaxed) {
        let due = (begun.elapsed().as_secs_f64() * rate) as u64;
        lines.clear();
        for message in published..due {
            let (room, number) = (message % rooms, message / rooms);
            let command = NodeCommand::Say {
                room: room.to_string(),
                text: format!("{number:0width$}", width = MESSAGE_BYTES),
            };
            lines += &command.line();
        }
        pipe.write_all(lines.as_bytes())?;
        published = published.max(due);
        thread::sleep(TICK);
    }
    Ok(published)
}

/// Returns how many of the first `published` messages are for a room.
pub(super) fn published_in(room: usize, rooms: usize, published: u64) -> u64 {
    let (room, rooms) = (room as u64, rooms as u64);
    published / rooms + u64::from(room < published % rooms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_share_the_messages_in_turn() {
        for published in [0, 1, 2, 3, 4, 9, 10] {
            let mut count = [0; 3];
            (0..published).for_each(|message| count[message as usize % 3] += 1);
            let found = [0, 1, 2].map(|room| published_in(room, 3, published));
            assert_eq!(found, count, "{published}");
        }
    }
}
