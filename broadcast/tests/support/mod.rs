//! The program as a child process, and two clients: tungstenite for the content, and a bare frame reader for
//! throughput.

#![allow(dead_code)] // Each test file is a crate of its own and uses some of it.

#[cfg(feature = "tls")]
#[path = "../../../tests/support/certificates.rs"]
pub(crate) mod certificates;
pub(crate) mod events;
pub(crate) mod shell;
#[cfg(feature = "tls")]
#[path = "../../../tests/support/tls_servers.rs"]
pub(crate) mod tls_servers;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tungstenite::client::IntoClientRequest;
use tungstenite::http::HeaderValue;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Message, WebSocket};

/// Deadline for every promised event; long, so that a busy machine does not exceed it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

const BINARY: &str = env!("CARGO_BIN_EXE_humphrey-broadcast");

/// The program, which reacts to SIGHUP as it does by default, also where the tests themselves run under `nohup`: an ignored
/// signal stays ignored in a child process.
pub(crate) fn program() -> Command {
    if !is_sighup_ignored() {
        return Command::new(BINARY);
    }
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP", BINARY]);
    command
}

fn is_sighup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.map_or(0, |mask| u64::from_str_radix(mask.trim(), 16).unwrap());
    ignored & 1 != 0
}

/// Runs the program to its end, without input. Returns its exit code, standard output and standard error.
pub(crate) fn run(arguments: &[&str]) -> (i32, String, String) {
    run_with(&[], arguments)
}

