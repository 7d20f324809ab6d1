//! Rooms over real sockets: membership, recipients, and the order of messages.

use crate::support;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use humphrey_ws::{
    AsyncSender, AsyncStream, AsyncWebsocketApp, CloseCode, ConnectionId, JoinErrorReason, Limits,
    Message, Presence, Room, RunningApp, SendErrorReason,
};
use std::net::SocketAddr;
use support::{Client, eventually, holds_within, start};

const STOP: Duration = Duration::from_millis(100);

/// Starts an app whose clients join the rooms in their path (`/a+b`), and receive their own id.
fn joining() -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new()
        .with_shards(2)
        .with_connect_handler(|stream, _| {
            for room in stream.path()[1..]
                .split('+')
                .filter(|room| !room.is_empty())
            {
                stream.join(room);
            }
            stream.send(Message::new("joined"));
        })
}

fn join(address: SocketAddr, rooms: &str) -> Client {
    let mut client = Client::connect_to(address, &format!("/{rooms}"));
    assert_eq!(client.receive_text(), "joined");
    client
}

/// Returns the ids of all connections, in the order in which they connected.
fn recording() -> (AsyncWebsocketApp<()>, Arc<Mutex<Vec<ConnectionId>>>) {
    let ids = Arc::<Mutex<Vec<ConnectionId>>>::default();
    let recorded = ids.clone();
    let app = AsyncWebsocketApp::new()
        .with_shards(2)
        .with_connect_handler(move |stream, _| {
            recorded.lock().unwrap().push(stream.id());
            stream.send(Message::new("here"));
        });
    (app, ids)
}

fn connect(
    address: SocketAddr,
    ids: &Mutex<Vec<ConnectionId>>,
    count: usize,
) -> Vec<(Client, ConnectionId)> {
    (0..count)
        .map(|_| {
            let mut client = Client::connect(address);
            assert_eq!(client.receive_text(), "here");
            let id = *ids.lock().unwrap().last().unwrap();
            (client, id)
        })
        .collect()
}

fn message(text: impl std::fmt::Display) -> Message {
    Message::new(text.to_string())
}

#[test]
fn room_broadcast_reaches_its_members_only() {
    let (running, address) = start(joining());
    let mut in_a: Vec<Client> = (0..4).map(|_| join(address, "a")).collect();
    let mut in_b = join(address, "b");
    let mut in_both = join(address, "a+b");
    let mut in_none = join(address, "");
    let sender = running.sender();
    sender.room("a").broadcast(message("to a"));
    sender.room("b").broadcast(message("to b"));
    sender.room("c").broadcast(message("to nobody"));
    sender.broadcast(message("to all"));
    for client in &mut in_a {
        assert_eq!(client.receive_text(), "to a");
        assert_eq!(client.receive_text(), "to all");
    }
    assert_eq!(in_b.receive_text(), "to b");
    assert_eq!(in_both.receive_text(), "to a");
    assert_eq!(in_both.receive_text(), "to b");
    for client in [&mut in_b, &mut in_both, &mut in_none] {
        assert_eq!(client.receive_text(), "to all");
    }
    assert_eq!(running.sender().metrics().dropped.no_recipient, 1);
    running.shutdown(STOP);
}

#[test]
fn corked_messages_leave_when_the_closure_ends() {
    let (running, address) = start(joining());
    let sender = running.sender();
    // Before the app runs, and after it, there is nothing to wake.
    let not_started: AsyncWebsocketApp<()> = AsyncWebsocketApp::new();
    assert_eq!(not_started.sender().cork(|| 7), 7);
    let mut client = join(address, "");
    let sent = || sender.metrics().messages_out;
    let mut number = 0;
    // A shard that is still awake takes a message at once.
    eventually("a sleeping shard gets no message before the end", || {
        let before = sent();
        let is_early = sender.cork(|| {
            sender.broadcast(message(number));
            sender.broadcast(message(number + 1));
            holds_within(Duration::from_millis(50), || sent() > before)
        });
        for n in number..number + 2 {
            assert_eq!(client.receive_text(), n.to_string());
        }
        number += 2;
        !is_early
    });
    running.shutdown(STOP);
    assert_eq!(sender.cork(|| 7), 7);
}

