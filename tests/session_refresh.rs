//! Sessions that clients prolong with `$refresh`.

use crate::frames::{Frames, OLD, STOP, V1, connect_at, request, response};
use crate::support::{Client, start};

use std::time::{Duration, SystemTime};

use humphrey_ws::procedures::CallError;
use humphrey_ws::{Accept, AsyncWebsocketApp, Procedures};

fn in_seconds(seconds: f64) -> SystemTime {
    SystemTime::now() + Duration::from_secs_f64(seconds)
}

/// Its sessions expire after the time in the path, if there is one. A token is by how many seconds to prolong it.
fn app() -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new()
        .with_procedures(Procedures::new().on_call("never", |call| {
            call.stream().set_expires_at(None);
            Ok("")
        }))
        .with_handshake_handler(|request, _| {
            Ok(match request.query_param("seconds") {
                Some(seconds) => Accept::new().expires_at(in_seconds(seconds.parse().unwrap())),
                None => Accept::new(),
            })
        })
}

fn prolonging() -> AsyncWebsocketApp<()> {
    app().with_refresh_handler(|stream, token| {
        assert_eq!(stream.path(), "/");
        let seconds = token.parse().map_err(|_| CallError::refused("no number"))?;
        Ok(in_seconds(seconds))
    })
}

/// Receives in how many seconds the session expires.
fn receive_expiry(client: &mut Client) -> f64 {
    let frame = client.receive_frame();
    let seconds = frame
        .strip_prefix(b"\x01\x08$expires")
        .expect("the notification");
    std::str::from_utf8(seconds).unwrap().parse().unwrap()
}

#[test]
fn client_is_told_its_expiry_and_prolongs_it() {
    let (running, address) = start(prolonging());
    let mut client = connect_at(address, "/?seconds=100", V1);
    let seconds = receive_expiry(&mut client);
    assert!((50.0..=101.0).contains(&seconds), "{seconds}");
    client.send_binary(request(1, "$refresh", b"5000"));
    let seconds = receive_expiry(&mut client);
    assert!((4_900.0..=5_001.0).contains(&seconds), "{seconds}");
    assert_eq!(client.receive_frame(), response(1, b""));
    for (id, token) in [(2, &b"nonsense"[..]), (3, b"\xFF")] {
        client.send_binary(request(id, "$refresh", token));
        let code = if id == 2 { 6 } else { 2 };
        client.receive_error(id, code);
    }
    // It stays valid: a token that is refused changes nothing.
    client.send_binary(request(4, "$ping", b"!"));
    assert_eq!(client.receive_frame(), response(4, b"!"));
    // The program makes it permanent, which a client that comes too late does not change.
    client.send_binary(request(5, "never", b""));
    assert_eq!(client.receive_frame(), b"\x01\x08$expires");
    assert_eq!(client.receive_frame(), response(5, b""));
    client.send_binary(request(6, "$refresh", b"0"));
    assert_eq!(client.receive_frame(), response(6, b""));
    client.send_binary(request(7, "$ping", b"!"));
    assert_eq!(client.receive_frame(), response(7, b"!"));
    running.shutdown(STOP);
}

#[test]
fn prolonged_session_outlives_its_first_expiry() {
    let (running, address) = start(prolonging());
    let [mut prolonged, other] = [0, 1].map(|_| {
        let mut client = connect_at(address, "/?seconds=2", V1);
        receive_expiry(&mut client);
        client
    });
    prolonged.send_binary(request(1, "$refresh", b"5000"));
    receive_expiry(&mut prolonged);
    assert_eq!(prolonged.receive_frame(), response(1, b""));
    // It has come later, so the first expiry of the other has passed as well.
    assert_eq!(other.receive_close().0, 3000);
    prolonged.send_binary(request(2, "$ping", b"!"));
    assert_eq!(prolonged.receive_frame(), response(2, b"!"));
    running.shutdown(STOP);
}

#[test]
fn others_are_told_nothing_and_without_a_handler_nothing_is_prolonged() {
    let (running, address) = start(prolonging());
    let mut old = connect_at(address, "/?seconds=100", OLD);
    old.send_binary(request(1, "never", b""));
    assert_eq!(
        old.receive_frame(),
        response(1, b""),
        "it knows no such notification"
    );
    let mut endless = connect_at(address, "/", V1);
    endless.send_binary(request(1, "$ping", b""));
    assert_eq!(
        endless.receive_frame(),
        response(1, b""),
        "it does not expire"
    );
    running.shutdown(STOP);
    let (running, address) = start(app());
    let mut client = connect_at(address, "/?seconds=100", V1);
    client.send_binary(request(1, "$refresh", b"5000"));
    assert!(client.receive_error(1, 6).contains("prolongs no sessions"));
    running.shutdown(STOP);
}
