//! Procedures in both subprotocols: notifications in both directions, replies and cancellation.

use crate::frames;
use crate::support;

use std::io::Write;
use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;

use frames::{
    Frames, OLD, STOP, V1, app, calls, connect, connect_offering, item, notification, request,
    reset, response,
};
use humphrey_ws::procedures::{CallError, CallErrorReason, Procedures, Reply};
use humphrey_ws::{Accept, AsyncWebsocketApp, Limits, Message, async_websocket_handler};
use support::{
    Client, DEADLINE, client_frame, either_way, eventually, free_address, read_frame, read_head,
    start, tcp, upgrade_request,
};

/// Returns a request that offers the newer subprotocol.
fn offering(request: &str) -> String {
    let offer = format!("\r\nSec-WebSocket-Protocol: {V1}\r\n\r\n");
    request.replace("\r\n\r\n", &offer)
}

/// Asserts that frames are ordinary messages, which the message handler echoes.
fn assert_echoes_frames(socket: &mut TcpStream) {
    let frame = client_frame(0x82, &request(1, "echo", b"!"));
    socket.write_all(&frame).unwrap();
    let (_, echo) = read_frame(socket).unwrap();
    assert_eq!(echo, request(1, "echo", b"!"));
}

#[test]
fn documentation_example_works_in_both_subprotocols() {
    let app = AsyncWebsocketApp::<()>::new().with_procedures(
        Procedures::new()
            .on_notification("broadcast", |event| {
                event.stream().room("main").notify("message", event.data())
            })
            .on_call("myip", |call| Ok(call.stream().peer_addr().to_string()))
            .on_call("uppercase", |call| Ok(call.text()?.to_uppercase()))
            .on_call("report", |call| {
                while !call.cancelled() { /* work */ }
                Err(call.abort_error())
            }),
    );
    let (running, address) = start(app.with_connect_handler(|stream, _| stream.join("main")));
    for subprotocol in [V1, OLD] {
        let mut client = connect(address, subprotocol);
        client.send_binary(request(1, "myip", b""));
        let own = client.address().to_string();
        assert_eq!(client.receive_frame(), response(1, own.as_bytes()));
        client.send_binary(request(2, "uppercase", "grüezi".as_bytes()));
        assert_eq!(client.receive_frame(), response(2, "GRÜEZI".as_bytes()));
        client.send_binary(notification("broadcast", b"\x00hi"));
        assert_eq!(client.receive_frame(), notification("message", b"\x00hi"));
        client.send_binary(request(3, "report", b""));
        client.send_binary(reset(3));
        if subprotocol == V1 {
            client.receive_error(3, 3);
        }
        client.send_binary(request(3, "uppercase", b"again"));
        assert_eq!(client.receive_frame(), response(3, b"AGAIN"));
        client.close();
    }
    running.shutdown(STOP);
}

#[test]
fn newest_offered_subprotocol_is_chosen() {
    let (running, address) = start(app(Procedures::new()));
    let chosen = |offered: &str| connect_offering(address, offered).1;
    assert_eq!(chosen(V1).as_deref(), Some(V1));
    assert_eq!(chosen(&format!("{OLD}, {V1}")).as_deref(), Some(V1));
    assert_eq!(chosen(&format!("other, {OLD}")).as_deref(), Some(OLD));
    running.shutdown(STOP);
}

#[test]
fn subprotocol_chosen_by_the_handshake_handler_is_used() {
    let app = app(Procedures::new().on_call("echo", |call| Ok(call.data().clone())))
        .with_handshake_handler(|request, _| {
            Ok(match request.path() {
                "/" if request.subprotocols().any(|offered| offered == "mine") => {
                    Accept::new().with_subprotocol("mine")
                }
                "/" if request.subprotocols().any(|offered| offered == OLD) => {
                    Accept::new().with_subprotocol(OLD)
                }
                "/none" => Accept::new().without_subprotocol(),
                _ => Accept::new(),
            })
        })
        .with_message_handler(|stream, message, _| stream.send(message));
    let (running, address) = start(app);
    let (mut client, chosen) = connect_offering(address, &format!("mine, {V1}"));
    assert_eq!(chosen.as_deref(), Some("mine"));
    // The frame is an ordinary message.
    client.send_binary(request(1, "echo", b""));
    assert_eq!(client.receive_frame(), request(1, "echo", b""));
    // The selected subprotocol is one of the two, so procedures are enabled.
    let (mut client, chosen) = connect_offering(address, &format!("{V1}, {OLD}"));
    assert_eq!(chosen.as_deref(), Some(OLD));
    client.send_binary(request(1, "echo", b"!"));
    assert_eq!(client.receive_frame(), response(1, b"!"));
    // The handler selects nothing.
    let (_, chosen) = connect_offering(address, V1);
    assert_eq!(chosen.as_deref(), Some(V1));
    // The handler selects no subprotocol.
    let mut socket = tcp(address);
    let asks = offering(&upgrade_request("/none"));
    socket.write_all(asks.as_bytes()).unwrap();
    assert!(!read_head(&mut socket).contains(V1));
    assert_echoes_frames(&mut socket);
    running.shutdown(STOP);
}

