//! `humphrey-broadcast listen` and `send` with servers that cut the connection at any byte, flood it, or never answer
//! the close frame.
#![cfg(unix)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

#[cfg(feature = "tls")]
use support::certificates::Authority;
use support::shell::{Foreign, Guest, Shell};
use support::{DEADLINE, eventually};
use tungstenite::Message;

/// Keeps reconnect delays short.
const SOON: &str = "--max-delay=1";

/// Lines of increasing length. With a ping and a close frame they take `EXCHANGE_BYTES` on the wire.
const LINES: [&str; 3] = ["a", "bb", "ccc"];
const EXCHANGE_BYTES: usize = 7 + 8 + 9 + 14 + 8;

/// How a server cuts the connection after a number of bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Cut {
    /// Closes the socket with unread bytes: the connection is reset.
    Reset,
    /// Shuts down its writing side, and reads on without parsing.
    HalfClosed,
    /// Shuts down its writing side after a close frame with 1009, and reads on without parsing.
    TooLong,
}

/// Parses the first masked frame if it is complete: opcode, payload and the remaining bytes. All frames are short.
fn frame(bytes: &[u8]) -> Option<(u8, Vec<u8>, &[u8])> {
    let (&[first, second, ref mask @ ..], rest) = bytes.split_first_chunk::<6>()?;
    let (payload, rest) = rest.split_at_checked((second & 0x7f).into())?;
    let unmasked = payload.iter().zip(mask.iter().cycle()).map(|(a, b)| a ^ b);
    Some((first & 0x0f, unmasked.collect(), rest))
}

/// Reads `bytes_max` bytes, answers the pings in them, and cuts the connection on `socket`. Returns the lines in them.
fn cut_after(
    bytes_max: usize,
    cut: Cut,
    stream: &mut (impl Read + Write),
    mut socket: &TcpStream,
) -> Vec<String> {
    let mut bytes = Vec::new();
    let mut lines = Vec::new();
    let mut taken = 0;
    while bytes.len() < bytes_max {
        let mut part = [0; EXCHANGE_BYTES];
        match stream.read(&mut part[..bytes_max - bytes.len()]) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&part[..n]),
            _ => break,
        }
        while let Some((opcode, payload, rest)) = frame(&bytes[taken..]) {
            taken = bytes.len() - rest.len();
            match opcode {
                1 => lines.push(String::from_utf8(payload).unwrap()),
                9 => {
                    let pong = [&[0x8a, payload.len() as u8], &payload[..]].concat();
                    stream.write_all(&pong).unwrap();
                }
                _ => {}
            }
        }
    }
    if cut == Cut::TooLong {
        stream.write_all(b"\x88\x02\x03\xf1").unwrap();
    }
    if cut != Cut::Reset {
        let _ = socket.shutdown(Shutdown::Write);
        let _ = std::io::copy(&mut socket, &mut std::io::sink());
    }
    lines
}

/// Returns the number before these words on standard error.
fn number_in_front_of(words: &str, said: &str) -> usize {
    let line = said.lines().find(|line| line.contains(words));
    line.map_or(0, |line| {
        let (_, line) = line.split_once(": ").unwrap();
        line.split(' ').next().unwrap().parse().unwrap()
    })
}

/// The transport that carries the WebSocket connection.
#[derive(Clone, Copy)]
enum Transport {
    Tcp,
    #[cfg(feature = "tls")]
    Tls,
}

/// Cuts the first connection, and serves the second, if there is one. Returns the messages of the first, and those of the second.
fn serve_twice<S: Read + Write + Send + 'static>(
    server: Foreign,
    accept: impl Fn(&Foreign) -> Guest<S> + Send + 'static,
    socket_of: fn(&S) -> &TcpStream,
    (bytes_max, cut): (usize, Cut),
    served: Arc<AtomicBool>,
) -> (Vec<String>, JoinHandle<Vec<Message>>) {
    let mut guest = accept(&server);
    let socket = socket_of(guest.socket.get_ref()).try_clone().unwrap();
    let arrived = cut_after(bytes_max, cut, guest.socket.get_mut(), &socket);
    drop((guest, socket));
    let rest = thread::spawn(move || {
        // The client reconnects only if lines are left.
        let comes = server.comes_unless(&|| served.load(Ordering::SeqCst));
        match comes {
            true => accept(&server).expect_close(),
            false => Vec::new(),
        }
    });
    (arrived, rest)
}

