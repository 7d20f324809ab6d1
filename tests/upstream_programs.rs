//! Programs of the kinds that users of `humphrey_ws` 0.5.1 wrote, run against a real client.
//!
//! It guarantees that such programs compile unchanged and work as their authors intended. Each module is a whole
//! program, written for 0.5.1, with channels in place of `println!` and standard input, followed by
//! the behaviour that a client must see. It uses only names of 0.5.1, so all of it compiles against the published crate
//! too. Tests that 0.5.1 fails are marked as such.
//!
//! A 0.5.1 program can't be stopped, so each one runs in its own threads, on its own port, until the test
//! process ends. No test sleeps for a fixed time: each wait is for an event, with a deadline.
//!
//! The file is long because each program is a module together with its tests.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use humphrey::App;
use humphrey::http::{Request, Response, StatusCode};
use humphrey::stream::Stream;

use humphrey_ws::async_app::AsyncSender;
use humphrey_ws::error::WebsocketError;
use humphrey_ws::ping::Heartbeat;
use humphrey_ws::restion::Restion;
use humphrey_ws::{
    AsyncStream, AsyncWebsocketApp, Message, WebsocketStream, async_websocket_handler,
    websocket_handler,
};

use client::{Client, DEADLINE, eventually, free_port};

/// A blocking client whose operations have deadlines.
mod client {
    use super::*;

    use tungstenite::protocol::WebSocket;

    pub(super) use tungstenite::Message as Frame;

    /// The maximum time to wait for an expected event.
    pub(super) const DEADLINE: Duration = Duration::from_secs(10);

    pub(super) struct Client(WebSocket<TcpStream>);

    /// Returns a port that was free when this function checked.
    pub(super) fn free_port() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    }

    /// Connects to a program, retrying until it listens.
    pub(super) fn connect_tcp(port: u16) -> TcpStream {
        let mut socket = None;
        eventually("the program listens", || {
            socket = TcpStream::connect(("127.0.0.1", port)).ok();
            socket.is_some()
        });

        let socket = socket.unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.set_write_timeout(Some(DEADLINE)).unwrap();
        socket
    }

    /// Waits until `done` returns, and fails after a deadline.
    pub(super) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !done() {
            assert!(Instant::now() < deadline, "waited in vain until {what}");
            sleep(Duration::from_millis(1));
        }
    }

    impl Client {
        pub(super) fn connect(port: u16, path: &str) -> Self {
            let url = format!("ws://127.0.0.1:{port}{path}");
            let (socket, _) = tungstenite::client(url, connect_tcp(port)).unwrap();
            Self(socket)
        }

        pub(super) fn addr(&self) -> SocketAddr {
            self.0.get_ref().local_addr().unwrap()
        }

        pub(super) fn send(&mut self, message: impl Into<Frame>) {
            self.0.send(message.into()).unwrap();
        }

        /// Queues a message, so that the next `send` writes several in one segment.
        pub(super) fn queue(&mut self, message: impl Into<Frame>) {
            self.0.write(message.into()).unwrap();
        }

        /// Receives the next frame of any kind, and answers pings.
        pub(super) fn frame(&mut self) -> Frame {
            self.0.read().expect("a frame before the deadline")
        }

        /// Receives the next message other than pings and pongs.
        pub(super) fn message(&mut self) -> Frame {
            let deadline = Instant::now() + DEADLINE;
            loop {
                match self.frame() {
                    Frame::Ping(_) | Frame::Pong(_) => assert!(Instant::now() < deadline),
                    message => return message,
                }
            }
        }

        pub(super) fn text(&mut self) -> String {
            match self.message() {
                Frame::Text(text) => text.to_string(),
                other => panic!("not a text message: {other:?}"),
            }
        }

        /// Reads up to a text message for which `wanted` holds.
        pub(super) fn text_that(&mut self, wanted: impl Fn(&str) -> bool) -> String {
            let deadline = Instant::now() + DEADLINE;
            loop {
                let text = self.text();
                if wanted(&text) {
                    return text;
                }
                assert!(Instant::now() < deadline, "only other messages came");
            }
        }

        /// Sends a close frame without waiting for the reply.
        pub(super) fn close(&mut self) {
            self.0.close(None).unwrap();
        }

        /// Sends a close frame, and requires a valid reply and the end of the stream.
        pub(super) fn close_properly(mut self) {
            self.close();
            let closed = loop {
                match self.0.read() {
                    Ok(_) => continue,
                    Err(error) => break error,
                }
            };
            assert!(
                matches!(closed, tungstenite::Error::ConnectionClosed),
                "not a proper close: {closed:?}"
            );
        }
    }
}

