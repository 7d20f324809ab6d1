//! The load client must detect every fault of a server: these tests run it against a faulty one.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::{Load, Plan, Rooms};
use crate::args::Job;
use crate::wire::{self, Parsed};

/// Maps the number of a message to the numbers of its replies, as offsets.
type Answer = fn(u64) -> &'static [i64];

/// Serves echoes, with replies whose numbers are shifted by the offsets of `answer`.
fn serve(answer: Answer) -> SocketAddrV4 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            // The thread ends when the client disconnects.
            thread::spawn(move || echo(stream, answer));
        }
    });
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => unreachable!("it was bound to an address of IPv4"),
    }
}

fn echo(mut stream: TcpStream, answer: Answer) -> io::Result<()> {
    let mut input = Vec::new();
    let mut part = [0; 4096];
    let end = loop {
        let read = stream.read(&mut part)?;
        input.extend_from_slice(&part[..read]);
        if let Some(end) = wire::head_end(&input) {
            break end;
        }
    };
    let head = String::from_utf8_lossy(&input[..end]).into_owned();
    let key = wire::header(&head, "sec-websocket-key").unwrap_or_default();
    let accept = wire::accept_key(key);
    let head =
        format!("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {accept}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    input.drain(..end);
    loop {
        while let Parsed::Frame(frame) = wire::client_frame(&input) {
            let mut payload = input[frame.start..frame.end].to_vec();
            wire::mask(&mut payload, frame.mask);
            let number = u64::from_ne_bytes(payload[..8].try_into().unwrap());
            for away in answer(number) {
                let number = number.wrapping_add_signed(*away);
                payload[..8].copy_from_slice(&number.to_ne_bytes());
                let mut output = Vec::new();
                wire::put_server_head(&mut output, frame.opcode, payload.len());
                output.extend_from_slice(&payload);
                stream.write_all(&output)?;
            }
            input.drain(..frame.end);
        }
        match stream.read(&mut part)? {
            0 => return Ok(()),
            read => input.extend_from_slice(&part[..read]),
        }
    }
}

const PLAN: Plan = Plan {
    job: Job::Echo,
    clients: 1,
    rooms: Rooms {
        count: 0,
        first: 0,
        members: 0,
        together: false,
        visitors: 0,
    },
    earlier: 0,
    window: 4,
    size: 32,
    stalled: 0,
    blockers: 0,
    sleep: true,
};

/// The load client's result for ten messages to such a server.
fn outcome(answer: Answer) -> io::Result<(u64, u64)> {
    let mut load = Load::connect(serve(answer), PLAN, None)?;
    load.deliver(10)?;
    load.expect_nothing_more(Duration::from_millis(20))?;
    Ok(load.counts())
}

#[test]
fn echoes_in_order_are_counted() {
    assert_eq!(outcome(|_| &[0]).unwrap(), (10, 10));
}

#[test]
fn lost_message_is_an_error() {
    let error = outcome(|number| if number == 3 { &[] } else { &[0] }).unwrap_err();
    assert!(error.to_string().contains("message 4 where 3"), "{error}");
}

#[test]
fn reordered_messages_are_an_error() {
    let swap: Answer = |number| match number {
        2 => &[1],
        3 => &[-1],
        _ => &[0],
    };
    let error = outcome(swap).unwrap_err();
    assert!(error.to_string().contains("message 3 where 2"), "{error}");
}

#[test]
fn duplicated_message_is_an_error() {
    let error = outcome(|number| if number == 5 { &[0, 0] } else { &[0] }).unwrap_err();
    assert!(error.to_string().contains("message 5 where 6"), "{error}");
    // Also for the last message.
    let error = outcome(|number| if number == 9 { &[0, 0] } else { &[0] }).unwrap_err();
    assert!(error.to_string().contains("message 9 where 10"), "{error}");
}

#[test]
fn message_never_sent_is_an_error() {
    let error = outcome(|number| if number == 9 { &[0, 1] } else { &[0] }).unwrap_err();
    assert!(
        error.to_string().contains("message 10 where 10 of 10"),
        "{error}"
    );
}

#[test]
fn paced_load_counts_every_message() {
    let plan = Plan { clients: 3, ..PLAN };
    let mut load = Load::connect(serve(|_| &[0]), plan, None).unwrap();
    load.pace(20, 10_000.0).unwrap();
    load.expect_nothing_more(Duration::from_millis(20)).unwrap();
    assert_eq!(load.counts(), (20, 20));
    let mut load = Load::connect(serve(|n| if n == 2 { &[1] } else { &[0] }), plan, None).unwrap();
    assert!(load.pace(20, 10_000.0).is_err());
}

#[test]
fn blockers_send_while_others_are_paced_and_then_stop() {
    let plan = Plan {
        job: Job::Blocked,
        clients: 3,
        blockers: 1,
        ..PLAN
    };
    let mut load = Load::connect(serve(|_| &[0]), plan, None).unwrap();
    load.deliver(3).unwrap();
    load.block();
    load.pace(50, 5_000.0).unwrap();
    load.expect_nothing_more(Duration::from_millis(20)).unwrap();
    let (expected, received) = load.counts();
    assert_eq!(expected, received);
    // Two of the three clients sent in the closed loop; the third is the blocker.
    assert!(received > 2 + 50);
}
