//! What the tests share: apps on free ports, clients with deadlines, and waiting for events.

#![allow(dead_code)] // Each test file is a crate of its own and uses some of it.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use humphrey::App;
use humphrey::http::Request;
use humphrey::stream::Stream;
use humphrey_ws::{AsyncWebsocketApp, RunningApp, async_websocket_handler};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, WebSocket};

/// Longer than anything here takes on a busy machine. Whoever waits so long waits for nothing.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Starts an app on a free port of this machine.
pub(crate) fn start<S, T>(app: AsyncWebsocketApp<S, T>) -> (RunningApp, SocketAddr)
where
    S: Send + Sync + 'static,
    T: Send + Sync + Default + 'static,
{
    let running = either_way(app)
        .with_address("127.0.0.1:0")
        .start()
        .expect("the app starts");
    let address = running.local_addr().expect("it listens itself");
    (running, address)
}

/// Starts an app that takes its connections from a Humphrey app of its own; returns the address of the Humphrey app.
pub(crate) fn start_linked<S, T>(app: AsyncWebsocketApp<S, T>) -> (RunningApp, SocketAddr)
where
    S: Send + Sync + 'static,
    T: Send + Sync + Default + 'static,
{
    let hook = app.connect_hook().expect("the app is not linked yet");
    let address = serve_route(async_websocket_handler(hook));
    let running = either_way(app).start().expect("the app starts");
    (running, address)
}

/// Starts a Humphrey app with one WebSocket route for all paths, on a thread that lives as long as the tests.
pub(crate) fn serve_route(
    route: impl Fn(Request, Stream, Arc<()>) + Send + Sync + 'static,
) -> SocketAddr {
    let address = free_address();
    thread::spawn(move || {
        App::<()>::new()
            .with_websocket_route("/*", route)
            .run(address)
            .expect("the Humphrey app runs");
    });
    address
}

/// What must hold, must hold whether shards run handlers or not: with `HUMPHREY_WS_ADAPTIVE=no` they don't.
pub(crate) fn either_way<S, T>(app: AsyncWebsocketApp<S, T>) -> AsyncWebsocketApp<S, T>
where
    S: Send + Sync + 'static,
    T: Send + Sync + Default + 'static,
{
    match std::env::var("HUMPHREY_WS_ADAPTIVE").as_deref() {
        Ok("no") => app.with_adaptive_handlers(false),
        _ => app,
    }
}

/// An address that is free, and that nobody else takes who asks here.
///
/// Not one from port 0: those ports are also given to clients, which may get it before a server does. The first
/// port of a block of others is kept bound, so that no two test processes at once use the same block.
pub(crate) fn free_address() -> SocketAddr {
    const BLOCK_PORTS: u16 = 100;
    static BLOCK: OnceLock<TcpListener> = OnceLock::new();
    static NEXT: AtomicU16 = AtomicU16::new(1);

    let block = BLOCK.get_or_init(|| {
        (20_000..32_000)
            .step_by(usize::from(BLOCK_PORTS))
            .find_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
            .expect("a block of ports is free")
    });
    let first = block.local_addr().expect("it is bound");
    loop {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(offset < BLOCK_PORTS, "the block is used up");
        let address = SocketAddr::new(first.ip(), first.port() + offset);
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// Waits until something holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came to hold: {what}");
        thread::yield_now();
    }
}

