//! Start and end of an app: its address, and the effect of a shutdown on connections.

use crate::support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use humphrey_ws::{AsyncStream, AsyncWebsocketApp, Drain, Message, SendErrorReason};
use support::{Client, DEADLINE, eventually, raw_websocket, start};

#[test]
fn shutdown_delivers_messages_and_closes_with_1001() {
    let app: AsyncWebsocketApp<AtomicUsize> =
        AsyncWebsocketApp::new().with_disconnect_handler(|_, count: Arc<AtomicUsize>| {
            count.fetch_add(1, Ordering::SeqCst);
        });
    let disconnects = app.get_state();
    let (running, address) = start(app);
    let sender = running.sender();
    let clients: Vec<_> = (0..5)
        .map(|_| {
            let mut client = Client::connect(address);
            std::thread::spawn(move || client.receive_to_close())
        })
        .collect();
    eventually("all clients are connected", || sender.connections() == 5);
    for n in 0..1000 {
        sender.broadcast(Message::new(n.to_string()));
    }
    running.shutdown(DEADLINE);
    assert_eq!(disconnects.load(Ordering::SeqCst), 5);
    for client in clients {
        let (texts, frame) = client.join().unwrap();
        assert_eq!(texts.len(), 1000);
        assert_eq!(u16::from(frame.unwrap().code), 1001);
    }
    assert!(
        std::net::TcpStream::connect(address).is_err(),
        "the address still accepts connections"
    );
    assert_eq!(sender.metrics().connections, 0);
    assert_eq!(sender.metrics().messages_out, 5000);
}

#[test]
fn shutdown_with_blocked_peers_returns_at_its_deadline() {
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new().with_message_handler(|_, _, _| {
        // Blocks longer than the test runs.
        std::thread::park_timeout(Duration::from_secs(3600));
    });
    let (running, address) = start(app);
    let sender = running.sender();
    let mut blocker = Client::connect(address);
    blocker.send("block");
    let _deaf = raw_websocket(address);
    eventually("the handler runs", || sender.metrics().messages_in == 1);
    let began = std::time::Instant::now();
    running.shutdown(Duration::from_millis(300));
    assert!(began.elapsed() < DEADLINE);
    assert_eq!(
        sender
            .try_broadcast(Message::new("late"))
            .unwrap_err()
            .reason,
        SendErrorReason::Closed
    );
}

#[test]
fn app_is_ready_from_start_to_shutdown() {
    let (runs, running_handler) = channel();
    let (finish, finished) = channel::<()>();
    let finished = Mutex::new(finished);
    let app: AsyncWebsocketApp<()> =
        AsyncWebsocketApp::new().with_message_handler(move |_, _, _| {
            let _ = runs.send(());
            // Until the test drops the sending end.
            let _ = finished.lock().unwrap().recv();
        });
    let sender = app.sender();
    assert!(!sender.is_ready(), "before the start");
    assert!(!sender.responds_within(DEADLINE));
    let (running, address) = start(app);
    assert!(sender.is_ready());
    assert!(sender.responds_within(DEADLINE));
    let mut client = Client::connect(address);
    client.send("block");
    running_handler.recv_timeout(DEADLINE).unwrap();
    assert!(
        sender.responds_within(DEADLINE),
        "a handler blocks no shard"
    );
    sender.shutdown(DEADLINE);
    assert!(!sender.is_ready(), "while it stops");
    drop(finish);
    client.receive_to_close();
    running.join();
    assert!(!sender.is_ready(), "after the end");
    assert!(!sender.responds_within(DEADLINE));
}

#[test]
fn shutdown_receiver_stops_its_app() {
    let (stop, stopped) = channel();
    let mut app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
        .with_address("127.0.0.1:0")
        .with_shutdown(stopped);
    let address = app.bind().unwrap();
    let running = std::thread::spawn(move || app.run());
    let mut client = Client::connect(address);
    stop.send(()).unwrap();
    assert_eq!(u16::from(client.receive_to_close().1.unwrap().code), 1001);
    running.join().unwrap();
}

#[test]
fn address_in_use_is_a_named_error_and_run_panics() {
    let mut first: AsyncWebsocketApp<()> = AsyncWebsocketApp::new().with_address("127.0.0.1:0");
    let address = first.bind().unwrap();
    let second = move || AsyncWebsocketApp::<()>::new().with_address(address);
    let error = second().try_run().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    let panic = std::thread::spawn(move || second().run())
        .join()
        .unwrap_err();
    assert_eq!(panic.downcast_ref::<String>(), Some(&error.to_string()));
}

