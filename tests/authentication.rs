//! Authentication: the recipes of docs/authentication.md, and the guarantees of the handshake handler.

use crate::support;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use humphrey::http::{Response, StatusCode};
use humphrey::stream::Stream;
use humphrey_ws::{
    Accept, AsyncStream, AsyncWebsocketApp, CloseCode, Limits, Message, Origins, Reject,
    RunningApp, Subscription, WebsocketStream, async_websocket_handler,
};
use support::{
    Client, DEADLINE, close_code, eventually, read_frame, read_head, serve_route, start,
    start_linked, tcp,
};
use tungstenite::client::ClientRequestBuilder;
use tungstenite::handshake::HandshakeError;
use tungstenite::protocol::frame::coding::CloseCode as Code;

// ----------------------------------------------------------------------------------------------------------- helpers

/// The source of connections: the app's own listener, or a linked Humphrey app.
#[derive(Clone, Copy, Debug)]
enum Way {
    Own,
    Linked,
}

const WAYS: [Way; 2] = [Way::Own, Way::Linked];

/// Starts the same app behind either kind of listener.
fn start_by<S, T>(
    way: Way,
    state: S,
    build: impl FnOnce(AsyncWebsocketApp<S, T>) -> AsyncWebsocketApp<S, T>,
) -> (RunningApp, SocketAddr)
where
    S: Send + Sync + 'static,
    T: Send + Sync + Default + 'static,
{
    match way {
        Way::Own => start(build(AsyncWebsocketApp::new_with_config(state, 8, 1))),
        Way::Linked => start_linked(build(AsyncWebsocketApp::new_unlinked_with_config(state, 8))),
    }
}

fn request(address: SocketAddr, target: &str) -> ClientRequestBuilder {
    ClientRequestBuilder::new(format!("ws://{address}{target}").parse().unwrap())
}

fn connect(request: ClientRequestBuilder, address: SocketAddr) -> Client {
    let (client, _) =
        tungstenite::client(request, tcp(address)).expect("the handshake is accepted");
    Client(client)
}

/// Returns the status of a rejected handshake.
fn rejected(request: ClientRequestBuilder, address: SocketAddr) -> u16 {
    match tungstenite::client(request, tcp(address)) {
        Ok(_) => panic!("the handshake was accepted"),
        Err(HandshakeError::Failure(tungstenite::Error::Http(response))) => {
            response.status().as_u16()
        }
        Err(error) => panic!("{error}"),
    }
}

/// Returns the whole response to a rejected handshake.
fn answer(address: SocketAddr, target: &str) -> (String, String) {
    let mut socket = tcp(address);
    socket
        .write_all(support::upgrade_request(target).as_bytes())
        .unwrap();
    let head = read_head(&mut socket);
    assert!(head.contains("\r\nSec-WebSocket-Version: 13\r\n"), "{head}");
    let mut body = String::new();
    socket.read_to_string(&mut body).unwrap();
    (head, body)
}

// ----------------------------------------------------------------------------------------------------------- recipes

#[derive(Debug, Default)]
struct User {
    name: String,
}

type Users = HashMap<&'static str, &'static str>;

fn users() -> Users {
    HashMap::from([("4711", "Ada"), ("4712", "Grace")])
}

fn greet(stream: AsyncStream<User>, _: Arc<Users>) {
    stream.send(Message::new(format!("Hello, {}!", stream.state.name)));
}

/// Returns the user of a token.
fn user(users: &Users, token: Option<&str>) -> Result<User, Reject> {
    let name = token.and_then(|token| users.get(token));
    let name = name.ok_or_else(|| Reject::new(401).with_body("a valid token is needed\n"))?;
    Ok(User {
        name: (*name).to_owned(),
    })
}

