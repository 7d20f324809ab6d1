//! TLS connections of the load client, with rustls. All servers get the same offer, so that they use the same cryptography:
//! TLS 1.3 with AES-128-GCM and X25519.

use std::io::{self, BufRead as _, Write as _};
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::ioctl_fionbio;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, HandshakeKind, SignatureScheme,
};

use super::connect::{self, ConnectionSpec};
use crate::wire;

/// Number of session tickets that a client keeps.
const TICKETS: usize = 8;
/// Larger than the flight with which a server answers a ClientHello.
const FLIGHT: usize = 16 * 1024;

/// A certificate of the servers, in PEM files.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    pub(crate) certificate: &'static str,
    pub(crate) key: &'static str,
}

macro_rules! certificate {
    ($name:literal) => {
        Certificate {
            certificate: concat!(env!("CARGO_MANIFEST_DIR"), "/certificates/", $name, ".pem"),
            key: concat!(env!("CARGO_MANIFEST_DIR"), "/certificates/", $name, ".key"),
        }
    };
}

pub(crate) static P256: Certificate = certificate!("p256");
pub(crate) static RSA2048: Certificate = certificate!("rsa2048");

/// Returns the configuration of clients that expect this certificate. With `resumes`, a client resumes its session with a
/// ticket as soon as it has one.
pub(crate) fn client_config(
    certificate: &Certificate,
    resumes: bool,
) -> io::Result<Arc<ClientConfig>> {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![ring::cipher_suite::TLS13_AES_128_GCM_SHA256];
    provider.kx_groups = vec![ring::kx_group::X25519];
    let expected = CertificateDer::from_pem_file(certificate.certificate)
        .map_err(|e| io::Error::other(format!("{}: {e}", certificate.certificate)))?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(expected)))
        .with_no_client_auth();
    config.resumption = match resumes {
        true => Resumption::in_memory_sessions(TICKETS),
        false => Resumption::disabled(),
    };
    Ok(Arc::new(config))
}

/// Accepts one certificate. It does not verify signatures, since this work of the client, which the measurements do not
/// count, could limit the server or delay other connections of the client.
#[derive(Debug)]
struct Pinned(CertificateDer<'static>);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match *end_entity == self.0 {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(Error::General("another certificate was expected".into())),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 was not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::RSA_PSS_SHA256,
        ]
    }
}

pub(crate) struct TlsConnection {
    pub(super) socket: OwnedFd,
    session: ClientConnection,
}

impl TlsConnection {
    /// Connects and sends the ClientHello. `at` connections were opened before and use up source ports. The socket is
    /// blocking.
    fn start(address: SocketAddrV4, at: usize, config: Arc<ClientConfig>) -> io::Result<Self> {
        let socket = connect::socket(address, at, &ConnectionSpec::default())?;
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        let session = ClientConnection::new(config, name).map_err(io::Error::other)?;
        let mut connection = Self { socket, session };
        connection.flush()?;
        Ok(connection)
    }

