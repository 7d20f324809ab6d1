//! The additions of 0.6 to the API of 0.5.1.

use std::cell::Cell;
use std::panic;
use std::sync::Once;
use std::thread;

use humphrey::SubApp;
use tungstenite::WebSocket;

use humphrey_ws::async_app::RunningApp;
use humphrey_ws::{
    Accept, CloseCode, ConnectionId, Drain, HistoryLimits, Inspect, Inspection,
    InvalidConnectionId, JoinErrorReason, KeptMessage, KeyedLimits, Limits, Listener, Metrics,
    OverRate, Procedures, Room, SendError, SendErrorReason, SlowConsumer,
};

use super::*;

#[test]
fn app_methods_since_0_6_keep_their_signatures() {
    type Render = fn(&KeptMessage<'_>) -> Message;

    let _: fn(&mut Guestbook) -> io::Result<SocketAddr> = Guestbook::bind;
    let _: fn(Guestbook) -> io::Result<()> = Guestbook::try_run;
    let _: fn(Guestbook) -> io::Result<RunningApp> = Guestbook::start;
    let _: fn(Guestbook, Receiver<()>) -> Guestbook = Guestbook::with_shutdown;
    let _: fn(Guestbook, Listener) -> Guestbook = Guestbook::with_listener;
    let _: fn(Guestbook, [&'static str; 1]) -> Guestbook = Guestbook::with_proxy_protocol;
    let _: fn(Guestbook, Limits) -> Guestbook = Guestbook::with_limits;
    let _: fn(Guestbook, SlowConsumer) -> Guestbook = Guestbook::with_slow_consumer;
    let _: fn(Guestbook, usize) -> Guestbook = Guestbook::with_shards;
    let _: fn(Guestbook, SubApp<Guests>) -> Guestbook = Guestbook::with_routes;
    let _: fn(Guestbook, Render) -> Guestbook = Guestbook::with_renderer;
    let _: fn(Guestbook, &str, KeyedLimits) -> Guestbook = Guestbook::with_keyed_rooms;
    let _: fn(Accept<Visits>) -> Accept<Visits> = Accept::rendered;
}

#[test]
fn async_stream_new_methods_have_their_signatures() {
    type Visitor = AsyncStream<Visits>;

    let _: fn(&Visitor) -> ConnectionId = Visitor::id;
    let _: fn(&Visitor) -> &str = Visitor::path;
    let _: fn(&Visitor, Message) -> Result<(), SendError> = Visitor::try_send;
    let _: fn(&Visitor, CloseCode, &str) = |stream, code, reason| {
        stream.close(code, reason);
    };
}

#[test]
fn sender_new_methods_have_their_signatures() {
    type Try = Result<(), SendError>;

    is_clone::<AsyncSender>();
    let _: fn(&AsyncSender, SocketAddr, Message) -> Try = AsyncSender::try_send;
    let _: fn(&AsyncSender, Message) -> Try = AsyncSender::try_broadcast;
    let _: fn(&AsyncSender, ConnectionId, Message) = |sender, id, message| {
        sender.send_to(id, message);
    };
    let _: fn(&AsyncSender, ConnectionId, CloseCode, &str) = |sender, id, code, reason| {
        sender.close(id, code, reason);
    };
    let _: fn(&AsyncSender) -> usize = AsyncSender::connections;
    let _: fn(&AsyncSender) -> Metrics = AsyncSender::metrics;
    let _: fn(&AsyncSender, Inspect) -> Inspection = AsyncSender::inspect;
    let _: fn(&AsyncSender, Duration) -> bool = AsyncSender::responds_within;
    let _: fn(&AsyncSender, fn() -> u8) -> u8 = AsyncSender::cork;
    let _: fn(&AsyncSender, Drain) = AsyncSender::shutdown_over;
    let _: fn(&str) -> Result<ConnectionId, InvalidConnectionId> = str::parse;
    let _: fn(&AsyncSender, Duration) = |sender, deadline| {
        sender.shutdown(deadline);
    };
}

#[test]
fn failed_try_method_returns_message_and_reason() {
    let _: fn(SendError) -> (Message, SendErrorReason) = |error| (error.message, error.reason);
    let _: [SendErrorReason; 3] = [
        SendErrorReason::Full,
        SendErrorReason::Closed,
        SendErrorReason::TooLarge,
    ];

    let (stream, _outgoing) = outgoing_stream(AsyncStream::disconnected);
    let error = stream.try_send(Message::new("hello")).unwrap_err();
    assert_eq!(error.message.text(), Some("hello"));
    assert!(matches!(error.reason, SendErrorReason::Closed));
}

#[test]
fn try_send_over_a_channel_succeeds() {
    let (stream, outgoing) = outgoing_stream(AsyncStream::new);
    assert!(stream.try_send(Message::new("hello")).is_ok());
    assert!(matches!(
        outgoing.try_recv(),
        Ok(OutgoingMessage::Message(addr, message))
            if addr == loopback(1234) && message.text() == Some("hello")
    ));
}

#[test]
fn sending_on_a_disconnected_stream_does_nothing() {
    let (stream, outgoing) = outgoing_stream(AsyncStream::disconnected);
    stream.send(Message::new("hello"));
    assert!(outgoing.try_recv().is_err());
}

#[test]
fn app_that_does_not_run_has_no_connections() {
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_unlinked();
    assert_eq!(app.sender().clone().connections(), 0);
}

fn echo_app() -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new()
        .with_address("127.0.0.1:0")
        .with_message_handler(|stream, message, _| stream.send(message))
}

fn connect(addr: SocketAddr) -> WebSocket<TcpStream> {
    let socket = TcpStream::connect(addr).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.set_write_timeout(Some(DEADLINE)).unwrap();
    tungstenite::client(format!("ws://{addr}/"), socket)
        .unwrap()
        .0
}

fn assert_echo(client: &mut WebSocket<TcpStream>) {
    client.send("hello".into()).unwrap();
    assert_eq!(client.read().unwrap(), "hello".into());
}

#[test]
fn bind_to_port_0_returns_the_port_that_start_serves() {
    let mut app = echo_app();
    let addr = app.bind().unwrap();
    assert_ne!(addr.port(), 0);

    let _running = app.start().unwrap();
    assert_echo(&mut connect(addr));
}

#[test]
fn address_in_use_is_returned_as_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();

    let app = || echo_app().with_address(addr);
    let errors = [
        app().bind().unwrap_err(),
        app().try_run().unwrap_err(),
        app().start().map(drop).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }
}

#[test]
fn run_returns_after_a_shutdown_message() {
    let (shutdown, receiver) = channel();
    let (ended, end) = channel();
    let mut app = echo_app().with_shutdown(receiver);
    let addr = app.bind().unwrap();
    thread::spawn(move || {
        app.run();
        ended.send(()).unwrap();
    });

    assert_echo(&mut connect(addr));
    shutdown.send(()).unwrap();
    end.recv_timeout(DEADLINE).expect("run returns");
}

#[test]
fn shutdown_channel_without_sender_stops_nothing() {
    let (shutdown, receiver) = channel();
    let mut app = echo_app().with_shutdown(receiver);
    let addr = app.bind().unwrap();
    drop(shutdown);
    thread::spawn(move || app.run());

    let mut client = connect(addr);
    assert_echo(&mut client);
    assert_echo(&mut client);
}

// ---- conversions into messages, and variants of sending methods ----

/// Returns a connected client, the stream of its connect handler, and the app.
fn connected() -> (WebSocket<TcpStream>, AsyncStream, RunningApp) {
    let (streams, connected) = channel();
    let streams = Mutex::new(streams);
    let running = AsyncWebsocketApp::<()>::new()
        .with_address("127.0.0.1:0")
        .with_history("kept", HistoryLimits::messages(10))
        .with_connect_handler(move |stream, _| streams.lock().unwrap().send(stream).unwrap())
        .start()
        .unwrap();
    let client = connect(running.local_addr().unwrap());
    let stream = connected.recv_timeout(DEADLINE).unwrap();
    (client, stream, running)
}

fn receive(client: &mut WebSocket<TcpStream>) -> String {
    client.read().unwrap().into_text().unwrap().to_string()
}

#[test]
fn sending_methods_keep_taking_messages_as_function_pointers() {
    let _: fn(&AsyncStream, Message) -> Result<(), SendError> = AsyncStream::try_broadcast;
    let _: fn(&AsyncSender, ConnectionId, Message) = AsyncSender::send_to;
    let _: fn(&AsyncSender, ConnectionId, Message) -> Result<(), SendError> =
        AsyncSender::try_send_to;
    let _: fn(&Room, Message) = Room::broadcast;
    let _: fn(&Room, ConnectionId, Message) -> Result<(), SendError> = Room::try_broadcast_except;
    let _: fn(&Room, &str, Message) = Room::broadcast_keyed;
    let _: fn(&Room, &str, Message) -> Result<(), SendError> = Room::try_broadcast_keyed;
    let _: fn(&Room, &str) -> bool = Room::remove_key;
    // The same in a generic function.
    fn reply(stream: &AsyncStream, message: impl Into<Message>) {
        stream.send(message);
    }
    let _: fn(&AsyncStream, &'static str) = reply;
}

#[test]
fn every_sending_method_takes_text() {
    let (mut client, stream, running) = connected();
    let (sender, id) = (running.sender(), stream.id());
    let other = sender.room("other");
    let kept = sender.room("kept");
    kept.broadcast("of the history");
    stream.join("room");
    stream.join("kept");
    let room = stream.room("room");

    stream.send("a");
    stream.try_send(String::from("b")).unwrap();
    let c = String::from("c");
    stream.broadcast(&c);
    stream.try_broadcast("d").unwrap();
    assert_eq!(c, "c", "the message was only borrowed");
    sender.send(stream.peer_addr(), "e");
    sender.try_send(stream.peer_addr(), "f").unwrap();
    sender.send_to(id, "g");
    sender.try_send_to(id, "h").unwrap();
    sender.broadcast("i");
    sender.try_broadcast("j").unwrap();
    room.broadcast("k");
    room.try_broadcast("l").unwrap();
    room.broadcast_except(id, "not sent");
    room.try_broadcast_except(id, "not sent").unwrap();
    kept.broadcast_with(|id| format!("m {}", id.is_some()).into());
    let kept_id = kept.try_broadcast_with(|_| "n".into()).unwrap();
    let without = room.try_broadcast_with(|id| format!("o {}", id.is_some()).into());
    assert_eq!(without, Ok(None));
    assert_eq!(kept_id, kept.last_id());
    stream.try_notify("p", "!").unwrap();
    room.try_notify("q", "!").unwrap();
    room.try_notify_except(id, "not sent", "").unwrap();
    other.try_broadcast("nobody is there").unwrap();
    stream.send(b"bytes".to_vec());

    for letter in "abcdefghijkl".chars() {
        assert_eq!(receive(&mut client), letter.to_string());
    }
    for text in ["m true", "n", "o false"] {
        assert_eq!(receive(&mut client), text);
    }
    for bytes in [&b"\x01\x01p!"[..], b"\x01\x01q!", b"bytes"] {
        assert!(client.read().unwrap() == tungstenite::Message::binary(bytes.to_vec()));
    }
}

#[test]
fn blocking_stream_sends_text_and_closes_with_a_code() {
    let (mut stream, mut client) = stream_pair();
    stream.send("hi").unwrap();
    assert_eq!(&read_bytes::<4>(&mut client), b"\x81\x02hi");
    // The close frame of the client, without which the stream would wait.
    client.write_all(&client_frame(0x8, &[0x0f, 0xa1])).unwrap();
    stream.close(CloseCode::application(4001), "bye");
    assert_eq!(read_bytes::<7>(&mut client), *b"\x88\x05\x0f\xa1bye");
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn try_send_to_a_closed_connection_returns_the_message() {
    let (client, stream, running) = connected();
    drop(client);
    let sender = running.sender();
    let deadline = Instant::now() + DEADLINE;
    while sender.connections() > 0 {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
    let error = sender.try_send_to(stream.id(), "late").unwrap_err();
    assert_eq!(error.message.text(), Some("late"));
    assert_eq!(error.reason, SendErrorReason::Closed);
}

#[test]
fn try_broadcast_without_a_receiver_returns_the_message() {
    let (stream, outgoing) = outgoing_stream(AsyncStream::disconnected);
    stream.try_broadcast("heard").unwrap();
    assert!(matches!(
        outgoing.try_recv(),
        Ok(OutgoingMessage::Broadcast(message)) if message.text() == Some("heard")
    ));
    drop(outgoing);
    let error = stream.try_broadcast("late").unwrap_err();
    assert_eq!(error.message.text(), Some("late"));
}

#[test]
fn room_join_since_replays_the_history() {
    let (mut client, stream, running) = connected();
    let kept = running.sender().room("kept");
    kept.broadcast("1");
    let first = kept.last_id();
    kept.broadcast("2");
    assert_eq!(kept.join_since(stream.id(), first), Ok(1));
    kept.broadcast("3");
    assert_eq!(receive(&mut client), "2");
    assert_eq!(receive(&mut client), "3");

    let everyone = running.sender().everyone();
    assert_eq!(everyone.join_since(stream.id(), None), Ok(0));
    let refused = everyone.join_since(stream.id(), first).unwrap_err();
    assert_eq!(refused.reason, JoinErrorReason::HistoryGone);
}

// ---- the app's state, limits ----

#[test]
fn app_is_made_with_a_state_alone() {
    let app = AsyncWebsocketApp::<_, Visits>::new_with_state(guests());
    assert!(app.connect_hook().is_none());
    app.get_state().seen.store(7, Ordering::Relaxed);
    // The turbofish gives closures the types of their arguments.
    let _ = app.with_connect_handler(|stream, guests| {
        let visits = stream.state.0.load(Ordering::Relaxed);
        guests.seen.fetch_add(visits, Ordering::Relaxed);
    });
    let app = AsyncWebsocketApp::<_, Visits>::new_unlinked_with_state(guests());
    assert!(app.connect_hook().is_some());
}

/// Evaluated by the compiler: limits can be constants.
const NOTHING_KEPT: HistoryLimits = HistoryLimits::messages(50).bytes(0);

#[test]
fn every_limit_has_a_setter_that_changes_it_alone() {
    let default = Limits::default();
    let time = Duration::from_millis(7);
    macro_rules! sets_its_field {
        ($($field:ident: $value:expr;)+) => {{ $(
            let changed = Limits::default().$field($value);
            assert_eq!(changed.$field, $value);
            assert_eq!(changed.clone().$field(default.$field), default, stringify!($field));
        )+
            [$(stringify!($field)),+]
        }};
    }
    let fields = sets_its_field! {
        message_bytes_max: 7;
        outbox_bytes_max: 7;
        keyed_bytes_max: 7;
        outboxes_bytes_max: 7;
        mailbox_bytes_max: 7;
        pending_bytes_max: 7;
        received_bytes_max: 7;
        head_bytes_max: 7;
        body_bytes_max: 7;
        bodies_bytes_max: 7;
        connections_max: 7;
        peer_connections_max: Some(7);
        peer_handshakes_per_second_max: Some(7);
        user_connections_max: Some(7);
        connection_calls_max: 7;
        messages_per_second_max: Some(7);
        bytes_per_second_max: Some(7);
        over_rate: OverRate::Close;
        connection_rooms_max: 7;
        rooms_max: 7;
        handshakes_max: 7;
        handshake_timeout: time;
        message_timeout: time;
        queue_timeout: time;
        keep_alive_timeout: time;
        write_timeout: time;
        write_bytes_per_second_min: 7;
        close_timeout: time;
    };
    // The debug output names every field, so this checks a setter for each.
    let shown = format!("{default:?}");
    assert_eq!(shown.matches(": ").count(), fields.len(), "{shown}");
    assert_eq!((NOTHING_KEPT.messages_max, NOTHING_KEPT.bytes_max), (50, 0));
}

// ---- panics name the caller ----

/// Returns the line that the panic of this closure names.
fn panic_line(panicking: impl FnOnce()) -> (String, u32) {
    thread_local! {
        static AT: Cell<Option<(String, u32)>> = const { Cell::new(None) };
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let at = info.location().unwrap();
            AT.set(Some((at.file().to_owned(), at.line())));
            before(info);
        }));
    });
    panic::catch_unwind(panic::AssertUnwindSafe(panicking)).expect_err("it panics");
    AT.take().unwrap()
}

