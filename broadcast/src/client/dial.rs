//! How a connection is had: address, TCP, handshake. Waits for each, but not for ever, and not where all is to end.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use super::handshake::{Answer, Request, answer};
use super::session::End;
use super::target::Target;
use super::world::World;

/// How long all of it may take.
const DIAL_WAIT: Duration = Duration::from_secs(20);

/// How long one of several addresses may take.
const ADDRESS_WAIT: Duration = Duration::from_secs(5);

const READ_BYTES: usize = 4 << 10;

/// A connection whose handshake is done.
pub(super) struct Opened {
    pub(super) stream: TcpStream,
    /// What has come behind the handshake already.
    pub(super) rest: Vec<u8>,
    pub(super) subprotocol: Option<&'static str>,
}

pub(super) fn dial(world: &mut World, target: &Target, request: &Request) -> Result<Opened, End> {
    let by = Instant::now() + DIAL_WAIT;
    let addresses = resolve(world, target, by)?;
    let mut stream = connect_to_one(world, &addresses, by)?;
    let mut unsent = request.bytes.as_slice();
    let mut got = Vec::new();
    loop {
        while !unsent.is_empty() {
            match stream.write(unsent) {
                Ok(n) => unsent = &unsent[n..],
                Err(error) if would_block(&error) => break,
                Err(error) => return Err(no_answer(&error)),
            }
        }
        let is_end = loop {
            let filled = got.len();
            got.resize(filled + READ_BYTES, 0);
            let read = stream.read(&mut got[filled..]);
            got.truncate(filled + read.as_ref().copied().unwrap_or(0));
            match read {
                Ok(0) => break true,
                // A server may send frames at once, and without end.
                Ok(_) if got.len() > super::handshake::HEAD_BYTES_MAX => break false,
                Ok(_) => {}
                Err(error) if would_block(&error) => break false,
                Err(error) => return Err(no_answer(&error)),
            }
        };
        match answer(request, &got, is_end).map_err(End::Foreign)? {
            Some(Answer::Accepted {
                head_bytes,
                subprotocol,
            }) => {
                got.drain(..head_bytes);
                return Ok(Opened {
                    stream,
                    rest: got,
                    subprotocol,
                });
            }
            Some(Answer::Refused {
                status,
                says,
                retry_after,
            }) => {
                return Err(End::Refused {
                    status,
                    says,
                    retry_after,
                });
            }
            None if is_end => {
                return Err(End::Lost("the server has hung up in the handshake".into()));
            }
            None => world.wait_for_progress(by)?,
        }
    }
}

fn resolve(world: &mut World, target: &Target, by: Instant) -> Result<Vec<SocketAddr>, End> {
    if let Ok(ip) = target.host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, target.port)]);
    }
    // The system's resolver takes its time, and can't be interrupted.
    let (sender, found) = channel();
    let waker = world.waker();
    let (host, port) = (target.host.clone(), target.port);
    let resolver = thread::Builder::new().name("resolver".into());
    let spawned = resolver.spawn(move || {
        let addresses = (host.as_str(), port).to_socket_addrs();
        let _ = sender.send(addresses.map(Vec::from_iter));
        let _ = waker.wake();
    });
    spawned.map_err(|error| End::Lost(error.to_string()))?;
    let unknown = |why: &str| End::Lost(format!("{:?} has no address: {why}", target.host));
    loop {
        match found.try_recv() {
            Ok(Ok(addresses)) if addresses.is_empty() => return Err(unknown("none is known")),
            Ok(Ok(addresses)) => return Ok(addresses),
            Ok(Err(error)) => return Err(unknown(&error.to_string())),
            Err(TryRecvError::Disconnected) => return Err(unknown("the resolver has failed")),
            Err(TryRecvError::Empty) => world.wait_for_progress(by)?,
        }
    }
}

/// The first that can be had; if none can, what the last one says.
fn connect_to_one(
    world: &mut World,
    addresses: &[SocketAddr],
    by: Instant,
) -> Result<TcpStream, End> {
    let mut last = End::Lost("no address".into());
    for (n, address) in addresses.iter().enumerate() {
        let is_last = n + 1 == addresses.len();
        let by = if is_last {
            by
        } else {
            by.min(Instant::now() + ADDRESS_WAIT)
        };
        match connect(world, *address, by) {
            Ok(stream) => return Ok(stream),
            Err(End::Lost(why)) => {
                last = End::Lost(format!("can't connect to {address}: {why}"));
            }
            Err(end) => return Err(end),
        }
    }
    Err(last)
}

fn connect(world: &mut World, address: SocketAddr, by: Instant) -> Result<TcpStream, End> {
    let lost = |error: io::Error| End::Lost(error.to_string());
    let mut stream = TcpStream::connect(address).map_err(lost)?;
    world.register(&mut stream).map_err(lost)?;
    loop {
        if let Some(error) = stream.take_error().map_err(lost)? {
            return Err(lost(error));
        }
        match stream.peer_addr() {
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::NotConnected => {}
            Err(error) => return Err(lost(error)),
        }
        world.wait_for_progress(by)?;
    }
    // Messages are small, and each is wanted at once.
    stream.set_nodelay(true).map_err(lost)?;
    Ok(stream)
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn no_answer(error: &io::Error) -> End {
    End::Lost(format!("the server does not answer: {error}"))
}