#[test]
fn token_in_the_query_identifies_the_client() {
    for way in WAYS {
        let (_running, address) = start_by(way, users(), |app| {
            app.with_handshake_handler(|request, users| {
                let user = user(&users, request.query_param("token").as_deref())?;
                Ok(Accept::new().with_state(user))
            })
            .with_connect_handler(greet)
        });
        let mut ada = connect(request(address, "/?a=b&token=4711"), address);
        assert_eq!(ada.receive_text(), "Hello, Ada!");
        let mut grace = connect(request(address, "/?token=%34%37%31%32"), address);
        assert_eq!(grace.receive_text(), "Hello, Grace!");
        for target in ["/?token=4713", "/?token=", "/"] {
            assert_eq!(rejected(request(address, target), address), 401, "{way:?}");
        }
    }
}

#[test]
fn cookie_identifies_the_client() {
    for way in WAYS {
        let (_running, address) = start_by(way, users(), |app| {
            app.with_allowed_origins(Origins::Same)
                .with_handshake_handler(|request, users| {
                    let user = user(&users, request.cookie("session"))?;
                    Ok(Accept::new().with_state(user))
                })
                .with_connect_handler(greet)
        });
        let with_cookie =
            |cookie: &str| request(address, "/").with_header("Cookie", format!("a=b; {cookie}"));
        let own = format!("http://{address}");
        let mut ada = connect(
            with_cookie("session=4711").with_header("Origin", own),
            address,
        );
        assert_eq!(ada.receive_text(), "Hello, Ada!");
        assert_eq!(rejected(with_cookie("session=0"), address), 401, "{way:?}");
        assert_eq!(rejected(request(address, "/"), address), 401, "{way:?}");
        // A browser also sends the cookie for foreign pages.
        let foreign = with_cookie("session=4711").with_header("Origin", "http://evil.example");
        assert_eq!(rejected(foreign, address), 403, "{way:?}");
    }
}

#[test]
fn subprotocol_token_identifies_the_client_unechoed() {
    for way in WAYS {
        let (_running, address) = start_by(way, users(), |app| {
            app.with_handshake_handler(|request, users| {
                let mut offered = request.subprotocols();
                let token = offered.find_map(|offered| offered.strip_prefix("token."));
                let user = user(&users, token)?;
                Ok(Accept::new().with_state(user).with_subprotocol("chat.v1"))
            })
            .with_connect_handler(|stream, _| {
                stream.send(Message::new(format!(
                    "{} speaks {:?}",
                    stream.state.name,
                    stream.subprotocol()
                )))
            })
        });
        let offering = |token: &str| {
            request(address, "/")
                .with_sub_protocol("chat.v1")
                .with_sub_protocol(token)
        };
        let (client, response) = tungstenite::client(offering("token.4711"), tcp(address))
            .expect("the handshake is accepted");
        let chosen: Vec<_> = response
            .headers()
            .get_all("Sec-WebSocket-Protocol")
            .iter()
            .collect();
        assert_eq!(chosen, ["chat.v1"], "{way:?}");
        assert_eq!(
            Client(client).receive_text(),
            "Ada speaks Some(\"chat.v1\")"
        );
        assert_eq!(rejected(offering("token.0"), address), 401, "{way:?}");
    }
}

/// A stream that has not identified itself yet.
#[derive(Default)]
struct Guest {
    name: OnceLock<String>,
}

type Arrival = (Instant, AsyncStream<Guest>);

/// Closes streams that do not identify themselves in time. All have the same timeout, so a queue suffices.
fn doorman(patience: Duration) -> Sender<Arrival> {
    let (sender, line) = channel::<Arrival>();
    thread::spawn(move || {
        for (since, stream) in line {
            thread::sleep((since + patience).saturating_duration_since(Instant::now()));
            if stream.state.name.get().is_none() {
                stream.close(CloseCode::POLICY_VIOLATION, "log in first");
            }
        }
    });
    sender
}

