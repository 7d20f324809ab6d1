//! Clients that break the protocol: each makes the server send an alert and end the connection, with bounded memory.

use rustls::crypto::cipher::{
    InboundOpaqueMessage, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundPlainMessage,
};
use rustls::{AlertDescription, ConnectionTrafficSecrets, ContentType, ProtocolVersion};

use super::*;

/// A client that sends any records, in a connection whose handshake is complete.
struct Rude {
    link: Link,
    encrypter: Box<dyn MessageEncrypter>,
    sent: u64,
    decrypter: Box<dyn MessageDecrypter>,
    opened: u64,
    /// Received bytes that are not opened yet.
    input: Vec<u8>,
    plain: Vec<u8>,
    /// The alert that the server has sent.
    alert: Option<(u8, AlertDescription)>,
}

impl Rude {
    fn new(version: &'static SupportedProtocolVersion) -> Self {
        let (server, client) = configs(version);
        let mut link = Link::open(&server, &client);
        link.echo(b"so far all is well");
        let client = link.client.take().unwrap();
        let suite = client.negotiated_cipher_suite().unwrap();
        let secrets = client.dangerous_extract_secrets().unwrap();
        let parts = |secrets| match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv }
            | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
            | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key, iv),
            _ => panic!("an unknown cipher suite"),
        };
        let ((sent, tx), (opened, rx)) = (secrets.tx, secrets.rx);
        let ((tx_key, tx_iv), (rx_key, rx_iv)) = (parts(tx), parts(rx));
        let (encrypter, decrypter) = match suite {
            SupportedCipherSuite::Tls13(suite) => (
                suite.aead_alg.encrypter(tx_key, tx_iv),
                suite.aead_alg.decrypter(rx_key, rx_iv),
            ),
            SupportedCipherSuite::Tls12(suite) => {
                let iv = |iv: &rustls::crypto::cipher::Iv| iv.as_ref().to_vec();
                let fixed = suite.aead_alg.key_block_shape().fixed_iv_len;
                let (tx, rx) = (iv(&tx_iv), iv(&rx_iv));
                (
                    suite.aead_alg.encrypter(tx_key, &tx[..fixed], &tx[fixed..]),
                    suite.aead_alg.decrypter(rx_key, &rx[..fixed]),
                )
            }
        };
        let mut rude = Self {
            link,
            encrypter,
            sent: 0,
            decrypter,
            opened,
            input: Vec::new(),
            plain: Vec::new(),
            alert: None,
        };
        // A key of aws-lc-rs refuses to skip numbers of records.
        while rude.sent < sent {
            rude.record(ContentType::ApplicationData, b"sent before");
        }
        rude
    }

    /// Encrypts a record.
    fn record(&mut self, typ: ContentType, payload: &[u8]) -> Vec<u8> {
        let message = OutboundPlainMessage {
            typ,
            version: ProtocolVersion::TLSv1_2,
            payload: OutboundChunks::Single(payload),
        };
        let record = self.encrypter.encrypt(message, self.sent).unwrap();
        self.sent += 1;
        record.encode()
    }

    fn send_record(&mut self, typ: ContentType, payload: &[u8]) {
        let record = self.record(typ, payload);
        self.link.send(&record);
        self.link.serve();
    }

    fn expect_received(&mut self, bytes: &[u8]) {
        until("the server has received", || {
            self.link.serve();
            assert_eq!(self.link.ended, None);
            self.link.received.ends_with(bytes)
        });
    }

    /// Reads the bytes that the server has sent, and decrypts the complete records. Returns false at the end of the stream.
    fn read(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let goes_on = match std::io::Read::read(&mut self.link.socket, &mut bytes) {
            Ok(n) => {
                self.input.extend(&bytes[..n]);
                n > 0
            }
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        };
        while self.input.len() >= 5 {
            let len = 5 + usize::from(u16::from_be_bytes([self.input[3], self.input[4]]));
            if self.input.len() < len {
                break;
            }
            let mut record: Vec<u8> = self.input.drain(..len).collect();
            let typ = ContentType::from(record[0]);
            let message =
                InboundOpaqueMessage::new(typ, ProtocolVersion::TLSv1_2, &mut record[5..]);
            let message = self.decrypter.decrypt(message, self.opened).unwrap();
            self.opened += 1;
            match message.typ {
                ContentType::Alert => {
                    self.alert = Some((message.payload[0], message.payload[1].into()));
                }
                ContentType::ApplicationData => self.plain.extend(message.payload),
                _ => {}
            }
        }
        goes_on
    }

    /// Reads until the server has sent these bytes.
    fn expect_sent(&mut self, bytes: &[u8]) {
        until("the bytes arrive", || {
            self.read();
            self.plain.ends_with(bytes)
        });
    }

    /// Checks that the server has refused the client's bytes, holds none of them, and can't write any more.
    fn expect_failure(&mut self) {
        self.link.serve_until_refused();
        assert!(matches!(self.link.server.handshake(), Handshake::Failed(_)));
        assert_eq!(self.link.server.received_bytes(), 0);
        assert!(self.link.server.write(b"no more").is_err());
        self.link.server.finish();
    }

    /// Checks that the server has refused the client's bytes, and has sent this alert.
    fn expect_alert(mut self, alert: AlertDescription) {
        self.expect_failure();
        until("the alert arrives", || {
            self.read();
            self.alert.is_some()
        });
        assert_eq!(self.alert, Some((2, alert)));
    }
}

