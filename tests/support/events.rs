//! A client of event streams, and apps that serve them.

#![allow(dead_code)] // Each test file uses some of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use humphrey_ws::{AsyncWebsocketApp, Message, Reject, RunningApp, Subscription};

use crate::support::{DEADLINE, read_head, start, tcp};

/// How long an app may take to stop whose clients are of no interest any more.
pub(crate) const STOP: Duration = Duration::from_millis(100);

/// An event as a page gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) kind: String,
    pub(crate) data: String,
    pub(crate) id: String,
}

/// A client that parses as WHATWG HTML §9.2.6 says.
pub(crate) struct EventSource {
    pub(crate) head: String,
    socket: BufReader<TcpStream>,
    pub(crate) retry: Option<String>,
    pub(crate) comments: usize,
    /// What it would send as `Last-Event-ID`.
    pub(crate) last_event_id: String,
    /// Of the lines read since the last empty one, or since the beginning.
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

    /// The stream has begun when this returns: what is published from now on arrives.
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

    /// The position of a client that comes for the first time and begins with what is new: it is told at once.
    pub(crate) fn position(&mut self) -> String {
        assert_eq!(self.block(), Some(None), "an id without an event");
        assert_ne!(self.last_event_id, "");
        self.last_event_id.clone()
    }

    /// None: the stream has ended.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let n = self.socket.read_line(&mut line);
        if n.expect("more, or the end") == 0 {
            return None;
        }
        let line = line.strip_suffix('\n').expect("a whole line");
        Some(line.to_owned())
    }

    /// Reads a block or a comment: an event, or none in it. None: the stream has ended, behind a whole block.
    pub(crate) fn block(&mut self) -> Option<Option<Event>> {
        let mut kind = String::new();
        let mut data: Option<String> = None;
        let mut begun = false;
        loop {
            let Some(line) = self.line() else {
                assert!(!begun, "the stream ends behind a whole block");
                return None;
            };
            if line == ":" {
                assert!(!begun, "a comment stands between blocks");
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
                // Also in the preamble, to which no empty line belongs.
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

    /// The next event. None: the stream has ended.
    pub(crate) fn try_next(&mut self) -> Option<Event> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(event) = self.block()? {
                return Some(event);
            }
            assert!(Instant::now() < deadline, "comments, and no event");
        }
    }

    pub(crate) fn next(&mut self) -> Event {
        self.try_next().expect("the stream goes on")
    }

    /// The data of the next event, which is a message.
    pub(crate) fn text(&mut self) -> String {
        let event = self.next();
        assert_eq!(event.kind, "message", "{event:?}");
        event.data
    }

    pub(crate) fn texts(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.text()).collect()
    }

    /// The texts up to the end of the stream.
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

/// An app whose `/events` streams the room that the query names.
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
