//! Waits for events of the followed files, for a deadline, or to be woken.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Poll, Token};

const WAKE: Token = Token(0);
#[cfg(target_os = "linux")]
const WATCHES: Token = Token(1);
/// The token of the streams of the first source.
const STREAMS: usize = 2;

const EVENTS_MAX: usize = 64;

/// Makes [`Follower::run`](super::Follower::run) look at once whether it is to stop.
#[derive(Clone, Debug)]
pub(crate) struct Waker(Arc<mio::Waker>);

impl Waker {
    /// Can be called from any thread.
    pub(crate) fn wake(&self) {
        // It fails only if the follower is gone.
        let _ = self.0.wake();
    }
}

#[derive(Debug)]
pub(super) struct Waiter {
    poll: Poll,
    events: Events,
    waker: Waker,
}

impl Waiter {
    pub(super) fn new() -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Waker(Arc::new(mio::Waker::new(poll.registry(), WAKE)?));
        Ok(Self {
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            waker,
        })
    }

    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Wakes up when there are events on this queue of inotify.
    #[cfg(target_os = "linux")]
    pub(super) fn add_watches(&self, queue: &impl std::os::fd::AsRawFd) -> io::Result<()> {
        self.register(queue, WATCHES)
    }

    /// Wakes up when a stream of the source can be read. False if the system can't tell that of this kind of stream.
    #[cfg(unix)]
    pub(super) fn add_stream(&self, source: usize, stream: &File) -> bool {
        self.register(stream, Token(STREAMS + source)).is_ok()
    }

    #[cfg(windows)]
    pub(super) fn add_stream(&self, _: usize, _: &File) -> bool {
        false
    }

    #[cfg(unix)]
    fn register(&self, file: &impl std::os::fd::AsRawFd, token: Token) -> io::Result<()> {
        let file = file.as_raw_fd();
        let mut file = mio::unix::SourceFd(&file);
        (self.poll.registry()).register(&mut file, token, mio::Interest::READABLE)
    }

    /// Returns the sources with streams that may have data.
    pub(super) fn wait(&mut self, timeout: Duration) -> io::Result<impl Iterator<Item = usize>> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => result?,
        }
        Ok((self.events.iter()).filter_map(|event| event.token().0.checked_sub(STREAMS)))
    }
}
