//! Late joiners of a fan-out. While a server is under load, clients connect at a steady rate, stay for half a second, and
//! leave. Each client then inflates the messages that it has received and compares them with those sent.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::stream::{Frames, Inflater, Part, Totals};
use crate::load::connect::{self, ConnectionSpec};
use crate::wire;

/// Number of connections opened per second.
pub(super) const PER_SECOND: f64 = 100.0;
/// Number of open connections. With [`PER_SECOND`], each stays for half a second.
const OPEN: usize = 50;
/// Maximum number of connections opened at once, after the server was slow to accept others.
const BURST: usize = 8;

/// The thread of the late joiners.
pub(super) struct Visitors {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Default)]
struct Shared {
    /// Whether the server is under load.
    active: AtomicBool,
    ended: AtomicBool,
    seen: Mutex<Visits>,
}

/// The number of late joiners so far, and the frames that they have received.
#[derive(Clone, Copy, Default)]
pub(super) struct Visits {
    pub(super) count: u64,
    pub(super) totals: Totals,
}

impl Visitors {
    pub(super) fn start(address: SocketAddrV4, messages: Arc<Vec<String>>, offers: bool) -> Self {
        let shared = Arc::new(Shared::default());
        let for_thread = shared.clone();
        let thread = thread::spawn(move || for_thread.run(address, &messages, offers));
        Self {
            shared,
            thread: Some(thread),
        }
    }

    pub(super) fn set_active(&self, active: bool) {
        self.shared.active.store(active, Relaxed);
    }

    pub(super) fn seen(&self) -> Visits {
        *self.shared.seen()
    }

    pub(super) fn finish(&mut self) -> io::Result<Visits> {
        self.shared.ended.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            ended.unwrap_or_else(|_| Err(io::Error::other("the visitors' thread panicked")))?;
        }
        Ok(self.seen())
    }
}

impl Drop for Visitors {
    fn drop(&mut self) {
        self.shared.ended.store(true, Relaxed);
    }
}

impl Shared {
    fn seen(&self) -> std::sync::MutexGuard<'_, Visits> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, address: SocketAddrV4, messages: &[String], offers: bool) -> io::Result<()> {
        let numbers: HashMap<&[u8], usize> = messages
            .iter()
            .enumerate()
            .map(|(number, message)| (message.as_bytes(), number))
            .collect();
        let spec = |_| ConnectionSpec {
            offers,
            ..ConnectionSpec::default()
        };
        let pause = Duration::from_secs_f64(1.0 / PER_SECOND);
        let mut open: VecDeque<(OwnedFd, Vec<u8>)> = VecDeque::new();
        let mut due = Instant::now();
        while !self.ended.load(Relaxed) {
            let now = Instant::now();
            if !self.active.load(Relaxed) || now < due {
                if !self.active.load(Relaxed) {
                    due = now;
                }
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            let mut count = 0;
            while due <= now && count < BURST {
                due += pause;
                count += 1;
            }
            open.extend(connect::open_with_messages(address, 0, count, spec)?);
            self.seen().count += count as u64;
            while open.len() > OPEN {
                if let Some((socket, received)) = open.pop_front() {
                    let totals = leave(&socket, received, messages, &numbers, offers)
                        .map_err(|e| io::Error::new(e.kind(), format!("a late joiner: {e}")))?;
                    self.seen().totals.add(totals);
                }
            }
        }
        Ok(())
    }
}

/// Reads the messages that a client has received, and checks that they are consecutive messages of the fan-out.
fn leave(
    socket: &OwnedFd,
    mut received: Vec<u8>,
    messages: &[String],
    numbers: &HashMap<&[u8], usize>,
    offers: bool,
) -> io::Result<Totals> {
    let mut part = [0; 16 * 1024];
    while let Some(read) = connect::receive_once(socket, &mut part)? {
        received.extend_from_slice(&part[..read]);
    }
    let (mut frames, mut inflater, mut totals) =
        (Frames::new(wire::TEXT), Inflater::new(), Totals::default());
    let (mut bytes, mut whole) = (&received[..], Totals::default());
    let mut next = None;
    while let Part::Payload(payload, ends) = frames.next(&mut bytes, &mut totals, offers)? {
        inflater.push(payload);
        if !ends {
            continue;
        }
        whole = totals;
        let text = inflater.finish(frames.is_compressed())?;
        let number = numbers.get(text).copied();
        if number.is_none() || next.is_some() && number != next {
            return Err(io::Error::other(format!(
                "received message {number:?} instead of {next:?}: {:?}",
                String::from_utf8_lossy(text)
            )));
        }
        next = number.map(|number| (number + 1) % messages.len());
    }
    Ok(whole)
}
