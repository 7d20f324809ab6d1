//! Tests compression in the blocking API, on a Humphrey route. Most clients write their frames byte by byte and deflate
//! with another library. One test uses the client of this library.

use crate::support;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use humphrey_ws::restion::Restion;
use humphrey_ws::websocket_client::Client;
use humphrey_ws::{
    AsyncWebsocketApp, Compression, Limits, Message, WebsocketStream,
    websocket_handler_with_compression,
};
use miniz_oxide::deflate::compress_to_vec;
use miniz_oxide::inflate::decompress_to_vec;
use support::{
    DEADLINE, client_frame, close_code, read_frame, read_head, serve_route, tcp, upgrade_request,
};

const TEXT: u8 = 0x81;
const COMPRESSED_TEXT: u8 = 0xC1;
const MESSAGE_BYTES_MAX: usize = 16 << 20;

fn serve(compression: Compression, handler: fn(WebsocketStream, Arc<()>)) -> SocketAddr {
    serve_route(websocket_handler_with_compression(compression, handler))
}

fn echo(mut stream: WebsocketStream, _: Arc<()>) {
    while let Ok(message) = stream.recv() {
        if stream.send(message).is_err() {
            break;
        }
    }
}

/// Connects with additional header lines. Returns the socket, and the server's answer to the offer of compression.
fn connect_with(address: SocketAddr, lines: &str) -> (TcpStream, Option<String>) {
    let mut client = tcp(address);
    let request = upgrade_request("/").replace("\r\n\r\n", &format!("\r\n{lines}\r\n\r\n"));
    client.write_all(request.as_bytes()).unwrap();
    let head = read_head(&mut client);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let answer = head
        .lines()
        .find_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: "));
    (client, answer.map(str::to_owned))
}

fn connect(address: SocketAddr, parameters: &str) -> TcpStream {
    let lines = format!("Sec-WebSocket-Extensions: permessage-deflate{parameters}");
    let (client, answer) = connect_with(address, &lines);
    let expected = format!("permessage-deflate; client_no_context_takeover{parameters}");
    assert_eq!(answer, Some(expected));
    client
}

fn inflated(payload: &[u8]) -> Vec<u8> {
    let end = [0, 0, 0xFF, 0xFF, 1, 0, 0, 0xFF, 0xFF];
    decompress_to_vec(&[payload, &end].concat()).expect("a valid deflate stream")
}

fn text_of(len: usize) -> String {
    "{\"price\":1.0}".chars().cycle().take(len).collect()
}

/// Sends an uncompressed message. Returns the first byte of the echo, and its inflated payload.
fn echoed(client: &mut TcpStream, first: u8, payload: &[u8]) -> (u8, Vec<u8>) {
    client.write_all(&client_frame(first, payload)).unwrap();
    let (first, payload) = read_frame(client).unwrap();
    match first & 0x40 {
        0 => (first, payload),
        _ => (first, inflated(&payload)),
    }
}

#[test]
fn compressed_fragments_are_inflated_and_pings_answered() {
    let address = serve(Compression::new(), echo);
    let mut client = connect(address, "");
    let message = text_of(4_000);
    let compressed = compress_to_vec(message.as_bytes(), 9);
    let (start, end) = compressed.split_at(compressed.len() / 2);
    let frames = [
        client_frame(0x41, start),
        client_frame(0x89, b"?"),
        client_frame(0x80, end),
    ];
    client.write_all(&frames.concat()).unwrap();
    assert_eq!(read_frame(&mut client).unwrap(), (0x8a, b"?".to_vec()));
    let (first, payload) = read_frame(&mut client).unwrap();
    assert_eq!(first, COMPRESSED_TEXT);
    assert!(payload.len() * 10 < message.len());
    assert!(inflated(&payload) == message.as_bytes());
}

