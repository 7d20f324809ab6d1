//! Tests of TLS connections on real sockets: bytes cut anywhere, sockets that accept little, and clients that break the
//! protocol. `rude.rs` has those that need records which no honest client sends.

mod rude;

use std::io::ErrorKind;
use std::sync::Arc;

use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuiteCommon, ClientConfig, ServerConfig, SupportedCipherSuite};
use rustls::{SupportedProtocolVersion, Tls13CipherSuite};

use super::session::RECORD_BYTES;
use super::testing::{Link, client_config, server_config, sockets, until};
use super::{ShardSocket, Writer};
use crate::crypto::provider;
use crate::protocol::fuzz::dice::{Dice, for_seeds};
use crate::transport::{Handshake, ShardTransport, TlsFailure, Write, WriteMany};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

fn configs(version: &'static SupportedProtocolVersion) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let provider = || Arc::unwrap_or_clone(provider());
    (
        Arc::new(server_config(provider(), &[version])),
        Arc::new(client_config(provider(), &[version])),
    )
}

/// Bytes of which no two parts are alike.
fn noise(len: usize) -> Vec<u8> {
    let mut dice = Dice::from_seed(len as u64);
    (0..len.div_ceil(4))
        .flat_map(|_| (dice.below(1 << 30) as u32).to_be_bytes())
        .take(len)
        .collect()
}

/// Lets a socket's buffers hold little.
fn shrink(link: &Link) {
    let ShardSocket::Tls(tls) = &link.server else {
        unreachable!()
    };
    rustix::net::sockopt::set_socket_send_buffer_size(&tls.tcp, 4 << 10).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&link.socket, 32 << 10).unwrap();
}

/// Sends bytes, cut at `at`.
fn send_cut(link: &mut Link, bytes: &[u8], at: usize) {
    let (first, second) = bytes.split_at(at.min(bytes.len()));
    link.send(first);
    link.serve();
    link.send(second);
    link.serve();
}

/// Plays a whole connection. The client's bytes are cut at position `cut`. Returns their number.
fn play_cut(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>, cut: usize) -> usize {
    let mut link = Link::new(server, client);
    let text = noise(300);
    link.client_write(&text);
    let mut sent = 0;
    until("the server has received", || {
        let output = link.client_output();
        send_cut(&mut link, &output, cut.saturating_sub(sent));
        sent += output.len();
        link.client_read(usize::MAX);
        assert_eq!((&link.ended, &link.client_ended), (&None, &None));
        link.received.len() == text.len()
    });
    assert!(link.received == text);
    link.server_write(&text);
    link.client.as_mut().unwrap().send_close_notify();
    let output = link.client_output();
    send_cut(&mut link, &output, cut.saturating_sub(sent));
    assert_eq!(link.exchange_until_ended(), Ok(()));
    assert_eq!(link.server.received_bytes(), 0);
    link.server.finish();
    link.client_read_to_close_notify();
    assert!(link.client_received == text);
    sent + output.len()
}

#[test]
fn connection_cut_at_every_position_works() {
    for version in VERSIONS {
        let (server, client) = configs(version);
        let total = play_cut(&server, &client, usize::MAX);
        // In debug builds a handshake takes milliseconds.
        let step = if cfg!(debug_assertions) { 3 } else { 1 };
        for cut in (0..total).step_by(step) {
            play_cut(&server, &client, cut);
        }
    }
}

#[test]
fn bytes_that_arrive_alone_make_a_connection() {
    for version in VERSIONS {
        let (server, client) = configs(version);
        let mut link = Link::new(&server, &client);
        let text = noise(1_000);
        link.client_write(&text);
        until("the server has received", || {
            for byte in link.client_output() {
                link.send(&[byte]);
                link.serve();
            }
            link.client_read(usize::MAX);
            assert_eq!(link.ended, None);
            link.received.len() == text.len()
        });
        assert!(link.received == text);
        link.echo(b"and back");
    }
}