fn with_first_message(way: Way, door: Sender<Arrival>) -> (RunningApp, SocketAddr) {
    let door = Mutex::new(door);
    start_by(way, users(), |app| {
        app.with_connect_handler(move |stream, _| {
            let _ = door.lock().unwrap().send((Instant::now(), stream));
        })
        .with_message_handler(|stream: AsyncStream<Guest>, message, users| {
            if let Some(name) = stream.state.name.get() {
                let text = message.text().unwrap_or("?");
                let said = Message::new(format!("{name}: {text}"));
                return stream.room("members").broadcast(said);
            }
            match message.text().and_then(|token| users.get(token)) {
                Some(name) => {
                    let _ = stream.state.name.set((*name).to_owned());
                    stream.join("members");
                }
                None => stream.close(CloseCode::POLICY_VIOLATION, "no such token"),
            }
        })
    })
}

#[test]
fn first_message_identifies_the_client() {
    for way in WAYS {
        let (_running, address) = with_first_message(way, doorman(DEADLINE));
        let mut stranger = Client::connect(address);
        let mut ada = Client::connect(address);
        ada.send("4711");
        ada.send("hi");
        assert_eq!(ada.receive_text(), "Ada: hi", "{way:?}");
        stranger.send("hi");
        let (heard, frame) = stranger.receive_to_close();
        assert_eq!(heard, [""; 0], "an unidentified client got a message");
        let frame = frame.unwrap();
        assert_eq!(
            (frame.code, frame.reason.as_str()),
            (Code::Policy, "no such token")
        );
    }
}

#[test]
fn unidentified_client_is_closed_after_the_deadline() {
    for way in WAYS {
        let (_running, address) = with_first_message(way, doorman(Duration::from_millis(100)));
        let mut silent = Client::connect(address);
        let (_, frame) = silent.receive_to_close();
        let frame = frame.unwrap();
        assert_eq!(
            (frame.code, frame.reason.as_str()),
            (Code::Policy, "log in first")
        );
    }
}

#[test]
fn client_identified_before_the_deadline_stays() {
    let (door, arrivals) = channel();
    let doorman = doorman(Duration::ZERO);
    let (_running, address) = with_first_message(Way::Own, door);
    let mut ada = Client::connect(address);
    ada.send("4711");
    ada.send("hi");
    assert_eq!(ada.receive_text(), "Ada: hi");
    let mut silent = Client::connect(address);
    // Both timeouts expire, one after the other.
    for arrival in arrivals.iter().take(2) {
        doorman.send(arrival).unwrap();
    }
    let (_, frame) = silent.receive_to_close();
    assert_eq!(frame.unwrap().code, Code::Policy);
    ada.send("still here");
    assert_eq!(ada.receive_text(), "Ada: still here");
}

/// Starts an app whose clients send their user and the milliseconds until their expiry in the query. A message sets a new
/// expiry.
fn with_sessions(way: Way) -> (RunningApp, SocketAddr) {
    let in_ms = |ms: &str| SystemTime::now() + Duration::from_millis(ms.parse().unwrap());
    start_by(way, (), |app: AsyncWebsocketApp<()>| {
        app.with_limits(Limits::default().user_connections_max(Some(2)))
            .with_handshake_handler(move |request, _| {
                let mut accept = Accept::new();
                if let Some(user) = request.query_param("user") {
                    accept = accept.user(user);
                }
                if let Some(ms) = request.query_param("ms") {
                    accept = accept.expires_at(in_ms(&ms));
                }
                Ok(accept)
            })
            .with_message_handler(move |stream, message, _| {
                match message.text() {
                    Some("never") => stream.set_expires_at(None),
                    Some(ms) => stream.set_expires_at(in_ms(ms)),
                    None => {}
                }
                stream.send(Message::new(stream.user().unwrap_or("nobody")));
            })
    })
}

#[track_caller]
fn assert_closed(client: &mut Client, code: u16, reason: &str) {
    let (_, frame) = client.receive_to_close();
    let frame = frame.unwrap();
    assert_eq!(
        (u16::from(frame.code), frame.reason.as_str()),
        (code, reason)
    );
}