const DATA: ContentType = ContentType::ApplicationData;
const HANDSHAKE: ContentType = ContentType::Handshake;
const ALERT: ContentType = ContentType::Alert;

#[test]
fn tiny_records_arrive_whole() {
    for version in VERSIONS {
        let mut client = Rude::new(version);
        let bytes = noise(5_000);
        let mut records = Vec::new();
        for (n, byte) in bytes.iter().enumerate() {
            records.extend(client.record(DATA, &[*byte]));
            // A few empty ones hide the lengths of others.
            if n % 3 == 0 {
                records.extend(client.record(DATA, &[]));
            }
        }
        client.link.received.clear();
        client.link.send(&records);
        until("the server has received", || {
            client.link.serve();
            assert_eq!(client.link.ended, None);
            client.link.received.len() == bytes.len()
        });
        assert!(client.link.received == bytes);
        assert_eq!(client.link.server.received_bytes(), 0);
    }
}

#[test]
fn empty_record_flood_ends_the_connection() {
    for version in VERSIONS {
        let mut client = Rude::new(version);
        for _ in 0..50 {
            client.send_record(DATA, &[]);
        }
        client.expect_failure();
    }
}

#[test]
fn record_of_the_maximum_length_arrives() {
    for version in VERSIONS {
        let mut client = Rude::new(version);
        let bytes = noise(RECORD_BYTES);
        let record = client.record(DATA, &bytes);
        let (last, first) = record.split_last().unwrap();
        client.link.send(first);
        client.link.serve();
        client.link.send(&[*last]);
        client.expect_received(&bytes);
    }
}

#[test]
fn record_over_the_maximum_length_is_refused() {
    for version in VERSIONS {
        let mut client = Rude::new(version);
        let record = client.record(DATA, &noise(RECORD_BYTES + 1));
        client.link.send(&record);
        client.expect_alert(AlertDescription::RecordOverflow);
        let mut client = Rude::new(version);
        client.link.send(&[23, 3, 3, 0xFF, 0xFF]);
        client.expect_alert(AlertDescription::DecodeError);
    }
}

#[test]
fn damaged_record_is_refused() {
    for version in VERSIONS {
        let mut client = Rude::new(version);
        let mut record = client.record(DATA, b"text");
        *record.last_mut().unwrap() ^= 1;
        client.link.send(&record);
        client.expect_alert(AlertDescription::BadRecordMac);
    }
}

#[test]
fn bytes_before_a_damaged_record_count() {
    for version in VERSIONS {
        let mut client = Rude::new(version);
        let good = client.record(DATA, b"good");
        let mut bad = client.record(DATA, b"bad");
        bad[9] ^= 1;
        client.link.received.clear();
        client.link.send(&[good, bad].concat());
        client.link.serve_until_refused();
        assert_eq!(client.link.received, b"good");
        client.expect_alert(AlertDescription::BadRecordMac);
    }
}

#[test]
fn repeated_record_is_refused() {
    for version in VERSIONS {
        let mut client = Rude::new(version);
        let record = client.record(DATA, b"once");
        client.link.send(&record);
        client.expect_received(b"once");
        client.link.send(&record);
        client.expect_alert(AlertDescription::BadRecordMac);
    }
}

#[test]
fn garbage_after_the_handshake_is_refused() {
    for version in VERSIONS {
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[0xFF; 100]] {
            let mut client = Rude::new(version);
            client.link.send(garbage);
            client.expect_alert(AlertDescription::DecodeError);
        }
    }
}

#[test]
fn unknown_content_type_is_refused() {
    for version in VERSIONS {
        let mut client = Rude::new(version);
        client.send_record(ContentType::Unknown(99), b"?");
        client.expect_alert(AlertDescription::DecodeError);
    }
}

