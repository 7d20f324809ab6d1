//! TLS to a broker server, for `rediss://` and `tls://` URLs (features `cluster-tls` and `cluster-tls-aws-lc`).
//!
//! The server's certificate is always verified, and nothing of the broker's protocol is encrypted or sent before that.

use std::fmt;
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::lost::Lost;
use super::settings::{Cluster, invalid};
use super::unsent::Unsent;
use super::url::Address;
use crate::tls_client::{TlsError, trusting_pem_file, trusting_platform};

/// The size of one read. rustls itself would read 4 KiB at a time.
const READ_BYTES: usize = 64 << 10;

/// A broker server that is reached over TLS.
#[derive(Clone)]
pub(super) struct TlsServer {
    config: Arc<ClientConfig>,
    /// What its certificate has to be valid for.
    name: ServerName<'static>,
}

impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsServer")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// How broker servers are reached over TLS.
pub(super) struct TlsServers(Option<Arc<ClientConfig>>);

impl TlsServers {
    /// Loads the certificates of the trusted authorities, if a URL needs them.
    pub(super) fn new(is_needed: bool, settings: &Cluster) -> io::Result<Self> {
        let roots = settings.root_certificates.as_deref();
        if !is_needed {
            // Whoever sets authorities expects encryption.
            if roots.is_some() {
                let why = "Cluster::root_certificates is for rediss:// and tls:// URLs, and there is none: other URLs are not \
                           encrypted";
                return Err(invalid(why));
            }
            return Ok(Self(None));
        }
        let config = match roots {
            Some(path) => trusting_pem_file(path),
            None => trusting_platform(),
        };
        config
            .map(|config| Self(Some(Arc::new(config))))
            .map_err(invalid)
    }

    /// Returns how the server at an address is reached. `None` if no URL needs TLS.
    pub(super) fn at(&self, address: &Address) -> io::Result<Option<TlsServer>> {
        let Some(config) = &self.0 else {
            return Ok(None);
        };
        let name = ServerName::try_from(address.host.clone()).map_err(|_| {
            let why = "the host of a rediss:// or tls:// URL is neither a DNS name nor an IP address, so no certificate is valid \
                       for it";
            invalid(why)
        })?;
        let config = config.clone();
        Ok(Some(TlsServer { config, name }))
    }
}

impl TlsServer {
    /// Begins TLS on a stream, without I/O.
    pub(super) fn begin<S: Read + Write>(&self, stream: S) -> Result<TlsSocket<S>, TlsError> {
        Ok(TlsSocket {
            session: ClientConnection::new(self.config.clone(), self.name.clone())?,
            stream: BufReader::with_capacity(READ_BYTES, stream),
            failure: None,
        })
    }
}

/// A socket with TLS. Dropping it sends close_notify (RFC 8446 §6.1), if the stream takes it.
pub(super) struct TlsSocket<S: Read + Write> {
    session: ClientConnection,
    stream: BufReader<S>,
    /// The error that has ended the connection. [`read`](Self::read) returns it after the bytes that were received before it.
    failure: Option<TlsError>,
}

impl<S: Read + Write> TlsSocket<S> {
    pub(super) fn is_handshaking(&self) -> bool {
        self.session.is_handshaking()
    }

    /// See [`Socket::read`](super::socket::Socket::read). The end of the stream is the same error with and without
    /// close_notify: what was cut off is unanswered either way.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Lost> {
        loop {
            match self.session.reader().read(buffer) {
                Ok(0) => return Err(Lost::closed()),
                Ok(len) => return Ok(Some(len)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(failure) = &self.failure {
                return Err(failure.clone().into());
            }
            match self.session.read_tls(&mut self.stream) {
                Ok(0) if self.is_handshaking() => return Err(TlsError::HungUp.into()),
                // After the end of the stream, the next call of `reader` reports it.
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.failed(error)),
            }
            if let Err(error) = self.session.process_new_packets() {
                self.failure = Some(error.into());
                // Sends the alert, as far as possible.
                let _ = self.flush();
            }
        }
    }

    /// See [`Socket::write`](super::socket::Socket::write). Takes nothing before the handshake is complete.
    pub(super) fn write(&mut self, unsent: &mut Unsent) -> Result<bool, Lost> {
        loop {
            if !self.flush().map_err(|error| self.failed(error))? {
                return Ok(false);
            }
            if unsent.is_empty() || self.is_handshaking() {
                return Ok(true);
            }
            // rustls takes a part that fits into its buffer, which is empty.
            match self.session.writer().write(unsent.bytes())? {
                0 => return Err(io::Error::from(ErrorKind::WriteZero).into()),
                taken => unsent.advance(taken),
            }
        }
    }

    pub(super) fn wants_write(&self, unsent: &Unsent) -> bool {
        self.session.wants_write() || (!unsent.is_empty() && !self.is_handshaking())
    }

    /// Writes what rustls has encrypted. Returns whether all of it is written.
    fn flush(&mut self) -> io::Result<bool> {
        while self.session.wants_write() {
            match self.session.write_tls(self.stream.get_mut()) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn failed(&self, error: io::Error) -> Lost {
        if !self.is_handshaking() {
            return error.into();
        }
        match TlsError::of_socket(error) {
            Ok(error) => error.into(),
            Err(error) => error.into(),
        }
    }
}

impl<S: Read + Write> Drop for TlsSocket<S> {
    fn drop(&mut self) {
        // rustls has sent an alert already if TLS has failed.
        if self.failure.is_none() && !self.is_handshaking() {
            self.session.send_close_notify();
            let _ = self.flush();
        }
    }
}

#[cfg(all(test, not(loom)))]
#[path = "tls_tests.rs"]
mod tests;