#[test]
fn join_send_and_leave_of_a_thread_keep_their_order() {
    let (app, ids) = recording();
    let (running, address) = start(app);
    let mut clients = connect(address, &ids, 4);
    let sender = running.sender();
    let room = sender.room("r");
    const ROUNDS: usize = 500;
    for n in 0..ROUNDS {
        for (_, id) in &clients {
            room.join(*id);
            assert!(room.contains(*id));
        }
        assert_eq!(room.len(), clients.len());
        room.broadcast(message(n));
        for (_, id) in &clients {
            room.leave(*id);
            assert!(!room.contains(*id));
        }
        assert!(room.is_empty());
        room.broadcast(message("after they left"));
    }
    sender.broadcast(message("end"));
    for (client, _) in &mut clients {
        for n in 0..ROUNDS {
            assert_eq!(client.receive_text(), n.to_string());
        }
        assert_eq!(client.receive_text(), "end");
    }
    assert_eq!(running.sender().metrics().rooms, 0);
    running.shutdown(STOP);
}

#[test]
fn join_in_on_connect_precedes_the_first_message() {
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
        .with_connect_handler(|stream, _| stream.join("r"))
        .with_message_handler(|stream, message, _| {
            assert!(stream.room("r").contains(stream.id()));
            stream.room("r").broadcast(message);
        });
    let (running, address) = start(app);
    for n in 0..50 {
        let mut client = Client::connect(address);
        client.send(&n.to_string());
        assert_eq!(client.receive_text(), n.to_string());
        client.close();
    }
    running.shutdown(STOP);
}

#[test]
fn broadcasts_of_a_thread_to_rooms_and_all_keep_order() {
    let (running, address) = start(joining());
    let rooms = ["a", "b", "c", "d"];
    let mut clients: Vec<(HashSet<&str>, Client)> = (0..16usize)
        .map(|bits| {
            let of: Vec<&str> = rooms
                .into_iter()
                .enumerate()
                .filter(|(n, _)| bits & (1 << n) != 0)
                .map(|(_, room)| room)
                .collect();
            (of.iter().copied().collect(), join(address, &of.join("+")))
        })
        .collect();
    let sender = running.sender();
    let mut sent = Vec::new();
    for n in 0..2_000 {
        // Single messages, batches, and messages too long for a batch.
        let text = match n % 97 {
            0 => format!("{n} {}", "x".repeat(20_000)),
            _ => n.to_string(),
        };
        let room = match n * 7 % 11 {
            0..=1 => "a",
            2..=3 => "b",
            4..=6 => "c",
            7..=8 => "d",
            _ => "",
        };
        match room {
            "" => sender.broadcast(message(&text)),
            room => sender.room(room).broadcast(message(&text)),
        }
        sent.push((room, text));
    }
    for (of, client) in &mut clients {
        let due = sent
            .iter()
            .filter(|(room, _)| room.is_empty() || of.contains(room));
        for (_, text) in due {
            assert_eq!(&client.receive_text(), text);
        }
    }
    running.shutdown(STOP);
}

#[test]
fn sends_of_a_handler_to_client_room_and_all_keep_order() {
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
        .with_connect_handler(|stream, _| stream.join("r"))
        .with_message_handler(|stream, _, _| {
            for n in 0..100 {
                stream.send(message(format!("own {n}")));
                stream.room("r").broadcast(message(format!("room {n}")));
                stream.broadcast(message(format!("all {n}")));
                stream
                    .room("r")
                    .broadcast_except(stream.id(), message("to others"));
            }
        });
    let (running, address) = start(app);
    let mut client = Client::connect(address);
    let mut other = Client::connect(address);
    eventually("both clients are in the room", || {
        running.sender().room("r").len() == 2
    });
    client.send("go");
    for n in 0..100 {
        for of in ["own", "room", "all"] {
            assert_eq!(client.receive_text(), format!("{of} {n}"));
        }
        assert_eq!(other.receive_text(), format!("room {n}"));
        assert_eq!(other.receive_text(), format!("all {n}"));
        assert_eq!(other.receive_text(), "to others");
    }
    running.shutdown(STOP);
}