#[test]
fn output_arrives_whole_where_the_socket_accepts_little() {
    for version in VERSIONS {
        let (server, client) = configs(version);
        let mut link = Link::open(&server, &client);
        shrink(&link);
        let mut sent = Vec::new();
        let mut was_pending = false;
        let sizes = [1, 100, 16_383, 16_384, 16_385, 70_000, 300_000, 0, 1];
        for bytes in sizes.map(noise) {
            let mut left = &bytes[..];
            until("the server has written", || {
                if let Ok(n) = link.server.write(left) {
                    left = &left[n..];
                }
                was_pending |= link.server.has_pending();
                link.check_memory();
                link.client_read(1_500);
                left.is_empty()
            });
            sent.extend(bytes);
        }
        assert!(was_pending);
        until("the client has all", || {
            link.server.flush();
            link.client_read(usize::MAX);
            assert_eq!(link.client_ended, None);
            link.client_received.len() >= sent.len()
        });
        assert!(link.client_received == sent);
        assert!(!link.server.has_pending());
        assert_eq!(link.server.pending_bytes(), 0);
    }
}

#[test]
fn pieces_of_a_vectored_write_arrive_in_order() {
    let (server, client) = configs(&TLS13);
    let mut link = Link::open(&server, &client);
    shrink(&link);
    for_seeds(30, |seed| {
        let mut dice = Dice::from_seed(seed);
        let pieces: Vec<Vec<u8>> = (0..dice.below(9))
            .map(|_| {
                let len = [0, 1, 40, 5_000, 17_000, 60_000][dice.below(6)];
                noise(len)
            })
            .collect();
        let all = pieces.concat();
        let from = link.client_received.len();
        let mut at = 0;
        until("the server has written", || {
            let mut skip = at;
            let left: Vec<_> = pieces
                .iter()
                .map(|piece| {
                    let skipped = skip.min(piece.len());
                    skip -= skipped;
                    std::io::IoSlice::new(&piece[skipped..])
                })
                .collect();
            if let Ok(n) = link.server.write_vectored(&left) {
                at += n;
            }
            link.check_memory();
            link.client_read(9_000);
            at == all.len()
        });
        until("the client has all", || {
            link.server.flush();
            link.client_read(usize::MAX);
            link.client_received.len() >= from + all.len()
        });
        assert!(link.client_received[from..] == all);
    });
}

/// A recipient of `Writer::write_many`, as the shard treats one.
struct Recipient {
    link: Link,
    /// The bytes that the server's socket has not accepted yet.
    outbox: Vec<u8>,
    sent: Vec<u8>,
    /// The client reads only now and then.
    stalls: bool,
}

#[test]
fn messages_to_many_arrive_whole_and_in_order() {
    for_seeds(12, |seed| {
        let mut dice = Dice::from_seed(seed);
        let both = VERSIONS.map(configs);
        let mut recipients: Vec<_> = (0..1 + dice.below(40))
            .map(|_| {
                let (server, client) = &both[dice.below(2)];
                let link = if dice.one_in(4) {
                    let mut link = Link::new(server, client);
                    let (tcp, socket) = sockets();
                    (link.server, link.socket) = (tcp.into(), socket);
                    link.client = None;
                    link
                } else {
                    let link = Link::open(server, client);
                    shrink(&link);
                    link
                };
                Recipient {
                    link,
                    outbox: Vec::new(),
                    sent: Vec::new(),
                    stalls: dice.one_in(3),
                }
            })
            .collect();
        let (mut inner, _) = crate::transport::writers(1, true);
        let writer: &mut Writer = &mut inner[0];
        for _ in 0..30 {
            let message = noise([1, 30, 1_000, 16_384, 40_000, 100_000][dice.below(6)]);
            let mut unfinished = Vec::new();
            let mut targets: Vec<usize> = Vec::new();
            for (index, recipient) in recipients.iter_mut().enumerate() {
                recipient.sent.extend(&message);
                if !recipient.outbox.is_empty() || recipient.link.server.has_pending() {
                    recipient.outbox.extend(&message);
                } else {
                    targets.push(index);
                }
            }
            let write = |index: usize| {
                Some(Write {
                    tag: index,
                    transport: &recipients[index].link.server,
                    bytes: &message,
                })
            };
            let mut outcomes = 0;
            writer.write_many(&targets, write, |index, len, outcome, is_pending| {
                outcomes += 1;
                let server = &recipients[index].link.server;
                assert_eq!(is_pending, outcome.is_ok() && server.has_pending());
                assert_eq!(len, message.len());
                match outcome {
                    Ok(n) => unfinished.push((index, n)),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::WouldBlock);
                        unfinished.push((index, 0));
                    }
                }
            });
            assert_eq!(outcomes, targets.len());
            for (index, n) in unfinished {
                recipients[index].outbox.extend(&message[n..]);
            }
            for recipient in &mut recipients {
                recipient.step(!recipient.stalls || dice.one_in(8));
            }
        }
        for recipient in &mut recipients {
            until("the client has all", || {
                recipient.step(true);
                recipient.link.client_received.len() >= recipient.sent.len()
            });
            assert!(recipient.link.client_received == recipient.sent);
        }
    });
}

