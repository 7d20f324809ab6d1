//! One TLS connection: records in, bytes out, and the other way round.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::pki_types::CertificateDer;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, WriteTraffic};
use rustls::{AlertDescription, Error, HandshakeKind, ServerConfig};

use crate::transport::socket;
use crate::transport::{Handshake, TlsFailure};

/// The maximum number of plain bytes in a record (RFC 8446 §5.1), which are sealed at once.
pub(super) const RECORD_BYTES: usize = 16 << 10;

/// The maximum length of a record on the wire: a header, and what encryption adds (RFC 5246 §6.2.3, RFC 8446 §5.2).
const RECORD_WIRE_BYTES_MAX: usize = 5 + RECORD_BYTES + 2048;

/// The maximum number of bytes that are read at once, with those of an incomplete record.
const INPUT_BYTES: usize = 64 << 10;

/// The maximum number of received bytes that a connection keeps: an incomplete record, or in the handshake an
/// incomplete message. It has space for any chain of client certificates in practice.
pub(super) const PARTIAL_BYTES_MAX: usize = 32 << 10;

/// The answer to a request without TLS.
const PLAIN_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 62\r\nConnection: close\r\n\r\nThis port speaks TLS: use https:// or wss:// instead of http.\n";

thread_local! {
    /// Received records, while they are opened. A thread needs one such buffer for all its connections.
    static INPUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Sealed records of one write.
    static SEALED: RefCell<Sealed> = const { RefCell::new(Sealed::new()) };
}

/// Sealed records, in a buffer that is reused.
pub(super) struct Sealed {
    bytes: Vec<u8>,
    len: usize,
}

impl Sealed {
    pub(super) const fn new() -> Self {
        Self {
            bytes: Vec::new(),
            len: 0,
        }
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn range(&self, range: std::ops::Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    fn filled(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Appends the output of `fill`, which returns its length, or the size that it needs.
    fn append(
        &mut self,
        mut size: usize,
        mut fill: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
    ) -> io::Result<()> {
        loop {
            let end = self.len + size;
            if self.bytes.len() < end {
                self.bytes.resize(end, 0);
            }
            match fill(&mut self.bytes[self.len..]) {
                Ok(written) => {
                    self.len += written;
                    return Ok(());
                }
                Err(Some(required)) if required > size => size = required,
                Err(_) => return Err(ErrorKind::BrokenPipe.into()),
            }
        }
    }

    /// Appends a message of the handshake, or one after it.
    fn append_message(
        &mut self,
        message: &mut EncodeTlsData<'_, ServerConnectionData>,
    ) -> io::Result<()> {
        self.append(0, |out| {
            message.encode(out).map_err(|error| match error {
                EncodeError::InsufficientSize(size) => Some(size.required_size),
                EncodeError::AlreadyEncoded => None,
            })
        })
    }
}

/// Bytes that a connection holds now and then, without spare capacity. It is small while there are none.
#[derive(Default)]
#[allow(clippy::box_collection)] // A vector itself takes three times as much.
struct HeldBytes(Option<Box<Vec<u8>>>);

impl HeldBytes {
    fn as_slice(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |bytes| bytes)
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        self.0.as_mut().map_or(&mut [], |bytes| bytes)
    }

    fn capacity(&self) -> usize {
        self.0.as_ref().map_or(0, |bytes| bytes.capacity())
    }

    fn set(&mut self, bytes: &[u8]) {
        self.0 = (!bytes.is_empty()).then(|| Box::new(bytes.to_vec()));
    }

    fn push(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Some(held) => {
                held.reserve_exact(bytes.len());
                held.extend_from_slice(bytes);
            }
            None => self.set(bytes),
        }
    }

    /// Removes bytes from the front.
    fn drop_front(&mut self, count: usize) {
        if count > 0 {
            let rest = self.as_slice()[count..].to_vec();
            self.0 = (!rest.is_empty()).then(|| Box::new(rest));
        }
    }
}

/// The progress of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// The handshake runs. Nothing was received yet if `is_new`.
    Handshake {
        is_new: bool,
    },
    Open,
    /// TLS has failed: nothing more is received or sent.
    Failed(TlsFailure),
}

