//! What the talking thread waits for: its socket, what other threads have for it, and the end.

use std::io;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};

use super::end::End;
use super::failures::Failure;
use crate::signals;

const WAKE: Token = Token(0);
const SOCKET: Token = Token(1);
#[cfg(unix)]
const OUTPUT: Token = Token(2);

const EVENTS_MAX: usize = 16;

/// How long the end may take once a signal has asked for it.
const STOP_WAIT: Duration = Duration::from_secs(5);

pub(super) struct World {
    poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    stopping: Arc<AtomicBool>,
    /// When all must have ended, once a signal has come.
    stop_by: Option<Instant>,
    output_closed: bool,
}

impl World {
    pub(super) fn new() -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let stopping = Arc::new(AtomicBool::new(false));
        {
            let waker = waker.clone();
            signals::on_stop(stopping.clone(), move || {
                let _ = waker.wake();
                // Where the other end of a pipe does not read, nothing else would end it.
                thread::sleep(STOP_WAIT + Duration::from_secs(1));
                process::exit(1);
            })?;
        }
        Ok(Self {
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            waker,
            stopping,
            stop_by: None,
            output_closed: false,
        })
    }

    /// Ends a wait from another thread.
    pub(super) fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }

    pub(super) fn register(&self, stream: &mut TcpStream) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(stream, SOCKET, both)
    }

    /// Notices from now on if nobody reads standard output any more, without having to write to it. Where it is a file,
    /// there is nothing to notice.
    pub(super) fn watch_output(&self) {
        #[cfg(unix)]
        {
            use std::os::fd::AsRawFd;
            let output = io::stdout().as_raw_fd();
            let mut source = mio::unix::SourceFd(&output);
            let _ = self
                .poll
                .registry()
                .register(&mut source, OUTPUT, Interest::WRITABLE);
        }
    }

    /// Waits for anything to happen, at most until then.
    pub(super) fn wait(&mut self, until: Option<Instant>) -> io::Result<()> {
        let until = match (until, self.stop_by) {
            (Some(until), Some(by)) => Some(until.min(by)),
            (until, by) => until.or(by),
        };
        let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => result?,
        }
        #[cfg(unix)]
        for event in &self.events {
            if event.token() == OUTPUT && (event.is_error() || event.is_write_closed()) {
                self.output_closed = true;
            }
        }
        if self.stop_by.is_none() && self.stopping.load(Ordering::Relaxed) {
            self.stop_by = Some(Instant::now() + STOP_WAIT);
        }
        Ok(())
    }

    /// The same, for what must have happened by then, or has failed; it is worth nothing once all is to end.
    pub(super) fn wait_for_progress(&mut self, by: Instant, failure: Failure) -> Result<(), End> {
        if self.is_over() {
            return Err(End::Stopped);
        }
        if Instant::now() >= by {
            return Err(End::failed(failure, "no answer in time"));
        }
        self.wait(Some(by))
            .map_err(|error| End::failed(Failure::System, error))
    }

    /// Whether all is to end: a signal has come, or nobody reads the output.
    pub(super) fn is_over(&self) -> bool {
        self.output_closed || self.stopping.load(Ordering::Relaxed)
    }

    /// Whether it should have ended by now.
    pub(super) fn is_late(&self) -> bool {
        self.stop_by.is_some_and(|by| Instant::now() >= by)
    }
}
