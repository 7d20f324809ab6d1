//! The connections of a soak's clients: plain or with TLS, compressing or not.

use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};

use super::Pair;
use crate::certificates::TlsClients;
use crate::check::{During, Outcome};
use crate::client::tls::TlsStream;
use crate::client::{self, Peer, Transport};
use crate::random::Random;

#[derive(Debug)]
pub(super) enum Connection {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

impl Connection {
    pub(super) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &stream.socket,
        }
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

impl Transport for Connection {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.receive(buffer),
            Self::Tls(stream) => stream.receive(buffer),
        }
    }
}

/// Where clients connect to, and how.
#[derive(Debug)]
pub(super) struct Doors {
    /// The addresses of the plain app and of that with TLS.
    pub(super) addresses: Pair<SocketAddrV4>,
    pub(super) resuming: TlsClients,
    pub(super) full: TlsClients,
}

impl Doors {
    /// Connects to one of the apps, with TLS but without a WebSocket.
    pub(super) fn connect(
        &self,
        app: usize,
        receive_buffer: Option<usize>,
        random: &mut Random,
    ) -> Outcome<Connection> {
        let source = client::source(random.next());
        let socket = client::tcp_with_buffer(self.addresses[app], source, receive_buffer)
            .during("connecting")?;
        if app == 0 {
            return Ok(Connection::Plain(socket));
        }
        let configs = match random.below(2) {
            0 => &self.full,
            _ => &self.resuming,
        };
        let stream = TlsStream::connect(socket, configs.any(random))?;
        Ok(Connection::Tls(Box::new(stream)))
    }

    /// Opens a WebSocket on a connection.
    pub(super) fn upgrade(
        connection: Connection,
        path: &str,
        compresses: bool,
    ) -> Outcome<Peer<Connection>> {
        match compresses {
            true => Peer::upgrade_compressing(connection, path),
            false => Peer::upgrade(connection, path),
        }
    }
}
