//! Tests compression over real sockets, with the client of this library and with raw frames.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use humphrey_ws::websocket_client::Client;
use humphrey_ws::{AsyncSender, AsyncWebsocketApp, Compression, Limits, Message, RunningApp};
use miniz_oxide::deflate::compress_to_vec;

/// The maximum time to wait for anything. It is ample even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

fn app() -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::<()>::new()
        .with_address("127.0.0.1:0")
        .with_shards(1)
        .with_compression(Compression::new())
        .with_message_handler(|stream, message, _| stream.send(message))
}

fn start(app: AsyncWebsocketApp<()>) -> (RunningApp, SocketAddr) {
    let running = app.start().unwrap();
    let address = running.local_addr().unwrap();
    (running, address)
}

fn connect(address: SocketAddr) -> Client {
    let client = Client::builder(&format!("ws://{address}/"))
        .with_compression()
        .with_read_timeout(Some(DEADLINE))
        .connect()
        .unwrap();
    assert!(client.header("Sec-WebSocket-Extensions").is_some());
    client
}

fn wait_for_connections(sender: &AsyncSender, count: u64) {
    let begun = Instant::now();
    while sender.metrics().connections != count {
        assert!(begun.elapsed() < DEADLINE, "{count} connections");
        thread::yield_now();
    }
}

fn tick(n: usize) -> String {
    format!(
        r#"{{"type":"tick","symbol":"EUR/USD","bid":1.{:05},"ask":1.{:05},"time":{}}}"#,
        n * 7919 % 100_000,
        n * 104_729 % 100_000,
        1_700_000_000 + n
    )
}

#[test]
fn broadcasts_to_followers_and_late_joiners_arrive_unchanged() {
    let (running, address) = start(app());
    let sender = running.sender();
    let mut clients: Vec<Client> = (0..4).map(|_| connect(address)).collect();
    wait_for_connections(&sender, 4);
    for n in 0..1_000 {
        sender.broadcast(tick(n));
        for client in &mut clients {
            assert_eq!(client.receive().unwrap().text(), Some(&*tick(n)), "{n}");
        }
        if n == 500 {
            clients.push(connect(address));
            wait_for_connections(&sender, 5);
        }
    }
    let compression = sender.metrics().compression;
    assert!(
        compression.sent_bytes * 3 < compression.plain_bytes,
        "{compression:?}"
    );
    // One epoch begins with the first message, and another one for the late joiner.
    assert_eq!((compression.epochs, compression.compressed), (2, 1_000));
}

#[test]
fn reply_is_compressed_from_1_kib_on() {
    let (running, address) = start(app());
    let sender = running.sender();
    let mut client = connect(address);
    for (len, compressed) in [(1_023, 0), (1_024, 1), (4_096, 2)] {
        let message = "x".repeat(len);
        client.send(Message::new(&message)).unwrap();
        assert_eq!(client.receive().unwrap().text(), Some(&*message));
        assert_eq!(sender.metrics().compression.compressed, compressed);
    }
}

#[test]
fn long_broadcast_is_compressed_once_and_starts_an_epoch() {
    let (running, address) = start(app());
    let sender = running.sender();
    let mut clients: Vec<Client> = (0..10).map(|_| connect(address)).collect();
    wait_for_connections(&sender, 10);
    let long = (0..1_000).map(tick).collect::<String>();
    for message in [long.clone(), tick(3), long, tick(4)] {
        sender.broadcast(message.clone());
        for client in &mut clients {
            assert_eq!(client.receive().unwrap().text(), Some(&*message));
        }
    }
    let compression = sender.metrics().compression;
    assert_eq!((compression.compressed, compression.epochs), (4, 2));
    assert!(compression.sent_bytes * 3 < compression.plain_bytes);
}

#[test]
fn messages_marked_uncompressed_are_not_compressed() {
    let app = app().with_message_handler(|stream, message, _| {
        stream.send(message.clone().uncompressed());
        stream.broadcast(message.uncompressed());
    });
    let (running, address) = start(app);
    let mut client = connect(address);
    let long = (0..1_000).map(tick).collect::<String>();
    for message in [tick(1), long] {
        client.send(Message::new(&message)).unwrap();
        for _ in 0..2 {
            assert_eq!(client.receive().unwrap().text(), Some(&*message));
        }
    }
    assert_eq!(running.sender().metrics().compression.compressed, 0);
}

