//! The event loop of the client: waits for its socket, for other threads and for signals.

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
use crate::diagnostics;
use crate::signals;

const WAKE: Token = Token(0);
const SOCKET: Token = Token(1);
#[cfg(unix)]
const OUTPUT: Token = Token(2);

const EVENTS_MAX: usize = 16;

/// How long the shutdown may take after a signal.
const STOP_WAIT: Duration = Duration::from_secs(5);

pub(super) struct EventLoop {
    poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    stopping: Arc<AtomicBool>,
    /// The deadline of the shutdown, once a signal has arrived.
    stop_deadline: Option<Instant>,
    output_closed: bool,
}

impl EventLoop {
    pub(super) fn new() -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let stopping = Arc::new(AtomicBool::new(false));
        {
            let waker = waker.clone();
            let stop = move || {
                let _ = waker.wake();
                diagnostics::erase_progress_line();
                // A blocking write to a pipe that nobody reads would prevent the shutdown.
                thread::sleep(STOP_WAIT + Duration::from_secs(1));
                process::exit(1);
            };
            signals::handle(stopping.clone(), stop, None)?;
        }
        Ok(Self {
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            waker,
            stopping,
            stop_deadline: None,
            output_closed: false,
        })
    }

    /// Wakes the event loop from another thread.
    pub(super) fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }

    pub(super) fn register(&self, stream: &mut TcpStream) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(stream, SOCKET, both)
    }

    /// Detects from now on that the reader of standard output has closed it, without writing. Files cannot be watched,
    /// and need not be.
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

    /// Waits for an event, at most until `until`.
    pub(super) fn wait(&mut self, until: Option<Instant>) -> io::Result<()> {
        let until = match (until, self.stop_deadline) {
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
        if self.stop_deadline.is_none() && self.stopping.load(Ordering::Relaxed) {
            self.stop_deadline = Some(Instant::now() + STOP_WAIT);
        }
        Ok(())
    }

    /// Waits for progress while a connection is opened. Fails with `failure` after the deadline, and if the program is
    /// stopping.
    pub(super) fn wait_for_socket(&mut self, by: Instant, failure: Failure) -> Result<(), End> {
        if self.is_stopping() {
            return Err(End::Stopped);
        }
        if Instant::now() >= by {
            return Err(End::failed(failure, "no answer in time"));
        }
        self.wait(Some(by))
            .map_err(|error| End::failed(Failure::LocalError, error))
    }

    /// Whether the program is stopping: a signal has arrived, or standard output was closed.
    pub(super) fn is_stopping(&self) -> bool {
        self.output_closed || self.stopping.load(Ordering::Relaxed)
    }

    /// Whether the deadline of the shutdown has passed.
    pub(super) fn is_past_stop_deadline(&self) -> bool {
        self.stop_deadline.is_some_and(|by| Instant::now() >= by)
    }
}
