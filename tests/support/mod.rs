//! Helpers for all tests: apps on free ports, clients with deadlines, and waits for conditions.

#![allow(dead_code)] // Each test file is a crate of its own and uses some of it.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use humphrey::App;
use humphrey::http::Request;
use humphrey::stream::Stream;
use humphrey_ws::{AsyncWebsocketApp, RunningApp, async_websocket_handler};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, WebSocket};

/// The maximum time to wait for anything. It is ample even on a busy machine.
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
    let address = running.local_addr().expect("the app has its own listener");
    (running, address)
}

/// Starts an app that is linked to a new Humphrey app, and returns the address of the latter.
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

/// Starts a TCP server, which accepts one client and runs a closure with it on another thread.
pub(crate) fn serve_one<T: Send + 'static>(
    act: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    serve_one_at("127.0.0.1:0", act)
}

/// Starts a TCP server at an address, like [`serve_one`].
pub(crate) fn serve_one_at<T: Send + 'static>(
    address: &str,
    act: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        act(stream)
    });
    (address, server)
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

/// Disables inline handlers if `HUMPHREY_WS_ADAPTIVE=no`, so that all tests can run in both modes.
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

/// Returns a free address that no other caller of this function gets.
///
/// Port 0 is unsuitable, because the system could give the port to a client before the server binds it. The first
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
    let first = block.local_addr().expect("the block is bound");
    loop {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(offset < BLOCK_PORTS, "the block is used up");
        let address = SocketAddr::new(first.ip(), first.port() + offset);
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// Waits until a condition holds. `what` describes it in the panic message.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        thread::yield_now();
    }
}

/// Whether a condition holds within this time.
pub(crate) fn holds_within(time: Duration, condition: impl Fn() -> bool) -> bool {
    let until = Instant::now() + time;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        thread::yield_now();
    }
}

/// A foreign client, tungstenite's, on a socket with a deadline for each operation.
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
        self.0
            .get_ref()
            .local_addr()
            .expect("the socket is connected")
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.0
            .send(Message::text(text))
            .expect("the socket accepts the frame");
    }

    pub(crate) fn send_binary(&mut self, bytes: impl Into<Vec<u8>>) {
        self.0
            .send(Message::binary(bytes.into()))
            .expect("the socket accepts the frame");
    }

    /// Receives the next message other than pings and pongs.
    pub(crate) fn receive(&mut self) -> Message {
        let deadline = Instant::now() + DEADLINE;
        loop {
            assert!(Instant::now() < deadline, "only pings arrived");
            match self.0.read().expect("a message arrives") {
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

    /// Reads up to the close frame, and returns the texts before it and the frame.
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

    /// Closes the connection, and waits for its end.
    pub(crate) fn close(mut self) {
        self.0.close(None).expect("the socket accepts the frame");
        while self.0.read().is_ok() {}
    }
}

/// Connects a plain socket with deadlines.
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
        .expect("the head ends in an empty line");
    format!("{head}Sec-WebSocket-Protocol: {subprotocols}\r\n\r\n")
}

/// Connects a WebSocket whose frames the test writes and reads itself.
pub(crate) fn raw_websocket(address: SocketAddr) -> TcpStream {
    let mut socket = tcp(address);
    socket.write_all(upgrade_request("/").as_bytes()).unwrap();
    let head = read_head(&mut socket);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    socket
}

/// Reads a head up to its empty line, without consuming bytes after it.
pub(crate) fn read_head(socket: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte).expect("a whole head");
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("the head is ASCII")
}

/// The head of a GET request for a persistent connection.
pub(crate) fn get_request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

/// Reads one response on a persistent connection: its head, and as many bytes of body as that announces.
pub(crate) fn read_response(stream: &mut impl Read) -> (String, Vec<u8>) {
    let head = read_head(stream);
    let len = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .map_or(0, |len| len.parse().unwrap());
    let mut body = vec![0; len];
    stream.read_exact(&mut body).unwrap();
    (head, body)
}

/// Encodes a masked client frame.
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

/// Reads one server frame, and returns its first byte and its payload.
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

/// Returns the close code in the payload of a close frame.
pub(crate) fn close_code(payload: &[u8]) -> u16 {
    u16::from_be_bytes([payload[0], payload[1]])
}

/// Raises the limit of file descriptors of this process to at least this number.
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

/// Lowers the limit of file descriptors of this process to this number.
pub(crate) fn limit_descriptors(current: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: Some(current),
        maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}
