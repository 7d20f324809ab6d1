//! The app's own listeners: accepts connections and hands them to the shards.

use std::io;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use mio::event::Source;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Poll};

use crate::engine::hub::Hub;
use crate::engine::model::command::{Control, NewConnection};
use crate::engine::parts::mailbox::When;
use crate::engine::parts::token::{LISTENERS_MAX, of_listener};
use crate::listener::ListenerSocket;
use crate::report::limited;
use crate::transport::{self, ShardSocket, UnsentLimit, limit_unsent, suppress_sigpipe};

/// How long accepting pauses after it has failed, as when the process has run out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The app's own listeners.
pub(crate) struct Listeners {
    listeners: Vec<Listener>,
    hub: Arc<Hub>,
    /// The listener that is asked first.
    first: usize,
    /// Accepting has failed and pauses until then.
    pub(crate) paused: Option<Instant>,
}

struct Listener {
    socket: Socket,
    /// There may be more connections to accept.
    ready: bool,
}

/// A listener's socket, as it is polled.
enum Socket {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix {
        /// Removes the file in the end, before the socket is closed: afterwards, the file could be a successor's.
        _file: Option<crate::listener::SocketFile>,
        socket: mio::net::UnixListener,
    },
}

impl Socket {
    fn new(socket: ListenerSocket) -> io::Result<Self> {
        Ok(match socket {
            ListenerSocket::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                Self::Tcp(TcpListener::from_std(socket))
            }
            #[cfg(unix)]
            ListenerSocket::Unix(file, socket) => {
                socket.set_nonblocking(true)?;
                Self::Unix {
                    socket: mio::net::UnixListener::from_std(socket),
                    _file: file,
                }
            }
        })
    }

    fn register(&mut self, poll: &Poll, index: usize) -> io::Result<()> {
        let (registry, token) = (poll.registry(), of_listener(index));
        match self {
            Self::Tcp(socket) => socket.register(registry, token, Interest::READABLE),
            #[cfg(unix)]
            Self::Unix { socket, .. } => socket.register(registry, token, Interest::READABLE),
        }
    }

    /// The listener of TCP; `None` for a Unix socket.
    fn tcp(&self) -> Option<&TcpListener> {
        match self {
            Self::Tcp(socket) => Some(socket),
            #[cfg(unix)]
            Self::Unix { .. } => None,
        }
    }

    /// Accepts a connection. The address of a client of a Unix socket is made up.
    #[cfg_attr(not(unix), allow(unused_variables))] // It counts them.
    fn accept(&self, hub: &Hub) -> io::Result<(TcpStream, SocketAddr)> {
        match self {
            Self::Tcp(socket) => socket.accept(),
            #[cfg(unix)]
            Self::Unix { socket, .. } => {
                let (stream, _) = socket.accept()?;
                Ok((transport::of_unix(stream.into()), hub.next_unix_peer()))
            }
        }
    }
}

impl Listeners {
    pub(crate) fn new(
        sockets: Vec<ListenerSocket>,
        hub: Arc<Hub>,
        poll: &Poll,
    ) -> io::Result<Self> {
        if sockets.len() > LISTENERS_MAX {
            let why = format!("an app can have at most {LISTENERS_MAX} listeners");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let sockets = sockets.into_iter().enumerate();
        let listeners = sockets.map(|(index, socket)| {
            let mut socket = Socket::new(socket)?;
            if let Some(socket) = socket.tcp()
                && hub.settings.slow_consumer.prefers_new()
            {
                limit_unsent(socket, UnsentLimit::PrefersNew);
            }
            socket.register(poll, index)?;
            Ok(Listener {
                socket,
                ready: true,
            })
        });
        Ok(Self {
            listeners: listeners.collect::<io::Result<_>>()?,
            hub,
            first: 0,
            paused: None,
        })
    }

    /// Records that a listener may have connections.
    pub(crate) fn ready(&mut self, index: usize) {
        if let Some(listener) = self.listeners.get_mut(index) {
            listener.ready = true;
        }
    }

    /// Accepts connections that wait, as many as are `left`, and hands them to the shards. Returns the share of the listeners'
    /// own shard.
    pub(crate) fn accept(&mut self, now: Instant, left: &mut u32) -> Vec<NewConnection> {
        let mut own = Vec::new();
        if *left == 0 || self.paused.is_some_and(|until| until > now) {
            return own;
        }
        self.paused = None;
        // The first of them changes, so that a failure, or the limit, is not always at the cost of the same ones.
        let len = self.listeners.len();
        self.first = (self.first + 1) % len.max(1);
        for n in 0..len {
            let index = (self.first + n) % len;
            while self.listeners[index].ready && *left > 0 {
                *left -= 1;
                let listener = &mut self.listeners[index];
                match listener.socket.accept(&self.hub) {
                    Ok((stream, peer)) => {
                        self.resumed();
                        let is_tcp = self.listeners[index].socket.tcp().is_some();
                        if let Some(new_connection) = self.admit(stream, peer, is_tcp, now) {
                            self.hand_over(new_connection, &mut own);
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        listener.ready = false;
                    }
                    Err(error) if is_of_one_connection(&error) => {}
                    Err(_) if self.hub.accept_failed() => {}
                    Err(error) => {
                        self.pause(now, &error);
                        return own;
                    }
                }
            }
        }
        own
    }

    /// Prepares an accepted connection. `None` if it is refused, or has already ended.
    fn admit(
        &self,
        mut stream: TcpStream,
        peer: SocketAddr,
        is_tcp: bool,
        now: Instant,
    ) -> Option<NewConnection> {
        // If this fails, the peer has already reset it.
        suppress_sigpipe(&stream).ok()?;
        let is_proxied = self.hub.settings.expects_proxy_header(peer.ip());
        // Otherwise, TLS begins behind the header of the proxy.
        let has_tls = is_tcp && !is_proxied && self.hub.settings.has_tls();
        let admitted = match is_proxied {
            true => Ok(None),
            false => self.hub.admit_peer(peer, now),
        };
        let peer_slot = match admitted {
            Ok(peer_slot) => peer_slot,
            Err(refused) => {
                self.hub.common.accepted.add(1);
                refused.counter(&self.hub.common).add(1);
                // A refused connection is not worth a buffer, nor a TLS handshake: the response is sent if it can be at
                // once.
                if !has_tls {
                    let _ = stream.write(&refused.response(false));
                }
                return None;
            }
        };
        if is_tcp {
            // Without TCP_NODELAY the kernel may hold back a reply. If this fails the peer is gone, which the next read
            // shows.
            let _ = stream.set_nodelay(true);
        }
        let stream = match has_tls {
            true => self.secured(stream)?,
            false => transport::plain(stream),
        };
        Some(NewConnection {
            stream,
            peer,
            peer_slot,
            upgraded: None,
        })
    }

    /// Hands a connection to the shard with the fewest, or adds it to those of the listeners' own shard.
    fn hand_over(&self, new_connection: NewConnection, own: &mut Vec<NewConnection>) {
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

    /// Puts TLS on a new connection. `None` if that is not possible.
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
            None => {
                let is_ready = self.listeners.iter().any(|listener| listener.ready);
                is_ready.then_some(Duration::ZERO)
            }
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
