//! Presence: who is in a room, with state, and who is told of it.

use crate::events::EventSource;
use crate::frames::{Frames, STOP, V1, connect_at, request, response};
use crate::presence_client::{PresenceView, receive_presence};
use crate::support;

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use humphrey_ws::{
    Accept, AsyncSender, AsyncStream, AsyncWebsocketApp, Limits, Presence, PresenceErrorReason,
    PresenceRooms, Procedures, RequestHead, RunningApp, Subscription,
};
use serde_json::{Value, json};
use support::{Client, DEADLINE, eventually, holds_within, start};

/// Clients connect as the user in their query, and join the room in their path.
fn app(rooms: impl Into<PresenceRooms>) -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new()
        .with_presence(rooms)
        .with_handshake_handler(|request, _| Ok(accept(request)))
        .with_connect_handler(|stream, _| {
            let room = &stream.path()[1..];
            stream.join(room);
            if let Some(user) = stream.user()
                && room != "other"
            {
                let present = stream.room(room).presence().members;
                let is_here = present
                    .iter()
                    .any(|member| member.user.as_deref() == Some(user));
                assert!(is_here, "who has joined is there");
            }
            stream.send("joined");
        })
        .with_message_handler(|stream, message, _| {
            let room = stream.path()[1..].to_owned();
            let state = message.bytes().to_vec();
            let set = stream.try_set_presence(&room, state);
            stream.send(set.map_or_else(|error| format!("{:?}", error.reason), |()| "set".into()));
        })
}

fn accept(request: &RequestHead) -> Accept {
    match request.query_param("user") {
        Some(user) => Accept::new().user(user),
        None => Accept::new(),
    }
}

fn join(address: SocketAddr, target: &str) -> Client {
    let mut client = Client::connect_to(address, target);
    assert_eq!(client.receive_text(), "joined");
    client
}

fn set_state(client: &mut Client, state: &str) {
    client.send(state);
    assert_eq!(client.receive_text(), "set");
}

/// The members of a room: user, number of connections, and state.
fn members(sender: &AsyncSender, room: &str) -> Vec<(String, usize, String)> {
    let present = sender.room(room).presence();
    assert!(present.is_complete);
    let members = present.members.into_iter();
    members
        .map(|member| {
            let state = member.state.text().unwrap().to_owned();
            (member.user.unwrap_or_default(), member.connections, state)
        })
        .collect()
}

fn eventually_here(sender: &AsyncSender, room: &str, expected: &[(&str, usize, &str)]) {
    let mut last = Vec::new();
    let is_so = holds_within(DEADLINE, || {
        let here = members(sender, room);
        let here = here.iter().map(|(user, n, state)| (&**user, *n, &**state));
        here.eq(expected.iter().copied())
    });
    if !is_so {
        last = members(sender, room);
    }
    assert!(is_so, "{last:?} instead of {expected:?}");
}

#[test]
fn connections_of_one_user_count_once() {
    let (running, address) = start(app("lobby/*"));
    let sender = running.sender();
    let mut ada = join(address, "/lobby/1?user=Ada");
    let ada_too = join(address, "/lobby/1?user=Ada");
    let _bob = join(address, "/lobby/1?user=Bob");
    let _elsewhere = join(address, "/lobby/2?user=Cy");
    let _without = join(address, "/other?user=Dan");
    set_state(&mut ada, "away");
    eventually_here(&sender, "lobby/1", &[("Ada", 2, "away"), ("Bob", 1, "")]);
    eventually_here(&sender, "lobby/2", &[("Cy", 1, "")]);
    assert_eq!(members(&sender, "other"), []);
    assert!(sender.everyone().presence().members.is_empty());
    ada_too.close();
    eventually_here(&sender, "lobby/1", &[("Ada", 1, "away"), ("Bob", 1, "")]);
    running.shutdown(STOP);
}

