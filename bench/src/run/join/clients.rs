//! Clients that join the room, and check what they receive: the messages of the history in order, then each live one once.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::event::epoll::{EventData, EventFlags};

use super::Kind;
use super::server::{EVENTS, number_of};
use crate::frames::MessageReader;
use crate::load::connect::{self, ConnectionSpec};
use crate::poll;
use crate::run::procedure_frames::{Frame, SUBPROTOCOL, parse};

/// Bytes that a client reads at a time.
const READ_BYTES: usize = 256 << 10;

/// How clients connect, and what they have to receive.
#[derive(Clone, Copy)]
pub(super) struct Joining {
    pub(super) kind: Kind,
    pub(super) address: SocketAddrV4,
    pub(super) size: usize,
    /// Whether receive buffers are small, so that the server has to queue the messages that clients do not read.
    pub(super) small: bool,
}

struct Client {
    socket: OwnedFd,
    stream: Stream,
    /// The number of the message that has to arrive next.
    next: u64,
}

/// The bytes of a client that are not parsed yet.
enum Stream {
    Messages(MessageReader),
    /// An event stream, with the bytes of an incomplete event.
    Events(Vec<u8>),
}

/// All clients that have joined. Each has received its messages in order, and no other ones.
pub(super) struct Clients {
    joining: Joining,
    epoll: OwnedFd,
    clients: Vec<Client>,
    buffer: Vec<u8>,
}

impl Clients {
    pub(super) fn new(joining: Joining) -> io::Result<Self> {
        Ok(Self {
            joining,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            clients: Vec::new(),
            buffer: vec![0; READ_BYTES],
        })
    }

    /// Lets more clients join. Each must receive the message with the number `first` as its first one.
    pub(super) fn join(&mut self, count: usize, first: u64) -> io::Result<()> {
        let joining = self.joining;
        let from = self.clients.len();
        let spec = |_| ConnectionSpec {
            small: joining.small,
            subprotocol: (joining.kind == Kind::Ids).then_some(SUBPROTOCOL),
            path: match joining.kind {
                Kind::Events => EVENTS.into(),
                Kind::Frames | Kind::Ids => "/".into(),
            },
            event_stream: joining.kind == Kind::Events,
            ..ConnectionSpec::default()
        };
        for (socket, received) in connect::open_with_messages(joining.address, from, count, spec)? {
            let flags = EventFlags::IN | EventFlags::RDHUP;
            let at = EventData::new_u64(self.clients.len() as u64);
            epoll::add(&self.epoll, &socket, at, flags)?;
            let mut client = Client {
                socket,
                stream: match joining.kind {
                    Kind::Events => Stream::Events(Vec::new()),
                    Kind::Frames | Kind::Ids => Stream::Messages(MessageReader::default()),
                },
                next: first,
            };
            client.receive(&received, joining)?;
            self.clients.push(client);
        }
        Ok(())
    }

    /// Reads until every client has received all messages with numbers below `end`. Fails if a client receives more, or if
    /// the server disconnects one.
    pub(super) fn read_until(&mut self, end: u64) -> io::Result<()> {
        match self.read_rest(end)? {
            0 => Ok(()),
            cut_off => {
                let text = format!("the server has closed {cut_off} connections");
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, text))
            }
        }
    }

    /// Reads until every client that the server does not disconnect has received all messages with numbers below `end`.
    /// Returns the number of clients that the server has disconnected. Fails if a client receives more.
    pub(super) fn read_rest(&mut self, end: u64) -> io::Result<usize> {
        let since = Instant::now();
        let is_missing = |client: &&Client| client.next < end;
        let mut missing = self.clients.iter().filter(is_missing).count();
        let mut cut_off = 0;
        let mut events = Vec::with_capacity(256);
        while missing > 0 {
            if since.elapsed() > super::PATIENCE {
                let text = format!("{missing} clients have not received everything in time");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            poll::wait(&self.epoll, &mut events, Some(Duration::from_secs(1)))?;
            for event in events.drain(..) {
                let client = &mut self.clients[event.data.u64() as usize];
                let was_missing = client.next < end;
                match client.read(&mut self.buffer, self.joining) {
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                        epoll::delete(&self.epoll, &client.socket)?;
                        cut_off += 1;
                        missing -= usize::from(was_missing);
                    }
                    outcome => {
                        outcome?;
                        missing -= usize::from(was_missing && client.next >= end);
                    }
                }
            }
        }
        match self.clients.iter().any(|client| client.next > end) {
            true => Err(io::Error::other(
                "a client has received more messages than were due",
            )),
            false => Ok(cut_off),
        }
    }
}

impl Client {
    /// Reads what has arrived. An error of the kind `ConnectionAborted` means that the server has closed the connection.
    fn read(&mut self, buffer: &mut [u8], joining: Joining) -> io::Result<()> {
        let read = connect::receive_once(&self.socket, buffer);
        let read = read.map_err(|error| io::Error::new(io::ErrorKind::ConnectionAborted, error))?;
        match read {
            Some(read) => self.receive(&buffer[..read], joining),
            None => Ok(()),
        }
    }

    fn receive(&mut self, bytes: &[u8], joining: Joining) -> io::Result<()> {
        let next = &mut self.next;
        let mut take = |message: &[u8]| {
            let number = number_of(message, joining.size)?;
            if number != *next {
                let text = format!("message {number} where {next} was expected");
                return Err(io::Error::other(text));
            }
            *next += 1;
            Ok(())
        };
        match &mut self.stream {
            Stream::Messages(reader) if joining.kind == Kind::Ids => {
                reader.read(bytes, |payload| match parse(payload) {
                    Some(Frame::Room { message, .. }) => take(message),
                    other => Err(io::Error::other(format!("an unexpected frame: {other:?}"))),
                })
            }
            Stream::Messages(reader) => reader.read(bytes, take),
            Stream::Events(rest) => {
                rest.extend_from_slice(bytes);
                let used = read_events(rest, take)?;
                rest.drain(..used);
                Ok(())
            }
        }
    }
}

/// Passes the data of each complete event to `take`. Returns the number of bytes of the complete events.
fn read_events(bytes: &[u8], mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<usize> {
    let mut used = 0;
    while let Some(len) = bytes[used..].windows(2).position(|two| two == b"\n\n") {
        let event = &bytes[used..used + len];
        let lines = event.split(|byte| *byte == b'\n');
        for data in lines.filter_map(|line| line.strip_prefix(b"data: ")) {
            take(data)?;
        }
        used += len + 2;
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_up_to_an_incomplete_one() {
        let mut read = Vec::new();
        let bytes = b"retry: 9\n\nid: a-1\ndata: rain\n\n:\n\nid: a-2\ndata: sn";
        let used = read_events(bytes, |data| {
            read.push(data.to_vec());
            Ok(())
        });
        assert_eq!(read, [b"rain"]);
        assert_eq!(&bytes[used.unwrap()..], b"id: a-2\ndata: sn");
    }
}
