//! How a connection is had: address, TCP, handshake. Waits for each, but not for ever, and not where all is to end.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::mpsc::{TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use humphrey_ws::websocket_client::{
    Accepted, Handshake, HandshakeError, HandshakeRequest, ServerUrl,
};
use mio::net::TcpStream;

use super::end::End;
use super::failures::Failure;
use super::world::World;

/// How long all of it may take.
const DIAL_WAIT: Duration = Duration::from_secs(20);

/// How long one of several addresses may take.
const ADDRESS_WAIT: Duration = Duration::from_secs(5);

/// How long the body of a refusal is waited for: its head says what matters.
const REFUSAL_WAIT: Duration = Duration::from_secs(1);

/// How long a server may ask to be left alone, at most.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

const READ_BYTES: usize = 4 << 10;

/// A connection whose handshake is done.
pub(super) struct Opened {
    pub(super) stream: TcpStream,
    pub(super) accepted: Accepted,
}

pub(super) fn dial(world: &mut World, request: &HandshakeRequest) -> Result<Opened, End> {
    let by = Instant::now() + DIAL_WAIT;
    let handshake = request.start();
    let mut handshake = handshake.map_err(|error| End::failed(Failure::System, error))?;
    let addresses = resolve(world, request.url(), by)?;
    let mut stream = connect_to_one(world, &addresses, by)?;
    match shake_hands(world, &mut stream, &mut handshake, by)? {
        Ok(accepted) => Ok(Opened { stream, accepted }),
        Err(error) => Err(refused(&error)),
    }
}

/// Sends the request and reads the answer. The outer error: it was not waited for, or nothing came in time.
fn shake_hands(
    world: &mut World,
    stream: &mut TcpStream,
    handshake: &mut Handshake,
    mut by: Instant,
) -> Result<Result<Accepted, HandshakeError>, End> {
    let mut sent = 0;
    let mut is_refused = false;
    let mut buffer = [0; READ_BYTES];
    loop {
        while sent < handshake.request().len() {
            match stream.write(&handshake.request()[sent..]) {
                Ok(n) => sent += n,
                Err(error) if would_block(&error) => break,
                // A server may refuse, and hang up, before it has read all of it: its answer counts.
                Err(_) => sent = handshake.request().len(),
            }
        }
        loop {
            match stream.read(&mut buffer) {
                Err(error) if would_block(&error) => break,
                Ok(0) | Err(_) => return Ok(Err(handshake.finish())),
                Ok(n) => match handshake.receive(&buffer[..n]) {
                    Ok(None) => {}
                    Ok(Some(accepted)) => return Ok(Ok(accepted)),
                    Err(error) => return Ok(Err(error)),
                },
            }
        }
        if handshake.is_refused() && !is_refused {
            is_refused = true;
            by = by.min(Instant::now() + REFUSAL_WAIT);
        }
        match world.wait_for_progress(by, Failure::NoAnswer) {
            Err(End::Failed { .. }) if is_refused => return Ok(Err(handshake.finish())),
            waited => waited?,
        }
    }
}

fn refused(error: &HandshakeError) -> End {
    let (failure, retry_after) = match error {
        HandshakeError::Refused(refusal) => {
            let retry_after = refusal.retry_after().unwrap_or_default();
            (Failure::Status(refusal.status()), retry_after)
        }
        HandshakeError::HungUp => (Failure::HungUp, Duration::ZERO),
        _ => (Failure::NotWebSocket, Duration::ZERO),
    };
    End::Failed {
        failure,
        says: error.to_string(),
        retry_after: retry_after.min(RETRY_AFTER_MAX),
    }
}

fn resolve(world: &mut World, url: &ServerUrl, by: Instant) -> Result<Vec<SocketAddr>, End> {
    // The system's resolver takes its time, and can't be interrupted.
    let (sender, found) = channel();
    let waker = world.waker();
    let resolver = thread::Builder::new().name("resolver".into());
    let spawned = {
        let url = url.clone();
        resolver.spawn(move || {
            let _ = sender.send(url.addresses());
            let _ = waker.wake();
        })
    };
    spawned.map_err(|error| End::failed(Failure::System, error))?;
    let unknown = |why: &str| {
        let why = format!("{:?} has no address: {why}", url.host());
        End::failed(Failure::NoAddress, why)
    };
    loop {
        match found.try_recv() {
            Ok(Ok(addresses)) => return Ok(addresses),
            Ok(Err(error)) => return Err(unknown(&error.to_string())),
            Err(TryRecvError::Disconnected) => return Err(unknown("the resolver has failed")),
            Err(TryRecvError::Empty) => world.wait_for_progress(by, Failure::NoAddress)?,
        }
    }
}

/// The first that can be had. If none can, what the last one says of those that may yet be had.
fn connect_to_one(
    world: &mut World,
    addresses: &[SocketAddr],
    by: Instant,
) -> Result<TcpStream, End> {
    let mut last = End::failed(Failure::NoAddress, "the host has no address");
    let mut can_pass = false;
    for (n, address) in addresses.iter().enumerate() {
        let is_last = n + 1 == addresses.len();
        let by = if is_last {
            by
        } else {
            by.min(Instant::now() + ADDRESS_WAIT)
        };
        match connect(world, *address, by) {
            Ok(stream) => return Ok(stream),
            Err(End::Failed { failure, says, .. }) => {
                let is_bad = failure == Failure::BadAddress;
                if !is_bad || !can_pass {
                    last = End::failed(failure, format!("can't connect to {address}: {says}"));
                }
                can_pass |= !is_bad;
            }
            Err(end) => return Err(end),
        }
    }
    Err(last)
}

fn connect(world: &mut World, address: SocketAddr, by: Instant) -> Result<TcpStream, End> {
    let failed = |error: io::Error| match error.kind() {
        ErrorKind::InvalidInput if lacks_zone(address) => {
            let why = format!("{error}: it needs a zone, as in ws://[fe80::1%25eth0]/");
            End::failed(Failure::BadAddress, why)
        }
        ErrorKind::InvalidInput => End::failed(Failure::BadAddress, error),
        _ => End::failed(Failure::NotReached, error),
    };
    let mut stream = TcpStream::connect(address).map_err(failed)?;
    let registered = world.register(&mut stream);
    registered.map_err(|error| End::failed(Failure::System, error))?;
    loop {
        if let Some(error) = stream.take_error().map_err(failed)? {
            return Err(failed(error));
        }
        match stream.peer_addr() {
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::NotConnected => {}
            // Some systems say so of a connection that was refused at once.
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                return Err(End::failed(Failure::NotReached, error));
            }
            Err(error) => return Err(failed(error)),
        }
        world.wait_for_progress(by, Failure::NotReached)?;
    }
    // Messages are small, and each is wanted at once. Where that can't be set, they are only later.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// A link-local address means nothing without the interface that it is reached by (RFC 4007 §6).
fn lacks_zone(address: SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0)
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