#[test]
fn broadcast_except_skips_one_connection() {
    let (app, ids) = recording();
    let (running, address) = start(app);
    let mut clients = connect(address, &ids, 5);
    let sender = running.sender();
    let room = sender.room("r");
    for (_, id) in &clients {
        room.join(*id);
    }
    let members: HashSet<ConnectionId> = room.members().into_iter().collect();
    assert_eq!(members, clients.iter().map(|(_, id)| *id).collect());
    let everyone: HashSet<ConnectionId> = sender.everyone().members().into_iter().collect();
    assert_eq!(everyone, members);
    assert_eq!(sender.everyone().len(), 5);
    for (n, (_, id)) in clients.iter().enumerate() {
        let id = *id;
        room.broadcast_except(id, message(format!("room without {n}")));
        sender
            .everyone()
            .broadcast_except(id, message(format!("all without {n}")));
    }
    sender.broadcast(message("end"));
    for (own, (client, _)) in clients.iter_mut().enumerate() {
        for n in (0..5).filter(|&n| n != own) {
            assert_eq!(client.receive_text(), format!("room without {n}"));
            assert_eq!(client.receive_text(), format!("all without {n}"));
        }
        assert_eq!(client.receive_text(), "end");
    }
    running.shutdown(STOP);
}

#[test]
fn skipped_recipient_is_not_counted_as_undelivered() {
    let (app, ids) = recording();
    let (running, address) = start(app);
    // One client on each shard.
    let mut clients = connect(address, &ids, 2);
    let sender = running.sender();
    let room = sender.room("r");
    for (_, id) in &clients {
        room.join(*id);
    }
    let own = clients[0].1;
    room.broadcast_except(own, message("room"));
    sender.everyone().broadcast_except(own, message("all"));
    sender.broadcast(message("end"));
    assert_eq!(clients[1].0.receive_text(), "room");
    assert_eq!(clients[1].0.receive_text(), "all");
    assert_eq!(clients[0].0.receive_text(), "end");
    assert_eq!(sender.metrics().dropped.total(), 0);
    running.shutdown(STOP);
}

#[test]
fn ended_connection_leaves_its_rooms_and_frees_empty_ones() {
    let (running, address) = start(joining());
    let sender = running.sender();
    for how in 0..3 {
        let clients: Vec<Client> = (0..10)
            .map(|n| join(address, &format!("all+{n}")))
            .collect();
        assert_eq!(sender.room("all").len(), 10);
        assert_eq!(running.sender().metrics().rooms, 11);
        assert_eq!(running.sender().metrics().room_members, 20);
        let mut open = Vec::new();
        for client in clients {
            match how {
                0 => client.close(),
                1 => drop(client),
                _ => {
                    // Take either of the two clients.
                    let id = sender.room("all").members()[0];
                    sender.close(id, CloseCode::NORMAL, "");
                    eventually("the client leaves", || !sender.room("all").contains(id));
                    open.push(client);
                }
            }
        }
        eventually("all rooms are freed", || {
            running.sender().metrics().rooms == 0
        });
        assert_eq!(running.sender().metrics().room_members, 0);
        assert!(sender.room("all").is_empty());
        assert!(sender.room("all").members().is_empty());
    }
    running.shutdown(STOP);
}

