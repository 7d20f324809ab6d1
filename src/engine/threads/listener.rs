//! The app's own listener: accepts connections and hands them to the shards.

use std::io;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use mio::event::Source;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Poll};

use crate::engine::hub::Hub;
use crate::engine::model::command::{Control, NewConnection};
use crate::engine::parts::mailbox::When;
use crate::engine::parts::token::LISTENER;
use crate::report::limited;
use crate::transport::{self, ShardSocket, limit_unsent, suppress_sigpipe};

/// Most connections accepted in one turn, so that a connection storm does not delay others.
const ACCEPTS_PER_TURN: usize = 128;

/// How long accepting pauses after it has failed, as when the process has run out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The app's own listener.
pub(crate) struct Listener {
    socket: TcpListener,
    hub: Arc<Hub>,
    /// There may be more connections to accept.
    pub(crate) ready: bool,
    /// Accepting has failed and pauses until then.
    pub(crate) paused: Option<Instant>,
}

impl Listener {
    pub(crate) fn new(mut socket: TcpListener, hub: Arc<Hub>, poll: &Poll) -> io::Result<Self> {
        if hub.settings.slow_consumer.prefers_new() {
            limit_unsent(&socket);
        }
        socket.register(poll.registry(), LISTENER, Interest::READABLE)?;
        Ok(Self {
            socket,
            hub,
            ready: true,
            paused: None,
        })
    }

    /// Accepts the connections that wait, and hands them to the shards. Returns the share of the listener's own shard.
    pub(crate) fn accept(&mut self, now: Instant) -> Vec<NewConnection> {
        let mut own = Vec::new();
        if self.paused.is_some_and(|until| until > now) {
            return own;
        }
        self.paused = None;
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.ready {
                break;
            }
            match self.socket.accept() {
                Ok((mut stream, peer)) => {
                    self.resumed();
                    if suppress_sigpipe(&stream).is_err() {
                        // The peer has already reset it.
                        continue;
                    }
                    let peer_slot = match self.hub.admit_peer(peer, now) {
                        Ok(peer_slot) => peer_slot,
                        Err(refused) => {
                            self.hub.common.accepted.add(1);
                            refused.counter(&self.hub.common).add(1);
                            // A refused connection is not worth a buffer, nor a TLS handshake: the response is sent if it
                            // can be at once.
                            if !self.hub.settings.has_tls() {
                                let _ = stream.write(&refused.response(false));
                            }
                            continue;
                        }
                    };
                    // Without TCP_NODELAY the kernel may hold back a reply. If this fails the peer is gone, which the
                    // next read shows.
                    let _ = stream.set_nodelay(true);
                    let Some(stream) = self.secured(stream) else {
                        continue;
                    };
                    let new_connection = NewConnection {
                        stream,
                        peer,
                        peer_slot,
                        upgraded: None,
                    };
                    let shard = self.hub.least_loaded();
                    self.hub.shards[shard].load.fetch_add(1, Relaxed);
                    if shard == 0 {
                        own.push(new_connection);
                    } else {
                        self.hub.send_control(
                            shard as u16,
                            Control::NewConnection(Box::new(new_connection)),
                            When::Now,
                        );
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.ready = false,
                Err(error) if is_of_one_connection(&error) => {}
                Err(_) if self.hub.accept_failed() => {}
                Err(error) => {
                    self.pause(now, &error);
                    break;
                }
            }
        }
        own
    }

    /// Puts TLS on a new connection, if the app has TLS. `None` if that is not possible.
    #[cfg_attr(
        not(feature = "__tls"),
        allow(clippy::unnecessary_wraps, clippy::unused_self)
    )]
    fn secured(&self, stream: TcpStream) -> Option<ShardSocket> {
        #[cfg(feature = "__tls")]
        if let Some(tls) = &self.hub.settings.tls {
            let (config, cost) = tls.current();
            return match ShardSocket::tls(stream, config, cost) {
                Ok(socket) => Some(socket),
                Err(error) => {
                    limited!(
                        self.hub.logged.not_accepted,
                        error,
                        "TLS can't be set up for a connection, which is closed: {error}"
                    );
                    None
                }
            };
        }
        Some(transport::plain(stream))
    }

    fn pause(&mut self, now: Instant, error: &io::Error) {
        self.hub.common.accept_errors.add(1);
        limited!(
            self.hub.logged.not_accepted,
            warning,
            "connections can't be accepted: {error}; trying again soon, or when a connection closes"
        );
        self.paused = Some(now + ACCEPT_PAUSE);
    }

    fn resumed(&mut self) {
        self.hub.accept_works();
    }

    /// How long until accepting can go on without a further readiness event.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        match self.paused {
            Some(until) => Some(until.saturating_duration_since(now)),
            None => self.ready.then_some(Duration::ZERO),
        }
    }
}

/// Whether an error concerns the connection that was to be accepted, and not the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