/// Runs the program with these variables in its environment.
pub(crate) fn run_with(variables: &[(&str, &str)], arguments: &[&str]) -> (i32, String, String) {
    let child = program()
        .args(arguments)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_child(&child);
    let (ended, end) = channel();
    thread::spawn(move || ended.send(child.wait_with_output()));
    let Ok(output) = end.recv_timeout(DEADLINE) else {
        kill_process(pid, Signal::KILL).unwrap();
        panic!("it runs on with {arguments:?}");
    };
    let output = output.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// A file that is removed when dropped.
pub(crate) struct TempFile(PathBuf);

impl TempFile {
    /// The name must be unique among all tests.
    pub(crate) fn new(name: &str, content: &[u8]) -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&path, content).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Waits until a condition holds, at most for [`DEADLINE`].
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < DEADLINE, "in vain: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for the end of a process, at most for [`DEADLINE`]. A process that has not ended by then is killed, and the test
/// fails.
#[track_caller]
pub(crate) fn wait_for_exit(child: &mut Child) -> ExitStatus {
    let pid = Pid::from_child(child);
    let (ended, end) = channel();
    let status = thread::scope(|scope| {
        scope.spawn(move || ended.send(child.wait()));
        let status = end.recv_timeout(DEADLINE);
        if status.is_err() {
            // Otherwise the thread, and the scope with it, would not end. The process may have ended in this moment.
            let _ = kill_process(pid, Signal::KILL);
        }
        status
    });
    status.expect("it does not exit").unwrap()
}

/// The server process. Dropping it kills the process.
pub(crate) struct Program {
    child: Child,
    input: Option<ChildStdin>,
    address: SocketAddr,
    /// Standard error, line by line; dropped to close it.
    stderr: Option<Receiver<String>>,
    /// The lines of standard error before the program's address.
    early: Vec<String>,
}

impl Program {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", arguments)
    }

    pub(crate) fn start_at(listen: &str, arguments: &[&str]) -> Self {
        let mut program = Self::spawn(listen, arguments);
        let (line, early) = program.lines_up_to("connect to ws");
        // Another thread may have had something to say before.
        program.early = early;
        let address = line
            .rsplit_once("ws://")
            .or_else(|| line.rsplit_once("wss://"));
        let (before, address) = address.unwrap();
        assert!(before.contains("open http"), "{line}");
        program.address = address.trim_end_matches('/').parse().unwrap();
        program
    }

    /// Starts the server with --quiet, which does not print the address: on a port that was free a moment ago.
    pub(crate) fn start_quiet(arguments: &[&str]) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let mut program = Self::spawn(&address.to_string(), arguments);
        program.address = address;
        eventually("it listens", || TcpStream::connect(address).is_ok());
        program
    }

    fn spawn(listen: &str, arguments: &[&str]) -> Self {
        let mut child = program()
            .args(["--listen", listen])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, receiver) = channel();
        thread::spawn(move || {
            for line in stderr.lines() {
                if sender.send(line.unwrap()).is_err() {
                    break;
                }
            }
        });
        Self {
            input: child.stdin.take(),
            child,
            address: ([0, 0, 0, 0], 0).into(),
            stderr: Some(receiver),
            early: Vec::new(),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn connect(&self) -> Client {
        self.try_connect().unwrap()
    }

    /// Connects, or returns the HTTP status that was answered.
    pub(crate) fn try_connect(&self) -> Result<Client, u16> {
        Client::connect(self.address, "/")
    }

    pub(crate) fn connect_to(&self, path: &str) -> Client {
        Client::connect(self.address, path).unwrap()
    }

    /// Connects as a client that gets messages as JSON.
    pub(crate) fn connect_json(&self, path: &str) -> Client {
        Client::connect_as(self.address, path, Some("json.humphrey-broadcast")).unwrap()
    }

    /// Publishes to `/publish{path}`. Returns the status and the body.
    pub(crate) fn publish(&self, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
        let path = format!("/publish{path}");
        let (status, _, answer) = http(self.address, "POST", &path, headers, body);
        (status, answer)
    }

    pub(crate) fn connect_raw(&self) -> RawClient {
        let client = self.connect();
        RawClient {
            stream: client.socket.into_inner(),
            rate: None,
        }
    }

    #[track_caller]
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.input.as_mut().unwrap().write_all(bytes).unwrap();
    }

    pub(crate) fn take_input(&mut self) -> ChildStdin {
        self.input.take().unwrap()
    }

    pub(crate) fn close_input(&mut self) {
        self.input = None;
    }

    /// Waits for a line on standard error that contains `part`.
    #[track_caller]
    pub(crate) fn expect_line(&mut self, part: &str) -> String {
        let early = self.early.iter().position(|line| line.contains(part));
        match early {
            Some(at) => self.early.remove(at),
            None => self.lines_up_to(part).0,
        }
    }

    /// The next line of standard error that contains this, and those before it.
    fn lines_up_to(&self, part: &str) -> (String, Vec<String>) {
        let by = Instant::now() + DEADLINE;
        let stderr = self.stderr.as_ref().unwrap();
        let mut before = Vec::new();
        loop {
            match stderr.recv_timeout(by.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(part) => return (line, before),
                Ok(line) => before.push(line),
                Err(error) => panic!("{error}: no line with {part:?}, only: {before:#?}"),
            }
        }
    }

    /// The remaining standard error, to its end.
    pub(crate) fn rest_of_stderr(&mut self) -> String {
        let by = Instant::now() + DEADLINE;
        let stderr = self.stderr.as_ref().unwrap();
        let mut rest = String::new();
        loop {
            match stderr.recv_timeout(by.saturating_duration_since(Instant::now())) {
                Ok(line) => writeln!(rest, "{line}").unwrap(),
                Err(RecvTimeoutError::Disconnected) => return rest,
                Err(RecvTimeoutError::Timeout) => panic!("standard error stays open"),
            }
        }
    }

    /// Closes standard error: the next line fails with a broken pipe.
    pub(crate) fn close_stderr(&mut self) {
        self.stderr = None;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Limits the open files of the process. Only Linux can limit another process.
    #[cfg(target_os = "linux")]
    pub(crate) fn limit_descriptors(&self, max: u64) {
        use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
        // The process has inherited the maximum, and can't be given a higher one again.
        let limit = Rlimit {
            current: Some(max),
            maximum: getrlimit(Resource::Nofile).maximum,
        };
        prlimit(Some(Pid::from_child(&self.child)), Resource::Nofile, limit).unwrap();
    }

    /// Whether a signal was sent to the process and is not delivered yet. Other systems than Linux report none.
    pub(crate) fn has_pending_signals(&self) -> bool {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap_or_default();
        let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
        pending.is_some_and(|mask| mask.trim().bytes().any(|digit| digit != b'0'))
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until the server refuses connections, which shows that it is stopping.
    #[track_caller]
    pub(crate) fn expect_refusal(&self) {
        eventually("it stops accepting", || {
            TcpStream::connect(self.address).is_err()
        });
    }

    #[track_caller]
    pub(crate) fn expect_exit(&mut self, code: i32) {
        let status = wait_for_exit(&mut self.child);
        assert_eq!(status.code(), Some(code), "{status}");
    }

    /// Peak resident memory; 0 without /proc.
    pub(crate) fn peak_resident_bytes(&self) -> u64 {
        self.status_kib("VmHWM:") << 10
    }

    fn status_kib(&self, field: &str) -> u64 {
        status_kib(self.child.id(), field)
    }
}

/// A field of /proc/PID/status.
fn status_kib(pid: u32, field: &str) -> u64 {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(path).unwrap_or_default();
    // Absent without /proc, and after the process has ended.
    status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|value| value.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

impl Drop for Program {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client on tungstenite.
#[derive(Debug)]
pub(crate) struct Client {
    socket: WebSocket<TcpStream>,
}

impl Client {
    /// Connects, or returns the HTTP status that was answered.
    pub(crate) fn connect(address: SocketAddr, path: &str) -> Result<Self, u16> {
        Self::connect_as(address, path, None)
    }

    /// Connects with a subprotocol.
    pub(crate) fn connect_as(
        address: SocketAddr,
        path: &str,
        subprotocol: Option<&'static str>,
    ) -> Result<Self, u16> {
        let header = subprotocol.map(|subprotocol| ("Sec-WebSocket-Protocol", subprotocol));
        Self::connect_with(address, path, header.as_slice())
    }

    /// Connects with further headers.
    pub(crate) fn connect_with(
        address: SocketAddr,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, u16> {
        let mut request = format!("ws://{address}{path}")
            .into_client_request()
            .unwrap();
        for &(name, value) in headers {
            let value = HeaderValue::from_str(value).unwrap();
            request.headers_mut().insert(name, value);
        }
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        match tungstenite::client(request, stream) {
            Ok((socket, _)) => Ok(Self { socket }),
            Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(response))) => {
                Err(response.status().as_u16())
            }
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.socket.get_ref().local_addr().unwrap()
    }

    #[track_caller]
    pub(crate) fn send(&mut self, message: Message) {
        self.socket.send(message).unwrap();
    }

    /// The next message, of whatever kind.
    #[track_caller]
    pub(crate) fn any(&mut self) -> Message {
        self.socket.read().unwrap()
    }

    /// The next message that carries data.
    #[track_caller]
    pub(crate) fn message(&mut self) -> Message {
        let begun = Instant::now();
        loop {
            let message = self.any();
            // Pings must not prolong the wait.
            assert!(begun.elapsed() < DEADLINE, "no message");
            if message.is_text() || message.is_binary() {
                return message;
            }
        }
    }

    #[track_caller]
    pub(crate) fn text(&mut self) -> String {
        match self.message() {
            Message::Text(text) => text.to_string(),
            other => panic!("no text: {other:?}"),
        }
    }

    /// The next message, which is JSON.
    #[track_caller]
    pub(crate) fn json(&mut self) -> serde_json::Value {
        serde_json::from_str(&self.text()).unwrap()
    }

    /// Expects a close frame and a clean end of the connection, then closes the socket, which the server waits for.
    #[track_caller]
    pub(crate) fn expect_close(mut self, code: CloseCode) {
        match self.any() {
            Message::Close(Some(frame)) => assert_eq!(frame.code, code),
            other => panic!("no close frame: {other:?}"),
        }
        match self.socket.read() {
            Err(tungstenite::Error::ConnectionClosed) => {}
            other => panic!("not the end: {other:?}"),
        }
    }
}

/// A client that only reads unmasked, unfragmented frames, as this server sends them. It is fast in a debug build too,
/// and its rate can be limited.
pub(crate) struct RawClient {
    stream: TcpStream,
    rate: Option<u64>,
}

impl RawClient {
    /// Limits the rate of reading, in bytes per second.
    pub(crate) fn set_rate(&mut self, bytes_per_second: u64) {
        self.rate = Some(bytes_per_second);
    }

    /// Reads to the close frame, which must have code 1001.
    #[track_caller]
    pub(crate) fn read_to_close(self, each: impl FnMut(&[u8])) {
        assert_eq!(self.read_to_end(each), Some(1001));
    }

    /// Reads to the close frame, answers it, closes the socket and returns the code; or `None` at the end of the
    /// stream.
    #[track_caller]
    pub(crate) fn read_to_end(mut self, mut each: impl FnMut(&[u8])) -> Option<u16> {
        let begun = Instant::now();
        let mut read_bytes = 0;
        let mut buffer = vec![0; 256 << 10];
        let mut filled = 0;
        loop {
            let n = match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => return None,
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            };
            filled += n;
            let mut at = 0;
            while let Some((opcode, payload, frame_bytes)) = frame(&buffer[at..filled]) {
                match opcode {
                    1 | 2 => each(payload),
                    8 => {
                        let code = u16::from_be_bytes([payload[0], payload[1]]);
                        self.answer_close(code);
                        return Some(code);
                    }
                    _ => {}
                }
                at += frame_bytes;
            }
            buffer.copy_within(at..filled, 0);
            filled -= at;
            assert!(
                filled < buffer.len(),
                "a frame is longer than expected here"
            );
            read_bytes += n as u64;
            if let Some(rate) = self.rate {
                let due = Duration::from_secs_f64(read_bytes as f64 / rate as f64);
                thread::sleep(due.saturating_sub(begun.elapsed()));
            }
        }
    }

    fn answer_close(&mut self, code: u16) {
        // With a mask of zeros. The server may have closed the socket already.
        let [high, low] = code.to_be_bytes();
        let _ = self.stream.write_all(&[0x88, 0x82, 0, 0, 0, 0, high, low]);
    }
}

/// The first frame in a buffer, if it is complete: opcode, payload, and length with its header.
fn frame(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (header_bytes, len) = match *bytes.get(1)? {
        126 => (4, u64::from(u16::from_be_bytes(*bytes[2..].first_chunk()?))),
        127 => (10, u64::from_be_bytes(*bytes[2..].first_chunk()?)),
        len => (2, u64::from(len)),
    };
    let frame_bytes = header_bytes + len as usize;
    let payload = bytes.get(header_bytes..frame_bytes)?;
    Some((bytes[0] & 0x0f, payload, frame_bytes))
}

/// Numbers, one per line.
pub(crate) fn numbered(numbers: Range<u64>) -> Vec<u8> {
    let mut lines = String::new();
    for n in numbers {
        writeln!(lines, "{n}").unwrap();
    }
    lines.into_bytes()
}

/// The number at the beginning of a line.
#[track_caller]
pub(crate) fn number_of(line: &[u8]) -> u64 {
    let digits = line.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |n, digit| n * 10 + u64::from(digit - b'0'))
}

/// A GET request over plain HTTP: status, headers, body.
pub(crate) fn http_get(address: SocketAddr, path: &str) -> (u16, String, String) {
    http(address, "GET", path, "", b"")
}

/// A request over plain HTTP, with further header lines and a body: status, headers, body.
pub(crate) fn http(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Length: {length}\r\n{headers}\r\n"
    )
    .unwrap();
    // The server may refuse before it has read everything.
    let _ = stream.write_all(body);
    let mut response = Vec::new();
    let end = stream.read_to_end(&mut response);
    let response = String::from_utf8(response).unwrap();
    let (head, body) = response
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{end:?}: {response:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_owned(), body.to_owned())
}
