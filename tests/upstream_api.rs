//! Every public item of `humphrey_ws` 0.5.1, used by its name and its exact type.
//!
//! It guarantees that code written for 0.5.1 compiles against this crate unchanged, except for `.into()` in
//! the argument of a sending method. Paths, signatures,
//! bounds, auto traits, default type parameters, enum variants and public fields are spelt out below, so a change
//! to any of them is a compile error here before it is one for a user. Behaviour that is observable without a server is
//! tested as well.
//!
//! Everything except the module `since_0_6` compiles and passes against the published 0.5.1 too, which is how this file
//! was checked. That module contains the additions of 0.6, and the one behaviour that it changes on purpose.
//!
//! It is one long file because it is one list: the public items of 0.5.1. The additions of 0.6 are in `upstream_api/`.

use std::error::Error;
use std::fmt::{Debug, Display};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, ToSocketAddrs};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use humphrey::App;
use humphrey::http::address::Address;
use humphrey::http::headers::Headers;
use humphrey::http::method::Method;
use humphrey::http::{Request, Response, StatusCode};
use humphrey::stream::Stream;

use humphrey_ws::async_app::{
    AsyncSender, EventHandler, HumphreyLink, MessageHandler, OutgoingMessage,
    StatefulWebsocketStream,
};
use humphrey_ws::error::WebsocketError;
use humphrey_ws::handler::WebsocketHandler;
use humphrey_ws::ping::Heartbeat;
use humphrey_ws::restion::Restion;
use humphrey_ws::{
    AsyncStream, AsyncWebsocketApp, Message, WebsocketStream, async_websocket_handler,
    websocket_handler,
};

/// The maximum time to wait for an expected event.
const DEADLINE: Duration = Duration::from_secs(10);

/// The connect hook's type in full, as users spell it in their own structs.
type Hook = Arc<Mutex<Sender<WebsocketStream>>>;

/// An app with an app state and a stream state.
type Guestbook = AsyncWebsocketApp<Guests, Visits>;

/// An app state with only the bounds of 0.5.1: `Send`, `Sync` and `'static`.
struct Guests {
    seen: AtomicUsize,
}

/// A stream state with only the bounds of 0.5.1: those of an app state, and `Default`.
#[derive(Default)]
struct Visits(AtomicUsize);

fn guests() -> Guests {
    Guests {
        seen: AtomicUsize::new(0),
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Returns an upgraded stream of the server, and the client's socket.
fn stream_pair() -> (WebsocketStream, TcpStream) {
    let (server, client) = socket_pair();
    (WebsocketStream::new(Stream::Tcp(server)), client)
}

fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();

    for socket in [&server, &client] {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.set_write_timeout(Some(DEADLINE)).unwrap();
    }

    (server, client)
}

/// Encodes a complete client frame.
fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    assert!(payload.len() < 126);

    let mut frame = vec![0x80 | opcode, 0x80 | payload.len() as u8];
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(b, m)| b ^ m));
    frame
}

fn read_bytes<const N: usize>(client: &mut TcpStream) -> [u8; N] {
    let mut bytes = [0; N];
    client.read_exact(&mut bytes).unwrap();
    bytes
}

/// Returns a valid opening handshake with the key of RFC 6455 §1.3.
fn upgrade_request(peer: SocketAddr) -> Request {
    let mut headers = Headers::new();
    headers.add("Host", "localhost");
    headers.add("Upgrade", "websocket");
    headers.add("Connection", "Upgrade");
    headers.add("Sec-WebSocket-Version", "13");
    headers.add("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");

    Request {
        method: Method::Get,
        uri: "/".to_string(),
        query: String::new(),
        version: "HTTP/1.1".to_string(),
        headers,
        content: None,
        address: Address::new(peer).unwrap(),
    }
}

/// Reads a response head up to its empty line, without consuming bytes after it.
fn read_head(client: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(read_bytes::<1>(client)[0]);
    }
    String::from_utf8(head).unwrap()
}

// ---- paths ----

#[test]
#[allow(unused_qualifications, reason = "the paths are what is tested")]
fn every_item_keeps_each_of_its_paths() {
    // The same item by both of its paths: a second type of the same name would not coerce.
    let _: fn(humphrey_ws::async_app::AsyncStream) -> AsyncStream = |stream| stream;
    let _: fn(humphrey_ws::async_app::AsyncWebsocketApp<()>) -> AsyncWebsocketApp<()> = |app| app;
    let _: fn(humphrey_ws::message::Message) -> Message = |message| message;
    let _: fn(humphrey_ws::stream::WebsocketStream) -> WebsocketStream = |stream| stream;

    let (hook, _incoming) = channel::<WebsocketStream>();
    let hook = Arc::new(Mutex::new(hook));
    let _ = humphrey_ws::handler::websocket_handler(|_, _: Arc<()>| ());
    let _ = humphrey_ws::handler::async_websocket_handler::<()>(hook.clone());
    let _ = humphrey_ws::websocket_handler(|_, _: Arc<()>| ());
    let _ = humphrey_ws::async_websocket_handler::<()>(hook);
}

/// Names that this crate adds at its root must not make Humphrey's own ambiguous.
mod both_roots_by_glob {
    use humphrey::*;
    use humphrey_ws::*;

    #[test]
    #[allow(unused_qualifications, reason = "the paths are what is tested")]
    fn both_crates_can_be_imported_by_glob() {
        let _: fn(App, http::Request) -> (App, http::Request) = |app, request| (app, request);
        let _: fn(route::SubApp<()>) -> SubApp<()> = |routes| routes;
        let _: fn(Client) -> client::Client = |client| client;
        let _: fn(monitor::MonitorConfig) = drop;
        let _: fn(thread::pool::ThreadPool) = drop;
        let _: fn(&str, &str) -> bool = krauss::wildcard_match;
        let _: fn(AsyncStream) -> async_app::AsyncStream = |stream| stream;
        let _: fn(restion::Restion<Message, error::WebsocketError>) = drop;
        let _: fn(ping::Heartbeat) = drop;
    }
}