#[test]
fn connections_of_a_user_are_bounded_listed_and_closed() {
    for way in WAYS {
        let (running, address) = with_sessions(way);
        let sender = running.sender();
        let come = |target: &str| connect(request(address, target), address);
        let (mut first, mut second) = (come("/?user=ada"), come("/?user=ada"));
        let (mut grace, mut nobody) = (come("/?user=grace"), come("/"));
        assert_eq!(rejected(request(address, "/?user=ada"), address), 429);
        assert_eq!(sender.metrics().refused.user_connections_max, 1);
        first.send("never");
        assert_eq!(first.receive_text(), "ada");
        eventually("both connections are open", || {
            sender.connections_of("ada").len() == 2
        });
        assert_eq!(sender.connections_of("nobody"), []);
        for id in sender.connections_of("ada") {
            sender.send_to(id, Message::new("mail"));
        }
        let closed = sender.close_user("ada", CloseCode::POLICY_VIOLATION, "signed out");
        assert_eq!(closed, 2);
        for client in [&mut first, &mut second] {
            assert_eq!(client.receive_text(), "mail");
            assert_closed(client, 1008, "signed out");
        }
        eventually("both connections have ended", || {
            sender.connections_of("ada").is_empty()
        });
        for (client, user) in [(&mut grace, "grace"), (&mut nobody, "nobody")] {
            client.send("never");
            assert_eq!(client.receive_text(), user);
        }
        come("/?user=ada");
    }
}

#[test]
fn event_stream_of_a_user_is_bounded_and_closed() {
    let app = AsyncWebsocketApp::<()>::new()
        .with_limits(Limits::default().user_connections_max(Some(2)))
        .with_handshake_handler(|_, _| Ok(Accept::new().user("ada")))
        .with_event_stream("/events", |_, _| Ok(Subscription::broadcasts().user("ada")));
    let (running, address) = start(app);
    let sender = running.sender();
    let _ada = connect(request(address, "/"), address);
    let ask = || {
        let mut socket = tcp(address);
        let request = "GET /events HTTP/1.1\r\nHost: x\r\n\r\n";
        socket.write_all(request.as_bytes()).unwrap();
        let head = read_head(&mut socket);
        (socket, head)
    };
    let (mut stream, head) = ask();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let (_, head) = ask();
    assert!(head.starts_with("HTTP/1.1 429 "), "{head}");
    assert_eq!(sender.connections_of("ada").len(), 1);
    assert_eq!(sender.close_user("ada", CloseCode::NORMAL, ""), 2);
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
}

#[test]
fn connection_is_closed_with_3000_after_its_expiry() {
    for way in WAYS {
        let (running, address) = with_sessions(way);
        let since = Instant::now();
        let mut client = connect(request(address, "/?ms=300"), address);
        assert_closed(&mut client, 3000, "session expired");
        assert!(since.elapsed() >= Duration::from_millis(300));
        let mut late = connect(request(address, "/?ms=0"), address);
        assert_closed(&mut late, 3000, "session expired");
        assert_eq!(running.sender().metrics().expired, 2);
    }
}

#[test]
fn refreshed_connection_stays_until_the_new_time() {
    // In parallel, because each waits for an expiry that leaves a busy machine time for the refresh.
    thread::scope(|scope| {
        for way in WAYS {
            scope.spawn(move || refresh_expiries(way));
        }
    });
}

