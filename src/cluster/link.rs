//! The link: the thread that moves bytes between a node and its broker servers.
//!
//! It always reads, and never waits for a mailbox or a producer.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::broker::{Broker, Event};
use super::handle::{LinkWaker, Shared};
use super::lost::Lost;
use super::node::{Action, Node};
use super::redis::sentinel::SentinelUrl;
use super::socket::{Socket, TlsServer};
use super::unsent::Unsent;
use super::url::Address;
use crate::report::{Limited, info, limited};
use crate::sync::lock;

/// The token of the waker. Connections have the index of their server.
pub(super) const WAKER: Token = Token(usize::MAX);

/// How long connecting to one address, and then TLS and the broker's first answers, may take each.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The wait before the second attempt to connect. It doubles with each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// The wait after a failure that only a person can end, such as a wrong password or an expired certificate.
const BACKOFF_LASTING: Duration = Duration::from_secs(5);
/// Messages wait in their queue while more bytes than this are unsent, so that producers feel backpressure.
const UNSENT_BYTES_MAX: usize = 256 << 10;
/// The size of one read.
const READ_BYTES: usize = 64 << 10;
/// The most reads of a connection in one turn, so that a flood doesn't delay what this node sends.
const READS_PER_TURN: usize = 16;

/// A broker server.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    pub(super) address: Address,
    /// `None` without TLS.
    #[cfg_attr(
        not(feature = "__cluster-tls"),
        expect(dead_code, reason = "there is none")
    )]
    pub(super) tls: Option<TlsServer>,
}

/// The server that a connection leads to.
pub(super) enum BrokerTarget {
    /// The first of servers that stand in for each other, at least one.
    Servers(VecDeque<Endpoint>),
    /// The primary that Sentinels name, and its address, once it is known.
    Primary(SentinelUrl, Option<Address>),
}

impl BrokerTarget {
    #[cfg(feature = "__cluster-tls")]
    fn tls(&self) -> Option<&TlsServer> {
        match self {
            Self::Servers(servers) => servers[0].tls.as_ref(),
            Self::Primary(..) => None,
        }
    }

    /// Turns to the next server after a connection or an attempt was lost, or asks the next Sentinel first: the last answer may
    /// have been wrong.
    fn turn_to_next(&mut self) {
        match self {
            Self::Servers(servers) => servers.rotate_left(1),
            Self::Primary(url, _) => url.sentinels.rotate_left(1),
        }
    }
}

impl std::fmt::Display for BrokerTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Servers(servers) => write!(f, "{}", servers[0].address),
            Self::Primary(url, None) => write!(f, "{:?}", url.name),
            Self::Primary(url, Some(address)) => write!(f, "{:?} at {address}", url.name),
        }
    }
}

/// A connection to a broker server, or the wait for one.
pub(super) struct Connection {
    target: BrokerTarget,
    broker: Box<dyn Broker>,
    state: State,
    unsent: Unsent,
    backoff: Duration,
    /// The warning of the current outage.
    logged: Limited,
}

/// The result of looking a server up.
struct Resolved {
    /// The primary that a Sentinel has named.
    primary: Option<Address>,
    addresses: VecDeque<SocketAddr>,
}

enum State {
    /// Connects at this time.
    Waiting(Instant),
    Resolving(Receiver<io::Result<Resolved>>),
    Connecting {
        stream: TcpStream,
        others: VecDeque<SocketAddr>,
        until: Instant,
    },
    Open {
        socket: Socket,
        readable: bool,
        writable: bool,
        /// When the broker has to be ready; `None` once it is.
        ready_by: Option<Instant>,
    },
}

impl Connection {
    pub(super) fn new(target: BrokerTarget, broker: Box<dyn Broker>, now: Instant) -> Self {
        Self {
            target,
            broker,
            state: State::Waiting(now),
            unsent: Unsent::default(),
            backoff: BACKOFF_MIN,
            logged: Limited::new(),
        }
    }