#[test]
fn connections_without_a_user_count_each() {
    let (running, address) = start(app("*"));
    let room = running.sender().room("a");
    let clients = [0; 3].map(|_| join(address, "/a"));
    eventually("all are here", || room.presence().members.len() == 3);
    let mut connections: Vec<_> = (room.presence().members.into_iter())
        .map(|member| {
            assert_eq!((member.user, member.connections), (None, 1));
            member.connection.unwrap()
        })
        .collect();
    connections.sort_unstable();
    let mut expected = room.members();
    expected.sort_unstable();
    assert_eq!(connections, expected);
    drop(clients);
    running.shutdown(STOP);
}

#[test]
fn state_is_the_last_one_of_any_connection() {
    let (running, address) = start(app("*"));
    let mut clients = [0; 2].map(|_| join(address, "/a?user=Ada"));
    set_state(&mut clients[0], "one");
    set_state(&mut clients[1], "two");
    eventually_here(&running.sender(), "a", &[("Ada", 2, "two")]);
    set_state(&mut clients[0], "three");
    eventually_here(&running.sender(), "a", &[("Ada", 2, "three")]);
    running.shutdown(STOP);
}

#[test]
fn state_that_cannot_be_set_is_refused_with_its_reason() {
    let rooms = PresenceRooms::new("a").state_bytes_max(4);
    let (running, address) = start(app(rooms).with_connect_handler(|stream, _| {
        let reason = |room: &str, state: &str| {
            let set = stream.try_set_presence(room, state);
            set.map_err(|error| {
                assert_eq!(error.room, room);
                error.reason
            })
        };
        assert_eq!(reason("a", "1234"), Err(PresenceErrorReason::NotJoined));
        stream.join("a");
        stream.join("b");
        assert_eq!(reason("b", ""), Err(PresenceErrorReason::NoPresence));
        assert_eq!(reason("a", "12345"), Err(PresenceErrorReason::TooLong));
        assert_eq!(reason("a", "1234"), Ok(()));
        stream.leave("a");
        assert_eq!(reason("a", "1"), Err(PresenceErrorReason::NotJoined));
        stream.join("a");
        stream.send("joined");
    }));
    let client = join(address, "/?user=Ada");
    // The state outlives a leave that is followed by a join.
    eventually_here(&running.sender(), "a", &[("Ada", 1, "1234")]);
    assert_eq!(running.sender().metrics().handler_panics, 0);
    client.close();
    running.shutdown(STOP);
}

/// What a room handler was told, and the number of members that it saw.
type Told = (Option<String>, Presence, usize);

fn telling(app: AsyncWebsocketApp<()>) -> (RunningApp, SocketAddr, Receiver<Told>) {
    let (told, receiver) = channel();
    let (running, address) = start(with_room_handler(app, told));
    (running, address, receiver)
}

fn with_room_handler(app: AsyncWebsocketApp<()>, told: Sender<Told>) -> AsyncWebsocketApp<()> {
    let told = Mutex::new(told);
    app.with_room_handler(move |room, stream: AsyncStream, change, _: Arc<()>| {
        let user = stream.user().map(str::to_owned);
        let members = room.presence().members.len();
        // The test may have ended.
        let _ = told.lock().unwrap().send((user, change, members));
    })
}

fn told(user: &str, change: Presence, members: usize) -> Told {
    (Some(user.to_owned()), change, members)
}

#[test]
fn room_handler_is_told_once_for_each_user_with_the_number_after_it() {
    let rooms = PresenceRooms::new("*").grace(Duration::ZERO);
    let (running, address, receiver) = telling(app(rooms));
    let receive = || receiver.recv_timeout(DEADLINE).unwrap();
    let ada = [0; 3].map(|_| join(address, "/a?user=Ada"));
    assert_eq!(receive(), told("Ada", Presence::Joined, 1));
    let bob = join(address, "/a?user=Bob");
    assert_eq!(receive(), told("Bob", Presence::Joined, 2));
    ada.into_iter().for_each(Client::close);
    assert_eq!(receive(), told("Ada", Presence::Left, 1));
    bob.close();
    assert_eq!(receive(), told("Bob", Presence::Left, 0));
    running.shutdown(STOP);
    assert!(receiver.try_recv().is_err(), "it was told more");
}