impl Recipient {
    fn step(&mut self, reads: bool) {
        let link = &mut self.link;
        link.server.flush();
        if !self.outbox.is_empty()
            && let Ok(n) = link.server.write(&self.outbox)
        {
            self.outbox.drain(..n);
        }
        link.check_memory();
        if reads && link.client.is_some() {
            link.client_read(50_000);
            assert_eq!(link.client_ended, None);
        } else if reads {
            let mut bytes = [0; 50_000];
            if let Ok(n) = std::io::Read::read(&mut link.socket, &mut bytes) {
                link.client_received.extend(&bytes[..n]);
            }
        }
    }
}

#[test]
fn clients_key_updates_are_answered() {
    let (server, client) = configs(&TLS13);
    let mut link = Link::open(&server, &client);
    for n in 0..100 {
        link.client
            .as_mut()
            .unwrap()
            .refresh_traffic_keys()
            .unwrap();
        link.echo(&noise(n * 200));
    }
}

#[test]
fn key_update_flood_ends_the_connection() {
    let (server, client) = configs(&TLS13);
    let mut link = Link::open(&server, &client);
    for _ in 0..100 {
        link.client
            .as_mut()
            .unwrap()
            .refresh_traffic_keys()
            .unwrap();
    }
    until("the server has refused", || {
        let output = link.client_output();
        link.send(&output);
        link.serve();
        link.ended.is_some()
    });
    link.assert_failed(TlsFailure::Malformed);
    assert_eq!(link.server.received_bytes(), 0);
}

/// Returns the provider with cipher suites of TLS 1.3 whose keys are used up after this number of records.
fn short_lived_keys(limit: u64) -> rustls::crypto::CryptoProvider {
    let mut provider = Arc::unwrap_or_clone(provider());
    for suite in &mut provider.cipher_suites {
        if let SupportedCipherSuite::Tls13(of) = *suite {
            *suite = SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
                common: CipherSuiteCommon {
                    suite: of.common.suite,
                    hash_provider: of.common.hash_provider,
                    confidentiality_limit: limit,
                },
                hkdf_provider: of.hkdf_provider,
                aead_alg: of.aead_alg,
                quic: None,
            })));
        }
    }
    provider
}

#[test]
fn server_updates_its_keys_when_they_are_used_up() {
    let (_, client) = configs(&TLS13);
    let server = Arc::new(server_config(short_lived_keys(50), &[&TLS13]));
    let mut link = Link::open(&server, &client);
    shrink(&link);
    for n in 0..500 {
        link.echo(&noise(n * 10));
    }
    // Several updates within one write.
    link.echo(&noise(200 * RECORD_BYTES));
}

#[test]
fn finish_sends_pending_bytes_and_then_close_notify() {
    for version in VERSIONS {
        let (server, client) = configs(version);
        let mut link = Link::open(&server, &client);
        shrink(&link);
        let bytes = noise(16 << 10);
        let mut sent = 0;
        while !link.server.has_pending() {
            sent += link.server.write(&bytes).unwrap();
        }
        link.server.finish();
        link.server.finish();
        link.check_memory();
        assert!(link.server.has_pending());
        assert_eq!(
            link.server.write(b"late").map_err(|error| error.kind()),
            Err(ErrorKind::WouldBlock)
        );
        until("the client has the end", || {
            link.server.flush();
            link.client_read(usize::MAX);
            link.client_ended.is_some()
        });
        assert_eq!(link.client_ended, Some(Ok(())));
        assert_eq!(link.client_received.len(), sent);
        assert!(
            link.client_received
                .chunks(bytes.len())
                .all(|it| it == bytes)
        );
        // The server still receives the client's bytes, but can't send any more.
        link.server.finish();
        assert!(link.server.write(b"late").is_err());
        link.client_write(b"answer");
        until("the server has received", || {
            let output = link.client_output();
            link.send(&output);
            link.serve();
            link.received == b"answer"
        });
    }
}