// ---- signatures ----

#[test]
fn app_methods_keep_their_signatures() {
    type OnEvent = fn(AsyncStream<Visits>, Arc<Guests>);
    type OnMessage = fn(AsyncStream<Visits>, Message, Arc<Guests>);

    let _: fn() -> AsyncWebsocketApp<Visits, Visits> = AsyncWebsocketApp::new;
    let _: fn() -> AsyncWebsocketApp<Visits, Visits> = AsyncWebsocketApp::new_unlinked;
    let _: fn(Guests, usize, usize) -> Guestbook = Guestbook::new_with_config;
    let _: fn(Guests, usize) -> Guestbook = Guestbook::new_unlinked_with_config;
    let _: fn(&Guestbook) -> Option<Hook> = Guestbook::connect_hook;
    let _: fn(&Guestbook) -> AsyncSender = Guestbook::sender;
    let _: fn(&Guestbook) -> Arc<Guests> = Guestbook::get_state;
    let _: fn(&mut Guestbook, OnEvent) = Guestbook::on_connect;
    let _: fn(&mut Guestbook, OnEvent) = Guestbook::on_disconnect;
    let _: fn(&mut Guestbook, OnMessage) = Guestbook::on_message;
    let _: fn(Guestbook, OnEvent) -> Guestbook = Guestbook::with_connect_handler;
    let _: fn(Guestbook, OnEvent) -> Guestbook = Guestbook::with_disconnect_handler;
    let _: fn(Guestbook, OnMessage) -> Guestbook = Guestbook::with_message_handler;
    let _: fn(Guestbook, Option<Duration>) -> Guestbook = Guestbook::with_polling_interval;
    let _: fn(Guestbook, Heartbeat) -> Guestbook = Guestbook::with_heartbeat;
    let _: fn(Guestbook) = Guestbook::run;

    let _: fn(Guestbook, &'static str) -> Guestbook = Guestbook::with_address::<&'static str>;
    let _: fn(Guestbook, String) -> Guestbook = Guestbook::with_address::<String>;
    let _: fn(Guestbook, SocketAddr) -> Guestbook = Guestbook::with_address::<SocketAddr>;
    let _: fn(Guestbook, SocketAddrV4) -> Guestbook = Guestbook::with_address::<SocketAddrV4>;
    let _: fn(Guestbook, (IpAddr, u16)) -> Guestbook = Guestbook::with_address::<(IpAddr, u16)>;
    let _: fn(Guestbook, (&'static str, u16)) -> Guestbook = Guestbook::with_address;
    let _: fn(Guestbook, (String, u16)) -> Guestbook = Guestbook::with_address;
}

#[test]
fn async_stream_methods_keep_their_signatures() {
    type Visitor = AsyncStream<Visits>;

    let _: fn(SocketAddr, Sender<OutgoingMessage>, Arc<Visits>) -> Visitor = Visitor::new;
    let _: fn(SocketAddr, Sender<OutgoingMessage>, Arc<Visits>) -> Visitor = Visitor::disconnected;
    let _: fn(&Visitor, Message) = Visitor::send;
    let _: fn(&Visitor, Message) = Visitor::broadcast;
    let _: fn(&Visitor) -> SocketAddr = Visitor::peer_addr;
    let _: fn(&Visitor) -> &Arc<Visits> = |stream| &stream.state;

    let _: fn(&AsyncSender, SocketAddr, Message) = AsyncSender::send;
    let _: fn(&AsyncSender, Message) = AsyncSender::broadcast;
}

#[test]
fn blocking_stream_methods_keep_their_signatures() {
    let _: fn(Stream) -> WebsocketStream = WebsocketStream::new;
    let _: fn(&mut WebsocketStream) -> Result<Message, WebsocketError> = WebsocketStream::recv;
    let _: fn(&mut WebsocketStream) -> Restion<Message, WebsocketError> =
        WebsocketStream::recv_nonblocking;
    let _: fn(&mut WebsocketStream, Message) -> Result<(), WebsocketError> = WebsocketStream::send;
    let _: fn(&mut WebsocketStream) -> Result<(), WebsocketError> = WebsocketStream::ping;
    let _: fn(&WebsocketStream) -> Result<SocketAddr, io::Error> = WebsocketStream::peer_addr;
    let _: fn(&mut WebsocketStream) -> &mut Stream = WebsocketStream::inner;

    let _: fn(&mut WebsocketStream, &mut [u8]) -> io::Result<usize> = Read::read;
    let _: fn(&mut WebsocketStream, &[u8]) -> io::Result<usize> = Write::write;
    let _: fn(&mut WebsocketStream) -> io::Result<()> = Write::flush;
}

#[test]
fn message_methods_keep_their_signatures() {
    let _: fn(&'static str) -> Message = Message::new::<&'static str>;
    let _: fn(String) -> Message = Message::new::<String>;
    let _: fn(Vec<u8>) -> Message = Message::new_binary::<Vec<u8>>;
    let _: fn(&'static [u8]) -> Message = Message::new_binary::<&'static [u8]>;
    let _: fn(&mut WebsocketStream) -> Result<Message, WebsocketError> = Message::from_stream;
    let _: fn(&mut WebsocketStream) -> Restion<Message, WebsocketError> =
        Message::from_stream_nonblocking;
    let _: fn(&Message) -> bool = Message::is_text;
    let _: fn(&Message) -> Option<&str> = Message::text;
    let _: fn(&Message) -> &[u8] = Message::bytes;
    let _: fn(Message) -> Vec<u8> = Message::to_frame;
    let _: fn(&Message) -> &[u8] = AsRef::<[u8]>::as_ref;
    let _: fn(&Message) -> Message = Clone::clone;
}

#[test]
fn heartbeat_and_restion_keep_their_signatures() {
    let _: fn(Duration, Duration) -> Heartbeat = Heartbeat::new;
    let _: fn() -> Heartbeat = Heartbeat::default;

    let _: fn(&Restion<Guests, Guests>) -> bool = Restion::is_ok;
    let _: fn(&Restion<Guests, Guests>) -> bool = Restion::is_err;
    let _: fn(&Restion<Guests, Guests>) -> bool = Restion::is_none;
    // Only the error has to be `Debug`.
    let _: fn(Restion<Guests, WebsocketError>) -> Guests = Restion::unwrap;
    let _: fn(Result<Guests, Guests>) -> Restion<Guests, Guests> = Restion::from;
    let _: fn(Option<Guests>) -> Restion<Guests, ()> = Restion::from;
}

// ---- enums, traits, auto traits ----

/// Asserts that the enum has exactly these variants, with fields of exactly these types.
#[allow(clippy::drop_non_drop, reason = "`drop` names the field's type")]
fn variants_are_exhaustive(
    error: WebsocketError,
    restion: Restion<Guests, Visits>,
    outgoing: OutgoingMessage,
    link: HumphreyLink,
) {
    match error {
        WebsocketError::ReadError => (),
        WebsocketError::WriteError => (),
        WebsocketError::HandshakeError => (),
        WebsocketError::InvalidOpcode => (),
        WebsocketError::ConnectionClosed => (),
    }
    match restion {
        Restion::Ok(value) => drop::<Guests>(value),
        Restion::Err(error) => drop::<Visits>(error),
        Restion::None => (),
    }
    match outgoing {
        OutgoingMessage::Message(addr, message) => drop::<(SocketAddr, Message)>((addr, message)),
        OutgoingMessage::Broadcast(message) => drop::<Message>(message),
    }
    match link {
        HumphreyLink::Internal(app, addr) => drop::<(Box<App<()>>, SocketAddr)>((app, addr)),
        HumphreyLink::External(hook) => drop::<Hook>(hook),
    }
}

#[test]
fn enums_can_be_matched_without_a_wildcard_and_built_by_anyone() {
    let (hook, _incoming) = channel();
    let links = [
        HumphreyLink::Internal(Box::new(App::new()), loopback(80)),
        HumphreyLink::External(Arc::new(Mutex::new(hook))),
    ];

    for link in links {
        variants_are_exhaustive(
            WebsocketError::ReadError,
            Restion::Ok(guests()),
            OutgoingMessage::Message(loopback(1), Message::new("")),
            link,
        );
    }
}

fn is_send<T: Send>() {}
fn is_sync<T: Sync>() {}
fn is_static<T: 'static>() {}
fn is_unpin<T: Unpin>() {}
fn is_unwind_safe<T: UnwindSafe + RefUnwindSafe>() {}
fn is_debug<T: Debug>() {}
fn is_clone<T: Clone>() {}
fn is_error<T: Error + Display + Debug + Eq + PartialEq>() {}

#[test]
fn auto_traits_are_kept() {
    macro_rules! kept {
        ($($kept:ident: $($type:ty),+;)+) => { $($($kept::<$type>();)+)+ };
    }

    kept! {
        is_send: AsyncWebsocketApp<Guests, Visits>, AsyncStream<Visits>, AsyncSender, WebsocketStream, Message;
        is_send: StatefulWebsocketStream<Visits>, OutgoingMessage, HumphreyLink, WebsocketError, Heartbeat;
        is_send: Restion<Message, WebsocketError>;
        is_sync: AsyncStream<Visits>, AsyncSender, WebsocketStream, Message, WebsocketError, Heartbeat;
        is_sync: StatefulWebsocketStream<Visits>, OutgoingMessage, HumphreyLink;
        is_sync: Restion<Message, WebsocketError>;
        is_static: AsyncWebsocketApp<Guests, Visits>, AsyncStream<Visits>, AsyncSender, WebsocketStream;
        is_unpin: AsyncWebsocketApp<Guests, Visits>, AsyncStream<Visits>, AsyncSender, WebsocketStream, Message;
        is_unpin: StatefulWebsocketStream<Visits>, OutgoingMessage, HumphreyLink, WebsocketError, Heartbeat;
    }
}

/// What the closure of a `catch_unwind` may capture. (A blocking stream only without Humphrey's feature `tls`.)
#[test]
fn unwind_safety_is_kept() {
    is_unwind_safe::<AsyncStream<Visits>>();
    is_unwind_safe::<AsyncSender>();
    is_unwind_safe::<Message>();
    is_unwind_safe::<OutgoingMessage>();
    is_unwind_safe::<WebsocketError>();
    is_unwind_safe::<Heartbeat>();
    is_unwind_safe::<Restion<Message, WebsocketError>>();
}

#[test]
fn implemented_traits_are_kept() {
    is_debug::<Message>();
    is_clone::<Message>();
    is_debug::<Restion<Message, WebsocketError>>();
    is_error::<WebsocketError>();

    fn reads_and_writes<T: Read + Write + Send + 'static>() {}
    reads_and_writes::<WebsocketStream>();

    fn question_mark() -> Result<(), Box<dyn Error + Send + Sync>> {
        Err(WebsocketError::HandshakeError)?;
        Ok(())
    }
    assert_eq!(question_mark().unwrap_err().to_string(), "HandshakeError");
}

#[test]
fn default_type_parameters_are_kept() {
    let _: fn(AsyncStream) -> AsyncStream<()> = |stream| stream;
    let _: fn(StatefulWebsocketStream) -> StatefulWebsocketStream<()> = |stream| stream;
    let _: fn(AsyncWebsocketApp<Guests>) -> AsyncWebsocketApp<Guests, ()> = |app| app;
}

// ---- generic code with only the bounds of 0.5.1 ----

fn any_app<State, StreamState>() -> [AsyncWebsocketApp<State, StreamState>; 2]
where
    State: Default + Send + Sync + 'static,
    StreamState: Send + Sync + Default + 'static,
{
    [AsyncWebsocketApp::new(), AsyncWebsocketApp::new_unlinked()]
}

fn any_app_with<State, StreamState>(
    state: State,
    on_event: impl EventHandler<State, StreamState> + Copy,
    on_message: impl MessageHandler<State, StreamState> + Copy,
    address: impl ToSocketAddrs,
) -> AsyncWebsocketApp<State, StreamState>
where
    State: Send + Sync + 'static,
    StreamState: Send + Sync + Default + 'static,
{
    let mut app = AsyncWebsocketApp::new_unlinked_with_config(state, 1)
        .with_connect_handler(on_event)
        .with_disconnect_handler(on_event)
        .with_message_handler(on_message)
        .with_address(address);
    app.on_connect(on_event);
    app.on_disconnect(on_event);
    app.on_message(on_message);
    app
}

/// Asserts that closures are handlers for an unbounded state `S`, which need not even be `Sync`.
fn any_state_has_handlers<S, S2, E, M, W>(on_event: E, on_message: M, on_stream: W)
where
    S2: Send + Sync + Default + 'static,
    E: Fn(AsyncStream<S2>, Arc<S>) + Send + Sync + 'static,
    M: Fn(AsyncStream<S2>, Message, Arc<S>) + Send + Sync + 'static,
    W: Fn(WebsocketStream, Arc<S>) + Send + Sync,
{
    fn events<S, S2: Send + Sync + Default + 'static>(_: impl EventHandler<S, S2>) {}
    fn messages<S, S2: Send + Sync + Default + 'static>(_: impl MessageHandler<S, S2>) {}
    fn streams<S>(_: impl WebsocketHandler<S>) {}

    events::<S, S2>(on_event);
    messages::<S, S2>(on_message);
    streams::<S>(on_stream);
}

/// Asserts that each handler trait can be called, and implies its supertraits in generic code.
fn handler_traits_imply_their_supertraits<S, S2, E, M, W>(
    on_event: E,
    on_message: M,
    on_stream: W,
) -> impl Fn(AsyncStream<S2>, AsyncStream<S2>, WebsocketStream, Arc<S>)
where
    S2: Send + Sync + Default + 'static,
    E: EventHandler<S, S2>,
    M: MessageHandler<S, S2>,
    W: WebsocketHandler<S>,
{
    is_send::<E>();
    is_sync::<E>();
    is_static::<E>();
    is_send::<M>();
    is_sync::<M>();
    is_static::<M>();
    is_send::<W>();
    is_sync::<W>();

    move |first, second, stream, state| {
        on_event(first, state.clone());
        on_message(second, Message::new("hi"), state.clone());
        on_stream(stream, state);
    }
}

#[test]
fn generic_code_needs_no_more_bounds_than_before() {
    let _: [AsyncWebsocketApp<Visits>; 2] = any_app();

    let local: Vec<SocketAddr> = vec![loopback(1), loopback(2)];
    let app = any_app_with(
        guests(),
        |_: AsyncStream<Visits>, _| (),
        |_, _, _| (),
        &local[..],
    );
    assert_eq!(app.get_state().seen.load(Ordering::Relaxed), 0);

    any_state_has_handlers::<Rc<()>, Visits, _, _, _>(|_, _| (), |_, _, _| (), |_, _| ());

    let _ = handler_traits_imply_their_supertraits(
        |_: AsyncStream<Visits>, _: Arc<Rc<()>>| (),
        |_, _, _| (),
        |_, _| (),
    );
}

#[test]
fn handler_traits_can_be_made_into_objects() {
    type OnEvent = Box<dyn EventHandler<Guests, Visits>>;
    type OnMessage = Box<dyn MessageHandler<Guests, Visits>>;

    let on_event: OnEvent = Box::new(|stream, _| stream.broadcast(Message::new("hello")));
    let on_message: OnMessage = Box::new(|stream, message, _| stream.send(message));
    let _: Box<dyn WebsocketHandler<Guests>> = Box::new(|stream, _| drop(stream));

    let (sender, outgoing) = channel();
    let stream = AsyncStream::new(loopback(1), sender, Arc::default());
    on_event(stream, Arc::new(guests()));
    assert!(matches!(
        outgoing.try_recv(),
        Ok(OutgoingMessage::Broadcast(message)) if message.text() == Some("hello")
    ));

    // A boxed handler is a handler.
    let _ = Guestbook::new_unlinked_with_config(guests(), 1)
        .with_connect_handler(on_event)
        .with_message_handler(on_message);
}

// ---- inference ----

fn greet(stream: AsyncStream<Visits>, guests: Arc<Guests>) {
    guests.seen.fetch_add(1, Ordering::Relaxed);
    stream.state.0.fetch_add(1, Ordering::Relaxed);
    stream.send(Message::new("hello"));
}

fn answer(stream: AsyncStream<Visits>, message: Message, _: Arc<Guests>) {
    stream.send(message);
}

#[test]
fn argument_types_of_handlers_are_inferred() {
    let mut app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_unlinked()
        .with_connect_handler(|s, _| s.broadcast(Message::new(s.peer_addr().to_string())))
        .with_disconnect_handler(|s, _| s.broadcast(Message::new("bye")))
        .with_message_handler(|s, m, _| s.send(m));
    app.on_connect(|s, _| s.send(Message::new("hello")));
    app.on_disconnect(|s, _| drop(s));
    app.on_message(|mut s, m, _| {
        s.state = Arc::new(());
        s.send(Message::new(m.text().unwrap().trim()));
    });

    let _ = Guestbook::new_unlinked_with_config(guests(), 1)
        .with_connect_handler(|s, guests| {
            s.state.0.fetch_add(1, Ordering::Relaxed);
            guests.seen.fetch_add(1, Ordering::Relaxed);
        })
        .with_message_handler(|s, m, guests| {
            let seen = guests.seen.load(Ordering::Relaxed);
            s.send(Message::new(format!("{seen}: {:?}", m.text())));
        });
}

#[test]
fn state_types_are_inferred_from_the_handlers() {
    let app = AsyncWebsocketApp::new_unlinked_with_config(guests(), 1)
        .with_connect_handler(greet)
        .with_message_handler(answer);
    let _: &Guestbook = &app;

    fn count(stream: AsyncStream<Visits>, message: Message, visits: Arc<Visits>) {
        visits.0.fetch_add(message.bytes().len(), Ordering::Relaxed);
        drop(stream);
    }
    let app = AsyncWebsocketApp::new().with_message_handler(count);
    let _: &AsyncWebsocketApp<Visits, Visits> = &app;
}

#[test]
fn argument_types_of_blocking_handlers_are_inferred() {
    let _: App<Guests> = App::new_with_config(1, guests())
        .with_websocket_route(
            "/echo",
            websocket_handler(|mut stream, _| {
                while let Ok(message) = stream.recv() {
                    stream.send(message).unwrap();
                }
            }),
        )
        .with_websocket_route(
            "/count",
            websocket_handler(|mut stream, guests: Arc<Guests>| {
                let seen = guests.seen.fetch_add(1, Ordering::Relaxed);
                stream.send(Message::new(format!("{seen}"))).ok();
            }),
        )
        .with_stateless_route("/", |_| Response::new(StatusCode::OK, b"hello"));
}

// ---- the two Humphrey handlers ----

/// Asserts that a handler may borrow, and that `S` has no bounds.
fn collect_into<S>(
    streams: &Mutex<Vec<WebsocketStream>>,
    request: Request,
    stream: Stream,
    state: Arc<S>,
) {
    websocket_handler(|stream, _| streams.lock().unwrap().push(stream))(request, stream, state);
}

/// Asserts that the `S` of a hook has no bounds either. It is unrelated to the state of the app behind the hook.
fn hand_over<S>(hook: Hook) -> impl Fn(Request, Stream, Arc<S>) + Send + Sync {
    async_websocket_handler::<S>(hook)
}

type Boxed<S> = Box<dyn Fn(Request, Stream, Arc<S>) + Send + Sync>;

fn boxed<S: 'static>(hook: Hook) -> [Boxed<S>; 2] {
    [
        Box::new(async_websocket_handler(hook)),
        Box::new(websocket_handler(|_, _| ())),
    ]
}

#[test]
fn returned_humphrey_handlers_can_be_shared() {
    fn shared<S>(_: &impl humphrey::handler_traits::WebsocketHandler<S>) {}
    fn echo(mut stream: WebsocketStream, _: Arc<Guests>) {
        while let Ok(message) = stream.recv() {
            stream.send(message).unwrap();
        }
    }

    let (hook, _incoming) = channel();
    let hook: Hook = Arc::new(Mutex::new(hook));

    shared::<Guests>(&websocket_handler::<fn(WebsocketStream, Arc<Guests>), Guests>(echo));
    shared::<Rc<()>>(&websocket_handler::<_, Rc<()>>(|_, _| ()));
    shared::<Rc<()>>(&async_websocket_handler::<Rc<()>>(hook.clone()));
    shared::<Rc<()>>(&hand_over::<Rc<()>>(hook.clone()));
    let _ = boxed::<Rc<()>>(hook.clone());

    let _: App<Guests> = App::new_with_config(1, guests())
        .with_websocket_route("/echo", websocket_handler(echo))
        .with_websocket_route("/live", async_websocket_handler(hook));
}

#[test]
fn borrowing_handler_gets_the_stream_after_the_handshake() {
    let streams = Mutex::new(Vec::new());
    let (server, mut client) = socket_pair();
    let request = upgrade_request(client.local_addr().unwrap());

    collect_into(&streams, request, Stream::Tcp(server), Arc::new("state"));

    let head = read_head(&mut client);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");

    let mut streams = streams.into_inner().unwrap();
    streams[0].send(Message::new("hello")).unwrap();
    assert_eq!(&read_bytes::<7>(&mut client), b"\x81\x05hello");
}

#[test]
fn hook_carries_the_stream_after_the_handshake() {
    let (hook, incoming) = channel();
    let (server, mut client) = socket_pair();
    let request = upgrade_request(client.local_addr().unwrap());

    let handler = hand_over(Arc::new(Mutex::new(hook)));
    handler(request, Stream::Tcp(server), Arc::new(guests()));

    assert!(read_head(&mut client).starts_with("HTTP/1.1 101 "));
    let mut stream: WebsocketStream = incoming.recv_timeout(DEADLINE).unwrap();
    stream.send(Message::new_binary([1, 2, 3])).unwrap();
    assert_eq!(read_bytes::<5>(&mut client), [0x82, 3, 1, 2, 3]);
}

// ---- the app before it runs ----

#[test]
fn only_an_unlinked_app_has_a_connect_hook() {
    let [linked, unlinked] = any_app::<Visits, ()>();
    assert!(linked.connect_hook().is_none());

    let (first, second) = (unlinked.connect_hook(), unlinked.connect_hook());
    assert!(Arc::ptr_eq(&first.unwrap(), &second.unwrap()));

    let linked: AsyncWebsocketApp<Guests> = AsyncWebsocketApp::new_with_config(guests(), 2, 1);
    assert!(linked.connect_hook().is_none());

    let unlinked: AsyncWebsocketApp<Guests> =
        AsyncWebsocketApp::new_unlinked_with_config(guests(), 2);
    assert!(unlinked.connect_hook().is_some());
}

#[test]
fn state_is_reachable_before_the_app_runs() {
    let app: AsyncWebsocketApp<Guests> = AsyncWebsocketApp::new_with_config(guests(), 1, 1);
    app.get_state().seen.store(7, Ordering::Relaxed);
    assert_eq!(app.get_state().seen.load(Ordering::Relaxed), 7);
    assert!(Arc::ptr_eq(&app.get_state(), &app.get_state()));
}

#[test]
fn address_can_be_any_resolvable_value() {
    let list = [loopback(4001), loopback(4002)];
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
        .with_address("127.0.0.1:4001")
        .with_address("127.0.0.1:4001".to_string())
        .with_address(("127.0.0.1", 4001))
        .with_address(("127.0.0.1".to_string(), 4001))
        .with_address((Ipv4Addr::LOCALHOST, 4001))
        .with_address(loopback(4001))
        .with_address(&list[..])
        .with_heartbeat(Heartbeat::default())
        .with_heartbeat(Heartbeat::new(
            Duration::from_secs(5),
            Duration::from_secs(10),
        ))
        .with_polling_interval(Some(Duration::from_millis(10)))
        .with_polling_interval(None);
    drop(app);
}

#[test]
#[should_panic]
fn missing_address_is_a_panic() {
    let none: [SocketAddr; 0] = [];
    let _: AsyncWebsocketApp<()> = AsyncWebsocketApp::new().with_address(&none[..]);
}

#[test]
fn unlinked_app_ignores_its_address() {
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_unlinked().with_address("nowhere");
    assert!(app.connect_hook().is_some());
}

#[test]
fn sender_outlives_its_app_without_harm() {
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_unlinked();
    let sender = app.sender();
    sender.send(loopback(1), Message::new("nobody is there yet"));
    drop(app);
    sender.send(loopback(1), Message::new("nobody is there any more"));
    sender.broadcast(Message::new("nobody is there any more"));
}

#[test]
fn hook_outlives_its_app_and_returns_the_stream() {
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_unlinked();
    let hook = app.connect_hook().unwrap();
    drop(app);

    let (stream, client) = stream_pair();
    let returned = hook.lock().unwrap().send(stream).unwrap_err().0;
    assert_eq!(returned.peer_addr().unwrap(), client.local_addr().unwrap());
}

// ---- AsyncStream over a channel: how users test their handlers ----

fn outgoing_stream(
    make: fn(SocketAddr, Sender<OutgoingMessage>, Arc<Visits>) -> AsyncStream<Visits>,
) -> (AsyncStream<Visits>, Receiver<OutgoingMessage>) {
    let (sender, outgoing) = channel();
    let state = Arc::new(Visits(AtomicUsize::new(7)));
    (make(loopback(1234), sender, state), outgoing)
}

#[test]
fn stream_over_a_channel_sends_to_its_own_address() {
    let (stream, outgoing) = outgoing_stream(AsyncStream::new);
    stream.send(Message::new("hello"));

    assert_eq!(stream.peer_addr(), loopback(1234));
    match outgoing.try_recv() {
        Ok(OutgoingMessage::Message(addr, message)) => {
            assert_eq!(addr, loopback(1234));
            assert_eq!(message.text(), Some("hello"));
        }
        _ => panic!("not a message to the stream"),
    }
    assert!(outgoing.try_recv().is_err());
}

#[test]
fn stream_over_a_channel_broadcasts_when_disconnected() {
    for make in [AsyncStream::new, AsyncStream::disconnected] {
        let (stream, outgoing) = outgoing_stream(make);
        stream.broadcast(Message::new_binary("hello"));

        assert_eq!(stream.peer_addr(), loopback(1234));
        match outgoing.try_recv() {
            Ok(OutgoingMessage::Broadcast(message)) => {
                assert_eq!(message.bytes(), b"hello");
                assert!(!message.is_text());
            }
            _ => panic!("not a broadcast"),
        }
        assert!(outgoing.try_recv().is_err());
    }
}

#[test]
fn stream_messages_are_sent_in_order() {
    let (stream, outgoing) = outgoing_stream(AsyncStream::new);
    for number in 0..10 {
        stream.send(Message::new(format!("{number}")));
        stream.broadcast(Message::new(format!("{number}")));
    }
    drop(stream);

    let left: Vec<String> = outgoing
        .iter()
        .map(|outgoing| match outgoing {
            OutgoingMessage::Message(_, message) => format!("one {}", message.text().unwrap()),
            OutgoingMessage::Broadcast(message) => format!("all {}", message.text().unwrap()),
        })
        .collect();
    let made: Vec<String> = (0..10)
        .flat_map(|number| [format!("one {number}"), format!("all {number}")])
        .collect();
    assert_eq!(left, made);
}

#[test]
fn stream_over_a_closed_channel_sends_nothing() {
    let (stream, outgoing) = outgoing_stream(AsyncStream::new);
    drop(outgoing);
    stream.send(Message::new("hello"));
    stream.broadcast(Message::new("hello"));
}

#[test]
fn stream_state_can_be_replaced_and_moved_out() {
    let (mut stream, _outgoing) = outgoing_stream(AsyncStream::new);
    assert_eq!(stream.state.0.load(Ordering::Relaxed), 7);
    stream.state = Arc::new(Visits(AtomicUsize::new(8)));

    // Moving a field out is allowed only as long as `AsyncStream` does not implement `Drop`.
    let AsyncStream { state, .. } = stream;
    assert_eq!(state.0.load(Ordering::Relaxed), 8);
}

#[test]
fn handlers_can_be_tested_without_an_app() {
    let guests = Arc::new(guests());
    let (stream, outgoing) = outgoing_stream(AsyncStream::new);
    let visits = stream.state.clone();

    greet(stream, guests.clone());

    assert_eq!(guests.seen.load(Ordering::Relaxed), 1);
    assert_eq!(visits.0.load(Ordering::Relaxed), 8);
    assert!(matches!(
        outgoing.recv(),
        Ok(OutgoingMessage::Message(_, message)) if message.text() == Some("hello")
    ));
}

// ---- Message ----

#[test]
#[allow(clippy::unnecessary_to_owned, reason = "owned payloads are tested")]
fn utf8_message_is_text() {
    let text = "gr\u{fc}\u{df} dich";
    let messages = [
        Message::new(text),
        Message::new(text.to_string()),
        Message::new(text.as_bytes()),
        Message::new(text.as_bytes().to_vec()),
    ];
    for message in messages {
        assert!(message.is_text());
        assert_eq!(message.text(), Some(text));
        assert_eq!(message.bytes(), text.as_bytes());
        assert_eq!(message.as_ref(), text.as_bytes());
    }

    assert_eq!(Message::new([b'o', b'k']).text(), Some("ok"));
    assert_eq!(Message::new(b"ok").text(), Some("ok"));
    assert_eq!(Message::new("").text(), Some(""));
    assert_eq!(Message::new(Message::new("again")).text(), Some("again"));
}

#[test]
fn non_utf8_message_is_binary() {
    let message = Message::new([0xc3, 0x28]);
    assert!(!message.is_text());
    assert_eq!(message.text(), None);
    assert_eq!(message.bytes(), [0xc3, 0x28]);
}

#[test]
#[allow(clippy::unnecessary_to_owned, reason = "owned payloads are tested")]
fn utf8_binary_message_has_no_text() {
    for message in [
        Message::new_binary("ok"),
        Message::new_binary(b"ok"),
        Message::new_binary("ok".to_string()),
        Message::new_binary(b"ok".to_vec()),
        Message::new_binary(&b"ok"[..]),
    ] {
        assert!(!message.is_text());
        assert_eq!(message.text(), None);
        assert_eq!(message.bytes(), b"ok");
    }
}

#[test]
fn clone_is_equal_and_independent() {
    let message = Message::new_binary("ok");
    let clone = message.clone();
    drop(message);
    assert!(!clone.is_text());
    assert_eq!(clone.bytes(), b"ok");
    assert!(!format!("{clone:?}").is_empty());
}

#[test]
fn frame_is_final_unmasked_and_shortest() {
    let cases: [(usize, &[u8]); 6] = [
        (0, &[0]),
        (1, &[1]),
        (125, &[125]),
        (126, &[126, 0, 126]),
        (65535, &[126, 0xff, 0xff]),
        (65536, &[127, 0, 0, 0, 0, 0, 1, 0, 0]),
    ];
    for (length, header) in cases {
        let payload = vec![b'x'; length];

        for (opcode, message) in [
            (0x81, Message::new(&payload)),
            (0x82, Message::new_binary(&payload)),
        ] {
            let frame = message.to_frame();
            let (head, body) = frame.split_at(1 + header.len());
            assert_eq!(head[0], opcode, "length {length}");
            assert_eq!(&head[1..], header, "length {length}");
            assert!(body == payload, "length {length}");
        }
    }
}

// ---- WebsocketError and Restion ----

#[test]
fn error_is_displayed_as_its_name() {
    for (error, name) in [
        (WebsocketError::ReadError, "ReadError"),
        (WebsocketError::WriteError, "WriteError"),
        (WebsocketError::HandshakeError, "HandshakeError"),
        (WebsocketError::InvalidOpcode, "InvalidOpcode"),
        (WebsocketError::ConnectionClosed, "ConnectionClosed"),
    ] {
        assert_eq!(error.to_string(), name);
        assert_eq!(format!("{error:?}"), name);
        assert!(error.source().is_none());
    }
}

#[test]
fn errors_are_comparable_in_their_order() {
    assert_eq!(WebsocketError::ReadError, WebsocketError::ReadError);
    assert_ne!(WebsocketError::ReadError, WebsocketError::ConnectionClosed);

    assert_eq!(WebsocketError::ReadError as u8, 0);
    assert_eq!(WebsocketError::WriteError as u8, 1);
    assert_eq!(WebsocketError::HandshakeError as u8, 2);
    assert_eq!(WebsocketError::InvalidOpcode as u8, 3);
    assert_eq!(WebsocketError::ConnectionClosed as u8, 4);
}

const OK: Restion<u8, u8> = Restion::Ok(1);
const ERR: Restion<u8, u8> = Restion::Err(2);
const NONE: Restion<u8, u8> = Restion::None;

/// Evaluated by the compiler: `is_ok` and its siblings are `const fn`.
const KINDS: [[bool; 3]; 3] = [
    [OK.is_ok(), OK.is_err(), OK.is_none()],
    [ERR.is_ok(), ERR.is_err(), ERR.is_none()],
    [NONE.is_ok(), NONE.is_err(), NONE.is_none()],
];

#[test]
fn restion_knows_its_kind_in_a_constant() {
    assert_eq!(
        KINDS,
        [
            [true, false, false],
            [false, true, false],
            [false, false, true]
        ]
    );
    assert_eq!(format!("{OK:?} {ERR:?} {NONE:?}"), "Ok(1) Err(2) None");
}

#[test]
fn restion_converts_from_results_and_options() {
    assert!(matches!(
        Restion::<u8, u8>::from(Ok(1)),
        Restion::<u8, u8>::Ok(1)
    ));
    assert!(matches!(
        Restion::<u8, u8>::from(Err(2)),
        Restion::<u8, u8>::Err(2)
    ));
    assert!(matches!(
        Restion::<u8, ()>::from(Some(1)),
        Restion::<u8, ()>::Ok(1)
    ));

    let none: Restion<u8, ()> = None.into();
    assert!(none.is_none());
}

#[test]
fn unwrapped_restion_is_its_value() {
    assert_eq!(OK.unwrap(), 1);
}

#[test]
#[should_panic(expected = "2")]
fn unwrapped_error_panics_with_the_error() {
    ERR.unwrap();
}

#[test]
#[should_panic(expected = "None")]
fn unwrapped_none_panics() {
    NONE.unwrap();
}

// ---- WebsocketStream over a socket ----

#[test]
fn stream_receives_and_sends_whole_messages() {
    let (mut stream, mut client) = stream_pair();

    client.write_all(&client_frame(0x1, b"hello")).unwrap();
    let message = stream.recv().unwrap();
    assert_eq!(message.text(), Some("hello"));
    stream.send(message).unwrap();
    assert_eq!(&read_bytes::<7>(&mut client), b"\x81\x05hello");

    client.write_all(&client_frame(0x2, b"hello")).unwrap();
    let message = Message::from_stream(&mut stream).unwrap();
    assert!(!message.is_text());
    stream.send(message).unwrap();
    assert_eq!(&read_bytes::<7>(&mut client), b"\x82\x05hello");
}

#[test]
fn stream_sends_an_empty_ping() {
    let (mut stream, mut client) = stream_pair();
    stream.ping().unwrap();
    assert_eq!(read_bytes::<2>(&mut client), [0x89, 0]);
}

#[test]
fn stream_gives_access_to_its_socket() {
    let (mut stream, client) = stream_pair();
    let peer = client.local_addr().unwrap();

    assert_eq!(stream.peer_addr().unwrap(), peer);
    assert_eq!(stream.inner().peer_addr().unwrap(), peer);
    stream.inner().set_timeout(Some(DEADLINE)).unwrap();
}

#[test]
fn nonblocking_receive_returns_at_once() {
    let (mut stream, mut client) = stream_pair();
    assert!(stream.recv_nonblocking().is_none());
    assert!(Message::from_stream_nonblocking(&mut stream).is_none());

    client.write_all(&client_frame(0x1, b"hello")).unwrap();
    assert_eq!(await_message(&mut stream).unwrap().text(), Some("hello"));
    assert!(stream.recv_nonblocking().is_none());

    client.write_all(&client_frame(0x8, &[3, 0xe8])).unwrap();
    assert_eq!(
        await_message(&mut stream).unwrap_err(),
        WebsocketError::ConnectionClosed
    );
}

fn await_message(stream: &mut WebsocketStream) -> Result<Message, WebsocketError> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match stream.recv_nonblocking() {
            Restion::Ok(message) => return Ok(message),
            Restion::Err(error) => return Err(error),
            Restion::None => assert!(Instant::now() < deadline, "nothing came"),
        }
        std::thread::yield_now();
    }
}

#[test]
fn close_ends_a_blocking_receive() {
    let (mut stream, mut client) = stream_pair();
    client.write_all(&client_frame(0x8, &[3, 0xe8])).unwrap();
    assert_eq!(stream.recv().unwrap_err(), WebsocketError::ConnectionClosed);
}

#[test]
fn read_and_write_transfer_one_message_each() {
    let (mut stream, mut client) = stream_pair();
    let mut buf = [0; 16];

    client.write_all(&client_frame(0x1, b"hello")).unwrap();
    client.write_all(&client_frame(0x2, b"world!")).unwrap();
    assert_eq!(stream.read(&mut buf).unwrap(), 5);
    assert_eq!(&buf[..5], b"hello");
    assert_eq!(stream.read(&mut buf).unwrap(), 6);
    assert_eq!(&buf[..6], b"world!");

    assert_eq!(stream.write(b"hi").unwrap(), 2);
    assert_eq!(stream.write(&[0xff, 0xfe]).unwrap(), 2);
    stream.flush().unwrap();
    assert_eq!(read_bytes::<4>(&mut client), [0x81, 2, b'h', b'i']);
    assert_eq!(read_bytes::<4>(&mut client), [0x82, 2, 0xff, 0xfe]);
}

#[test]
fn message_over_the_buffer_is_an_error_and_lost() {
    let (mut stream, mut client) = stream_pair();
    client.write_all(&client_frame(0x1, b"too long")).unwrap();
    client.write_all(&client_frame(0x1, b"fits")).unwrap();

    let mut buf = [0; 4];
    let error = stream.read(&mut buf).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Other);
    assert_eq!(stream.read(&mut buf).unwrap(), 4);
    assert_eq!(&buf, b"fits");
}

#[test]
fn read_at_the_close_is_an_error_not_an_end_of_file() {
    let (mut stream, mut client) = stream_pair();
    client.write_all(&client_frame(0x8, &[3, 0xe8])).unwrap();

    let error = stream.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Other);
}

/// The additions of 0.6. Nothing in this module compiles against 0.5.1, except for the check of `send` on a disconnected stream,
/// which panicked there.
#[path = "upstream_api/since_0_6.rs"]
mod since_0_6;