// ---- the asynchronous guide ----

/// A program that announces each new client to everyone, echoes messages, and broadcasts the lines of "standard input".
mod async_guide {
    use super::*;
    use client::Frame;

    fn program(port: u16, lines: Receiver<String>) {
        let websocket_app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
            .with_address(("127.0.0.1", port))
            .with_connect_handler(connect_handler)
            .with_disconnect_handler(disconnect_handler)
            .with_message_handler(message_handler);

        let sender = websocket_app.sender();
        spawn(move || user_input(sender, lines));

        websocket_app.run();
    }

    fn user_input(sender: AsyncSender, lines: Receiver<String>) {
        for line in lines.iter() {
            sender.broadcast(Message::new(line.trim()));
        }
    }

    fn connect_handler(stream: AsyncStream, _: Arc<()>) {
        let message = Message::new(format!("Welcome, {}!", stream.peer_addr()));
        stream.broadcast(message);
    }

    fn disconnect_handler(stream: AsyncStream, _: Arc<()>) {
        stream.broadcast(Message::new(format!("Goodbye, {}!", stream.peer_addr())));
    }

    fn message_handler(stream: AsyncStream, message: Message, _: Arc<()>) {
        stream.send(message);
    }

    fn start() -> (u16, Sender<String>) {
        let port = free_port();
        let (lines, standard_input) = channel();
        spawn(move || program(port, standard_input));
        (port, lines)
    }

    fn join(port: u16) -> Client {
        let mut client = Client::connect(port, "/");
        assert_eq!(client.text(), format!("Welcome, {}!", client.addr()));
        client
    }

    #[test]
    fn welcome_reaches_everyone_and_the_new_client() {
        let (port, _lines) = start();
        let mut first = join(port);
        let second = join(port);
        assert_eq!(first.text(), format!("Welcome, {}!", second.addr()));
    }

    #[test]
    fn echo_keeps_the_kind_of_the_message() {
        let (port, _lines) = start();
        let mut client = join(port);

        client.send("hello");
        assert_eq!(client.message(), Frame::from("hello"));
        client.send(vec![b'o', b'k']);
        assert_eq!(client.message(), Frame::from(vec![b'o', b'k']));
        client.send("");
        assert_eq!(client.message(), Frame::from(""));
    }

    #[test]
    fn any_path_is_accepted() {
        let (port, _lines) = start();
        for path in ["/", "/chat", "/a/b?c=d"] {
            let mut client = Client::connect(port, path);
            client.text_that(|text| text.starts_with("Welcome"));
        }
    }

    #[test]
    fn lines_from_another_thread_reach_everyone_in_order() {
        let (port, lines) = start();
        let mut clients = [join(port), join(port), join(port)];

        for number in 0..100 {
            lines.send(format!("line {number}\n")).unwrap();
        }
        for client in &mut clients {
            for number in 0..100 {
                let text = client.text_that(|text| text.starts_with("line"));
                assert_eq!(text, format!("line {number}"));
            }
        }
    }

    #[test]
    fn closing_client_is_announced() {
        let (port, _lines) = start();
        let mut stayer = join(port);
        let mut leaver = join(port);
        let goodbye = format!("Goodbye, {}!", leaver.addr());

        leaver.close();
        stayer.text_that(|text| text == goodbye);
    }

    /// 0.5.1 fails: it never notices the end of a TCP stream.
    #[test]
    fn vanished_client_is_announced() {
        let (port, _lines) = start();
        let mut stayer = join(port);
        let leaver = join(port);
        let goodbye = format!("Goodbye, {}!", leaver.addr());

        drop(leaver);
        stayer.text_that(|text| text == goodbye);
    }

    /// 0.5.1 fails: its reply to a close frame has no frame header.
    #[test]
    fn close_frame_is_answered_by_a_close_frame() {
        let (port, _lines) = start();
        join(port).close_properly();
    }

    /// 0.5.1 fails: its pongs have no frame header.
    #[test]
    fn ping_between_messages_is_answered() {
        let (port, _lines) = start();
        let mut client = join(port);

        client.send(Frame::Ping("are you there?".into()));
        assert_eq!(client.frame(), Frame::Pong("are you there?".into()));
        client.send("hello");
        assert_eq!(client.text(), "hello");
    }

    /// 0.5.1 fails: its handler threads overtake each other.
    #[test]
    fn burst_is_echoed_in_order() {
        let (port, _lines) = start();
        let mut client = join(port);

        for number in 0..1000 {
            client.queue(format!("{number}"));
        }
        client.send("last");
        for number in 0..1000 {
            assert_eq!(client.text(), format!("{number}"));
        }
        assert_eq!(client.text(), "last");
    }
}