#[test]
fn stopped_app_drops_its_state_and_handlers() {
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new();
    let state = Arc::downgrade(&app.get_state());
    let (captured, hung_up) = channel::<()>();
    let app = app.with_message_handler(move |stream, message, _| {
        let _ = &captured;
        stream.send(message);
    });
    let (running, address) = start(app);
    let sender = running.sender();
    let mut client = Client::connect(address);
    client.send("hello");
    assert_eq!(client.receive_text(), "hello");
    running.shutdown(Duration::from_millis(100));
    assert!(
        hung_up.recv_timeout(DEADLINE).is_err(),
        "captured values of handlers were not dropped"
    );
    eventually("the state is dropped", || state.upgrade().is_none());
    // The sender still returns the metrics.
    assert_eq!(sender.metrics().messages_out, 1);
}

/// Stream state that sends the name of the thread on which it is dropped.
struct Tells(Sender<String>);

static DROPPED_ON: Mutex<Option<Sender<String>>> = Mutex::new(None);

impl Default for Tells {
    fn default() -> Self {
        Self(DROPPED_ON.lock().unwrap().clone().unwrap())
    }
}

impl Drop for Tells {
    fn drop(&mut self) {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        let _ = self.0.send(name);
        panic!("a panic on purpose");
    }
}

#[test]
fn stream_state_is_dropped_on_a_handler_thread() {
    let (tell, told) = channel();
    *DROPPED_ON.lock().unwrap() = Some(tell);
    let app: AsyncWebsocketApp<(), Tells> = AsyncWebsocketApp::new()
        .with_shards(1)
        .with_adaptive_handlers(false)
        .with_message_handler(|stream: AsyncStream<Tells>, message, _| stream.send(message));
    let (running, address) = start(app);
    let mut other = Client::connect(address);
    for _ in 0..3 {
        let mut client = Client::connect(address);
        client.send("hello");
        assert_eq!(client.receive_text(), "hello");
        client.close();
        assert_eq!(told.recv_timeout(DEADLINE).unwrap(), "humphrey_ws handler");
    }
    other.send("still here");
    assert_eq!(other.receive_text(), "still here");
    running.shutdown(Duration::from_millis(100));
}

#[test]
fn drain_serves_everyone_until_their_turn_then_closes_with_1012() {
    let app: AsyncWebsocketApp<()> =
        AsyncWebsocketApp::new().with_message_handler(|stream, message, _| stream.send(message));
    let (running, address) = start(app);
    let sender = running.sender();
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(address)).collect();
    eventually("all are connected", || sender.connections() == 3);
    // The first close is a sixth of the time away, longer than the test may take.
    sender.shutdown_over(DEADLINE * 10);
    assert!(!sender.is_ready(), "while it drains");
    clients.push(Client::connect(address));
    for client in &mut clients {
        client.send("still served");
        assert_eq!(client.receive_text(), "still served");
    }
    // A second call shortens it.
    sender.shutdown_over(
        Drain::new(Duration::from_millis(200)).retry_after(Duration::from_millis(1_250)),
    );
    for mut client in clients {
        let close = client.receive_to_close().1.unwrap();
        let reason = "server is restarting, retry-after=1.250";
        assert_eq!((u16::from(close.code), &*close.reason), (1012, reason));
    }
    running.join();
    assert!(sender.try_broadcast("late").is_err());
}

#[test]
fn drain_of_an_app_that_stops_only_shortens_its_stop() {
    let (running, address) = start(AsyncWebsocketApp::<()>::new());
    let sender = running.sender();
    let mut client = Client::connect(address);
    eventually("it is connected", || sender.connections() == 1);
    sender.broadcast(Message::new("last"));
    sender.shutdown(DEADLINE * 100);
    sender.shutdown_over(DEADLINE * 100);
    let (texts, close) = client.receive_to_close();
    assert_eq!(texts, ["last"], "nothing is cut off");
    assert_eq!(u16::from(close.unwrap().code), 1001);
    running.join();
}

#[test]
fn drain_without_connections_ends_at_once() {
    let (running, _) = start(AsyncWebsocketApp::<()>::new());
    running.shutdown_over(DEADLINE * 100);
}