fn refresh_expiries(way: Way) {
    let (running, address) = with_sessions(way);
    let sender = running.sender();
    let mut shortened = connect(request(address, "/?user=ada&ms=3600000"), address);
    let mut extended = connect(request(address, "/?user=grace&ms=5000"), address);
    extended.send("3600000");
    assert_eq!(extended.receive_text(), "grace");
    // This connection begins later with a longer time, so its end shows that the first expiry of `extended` has passed.
    let mut witness = connect(request(address, "/?ms=5500"), address);
    assert_closed(&mut witness, 3000, "session expired");
    extended.send("never");
    assert_eq!(extended.receive_text(), "grace");
    shortened.send("never");
    assert_eq!(shortened.receive_text(), "ada");
    for id in sender.connections_of("ada") {
        sender.set_expires_at(id, SystemTime::now());
    }
    assert_closed(&mut shortened, 3000, "session expired");
    assert_eq!(sender.metrics().expired, 2);
}

/// The endpoint that a stream was opened for.
#[derive(Debug, Default)]
enum Endpoint {
    #[default]
    Echo,
    Shout {
        twice: bool,
    },
}

#[test]
fn path_has_its_own_handlers_and_others_get_404() {
    for way in WAYS {
        let (_running, address) = start_by(way, (), |app| {
            app.with_handshake_handler(|request, _| {
                let endpoint = match request.path() {
                    "/echo" => Endpoint::Echo,
                    "/shout" => Endpoint::Shout {
                        twice: request.query_param("twice").is_some(),
                    },
                    _ => return Err(Reject::new(404)),
                };
                Ok(Accept::new().with_state(endpoint))
            })
            .with_message_handler(|stream: AsyncStream<Endpoint>, message, _| {
                let text = message.text().unwrap_or_default();
                match &*stream.state {
                    Endpoint::Echo => stream.send(message),
                    Endpoint::Shout { twice } => {
                        for _ in 0..=usize::from(*twice) {
                            stream.send(Message::new(text.to_uppercase()));
                        }
                    }
                }
            })
        });
        let mut echo = Client::connect_to(address, "/echo");
        let mut shout = Client::connect_to(address, "/shout?twice");
        echo.send("a");
        shout.send("a");
        assert_eq!(echo.receive_text(), "a");
        assert_eq!([shout.receive_text(), shout.receive_text()], ["A", "A"]);
        assert_eq!(
            rejected(request(address, "/other"), address),
            404,
            "{way:?}"
        );
    }
}

// ---------------------------------------------------------------------------------------------------------- promises