    /// How many bytes of messages it takes now.
    fn room(&self) -> usize {
        match self.state {
            State::Open { ready_by: None, .. } => {
                UNSENT_BYTES_MAX.saturating_sub(self.unsent.len())
            }
            _ => 0,
        }
    }

    fn next_due(&self) -> Option<Instant> {
        match &self.state {
            State::Waiting(until) | State::Connecting { until, .. } => Some(*until),
            // The waker reports the end.
            State::Resolving(_) => None,
            State::Open { ready_by, .. } => *ready_by,
        }
    }

    /// Whether the socket may have more to read, or takes what is unsent.
    fn has_work(&self) -> bool {
        match &self.state {
            State::Open {
                socket,
                readable,
                writable,
                ..
            } => *readable || (*writable && socket.wants_write(&self.unsent)),
            _ => false,
        }
    }

    /// Whether messages wait for the socket. Before the broker is ready, there are none.
    fn has_unsent(&self) -> bool {
        match &self.state {
            State::Open {
                socket,
                ready_by: None,
                ..
            } => socket.wants_write(&self.unsent),
            _ => false,
        }
    }

    fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Begins TLS on an open connection, if it is time.
    #[cfg(feature = "__cluster-tls")]
    fn begin_tls(&mut self) -> Result<(), Lost> {
        let State::Open { socket, .. } = &self.state else {
            return Ok(());
        };
        let Some(tls) = self.target.tls() else {
            return Ok(());
        };
        if !socket.is_plain() || !self.broker.begins_tls() {
            return Ok(());
        }
        let tls = tls.clone();
        let waiting = State::Waiting(Instant::now());
        self.state = match std::mem::replace(&mut self.state, waiting) {
            State::Open {
                socket,
                readable,
                writable,
                ready_by,
            } => State::Open {
                socket: socket.begin_tls(&tls)?,
                readable,
                writable,
                ready_by,
            },
            other => other,
        };
        Ok(())
    }

    /// No endpoint has TLS.
    #[cfg(not(feature = "__cluster-tls"))]
    #[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "as with TLS")]
    fn begin_tls(&mut self) -> Result<(), Lost> {
        Ok(())
    }
}

/// The link of one node.
pub(super) struct Link {
    poll: Poll,
    shared: Arc<Shared>,
    node: Node,
    connections: Vec<Connection>,
    actions: Vec<Action>,
    events: Vec<Event>,
    buffer: Vec<u8>,
}

/// Producers and joins must not wait for a link that has ended, for whatever reason.
struct ReleaseOnEnd(Arc<Shared>);

impl Drop for ReleaseOnEnd {
    fn drop(&mut self) {
        for server in &self.0.servers {
            // With a connection, all that was queued before the app stopped has been sent, as far as time allowed.
            let dropped = match server.status.is_up() {
                true => &self.0.counters.dropped_not_running,
                false => &self.0.counters.dropped_broker,
            };
            server.status.set_connection(0);
            dropped.add(server.outgoing.stop() as u64);
        }
    }
}

/// Both functions block, and may take seconds.
impl Resolved {
    fn of_server(Address { host, port }: &Address) -> io::Result<Self> {
        Ok(Self {
            primary: None,
            addresses: (host.as_str(), *port).to_socket_addrs()?.collect(),
        })
    }

    fn of_primary(url: &SentinelUrl) -> io::Result<Self> {
        let primary = url.find_primary()?;
        let resolved = Self::of_server(&primary)?;
        Ok(Self {
            primary: Some(primary),
            ..resolved
        })
    }
}

impl Link {
    pub(super) fn new(
        poll: Poll,
        shared: Arc<Shared>,
        node: Node,
        connections: Vec<Connection>,
    ) -> Self {
        Self {
            poll,
            shared,
            node,
            connections,
            actions: Vec::new(),
            events: Vec::new(),
            buffer: vec![0; READ_BYTES],
        }
    }

