//! Models of connections that other threads hand over, and of accepting that resumes when a connection closes. Hub and
//! core are the real ones.

use std::io::{self, ErrorKind, IoSlice, Read};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use loom::thread;
use mio::Poll;
use mio::net::TcpStream;

use super::{Alarm, Reactor, Silent, check, hub};
use crate::engine::hub::Hub;
use crate::engine::model::command::NewConnection;
use crate::engine::parts::sync::{Mutex, lock};
use crate::metrics::Metrics;
use crate::transport::{self, OneByOne, ShardSocket, ShardTransport};

const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);
const LONG: Duration = Duration::from_secs(3600);

/// Makes a socket to hand over, and its other end.
fn socket() -> (NewConnection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let stream = std::net::TcpStream::from(OwnedFd::from(ours));
    let new_connection = NewConnection {
        stream: transport::plain(TcpStream::from_std(stream)),
        peer: PEER,
        peer_slot: None,
        upgraded: None,
    };
    (new_connection, theirs)
}

/// Returns the socket of a connection that was handed over, which is plain.
fn plain(socket: ShardSocket) -> TcpStream {
    #[cfg(feature = "__tls")]
    let ShardSocket::Plain(socket) = socket else {
        panic!("the connection has TLS");
    };
    socket
}

fn is_closed(mut theirs: &UnixStream) -> bool {
    match theirs.read(&mut [0]) {
        Ok(n) => n == 0,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

fn reactor(index: usize, hub: &Arc<Hub>, alarms: &[Arc<Alarm>]) -> Reactor<TcpStream> {
    let registry = Poll::new().unwrap().registry().try_clone().unwrap();
    Reactor::new(index, hub, Arc::new(Silent), registry, alarms)
}

/// Runs until the engine has stopped.
fn run(mut reactor: Reactor<TcpStream>) {
    while !reactor.core.is_finished() {
        reactor.turn(|core| {
            for new_connection in core.take_arrivals() {
                core.insert(
                    plain(new_connection.stream),
                    new_connection.peer,
                    None,
                    new_connection.upgraded,
                );
            }
        });
        reactor.sleep();
    }
    reactor.core.finish();
}

fn accepted(hub: &Hub) -> usize {
    let mut sum = Metrics::default();
    hub.add_shard_metrics(&mut sum);
    sum.accepted as usize
}

/// Returns the connections that count: those counted by the hub, and those counted by the shards.
fn counted(hub: &Hub) -> (usize, usize) {
    let loads = hub
        .shards
        .iter()
        .map(|handle| handle.load.load(Relaxed))
        .sum();
    (hub.connected() - 1, loads)
}

#[test]
fn loom_adopted_sockets_are_inserted_and_uncounted_at_the_end() {
    check(Some(2), || {
        let (hub, alarms) = hub(2, 1, Arc::new(Silent));
        let (one, one_end) = socket();
        let (two, two_end) = socket();
        let shards: Vec<_> = (0..2)
            .map(|index| {
                let reactor = reactor(index, &hub, &alarms);
                thread::spawn(move || run(reactor))
            })
            .collect();
        let other = {
            let hub = hub.clone();
            thread::spawn(move || hub.adopt(one))
        };
        hub.adopt(two);
        other.join().unwrap();
        // The stop is behind both in the mailbox, so both connections are inserted before.
        hub.stop(LONG);
        for shard in shards {
            shard.join().unwrap();
        }
        assert_eq!(accepted(&hub), 2);
        assert_eq!(counted(&hub), (0, 0));
        assert!(is_closed(&one_end) && is_closed(&two_end));
    });
}

#[test]
fn loom_socket_adopted_during_stop_is_inserted_or_dropped() {
    check(Some(2), || {
        let (hub, alarms) = hub(1, 1, Arc::new(Silent));
        let mut ends = Vec::new();
        let adopters: Vec<_> = (0..2)
            .map(|_| {
                let (new_connection, end) = socket();
                ends.push(end);
                let hub = hub.clone();
                thread::spawn(move || hub.adopt(new_connection))
            })
            .collect();
        let stopper = {
            let hub = hub.clone();
            thread::spawn(move || hub.stop(LONG))
        };
        run(reactor(0, &hub, &alarms));
        for thread in adopters {
            thread.join().unwrap();
        }
        stopper.join().unwrap();
        // No socket may stay open without a thread that will handle it.
        assert!(ends.iter().all(is_closed));
        let dropped = 2 - accepted(&hub);
        assert_eq!(counted(&hub), (0, dropped));
    });
}

/// A connection that holds the last file descriptor. Its client has disconnected.
struct Last(Arc<Mutex<usize>>);

impl Drop for Last {
    fn drop(&mut self) {
        *lock(&self.0) += 1;
    }
}

impl ShardTransport for Last {
    type Registry = ();
    type Writer = OneByOne;

    fn register(&mut self, (): &(), _: usize) -> io::Result<()> {
        Ok(())
    }

    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }

    fn write(&self, _: &[u8]) -> io::Result<usize> {
        Err(ErrorKind::BrokenPipe.into())
    }

    fn write_vectored(&mut self, _: &[IoSlice<'_>]) -> io::Result<usize> {
        Err(ErrorKind::BrokenPipe.into())
    }

    fn finish(&mut self) {}
}

/// Takes a descriptor, as `Listener::accept` does. Returns false if none is free: then accepting pauses.
fn accept(hub: &Hub, free: &Mutex<usize>) -> bool {
    loop {
        let taken = {
            let mut free = lock(free);
            let taken = *free > 0;
            *free -= usize::from(taken);
            taken
        };
        if taken {
            hub.accept_works();
        }
        if taken || !hub.accept_failed() {
            return taken;
        }
    }
}

#[test]
fn loom_closed_connection_resumes_accepting() {
    check(None, || {
        let (hub, alarms) = hub(2, 1, Arc::new(Silent));
        let free = Arc::new(Mutex::new(0));
        let shard = |index| Reactor::new(index, &hub, Arc::new(Silent), (), &alarms);
        let (mut first, mut second) = (shard(0), shard(1));
        let other = {
            let (hub, last) = (hub.clone(), Last(free.clone()));
            thread::spawn(move || {
                hub.shards[1].load.fetch_add(1, Relaxed);
                second.turn(|core| core.insert(last, PEER, None, None));
                assert_eq!(second.core.conns.len(), 0);
            })
        };
        let mut is_accepted = accept(&hub, &free);
        while !is_accepted {
            // Time does not pass in a model, so only a control message ends the pause.
            first.sleep();
            first.turn(|core| is_accepted = core.take_accept_again() && accept(&hub, &free));
        }
        other.join().unwrap();
        assert_eq!(*lock(&free), 0);
        assert_eq!(counted(&hub), (0, 0));
    });
}