#[test]
fn client_that_has_closed_still_receives() {
    for version in VERSIONS {
        let (server, client) = configs(version);
        let mut link = Link::open(&server, &client);
        link.client.as_mut().unwrap().send_close_notify();
        assert_eq!(link.exchange_until_ended(), Ok(()));
        let bytes = noise(40_000);
        link.server_write(&bytes);
        link.server.finish();
        link.client_read_to_close_notify();
        assert!(link.client_received == bytes);
    }
}

#[test]
fn request_and_close_notify_within_the_handshake_are_answered() {
    for version in VERSIONS {
        let (server, client) = configs(version);
        let mut link = Link::new(&server, &client);
        link.client_write(b"request");
        // The client's last flight, its request and its close_notify arrive at once.
        until("the client has completed the handshake", || {
            if link.client.as_ref().unwrap().is_handshaking() {
                let output = link.client_output();
                link.send(&output);
                link.serve();
                link.client_read(usize::MAX);
            }
            !link.client.as_ref().unwrap().is_handshaking()
        });
        link.client.as_mut().unwrap().send_close_notify();
        let output = link.client_output();
        link.send(&output);
        assert_eq!(link.serve_until_ended(), Ok(()));
        assert_eq!(link.received, b"request");
        assert_eq!(
            link.server.handshake(),
            Handshake::Complete { resumed: false }
        );
        assert_eq!(link.server.read_cost(), 0);
        link.server_write(b"response");
        until("the client has received", || {
            link.client_read(usize::MAX);
            link.client_received == b"response"
        });
    }
}

#[test]
fn stream_without_close_notify_is_truncated() {
    for version in VERSIONS {
        let (server, client) = configs(version);
        let mut link = Link::open(&server, &client);
        link.echo(b"before");
        link.socket.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(link.serve_until_ended(), Err(ErrorKind::UnexpectedEof));
        assert!(matches!(
            link.server.handshake(),
            Handshake::Complete { .. }
        ));
    }
}

#[test]
fn end_within_the_handshake_is_an_abort() {
    let (server, client) = configs(&TLS13);
    for part in [0, 1, 5, 100] {
        let mut link = Link::new(&server, &client);
        let hello = link.client_output();
        link.send(&hello[..part]);
        link.serve();
        assert_eq!(link.ended, None);
        assert_eq!(link.server.handshake(), Handshake::Running);
        link.socket.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(link.serve_until_ended(), Err(ErrorKind::UnexpectedEof));
        assert_eq!(
            link.server.handshake(),
            Handshake::Failed(TlsFailure::Aborted)
        );
    }
}

#[test]
fn nothing_is_written_before_the_handshake() {
    let (server, client) = configs(&TLS13);
    let mut link = Link::new(&server, &client);
    let kind = |outcome: std::io::Result<usize>| outcome.map_err(|error| error.kind());
    assert_eq!(
        kind(link.server.write(b"early")),
        Err(ErrorKind::NotConnected)
    );
    link.shake();
    link.echo(b"then");
}

#[test]
fn request_without_tls_is_answered_with_400() {
    let (server, client) = configs(&TLS13);
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "p",
    ] {
        let mut link = Link::new(&server, &client);
        link.client = None;
        link.send(request.as_bytes());
        link.serve_until_refused();
        link.assert_failed(TlsFailure::PlainHttp);
        let Link { server, socket, .. } = link;
        drop(server);
        socket.set_nonblocking(false).unwrap();
        let response = std::io::read_to_string(socket).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
        assert!(body.contains("wss://"), "{body}");
    }
}