    /// Runs until the app stops.
    pub(super) fn run(mut self) {
        let _release = ReleaseOnEnd(self.shared.clone());
        let mut ready = Events::with_capacity(64);
        loop {
            let now = Instant::now();
            self.turn(now);
            if self.has_finished(now) {
                break;
            }
            self.shared.waker.sleeps();
            let timeout = match self.has_work() {
                true => Duration::ZERO,
                false => self.next_due(now).saturating_duration_since(Instant::now()),
            };
            if let Err(error) = self.poll.poll(&mut ready, Some(timeout))
                && error.kind() != io::ErrorKind::Interrupted
            {
                crate::report::error!("the link to the cluster has failed: {error}");
                break;
            }
            self.shared.waker.is_awake();
            for event in &ready {
                if event.token() != WAKER {
                    self.is_ready(event.token().0, event.is_readable(), event.is_writable());
                }
            }
        }
        let now = Instant::now();
        for at in 0..self.connections.len() {
            self.node.disconnected(at, now);
        }
    }

    /// Handles everything that is pending. Time is judged last, once what has been received is known.
    fn turn(&mut self, now: Instant) {
        let changes = std::mem::take(&mut *lock(&self.shared.interest));
        for change in changes {
            self.node.on_interest(change, now, &mut self.actions);
        }
        self.act(now);
        for at in 0..self.connections.len() {
            self.progress(at, now);
            self.read(at, now);
            let room = self.connections[at].room();
            self.node.send_queued(at, room, now, &mut self.actions);
        }
        self.node.on_time(now, &mut self.actions);
        self.act(now);
        for at in 0..self.connections.len() {
            self.write(at, now);
        }
    }

    fn has_work(&self) -> bool {
        let has_queued = |(at, connection): (usize, &Connection)| {
            connection.room() > 0
                && self.node.takes(at)
                && !self.shared.servers[at].outgoing.is_empty()
        };
        self.connections.iter().any(Connection::has_work)
            || self.connections.iter().enumerate().any(has_queued)
            || !lock(&self.shared.interest).is_empty()
    }

    fn next_due(&self, now: Instant) -> Instant {
        let connections = self.connections.iter().filter_map(Connection::next_due);
        let stop_by = *lock(&self.shared.stop_by);
        connections
            .chain(stop_by)
            .fold(self.node.next_due(now), Instant::min)
    }

    /// Whether the app has stopped, and everything that could be sent was.
    fn has_finished(&mut self, now: Instant) -> bool {
        let Some(stop_by) = *lock(&self.shared.stop_by) else {
            return false;
        };
        let mut servers = self.shared.servers.iter().zip(&self.connections);
        let has_sent = servers.all(|(server, connection)| {
            !connection.is_open() || (server.outgoing.is_empty() && !connection.has_unsent())
        });
        if has_sent {
            self.node.stop(now, &mut self.actions);
            self.act(now);
            for at in 0..self.connections.len() {
                self.write(at, now);
            }
        }
        now >= stop_by || (has_sent && self.node.unanswered() == 0)
    }

    fn is_ready(&mut self, at: usize, is_readable: bool, is_writable: bool) {
        match &mut self.connections[at].state {
            State::Open {
                readable, writable, ..
            } => {
                *readable |= is_readable;
                *writable |= is_writable;
            }
            State::Connecting { .. } => self.check_connected(at),
            State::Waiting(_) | State::Resolving(_) => {}
        }
    }