/// A client that we did not write, on a socket with a deadline for each step.
pub(crate) struct Client(pub(crate) WebSocket<TcpStream>);

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::connect_to(address, "/")
    }

    pub(crate) fn connect_to(address: SocketAddr, path: &str) -> Self {
        let socket = tcp(address);
        let (client, _) = tungstenite::client(format!("ws://{address}{path}"), socket)
            .expect("the handshake succeeds");
        Self(client)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.get_ref().local_addr().expect("it is connected")
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.0.send(Message::text(text)).expect("it is sent");
    }

    pub(crate) fn send_binary(&mut self, bytes: impl Into<Vec<u8>>) {
        self.0
            .send(Message::binary(bytes.into()))
            .expect("it is sent");
    }

    /// The next message that is not a ping or pong.
    pub(crate) fn receive(&mut self) -> Message {
        let deadline = Instant::now() + DEADLINE;
        loop {
            assert!(Instant::now() < deadline, "pings, and no message");
            match self.0.read().expect("there is a message") {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    pub(crate) fn receive_text(&mut self) -> String {
        match self.receive() {
            Message::Text(text) => text.to_string(),
            other => panic!("not a text message: {other:?}"),
        }
    }

    /// Reads to the close frame; returns it, and the texts that came before.
    pub(crate) fn receive_to_close(&mut self) -> (Vec<String>, Option<CloseFrame>) {
        let mut texts = Vec::new();
        loop {
            match self.receive() {
                Message::Text(text) => texts.push(text.to_string()),
                Message::Close(frame) => {
                    // Completes the closing handshake.
                    while self.0.read().is_ok() {}
                    return (texts, frame);
                }
                other => panic!("unexpected: {other:?}"),
            }
        }
    }

    /// Closes, and waits for the end.
    pub(crate) fn close(mut self) {
        self.0.close(None).expect("it is sent");
        while self.0.read().is_ok() {}
    }
}

/// A plain socket, with deadlines.
pub(crate) fn tcp(address: SocketAddr) -> TcpStream {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match TcpStream::connect(address) {
            Ok(socket) => {
                socket.set_read_timeout(Some(DEADLINE)).unwrap();
                socket.set_write_timeout(Some(DEADLINE)).unwrap();
                socket.set_nodelay(true).unwrap();
                return socket;
            }
            Err(error) => assert!(
                Instant::now() < deadline,
                "can't connect to {address}: {error}"
            ),
        }
    }
}

/// The head of a valid upgrade request.
pub(crate) fn upgrade_request(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// The head of a valid upgrade request that offers these subprotocols.
pub(crate) fn upgrade_request_offering(path: &str, subprotocols: &str) -> String {
    let request = upgrade_request(path);
    let head = request
        .strip_suffix("\r\n")
        .expect("it ends in an empty line");
    format!("{head}Sec-WebSocket-Protocol: {subprotocols}\r\n\r\n")
}

/// A WebSocket whose frames the test writes and reads itself.
pub(crate) fn raw_websocket(address: SocketAddr) -> TcpStream {
    let mut socket = tcp(address);
    socket.write_all(upgrade_request("/").as_bytes()).unwrap();
    let head = read_head(&mut socket);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    socket
}

/// Reads to the empty line, and not a byte further.
pub(crate) fn read_head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte).expect("a whole head");
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("a head in ASCII")
}

/// A masked client frame.
pub(crate) fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..=125 => frame.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    let key = [0x12, 0x34, 0x56, 0x78];
    frame.extend(key);
    frame.extend(
        payload
            .iter()
            .zip(key.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    frame
}

/// Reads one server frame: its first byte and its payload.
pub(crate) fn read_frame(socket: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    socket.read_exact(&mut head)?;
    let len = match head[1] {
        126 => {
            let mut len = [0; 2];
            socket.read_exact(&mut len)?;
            usize::from(u16::from_be_bytes(len))
        }
        127 => {
            let mut len = [0; 8];
            socket.read_exact(&mut len)?;
            u64::from_be_bytes(len) as usize
        }
        len => usize::from(len),
    };
    let mut payload = vec![0; len];
    socket.read_exact(&mut payload)?;
    Ok((head[0], payload))
}

/// The close code of a close frame's payload.
pub(crate) fn close_code(payload: &[u8]) -> u16 {
    u16::from_be_bytes([payload[0], payload[1]])
}

/// Sees to it that this process may have so many file descriptors.
pub(crate) fn raise_descriptors(wanted: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        let maximum = limit.maximum;
        assert!(
            maximum.is_none_or(|maximum| maximum >= wanted),
            "{wanted} descriptors can't be had"
        );
        let limit = Rlimit {
            current: Some(wanted),
            maximum,
        };
        setrlimit(Resource::Nofile, limit).unwrap();
    }
}

/// Lets this process have no more file descriptors than that.
pub(crate) fn limit_descriptors(current: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: Some(current),
        maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}