#[test]
fn reload_within_the_grace_period_is_no_change() {
    let rooms = PresenceRooms::new("*").grace(Duration::from_secs(3_600));
    let (running, address, receiver) = telling(app(rooms));
    let sender = running.sender();
    let mut ada = join(address, "/a?user=Ada");
    set_state(&mut ada, "here");
    ada.close();
    eventually_here(&sender, "a", &[("Ada", 0, "here")]);
    let _ada = join(address, "/a?user=Ada");
    eventually_here(&sender, "a", &[("Ada", 1, "here")]);
    let _bob = join(address, "/a?user=Bob");
    let receive = || receiver.recv_timeout(DEADLINE).unwrap();
    assert_eq!(receive(), told("Ada", Presence::Joined, 1));
    assert_eq!(receive(), told("Bob", Presence::Joined, 2));
    // At the end, everybody has left.
    running.shutdown(STOP);
    let mut left: Vec<_> = receiver
        .try_iter()
        .map(|(user, change, _)| (user, change))
        .collect();
    left.sort_by(|one, other| one.0.cmp(&other.0));
    let expected = ["Ada", "Bob"].map(|user| (Some(user.to_owned()), Presence::Left));
    assert_eq!(left, expected);
}

#[test]
fn user_who_does_not_come_back_has_left() {
    let rooms = PresenceRooms::new("*").grace(Duration::from_millis(50));
    let (running, address, receiver) = telling(app(rooms));
    join(address, "/a?user=Ada").close();
    let receive = || receiver.recv_timeout(DEADLINE).unwrap();
    assert_eq!(receive(), told("Ada", Presence::Joined, 1));
    assert_eq!(receive(), told("Ada", Presence::Left, 0));
    assert_eq!(members(&running.sender(), "a"), []);
    running.shutdown(STOP);
}

#[test]
fn room_handler_that_blocks_delays_no_presence() {
    let rooms = PresenceRooms::new("*").grace(Duration::ZERO);
    let (release, blocked) = channel::<()>();
    let blocked = Mutex::new(blocked);
    let (told, receiver) = channel();
    let told = Mutex::new(told);
    let app = app(rooms).with_room_handler(move |_, stream, change, _| {
        told.lock()
            .unwrap()
            .send((stream.user().unwrap().to_owned(), change))
            .unwrap();
        let _ = blocked.lock().unwrap().recv();
    });
    let (running, address) = start(app);
    let sender = running.sender();
    let ada = join(address, "/a?user=Ada");
    assert_eq!(
        receiver.recv_timeout(DEADLINE).unwrap(),
        ("Ada".to_owned(), Presence::Joined)
    );
    for user in ["Bob", "Cy"] {
        let client = join(address, &format!("/a?user={user}"));
        eventually_here(&sender, "a", &[("Ada", 1, ""), (user, 1, "")]);
        client.close();
        eventually_here(&sender, "a", &[("Ada", 1, "")]);
    }
    ada.close();
    eventually_here(&sender, "a", &[]);
    drop(release);
    // Those who have come and gone meanwhile are not announced.
    assert_eq!(
        receiver.recv_timeout(DEADLINE).unwrap(),
        ("Ada".to_owned(), Presence::Left)
    );
    running.shutdown(STOP);
    assert!(receiver.try_recv().is_err());
}

#[test]
fn room_handler_that_panics_is_called_again() {
    let (told, receiver) = channel();
    let told = Mutex::new(told);
    let app = app("*").with_room_handler(move |_, stream, _, _| {
        let user = stream.user().unwrap().to_owned();
        told.lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .send(user.clone())
            .unwrap();
        assert_ne!(user, "Ada", "a handler's panic");
    });
    let (running, address) = start(app);
    let _clients = ["Ada", "Bob"].map(|user| {
        let client = join(address, &format!("/a?user={user}"));
        assert_eq!(receiver.recv_timeout(DEADLINE).unwrap(), user);
        client
    });
    eventually("the panic is counted", || {
        running.sender().metrics().handler_panics == 1
    });
    running.shutdown(STOP);
}

