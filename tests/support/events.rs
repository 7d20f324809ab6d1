//! A client of event streams, and an app that serves them.

#![allow(dead_code)] // Each test file uses some of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use humphrey_ws::{AsyncWebsocketApp, Message, Reject, RunningApp, Subscription};

use crate::support::{DEADLINE, read_head, start, tcp};

/// The shutdown timeout at the end of a test, after which remaining clients are cut off.
pub(crate) const STOP: Duration = Duration::from_millis(100);

/// An event as a page receives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) kind: String,
    pub(crate) data: String,
    pub(crate) id: String,
}

/// A client that parses event streams as WHATWG HTML §9.2.6 specifies.
pub(crate) struct EventSource {
    pub(crate) head: String,
    socket: BufReader<TcpStream>,
    pub(crate) retry: Option<String>,
    pub(crate) comments: usize,
    /// The value of `Last-Event-ID` for a reconnect.
    pub(crate) last_event_id: String,
    /// The fields read since the last empty line, or since the beginning.
    id: String,
}

pub(crate) fn request(method: &str, target: &str, headers: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")
}

impl EventSource {
    pub(crate) fn open(address: SocketAddr, target: &str) -> Self {
        Self::open_with(address, target, "")
    }

    pub(crate) fn resume(address: SocketAddr, target: &str, last: &str) -> Self {
        Self::open_with(address, target, &format!("Last-Event-ID: {last}\r\n"))
    }

    pub(crate) fn open_with(address: SocketAddr, target: &str, headers: &str) -> Self {
        Self::ask(address, &request("GET", target, headers))
    }

    /// Returns once the stream has begun, so that later messages arrive.
    pub(crate) fn ask(address: SocketAddr, request: &str) -> Self {
        let mut socket = tcp(address);
        socket.write_all(request.as_bytes()).unwrap();
        let head = read_head(&mut socket);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let mut source = Self {
            head,
            socket: BufReader::new(socket),
            retry: None,
            comments: 0,
            last_event_id: String::new(),
            id: String::new(),
        };
        let retry = source.line().expect("the preamble comes first");
        source.retry = Some(retry.strip_prefix("retry: ").expect(&retry).to_owned());
        source
    }

    /// Reads the position of a new client without replay, which the server sends at once.
    pub(crate) fn position(&mut self) -> String {
        assert_eq!(self.block(), Some(None), "an id without an event");
        assert_ne!(self.last_event_id, "");
        self.last_event_id.clone()
    }

    /// Returns `None` at the end of the stream.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let n = self.socket.read_line(&mut line);
        if n.expect("the stream can be read") == 0 {
            return None;
        }
        let line = line.strip_suffix('\n').expect("a whole line");
        Some(line.to_owned())
    }

    /// Reads a block or a comment, and returns its event if it has one. Returns `None` at the end of the stream.
    pub(crate) fn block(&mut self) -> Option<Option<Event>> {
        let mut kind = String::new();
        let mut data: Option<String> = None;
        let mut begun = false;
        loop {
            let Some(line) = self.line() else {
                assert!(!begun, "the stream ended inside a block");
                return None;
            };
            if line == ":" {
                assert!(!begun, "a comment inside a block");
                self.comments += 1;
                return Some(None);
            }
            if line.is_empty() {
                self.last_event_id.clone_from(&self.id);
                let kind = if kind.is_empty() { "message" } else { &kind };
                return Some(data.map(|data| Event {
                    kind: kind.to_owned(),
                    data,
                    id: self.last_event_id.clone(),
                }));
            }
            match line.split_once(": ").unwrap_or((&line, "")) {
                // The preamble contains fields too, but no empty line.
                ("id", value) => {
                    self.id = value.to_owned();
                    continue;
                }
                ("event", value) => kind = value.to_owned(),
                ("data", value) => match &mut data {
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    None => data = Some(value.to_owned()),
                },
                other => panic!("not a field: {other:?}"),
            }
            begun = true;
        }
    }

    /// Returns the next event, or `None` at the end of the stream.
    pub(crate) fn try_next(&mut self) -> Option<Event> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(event) = self.block()? {
                return Some(event);
            }
            assert!(Instant::now() < deadline, "only comments arrived");
        }
    }

    pub(crate) fn next(&mut self) -> Event {
        self.try_next().expect("the stream continues")
    }

    /// Returns the data of the next event, which must be a message.
    pub(crate) fn text(&mut self) -> String {
        let event = self.next();
        assert_eq!(event.kind, "message", "{event:?}");
        event.data
    }

    pub(crate) fn texts(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.text()).collect()
    }

    /// Returns the texts up to the end of the stream.
    pub(crate) fn rest(mut self) -> Vec<String> {
        let mut texts = Vec::new();
        while let Some(event) = self.try_next() {
            assert_eq!(event.kind, "message", "{event:?}");
            texts.push(event.data);
        }
        texts
    }
}

/// The whole answer to a request, to the end of the connection.
pub(crate) fn answer(address: SocketAddr, request: &str) -> (String, String) {
    let mut socket = tcp(address);
    socket.write_all(request.as_bytes()).unwrap();
    let head = read_head(&mut socket);
    let mut body = String::new();
    socket.read_to_string(&mut body).unwrap();
    (head, body)
}

pub(crate) fn app() -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new().with_shards(2)
}

/// Creates an app whose `/events` streams the room named by the query.
pub(crate) fn serve(app: AsyncWebsocketApp<()>) -> (RunningApp, SocketAddr) {
    start(app.with_event_stream("/events", |request, _| {
        let room = request.query_param("room");
        Ok(Subscription::room(
            room.ok_or(Reject::new(400).with_body("which room?\n"))?,
        ))
    }))
}

pub(crate) fn text(text: impl AsRef<str>) -> Message {
    Message::new(text.as_ref())
}