/// A connect handler that moves the stream to a new thread, which sends at any time.
mod clock {
    use super::*;

    fn program(port: u16) {
        AsyncWebsocketApp::<()>::new_with_config((), 2, 1)
            .with_address(("127.0.0.1", port))
            .with_polling_interval(Some(Duration::from_millis(1)))
            .with_connect_handler(|stream, _| {
                spawn(move || {
                    for tick in 1.. {
                        stream.send(Message::new(format!("tick {tick}")));
                        sleep(Duration::from_millis(10));
                    }
                });
            })
            .run();
    }

    #[test]
    fn stream_can_be_used_from_another_thread_after_its_end() {
        let port = free_port();
        spawn(move || program(port));

        for _ in 0..3 {
            let mut client = Client::connect(port, "/");
            for tick in 1..=3 {
                assert_eq!(client.text(), format!("tick {tick}"));
            }
        }
    }
}

// ---- per-stream state and heartbeats ----

/// A program whose streams count their messages, with a heartbeat.
mod numbered_echo {
    use super::*;
    use client::Frame;

    #[derive(Default)]
    struct StreamState {
        message_count: AtomicUsize,
    }

    /// The channel to which the disconnect handler sends the number of messages.
    type Log = Mutex<Sender<usize>>;

    fn program(port: u16, heartbeat: Heartbeat, log: Sender<usize>) {
        let websocket_app: AsyncWebsocketApp<Log, StreamState> =
            AsyncWebsocketApp::new_with_config(Mutex::new(log), 8, 1)
                .with_address(("127.0.0.1", port))
                .with_heartbeat(heartbeat)
                .with_disconnect_handler(disconnect_handler)
                .with_message_handler(message_handler);

        websocket_app.run();
    }

    fn message_handler(stream: AsyncStream<StreamState>, message: Message, _: Arc<Log>) {
        let count = stream.state.message_count.fetch_add(1, Ordering::SeqCst) + 1;
        let text = message.text().unwrap().trim();
        stream.send(Message::new(format!("Message {count}: {text}")));
    }

    fn disconnect_handler(stream: AsyncStream<StreamState>, log: Arc<Log>) {
        let count = stream.state.message_count.load(Ordering::SeqCst);
        log.lock().unwrap().send(count).unwrap();
    }

    fn start(heartbeat: Heartbeat) -> (u16, Receiver<usize>) {
        let port = free_port();
        let (log, counts) = channel();
        spawn(move || program(port, heartbeat, log));
        (port, counts)
    }

    #[test]
    fn stream_has_its_own_state_until_it_ends() {
        let (port, counts) = start(Heartbeat::default());
        let mut first = Client::connect(port, "/");
        let mut second = Client::connect(port, "/");

        for number in 1..=3 {
            first.send("hello");
            assert_eq!(first.text(), format!("Message {number}: hello"));
        }
        second.send("hello");
        assert_eq!(second.text(), "Message 1: hello");

        first.close();
        assert_eq!(counts.recv_timeout(DEADLINE), Ok(3));
        second.close();
        assert_eq!(counts.recv_timeout(DEADLINE), Ok(1));
    }

    /// 0.5.1 may fail: its disconnect handler can overtake the last message handlers.
    #[test]
    fn disconnect_handler_runs_after_the_last_message_handler() {
        let (port, counts) = start(Heartbeat::default());
        for _ in 0..50 {
            let mut client = Client::connect(port, "/");
            for _ in 0..20 {
                client.queue("hello");
            }
            client.close();
            assert_eq!(counts.recv_timeout(DEADLINE), Ok(20));
        }
    }

    #[test]
    fn client_that_answers_pings_stays_connected() {
        let heartbeat = Heartbeat::new(Duration::from_millis(50), Duration::from_secs(2));
        let (port, counts) = start(heartbeat);
        let mut client = Client::connect(port, "/");

        for _ in 0..10 {
            assert!(matches!(client.frame(), Frame::Ping(_)));
        }
        client.send("hello");
        assert_eq!(client.text(), "Message 1: hello");
        assert!(counts.try_recv().is_err());
    }

    #[test]
    fn client_that_answers_no_ping_is_disconnected() {
        let heartbeat = Heartbeat::new(Duration::from_millis(50), Duration::from_millis(500));
        let (port, counts) = start(heartbeat);

        // The client answers pings only while it reads, which it does not.
        let _client = Client::connect(port, "/");
        assert_eq!(counts.recv_timeout(DEADLINE), Ok(0));
    }
}