#[test]
fn event_streams_are_members_if_the_app_wants_it() {
    let rooms = |counts| {
        PresenceRooms::new("*")
            .grace(Duration::ZERO)
            .event_streams(counts)
    };
    for counts in [true, false] {
        let app = app(rooms(counts)).with_event_stream("/events", |request, _| {
            let user = request.query_param("user").unwrap();
            Ok(Subscription::room("a")
                .user(user)
                .with_keep_alive(Duration::from_secs(1)))
        });
        let (running, address, receiver) = telling(app);
        let sender = running.sender();
        let stream = EventSource::open(address, "/events?user=Ada");
        let _bob = join(address, "/a?user=Bob");
        match counts {
            true => eventually_here(&sender, "a", &[("Ada", 1, ""), ("Bob", 1, "")]),
            false => eventually_here(&sender, "a", &[("Bob", 1, "")]),
        }
        drop(stream);
        eventually_here(&sender, "a", &[("Bob", 1, "")]);
        running.shutdown(STOP);
        let of_ada = receiver
            .try_iter()
            .filter(|(user, ..)| user.as_deref() == Some("Ada"));
        let changes: Vec<_> = of_ada.map(|(_, change, _)| change).collect();
        match counts {
            true => assert_eq!(changes, [Presence::Joined, Presence::Left]),
            false => assert_eq!(changes, []),
        }
    }
}

/// Serves procedures; clients may join the rooms that begin with `open`.
fn open_rooms() -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new()
        .with_presence(PresenceRooms::new("open*").grace(Duration::ZERO))
        .with_procedures(Procedures::new().on_call("set", |call| {
            let (room, state) = call.text()?.split_once('=').unwrap();
            call.stream().set_presence(room, state);
            Ok(())
        }))
        .with_handshake_handler(|request, _| Ok(accept(request)))
        .with_join_handler(|_, room| room.starts_with("open"))
}

fn named(room: &str, rest: &str) -> Vec<u8> {
    [&[room.len() as u8], room.as_bytes(), rest.as_bytes()].concat()
}

#[test]
fn client_is_told_who_is_in_a_room_and_each_change() {
    let (running, address) = start(open_rooms());
    let mut ada = connect_at(address, "/?user=Ada", V1);
    let mut view = PresenceView::default();
    ada.send_binary(request(1, "$watch", &named("open", "new")));
    let here = json!([{"user": "Ada", "connections": 1}]);
    view.receive_until(&mut ada, "open", &here);
    assert_eq!(ada.receive_frame(), response(1, b""));

    let mut bob = connect_at(address, "/?user=Bob", V1);
    bob.send_binary(request(1, "$join", &named("open", "new")));
    assert_eq!(bob.receive_frame(), response(1, b""));
    bob.send_binary(request(2, "set", b"open=away"));
    assert_eq!(bob.receive_frame(), response(2, b""));
    let both = json!([
        {"user": "Ada", "connections": 1},
        {"user": "Bob", "connections": 1, "state": "away"},
    ]);
    view.receive_until(&mut ada, "open", &both);
    // Without joining, the list alone.
    let mut cy = connect_at(address, "/?user=Cy", V1);
    cy.send_binary(request(1, "$presence", b"open"));
    let list = cy.receive_frame();
    assert_eq!(list[..5], response(1, b""));
    assert_eq!(serde_json::from_slice::<Value>(&list[5..]).unwrap(), both);

    bob.close();
    view.receive_until(&mut ada, "open", &here);
    // Who leaves the room is told no further changes.
    ada.send_binary(request(3, "$leave", b"open"));
    assert_eq!(ada.receive_frame(), response(3, b""));
    let room = running.sender().room("open");
    eventually("nobody is here", || room.presence().members.is_empty());
    cy.send_binary(request(2, "$join", &named("open", "new")));
    assert_eq!(cy.receive_frame(), response(2, b""));
    eventually("one is here", || room.presence().members.len() == 1);
    ada.send_binary(request(4, "$ping", b"x"));
    assert_eq!(ada.receive_frame(), response(4, b"x"));
    running.shutdown(STOP);
}

