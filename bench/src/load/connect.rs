//! Opens many WebSocket connections in batches: all requests of a batch are sent before responses are read.

use std::io;
use std::iter;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::sockopt::{
    Timeout, set_socket_linger, set_socket_recv_buffer_size, set_socket_timeout, set_tcp_nodelay,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, recv, send,
    socket_with, sockopt,
};

use crate::wire;

/// Handshakes per batch: fewer than the backlog of any listener.
pub(super) const BATCH: usize = 64;
/// Connections per source address, which has some 28,000 ephemeral ports.
pub(crate) const PER_SOURCE: usize = 20_000;
/// The first of the [`PER_SOURCE`] ports of [`ConnectionSpec::source`], and the ports that replace those in use.
const SOURCE_PORT_FIRST: u16 = 10_000;
const SPARE_SOURCE_PORTS: Range<u16> = 30_000..32_768;
const PATIENCE: Duration = Duration::from_secs(10);
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The offer of compression that Chromium and Firefox send.
const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";

/// Receive buffer of connections that will not read, in bytes.
const SMALL: usize = 4096;

/// How a connection is opened.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionSpec {
    pub(crate) path: String,
    /// Whether its receive buffer is small, so that it fills up soon.
    pub(crate) small: bool,
    /// Whether it offers compression. If so, the server must accept it.
    pub(crate) offers: bool,
    /// The subprotocol that it offers.
    pub(crate) subprotocol: Option<&'static str>,
    /// The source address, for up to [`PER_SOURCE`] connections; by default the kernel chooses it. They take no ephemeral
    /// ports, and are reset when they are closed, so that other programs still find ports to listen on.
    pub(crate) source: Option<Ipv4Addr>,
    /// Whether it requests an event stream instead of a WebSocket.
    pub(crate) event_stream: bool,
}

impl Default for ConnectionSpec {
    fn default() -> Self {
        Self {
            path: "/".into(),
            small: false,
            offers: false,
            subprotocol: None,
            source: None,
            event_stream: false,
        }
    }
}

/// Sends everything through a socket, which may be nonblocking.
pub(crate) fn send_all(socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    let since = Instant::now();
    while !rest.is_empty() {
        match send(socket, rest, SendFlags::NOSIGNAL) {
            Ok(sent) => rest = &rest[sent..],
            // The server reads on, since it can buffer the deliveries of a batch.
            Err(Errno::AGAIN) if since.elapsed() < PATIENCE => std::thread::yield_now(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Receives once. Returns `None` if nothing arrives: at once if the socket is nonblocking, or else after its timeout.
pub(crate) fn receive_once(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        return match recv(socket, &mut *buffer, RecvFlags::empty()) {
            Ok((0, _)) => Err(io::Error::other("the server closed the connection")),
            Ok((read, _)) => Ok(Some(read)),
            Err(Errno::AGAIN) => Ok(None),
            Err(Errno::INTR) => continue,
            Err(error) => Err(error.into()),
        };
    }
}

/// Opens `count` nonblocking connections. `from` connections were opened before and use up source ports. What follows the
/// response of an event stream is dropped: it begins with a comment or with the delay of a reconnect, not with an event.
pub(crate) fn open(
    address: SocketAddrV4,
    from: usize,
    count: usize,
    spec: impl Fn(usize) -> ConnectionSpec,
) -> io::Result<Vec<OwnedFd>> {
    let opened = open_with_messages(address, from, count, &spec)?;
    opened
        .into_iter()
        .enumerate()
        .map(
            |(at, (socket, received))| match received.is_empty() || spec(at).event_stream {
                true => Ok(socket),
                false => Err(io::Error::other(
                    "unexpected bytes follow the handshake response",
                )),
            },
        )
        .collect()
}

/// Opens connections, which may receive messages immediately after the handshake. Returns each with the bytes that followed
/// its handshake response.
pub(crate) fn open_with_messages(
    address: SocketAddrV4,
    from: usize,
    count: usize,
    spec: impl Fn(usize) -> ConnectionSpec,
) -> io::Result<Vec<(OwnedFd, Vec<u8>)>> {
    let accept = accept();
    let mut opened = Vec::with_capacity(count);
    let mut sockets: Vec<(OwnedFd, ConnectionSpec)> = Vec::with_capacity(count.min(BATCH));
    while opened.len() < count {
        let first = opened.len();
        for at in first..count.min(first + BATCH) {
            let spec = spec(at);
            let socket = socket(address, from + at, &spec)?;
            send_in_one_piece(&socket, request(address, &spec).as_bytes())?;
            sockets.push((socket, spec));
        }
        for (at, (socket, spec)) in sockets.drain(..).enumerate() {
            let received = read_response(|answer| receive(&socket, answer), &accept, &spec)
                .map_err(|e| io::Error::new(e.kind(), format!("handshake {}: {e}", first + at)))?;
            ioctl_fionbio(&socket, true)?;
            opened.push((socket, received));
        }
    }
    Ok(opened)
}

/// The request of a WebSocket handshake, or of an event stream.
pub(crate) fn request(address: SocketAddrV4, spec: &ConnectionSpec) -> String {
    if spec.event_stream {
        return format!(
            "GET {} HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n\r\n",
            spec.path
        );
    }
    let subprotocol = spec.subprotocol.map_or_else(String::new, |name| {
        format!("Sec-WebSocket-Protocol: {name}\r\n")
    });
    format!(
        "GET {} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{}{subprotocol}\r\n",
        spec.path,
        if spec.offers { OFFER } else { "" }
    )
}

/// Connects a blocking socket with timeouts. `at` connections were opened before and use up source ports.
pub(crate) fn socket(
    address: SocketAddrV4,
    at: usize,
    spec: &ConnectionSpec,
) -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    if spec.small {
        set_socket_recv_buffer_size(&socket, SMALL)?;
    }
    if let Some(source) = spec.source {
        set_socket_linger(&socket, Some(Duration::ZERO))?;
        bind_below_ephemeral_ports(&socket, source, at)?;
    } else if at >= PER_SOURCE {
        let host = u8::try_from(1 + at / PER_SOURCE)
            .map_err(|_| io::Error::other("too many connections"))?;
        bind(
            &socket,
            &SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, host), 0),
        )?;
    }
    connect(&socket, &address)
        .map_err(|e| io::Error::new(e.kind(), format!("connection {at} to {address}: {e}")))?;
    set_tcp_nodelay(&socket, true)?;
    Ok(socket)
}