/// The state of the outgoing stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Open,
    /// The stream ends after the pending bytes.
    Ending,
    Ended,
}

pub(super) struct Session {
    conn: UnbufferedServerConnection,
    progress: Progress,
    /// The cost of a read while the handshake runs.
    cost: u32,
    /// The bytes of an incomplete record or handshake message.
    partial: HeldBytes,
    /// Whether `partial` was received before this session, and is still to be opened.
    has_early: bool,
    /// Sealed bytes that the socket has not accepted yet, without spare capacity.
    pending: HeldBytes,
    /// Whether the last read has emptied the socket.
    is_drained: bool,
    /// Whether the peer has announced the end of its stream (close_notify, RFC 8446 §6.1).
    peer_closed: bool,
    sending: Sending,
}

impl Session {
    /// `early` are bytes that were received already, at most [`PARTIAL_BYTES_MAX`].
    pub(super) fn new(config: Arc<ServerConfig>, cost: u32, early: &[u8]) -> io::Result<Self> {
        let conn = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
        let mut partial = HeldBytes::default();
        partial.set(early);
        Ok(Self {
            conn,
            progress: Progress::Handshake { is_new: true },
            cost,
            partial,
            has_early: !early.is_empty(),
            pending: HeldBytes::default(),
            is_drained: false,
            peer_closed: false,
            sending: Sending::Open,
        })
    }

    pub(super) fn read_cost(&self) -> u32 {
        match self.progress {
            Progress::Handshake { .. } => self.cost,
            _ => 0,
        }
    }

    pub(super) fn handshake(&self) -> Handshake {
        match self.progress {
            Progress::Handshake { .. } => Handshake::Running,
            Progress::Open => Handshake::Complete {
                resumed: self.conn.handshake_kind() == Some(HandshakeKind::Resumed),
            },
            Progress::Failed(failure) => Handshake::Failed(failure),
        }
    }

    pub(super) fn has_refused(&self) -> bool {
        match self.progress {
            Progress::Failed(failure) => failure != TlsFailure::Aborted,
            _ => false,
        }
    }