#[test]
fn plain_clients_and_texts_reach_the_message_handler() {
    let app = app(Procedures::new().on_call("echo", |call| Ok(call.data().clone())))
        .with_message_handler(|stream, message, _| stream.send(message));
    let (running, address) = start(app);
    let mut plain = Client::connect(address);
    plain.send_binary(request(1, "echo", b""));
    assert_eq!(plain.receive_frame(), request(1, "echo", b""));
    for subprotocol in [V1, OLD] {
        let mut client = connect(address, subprotocol);
        client.send("plain text");
        assert_eq!(client.receive_text(), "plain text");
        client.send_binary(request(1, "echo", b"!"));
        assert_eq!(client.receive_frame(), response(1, b"!"));
    }
    running.shutdown(STOP);
}

#[test]
fn unknown_procedure_is_counted_and_answered() {
    let (running, address) = start(app(
        Procedures::new().on_call("echo", |call| Ok(call.data().clone()))
    ));
    let mut client = connect(address, V1);
    client.send_binary(request(1, "nobody", b""));
    client.receive_error(1, 1);
    client.send_binary(request(2, "$nobody", b""));
    client.receive_error(2, 1);
    client.send_binary(notification("nobody", b""));
    let mut old = connect(address, OLD);
    for name in ["nobody", "$ping", "$join"] {
        old.send_binary(request(1, name, b""));
        // A notification has no reply, so its id is free.
        old.send_binary(request(2, "echo", b""));
        assert_eq!(old.receive_frame(), response(2, b""));
    }
    old.send_binary(notification("nobody", b""));
    eventually("both notifications are counted", || {
        calls(&running).notifications_unknown == 2
    });
    assert_eq!(calls(&running).unknown, 5);
    assert_eq!(calls(&running).unanswered, 0);
    running.shutdown(STOP);
}

#[test]
fn errors_have_code_and_text_and_are_counted() {
    let procedures = || {
        Procedures::new()
            .on_call("text", |_| Err::<(), _>("it rains".into()))
            .on_call("refused", |_| Err::<(), _>(CallError::refused("not you")))
            .on_call("other", |_| {
                Err::<(), _>(CallError::new(CallErrorReason::Other(200), "mine"))
            })
            .on_call("utf8", |call| Ok(call.text()?.to_owned()))
            .on_call("silent", |_| ())
            .on_call("dropped", |call| drop(call.defer()))
            .on_call("late", |call| {
                let reply = call.defer();
                thread::spawn(move || reply.error("too late"));
            })
    };
    let (running, address) = start(app(procedures()));
    let mut client = connect(address, V1);
    let mut id = 0;
    let mut expect = |name: &str, code, text: &str| {
        id += 1;
        client.send_binary(request(id, name, b"\xff"));
        assert_eq!(client.receive_error(id, code), text, "{name}");
    };
    expect("text", 2, "it rains");
    expect("refused", 6, "not you");
    expect("other", 200, "mine");
    expect("utf8", 2, "the payload is not UTF-8");
    expect("late", 2, "too late");
    expect(
        "silent",
        4,
        "the procedure ended without answering the call",
    );
    expect(
        "dropped",
        4,
        "the procedure ended without answering the call",
    );
    assert_eq!(calls(&running).unanswered, 2);
    let mut old = connect(address, OLD);
    for (id, name) in ["text", "silent", "dropped", "late"]
        .into_iter()
        .enumerate()
    {
        old.send_binary(request(id as u32, name, b""));
    }
    eventually("all calls are counted", || calls(&running).unanswered == 6);
    old.send_binary(request(9, "utf8", b"still there"));
    assert_eq!(old.receive_frame(), response(9, b"still there"));
    running.shutdown(STOP);
}