#[test]
fn list_that_is_asked_for_again_is_sent_again() {
    let (running, address) = start(open_rooms());
    let mut ada = connect_at(address, "/?user=Ada", V1);
    for id in 1..5 {
        ada.send_binary(request(id, "$watch", &named("open", "new")));
        loop {
            let (is_list, here) = receive_presence(&mut ada, "open");
            let ada = json!({"user": "Ada", "connections": 1});
            assert_eq!(here, json!([["user:Ada", ada]]));
            if is_list {
                break;
            }
        }
        assert_eq!(ada.receive_frame(), response(id, b""));
    }
    assert_eq!(running.sender().room("open").len(), 1);
    running.shutdown(STOP);
}

#[test]
fn presence_of_a_room_is_refused_where_the_client_may_not_join() {
    let app = open_rooms().with_join_handler(|_, room| room != "closed");
    let (running, address) = start(app);
    let mut ada = connect_at(address, "/?user=Ada", V1);
    for (id, name, payload, why) in [
        (1, "$presence", b"closed".to_vec(), "not open to clients"),
        (2, "$watch", named("closed", "new"), "not open to clients"),
        (3, "$watch", named("without", "new"), "not kept"),
        (4, "$presence", b"\xff".to_vec(), "not UTF-8"),
        (5, "$watch", b"\x09open".to_vec(), "truncated"),
    ] {
        ada.send_binary(request(id, name, &payload));
        let frame = ada.receive_frame();
        assert_eq!(frame[..5], [&[5][..], &id.to_be_bytes()].concat());
        let text = String::from_utf8(frame[6..].to_vec()).unwrap();
        assert!(text.contains(why), "{text}");
    }
    // A client that can't be told the changes has not joined.
    assert!(running.sender().room("without").is_empty());
    running.shutdown(STOP);
}

/// Clients that are in the room `open`, each as a user with a long name.
fn crowd(address: SocketAddr, len: usize) -> Vec<Client> {
    let clients = (0..len).map(|n| {
        let user = format!("/?user={n}{}", "x".repeat(200));
        let mut client = connect_at(address, &user, V1);
        client.send_binary(request(1, "$join", &named("open", "new")));
        assert_eq!(client.receive_frame(), response(1, b""));
        client
    });
    clients.collect()
}

#[test]
fn list_of_more_members_than_a_message_takes_arrives_in_parts() {
    let limits = Limits::default().message_bytes_max(1_000);
    let (running, address) = start(open_rooms().with_limits(limits));
    let _clients = crowd(address, 30);
    let mut ada = connect_at(address, "/?user=Ada", V1);
    ada.send_binary(request(1, "$watch", &named("open", "new")));
    let mut view = PresenceView::default();
    view.receive_until_are(&mut ada, "open", |here| here.count() == 31);
    assert!(
        view.longest > 200 && view.longest <= 1_000,
        "{}",
        view.longest
    );
    assert_eq!(ada.receive_frame(), response(1, b""));
    running.shutdown(STOP);
}