#[test]
fn rejected_client_gets_status_headers_and_body() {
    for way in WAYS {
        let (running, address) = start_by(way, (), |app: AsyncWebsocketApp<(), ()>| {
            app.with_handshake_handler(|_, _| {
                Err(Reject::new(401)
                    .with_header("WWW-Authenticate", "Bearer realm=\"chat\"")
                    .with_header("Content-Type", "application/json")
                    .with_body("{\"error\":\"no token\"}"))
            })
            .with_connect_handler(|_, _| panic!("no handshake was accepted"))
        });
        let (head, body) = answer(address, "/");
        assert!(head.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{head}");
        assert!(
            head.contains("\r\nWWW-Authenticate: Bearer realm=\"chat\"\r\n"),
            "{head}"
        );
        assert!(
            head.contains("\r\nContent-Type: application/json\r\n"),
            "{head}"
        );
        assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
        assert_eq!(body, "{\"error\":\"no token\"}", "{way:?}");
        let metrics = running.sender().metrics();
        assert_eq!(metrics.refused.handshake_handler, 1);
        assert_eq!(metrics.connections_opened, 0);
        let text = running.sender().prometheus();
        assert!(text.contains("cause=\"handshake_handler\"} 1\n"), "{text}");
    }
}

#[test]
fn accepted_handshake_sends_the_handlers_headers() {
    for way in WAYS {
        let (_running, address) = start_by(way, (), |app: AsyncWebsocketApp<(), ()>| {
            app.with_handshake_handler(|_, _| {
                Ok(Accept::new()
                    .with_header("Set-Cookie", "seen=1; HttpOnly")
                    .with_header("Set-Cookie", "theme=dark"))
            })
        });
        let (_, response) = tungstenite::client(format!("ws://{address}/"), tcp(address))
            .expect("the handshake is accepted");
        let cookies: Vec<_> = response.headers().get_all("Set-Cookie").iter().collect();
        assert_eq!(cookies, ["seen=1; HttpOnly", "theme=dark"], "{way:?}");
    }
}

#[test]
fn panic_or_unsendable_response_is_answered_with_500() {
    for way in WAYS {
        let (running, address) = start_by(way, (), |app: AsyncWebsocketApp<(), ()>| {
            app.with_handshake_handler(|request, _| match request.path() {
                "/panic" => panic!("a handler's panic"),
                "/unoffered" => Ok(Accept::new().with_subprotocol("chat")),
                "/split" => Ok(Accept::new().with_header("X", "a\r\nSet-Cookie: b=c")),
                "/own" => Ok(Accept::new().with_header("Sec-WebSocket-Accept", "x")),
                "/switching" => Err(Reject::new(101)),
                "/split-rejection" => Err(Reject::new(302).with_header("Location", "/\r\nX: y")),
                _ => Ok(Accept::new()),
            })
            .with_message_handler(|stream, message, _| stream.send(message))
        });
        let paths = [
            "/panic",
            "/unoffered",
            "/split",
            "/own",
            "/switching",
            "/split-rejection",
        ];
        for path in paths {
            let (head, body) = answer(address, path);
            assert!(head.starts_with("HTTP/1.1 500 "), "{way:?} {path}: {head}");
            assert!(
                !head.contains("Set-Cookie") && !head.contains("X: y"),
                "{head}"
            );
            assert_eq!(body, "internal server error\n");
        }
        let metrics = running.sender().metrics();
        assert_eq!(metrics.refused.handshake_handler, paths.len() as u64);
        assert_eq!(metrics.handler_panics, 1);
        // Other clients are still served.
        let mut client = Client::connect(address);
        client.send("a");
        assert_eq!(client.receive_text(), "a");
    }
}

#[test]
fn stream_without_handshake_state_has_the_default() {
    let app: AsyncWebsocketApp<(), User> = AsyncWebsocketApp::new()
        .with_handshake_handler(|_, _| Ok(Accept::new()))
        .with_connect_handler(|stream: AsyncStream<User>, _| {
            stream.send(Message::new(format!("[{}]", stream.state.name)))
        });
    let (_running, address) = start(app);
    assert_eq!(Client::connect(address).receive_text(), "[]");
}

#[test]
fn blocked_handshake_handler_delays_its_client_only() {
    let together = Arc::new(Barrier::new(2));
    let waits = together.clone();
    let (_running, address) = start_by(Way::Own, (), |app: AsyncWebsocketApp<(), ()>| {
        app.with_handshake_handler(move |request, _| {
            if request.path() == "/wait" {
                waits.wait();
            }
            Ok(Accept::new())
        })
        .with_message_handler(|stream, message, _| stream.send(message))
    });
    let blocked = thread::spawn(move || Client::connect_to(address, "/wait"));
    let mut quick = Client::connect(address);
    quick.send("a");
    assert_eq!(quick.receive_text(), "a");
    together.wait();
    let mut blocked = blocked.join().unwrap();
    blocked.send("b");
    assert_eq!(blocked.receive_text(), "b");
}

#[test]
fn frames_sent_during_the_handshake_are_received_later() {
    let (asked, was_asked) = channel();
    let (go, may_go) = channel();
    let (asked, may_go) = (Mutex::new(asked), Mutex::new(may_go));
    let (_running, address) = start_by(Way::Own, (), |app: AsyncWebsocketApp<(), ()>| {
        app.with_handshake_handler(move |_, _| {
            asked.lock().unwrap().send(()).unwrap();
            may_go.lock().unwrap().recv_timeout(DEADLINE).unwrap();
            Ok(Accept::new())
        })
        .with_message_handler(|stream, message, _| stream.send(message))
    });
    let mut socket = tcp(address);
    let early = [
        support::upgrade_request("/").as_bytes(),
        &support::client_frame(0x81, b"early"),
    ]
    .concat();
    socket.write_all(&early).unwrap();
    was_asked.recv_timeout(DEADLINE).unwrap();
    socket
        .write_all(&support::client_frame(0x81, b"later"))
        .unwrap();
    go.send(()).unwrap();
    assert!(read_head(&mut socket).starts_with("HTTP/1.1 101 "));
    for expected in ["early", "later"] {
        let (first, payload) = read_frame(&mut socket).unwrap();
        assert_eq!((first, payload.as_slice()), (0x81, expected.as_bytes()));
    }
}

#[test]
fn shutdown_during_a_handshake_answers_the_client() {
    for way in WAYS {
        let (asked, was_asked) = channel();
        let (go, may_go) = channel::<()>();
        let (asked, may_go) = (Mutex::new(asked), Mutex::new(may_go));
        let (running, address) = start_by(way, (), |app: AsyncWebsocketApp<(), ()>| {
            app.with_handshake_handler(move |_, _| {
                asked.lock().unwrap().send(()).unwrap();
                let _ = may_go.lock().unwrap().recv_timeout(DEADLINE);
                Ok(Accept::new())
            })
            .with_connect_handler(|_, _| panic!("no handshake was accepted"))
        });
        let client = thread::spawn(move || answer(address, "/"));
        was_asked.recv_timeout(DEADLINE).unwrap();
        running.sender().shutdown(DEADLINE);
        let (head, body) = client.join().unwrap();
        assert!(head.starts_with("HTTP/1.1 503 "), "{way:?}: {head}");
        assert_eq!(body, "the server is shutting down\n");
        drop(go);
        running.join();
    }
}

#[test]
fn state_of_a_client_gone_during_handshake_is_dropped() {
    /// Counts its live instances.
    #[derive(Default)]
    struct Counted(Option<Arc<()>>);

    let count = Arc::new(());
    let kept = count.clone();
    let (asked, was_asked) = channel();
    let (go, may_go) = channel::<()>();
    let (asked, may_go) = (Mutex::new(asked), Mutex::new(may_go));
    let (running, address) = start_by(Way::Own, (), |app: AsyncWebsocketApp<(), Counted>| {
        app.with_handshake_handler(move |_, _| {
            asked.lock().unwrap().send(()).unwrap();
            may_go.lock().unwrap().recv_timeout(DEADLINE).unwrap();
            Ok(Accept::new().with_state(Counted(Some(kept.clone()))))
        })
        .with_message_handler(|stream, message, _| {
            assert!(stream.state.0.is_some());
            stream.send(message);
        })
    });
    let before = Arc::strong_count(&count);
    let mut socket = tcp(address);
    socket
        .write_all(support::upgrade_request("/").as_bytes())
        .unwrap();
    was_asked.recv_timeout(DEADLINE).unwrap();
    drop(socket);
    go.send(()).unwrap();
    let sender = running.sender();
    eventually("the client has connected and left", || {
        let metrics = sender.metrics();
        metrics.connections_opened == 1 && metrics.connections == 0
    });
    eventually("the state is dropped", || {
        Arc::strong_count(&count) == before
    });
}

#[test]
fn handshake_handler_is_not_called_for_refused_clients() {
    for way in WAYS {
        let (running, address) = start_by(way, (), |app: AsyncWebsocketApp<(), ()>| {
            app.with_allowed_origins(Origins::Same)
                .with_handshake_handler(|_, _| panic!("the handshake handler was called"))
        });
        let foreign = request(address, "/").with_header("Origin", "http://evil.example");
        assert_eq!(rejected(foreign, address), 403, "{way:?}");
        let metrics = running.sender().metrics();
        assert_eq!((metrics.refused.origin, metrics.handler_panics), (1, 0));
    }
}

#[test]
fn routes_do_not_call_the_handshake_handler() {
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
        .with_handshake_handler(|_, _| Err(Reject::new(403)))
        .with_routes(
            humphrey::SubApp::new()
                .with_stateless_route("/", |_| Response::new(StatusCode::OK, "for all")),
        );
    let (_running, address) = start(app);
    let mut socket = tcp(address);
    let get = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    socket.write_all(get.as_bytes()).unwrap();
    assert!(read_head(&mut socket).starts_with("HTTP/1.1 200 "));
    assert_eq!(rejected(request(address, "/"), address), 403);
}

#[test]
fn stream_accepted_outside_the_app_is_closed_with_1008() {
    let app: AsyncWebsocketApp<()> =
        AsyncWebsocketApp::new_unlinked().with_handshake_handler(|request, _| {
            match request.header("X-Token") {
                Some("4711") => Ok(Accept::new()),
                _ => Err(Reject::new(403).with_body("nobody knows you\n")),
            }
        });
    let app = app.with_message_handler(|stream, message, _| stream.send(message));
    let hook = app.connect_hook().unwrap();
    let running = app.start().unwrap();

    // A hook that the program made: the route answers its handshakes, and the request is known.
    let (own, handed_over) = channel();
    let address = serve_route(async_websocket_handler(Arc::new(Mutex::new(own))));
    let forward = hook.clone();
    thread::spawn(move || {
        for stream in handed_over {
            forward.lock().unwrap().send(stream).unwrap();
        }
    });
    let mut known = connect(
        request(address, "/").with_header("X-Token", "4711"),
        address,
    );
    known.send("a");
    assert_eq!(known.receive_text(), "a");
    let mut stranger = connect(request(address, "/"), address);
    let (_, frame) = stranger.receive_to_close();
    let frame = frame.unwrap();
    assert_eq!(
        (frame.code, frame.reason.as_str()),
        (Code::Policy, "nobody knows you")
    );

    // A stream that the program made, whose request is unknown.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = tcp(listener.local_addr().unwrap());
    let stream = Stream::Tcp(listener.accept().unwrap().0);
    hook.lock()
        .unwrap()
        .send(WebsocketStream::new(stream))
        .unwrap();
    let (first, payload) = read_frame(&mut client).unwrap();
    assert_eq!((first, close_code(&payload)), (0x88, 1008));
    assert_eq!(running.sender().metrics().refused.handshake_handler, 2);
}

#[test]
fn request_is_readable_for_its_documented_time() {
    for way in WAYS {
        let (told, tells) = channel();
        let told = Mutex::new(told);
        let kept = Arc::new(Mutex::new(None));
        let keeps = kept.clone();
        let (_running, address) = start_by(way, (), |app: AsyncWebsocketApp<(), ()>| {
            app.with_connect_handler(move |stream, _| {
                let request = stream.request().expect("it is there");
                let agent = request.header("X-Agent").unwrap().to_owned();
                told.lock().unwrap().send(agent).unwrap();
                *keeps.lock().unwrap() = Some(stream);
            })
            .with_message_handler(|stream, _, _| {
                assert!(stream.request().is_none());
                stream.send(Message::new(format!(
                    "{} {}",
                    stream.path(),
                    stream.query()
                )));
            })
        });
        let with_agent = request(address, "/a?b=c&d?e").with_header("X-Agent", "test");
        let mut client = connect(with_agent, address);
        assert_eq!(tells.recv_timeout(DEADLINE).unwrap(), "test");
        client.send("?");
        assert_eq!(client.receive_text(), "/a b=c&d?e", "{way:?}");
        let stream = kept.lock().unwrap().take().unwrap();
        assert!(stream.request().is_none(), "{way:?}: it is let go");
        assert_eq!(stream.query(), "b=c&d?e");
        assert_eq!(stream.subprotocol(), None);
    }
}