// ---- linked to a Humphrey app ----

/// A WebSocket app and an HTTP app with different states, each on its own thread.
mod linked {
    use super::*;

    struct HttpState {
        greeting: String,
    }

    #[derive(Default)]
    struct WsState {
        messages: AtomicUsize,
    }

    fn program(port: u16) {
        let websocket_app: AsyncWebsocketApp<WsState> = AsyncWebsocketApp::new_unlinked()
            .with_message_handler(|stream, message, state: Arc<WsState>| {
                state.messages.fetch_add(1, Ordering::SeqCst);
                stream.send(message);
            });
        let ws_state = websocket_app.get_state();

        let http_state = HttpState {
            greeting: "Hello, World!".to_string(),
        };
        let humphrey_app: App<HttpState> = App::new_with_config(8, http_state)
            .with_stateless_route("/messages", move |_| {
                let messages = ws_state.messages.load(Ordering::SeqCst);
                Response::new(StatusCode::OK, format!("{messages}"))
            })
            .with_websocket_route(
                "/ws",
                async_websocket_handler(websocket_app.connect_hook().unwrap()),
            )
            .with_route("/", home);

        spawn(move || humphrey_app.run(("127.0.0.1", port)).unwrap());
        websocket_app.run();
    }

    fn home(_: Request, state: Arc<HttpState>) -> Response {
        Response::new(StatusCode::OK, state.greeting.as_bytes())
    }

    /// The reverse: the HTTP app runs on the main thread, and the WebSocket app has a heartbeat.
    fn program_with_config(port: u16) {
        let ws_app = AsyncWebsocketApp::<WsState>::new_unlinked_with_config(WsState::default(), 16)
            .with_heartbeat(Heartbeat::new(
                Duration::from_secs(5),
                Duration::from_secs(10),
            ))
            .with_message_handler(echo);
        let hook = ws_app.connect_hook().unwrap();

        spawn(move || ws_app.run());

        App::new_with_config(
            8,
            HttpState {
                greeting: "Hello again!".to_string(),
            },
        )
        .with_route("/", home)
        .with_websocket_route("/ws", async_websocket_handler(hook))
        .run(("127.0.0.1", port))
        .unwrap();
    }

    fn echo(stream: AsyncStream, message: Message, _: Arc<WsState>) {
        stream.send(message);
    }

    /// A program that inspects each stream before it passes it to the WebSocket app.
    fn program_with_a_greeter(port: u16) {
        let ws_app: AsyncWebsocketApp<()> =
            AsyncWebsocketApp::new_unlinked().with_message_handler(|s, m, _| s.send(m));
        let hook = ws_app.connect_hook().unwrap();

        let app: App<()> = App::new_with_config(4, ()).with_websocket_route(
            "/ws",
            websocket_handler(move |mut stream, _| {
                let name = stream.recv().unwrap();
                let greeting = format!("Hello, {}!", name.text().unwrap());
                stream.send(Message::new(greeting)).unwrap();
                hook.lock().unwrap().send(stream).unwrap();
            }),
        );

        spawn(move || app.run(("127.0.0.1", port)).unwrap());
        ws_app.run();
    }

    fn get(port: u16, path: &str) -> String {
        let mut socket = client::connect_tcp(port);
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).unwrap();

        let mut response = String::new();
        socket.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
        let (_, body) = response.split_once("\r\n\r\n").unwrap();
        body.trim_end().to_string()
    }

    #[test]
    fn http_and_websocket_share_a_port() {
        let port = free_port();
        spawn(move || program(port));

        assert_eq!(get(port, "/"), "Hello, World!");
        let mut client = Client::connect(port, "/ws");
        client.send("hello");
        assert_eq!(client.text(), "hello");
        assert_eq!(get(port, "/messages"), "1");

        client.send("hello again");
        assert_eq!(client.text(), "hello again");
        assert_eq!(get(port, "/messages"), "2");
    }

    #[test]
    fn more_clients_than_pool_threads_are_served() {
        let port = free_port();
        spawn(move || program_with_config(port));

        let mut clients: Vec<_> = (0..40).map(|_| Client::connect(port, "/ws")).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            client.send(format!("{number}"));
        }
        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.text(), format!("{number}"));
        }
        assert_eq!(get(port, "/"), "Hello again!");
    }

    #[test]
    fn program_can_pass_streams_to_the_hook() {
        let port = free_port();
        spawn(move || program_with_a_greeter(port));

        let mut client = Client::connect(port, "/ws");
        client.send("Ann");
        assert_eq!(client.text(), "Hello, Ann!");
        client.send("hello");
        assert_eq!(client.text(), "hello");
    }
}

