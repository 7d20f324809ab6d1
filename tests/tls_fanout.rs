//! Messages to many clients over TLS, some of them slow: each policy for slow consumers, on the slow clients and on all
//! others.

use crate::certificates::{Authority, VERSIONS};
use crate::readers;
use crate::support;
use crate::tls_clients;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use humphrey_ws::{AsyncSender, AsyncWebsocketApp, Limits, Message, RunningApp, SlowConsumer};
use readers::{Got, Reader, expect_all, read_all};
use rustls::ClientConfig;
use support::{DEADLINE, eventually, read_frame, start};
use tls_clients::{TlsStream, raw_websocket};

const MESSAGES: u64 = 4_000;
const READERS: usize = 6;

type Clients = [Arc<ClientConfig>; 2];

fn serve(policy: SlowConsumer) -> (RunningApp, SocketAddr, Clients) {
    let authority = Authority::new();
    let limits = Limits::default().outbox_bytes_max(400_000);
    let (running, address) = start(
        AsyncWebsocketApp::<()>::new()
            .with_shards(2)
            .with_limits(limits)
            .with_slow_consumer(policy)
            .with_tls(authority.app_tls()),
    );
    let clients = VERSIONS.map(|version| authority.client_of(&[version]));
    (running, address, clients)
}

/// A message whose length is below, at or above that of a record, or far below.
fn numbered(n: u64) -> Vec<u8> {
    let len = [8, 30, 1_000, 16_380, 16_384, 20_000][n as usize % 6];
    let mut payload = vec![n as u8; len];
    payload[..8].copy_from_slice(&n.to_be_bytes());
    payload
}

/// Checks the payload of a message, and returns its number.
fn number_of(payload: &[u8]) -> u64 {
    let number = u64::from_be_bytes(payload[..8].try_into().unwrap());
    assert!(payload == numbered(number), "message {number} has changed");
    number
}

fn readers(address: SocketAddr, clients: &Clients) -> Vec<Reader> {
    (0..READERS)
        .map(|n| Reader::start(raw_websocket(address, &clients[n % 2]), number_of))
        .collect()
}

fn broadcast_all(sender: &AsyncSender, readers: &[Reader]) {
    let messages = (0..MESSAGES).map(|n| Message::new_binary(numbered(n)));
    readers::broadcast_all(sender, readers, 12, messages);
}

#[test]
fn disconnect_ends_slow_clients_and_others_get_all() {
    let (running, address, clients) = serve(SlowConsumer::Disconnect);
    let sender = running.sender();
    let readers = readers(address, &clients);
    let nonreaders = [0, 1].map(|n: usize| raw_websocket(address, &clients[n]));
    eventually("all clients are connected", || {
        sender.connections() == READERS + 2
    });
    broadcast_all(&sender, &readers);
    eventually("the nonreaders are disconnected", || {
        sender.connections() == READERS
    });
    assert_eq!(sender.metrics().slow_consumers, 2);
    running.shutdown(DEADLINE);
    expect_all(readers, MESSAGES);
    for nonreader in nonreaders {
        // The nonreader was reset. The messages before that are whole and without a gap.
        let got = read_all(nonreader, number_of);
        assert!(got.has_no_gap());
        assert!(matches!(got.close, None | Some(1013)), "{:?}", got.close);
    }
}

#[test]
fn drop_newest_keeps_the_oldest_and_counts_exactly() {
    dropping(SlowConsumer::DropNewest);
}

#[test]
fn drop_oldest_keeps_the_newest_and_counts_exactly() {
    for got in dropping(SlowConsumer::DropOldest) {
        assert_eq!(got.numbers.last(), Some(&(MESSAGES - 1)));
    }
}

#[test]
fn skip_ahead_ends_with_the_newest_and_counts_exactly() {
    for got in dropping(SlowConsumer::SkipAhead) {
        assert_eq!(got.numbers.last(), Some(&(MESSAGES - 1)));
    }
}