/// Starts to connect, and does not wait. The connection is reset when it is closed, so that it leaves no port occupied.
/// `source` is a source address as [`ConnectionSpec::source`], and the number of connections that were opened from there
/// before.
pub(crate) fn begin(
    address: SocketAddrV4,
    source: Option<(Ipv4Addr, usize)>,
) -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    set_socket_linger(&socket, Some(Duration::ZERO))?;
    set_tcp_nodelay(&socket, true)?;
    if let Some((source, at)) = source {
        bind_below_ephemeral_ports(&socket, source, at)?;
    }
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Sends the request through a socket of [`begin`] that has become writable, or returns why it has not connected.
pub(crate) fn send_request(socket: &OwnedFd, request: &str) -> io::Result<()> {
    sockopt::socket_error(socket)??;
    send_in_one_piece(socket, request.as_bytes())
}

/// Sends a request through a new socket, whose send buffer is many times larger.
pub(crate) fn send_in_one_piece(socket: &OwnedFd, request: &[u8]) -> io::Result<()> {
    match send(socket, request, SendFlags::NOSIGNAL)? == request.len() {
        true => Ok(()),
        false => Err(io::Error::other("a request was not sent in one piece")),
    }
}

/// Binds the connection with the number `at` of a source address.
fn bind_below_ephemeral_ports(socket: &OwnedFd, source: Ipv4Addr, at: usize) -> io::Result<()> {
    let own = (at < PER_SOURCE).then(|| SOURCE_PORT_FIRST + at as u16);
    let own = own.ok_or_else(|| io::Error::other("too many connections of one source address"))?;
    for port in iter::once(own).chain(SPARE_SOURCE_PORTS) {
        match bind(socket, &SocketAddrV4::new(source, port)) {
            // Another program listens on this port of all addresses.
            Err(Errno::ADDRINUSE) => {}
            bound => return Ok(bound?),
        }
    }
    Err(io::Error::other(format!("{source} has no free port left")))
}

/// Reads the response, which must be valid, and must accept compression exactly if the client offered it. Returns the bytes
/// after the response.
pub(super) fn read_response(
    mut read: impl FnMut(&mut Vec<u8>) -> io::Result<()>,
    accept: &str,
    spec: &ConnectionSpec,
) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let end = loop {
        read(&mut answer)?;
        match wire::head_end(&answer) {
            Some(end) => break end,
            None if answer.len() > 16 * 1024 => {
                return Err(io::Error::other("the response is too long"));
            }
            None => {}
        }
    };
    match spec.event_stream {
        true => check_event_stream(&answer[..end])?,
        false => check_response(&answer[..end], accept, spec.offers)?,
    }
    Ok(answer.split_off(end))
}

/// Appends what a blocking socket receives.
fn receive(socket: &OwnedFd, answer: &mut Vec<u8>) -> io::Result<()> {
    let mut part = [0; 1024];
    let (read, _) = recv(socket, &mut part[..], RecvFlags::empty())?;
    if read == 0 {
        return Err(io::Error::other("the response is incomplete"));
    }
    answer.extend_from_slice(&part[..read]);
    Ok(())
}

/// Checks the head of a response that begins an event stream.
fn check_event_stream(head: &[u8]) -> io::Result<()> {
    let head = String::from_utf8_lossy(head);
    match head.split(' ').nth(1) {
        Some("200") if wire::header(&head, "content-type") == Some("text/event-stream") => Ok(()),
        _ => Err(io::Error::other(format!("no event stream: {head}"))),
    }
}

/// Checks the head of a response like [`open`].
pub(crate) fn check_response(head: &[u8], accept: &str, offers: bool) -> io::Result<()> {
    let head = String::from_utf8_lossy(head);
    if head.split(' ').nth(1) != Some("101")
        || wire::header(&head, "sec-websocket-accept") != Some(accept)
    {
        return Err(io::Error::other(format!(
            "refused: {}",
            head.lines().next().unwrap_or_default()
        )));
    }
    let agreed = wire::header(&head, "sec-websocket-extensions");
    if agreed.is_some_and(|agreed| agreed.starts_with("permessage-deflate")) != offers {
        return Err(io::Error::other(format!(
            "the client {} compression, but the extensions of the response are {agreed:?}",
            if offers { "offered" } else { "did not offer" }
        )));
    }
    Ok(())
}

/// The `Sec-WebSocket-Accept` of every response.
pub(crate) fn accept() -> String {
    wire::accept_key(KEY)
}
