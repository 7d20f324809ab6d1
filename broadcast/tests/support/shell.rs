//! `listen` and `send` as child processes, foreign servers, and a proxy that can cut connections.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use tungstenite::handshake::server::{Request, Response};
use tungstenite::http::HeaderValue;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Message, WebSocket};

#[cfg(feature = "tls")]
use super::tls_servers::{self, TlsServer};
use super::{DEADLINE, eventually, program, status_kib, wait_for_exit};

/// `listen` or `send` as a process. Dropping it kills the process.
pub(crate) struct Shell {
    child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    /// Standard output, line by line.
    stdout: Option<Receiver<Vec<u8>>>,
    stderr: Receiver<String>,
    /// The lines of standard error so far.
    pub(crate) said: String,
}

impl Shell {
    /// Starts a command. Its output is not read before [`read_output`](Self::read_output).
    pub(crate) fn start(arguments: &[&str]) -> (Self, ChildStdout) {
        let mut child = program()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, receiver) = channel();
        thread::spawn(move || {
            for line in stderr.lines() {
                let _ = sender.send(line.unwrap());
            }
        });
        let stdout = child.stdout.take().unwrap();
        let shell = Self {
            stdin: child.stdin.take(),
            child,
            stdout: None,
            stderr: receiver,
            said: String::new(),
        };
        (shell, stdout)
    }

    pub(crate) fn listen(url: &str, arguments: &[&str]) -> Self {
        let (mut shell, stdout) = Self::start(&[&["listen", url], arguments].concat());
        shell.stdin = None;
        shell.read_output(stdout);
        shell
    }

    pub(crate) fn send(url: &str, arguments: &[&str]) -> Self {
        let (mut shell, stdout) = Self::start(&[&["send", url], arguments].concat());
        shell.read_output(stdout);
        shell
    }

    pub(crate) fn read_output(&mut self, stdout: ChildStdout) {
        let (sender, receiver) = channel();
        thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            loop {
                let mut line = Vec::new();
                if stdout.read_until(b'\n', &mut line).unwrap() == 0 || sender.send(line).is_err() {
                    break;
                }
            }
        });
        self.stdout = Some(receiver);
    }

    /// The next line of standard output, without its line break.
    #[track_caller]
    pub(crate) fn bytes(&mut self) -> Vec<u8> {
        let stdout = self.stdout.as_ref().unwrap();
        let Ok(mut line) = stdout.recv_timeout(DEADLINE) else {
            let said: Vec<String> = self.stderr.try_iter().collect();
            panic!("it prints nothing, but has said: {}{said:#?}", self.said);
        };
        assert_eq!(line.pop(), Some(b'\n'));
        line
    }

    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        String::from_utf8(self.bytes()).unwrap()
    }

    #[track_caller]
    pub(crate) fn json(&mut self) -> serde_json::Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    /// Expects the end of standard output.
    #[track_caller]
    pub(crate) fn expect_end_of_output(&mut self) {
        let stdout = self.stdout.as_ref().unwrap();
        if let Ok(line) = stdout.recv_timeout(DEADLINE) {
            panic!("it prints {:?}", String::from_utf8_lossy(&line));
        }
    }

    #[track_caller]
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Waits for a line on standard error that contains `part`.
    #[track_caller]
    pub(crate) fn expect_line(&mut self, part: &str) -> String {
        let by = Instant::now() + DEADLINE;
        loop {
            let wait = by.saturating_duration_since(Instant::now());
            let Ok(line) = self.stderr.recv_timeout(wait) else {
                panic!("no line with {part:?}, only:\n{}", self.said);
            };
            self.said += &format!("{line}\n");
            if line.contains(part) {
                return line;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    #[track_caller]
    pub(crate) fn expect_exit(&mut self, code: i32) {
        assert_eq!(self.wait(), code, "{}", self.said);
    }

    /// Waits for the exit and returns its code; [`said`](Self::said) is complete then.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> i32 {
        let status = wait_for_exit(&mut self.child);
        while let Ok(line) = self.stderr.recv_timeout(DEADLINE) {
            self.said += &format!("{line}\n");
        }
        let code = status.code();
        code.unwrap_or_else(|| panic!("{status}: {}", self.said))
    }

    pub(crate) fn peak_resident_bytes(&self) -> u64 {
        status_kib(self.child.id(), "VmHWM:") << 10
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server on tungstenite.
pub(crate) struct Foreign {
    listener: TcpListener,
}

/// A connection of that server.
pub(crate) struct Guest<S = TcpStream> {
    pub(crate) socket: WebSocket<S>,
    pub(crate) request: Request,
}

impl Foreign {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self { listener }
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}/", self.listener.local_addr().unwrap())
    }

    pub(crate) fn tcp(&self) -> TcpStream {
        let stream = accept(&self.listener);
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// Waits for a connection for two seconds. Returns whether none arrived.
    pub(crate) fn is_left_alone(&self) -> bool {
        let listener = &self.listener;
        let mut ready = [PollFd::new(listener, PollFlags::IN)];
        let two_seconds = Timespec {
            tv_sec: 2,
            tv_nsec: 0,
        };
        poll(&mut ready, Some(&two_seconds)).unwrap() == 0
    }

    /// Waits for a connection until `is_over`. Returns whether one arrived.
    pub(crate) fn comes_unless(&self, is_over: &dyn Fn() -> bool) -> bool {
        let mut comes = false;
        eventually("a client connects, or `is_over`", || {
            let mut ready = [PollFd::new(&self.listener, PollFlags::IN)];
            let at_once = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            comes = poll(&mut ready, Some(&at_once)).unwrap() > 0;
            comes || is_over()
        });
        comes
    }

    /// Accepts the next client, without a subprotocol.
    pub(crate) fn guest(&self) -> Guest {
        self.guest_as(None)
    }

    pub(crate) fn guest_as(&self, subprotocol: Option<&'static str>) -> Guest {
        Guest::over(self.tcp(), subprotocol)
    }

    /// Accepts the next client with TLS.
    #[cfg(feature = "tls")]
    pub(crate) fn tls_guest(&self, config: &Arc<rustls::ServerConfig>) -> Guest<TlsServer> {
        Guest::over(
            tls_servers::accept(config.clone(), self.tcp()).unwrap(),
            None,
        )
    }

    /// Answers the next handshake with `answer`, and closes the socket.
    pub(crate) fn refuse(&self, answer: &str) {
        let mut stream = self.tcp();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        stream.write_all(answer.as_bytes()).unwrap();
    }
}

/// Accepts the next connection, within [`DEADLINE`].
#[track_caller]
fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let mut accepted = None;
    eventually("a client connects", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (stream, _) = accepted.unwrap();
    stream.set_nonblocking(false).unwrap();
    stream
}

impl<S: Read + Write> Guest<S> {
    /// Accepts a client's handshake on its stream.
    pub(crate) fn over(stream: S, subprotocol: Option<&'static str>) -> Self {
        let mut asked = None;
        #[allow(clippy::result_large_err)] // tungstenite's own.
        let look = |request: &Request, mut response: Response| {
            asked = Some(request.clone());
            if let Some(subprotocol) = subprotocol {
                response.headers_mut().insert(
                    "Sec-WebSocket-Protocol",
                    HeaderValue::from_static(subprotocol),
                );
            }
            Ok(response)
        };
        let socket = tungstenite::accept_hdr(stream, look).unwrap();
        Self {
            socket,
            request: asked.unwrap(),
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let value = self.request.headers().get(name)?;
        value.to_str().ok()
    }

    #[track_caller]
    pub(crate) fn send(&mut self, message: Message) {
        self.socket.send(message).unwrap();
    }

    /// The next data message or close frame.
    #[track_caller]
    pub(crate) fn message(&mut self) -> Message {
        let begun = Instant::now();
        loop {
            let message = self.socket.read().unwrap();
            // Pings must not prolong the wait.
            assert!(begun.elapsed() < DEADLINE, "no message");
            if !message.is_ping() && !message.is_pong() {
                return message;
            }
        }
    }

    /// Sends a close frame, and waits for the answer.
    #[track_caller]
    pub(crate) fn close(mut self, code: u16, reason: &'static str) {
        let frame = CloseFrame {
            code: code.into(),
            reason: reason.into(),
        };
        self.socket.close(Some(frame)).unwrap();
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < DEADLINE, "it does not answer");
            match self.socket.read() {
                Ok(Message::Close(Some(frame))) => {
                    assert_eq!(u16::from(frame.code), code);
                    return;
                }
                Ok(_) => {}
                Err(error) => panic!("it does not answer: {error}"),
            }
        }
    }

    /// Waits for the client's close frame, and answers it. Returns the messages before it.
    #[track_caller]
    pub(crate) fn expect_close(mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            match self.message() {
                Message::Close(Some(frame)) => {
                    assert_eq!(frame.code, CloseCode::Normal);
                    break;
                }
                message => messages.push(message),
            }
        }
        // The client closes the socket.
        let _ = self.socket.read();
        messages
    }
}

/// A TCP proxy whose connections can be cut.
pub(crate) struct Cable {
    address: SocketAddr,
    ends: Arc<Mutex<Vec<TcpStream>>>,
    /// New connections have to wait.
    is_closed: Arc<AtomicBool>,
}

impl Cable {
    pub(crate) fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let cable = Self {
            address: listener.local_addr().unwrap(),
            ends: Arc::default(),
            is_closed: Arc::default(),
        };
        let (ends, is_closed) = (cable.ends.clone(), cable.is_closed.clone());
        // Ends with the test process.
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                eventually("it is opened", || !is_closed.load(Ordering::SeqCst));
                let Ok(server) = TcpStream::connect(server) else {
                    continue;
                };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    ends.lock().unwrap().push(from.try_clone().unwrap());
                    thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
            }
        });
        cable
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}/", self.address)
    }

    /// Cuts all connections, and holds new ones back.
    pub(crate) fn cut(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        for end in self.ends.lock().unwrap().drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn mend(&self) {
        self.is_closed.store(false, Ordering::SeqCst);
    }
}