fn dropping(policy: SlowConsumer) -> Vec<Got> {
    let (running, address, clients) = serve(policy);
    let sender = running.sender();
    let readers = readers(address, &clients);
    let nonreaders = [0, 1].map(|n: usize| raw_websocket(address, &clients[n]));
    let all = READERS + nonreaders.len();
    eventually("all clients are connected", || sender.connections() == all);
    broadcast_all(&sender, &readers);
    assert_eq!(sender.connections(), all, "a client was disconnected");
    let late = nonreaders.map(|nonreader| Reader::start(nonreader, number_of));
    eventually("all messages are sent or dropped", || {
        let metrics = sender.metrics();
        metrics.messages_out + metrics.dropped.slow_consumer == MESSAGES * all as u64
    });
    let dropped = sender.metrics().dropped.slow_consumer;
    assert!(dropped > 0);
    running.shutdown(DEADLINE);
    expect_all(readers, MESSAGES);
    let late: Vec<_> = late.into_iter().map(Reader::join).collect();
    for got in &late {
        assert_eq!(got.close, Some(1001));
        assert!(got.numbers.is_sorted(), "the messages are out of order");
    }
    let received: usize = late.iter().map(|got| got.numbers.len()).sum();
    assert_eq!(received as u64 + dropped, 2 * MESSAGES);
    late
}

/// A stream that is read at a limited rate.
struct Slowed {
    stream: TlsStream,
    bytes_per_second: f64,
    read: usize,
    since: Instant,
}

impl Read for Slowed {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let due = Duration::from_secs_f64(self.read as f64 / self.bytes_per_second);
        if let Some(early) = due.checked_sub(self.since.elapsed()) {
            std::thread::park_timeout(early);
        }
        let n = self.stream.read(buffer)?;
        self.read += n;
        Ok(n)
    }
}

#[test]
fn pace_delivers_all_to_readers_and_ends_nonreaders() {
    let (running, address, clients) = serve(SlowConsumer::Pace {
        bytes_per_second_min: 1_000,
        // Longer than a reader's thread may wait for a CPU here.
        patience: Duration::from_secs(5),
    });
    let sender = running.sender();
    let readers: Vec<_> = (1..=READERS)
        .map(|n| {
            let slowed = Slowed {
                stream: raw_websocket(address, &clients[n % 2]),
                bytes_per_second: n as f64 * 12e6,
                read: 0,
                since: Instant::now(),
            };
            Reader::start(slowed, number_of)
        })
        .collect();
    let nonreader = raw_websocket(address, &clients[0]);
    eventually("all clients are connected", || {
        sender.connections() == READERS + 1
    });
    // The producer is as fast as the clients let it be.
    for n in 0..MESSAGES {
        sender.broadcast(Message::new_binary(numbered(n)));
    }
    eventually("the nonreader is disconnected", || {
        sender.connections() == READERS
    });
    assert_eq!(sender.metrics().slow_consumers, 1);
    running.shutdown(DEADLINE);
    expect_all(readers, MESSAGES);
    drop(nonreader);
}

#[test]
fn plain_and_own_messages_keep_their_order() {
    // Each client's replies and the broadcasts between them.
    const ROUNDS: u64 = 200;
    let authority = Authority::new();
    let app = AsyncWebsocketApp::<()>::new()
        .with_message_handler(|stream, message: Message, _| stream.send(message))
        .with_tls(authority.app_tls());
    let (running, address) = start(app);
    let sender = running.sender();
    let config = authority.client();
    let mut clients: Vec<_> = (0..20).map(|_| raw_websocket(address, &config)).collect();
    eventually("all clients are connected", || sender.connections() == 20);
    for client in &mut clients {
        let mut requests = Vec::new();
        for n in 0..ROUNDS {
            requests.extend(support::client_frame(0x81, n.to_string().as_bytes()));
        }
        client.write_all(&requests).unwrap();
        client.flush().unwrap();
    }
    for n in 0..ROUNDS {
        sender.broadcast(Message::new_binary(numbered(n)));
    }
    for client in &mut clients {
        let (mut replies, mut broadcasts) = (0, 0);
        while replies < ROUNDS || broadcasts < ROUNDS {
            match read_frame(client).unwrap() {
                (0x81, payload) => {
                    assert_eq!(payload, replies.to_string().into_bytes());
                    replies += 1;
                }
                (0x82, payload) => {
                    assert!(payload == numbered(broadcasts));
                    broadcasts += 1;
                }
                other => panic!("unexpected: {other:?}"),
            }
        }
    }
    running.shutdown(Duration::from_millis(100));
}
