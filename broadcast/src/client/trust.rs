//! TLS of a connection: the trusted authorities, the TLS handshake, and what its failures mean.

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use humphrey_ws::websocket_client::ServerUrl;
#[cfg(feature = "tls")]
use humphrey_ws::websocket_client::{ClientTls, TlsError};
use mio::net::TcpStream;

use super::end::End;
use super::event_loop::EventLoop;
#[cfg(feature = "tls")]
use super::failures::Failure;
use super::stream::ClientStream;
#[cfg(feature = "tls")]
use super::tls_stream::{HandshakeFailure, TlsStream};

/// The authorities that may have issued a server's certificate.
pub(super) struct Trust {
    /// `--ca`; otherwise those that the operating system trusts.
    #[cfg(feature = "tls")]
    ca: Option<PathBuf>,
    /// Loaded for the first connection, and kept, which also lets later connections resume TLS sessions.
    #[cfg(feature = "tls")]
    loaded: Option<ClientTls>,
}

#[cfg(not(feature = "tls"))]
impl Trust {
    pub(super) fn new(_: Option<PathBuf>) -> Self {
        Self {}
    }

    /// URLs that need TLS are refused on the command line.
    pub(super) fn secure(
        &mut self,
        _: &mut EventLoop,
        _: &ServerUrl,
        socket: TcpStream,
        _: Instant,
    ) -> Result<ClientStream, End> {
        Ok(ClientStream::Plain(socket))
    }

    /// Without TLS, TLS causes no error.
    pub(super) fn refusal(&mut self, _: &io::Error) -> Option<End> {
        None
    }
}

#[cfg(feature = "tls")]
impl Trust {
    pub(super) fn new(ca: Option<PathBuf>) -> Self {
        Self { ca, loaded: None }
    }

    /// Loads the authorities.
    pub(super) fn load(&mut self) -> Result<&ClientTls, TlsError> {
        let tls = match self.loaded.take() {
            Some(tls) => tls,
            None => match &self.ca {
                Some(file) => ClientTls::from_pem_file(file)?,
                None => ClientTls::platform()?,
            },
        };
        Ok(self.loaded.insert(tls))
    }

    /// Performs the TLS handshake, if the URL requires TLS.
    pub(super) fn secure(
        &mut self,
        event_loop: &mut EventLoop,
        url: &ServerUrl,
        socket: TcpStream,
        deadline: Instant,
    ) -> Result<ClientStream, End> {
        if !url.is_tls() {
            return Ok(ClientStream::Plain(socket));
        }
        let session = self.load().and_then(|tls| tls.start(url));
        let session = session.map_err(|error| self.refused(&error))?;
        let mut stream = Box::new(TlsStream::new(socket, session));
        loop {
            match stream.shake_hands() {
                Ok(true) => return Ok(ClientStream::Tls(stream)),
                Ok(false) => event_loop.wait_for_socket(deadline, Failure::HandshakeTimeout)?,
                Err(HandshakeFailure::Tls(error)) => return Err(self.refused(&error)),
                Err(HandshakeFailure::Socket(error)) => {
                    let why = format!("the connection is lost during the TLS handshake: {error}");
                    return Err(End::failed(Failure::TlsAborted, why));
                }
            }
        }
    }

    /// Describes an error of a stream if TLS caused it. With TLS 1.3, the server can refuse the client's certificate, or the lack of
    /// one, only after the client's handshake is complete.
    pub(super) fn refusal(&mut self, error: &io::Error) -> Option<End> {
        let error = error.get_ref()?.downcast_ref::<TlsError>()?;
        Some(self.refused(error))
    }

    fn refused(&mut self, error: &TlsError) -> End {
        let failure = failure(error);
        if failure == Failure::Certificate {
            // The next attempt loads them again: the file, or the system's authorities, may have changed.
            self.loaded = None;
        }
        End::failed(failure, self.describe(error))
    }

    /// Describes an error in terms of the command line.
    pub(super) fn describe(&self, error: &TlsError) -> String {
        match (error, &self.ca) {
            (TlsError::UnknownIssuer, Some(file)) => format!(
                "the server's certificate was not issued by an authority in {} (--ca)",
                file.display()
            ),
            (TlsError::UnknownIssuer, None) => {
                "the server's certificate was not issued by an authority that this machine trusts: if the server has an \
                 authority of its own, name its certificate with --ca FILE"
                    .to_owned()
            }
            (TlsError::Roots(why), Some(_)) => format!("--ca {why}"),
            (TlsError::Roots(why), None) => format!(
                "the authorities that this machine trusts can't be loaded ({why}): install them, for example with the package \
                 ca-certificates, or name a certificate with --ca FILE"
            ),
            _ => error.to_string(),
        }
    }
}

#[cfg(feature = "tls")]
fn failure(error: &TlsError) -> Failure {
    match error {
        TlsError::Expired { .. }
        | TlsError::NotYetValid { .. }
        | TlsError::UnknownIssuer
        | TlsError::WrongName { .. }
        | TlsError::InvalidCertificate(_)
        | TlsError::Roots(_) => Failure::Certificate,
        TlsError::NotTls => Failure::NotTls,
        TlsError::Incompatible(_) | TlsError::Refused(_) => Failure::TlsRefused,
        // The server hung up, or violated TLS.
        _ => Failure::TlsAborted,
    }
}