#[test]
fn half_a_key_update_leaves_the_server_able_to_write() {
    let mut client = Rude::new(&TLS13);
    let key_update = [24, 0, 0, 1, 0];
    client.send_record(HANDSHAKE, &key_update[..3]);
    assert_eq!(client.link.ended, None);
    // The server keeps the half, and writes meanwhile.
    client.link.server.write(b"meanwhile").unwrap();
    client.expect_sent(b"meanwhile");
    let (mut inner, _) = crate::transport::writers(1, true);
    let write = |()| {
        Some(Write {
            tag: (),
            transport: &client.link.server,
            bytes: b"to many",
        })
    };
    inner[0].write_many(&[()], write, |(), _, outcome, _| {
        assert_eq!(outcome.unwrap(), 7);
    });
    client.expect_sent(b"to many");
    // The update is complete: only records with the next key are accepted.
    client.send_record(HANDSHAKE, &key_update[3..]);
    assert_eq!(client.link.ended, None);
    client.link.server.write(b"after").unwrap();
    client.expect_sent(b"after");
    client.send_record(DATA, b"with the old key");
    client.expect_alert(AlertDescription::BadRecordMac);
}

#[test]
fn half_a_key_update_leaves_the_server_able_to_end() {
    let mut client = Rude::new(&TLS13);
    client.send_record(HANDSHAKE, &[24, 0]);
    client.link.server.finish();
    until("the end arrives", || !client.read());
    assert_eq!(client.alert, Some((1, AlertDescription::CloseNotify)));
}

#[test]
fn data_within_a_key_update_is_refused() {
    let mut client = Rude::new(&TLS13);
    client.send_record(HANDSHAKE, &[24, 0]);
    client.send_record(DATA, b"between");
    client.expect_failure();
}

#[test]
fn endless_handshake_message_is_bounded() {
    for version in VERSIONS {
        let mut client = Rude::new(version);
        // A message of 60,000 bytes, which never ends.
        let mut part = vec![24, 0, 0xEA, 0x60];
        while client.link.ended.is_none() && client.sent < 1_000 {
            part.resize(1_000, 0);
            client.send_record(HANDSHAKE, &part);
            part.clear();
        }
        client.link.serve_until_refused();
        assert_eq!(client.link.server.received_bytes(), 0);
    }
}

#[test]
fn unexpected_handshake_message_is_refused() {
    let mut client = Rude::new(&TLS13);
    // A Finished message.
    client.send_record(HANDSHAKE, &[20, 0, 0, 1, 0]);
    client.expect_alert(AlertDescription::UnexpectedMessage);
}

#[test]
fn renegotiation_is_refused() {
    let (_, config) = configs(&TLS12);
    let (server, _) = configs(&TLS12);
    let hello = Link::new(&server, &config).client_output();
    let mut client = Rude::new(&TLS12);
    // RFC 5246 §7.2.2: the first attempt gets a warning.
    client.send_record(HANDSHAKE, &hello[5..]);
    until("the warning arrives", || {
        client.link.serve();
        client.read();
        client.alert.is_some()
    });
    assert_eq!(client.alert, Some((1, AlertDescription::NoRenegotiation)));
    assert_eq!(client.link.ended, None);
    client.send_record(DATA, b"goes on");
    client.expect_received(b"goes on");
    client.alert = None;
    for _ in 0..3 {
        client.send_record(HANDSHAKE, &hello[5..]);
    }
    client.link.serve_until_refused();
}

#[test]
fn second_hello_of_tls_1_3_is_refused() {
    let (server, config) = configs(&TLS13);
    let hello = Link::new(&server, &config).client_output();
    let mut client = Rude::new(&TLS13);
    client.send_record(HANDSHAKE, &hello[5..]);
    client.expect_alert(AlertDescription::UnexpectedMessage);
}

#[test]
fn fatal_alert_ends_the_connection() {
    for version in VERSIONS {
        let mut client = Rude::new(version);
        client.send_record(ALERT, &[2, AlertDescription::InternalError.into()]);
        client.link.serve_until_refused();
        client.link.assert_failed(TlsFailure::Alert);
        assert!(client.link.server.write(b"no more").is_err());
    }
}

#[test]
fn warning_flood_ends_the_connection() {
    for version in VERSIONS {
        let mut client = Rude::new(version);
        for _ in 0..20 {
            client.send_record(ALERT, &[1, AlertDescription::UserCanceled.into()]);
        }
        client.link.serve_until_refused();
    }
}

#[test]
fn data_after_close_notify_is_ignored() {
    for version in VERSIONS {
        let mut client = Rude::new(version);
        client.link.received.clear();
        let end = client.record(ALERT, &[1, AlertDescription::CloseNotify.into()]);
        let late = client.record(DATA, b"late");
        client.link.send(&[end, late].concat());
        assert_eq!(client.link.serve_until_ended(), Ok(()));
        assert_eq!(client.link.received, b"");
        assert_eq!(client.link.server.received_bytes(), 0);
        client.link.server.write(b"still").unwrap();
        client.expect_sent(b"still");
    }
}

