//! Rate limits for what clients send, over real sockets: with and without TLS, and in a linked app.

use crate::support;

use std::io::{Read, Write};
use std::thread;
use std::time::Instant;

use humphrey_ws::ping::Heartbeat;
use humphrey_ws::{AsyncWebsocketApp, Limits, Message, OverRate};
use support::{
    Client, DEADLINE, client_frame, close_code, eventually, raw_websocket, read_frame, start,
    start_linked,
};

const PER_SECOND: u32 = 50;
const MESSAGES: usize = 100;

fn limited() -> Limits {
    Limits::default().messages_per_second_max(Some(PER_SECOND))
}

fn echo(limits: Limits) -> AsyncWebsocketApp<()> {
    echo_with(AsyncWebsocketApp::new(), limits)
}

fn echo_with(app: AsyncWebsocketApp<()>, limits: Limits) -> AsyncWebsocketApp<()> {
    app.with_limits(limits)
        .with_message_handler(|stream, message: Message, _| stream.send(message))
}

/// The frames of numbered messages.
fn numbered() -> Vec<u8> {
    let frame = |n: usize| client_frame(0x81, n.to_string().as_bytes());
    (0..MESSAGES).flat_map(frame).collect()
}

/// Sends all messages at once, and asserts that the echoes come in order, and not before the rate allows.
fn assert_echoes_at_the_rate(socket: &mut (impl Read + Write)) {
    let begun = Instant::now();
    socket.write_all(&numbered()).unwrap();
    socket.flush().unwrap();
    for n in 0..MESSAGES {
        let frame = read_frame(socket).unwrap();
        assert_eq!(frame, (0x81, n.to_string().into_bytes()));
        let allowed = PER_SECOND as f64 * (1.0 + begun.elapsed().as_secs_f64());
        assert!(
            (n as f64) < allowed,
            "message {n} after {:?}",
            begun.elapsed()
        );
    }
}

#[test]
fn burst_is_echoed_at_the_rate_while_others_are_served() {
    let heartbeat = Heartbeat::new(DEADLINE, DEADLINE);
    let (running, address) = start(echo(limited()).with_heartbeat(heartbeat));
    let mut flooder = raw_websocket(address);
    flooder.write_all(&numbered().repeat(20)).unwrap();
    let mut other = Client::connect(address);
    for n in 0..PER_SECOND / 2 {
        other.send(&n.to_string());
        assert_eq!(other.receive_text(), n.to_string());
    }
    assert_echoes_at_the_rate(&mut raw_websocket(address));
    let metrics = running.sender().metrics();
    assert!(metrics.reads_delayed > 0);
    assert_eq!(metrics.closed_over_rate, 0);
    let text = running.sender().prometheus();
    assert!(text.contains("humphrey_ws_reads_delayed_total{"), "{text}");
}

#[test]
fn rate_holds_in_a_linked_app() {
    let app = AsyncWebsocketApp::<()>::new_unlinked();
    let (_running, address) = start_linked(echo_with(app, limited()));
    assert_echoes_at_the_rate(&mut raw_websocket(address));
}

#[test]
fn bytes_are_received_at_the_rate() {
    const PER_SECOND: usize = 100_000;
    let limits = Limits::default().bytes_per_second_max(Some(PER_SECOND as u64));
    let (_running, address) = start(echo(limits));
    let mut client = Client::connect(address);
    let begun = Instant::now();
    client.send_binary(vec![7; 2 * PER_SECOND]);
    let echoed = client.receive();
    let elapsed = begun.elapsed();
    assert_eq!(echoed.into_data(), vec![7; 2 * PER_SECOND]);
    assert!(elapsed.as_secs_f64() > 1.0, "{elapsed:?}");
}

#[test]
fn too_fast_client_is_closed_with_1008() {
    let limits = limited().over_rate(OverRate::Close);
    let (running, address) = start(echo(limits));
    let mut patient = Client::connect(address);
    let mut socket = raw_websocket(address);
    // Some of the messages may be read a while after the others.
    socket.write_all(&numbered().repeat(10)).unwrap();
    let mut echoed = 0;
    let (opcode, reason) = loop {
        let frame = read_frame(&mut socket).unwrap();
        if frame.0 != 0x81 {
            break frame;
        }
        assert_eq!(frame.1, (echoed % MESSAGES).to_string().into_bytes());
        echoed += 1;
    };
    assert_eq!((opcode, close_code(&reason)), (0x88, 1008));
    assert_eq!(&reason[2..], b"too many messages");
    assert!(echoed >= PER_SECOND as usize, "{echoed}");
    drop(socket);
    patient.send("still served");
    assert_eq!(patient.receive_text(), "still served");
    eventually("the client is counted", || {
        let metrics = running.sender().metrics();
        (metrics.closed_over_rate, metrics.connections) == (1, 1)
    });
    let text = running.sender().prometheus();
    let closes = r#"humphrey_ws_connections_disconnected_total{shard="0",cause="over_rate"}"#;
    assert!(text.contains(closes), "{text}");
}

#[test]
fn app_stops_while_a_client_is_delayed() {
    let (running, address) = start(echo(limited()));
    let mut flooder = raw_websocket(address);
    flooder.write_all(&numbered().repeat(20)).unwrap();
    eventually("the client is delayed", || {
        running.sender().metrics().reads_delayed > 0
    });
    let stops = thread::spawn(move || running.shutdown(DEADLINE));
    let closed = loop {
        let (opcode, payload) = read_frame(&mut flooder).unwrap();
        if opcode == 0x88 {
            break close_code(&payload);
        }
    };
    assert_eq!(closed, 1001);
    drop(flooder);
    stops.join().unwrap();
}

#[cfg(any(feature = "tls", feature = "tls-aws-lc"))]
#[test]
fn rate_holds_over_tls() {
    use crate::certificates::{Authority, VERSIONS};
    use crate::tls_clients;
    let authority = Authority::new();
    let (_running, address) = start(echo(limited()).with_tls(authority.app_tls()));
    for version in VERSIONS {
        let client = authority.client_of(&[version]);
        assert_echoes_at_the_rate(&mut tls_clients::raw_websocket(address, &client));
    }
}

#[cfg(all(feature = "client", feature = "deflate"))]
#[test]
fn rate_holds_for_compressed_messages() {
    use humphrey_ws::Compression;
    use humphrey_ws::websocket_client;
    let (_running, address) = start(echo(limited()).with_compression(Compression::new()));
    let mut client = websocket_client::Client::builder(&format!("ws://{address}/"))
        .with_compression()
        .with_read_timeout(Some(DEADLINE))
        .connect()
        .unwrap();
    let begun = Instant::now();
    for n in 0..MESSAGES {
        client
            .send(Message::new(n.to_string().repeat(500)))
            .unwrap();
    }
    for n in 0..MESSAGES {
        let message = client.receive().unwrap();
        assert_eq!(message.text(), Some(n.to_string().repeat(500).as_str()));
        let allowed = PER_SECOND as f64 * (1.0 + begun.elapsed().as_secs_f64());
        assert!((n as f64) < allowed, "message {n}");
    }
}