#[test]
fn panic_for_a_callers_mistake_names_its_line() {
    let long = "n".repeat(256);
    let (stream, _outgoing) = outgoing_stream(AsyncStream::new);
    let room = stream.room("room");
    let id = stream.id();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let in_use = echo_app().with_address(taken.local_addr().unwrap());
    let second = Duration::from_secs(1);
    type Own = Procedures<(), ()>;

    macro_rules! names_its_line {
        ($($mistake:expr;)+) => { $(
            let (file, line) = panic_line(|| { let _ = $mistake; });
            assert!(file.ends_with("since_0_6.rs"), "{}: {file}", stringify!($mistake));
            assert!(line > line!() - 60, "{}: {line}", stringify!($mistake));
        )+ };
    }
    names_its_line! {
        AsyncWebsocketApp::<()>::new().with_address("nowhere");
        in_use.run();
        CloseCode::application(3999);
        Restion::<(), ()>::None.unwrap();
        Message::notification(&long, "");
        stream.notify(&long, "");
        stream.try_notify(&long, "");
        stream.call(&long, "", second, |_| ());
        stream.call_wait(&long, "", second);
        room.notify(&long, "");
        room.notify_except(id, &long, "");
        room.try_notify(&long, "");
        room.try_notify_except(id, &long, "");
        Own::new().on_call(&long, |_| Ok(()));
        Own::new().on_call("$own", |_| Ok(()));
        Own::new().on_call("a", |_| Ok(())).on_call("a", |_| Ok(()));
        Own::new().on_notification("$own", |_| ());
        Own::new().on_notification("a", |_| ()).on_notification("a", |_| ());
    }
}