/// Sends bytes in a handshake, and returns the server's answer.
fn answer_in_handshake(link: &mut Link, bytes: &[u8]) -> Vec<u8> {
    link.send(bytes);
    link.serve_until_refused();
    assert!(matches!(link.server.handshake(), Handshake::Failed(_)));
    assert_eq!(link.server.received_bytes(), 0);
    link.server.finish();
    let mut answer = Vec::new();
    link.socket.set_nonblocking(false).unwrap();
    std::io::Read::read_to_end(&mut link.socket, &mut answer).unwrap();
    answer
}

/// A record without encryption.
fn plain_record(typ: u8, payload: &[u8]) -> Vec<u8> {
    let mut record = vec![typ, 3, 3];
    record.extend((payload.len() as u16).to_be_bytes());
    record.extend(payload);
    record
}

#[test]
fn garbage_in_place_of_a_hello_is_refused() {
    let (server, client) = configs(&TLS13);
    for garbage in [
        vec![0; 100],
        vec![0xFF; 100],
        plain_record(22, &[0; 10]),
        plain_record(22, &[1, 0, 0, 3, 3, 3, 0]),
        plain_record(23, b"data"),
        plain_record(20, &[1, 1]),
        // SSLv2, and a record that is too long.
        b"\x80\x2e\x01\x00\x02".to_vec(),
        vec![22, 3, 1, 0x48, 1],
    ] {
        let mut link = Link::new(&server, &client);
        let answer = answer_in_handshake(&mut link, &garbage);
        assert_eq!(
            (answer[0], answer.len(), answer[5]),
            (21, 7, 2),
            "{garbage:?}"
        );
    }
}

#[test]
fn record_within_a_cut_hello_is_refused() {
    let (server, config) = configs(&TLS13);
    for between in [plain_record(23, b"x"), plain_record(21, &[1, 0])] {
        let mut link = Link::new(&server, &config);
        let hello = link.client_output();
        // The first part of the hello is a record of its own.
        let mut bytes = plain_record(22, &hello[5..30]);
        bytes.extend(between);
        answer_in_handshake(&mut link, &bytes);
    }
}

#[test]
fn hello_in_many_records_is_accepted() {
    for version in VERSIONS {
        let (server, config) = configs(version);
        let mut link = Link::new(&server, &config);
        let hello = link.client_output();
        for part in hello[5..].chunks(7) {
            link.send(&plain_record(22, part));
            link.serve();
        }
        link.shake();
        link.echo(b"as usual");
    }
}

#[test]
fn endless_hello_is_bounded() {
    let (server, config) = configs(&TLS13);
    let mut link = Link::new(&server, &config);
    let mut bytes = plain_record(22, &[1, 0, 0xEA, 0x60, 3, 3]);
    for _ in 0..100 {
        bytes.extend(plain_record(22, &[0; 1_000]));
    }
    link.send(&bytes);
    link.serve_until_refused();
    link.assert_failed(TlsFailure::Malformed);
}

#[test]
fn garbage_in_place_of_finished_is_refused() {
    for version in VERSIONS {
        let (server, config) = configs(version);
        for garbage in [
            vec![0xFF; 100],
            plain_record(23, &[7; 60]),
            plain_record(22, &[1, 0]),
            plain_record(22, &[99, 0, 0, 1, 0]),
        ] {
            let mut link = Link::new(&server, &config);
            let hello = link.client_output();
            link.send(&hello);
            link.serve();
            let mut garbage = garbage;
            // An incomplete message needs another record to be wrong.
            garbage.extend(plain_record(23, b"x"));
            answer_in_handshake(&mut link, &garbage);
        }
    }
}

#[test]
fn alert_in_the_handshake_is_counted_by_its_cause() {
    let (server, config) = configs(&TLS12);
    for (alert, failure) in [
        (AlertDescription::UnknownCA, TlsFailure::Untrusted),
        (AlertDescription::BadCertificate, TlsFailure::Untrusted),
        (AlertDescription::CertificateExpired, TlsFailure::Untrusted),
        (AlertDescription::HandshakeFailure, TlsFailure::Alert),
    ] {
        let mut link = Link::new(&server, &config);
        let hello = link.client_output();
        link.send(&hello);
        link.serve();
        link.send(&plain_record(21, &[2, alert.into()]));
        link.serve_until_refused();
        link.assert_failed(failure);
    }
}