#[test]
fn many_clients_that_begin_to_watch_a_large_room_wait_for_no_one() {
    // The list takes more than half of a mailbox.
    let limits = Limits::default().mailbox_bytes_max(64 << 10);
    let app = open_rooms().with_limits(limits).with_shards(1);
    let (running, address) = start(app);
    let _clients = crowd(address, 150);
    let watching: Vec<_> = (0..16)
        .map(|n| {
            thread::spawn(move || {
                let mut client = connect_at(
                    address,
                    &format!("/?user=watcher {n}").replace(' ', "-"),
                    V1,
                );
                for id in 1..5 {
                    client.send_binary(request(id, "$watch", &named("open", "new")));
                    loop {
                        let frame = client.receive_frame();
                        if frame.starts_with(&[4]) {
                            break;
                        }
                    }
                }
                client
            })
        })
        .collect();
    let watching: Vec<_> = watching.into_iter().map(|of| of.join().unwrap()).collect();
    let room = running.sender().room("open");
    eventually("all are here", || room.presence().members.len() == 166);
    drop(watching);
    eventually("the watchers have left", || {
        room.presence().members.len() == 150
    });
    running.shutdown(STOP);
}

#[test]
fn watching_a_room_counts_as_no_further_room() {
    let limits = Limits::default().connection_rooms_max(2);
    let (running, address) = start(open_rooms().with_limits(limits));
    let mut ada = connect_at(address, "/?user=Ada", V1);
    for (id, room) in [(1, "open 1"), (2, "open 2")] {
        ada.send_binary(request(id, "$watch", &named(room, "new")));
        while ada.receive_frame() != response(id, b"") {}
    }
    assert_eq!(running.sender().metrics().room_members, 2);
    ada.send_binary(request(3, "$join", &named("open 3", "new")));
    while !ada.receive_frame().starts_with(&[5]) {}
    ada.close();
    eventually("it has left", || {
        running.sender().metrics().room_members == 0
    });
    running.shutdown(STOP);
}

#[test]
fn connection_that_ends_while_it_is_made_to_join_is_no_member() {
    let ids = Arc::new(Mutex::new(Vec::new()));
    let handed_over = ids.clone();
    let app = AsyncWebsocketApp::<()>::new()
        .with_presence(PresenceRooms::new("*"))
        .with_connect_handler(move |stream, _| handed_over.lock().unwrap().push(stream.id()));
    let (running, address) = start(app);
    let room = running.sender().room("a");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Relaxed) {
                for id in std::mem::take(&mut *ids.lock().unwrap()) {
                    // Before, while or after it ends.
                    let _ = room.try_join(id);
                }
            }
        });
        for _ in 0..500 {
            drop(Client::connect(address));
        }
        is_over.store(true, Relaxed);
    });
    eventually("nobody is here", || room.presence().members.is_empty());
    running.shutdown(STOP);
}

#[test]
fn app_that_nobody_waits_for_tells_the_room_handler_of_everyone() {
    let (running, address, receiver) = telling(app("*"));
    let _ada = join(address, "/a?user=Ada");
    let receive = || receiver.recv_timeout(DEADLINE);
    assert_eq!(receive(), Ok(told("Ada", Presence::Joined, 1)));
    let sender = running.sender();
    drop(running);
    sender.shutdown(STOP);
    assert_eq!(receive(), Ok(told("Ada", Presence::Left, 0)));
    // The thread that has called the handler has ended.
    assert_eq!(receive(), Err(RecvTimeoutError::Disconnected));
}

/// The state of a stream, which asks who is here when it is dropped.
#[derive(Default)]
struct Asking(Option<AsyncSender>);

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(sender) = &self.0 {
            let _ = sender.room("a").presence();
        }
    }
}

#[test]
fn state_of_a_stream_may_use_the_library_when_it_is_dropped() {
    let app = AsyncWebsocketApp::<(), Asking>::new().with_presence("*");
    let sender = app.sender();
    let app = app
        .with_handshake_handler(move |_, _| {
            Ok(Accept::new()
                .user("Ada")
                .with_state(Asking(Some(sender.clone()))))
        })
        .with_connect_handler(|stream, _| {
            stream.join("a");
            stream.send("joined");
        });
    let (running, address) = start(app);
    let room = running.sender().room("a");
    for _ in 0..10 {
        join(address, "/").close();
        eventually("Ada may come back", || {
            room.presence()
                .members
                .iter()
                .all(|ada| ada.connections == 0)
        });
    }
    running.shutdown(STOP);
}