#[test]
fn reply_of_1_kib_is_compressed_if_that_makes_it_shorter() {
    let address = serve(Compression::new(), echo);
    let mut client = connect(address, "");
    let noise: String = (0_u64..4_000)
        .map(|n| char::from(b'!' + (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 57) as u8 % 90))
        .collect();
    let noise: Vec<u8> = noise.bytes().take(1_500).collect();
    let long = text_of(100_000);
    for (first, payload, expected) in [
        (TEXT, text_of(1_023).as_bytes(), TEXT),
        (TEXT, text_of(1_024).as_bytes(), COMPRESSED_TEXT),
        (TEXT, long.as_bytes(), COMPRESSED_TEXT),
        (0x82, long.as_bytes(), 0x82),
    ] {
        assert!(echoed(&mut client, first, payload) == (expected, payload.to_vec()));
    }
    // The server may send this message in either form.
    assert!(echoed(&mut client, TEXT, &noise).1 == noise);
    let binary = serve(Compression::new().binary(true).replies_from(64), echo);
    let mut client = connect(binary, "");
    assert_eq!(echoed(&mut client, 0x82, &[7; 64]), (0xC2, vec![7; 64]));
    let noise: Vec<u8> = (0_u64..10_000)
        .map(|n| ((n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48) as u8)
        .collect();
    assert!(echoed(&mut client, 0x82, &noise).1 == noise);
}

#[test]
fn message_marked_uncompressed_is_not_compressed() {
    let address = serve(Compression::new(), |mut stream, _| {
        while let Ok(message) = stream.recv() {
            stream.send(message.uncompressed()).unwrap();
        }
    });
    let mut client = connect(address, "");
    let message = text_of(2_000);
    assert_eq!(
        echoed(&mut client, TEXT, message.as_bytes()),
        (TEXT, message.into())
    );
}

#[test]
fn small_window_gets_long_messages_uncompressed() {
    let address = serve(Compression::new().replies_from(64), echo);
    let mut client = connect(address, "; server_max_window_bits=8");
    for (len, first) in [(256, COMPRESSED_TEXT), (257, TEXT)] {
        let message = text_of(len);
        assert_eq!(
            echoed(&mut client, TEXT, message.as_bytes()),
            (first, message.into())
        );
    }
}

#[test]
fn bomb_or_invalid_data_closes_with_its_code() {
    let address = serve(Compression::new(), echo);
    let deflated = |payload: &[u8]| compress_to_vec(payload, 9);
    let too_long = vec![b'a'; MESSAGE_BYTES_MAX + 1];
    // "Hello", followed by 100,000 empty final blocks.
    let mut flood = vec![0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
    flood.extend([0x03, 0x00].repeat(100_000));
    for (first, payload, code) in [
        (COMPRESSED_TEXT, deflated(&too_long), 1009),
        (COMPRESSED_TEXT, b"\xFF\xFF\xFF".to_vec(), 1007),
        (COMPRESSED_TEXT, deflated(b"\xFF"), 1007),
        (COMPRESSED_TEXT, deflated(b"\xC3"), 1007),
        (COMPRESSED_TEXT, flood, 1007),
        (0xC9, b"compressed ping".to_vec(), 1002),
        (0xC0, b"compressed continuation".to_vec(), 1002),
        (TEXT | 0x20, b"RSV2".to_vec(), 1002),
    ] {
        let mut client = connect(address, "");
        let frames = [client_frame(TEXT, b"valid"), client_frame(first, &payload)];
        client.write_all(&frames.concat()).unwrap();
        assert_eq!(read_frame(&mut client).unwrap(), (TEXT, b"valid".to_vec()));
        let (first, payload) = read_frame(&mut client).unwrap();
        assert_eq!((first, close_code(&payload)), (0x88, code));
    }
    // A message of the maximum length is accepted.
    let mut client = connect(address, "");
    let message = &too_long[1..];
    let compressed = client_frame(COMPRESSED_TEXT, &deflated(message));
    client.write_all(&compressed).unwrap();
    let (first, payload) = read_frame(&mut client).unwrap();
    assert_eq!(first, COMPRESSED_TEXT);
    assert!(inflated(&payload) == message);
}

#[test]
fn unacceptable_offer_is_declined() {
    let address = serve(Compression::new(), echo);
    let safari =
        "User-Agent: Mozilla/5.0 (Macintosh) AppleWebKit/605.1.15 Version/18.1 Safari/605.1.15";
    for lines in [
        "X-Nothing: offered".to_owned(),
        "Sec-WebSocket-Extensions: permessage-deflate; unknown".to_owned(),
        format!("{safari}\r\nSec-WebSocket-Extensions: permessage-deflate"),
    ] {
        let (mut client, answer) = connect_with(address, &lines);
        assert_eq!(answer, None, "{lines}");
        let message = text_of(2_000);
        assert_eq!(
            echoed(&mut client, TEXT, message.as_bytes()),
            (TEXT, message.into())
        );
        let frame = client_frame(COMPRESSED_TEXT, &compress_to_vec(b"not negotiated", 9));
        client.write_all(&frame).unwrap();
        let (first, payload) = read_frame(&mut client).unwrap();
        assert_eq!((first, close_code(&payload)), (0x88, 1002));
    }
}

#[test]
fn nonblocking_receive_inflates_and_write_compresses() {
    let address = serve(Compression::new(), |mut stream, _| {
        loop {
            match stream.recv_nonblocking() {
                Restion::Ok(message) => stream.write_all(message.bytes()).unwrap(),
                Restion::None => std::thread::yield_now(),
                Restion::Err(_) => break,
            }
        }
    });
    let mut client = connect(address, "");
    let message = text_of(3_000);
    let compressed = compress_to_vec(message.as_bytes(), 9);
    let (first, payload) = {
        let frame = client_frame(COMPRESSED_TEXT, &compressed);
        client.write_all(&frame).unwrap();
        read_frame(&mut client).unwrap()
    };
    assert_eq!(first, COMPRESSED_TEXT);
    assert!(inflated(&payload) == message.as_bytes());
}

#[test]
fn library_client_reads_concurrently_compressed_streams() {
    let address = serve(Compression::new(), echo);
    // Wait until the server listens, because the client does not retry.
    drop(tcp(address));
    let clients = (0..8).map(|client: usize| {
        std::thread::spawn(move || {
            let mut connection = Client::builder(&format!("ws://{address}/"))
                .with_compression()
                .with_read_timeout(Some(DEADLINE))
                .connect()
                .unwrap();
            for n in 0..200 {
                let message = format!("{client} {n} {}", text_of(n * 37));
                connection.send(Message::new(&message)).unwrap();
                assert_eq!(connection.receive().unwrap().text(), Some(&*message));
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.join().unwrap();
    }
}

#[test]
fn handed_over_stream_still_receives_compressed_messages() {
    for compresses in [false, true] {
        let app = AsyncWebsocketApp::<()>::new_unlinked()
            .with_limits(Limits::default().message_bytes_max(64 << 10))
            .with_message_handler(|stream, message, _| stream.send(message));
        let app = match compresses {
            true => app.with_compression(Compression::new()),
            false => app,
        };
        let hook = app.connect_hook().unwrap();
        let running = app.start().unwrap();
        let address = serve_route(websocket_handler_with_compression(
            Compression::new(),
            move |mut stream: WebsocketStream, _: Arc<()>| {
                let message = stream.recv().unwrap();
                stream.send(message).unwrap();
                assert!(hook.lock().unwrap().send(stream).is_ok());
            },
        ));
        let mut client = connect(address, "");
        let message = text_of(2_000);
        let compressed = compress_to_vec(message.as_bytes(), 9);
        for by_the_app in [false, true] {
            let frame = client_frame(COMPRESSED_TEXT, &compressed);
            client.write_all(&frame).unwrap();
            let (first, payload) = read_frame(&mut client).unwrap();
            let is_compressed = first == COMPRESSED_TEXT;
            assert_eq!(is_compressed, compresses || !by_the_app);
            let payload = match is_compressed {
                true => inflated(&payload),
                false => payload,
            };
            assert!(payload == message.as_bytes());
        }
        let bomb = compress_to_vec(&vec![b'a'; (64 << 10) + 1], 9);
        let frame = client_frame(COMPRESSED_TEXT, &bomb);
        client.write_all(&frame).unwrap();
        let (first, payload) = read_frame(&mut client).unwrap();
        assert_eq!((first, close_code(&payload)), (0x88, 1009));
        assert_eq!(running.sender().metrics().compression.bombs, 1);
        running.shutdown(DEADLINE);
    }
}
