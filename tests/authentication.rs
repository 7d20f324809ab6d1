//! The recipes of docs/authentication.md: tokens, cookies, users, expiring sessions, and paths with their own handlers.

use crate::{handshakes, support};

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use handshakes::{WAYS, Way, connect, rejected, request, start_by};
use humphrey_ws::{
    Accept, AsyncStream, AsyncWebsocketApp, CloseCode, Limits, Message, Origins, Reject,
    RunningApp, Subscription,
};
use support::{Client, DEADLINE, eventually, read_head, start, tcp};
use tungstenite::protocol::frame::coding::CloseCode as Code;

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
fn login_timer(timeout: Duration) -> Sender<Arrival> {
    let (sender, arrivals) = channel::<Arrival>();
    thread::spawn(move || {
        for (since, stream) in arrivals {
            // Part of the recipe, not of the test: this sleep is the timeout of the login.
            thread::sleep((since + timeout).saturating_duration_since(Instant::now()));
            if stream.state.name.get().is_none() {
                stream.close(CloseCode::POLICY_VIOLATION, "log in first");
            }
        }
    });
    sender
}

fn with_first_message(way: Way, arrivals: Sender<Arrival>) -> (RunningApp, SocketAddr) {
    let arrivals = Mutex::new(arrivals);
    start_by(way, users(), |app| {
        app.with_connect_handler(move |stream, _| {
            let _ = arrivals.lock().unwrap().send((Instant::now(), stream));
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
        let (_running, address) = with_first_message(way, login_timer(DEADLINE));
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
        let (_running, address) = with_first_message(way, login_timer(Duration::from_millis(100)));
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
    let (sender, arrivals) = channel();
    let login_timer = login_timer(Duration::ZERO);
    let (_running, address) = with_first_message(Way::Own, sender);
    let mut ada = Client::connect(address);
    ada.send("4711");
    ada.send("hi");
    assert_eq!(ada.receive_text(), "Ada: hi");
    let mut silent = Client::connect(address);
    // Both timeouts expire, one after the other.
    for arrival in arrivals.iter().take(2) {
        login_timer.send(arrival).unwrap();
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
        let open = |target: &str| connect(request(address, target), address);
        let (mut first, mut second) = (open("/?user=ada"), open("/?user=ada"));
        let (mut grace, mut nobody) = (open("/?user=grace"), open("/"));
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
        open("/?user=ada");
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
