//! Tests that threads never deadlock although mailboxes have space for only one command at a time.

use crate::support;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use humphrey_ws::{
    AsyncSender, AsyncWebsocketApp, HistoryLimits, Limits, Message, Presence, Subscription,
};
use support::{Client, eventually, read_head, start, tcp};

fn message(text: impl std::fmt::Display) -> Message {
    Message::new(text.to_string())
}

/// Starts an app whose handlers call every operation that may wait for a mailbox.
fn app(handler_threads: usize) -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new_with_config((), handler_threads, 1)
        .with_shards(2)
        .with_limits(Limits::default().mailbox_bytes_max(1))
        .with_history("*", HistoryLimits::messages(20).bytes(100_000))
        .with_room_handler(|room, stream, change, _| {
            if room.name() == Some("hall") && change == Presence::Joined {
                room.broadcast_except(stream.id(), message("somebody has come"));
                stream.leave("hall");
            }
        })
        .with_connect_handler(|stream, _| {
            stream.join("hall");
            stream
                .join_since(&stream.path()[1..], None)
                .expect("the join succeeds");
            stream.send(message("joined"));
        })
        .with_message_handler(|stream, message, _| {
            let room = stream.room(&stream.path()[1..]);
            room.broadcast_with(|id| {
                assert_eq!(room.contains(stream.id()), id.is_some());
                message.clone()
            });
        })
        .with_event_stream("/events", |_, _| {
            let rooms = Subscription::room("a").and_room("b");
            Ok(rooms.with_broadcasts().with_history())
        })
}

fn join_and_broadcast(address: SocketAddr, room: &str) {
    let mut client = Client::connect_to(address, &format!("/{room}"));
    while client.receive_text() != "joined" {}
    client.send("mine");
    while client.receive_text() != "mine" {}
}

fn follow(address: SocketAddr) {
    let mut socket = tcp(address);
    socket
        .write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    assert!(read_head(&mut socket).starts_with("HTTP/1.1 200 "));
}

fn change_rooms(sender: &AsyncSender, room: &str) {
    for id in sender.room(room).members() {
        sender.room("corner").join(id);
        sender.room("corner").leave(id);
    }
}

#[test]
fn senders_and_joins_progress_with_full_mailboxes() {
    // With 1, shards run no handlers. With 2 and 3, one thread is left besides those of one shard or of both.
    for handler_threads in [1, 2, 3, 32] {
        assert_progress(handler_threads);
    }
}

fn assert_progress(handler_threads: usize) {
    let (running, address) = start(app(handler_threads));
    let done = Arc::new(AtomicBool::new(false));
    let turns: Vec<Arc<AtomicUsize>> = (0..6).map(|_| Arc::default()).collect();
    let threads: Vec<_> = (0..)
        .zip(&turns)
        .map(|(n, turns)| {
            let (sender, done, turns) = (running.sender(), done.clone(), turns.clone());
            thread::spawn(move || {
                let room = ["a", "b"][n % 2];
                while !done.load(Ordering::Relaxed) {
                    match n {
                        0 | 1 => sender.room(room).broadcast(message("x".repeat(200))),
                        2 => sender.broadcast(message("all")),
                        3 => join_and_broadcast(address, room),
                        4 => follow(address),
                        _ => change_rooms(&sender, room),
                    }
                    turns.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    eventually("all threads and clients have made progress", || {
        turns.iter().all(|turns| turns.load(Ordering::Relaxed) > 20)
    });
    done.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().expect("the thread does not panic");
    }
    eventually("no member is left in any room", || {
        let metrics = running.sender().metrics();
        metrics.connections == 0 && metrics.event_streams == 0 && metrics.room_members == 0
    });
    assert_eq!(running.sender().metrics().handler_panics, 0);
    running.shutdown(Duration::from_millis(100));
}
