//! Open connections of the load client, with or without TLS.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustls::ClientConfig;

use super::connect::{self, ConnectionSpec};
use super::tls::{self, TlsConnection};

/// An open connection, plain or over TLS.
pub(crate) enum Connection {
    Plain(OwnedFd),
    Tls(Box<TlsConnection>),
}

impl Connection {
    /// Opens `count` nonblocking connections; over TLS with a configuration.
    pub(crate) fn open(
        address: SocketAddrV4,
        count: usize,
        spec: impl Fn(usize) -> ConnectionSpec,
        config: Option<&Arc<ClientConfig>>,
    ) -> io::Result<Vec<Self>> {
        match config {
            None => {
                let opened = connect::open(address, 0, count, spec)?.into_iter();
                Ok(opened.map(Self::Plain).collect())
            }
            Some(config) => {
                let opened = tls::open(address, 0, count, spec, |_| config.clone())?;
                let opened = opened.into_iter().map(Box::new);
                Ok(opened.map(Self::Tls).collect())
            }
        }
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(connection) => &connection.socket,
        }
    }

    /// Reads everything that has arrived, and passes it to `take` in parts. Returns the number of bytes that the socket has
    /// received, which over TLS are more than those that it passes on.
    pub(crate) fn read(
        &mut self,
        buffer: &mut [u8],
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<u64> {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(connection) => return connection.read(buffer, &mut take),
        };
        let mut bytes = 0;
        while let Some(read) = connect::receive_once(socket, buffer)? {
            bytes += read as u64;
            take(&buffer[..read])?;
            if read < buffer.len() {
                break;
            }
        }
        Ok(bytes)
    }

    /// Sends everything, and waits while the socket's buffer is full. The client does not read meanwhile.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(socket) => connect::send_all(socket, bytes),
            Self::Tls(connection) => connection.send(bytes),
        }
    }
}