#[test]
fn deferred_call_is_answered_while_others_are_handled() {
    let (replies, waiting) = mpsc::channel::<Reply>();
    let procedures = Procedures::new()
        .on_call("later", move |call| replies.send(call.defer()).unwrap())
        .on_call("now", |_| Ok("now"));
    let (running, address) = start(app(procedures));
    for subprotocol in [V1, OLD] {
        let mut client = connect(address, subprotocol);
        client.send_binary(request(7, "later", b""));
        client.send_binary(request(8, "now", b""));
        assert_eq!(client.receive_frame(), response(8, b"now"));
        waiting.recv_timeout(DEADLINE).unwrap().ok(vec![0, 1]);
        assert_eq!(client.receive_frame(), response(7, &[0, 1]));
    }
    running.shutdown(STOP);
}

#[test]
fn parts_precede_the_end_in_the_newer_subprotocol_only() {
    let procedures = Procedures::new().on_call("parts", |call| {
        for n in 0..3u8 {
            call.item([n])?;
        }
        Ok("end")
    });
    let (running, address) = start(app(procedures));
    let mut client = connect(address, V1);
    client.send_binary(request(5, "parts", b""));
    for n in 0..3 {
        assert_eq!(client.receive_frame(), item(5, &[n]));
    }
    assert_eq!(client.receive_frame(), response(5, b"end"));
    let mut old = connect(address, OLD);
    old.send_binary(request(5, "parts", b""));
    eventually("the call has failed", || calls(&running).unanswered == 1);
    running.shutdown(STOP);
}

#[test]
fn notification_and_reply_of_a_handler_keep_their_order() {
    let procedures = Procedures::new().on_call("both", |call| {
        call.stream().notify("first", "1");
        call.stream().room("main").notify("second", "2");
        call.stream().notify("third", "3");
        Ok("last")
    });
    let (running, address) =
        start(app(procedures).with_connect_handler(|stream, _| stream.join("main")));
    for subprotocol in [V1, OLD] {
        let mut client = connect(address, subprotocol);
        for id in 0..50 {
            client.send_binary(request(id, "both", b""));
        }
        for id in 0..50 {
            assert_eq!(client.receive_frame(), notification("first", b"1"));
            assert_eq!(client.receive_frame(), notification("second", b"2"));
            assert_eq!(client.receive_frame(), notification("third", b"3"));
            assert_eq!(client.receive_frame(), response(id, b"last"));
        }
        client.close();
    }
    running.shutdown(STOP);
}

#[test]
fn malformed_frame_closes_after_earlier_replies() {
    let procedures = || Procedures::new().on_call("echo", |call| Ok(call.data().clone()));
    let (running, address) = start(app(procedures()));
    let long = request(1, "echo", b"");
    let cases: [(&[u8], &str, u16, &str); 9] = [
        (b"", V1, 1002, "an empty frame"),
        (b"\x06\0\0\0\x01", V1, 1002, "a frame of the unknown form 6"),
        (b"\x00", OLD, 1002, "a frame of the unknown form 0"),
        (
            b"\x04\0\0\0\x01",
            OLD,
            1002,
            "a frame of the unknown form 4",
        ),
        (&long[..5], V1, 1002, "a truncated frame"),
        (b"\x01\x05four", OLD, 1002, "a truncated frame"),
        (
            b"\x03\0\0\0\x01\0",
            V1,
            1002,
            "a frame with bytes after its end",
        ),
        (
            b"\x01\x01\xff",
            OLD,
            1007,
            "a frame with a name or text that is not UTF-8",
        ),
        (
            b"\x05\0\0\0\x01\x02\xff",
            V1,
            1007,
            "a frame with a name or text that is not UTF-8",
        ),
    ];
    for (frame, subprotocol, code, reason) in cases {
        let mut client = connect(address, subprotocol);
        client.send_at_once([
            request(1, "echo", b"before"),
            frame.to_vec(),
            request(2, "echo", b"after"),
        ]);
        assert_eq!(client.receive_frame(), response(1, b"before"));
        assert_eq!(client.receive_close(), (code, reason.to_owned()));
    }
    assert_eq!(running.sender().metrics().protocol_errors, 9);
    running.shutdown(STOP);
}