    /// Reads everything that has arrived on the nonblocking socket, and passes what it has decrypted to `take` in parts.
    /// Returns the number of bytes before the decryption.
    pub(super) fn read(
        &mut self,
        buffer: &mut [u8],
        take: &mut impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<u64> {
        let mut bytes = 0;
        while let Some(read) = connect::receive_once(&self.socket, buffer)? {
            bytes += read as u64;
            self.decrypt(&buffer[..read], take)?;
            if read < buffer.len() {
                break;
            }
        }
        Ok(bytes)
    }

    /// Receives once from the blocking socket, and passes what it has decrypted to `take`, if anything.
    fn receive(
        &mut self,
        buffer: &mut [u8],
        take: &mut impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        match connect::receive_once(&self.socket, buffer)? {
            Some(read) => self.decrypt(&buffer[..read], take),
            None => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn decrypt(
        &mut self,
        mut records: &[u8],
        take: &mut impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        while !records.is_empty() {
            self.session.read_tls(&mut records)?;
            self.session
                .process_new_packets()
                .map_err(|e| io::Error::other(format!("TLS: {e}")))?;
            let mut reader = self.session.reader();
            loop {
                let size = match reader.fill_buf() {
                    Ok([]) => return Err(io::Error::other("the server closed the TLS session")),
                    Ok(part) => {
                        take(part)?;
                        part.len()
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                };
                reader.consume(size);
            }
        }
        self.flush()
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        // A large echo may exceed the default limit.
        self.session.set_buffer_limit(None);
        self.session.writer().write_all(bytes)?;
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.session.wants_write() {
            return Ok(());
        }
        let mut records = Vec::new();
        while self.session.wants_write() {
            self.session.write_tls(&mut records)?;
        }
        connect::send_all(&self.socket, &records)
    }

    /// Whether the session was resumed. Call it after the handshake.
    pub(crate) fn is_resumed(&self) -> bool {
        self.session.handshake_kind() == Some(HandshakeKind::Resumed)
    }
}

/// Opens `count` nonblocking WebSocket connections over TLS, in batches like [`connect::open`]. `from` connections were
/// opened before and use up source ports.
pub(crate) fn open(
    address: SocketAddrV4,
    from: usize,
    count: usize,
    spec: impl Fn(usize) -> ConnectionSpec,
    config: impl Fn(usize) -> Arc<ClientConfig>,
) -> io::Result<Vec<TlsConnection>> {
    let accept = connect::accept();
    let mut buffer = [0; FLIGHT];
    let mut opened: Vec<TlsConnection> = Vec::with_capacity(count);
    let failed = |at, e: io::Error| io::Error::new(e.kind(), format!("handshake {at}: {e}"));
    while opened.len() < count {
        let first = opened.len();
        let batch = first..count.min(first + connect::BATCH);
        for at in batch.clone() {
            opened.push(TlsConnection::start(address, from + at, config(at))?);
        }
        for (at, connection) in batch.clone().zip(&mut opened[first..]) {
            while connection.session.is_handshaking() {
                connection
                    .receive(&mut buffer, &mut |_| Err(unexpected()))
                    .map_err(|e| failed(at, e))?;
            }
            connection.send(connect::request(address, &spec(at)).as_bytes())?;
        }
        for (at, connection) in batch.zip(&mut opened[first..]) {
            let read = |answer: &mut Vec<u8>| {
                let mut take = |part: &[u8]| {
                    answer.extend_from_slice(part);
                    Ok(())
                };
                connection.receive(&mut buffer, &mut take)
            };
            let rest = connect::read_response(read, &accept, &spec(at));
            if !rest.map_err(|e| failed(at, e))?.is_empty() {
                return Err(failed(at, unexpected()));
            }
            ioctl_fionbio(&connection.socket, true)?;
        }
    }
    Ok(opened)
}

fn unexpected() -> io::Error {
    io::Error::other("unexpected bytes before or after the handshake response")
}

/// A WebSocket connection over TLS whose handshakes are in progress, without blocking.
pub(crate) struct Handshake {
    connection: TlsConnection,
    address: SocketAddrV4,
    accept: String,
    answer: Vec<u8>,
    is_requested: bool,
}

impl Handshake {
    /// Connects and sends the ClientHello. `at` connections were opened before and use up source ports.
    pub(crate) fn start(
        address: SocketAddrV4,
        at: usize,
        config: Arc<ClientConfig>,
    ) -> io::Result<Self> {
        let connection = TlsConnection::start(address, at, config)?;
        ioctl_fionbio(&connection.socket, true)?;
        Ok(Self {
            connection,
            address,
            accept: connect::accept(),
            answer: Vec::new(),
            is_requested: false,
        })
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.connection.socket
    }

    /// Processes the bytes that the server has sent, and sends the upgrade request once the TLS handshake is complete. Returns
    /// whether the server has accepted the WebSocket.
    pub(crate) fn proceed(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let answer = &mut self.answer;
        let mut take = |part: &[u8]| {
            answer.extend_from_slice(part);
            Ok(())
        };
        self.connection.read(buffer, &mut take)?;
        if !self.is_requested && !self.connection.session.is_handshaking() {
            self.is_requested = true;
            let spec = ConnectionSpec::default();
            let request = connect::request(self.address, &spec);
            self.connection.send(request.as_bytes())?;
        }
        let Some(end) = wire::head_end(&self.answer) else {
            return Ok(false);
        };
        connect::check_response(&self.answer[..end], &self.accept, false)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::thread;
    use std::time::Duration;

    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ServerConfig, ServerConnection, Stream};

    use super::*;

    /// Answers WebSocket handshakes over TLS, one after the other, until the client closes each.
    fn serve(certificate: &'static Certificate, count: usize) -> SocketAddrV4 {
        let chain = vec![CertificateDer::from_pem_file(certificate.certificate).unwrap()];
        let key = PrivateKeyDer::from_pem_file(certificate.key).unwrap();
        let provider = Arc::new(ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.ticketer = ring::Ticketer::new().unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else {
            panic!("an IPv6 address")
        };
        thread::spawn(move || {
            for socket in listener.incoming().take(count) {
                answer(socket.unwrap(), config.clone());
            }
        });
        address
    }

    fn answer(mut socket: TcpStream, config: Arc<ServerConfig>) {
        let mut session = ServerConnection::new(config).unwrap();
        let mut stream = Stream::new(&mut session, &mut socket);
        let (mut head, mut part) = (Vec::new(), [0; 1024]);
        while wire::head_end(&head).is_none() {
            match stream.read(&mut part) {
                Ok(read @ 1..) => head.extend_from_slice(&part[..read]),
                // The client has refused the certificate.
                _ => return,
            }
        }
        let response = format!(
            "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {}\r\n\r\n",
            connect::accept()
        );
        stream.write_all(response.as_bytes()).unwrap();
        let _ = stream.read(&mut part);
    }

    fn open_one(address: SocketAddrV4, config: &Arc<ClientConfig>) -> io::Result<TlsConnection> {
        let opened = open(
            address,
            0,
            1,
            |_| ConnectionSpec::default(),
            |_| config.clone(),
        );
        opened.map(|mut opened| opened.remove(0))
    }

    #[test]
    fn client_with_tickets_resumes_its_second_session() {
        for certificate in [&P256, &RSA2048] {
            let address = serve(certificate, 4);
            for resumes in [true, false] {
                let config = client_config(certificate, resumes).unwrap();
                assert!(!open_one(address, &config).unwrap().is_resumed());
                assert_eq!(open_one(address, &config).unwrap().is_resumed(), resumes);
            }
        }
    }

    #[test]
    fn nonblocking_handshake_ends_with_the_response() {
        let address = serve(&P256, 1);
        let config = client_config(&P256, false).unwrap();
        let mut handshake = Handshake::start(address, 0, config).unwrap();
        let mut buffer = [0; FLIGHT];
        while !handshake.proceed(&mut buffer).unwrap() {
            thread::yield_now();
        }
        assert!(handshake.is_requested);
    }

    #[test]
    fn silent_server_fails_the_handshake_with_a_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else {
            panic!("an IPv6 address")
        };
        let config = client_config(&P256, false).unwrap();
        let mut connection = TlsConnection::start(address, 0, config).unwrap();
        let timeout = Some(Duration::from_millis(1));
        set_socket_timeout(&connection.socket, Timeout::Recv, timeout).unwrap();
        let outcome = connection.receive(&mut [0; FLIGHT], &mut |_| Ok(()));
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn other_certificate_is_refused() {
        let address = serve(&RSA2048, 1);
        let config = client_config(&P256, false).unwrap();
        assert!(open_one(address, &config).is_err());
    }
}
