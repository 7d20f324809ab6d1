//! A client of event streams.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::{DEADLINE, Program};

/// A client that reads the lines of an event stream.
pub(crate) struct Events {
    socket: BufReader<TcpStream>,
}

impl Events {
    /// Connects, and returns once the stream has begun.
    pub(crate) fn open(program: &Program, path: &str, headers: &str) -> Self {
        let mut socket = TcpStream::connect(program.address()).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let host = program.address();
        write!(
            socket,
            "GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n"
        )
        .unwrap();
        let mut events = Self {
            socket: BufReader::new(socket),
        };
        assert_eq!(events.line(), "HTTP/1.1 200 OK");
        while !events.line().starts_with("retry: ") {}
        events
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.socket.get_ref().local_addr().unwrap()
    }

    /// Reads until the stream has ended.
    pub(crate) fn expect_end(mut self) {
        let mut rest = Vec::new();
        self.socket.read_to_end(&mut rest).unwrap();
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.socket.read_line(&mut line).unwrap() > 0, "the end");
        line.trim_end().to_owned()
    }

    /// The fields of the next event, and its id.
    pub(crate) fn next(&mut self) -> (String, Option<String>) {
        let (mut fields, mut id) = (Vec::new(), None);
        loop {
            match self.line() {
                line if line.is_empty() && !fields.is_empty() => return (fields.join("; "), id),
                line if line.starts_with("id: ") => id = Some(line[4..].to_owned()),
                line if line.is_empty() || line.starts_with(':') => {}
                line => fields.push(line),
            }
        }
    }
}