// ---- a chat ----

/// A map of users by address, filled by the connect handler and unwrapped by all other handlers.
mod chat {
    use super::*;

    struct User {
        name: String,
    }

    #[derive(Default)]
    struct ChatState {
        users: RwLock<HashMap<SocketAddr, User>>,
    }

    fn program(port: u16) {
        let ws_app: AsyncWebsocketApp<ChatState> = AsyncWebsocketApp::new_unlinked()
            .with_connect_handler(connect_handler)
            .with_message_handler(message_handler)
            .with_disconnect_handler(disconnect_handler);

        let app: App<()> = App::new_with_config(4, ())
            .with_stateless_route("/", |_| Response::new(StatusCode::OK, b"<h1>Chat</h1>"))
            .with_websocket_route(
                "/ws",
                async_websocket_handler(ws_app.connect_hook().unwrap()),
            );

        spawn(move || app.run(("127.0.0.1", port)).unwrap());
        ws_app.run();
    }

    fn connect_handler(stream: AsyncStream, state: Arc<ChatState>) {
        let name = format!("guest-{}", stream.peer_addr().port());
        let user = User { name };
        let mut users = state.users.write().unwrap();
        users.insert(stream.peer_addr(), user);
        stream.broadcast(Message::new(format!("{} online", users.len())));
    }

    fn message_handler(stream: AsyncStream, message: Message, state: Arc<ChatState>) {
        let text = message.text().unwrap();

        if let Some(name) = text.strip_prefix("/name ") {
            let mut users = state.users.write().unwrap();
            users.get_mut(&stream.peer_addr()).unwrap().name = name.to_string();
        } else {
            let users = state.users.read().unwrap();
            let name = &users.get(&stream.peer_addr()).unwrap().name;
            stream.broadcast(Message::new(format!("{name}: {text}")));
        }
    }

    fn disconnect_handler(stream: AsyncStream, state: Arc<ChatState>) {
        let mut users = state.users.write().unwrap();
        let user = users.remove(&stream.peer_addr()).unwrap();
        stream.broadcast(Message::new(format!("{} left", user.name)));
        stream.broadcast(Message::new(format!("{} online", users.len())));
    }

    /// Connects a user whose first messages are sent in one segment with the name.
    fn join(port: u16, name: &str) -> Client {
        let mut client = Client::connect(port, "/ws");
        client.queue(format!("/name {name}"));
        client.send("hi");
        client.text_that(|text| text == format!("{name}: hi"));
        client
    }

    /// 0.5.1 may fail: a user's messages can overtake each other and the connect handler.
    #[test]
    fn users_join_send_messages_and_leave() {
        let port = free_port();
        spawn(move || program(port));

        let mut ann = join(port, "ann");
        let mut bob = join(port, "bob");
        ann.text_that(|text| text == "bob: hi");

        ann.send("hello, bob");
        assert_eq!(
            bob.text_that(|text| text.starts_with("ann")),
            "ann: hello, bob"
        );

        bob.close();
        assert_eq!(ann.text_that(|text| text.ends_with("left")), "bob left");
        assert_eq!(ann.text_that(|text| text.ends_with("online")), "1 online");
    }

    /// 0.5.1 may fail, for the same reason.
    #[test]
    fn connect_handler_runs_before_the_first_message() {
        let port = free_port();
        spawn(move || program(port));

        for round in 0..100 {
            join(port, &format!("user {round}")).close();
        }
    }

    /// 0.5.1 fails: it never notices the end of a TCP stream.
    #[test]
    fn vanished_user_leaves() {
        let port = free_port();
        spawn(move || program(port));

        let mut ann = join(port, "ann");
        drop(join(port, "bob"));
        assert_eq!(ann.text_that(|text| text.ends_with("left")), "bob left");
        assert_eq!(ann.text_that(|text| text.ends_with("online")), "1 online");
    }
}

// ---- a sender in the app's own state ----

/// A quiz that sends the players' answers to the host's address, through a sender in the app's state.
mod quiz {
    use super::*;

    #[derive(Default)]
    struct Quiz {
        sender: Mutex<Option<AsyncSender>>,
        host: Mutex<Option<SocketAddr>>,
    }

