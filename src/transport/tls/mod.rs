//! TLS below a shard: [`ShardSocket`] is a plain TCP connection or one with TLS (RFC 8446, RFC 5246).
//!
//! rustls does all of TLS, through its unbuffered interface, so that an idle connection keeps no buffers. This folder
//! moves the bytes, and bounds the work and the memory: a read takes at most one call of the socket, a write seals at
//! most one record before the socket has accepted the previous one, and what the socket refuses of a sealed record is
//! kept and sent first.

#[cfg(all(any(test, fuzzing), not(loom)))]
pub(crate) mod fuzz;
mod session;
#[cfg(all(test, not(loom)))]
mod session_tests;
#[cfg(all(any(test, fuzzing), not(loom)))]
mod testing;
mod writer;

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::sync::Arc;

use mio::Registry;
use mio::net::TcpStream;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;

use self::session::Session;
pub(crate) use self::writer::Writer;
use super::{Handshake, ShardTransport, UnsentLimit};

/// A connection of a shard.
pub(crate) enum ShardSocket {
    Plain(TcpStream),
    Tls(Box<TlsSocket>),
}

/// A connection with TLS.
pub(crate) struct TlsSocket {
    tcp: TcpStream,
    /// Writes to many connections borrow all of them, so each is changed through a cell. No borrow outlives a call.
    session: RefCell<Session>,
}

impl From<TcpStream> for ShardSocket {
    fn from(tcp: TcpStream) -> Self {
        Self::Plain(tcp)
    }
}

impl ShardSocket {
    /// Creates the server's side of a TLS connection. `cost` is the work of its handshake, as
    /// [`ShardTransport::read_cost`] returns it.
    ///
    /// # Errors
    /// The configuration can't be used.
    pub(crate) fn tls(tcp: TcpStream, config: Arc<ServerConfig>, cost: u32) -> io::Result<Self> {
        Self::tls_after(tcp, config, cost, &[])
    }

    /// The same for a connection of which `early` was read already.
    fn tls_after(
        tcp: TcpStream,
        config: Arc<ServerConfig>,
        cost: u32,
        early: &[u8],
    ) -> io::Result<Self> {
        let session = RefCell::new(Session::new(config, cost, early)?);
        Ok(Self::Tls(Box::new(TlsSocket { tcp, session })))
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => &tls.tcp,
        }
    }
}

impl ShardTransport for ShardSocket {
    type Registry = Registry;
    type Writer = Writer;

    const SHORT_MEANS_NOT_READY: bool = TcpStream::SHORT_MEANS_NOT_READY;

    fn register(&mut self, registry: &Registry, key: usize) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.register(registry, key),
            Self::Tls(tls) => tls.tcp.register(registry, key),
        }
    }

    #[inline]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(buffer),
            Self::Tls(tls) => {
                let TlsSocket { tcp, session } = &mut **tls;
                session.get_mut().read(tcp, buffer)
            }
        }
    }

    #[inline]
    fn may_have_more(&self, read: usize, len: usize) -> bool {
        match self {
            Self::Plain(tcp) => tcp.may_have_more(read, len),
            Self::Tls(tls) => tls.session.borrow().may_have_more(),
        }
    }

    #[inline]
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(bytes),
            Self::Tls(tls) => tls.session.borrow_mut().write(&tls.tcp, [bytes]),
        }
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write_vectored(pieces),
            Self::Tls(tls) => {
                let TlsSocket { tcp, session } = &mut **tls;
                let pieces = pieces.iter().map(|piece| &**piece);
                session.get_mut().write(tcp, pieces)
            }
        }
    }

    fn limit_unsent(&self, limit: UnsentLimit) {
        self.tcp().limit_unsent(limit);
    }

    fn finish(&mut self) {
        match self {
            Self::Plain(tcp) => tcp.finish(),
            Self::Tls(tls) => {
                let TlsSocket { tcp, session } = &mut **tls;
                session.get_mut().finish(tcp);
            }
        }
    }

    fn close_notify(&mut self) {
        if let Self::Tls(_) = self {
            self.finish();
        }
    }

    #[inline]
    fn has_pending(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.session.borrow().has_pending(),
        }
    }

    fn flush(&mut self) {
        if let Self::Tls(tls) = self {
            let TlsSocket { tcp, session } = &mut **tls;
            // An error shows at the next read or write.
            let _ = session.get_mut().flush(tcp);
        }
    }

    #[inline]
    fn pending_bytes(&self) -> usize {
        match self {
            Self::Plain(_) => 0,
            Self::Tls(tls) => tls.session.borrow().pending_bytes(),
        }
    }

    #[inline]
    fn received_bytes(&self) -> usize {
        match self {
            Self::Plain(_) => 0,
            Self::Tls(tls) => tls.session.borrow().received_bytes(),
        }
    }

    fn read_bytes_min(&self) -> usize {
        match self {
            Self::Plain(tcp) => tcp.read_bytes_min(),
            Self::Tls(tls) => tls.session.borrow().read_bytes_min(),
        }
    }

    #[inline]
    fn read_cost(&self) -> u32 {
        match self {
            Self::Plain(_) => 0,
            Self::Tls(tls) => tls.session.borrow().read_cost(),
        }
    }

    fn has_refused(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.session.borrow().has_refused(),
        }
    }

    fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    fn secured(self, config: Arc<ServerConfig>, cost: u32, early: &[u8]) -> io::Result<Self> {
        match self {
            Self::Plain(tcp) => Self::tls_after(tcp, config, cost, early),
            Self::Tls(_) => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    fn handshake(&self) -> Handshake {
        match self {
            Self::Plain(_) => Handshake::None,
            Self::Tls(tls) => tls.session.borrow().handshake(),
        }
    }

    fn client_certificates(&self) -> Option<Vec<CertificateDer<'static>>> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => Some(tls.session.borrow().client_certificates()),
        }
    }
}