#[test]
fn call_id_in_flight_cannot_be_reused() {
    let gate = Arc::new(Barrier::new(2));
    let at_gate = gate.clone();
    let procedures = Procedures::new().on_call("wait", move |_| {
        at_gate.wait();
        Ok("done")
    });
    let (running, address) = start(app(procedures));
    for subprotocol in [V1, OLD] {
        let mut client = connect(address, subprotocol);
        client.send_at_once([request(1, "wait", b""), request(1, "wait", b"")]);
        gate.wait();
        assert_eq!(client.receive_frame(), response(1, b"done"));
        let reason = "a request with the id 1, which is in flight".to_owned();
        assert_eq!(client.receive_close(), (1002, reason));
    }
    running.shutdown(STOP);
}

#[test]
fn calls_over_the_limit_are_refused_until_one_ends() {
    let (replies, waiting) = mpsc::channel::<Reply>();
    let procedures =
        Procedures::new().on_call("later", move |call| replies.send(call.defer()).unwrap());
    let app = app(procedures).with_limits(Limits::default().connection_calls_max(2));
    let (running, address) = start(app);
    let mut client = connect(address, V1);
    for id in 0..3 {
        client.send_binary(request(id, "later", b""));
    }
    client.receive_error(2, 5);
    waiting.recv_timeout(DEADLINE).unwrap().ok("0");
    assert_eq!(client.receive_frame(), response(0, b"0"));
    // A cancelled call counts until its handler ends.
    client.send_binary(request(2, "later", b""));
    let _second = waiting.recv_timeout(DEADLINE).unwrap();
    let _third = waiting.recv_timeout(DEADLINE).unwrap();
    client.send_binary(reset(2));
    client.send_binary(request(3, "later", b""));
    client.receive_error(3, 5);
    drop(client);
    let mut old = connect(address, OLD);
    let mut replies = Vec::new();
    for id in 0..2 {
        old.send_binary(request(id, "later", b""));
        replies.push(waiting.recv_timeout(DEADLINE).unwrap());
        // The id is free although the handler still runs.
        old.send_binary(reset(id));
    }
    old.send_binary(request(2, "later", b""));
    assert_eq!(
        old.receive_close(),
        (1013, "too many calls are in flight".to_owned())
    );
    assert_eq!(calls(&running).refused, 3);
    running.shutdown(STOP);
}

#[test]
fn panicking_handler_ends_its_connection_and_calls() {
    let (replies, waiting) = mpsc::channel::<Reply>();
    let procedures = Procedures::new()
        .on_call("later", move |call| replies.send(call.defer()).unwrap())
        .on_call("panic", |_| -> Result<(), CallError> {
            panic!("a panic on purpose")
        });
    let (running, address) = start(app(procedures));
    let mut client = connect(address, V1);
    client.send_binary(request(1, "later", b""));
    client.send_binary(request(2, "panic", b""));
    client.receive_error(2, 4);
    assert_eq!(client.receive_close().0, 1011);
    let reply = waiting.recv_timeout(DEADLINE).unwrap();
    assert!(reply.wait_cancelled(DEADLINE));
    running.shutdown(STOP);
}

#[test]
fn ping_is_answered_while_a_handler_blocks() {
    let gate = Arc::new(Barrier::new(2));
    let at_gate = gate.clone();
    let procedures = Procedures::new().on_call("block", move |_| {
        at_gate.wait();
        Ok(())
    });
    let (running, address) = start(app(procedures));
    let mut client = connect(address, V1);
    client.send_binary(request(1, "block", b""));
    client.send_binary(request(2, "$ping", b"here"));
    assert_eq!(client.receive_frame(), response(2, b"here"));
    gate.wait();
    assert_eq!(client.receive_frame(), response(1, b""));
    // A long ping is handled in turn.
    client.send_binary(request(3, "$ping", &[7; 1_000]));
    assert_eq!(client.receive_frame(), response(3, &[7; 1_000]));
    running.shutdown(STOP);
}