/// Connects, offers an extension, and reads the head of the response.
fn raw(address: SocketAddr, offer: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let head = format!(
        "GET / HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Extensions: {offer}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
    stream
}

/// Encodes a frame that is masked with zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..=125 => frame.push(0x80 | len as u8),
        len => {
            frame.push(0x80 | 126);
            frame.extend((len as u16).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend_from_slice(payload);
    frame
}

/// Reads a close frame, and returns its code.
fn close_code(stream: &mut TcpStream) -> u16 {
    let mut head = [0; 4];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[0], 0x88, "not a close frame");
    u16::from_be_bytes([head[2], head[3]])
}

const TEXT: u8 = 0x81;
const COMPRESSED: u8 = 0x40;

#[test]
fn bomb_or_invalid_data_closes_with_its_code() {
    let limits = Limits::default().message_bytes_max(64 << 10);
    let (running, address) = start(app().with_limits(limits));
    let deflated = |payload: &[u8]| compress_to_vec(payload, 9);
    let cases = [
        (
            "decompression bomb",
            TEXT | COMPRESSED,
            deflated(&vec![b'a'; 16 << 20]),
            1009,
        ),
        (
            "one byte over the limit",
            TEXT | COMPRESSED,
            deflated(&vec![b'a'; (64 << 10) + 1]),
            1009,
        ),
        (
            "invalid deflate stream",
            TEXT | COMPRESSED,
            b"\xFF\xFF\xFF".to_vec(),
            1007,
        ),
        ("invalid UTF-8", TEXT | COMPRESSED, deflated(b"\xFF"), 1007),
        (
            "incomplete character",
            TEXT | COMPRESSED,
            deflated(b"\xC3"),
            1007,
        ),
        ("compressed ping", 0x89 | COMPRESSED, b"x".to_vec(), 1002),
        (
            "compressed continuation",
            0x80 | COMPRESSED,
            b"x".to_vec(),
            1002,
        ),
        ("RSV2", TEXT | 0x20, b"x".to_vec(), 1002),
    ];
    for (what, first, payload, code) in cases {
        let mut stream = raw(address, "permessage-deflate");
        stream.write_all(&frame(first, &payload)).unwrap();
        assert_eq!(close_code(&mut stream), code, "{what}");
    }
    assert_eq!(running.sender().metrics().compression.bombs, 2);
    let mut stream = raw(address, "permessage-deflate; x");
    stream
        .write_all(&frame(TEXT | COMPRESSED, &deflated(b"not negotiated")))
        .unwrap();
    assert_eq!(close_code(&mut stream), 1002);
    // A message of the maximum length is accepted.
    let mut stream = raw(address, "permessage-deflate; server_max_window_bits=8");
    let message = vec![b'a'; 64 << 10];
    stream
        .write_all(&frame(TEXT | COMPRESSED, &deflated(&message)))
        .unwrap();
    let mut echo = vec![0; 10 + message.len()];
    stream.read_exact(&mut echo).unwrap();
    assert_eq!((echo[0], &echo[10..]), (TEXT, &message[..]));
}

#[test]
fn offers_are_declined_unless_the_app_compresses() {
    let app = AsyncWebsocketApp::<()>::new().with_address("127.0.0.1:0");
    let (_running, address) = start(app);
    let client = Client::builder(&format!("ws://{address}/"))
        .with_compression()
        .connect()
        .unwrap();
    assert_eq!(client.header("Sec-WebSocket-Extensions"), None);
}

#[test]
fn parked_compressed_messages_are_handled_in_order() {
    const MESSAGES: usize = 12;
    let (running, address) = start(app());
    let mut stream = raw(address, "permessage-deflate");
    // Inflating such a message takes several turns. The client sends uncompressed messages in between.
    let long = |n: usize| format!("{n}:{}", "abcdefgh".repeat(500_000));
    let mut writer = stream.try_clone().unwrap();
    let sending = thread::spawn(move || {
        for n in 0..MESSAGES {
            let compressed = compress_to_vec(long(n).as_bytes(), 9);
            writer
                .write_all(&frame(TEXT | COMPRESSED, &compressed))
                .unwrap();
            writer
                .write_all(&frame(TEXT, n.to_string().as_bytes()))
                .unwrap();
        }
    });
    for n in 0..MESSAGES {
        let expected = long(n);
        let mut echo = vec![0; 10 + expected.len()];
        // The server compresses the long reply, so its length is in the header.
        stream.read_exact(&mut echo[..2]).unwrap();
        assert_eq!(echo[0], TEXT | COMPRESSED);
        let len = match echo[1] {
            126 => {
                let mut len = [0; 2];
                stream.read_exact(&mut len).unwrap();
                u16::from_be_bytes(len) as usize
            }
            127 => {
                let mut len = [0; 8];
                stream.read_exact(&mut len).unwrap();
                u64::from_be_bytes(len) as usize
            }
            len => len.into(),
        };
        let mut compressed = vec![0; len];
        stream.read_exact(&mut compressed).unwrap();
        compressed.extend([0, 0, 0xFF, 0xFF, 1, 0, 0, 0xFF, 0xFF]);
        let inflated = miniz_oxide::inflate::decompress_to_vec(&compressed).unwrap();
        assert!(inflated == expected.as_bytes(), "{n}");
        let short = n.to_string();
        let mut echo = vec![0; 2 + short.len()];
        stream.read_exact(&mut echo).unwrap();
        assert_eq!(&echo[2..], short.as_bytes());
    }
    sending.join().unwrap();
    let inflated = running.sender().metrics().compression.inflated_bytes;
    assert_eq!(
        inflated,
        (0..MESSAGES).map(|n| long(n).len() as u64).sum::<u64>()
    );
}

#[test]
fn broadcast_longer_than_the_window_is_uncompressed() {
    let (running, address) = start(app());
    let sender = running.sender();
    let mut small = raw(address, "permessage-deflate; server_max_window_bits=13");
    let mut large = raw(address, "permessage-deflate");
    wait_for_connections(&sender, 2);
    let long = (0..1_000).map(tick).collect::<String>();
    sender.broadcast(long.clone());
    let mut head = [0; 10];
    small.read_exact(&mut head).unwrap();
    assert_eq!(
        head[..2],
        [TEXT, 127],
        "the client can't inflate references beyond 8 KiB"
    );
    let mut rest = vec![0; long.len()];
    small.read_exact(&mut rest).unwrap();
    assert!(rest == long.as_bytes());
    large.read_exact(&mut head[..2]).unwrap();
    assert_eq!(head[0], TEXT | COMPRESSED);
}