    /// Connects, or goes on with it.
    fn progress(&mut self, at: usize, now: Instant) {
        match &mut self.connections[at].state {
            State::Waiting(until) if *until <= now => self.resolve(at, now),
            State::Resolving(resolved) => match resolved.try_recv() {
                Ok(Ok(resolved)) => {
                    if let BrokerTarget::Primary(_, address) = &mut self.connections[at].target {
                        *address = resolved.primary;
                    }
                    self.connect(at, resolved.addresses, None, now);
                }
                Ok(Err(error)) => self.lose(at, &error.into(), now),
                Err(TryRecvError::Disconnected) => {
                    let error = io::Error::other("its name could not be resolved");
                    self.lose(at, &error.into(), now);
                }
                Err(TryRecvError::Empty) => {}
            },
            State::Connecting { until, others, .. } if *until <= now => {
                let others = std::mem::take(others);
                self.connect(at, others, Some(Lost::Timeout(CONNECT_TIMEOUT)), now);
            }
            State::Open {
                socket,
                ready_by: Some(until),
                ..
            } if *until <= now => {
                let timeout = socket.timeout(CONNECT_TIMEOUT);
                self.lose(at, &timeout, now);
            }
            _ => {}
        }
    }

    /// Looks the host up, or asks Sentinels, on a thread of its own, since that may take long.
    fn resolve(&mut self, at: usize, now: Instant) {
        let look_up: Box<dyn FnOnce() -> io::Result<Resolved> + Send> =
            match &self.connections[at].target {
                BrokerTarget::Servers(servers) => {
                    let address = servers[0].address.clone();
                    if let Ok(host) = address.host.parse::<IpAddr>() {
                        let addresses = [SocketAddr::new(host, address.port)].into();
                        self.connect(at, addresses, None, now);
                        return;
                    }
                    Box::new(move || Resolved::of_server(&address))
                }
                BrokerTarget::Primary(url, _) => {
                    let url = url.clone();
                    Box::new(move || Resolved::of_primary(&url))
                }
            };
        let (sender, receiver) = mpsc::channel();
        let waker = self.shared.waker.clone();
        let look_up = move || {
            let found = look_up();
            // The link may have stopped.
            let _ = sender.send(found);
            LinkWaker::wake_always(&waker);
        };
        let started = thread::Builder::new()
            .name("humphrey_ws resolver".into())
            .spawn(look_up);
        match started {
            Ok(_) => self.connections[at].state = State::Resolving(receiver),
            Err(error) => self.lose(at, &error.into(), now),
        }
    }

    /// Connects to the first of these addresses that can be tried.
    fn connect(
        &mut self,
        at: usize,
        mut addresses: VecDeque<SocketAddr>,
        mut last: Option<Lost>,
        now: Instant,
    ) {
        while let Some(address) = addresses.pop_front() {
            let registered = TcpStream::connect(address).and_then(|mut stream| {
                let both = Interest::READABLE | Interest::WRITABLE;
                let registry = self.poll.registry();
                registry.register(&mut stream, Token(at), both)?;
                Ok(stream)
            });
            match registered {
                Ok(stream) => {
                    self.connections[at].state = State::Connecting {
                        stream,
                        others: addresses,
                        until: now + CONNECT_TIMEOUT,
                    };
                    return;
                }
                Err(error) => last = Some(error.into()),
            }
        }
        let none = || io::Error::other("its name has no address").into();
        self.lose(at, &last.unwrap_or_else(none), now);
    }

    /// Finds out whether a connection has been established (its socket is ready).
    fn check_connected(&mut self, at: usize) {
        let now = Instant::now();
        let waiting = State::Waiting(now);
        let connection = &mut self.connections[at];
        let State::Connecting {
            stream,
            others,
            until,
        } = std::mem::replace(&mut connection.state, waiting)
        else {
            return;
        };
        let failed = match stream.take_error() {
            Ok(None) => None,
            Ok(Some(error)) | Err(error) => Some(error),
        };
        if let Some(error) = failed {
            self.connect(at, others, Some(error.into()), now);
            return;
        }
        if stream.peer_addr().is_err() {
            // Spurious: it is still connecting.
            connection.state = State::Connecting {
                stream,
                others,
                until,
            };
            return;
        }
        // Without TCP_NODELAY the kernel may hold back a command. If this fails the broker is gone, which the next read
        // shows.
        let _ = stream.set_nodelay(true);
        connection.unsent.clear();
        connection.broker.connect(connection.unsent.end());
        connection.state = State::Open {
            socket: Socket::Plain(stream),
            readable: true,
            writable: true,
            ready_by: Some(now + CONNECT_TIMEOUT),
        };
        if let Err(lost) = connection.begin_tls() {
            self.lose(at, &lost, now);
        }
    }