fn expect_each_line_accounted_for(bytes_max: usize, cut: Cut, transport: Transport) {
    let server = Foreign::new();
    let served = Arc::new(AtomicBool::new(false));
    let start = |url: &str, options: &[&str]| {
        let mut sender = Shell::send(url, &[&[SOON], options].concat());
        sender.write(format!("{}\n", LINES.join("\n")).as_bytes());
        sender.stdin = None;
        sender
    };
    let (mut sender, (mut arrived, rest)) = match transport {
        Transport::Tcp => {
            let sender = start(&server.url(), &[]);
            let accept = Foreign::guest;
            let how = (bytes_max, cut);
            (
                sender,
                serve_twice(server, accept, |stream| stream, how, served.clone()),
            )
        }
        #[cfg(feature = "tls")]
        Transport::Tls => {
            let authority = Authority::new();
            let config = authority.issue(&["127.0.0.1"]).server();
            let ca = authority.file();
            let url = server.url().replace("ws://", "wss://");
            let sender = start(&url, &["--ca", ca.to_str().unwrap()]);
            let accept = move |server: &Foreign| server.tls_guest(&config);
            let how = (bytes_max, cut);
            (
                sender,
                serve_twice(server, accept, |stream| &stream.sock, how, served.clone()),
            )
        }
    };
    let code = sender.wait();
    served.store(true, Ordering::SeqCst);
    for message in rest.join().unwrap() {
        arrived.push(message.into_text().unwrap().to_string());
    }
    let said = &sender.said;
    let case = format!("{cut:?} after {bytes_max}, {arrived:?}: {said}");
    let mut once = arrived.clone();
    once.dedup();
    assert_eq!(once, arrived, "twice: {case}");
    assert!(arrived.is_sorted(), "not in order: {case}");
    let reached = number_in_front_of("reached the server", said);
    let doubtful = number_in_front_of("may be lost", said);
    let dropped = said.matches("is dropped").count();
    assert_eq!(reached + doubtful + dropped, LINES.len(), "{case}");
    assert!(reached <= arrived.len(), "{case}");
    assert_eq!(code, i32::from(doubtful + dropped > 0), "{case}");
    assert!(dropped <= usize::from(cut == Cut::TooLong), "{case}");
}

fn expect_lines_accounted_for_wherever_cut(transport: Transport) {
    let cuts = [Cut::Reset, Cut::HalfClosed, Cut::TooLong];
    let all: Vec<(usize, Cut)> = (0..=EXCHANGE_BYTES)
        .flat_map(|bytes_max| cuts.map(|cut| (bytes_max, cut)))
        .collect();
    // In parallel, since they mostly wait.
    for some in all.chunks(24) {
        thread::scope(|scope| {
            for (bytes_max, cut) in some {
                scope.spawn(|| expect_each_line_accounted_for(*bytes_max, *cut, transport));
            }
        });
    }
}

#[test]
fn lines_are_accounted_for_wherever_the_connection_is_cut() {
    expect_lines_accounted_for_wherever_cut(Transport::Tcp);
}

#[cfg(feature = "tls")]
#[test]
fn lines_are_accounted_for_wherever_a_tls_connection_is_cut() {
    expect_lines_accounted_for_wherever_cut(Transport::Tls);
}

#[test]
fn lines_are_sent_to_a_server_that_floods() {
    const FLOOD_BYTES_BEFORE_LINE: usize = 1 << 20;
    // Pings, and empty fragments of one message.
    for (begin, again, end) in [
        (&b""[..], &b"\x89\x00"[..], &b""[..]),
        (b"\x01\x00", b"\x00\x00", b"\x80\x00"),
    ] {
        let server = Foreign::new();
        let mut sender = Shell::send(&server.url(), &[SOON]);
        let mut guest = server.guest();
        let has_arrived = AtomicBool::new(false);
        let flooded_bytes = AtomicUsize::new(0);
        let mut stream = guest.socket.get_ref().try_clone().unwrap();
        thread::scope(|scope| {
            let flood = scope.spawn(|| {
                stream.write_all(begin).unwrap();
                let again = again.repeat(16 << 10);
                let begun = Instant::now();
                while !has_arrived.load(Ordering::SeqCst) {
                    assert!(begun.elapsed() < DEADLINE, "no line arrives");
                    stream.write_all(&again).unwrap();
                    flooded_bytes.fetch_add(again.len(), Ordering::SeqCst);
                }
                stream.write_all(end).unwrap();
            });
            eventually("the flood is under way", || {
                flooded_bytes.load(Ordering::SeqCst) >= FLOOD_BYTES_BEFORE_LINE
            });
            sender.write(b"line\n");
            sender.stdin = None;
            let message = guest.message();
            has_arrived.store(true, Ordering::SeqCst);
            flood.join().unwrap();
            assert_eq!(message, Message::text("line"));
        });
        assert_eq!(guest.expect_close(), []);
        sender.expect_exit(0);
    }
}

#[test]
fn listen_ends_though_the_server_ignores_its_close_frame() {
    let server = Foreign::new();
    let mut listener = Shell::listen(&server.url(), &["--count=1"]);
    let mut guest = server.guest();
    let mut stream = guest.socket.get_mut();
    // The server does not read the close frame.
    eventually("the client hangs up", || {
        stream.write_all(b"\x81\x01x").is_err()
    });
    assert_eq!(listener.line(), "x");
    listener.expect_exit(0);
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}