    fn program(port: u16) {
        let app: AsyncWebsocketApp<Quiz> = AsyncWebsocketApp::new()
            .with_address(("127.0.0.1", port))
            .with_message_handler(|mut stream, message, quiz| handle(&mut stream, message, quiz));

        let state = app.get_state();
        state.sender.lock().unwrap().replace(app.sender());
        app.run();
    }

    fn handle(stream: &mut AsyncStream, message: Message, quiz: Arc<Quiz>) {
        let sender = quiz.sender.lock().unwrap();
        let sender = sender.as_ref().unwrap();
        let mut host = quiz.host.lock().unwrap();

        match (message.text().unwrap(), *host) {
            ("/host", _) => {
                *host = Some(stream.peer_addr());
                stream.send(Message::new("you are the host"));
            }
            ("/end", _) => sender.broadcast(Message::new("the end")),
            (_, None) => stream.send(Message::new("nobody is the host")),
            (answer, Some(host)) => {
                let forwarded = format!("{}: {answer}", stream.peer_addr());
                sender.send(host, Message::new(forwarded));
                // No client has this address, so the message is dropped.
                sender.send(([127, 0, 0, 1], 1).into(), Message::new("lost"));
                stream.send(Message::new("noted"));
            }
        }
    }

    #[test]
    fn sender_in_the_state_reaches_one_client_or_all() {
        let port = free_port();
        spawn(move || program(port));
        let mut host = Client::connect(port, "/");
        let mut players = [Client::connect(port, "/"), Client::connect(port, "/")];

        players[0].send("too early");
        assert_eq!(players[0].text(), "nobody is the host");
        host.send("/host");
        assert_eq!(host.text(), "you are the host");

        for player in &mut players {
            player.send("42");
            assert_eq!(player.text(), "noted");
            assert_eq!(host.text(), format!("{}: 42", player.addr()));
        }

        host.send("/end");
        assert_eq!(host.text(), "the end");
        assert_eq!(players[0].text(), "the end");
        assert_eq!(players[1].text(), "the end");
    }
}

// ---- the blocking API ----

/// A program that calls `recv` until it fails, on one pool thread for each client.
mod blocking_echo {
    use super::*;
    use client::Frame;

    type Log = Mutex<Sender<String>>;

    fn program(port: u16, log: Sender<String>) {
        let app: App<Log> = App::new_with_config(8, Mutex::new(log))
            .with_websocket_route("/stubborn", websocket_handler(stubborn_handler))
            .with_websocket_route("/hello", websocket_handler(hello_handler))
            .with_websocket_route("/*", websocket_handler(echo_handler));

        app.run(("127.0.0.1", port)).unwrap();
    }

    fn log(state: &Log, line: String) {
        state.lock().unwrap().send(line).unwrap();
    }

    fn echo_handler(mut stream: WebsocketStream, state: Arc<Log>) {
        let addr = stream.inner().peer_addr().unwrap();
        log(&state, format!("new connection from {addr}"));
        stream
            .send(Message::new("Hello, World!"))
            .expect("the client has only just come");

        while let Ok(message) = stream.recv() {
            if stream.send(message).is_err() {
                break;
            }
        }

        log(&state, format!("connection closed by {addr}"));
    }

    /// A program that retries after every error but one.
    fn stubborn_handler(mut stream: WebsocketStream, state: Arc<Log>) {
        loop {
            match stream.recv() {
                Ok(message) => stream.send(message).unwrap(),
                Err(WebsocketError::ConnectionClosed) => break,
                Err(_) => continue,
            }
        }
        log(&state, "stubborn handler ended".to_string());
    }

    fn hello_handler(mut stream: WebsocketStream, _: Arc<Log>) {
        stream.send(Message::new("Hello, World!")).unwrap();
    }

    fn start() -> (u16, Receiver<String>) {
        let port = free_port();
        let (log, lines) = channel();
        spawn(move || program(port, log));
        (port, lines)
    }

    fn join(port: u16, lines: &Receiver<String>) -> Client {
        let mut client = Client::connect(port, "/");
        assert_eq!(client.text(), "Hello, World!");
        let line = lines.recv_timeout(DEADLINE).unwrap();
        assert_eq!(line, format!("new connection from {}", client.addr()));
        client
    }

    #[test]
    fn messages_are_echoed_in_order_with_their_kind() {
        let (port, lines) = start();
        let mut client = join(port, &lines);

        for number in 0..100 {
            client.queue(format!("{number}"));
        }
        client.send(vec![0xff, 0xfe]);
        for number in 0..100 {
            assert_eq!(client.text(), format!("{number}"));
        }
        assert_eq!(client.message(), Frame::from(vec![0xff, 0xfe]));
    }