    fn read(&mut self, at: usize, now: Instant) {
        for _ in 0..READS_PER_TURN {
            let connection = &mut self.connections[at];
            let State::Open {
                socket, readable, ..
            } = &mut connection.state
            else {
                return;
            };
            if !*readable {
                return;
            }
            let received = match socket.read(&mut self.buffer) {
                Ok(Some(len)) => {
                    if len < self.buffer.len() && socket.is_drained_by_short_read() {
                        *readable = false;
                    }
                    let bytes = &self.buffer[..len];
                    let received = connection.broker.received(bytes, &mut self.events);
                    received.map_err(Lost::from)
                }
                Ok(None) => {
                    *readable = false;
                    return;
                }
                Err(lost) => Err(lost),
            };
            let mut events = std::mem::take(&mut self.events);
            for event in events.drain(..) {
                if matches!(event, Event::Ready(_)) {
                    self.is_established(at);
                }
                self.node.on_event(at, event, now, &mut self.actions);
            }
            self.events = events;
            self.act(now);
            self.note_message_bytes_max(at);
            let begun = received.and_then(|()| self.connections[at].begin_tls());
            if let Err(lost) = begun {
                self.lose(at, &lost, now);
                return;
            }
        }
    }

    fn is_established(&mut self, at: usize) {
        let connection = &mut self.connections[at];
        connection.backoff = BACKOFF_MIN;
        if let State::Open { ready_by, .. } = &mut connection.state {
            *ready_by = None;
        }
        info!("connected to the broker {}", connection.target);
    }

    /// Tells other threads the longest envelope that a server takes.
    fn note_message_bytes_max(&self, at: usize) {
        let max = self.connections[at].broker.message_bytes_max();
        let noted = &self.shared.servers[at].message_bytes_max;
        // It rarely changes, and a store would evict the caches of the threads that read it.
        if noted.load(Relaxed) != max {
            noted.store(max, Relaxed);
        }
    }

    fn write(&mut self, at: usize, now: Instant) {
        let connection = &mut self.connections[at];
        if connection.is_open() {
            connection.broker.flush(connection.unsent.end());
        }
        if let State::Open {
            socket, writable, ..
        } = &mut connection.state
            && *writable
        {
            match socket.write(&mut connection.unsent) {
                Ok(takes_more) => *writable = takes_more,
                Err(lost) => self.lose(at, &lost, now),
            }
        }
    }

    /// Does what the node wants.
    fn act(&mut self, now: Instant) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::Command(at, command) => {
                    let connection = &mut self.connections[at];
                    // Otherwise the connection was lost meanwhile; the node has counted what that means.
                    if let State::Open { ready_by: None, .. } = connection.state {
                        connection.broker.command(command, connection.unsent.end());
                    }
                }
                Action::Reconnect(at) => self.lose(at, &Lost::Silent, now),
            }
        }
        self.actions = actions;
    }

    /// Gives a connection, or an attempt to connect, up.
    fn lose(&mut self, at: usize, lost: &Lost, now: Instant) {
        self.node.disconnected(at, now);
        let connection = &mut self.connections[at];
        // Dropping the stream closes it, and removes it from the poll.
        connection.state = State::Waiting(now + connection.backoff);
        connection.unsent.clear();
        connection.backoff = match lost.is_lasting() {
            true => BACKOFF_LASTING,
            false => (connection.backoff * 2).min(BACKOFF_MAX),
        };
        limited!(
            connection.logged,
            warning,
            "the broker {} can't be reached: {lost}; this node serves its own clients meanwhile, and tries again",
            connection.target
        );
        connection.target.turn_to_next();
    }
}
