//! Inspecting the connections of an app, over real sockets and from any thread.

use crate::events::EventSource;
use crate::support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use humphrey_ws::{
    Accept, AsyncSender, AsyncWebsocketApp, CloseCode, ConnectionId, ConnectionInfo,
    ConnectionKind, Inspect, Inspection, Limits, Message, Subscription,
};
use support::{
    Client, DEADLINE, close_code, eventually, raw_websocket, read_frame, start, upgrade_request,
};

const STOP: Duration = Duration::from_millis(100);

/// An answer of all shards. On a busy machine, one may be late.
fn inspect(sender: &AsyncSender, which: Inspect) -> Inspection {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let inspection = sender.inspect(which);
        if inspection.is_complete {
            return inspection;
        }
        assert!(Instant::now() < deadline, "a shard never answers");
    }
}

fn of_peer(sender: &AsyncSender, peer: SocketAddr) -> Option<ConnectionInfo> {
    let all = inspect(sender, Inspect::all()).connections.into_iter();
    let mut of_peer = all.filter(|info| info.peer == peer);
    let info = of_peer.next();
    assert!(of_peer.next().is_none(), "it is listed twice");
    info
}

#[test]
fn slow_client_is_first_with_its_bytes_and_lag() {
    let limits = Limits::default().outbox_bytes_max(64 << 20);
    let app = AsyncWebsocketApp::<()>::new()
        .with_shards(2)
        .with_limits(limits);
    let (running, address) = start(app);
    let sender = running.sender();
    let others: Vec<Client> = (0..5).map(|_| Client::connect(address)).collect();
    let mut slow = raw_websocket(address);
    let peer = slow.local_addr().unwrap();
    eventually("all are connected", || sender.connections() == 6);
    let id = of_peer(&sender, peer).unwrap().id;
    let payload = vec![0; 100_000];
    let mut sent = 0;
    eventually("the kernel takes no more", || {
        sender.send_to(id, Message::new_binary(payload.as_slice()));
        sent += 1;
        inspect(&sender, Inspect::connection(id)).connections[0].waiting_bytes > payload.len()
    });
    let mut before = Duration::ZERO;
    for _ in 0..3 {
        eventually("the lag grows", || {
            let slowest = inspect(&sender, Inspect::slowest(1));
            assert_eq!((slowest.total, slowest.connections.len()), (6, 1));
            let info = &slowest.connections[0];
            assert_eq!((info.id, info.peer, info.is_closing), (id, peer, false));
            info.lag > before
        });
        before = inspect(&sender, Inspect::slowest(1)).connections[0].lag;
    }
    let all = inspect(&sender, Inspect::all()).connections;
    assert_eq!(all.len(), 6);
    for other in &all[1..] {
        assert_eq!((other.waiting_bytes, other.lag), (0, Duration::ZERO));
    }
    for _ in 0..sent {
        assert_eq!(read_frame(&mut slow).unwrap().1.len(), payload.len());
    }
    eventually("nothing waits", || {
        let info = of_peer(&sender, peer).unwrap();
        info.waiting_bytes == 0 && info.lag == Duration::ZERO
    });
    drop(others);
    running.shutdown(STOP);
}

#[test]
fn connections_of_each_kind_are_described() {
    let app = AsyncWebsocketApp::<()>::new()
        .with_handshake_handler(|request, _| {
            let accept = Accept::new();
            Ok(match request.query_param("user") {
                Some(user) => accept.user(&*user).with_subprotocol("chat"),
                None => accept,
            })
        })
        .with_connect_handler(|stream, _| {
            if stream.user().is_some() {
                stream.join("lobby");
                stream.join("attic");
            }
        })
        .with_event_stream("/events", |_, _| {
            Ok(Subscription::room("lobby").with_broadcasts().user("stream"))
        });
    #[cfg(feature = "deflate")]
    let app = app.with_compression(humphrey_ws::Compression::new());
    let (running, address) = start(app);
    let sender = running.sender();
    let mut user = support::tcp(address);
    let mut request = upgrade_request("/chat?user=ada&secret=1");
    request.truncate(request.len() - 2);
    request +=
        "Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
    std::io::Write::write_all(&mut user, request.as_bytes()).unwrap();
    support::read_head(&mut user);
    let plain = Client::connect(address);
    let _stream = EventSource::open(address, "/events");
    let user = user.local_addr().unwrap();
    eventually("all are there", || {
        let rooms = of_peer(&sender, user).map_or(0, |info| info.rooms.len());
        let all = inspect(&sender, Inspect::all());
        let streams = all
            .connections
            .iter()
            .filter(|info| info.kind == ConnectionKind::EventStream && !info.rooms.is_empty());
        rooms == 2 && streams.count() == 1 && all.total == 3
    });
    let info = of_peer(&sender, user).unwrap();
    assert_eq!(info.kind, ConnectionKind::WebSocket);
    assert_eq!(info.client_ip, address.ip());
    assert_eq!(info.path, "/chat");
    assert_eq!(info.user.as_deref(), Some("ada"));
    assert_eq!(info.rooms, ["attic", "lobby"]);
    assert_eq!(info.subprotocol.as_deref(), Some("chat"));
    assert_eq!(info.is_compressed, cfg!(feature = "deflate"));
    assert!(!info.is_tls && info.connected_for < DEADLINE * 2);
    let info = of_peer(&sender, plain.address()).unwrap();
    assert_eq!((info.user, info.subprotocol), (None, None));
    assert!(info.rooms.is_empty() && !info.is_compressed);
    let all = inspect(&sender, Inspect::all()).connections;
    let is_stream = |info: &&ConnectionInfo| info.kind == ConnectionKind::EventStream;
    let info = all.iter().find(is_stream).unwrap();
    assert_eq!(info.user.as_deref(), Some("stream"));
    assert_eq!(info.rooms, ["lobby"]);
    assert_eq!((&*info.path, info.is_compressed), ("/events", false));
    running.shutdown(STOP);
}