    #[test]
    fn loop_ends_when_the_client_closes() {
        let (port, lines) = start();
        let mut client = join(port, &lines);
        client.close();

        let line = lines.recv_timeout(DEADLINE).unwrap();
        assert_eq!(line, format!("connection closed by {}", client.addr()));
    }

    #[test]
    fn loop_ends_when_the_client_vanishes() {
        let (port, lines) = start();
        let client = join(port, &lines);
        let addr = client.addr();
        drop(client);

        let line = lines.recv_timeout(DEADLINE).unwrap();
        assert_eq!(line, format!("connection closed by {addr}"));
    }

    /// 0.5.1 fails: it returns `ReadError` at the end of a TCP stream, again and again, and the handler spins.
    #[test]
    fn vanished_client_is_a_closed_connection() {
        let (port, lines) = start();
        let mut client = Client::connect(port, "/stubborn");
        client.send("hello");
        assert_eq!(client.text(), "hello");
        drop(client);

        let line = lines.recv_timeout(DEADLINE).unwrap();
        assert_eq!(line, "stubborn handler ended");
    }

    /// 0.5.1 fails: its reply to a close frame has no frame header.
    #[test]
    fn close_frame_is_answered_by_a_close_frame() {
        let (port, lines) = start();
        join(port, &lines).close_properly();
    }

    /// 0.5.1 fails: its pongs have no frame header.
    #[test]
    fn ping_between_messages_is_answered() {
        let (port, lines) = start();
        let mut client = join(port, &lines);
        client.send(Frame::Ping("are you there?".into()));
        client.send("hello");
        assert_eq!(client.frame(), Frame::Pong("are you there?".into()));
        assert_eq!(client.text(), "hello");
    }

    /// 0.5.1 fails: dropping a stream sends nothing.
    #[test]
    fn end_of_a_handler_closes_the_stream() {
        let (port, _lines) = start();
        let mut client = Client::connect(port, "/hello");
        assert_eq!(client.text(), "Hello, World!");
        assert!(matches!(client.message(), Frame::Close(_)));
    }
}

/// A program that receives without blocking, and sends the messages of other clients in between.
mod blocking_broadcast {
    use super::*;

    /// Replaces the crate `bus`.
    #[derive(Default)]
    struct Bus {
        readers: Mutex<Vec<Sender<String>>>,
        ended: AtomicUsize,
    }

    impl Bus {
        fn subscribe(&self) -> Receiver<String> {
            let (sender, receiver) = channel();
            self.readers.lock().unwrap().push(sender);
            receiver
        }

        fn broadcast(&self, text: &str) {
            let mut readers = self.readers.lock().unwrap();
            readers.retain(|reader| reader.send(text.to_string()).is_ok());
        }

        fn readers(&self) -> usize {
            self.readers.lock().unwrap().len()
        }
    }

    fn program(port: u16, started: Sender<Arc<Bus>>) {
        let app = App::new_with_config(32, Bus::default())
            .with_websocket_route("/", websocket_handler(broadcast_handler));
        started.send(app.get_state()).unwrap();
        app.run(("127.0.0.1", port)).unwrap();
    }

    fn broadcast_handler(mut stream: WebsocketStream, bus: Arc<Bus>) {
        let reader = bus.subscribe();

        loop {
            match stream.recv_nonblocking() {
                Restion::Ok(message) => bus.broadcast(message.text().unwrap()),
                Restion::Err(WebsocketError::ConnectionClosed) => break,
                Restion::Err(_) => break,
                Restion::None => (),
            }

            while let Ok(text) = reader.try_recv() {
                stream.send(Message::new(text)).unwrap();
            }

            sleep(Duration::from_millis(4));
        }

        bus.ended.fetch_add(1, Ordering::SeqCst);
    }

    fn start(clients: usize) -> (Vec<Client>, Arc<Bus>) {
        let port = free_port();
        let (started, start) = channel();
        spawn(move || program(port, started));
        let bus = start.recv_timeout(DEADLINE).unwrap();

        let clients = (0..clients).map(|_| Client::connect(port, "/")).collect();
        (clients, bus)
    }

    #[test]
    fn message_of_one_client_reaches_all() {
        let (mut clients, bus) = start(3);
        eventually("all take part", || bus.readers() == 3);

        for speaker in 0..3 {
            clients[speaker].send(format!("it's {speaker}"));
            for client in &mut clients {
                assert_eq!(client.text(), format!("it's {speaker}"));
            }
        }
    }