#[test]
fn join_over_a_room_limit_names_the_limit() {
    let (app, ids) = recording();
    let (running, address) =
        start(app.with_limits(Limits::default().connection_rooms_max(2).rooms_max(3)));
    let mut clients = connect(address, &ids, 2);
    let sender = running.sender();
    let (first, second) = (clients[0].1, clients[1].1);
    let reason = |room: &str, id| sender.room(room).try_join(id).map_err(|error| error.reason);
    assert_eq!(reason("a", first), Ok(()));
    assert_eq!(reason("b", first), Ok(()));
    assert_eq!(reason("b", first), Ok(()), "a repeated join failed");
    assert_eq!(reason("c", first), Err(JoinErrorReason::ConnectionRooms));
    assert_eq!(
        running.sender().metrics().rooms,
        2,
        "the refused join left a room"
    );
    assert_eq!(reason("c", second), Ok(()));
    assert_eq!(reason("d", second), Err(JoinErrorReason::Rooms));
    assert_eq!(
        reason("a", second),
        Ok(()),
        "joining an existing room failed"
    );
    sender.room("b").leave(first);
    assert_eq!(reason("d", second), Err(JoinErrorReason::ConnectionRooms));
    assert_eq!(
        reason("d", first),
        Ok(()),
        "the freed room does not count as free"
    );

    let longest = "ü".repeat(127) + "x";
    assert_eq!(longest.len(), 255);
    sender.room("a").leave(first);
    sender.room("d").leave(first);
    assert_eq!(reason(&longest, first), Ok(()));
    let error = sender
        .room(&(longest.clone() + "x"))
        .try_join(first)
        .unwrap_err();
    assert_eq!(error.reason, JoinErrorReason::NameTooLong);
    assert!(error.to_string().contains("255 bytes"), "{error}");
    sender.room(&longest).broadcast(message("long"));
    assert_eq!(clients[0].0.receive_text(), "long");
    sender.room(&(longest + "x")).broadcast(message("nobody"));
    assert_eq!(running.sender().metrics().dropped.no_recipient, 1);

    let gone = clients.remove(1);
    gone.0.close();
    eventually("the client has disconnected", || {
        running.sender().connections() == 1
    });
    assert_eq!(reason("e", second), Err(JoinErrorReason::Closed));
    running.shutdown(STOP);
    assert_eq!(reason("e", first), Err(JoinErrorReason::Closed));
    let error = sender.room("a").try_broadcast(message("late")).unwrap_err();
    assert_eq!(error.reason, SendErrorReason::Closed);
}

#[test]
fn room_calls_before_the_app_runs_have_no_effect() {
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new();
    let room = app.sender().room("r");
    room.broadcast(message("early"));
    assert_eq!((room.len(), room.members().len()), (0, 0));
    assert_eq!(room.name(), Some("r"));
    assert_eq!(app.sender().everyone().name(), None);
    assert_eq!(app.sender().metrics().dropped.not_running, 1);
}

/// The membership changes that the room handler got, in order.
type Changes = Arc<Mutex<Vec<(SocketAddr, String, Presence)>>>;

fn announcing(changes: &Changes) -> AsyncWebsocketApp<()> {
    let (joined, disconnected) = (changes.clone(), changes.clone());
    AsyncWebsocketApp::new()
        .with_shards(2)
        .with_room_handler(move |room: Room, stream: AsyncStream, change, _| {
            let name = room.name().unwrap().to_owned();
            let mut changes = joined.lock().unwrap();
            changes.push((stream.peer_addr(), name, change));
        })
        .with_disconnect_handler(move |stream, _| {
            let end = (stream.peer_addr(), "end".to_owned(), Presence::Left);
            disconnected.lock().unwrap().push(end);
        })
}

fn changes_of(changes: &Changes, address: SocketAddr) -> Vec<(String, Presence)> {
    let changes = changes.lock().unwrap();
    let of = changes.iter().filter(|(who, ..)| *who == address);
    of.map(|(_, room, change)| (room.clone(), *change))
        .collect()
}