#[test]
fn humphrey_clients_speak_procedures_unless_preaccepted() {
    let address = free_address();
    let app = AsyncWebsocketApp::<()>::new_unlinked()
        .with_procedures(Procedures::new().on_call("echo", |call| Ok(call.data().clone())))
        .with_message_handler(|stream, message, _| stream.send(message));
    let hook = app.connect_hook().unwrap();
    // The program's own hook, as in 0.5.1, gets streams whose handshake is answered.
    let (answered, streams) = mpsc::channel();
    let apps = hook.clone();
    thread::spawn(move || {
        for stream in streams {
            apps.lock().unwrap().send(stream).unwrap();
        }
    });
    let own_hook = Arc::new(Mutex::new(answered));
    thread::spawn(move || {
        humphrey::App::<()>::new()
            .with_websocket_route("/answered", async_websocket_handler(own_hook))
            .with_websocket_route("/*", async_websocket_handler(hook))
            .run(address)
            .unwrap();
    });
    let running = either_way(app).start().unwrap();
    for subprotocol in [V1, OLD] {
        let mut client = connect(address, subprotocol);
        client.send_binary(request(1, "echo", b"!"));
        assert_eq!(client.receive_frame(), response(1, b"!"));
        client.close();
    }
    let asks = offering(&upgrade_request("/answered"));
    let mut socket = tcp(address);
    socket.write_all(asks.as_bytes()).unwrap();
    let head = read_head(&mut socket);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(!head.contains(V1), "{head}");
    assert_echoes_frames(&mut socket);
    running.shutdown(STOP);
}

#[test]
fn violation_during_a_handler_cancels_its_call() {
    let (began, told) = mpsc::channel();
    let procedures = Procedures::new().on_call("wait", move |call| {
        began.send(()).unwrap();
        assert!(
            call.wait_cancelled(DEADLINE),
            "the call was never cancelled"
        );
        Ok("stopped")
    });
    let (running, address) = start(app(procedures));
    let too_long = [&[0x89, 0xfe, 0, 126, 1, 2, 3, 4][..], &[0; 126]].concat();
    for of_the_subprotocol in [true, false] {
        let mut client = connect(address, V1);
        client.send_at_once([request(1, "wait", b""), request(2, "wait", b"")]);
        told.recv_timeout(DEADLINE).unwrap();
        if of_the_subprotocol {
            client.send_binary(vec![]);
        } else {
            // A ping of more than 125 bytes (RFC 6455 §5.5).
            client.0.get_mut().write_all(&too_long).unwrap();
        }
        // The second call still begins, and sees its cancellation.
        assert_eq!(client.receive_frame(), response(1, b"stopped"));
        told.recv_timeout(DEADLINE).unwrap();
        assert_eq!(client.receive_frame(), response(2, b"stopped"));
        assert_eq!(client.receive_close().0, 1002);
    }
    running.shutdown(STOP);
}

#[test]
fn reply_over_the_limit_is_an_error() {
    let procedures = Procedures::new().on_call("long", |_| Ok(vec![0; 1_000]));
    let app = app(procedures).with_limits(Limits::default().message_bytes_max(1_000));
    let (running, address) = start(app);
    let mut client = connect(address, V1);
    client.send_binary(request(1, "long", b""));
    assert!(client.receive_error(1, 2).contains("message_bytes_max"));
    let mut old = connect(address, OLD);
    old.send_binary(request(1, "long", b""));
    eventually("the call is counted", || calls(&running).unanswered == 1);
    running.shutdown(STOP);
}

#[test]
fn invalid_procedure_names_are_refused_at_registration() {
    let name = "n".repeat(256);
    let panics = |give: fn(Procedures, &str) -> Procedures, name: &str| {
        let given = AssertUnwindSafe(|| give(Procedures::new(), name));
        catch_unwind(given).is_err()
    };
    let on = |procedures: Procedures, name: &str| procedures.on_notification(name, |_| {});
    let call = |procedures: Procedures, name: &str| procedures.on_call(name, |_| Ok(()));
    for name in [name.as_str(), "$ping", "$"] {
        assert!(panics(on, name) && panics(call, name), "{name}");
    }
    assert!(panics(
        |procedures, name| procedures
            .on_notification(name, |_| {})
            .on_notification(name, |_| {}),
        "twice"
    ));
    assert!(panics(
        |procedures, name| procedures
            .on_call(name, |_| Ok(()))
            .on_call(name, |_| Ok(())),
        "twice"
    ));
    // A notification and a call may have the same name.
    assert!(!panics(
        |procedures, name| procedures
            .on_notification(name, |_| {})
            .on_call(name, |_| Ok(())),
        &name[1..]
    ));
    assert!(catch_unwind(|| Message::notification(&name, "")).is_err());
}
