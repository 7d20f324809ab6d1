//! Opens a connection: name resolution, TCP, TLS if the URL requires it, and the WebSocket handshake. Each step has a deadline and
//! is interrupted by a stop.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc::{TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use humphrey_ws::websocket_client::{
    Accepted, Handshake, HandshakeError, HandshakeRequest, ServerUrl,
};
use mio::net::TcpStream;

use super::end::End;
use super::event_loop::EventLoop;
use super::failures::Failure;
use super::stream::ClientStream;
use super::trust::Trust;

/// Deadline of the whole attempt.
const DIAL_WAIT: Duration = Duration::from_secs(20);

/// Deadline of one of several addresses.
const ADDRESS_WAIT: Duration = Duration::from_secs(5);

/// How long to wait for the body of a refusal, whose head is already known.
const REFUSAL_WAIT: Duration = Duration::from_secs(1);

const READ_BYTES: usize = 4 << 10;

/// A connection after its handshake.
pub(super) struct OpenedConnection {
    pub(super) stream: ClientStream,
    pub(super) accepted: Accepted,
}

pub(super) fn dial(
    event_loop: &mut EventLoop,
    request: &HandshakeRequest,
    unix_socket: Option<&Path>,
    trust: &mut Trust,
) -> Result<OpenedConnection, End> {
    let deadline = Instant::now() + DIAL_WAIT;
    let handshake = request.start();
    let mut handshake = handshake.map_err(|error| End::failed(Failure::LocalError, error))?;
    let socket = match unix_socket {
        Some(path) => connect_unix(event_loop, path)?,
        None => {
            let addresses = resolve(event_loop, request.url(), deadline)?;
            connect_any(event_loop, &addresses, deadline)?
        }
    };
    let mut stream = trust.secure(event_loop, request.url(), socket, deadline)?;
    match perform_handshake(event_loop, &mut stream, trust, &mut handshake, deadline)? {
        Ok(accepted) => Ok(OpenedConnection { stream, accepted }),
        Err(error) => Err(refused(&error)),
    }
}

/// Sends the request and reads the response. The outer error is a timeout, a stop or a refusal by TLS, the inner one the server's.
fn perform_handshake(
    event_loop: &mut EventLoop,
    stream: &mut ClientStream,
    trust: &mut Trust,
    handshake: &mut Handshake,
    mut deadline: Instant,
) -> Result<Result<Accepted, HandshakeError>, End> {
    let mut sent = 0;
    let mut is_refused = false;
    let mut buffer = [0; READ_BYTES];
    loop {
        while sent < handshake.request().len() {
            match stream.write(&handshake.request()[sent..]) {
                Ok(n) => sent += n,
                Err(error) if would_block(&error) => break,
                // A server may refuse and close before it has read the whole request; its response can still be read.
                Err(_) => sent = handshake.request().len(),
            }
        }
        loop {
            match stream.read(&mut buffer) {
                Err(error) if would_block(&error) => break,
                Ok(0) => return Ok(Err(handshake.finish())),
                Err(error) => {
                    return match trust.refusal(&error) {
                        Some(end) if !handshake.is_refused() => Err(end),
                        _ => Ok(Err(handshake.finish())),
                    };
                }
                Ok(n) => match handshake.receive(&buffer[..n]) {
                    Ok(None) => {}
                    Ok(Some(accepted)) => return Ok(Ok(accepted)),
                    Err(error) => return Ok(Err(error)),
                },
            }
        }
        if handshake.is_refused() && !is_refused {
            is_refused = true;
            deadline = deadline.min(Instant::now() + REFUSAL_WAIT);
        }
        match event_loop.wait_for_socket(deadline, Failure::HandshakeTimeout) {
            Err(End::Failed { .. }) if is_refused => return Ok(Err(handshake.finish())),
            waited => waited?,
        }
    }
}

fn refused(error: &HandshakeError) -> End {
    let (failure, retry_after) = match error {
        HandshakeError::Refused(refusal) => {
            (Failure::Status(refusal.status()), refusal.retry_after())
        }
        HandshakeError::HungUp => (Failure::HandshakeAborted, None),
        _ => (Failure::NotWebSocket, None),
    };
    End::failed_until(failure, error, retry_after)
}