    pub(super) fn client_certificates(&self) -> Vec<CertificateDer<'static>> {
        let certificates = self.conn.peer_certificates().unwrap_or_default();
        certificates
            .iter()
            .map(|certificate| certificate.clone().into_owned())
            .collect()
    }

    pub(super) fn may_have_more(&self) -> bool {
        !self.is_drained || self.peer_closed
    }

    /// The minimum length of the buffer of a read: a part of a record that has arrived, and any record.
    pub(super) fn read_bytes_min(&self) -> usize {
        self.partial.as_slice().len() + RECORD_WIRE_BYTES_MAX
    }

    pub(super) fn has_pending(&self) -> bool {
        self.pending.0.is_some()
    }

    pub(super) fn pending_bytes(&self) -> usize {
        self.pending.capacity()
    }

    pub(super) fn received_bytes(&self) -> usize {
        self.partial.capacity()
    }

    // ---------------------------------------------------------------------------------------------------- receiving

    /// Reads from the socket once, and opens the records that are complete. Returns 0 after the peer's close_notify.
    ///
    /// # Errors
    /// `WouldBlock` if the socket has no bytes. `Interrupted` if the received records contain no application data: the
    /// caller is to read again. `UnexpectedEof` if the stream ended without a close_notify, that is, was truncated.
    pub(super) fn read(&mut self, tcp: &mut TcpStream, out: &mut [u8]) -> io::Result<usize> {
        if let Progress::Failed(_) = self.progress {
            return match self.sending != Sending::Open {
                true => discard(tcp),
                false => Err(ErrorKind::InvalidData.into()),
            };
        }
        if self.peer_closed {
            return Ok(0);
        }
        INPUT.with_borrow_mut(|input| {
            input.resize(INPUT_BYTES, 0);
            // The output of complete records is shorter than they are.
            let room = input.len().min(out.len());
            let partial = self.partial.as_slice();
            let kept = partial.len();
            input[..kept].copy_from_slice(partial);
            let free = input
                .get_mut(kept..room)
                .filter(|free| !free.is_empty())
                .ok_or(ErrorKind::InvalidData)?;
            let has_early = std::mem::take(&mut self.has_early);
            let received = match has_early {
                true => 0,
                false => socket::read(tcp, free)?,
            };
            if received == 0 && !has_early {
                // After our own end, nothing that the peer could still send matters: most omit the close_notify.
                return match self.sending != Sending::Open {
                    true => Ok(0),
                    false => Err(self.truncated()),
                };
            }
            self.is_drained = !has_early && received < room - kept;
            let opened = self.open(tcp, &mut input[..kept + received], out)?;
            match opened {
                0 if self.peer_closed => Ok(0),
                // After a short read the socket may still have the end of the stream.
                0 => Err(ErrorKind::Interrupted.into()),
                opened => Ok(opened),
            }
        })
    }

    /// Opens the complete records of `input` into `out`. Keeps the rest of `input`. Returns the number of opened bytes.
    fn open(&mut self, tcp: &mut TcpStream, input: &mut [u8], out: &mut [u8]) -> io::Result<usize> {
        if self.progress == (Progress::Handshake { is_new: true }) {
            self.progress = Progress::Handshake { is_new: false };
            // Every record of a handshake begins with a control character (its content type, 22: RFC 8446 §5.1).
            if input[0].is_ascii_alphabetic() {
                let _ = socket::write(tcp, PLAIN_HTTP);
                return Err(self.fail(TlsFailure::PlainHttp));
            }
        }
        let (mut at, mut opened) = (0, 0);
        let mut messages = Sealed::new();
        let outcome = loop {
            let status = self.conn.process_tls_records(&mut input[at..]);
            let mut discard = status.discard;
            let is_done = match status.state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
                    match traffic.next_record() {
                        Some(Ok(record)) => {
                            discard += record.discard;
                            let end = opened + record.payload.len();
                            out[opened..end].copy_from_slice(record.payload);
                            opened = end;
                        }
                        Some(Err(error)) => break Err(error),
                        None => break Ok(false),
                    }
                },
                Ok(ConnectionState::EncodeTlsData(mut message)) => {
                    messages.append_message(&mut message)?;
                    Ok(false)
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => {
                    transmit.done();
                    Ok(false)
                }
                Ok(ConnectionState::WriteTraffic(_)) => {
                    self.progress = Progress::Open;
                    Ok(true)
                }
                Ok(ConnectionState::BlockedHandshake) => Ok(true),
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    self.peer_closed = true;
                    // The end of the handshake, a request and the end of the stream may arrive at once.
                    if !self.conn.is_handshaking() {
                        self.progress = Progress::Open;
                    }
                    Ok(true)
                }
                // Early data is never accepted, and states that a later version of rustls may add are unknown.
                Ok(_) => Err(Error::General("unexpected state".into())),
                Err(error) => Err(error),
            };
            at += discard;
            match is_done {
                Ok(false) => {}
                Ok(true) => break Ok(opened),
                Err(error) => break Err(error),
            }
        };
        self.keep(&input[at..]);
        self.queue(messages.filled());
        let sent = self.flush(tcp);
        match outcome {
            Ok(_) if self.partial.as_slice().len() > PARTIAL_BYTES_MAX => {
                Err(self.fail(TlsFailure::Malformed))
            }
            Ok(opened) => sent.map(|_| opened),
            Err(error) => {
                self.send_alert(tcp);
                // What came before the bad record counts: the next read returns the error.
                let error = self.fail(failure(&error));
                match opened {
                    0 => Err(error),
                    _ => {
                        self.is_drained = false;
                        Ok(opened)
                    }
                }
            }
        }
    }

    /// Keeps the bytes of an incomplete record, without spare capacity.
    fn keep(&mut self, rest: &[u8]) {
        self.partial.set(match self.peer_closed {
            true => &[],
            false => rest,
        });
    }

    fn truncated(&mut self) -> io::Error {
        if let Progress::Handshake { .. } = self.progress {
            self.fail(TlsFailure::Aborted);
        }
        ErrorKind::UnexpectedEof.into()
    }

    fn fail(&mut self, failure: TlsFailure) -> io::Error {
        self.progress = Progress::Failed(failure);
        self.partial.set(&[]);
        ErrorKind::InvalidData.into()
    }

    /// Sends the alert that tells the peer why TLS has failed (RFC 8446 §6.2), if the socket accepts it. There is none
    /// for some breaches of the protocol.
    fn send_alert(&mut self, tcp: &TcpStream) {
        let mut alert = Sealed::new();
        // Once nothing is left to be sent, rustls would look for the parts of a handshake message in its input again.
        while self.conn.wants_write() {
            match self.conn.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(mut message)) => {
                    if alert.append_message(&mut message).is_err() {
                        break;
                    }
                }
                _ => break,
            }
        }
        self.queue(alert.filled());
        let _ = self.flush(tcp);
    }

    // ------------------------------------------------------------------------------------------------------ sending

    fn queue(&mut self, sealed: &[u8]) {
        self.pending.push(sealed);
    }

    /// Writes the pending bytes. Returns whether none are left.
    pub(super) fn flush(&mut self, tcp: &TcpStream) -> io::Result<bool> {
        let mut written = 0;
        while let Some(rest) = self.pending.as_slice().get(written..)
            && !rest.is_empty()
        {
            match socket::write(tcp, rest) {
                Ok(more) => written += more,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // The rest takes less memory, which also shows that the peer reads.
                    self.pending.drop_front(written);
                    return Ok(false);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.pending.set(&[]);
        if self.sending == Sending::Ending {
            self.sending = Sending::Ended;
            // It fails only if the connection has already ended.
            let _ = tcp.shutdown(Shutdown::Write);
        }
        Ok(true)
    }

    /// Seals up to [`RECORD_BYTES`] of plain bytes behind `sealed`.
    pub(super) fn seal(&mut self, plain: &[u8], sealed: &mut Sealed) -> io::Result<()> {
        debug_assert!(plain.len() <= RECORD_BYTES);
        if self.progress != Progress::Open {
            return Err(ErrorKind::NotConnected.into());
        }
        self.seal_with(plain.len(), sealed, |traffic, out| {
            traffic.encrypt(plain, out)
        })
    }

    /// Appends the records that `seal` makes of `len` plain bytes to `sealed`. Messages of TLS itself come first.
    fn seal_with(
        &mut self,
        len: usize,
        sealed: &mut Sealed,
        mut seal: impl FnMut(
            &mut WriteTraffic<'_, ServerConnectionData>,
            &mut [u8],
        ) -> Result<usize, EncryptError>,
    ) -> io::Result<()> {
        loop {
            // The input is that of the last read, in which rustls may have noted the parts of a handshake message.
            let input = self.partial.as_mut_slice();
            match self.conn.process_tls_records(input).state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    return sealed.append(len + SEAL_BYTES, |out| {
                        seal(&mut traffic, out).map_err(|error| match error {
                            EncryptError::InsufficientSize(size) => Some(size.required_size),
                            EncryptError::EncryptExhausted => None,
                        })
                    });
                }
                Ok(ConnectionState::EncodeTlsData(mut message)) => {
                    sealed.append_message(&mut message)?;
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
                Ok(ConnectionState::PeerClosed) => self.peer_closed = true,
                _ => return Err(ErrorKind::BrokenPipe.into()),
            }
        }
    }

    /// Writes plain bytes, as far as the socket accepts their records. Bytes of a record that the socket accepts in
    /// part count as written: the rest of the record is pending.
    pub(super) fn write<'a>(
        &mut self,
        tcp: &TcpStream,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> io::Result<usize> {
        self.begin_writing(tcp)?;
        SEALED.with_borrow_mut(|sealed| {
            sealed.clear();
            let (mut accepted, mut plain) = (0, 0);
            for record in pieces
                .into_iter()
                .flat_map(|piece| piece.chunks(RECORD_BYTES))
            {
                // Short pieces, such as the head and the body of a response, share a write.
                if plain > 0 && plain + record.len() > RECORD_BYTES {
                    accepted += std::mem::take(&mut plain);
                    if !self.send(tcp, sealed.filled())? {
                        return Ok(accepted);
                    }
                    sealed.clear();
                }
                self.seal(record, sealed)?;
                plain += record.len();
            }
            if plain > 0 {
                accepted += plain;
                self.send(tcp, sealed.filled())?;
            }
            Ok(accepted)
        })
    }

    /// Writes the pending bytes, which precede all new ones.
    ///
    /// # Errors
    /// `WouldBlock` if the socket does not accept all of it; `NotConnected` before the end of the handshake.
    pub(super) fn begin_writing(&mut self, tcp: &TcpStream) -> io::Result<()> {
        if self.has_pending() && !self.flush(tcp)? {
            return Err(ErrorKind::WouldBlock.into());
        }
        match self.progress {
            Progress::Open if self.sending == Sending::Open => Ok(()),
            _ => Err(ErrorKind::NotConnected.into()),
        }
    }

    /// Writes sealed records. Returns whether the socket has accepted all of them.
    fn send(&mut self, tcp: &TcpStream, sealed: &[u8]) -> io::Result<bool> {
        let outcome = socket::write(tcp, sealed);
        self.sent(sealed, outcome)
    }

    /// Processes the outcome of a write of sealed records: keeps what the socket has not accepted. Returns whether it
    /// has accepted all.
    pub(super) fn sent(&mut self, sealed: &[u8], outcome: io::Result<usize>) -> io::Result<bool> {
        let written = match outcome {
            Ok(written) => written,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                0
            }
            Err(error) => return Err(error),
        };
        self.queue(&sealed[written..]);
        Ok(written == sealed.len())
    }

    /// Ends the outgoing stream with a close_notify (RFC 8446 §6.1), after the pending bytes.
    pub(super) fn finish(&mut self, tcp: &TcpStream) {
        if self.sending != Sending::Open {
            return;
        }
        if self.progress == Progress::Open {
            let mut end = Sealed::new();
            // Without a close_notify, the peer treats the end as a truncation, which is right after an error.
            let _ = self.seal_with(0, &mut end, |traffic, out| traffic.queue_close_notify(out));
            self.queue(end.filled());
        }
        self.sending = Sending::Ending;
        let _ = self.flush(tcp);
    }
}

/// The space that a record takes beside its plain bytes, for every cipher suite (RFC 8446 §5.2, RFC 5246 §6.2.3).
const SEAL_BYTES: usize = 64;

/// Reads and discards bytes that the peer has sent after a failure. If they stayed unread, closing the socket would reset
/// the connection, and the peer could lose the alert or the response.
fn discard(tcp: &mut TcpStream) -> io::Result<usize> {
    INPUT.with_borrow_mut(|input| {
        input.resize(INPUT_BYTES, 0);
        match socket::read(tcp, input)? {
            0 => Ok(0),
            _ => Err(ErrorKind::Interrupted.into()),
        }
    })
}

/// Returns the cause of a failure, for the metrics.
fn failure(error: &Error) -> TlsFailure {
    match error {
        Error::NoCertificatesPresented | Error::InvalidCertificate(_) => {
            TlsFailure::ClientCertificate
        }
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => TlsFailure::Incompatible,
        Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA,
        ) => TlsFailure::Untrusted,
        Error::AlertReceived(_) => TlsFailure::Alert,
        _ => TlsFailure::Malformed,
    }
}