#[test]
fn connection_is_closed_by_the_id_of_an_inspection() {
    let app = AsyncWebsocketApp::<()>::new()
        .with_event_stream("/events", |_, _| Ok(Subscription::broadcasts()));
    let (running, address) = start(app);
    let sender = running.sender();
    let mut socket = raw_websocket(address);
    let stream = EventSource::open(address, "/events");
    eventually("both are connected", || {
        inspect(&sender, Inspect::all()).total == 2
    });
    for info in inspect(&sender, Inspect::all()).connections {
        // As through an HTTP route.
        let id: ConnectionId = info.id.to_string().parse().unwrap();
        let found = inspect(&sender, Inspect::connection(id));
        assert_eq!((found.total, found.connections[0].peer), (1, info.peer));
        sender.close(id, CloseCode::POLICY_VIOLATION, "too slow");
    }
    let (opcode, payload) = read_frame(&mut socket).unwrap();
    assert_eq!((opcode & 0x0f, close_code(&payload)), (8, 1008));
    drop(socket);
    assert_eq!(stream.rest(), [""; 0]);
    eventually("both have ended", || {
        inspect(&sender, Inspect::all()).total == 0
    });
    running.shutdown(STOP);
}

/// Starts an app whose handler replies with what it has found, and with the name of its thread.
fn inspecting_app(is_adaptive: bool) -> (humphrey_ws::RunningApp, SocketAddr) {
    let app = AsyncWebsocketApp::<()>::new_with_config((), 4, 1)
        .with_shards(1)
        .with_adaptive_handlers(is_adaptive);
    let sender = app.sender();
    let running = app
        .with_message_handler(move |stream, _, _| {
            let found = sender.inspect(Inspect::all());
            let thread = thread::current();
            let thread = thread.name().unwrap_or_default();
            stream.send(format!("{} {} on {thread}", found.is_complete, found.total));
        })
        .with_address("127.0.0.1:0")
        .start()
        .unwrap();
    let address = running.local_addr().unwrap();
    (running, address)
}

#[test]
fn handler_on_a_shard_thread_gets_the_answer_of_that_shard() {
    for is_adaptive in [true, false] {
        let (running, address) = inspecting_app(is_adaptive);
        let mut client = Client::connect(address);
        let mut ran_on = Vec::new();
        eventually("a handler runs where it may", || {
            client.send("who is there?");
            let reply = client.receive_text();
            let (found, thread) = reply.split_once(" on ").unwrap();
            // A shard that is late on a busy machine is missing, but nothing blocks.
            assert!(["true 1", "false 0"].contains(&found), "{reply}");
            ran_on.push(thread.starts_with("humphrey_ws shard"));
            found == "true 1" && ran_on.last() == Some(&is_adaptive)
        });
        running.shutdown(STOP);
    }
}

#[test]
fn app_that_does_not_run_has_no_connections() {
    let app = AsyncWebsocketApp::<()>::new();
    let sender = app.sender();
    let is_empty = |sender: &AsyncSender| {
        let inspection = sender.inspect(Inspect::all());
        inspection.is_complete && inspection.total == 0 && inspection.connections.is_empty()
    };
    assert!(is_empty(&sender));
    let (running, address) = start(app);
    let client = Client::connect(address);
    eventually("it is connected", || !is_empty(&sender));
    running.shutdown(STOP);
    assert!(is_empty(&sender));
    drop(client);
}

#[test]
fn shutdown_releases_threads_that_inspect() {
    let (running, address) = start(AsyncWebsocketApp::<()>::new().with_shards(2));
    let clients: Vec<Client> = (0..20).map(|_| Client::connect(address)).collect();
    let over = Arc::<AtomicBool>::default();
    let inspecting: Vec<_> = (0..8)
        .map(|_| {
            let (sender, over) = (running.sender(), over.clone());
            thread::spawn(move || {
                let mut found = 0;
                while !over.load(Ordering::Relaxed) {
                    let inspection = sender.inspect(Inspect::slowest(5));
                    assert!(inspection.connections.len() <= 5);
                    found = found.max(inspection.total);
                }
                found
            })
        })
        .collect();
    eventually("all are found", || {
        inspect(&running.sender(), Inspect::all()).total == 20
    });
    running.shutdown(STOP);
    over.store(true, Ordering::Relaxed);
    for thread in inspecting {
        eventually("the thread ends", || thread.is_finished());
        assert!(thread.join().unwrap() > 0);
    }
    drop(clients);
}

#[cfg(any(feature = "tls", feature = "tls-aws-lc"))]
#[test]
fn tls_client_is_described_with_what_waits_for_it() {
    // It must not be disconnected before it has waited for long enough.
    let app =
        AsyncWebsocketApp::<()>::new().with_slow_consumer(humphrey_ws::SlowConsumer::DropNewest);
    let (running, address, config) = crate::tls_clients::start_tls(app);
    let sender = running.sender();
    let client = crate::tls_clients::raw_websocket(address, &config);
    let peer = client.sock.local_addr().unwrap();
    eventually("it is connected", || of_peer(&sender, peer).is_some());
    let info = of_peer(&sender, peer).unwrap();
    assert!(info.is_tls);
    eventually("the kernel takes no more", || {
        sender.send_to(info.id, Message::new_binary(vec![0; 10_000]));
        let slowest = inspect(&sender, Inspect::slowest(1)).connections;
        slowest[0].waiting_bytes > 20_000 && slowest[0].lag > Duration::ZERO
    });
    running.shutdown(STOP);
}