fn resolve(
    event_loop: &mut EventLoop,
    url: &ServerUrl,
    deadline: Instant,
) -> Result<Vec<SocketAddr>, End> {
    // The system's resolver blocks and cannot be interrupted.
    let (sender, found) = channel();
    let waker = event_loop.waker();
    let resolver = thread::Builder::new().name("resolver".into());
    let spawned = {
        let url = url.clone();
        resolver.spawn(move || {
            let _ = sender.send(url.addresses());
            let _ = waker.wake();
        })
    };
    spawned.map_err(|error| End::failed(Failure::LocalError, error))?;
    let unknown = |why: &str| {
        let why = format!("can't resolve {:?}: {why}", url.host());
        End::failed(Failure::HostUnresolved, why)
    };
    loop {
        match found.try_recv() {
            Ok(Ok(addresses)) => return Ok(addresses),
            Ok(Err(error)) => return Err(unknown(&error.to_string())),
            Err(TryRecvError::Disconnected) => {
                return Err(unknown("the resolver thread has failed"));
            }
            Err(TryRecvError::Empty) => {
                event_loop.wait_for_socket(deadline, Failure::HostUnresolved)?
            }
        }
    }
}

/// Connects to the first address that accepts. Otherwise returns the last error that is temporary, or the last one of
/// all.
fn connect_any(
    event_loop: &mut EventLoop,
    addresses: &[SocketAddr],
    deadline: Instant,
) -> Result<TcpStream, End> {
    let mut last = End::failed(Failure::HostUnresolved, "the host has no address");
    let mut is_temporary = false;
    for (n, address) in addresses.iter().enumerate() {
        let is_last = n + 1 == addresses.len();
        let deadline = if is_last {
            deadline
        } else {
            deadline.min(Instant::now() + ADDRESS_WAIT)
        };
        match connect(event_loop, *address, deadline) {
            Ok(stream) => return Ok(stream),
            Err(End::Failed {
                failure, message, ..
            }) => {
                let is_bad = failure == Failure::BadAddress;
                if !is_bad || !is_temporary {
                    last = End::failed(failure, format!("can't connect to {address}: {message}"));
                }
                is_temporary |= !is_bad;
            }
            Err(end) => return Err(end),
        }
    }
    Err(last)
}

fn connect(
    event_loop: &mut EventLoop,
    address: SocketAddr,
    deadline: Instant,
) -> Result<TcpStream, End> {
    let failed = |error: io::Error| match error.kind() {
        ErrorKind::InvalidInput if lacks_zone(address) => {
            let why =
                format!("{error}: a link-local address needs a zone, as in ws://[fe80::1%25eth0]/");
            End::failed(Failure::BadAddress, why)
        }
        ErrorKind::InvalidInput => End::failed(Failure::BadAddress, error),
        _ => End::failed(Failure::Unreachable, error),
    };
    let mut stream = TcpStream::connect(address).map_err(failed)?;
    let registered = event_loop.register(&mut stream);
    registered.map_err(|error| End::failed(Failure::LocalError, error))?;
    loop {
        if let Some(error) = stream.take_error().map_err(failed)? {
            return Err(failed(error));
        }
        match stream.peer_addr() {
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::NotConnected => {}
            // Some systems report a connection that was refused at once this way.
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                return Err(End::failed(Failure::Unreachable, error));
            }
            Err(error) => return Err(failed(error)),
        }
        event_loop.wait_for_socket(deadline, Failure::Unreachable)?;
    }
    // Best effort: without it, small messages are delayed.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Connects to a Unix socket, which succeeds or fails at once.
#[cfg(unix)]
fn connect_unix(event_loop: &mut EventLoop, path: &Path) -> Result<TcpStream, End> {
    use std::os::fd::OwnedFd;
    let failed = |error: io::Error| {
        let message = format!("can't connect to {}: {error}", path.display());
        let failure = match error.kind() {
            ErrorKind::InvalidInput => Failure::BadAddress,
            _ => Failure::Unreachable,
        };
        End::failed(failure, message)
    };
    let stream = mio::net::UnixStream::connect(path).map_err(failed)?;
    // The system calls that read, write, poll and shut down are the same for both kinds of socket, so one type serves for both.
    let mut stream = TcpStream::from(OwnedFd::from(stream));
    let registered = event_loop.register(&mut stream);
    registered.map_err(|error| End::failed(Failure::LocalError, error))?;
    Ok(stream)
}

#[cfg(not(unix))]
fn connect_unix(_: &mut EventLoop, _: &Path) -> Result<TcpStream, End> {
    unreachable!("there is no option that names a Unix socket")
}

/// A link-local address is meaningless without its interface (RFC 4007 §6).
fn lacks_zone(address: SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0)
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