#[test]
fn room_handler_gets_each_change_before_on_disconnect() {
    let changes = Changes::default();
    let app = announcing(&changes).with_message_handler(|stream, message, _| {
        match message.text().unwrap() {
            "panic" => std::panic::resume_unwind(Box::new("a handler's panic")),
            _ => {
                for _ in 0..2 {
                    stream.join("a");
                    stream.join("b");
                    stream.join("a");
                    stream.leave("a");
                    stream.leave("a");
                }
            }
        };
    });
    let (running, address) = start(app);
    use Presence::{Joined, Left};
    let change = |room: &str, change| (room.to_owned(), change);
    for how in ["close", "drop", "panic"] {
        let mut client = Client::connect(address);
        let local = client.address();
        client.send("go");
        let mut expected = vec![
            change("a", Joined),
            change("b", Joined),
            change("a", Left),
            change("a", Joined),
            change("a", Left),
        ];
        eventually("all changes are reported", || {
            changes_of(&changes, local) == expected
        });
        match how {
            "close" => client.close(),
            "drop" => drop(client),
            _ => {
                client.send("panic");
                assert_eq!(u16::from(client.receive_to_close().1.unwrap().code), 1011);
            }
        }
        expected.extend([change("b", Left), change("end", Left)]);
        eventually("the disconnect is reported", || {
            changes_of(&changes, local) == expected
        });
    }
    running.shutdown(STOP);
}

#[test]
fn room_broadcast_does_not_wake_shards_without_members() {
    let (app, ids) = recording();
    let (running, address) = start(app);
    let mut clients = connect(address, &ids, 2);
    // A message is counted shortly after it has been written.
    eventually("the deliveries are counted", || {
        running.sender().metrics().messages_out == 2
    });
    let room = running.sender().room("r");
    room.join(clients[0].1);
    let before = running.sender().metrics_by_shard();
    for n in 0..100 {
        room.broadcast(message(n));
        assert_eq!(clients[0].0.receive_text(), n.to_string());
    }
    let after = running.sender().metrics_by_shard();
    let busy: Vec<bool> = before
        .iter()
        .zip(&after)
        .map(|(before, after)| {
            before.mailbox_bytes_peak != after.mailbox_bytes_peak
                || before.messages_out != after.messages_out
        })
        .collect();
    assert_eq!(busy.iter().filter(|&&busy| busy).count(), 1, "{busy:?}");
    running.shutdown(STOP);
}

#[test]
fn concurrent_joins_leaves_and_sends_leave_nothing() {
    let (running, address) = start(
        joining().with_limits(
            Limits::default()
                // A small mailbox keeps the backlog short for clients that join during the broadcasts.
                .mailbox_bytes_max(16 << 10),
        ),
    );
    let done = AtomicBool::new(false);
    let sent = AtomicUsize::new(0);
    thread::scope(|scope| {
        let sender = running.sender();
        for thread in 0..4 {
            let (sender, done, sent): (AsyncSender, _, _) = (sender.clone(), &done, &sent);
            scope.spawn(move || {
                let mut n = 0;
                while !done.load(Ordering::Relaxed) {
                    let room = sender.room(&format!("r{}", n % 5));
                    for id in sender.everyone().members() {
                        match (n + thread) % 3 {
                            0 => room.join(id),
                            1 => room.leave(id),
                            _ => room.broadcast_except(id, message(n)),
                        }
                    }
                    room.broadcast(message(n));
                    sent.fetch_add(1, Ordering::Relaxed);
                    n += 1;
                }
            });
        }
        for _ in 0..20 {
            let clients: Vec<Client> = (0..6).map(|n| join_during_broadcasts(address, n)).collect();
            for (n, client) in clients.into_iter().enumerate() {
                if n % 2 == 0 {
                    client.close();
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(sent.load(Ordering::Relaxed) > 0);
    eventually("all clients have left", || {
        running.sender().connections() == 0
    });
    eventually("no room is left", || running.sender().metrics().rooms == 0);
    assert_eq!(running.sender().metrics().room_members, 0);
    assert_rooms_are_empty(&running);
}

/// Joins, and reads up to the greeting, skipping broadcasts.
fn join_during_broadcasts(address: SocketAddr, n: usize) -> Client {
    let mut client = Client::connect_to(address, &format!("/r{n}+x"));
    while client.receive_text() != "joined" {}
    client
}

/// Asserts that no member is left in the rooms of ended connections.
fn assert_rooms_are_empty(running: &RunningApp) {
    for n in 0..5 {
        let room = running.sender().room(&format!("r{n}"));
        assert_eq!((room.len(), room.members()), (0, Vec::new()));
    }
}