    #[test]
    fn loop_ends_when_the_client_closes() {
        let (mut clients, bus) = start(1);
        eventually("the client takes part", || bus.readers() == 1);
        clients[0].close();
        eventually("the loop ends", || bus.ended.load(Ordering::SeqCst) == 1);
    }

    /// 0.5.1 fails: it returns `None` at the end of a TCP stream, again and again.
    #[test]
    fn loop_ends_when_the_client_vanishes() {
        let (clients, bus) = start(1);
        eventually("the client takes part", || bus.readers() == 1);
        drop(clients);
        eventually("the loop ends", || bus.ended.load(Ordering::SeqCst) == 1);
    }
}

// ---- streams kept by a plugin ----

/// A plugin whose closure collects streams, and which removes a stream once `send` on it fails.
mod hot_reload {
    use super::*;

    #[derive(Default)]
    struct HotReload {
        streams: Mutex<Vec<WebsocketStream>>,
    }

    impl HotReload {
        fn on_websocket_request<S>(&self, request: Request, stream: Stream, state: Arc<S>) {
            websocket_handler(|stream, _| self.streams.lock().unwrap().push(stream))(
                request, stream, state,
            )
        }

        fn reload(&self) {
            let mut streams = self.streams.lock().unwrap();
            let mut gone = Vec::new();

            for (index, stream) in streams.iter_mut().enumerate() {
                if stream.send(Message::new("reload")).is_err() {
                    gone.push(index);
                }
            }
            for index in gone.into_iter().rev() {
                streams.swap_remove(index);
            }
        }

        fn watchers(&self) -> usize {
            self.streams.lock().unwrap().len()
        }
    }

    fn program(port: u16, plugin: Arc<HotReload>) {
        App::new_with_config(4, ())
            .with_websocket_route("/reload", move |request, stream, state| {
                plugin.on_websocket_request(request, stream, state)
            })
            .run(("127.0.0.1", port))
            .unwrap();
    }

    #[test]
    fn streams_outlive_their_handler_and_dead_ones_are_pruned() {
        let port = free_port();
        let plugin = Arc::new(HotReload::default());
        let shared = plugin.clone();
        spawn(move || program(port, shared));

        // More streams than pool threads, because a stored stream occupies no thread.
        let mut stayer = Client::connect(port, "/reload");
        let mut leavers: Vec<_> = (0..8).map(|_| Client::connect(port, "/reload")).collect();
        eventually("all streams are stored", || plugin.watchers() == 9);

        plugin.reload();
        for client in leavers.iter_mut().chain([&mut stayer]) {
            assert_eq!(client.text(), "reload");
        }

        drop(leavers);
        eventually("the dead are pruned", || {
            plugin.reload();
            plugin.watchers() == 1
        });
        assert_eq!(stayer.text(), "reload");
    }
}

// ---- generic code over Read and Write ----

/// A protocol over any `Read` and `Write`.
mod generic_io {
    use super::*;

    type Log = Mutex<Sender<ErrorKind>>;

    fn program(port: u16, log: Sender<ErrorKind>) {
        App::new_with_config(4, Mutex::new(log))
            .with_websocket_route(
                "/*",
                websocket_handler(|stream, log: Arc<Log>| {
                    let error = shout(stream).unwrap_err();
                    log.lock().unwrap().send(error.kind()).unwrap();
                }),
            )
            .run(("127.0.0.1", port))
            .unwrap();
    }

    fn shout<T: Read + Write>(mut stream: T) -> io::Result<()> {
        let mut buffer = [0; 1024];
        loop {
            let length = stream.read(&mut buffer)?;
            buffer[..length].make_ascii_uppercase();
            stream.write_all(&buffer[..length])?;
            stream.flush()?;
        }
    }

    #[test]
    fn read_is_one_message_until_the_error_at_the_end() {
        let port = free_port();
        let (log, errors) = channel();
        spawn(move || program(port, log));

        let mut client = Client::connect(port, "/");
        client.queue("one");
        client.queue("two");
        client.send("x".repeat(1024));
        assert_eq!(client.text(), "ONE");
        assert_eq!(client.text(), "TWO");
        assert_eq!(client.text(), "X".repeat(1024));

        client.close();
        assert_eq!(errors.recv_timeout(DEADLINE), Ok(ErrorKind::Other));
    }

    #[test]
    fn message_too_long_for_the_buffer_is_an_error() {
        let port = free_port();
        let (log, errors) = channel();
        spawn(move || program(port, log));

        let mut client = Client::connect(port, "/");
        client.send("x".repeat(1025));
        assert_eq!(errors.recv_timeout(DEADLINE), Ok(ErrorKind::Other));
    }
}
