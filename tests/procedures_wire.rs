//! The frames of procedures byte for byte, compared with the guide and with another server of the older subprotocol.

use crate::frames;
use crate::support;

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use frames::{
    Frames, OLD, STOP, V1, app, connect, item, notification, request, reset, response, with_id,
};
use humphrey_ws::Message;
use humphrey_ws::procedures::{CallError, Procedures};
use support::{DEADLINE, start};
use tungstenite::handshake::server::{Request, Response};
use tungstenite::http::HeaderValue;
use web_socket_io::{Procedure, SocketIo};

/// The guide's test vectors.
fn vectors() -> HashMap<String, Vec<u8>> {
    let guide = include_str!("../docs/procedures.md");
    let rows = guide.lines().filter_map(|line| {
        let (what, bytes) = line.strip_prefix("| ")?.split_once(" | `")?;
        let bytes = bytes.strip_suffix("` |")?.split(' ');
        let bytes: Option<Vec<u8>> = bytes.map(|hex| u8::from_str_radix(hex, 16).ok()).collect();
        Some((what.to_owned(), bytes?))
    });
    rows.collect()
}

#[test]
fn guide_test_vectors_match_the_wire() {
    let vectors = vectors();
    assert_eq!(vectors.len(), 7);
    let vector = |what: &str| vectors[what].clone();
    // The frames of the test clients, which are encoded by hand.
    assert_eq!(
        vector("notification `tick`, payload `7`"),
        notification("tick", b"7")
    );
    assert_eq!(
        vector("request 258 of `myip`, no payload"),
        request(258, "myip", b"")
    );
    assert_eq!(vector("reset of 4294967295"), reset(u32::MAX));
    assert_eq!(vector("response to 1, payload `ok`"), response(1, b"ok"));
    assert_eq!(vector("error 2 of 1, text `no`"), with_id(5, 1, b"\x02no"));
    assert_eq!(vector("item of 1, payload `half`"), item(1, b"half"));
    // The frames of the server.
    let (sender, told) = mpsc::channel();
    let procedures = Procedures::new()
        .on_notification("tick", |event| {
            event.stream().notify(event.name(), event.data())
        })
        .on_call("ok", |_| Ok("ok"))
        .on_call("no", |_| Err::<(), _>(CallError::from("no")))
        .on_call("half", |call| {
            call.item("half")?;
            Ok(())
        })
        .on_call("myip", move |call| {
            let asks = call.text().unwrap_or_default().to_owned();
            sender.send(asks).unwrap();
        });
    let (running, address) = start(app(procedures));
    let mut client = connect(address, V1);
    client.send_binary(vector("notification `tick`, payload `7`"));
    assert_eq!(
        client.receive_frame(),
        vector("notification `tick`, payload `7`")
    );
    client.send_binary(request(1, "ok", b""));
    assert_eq!(
        client.receive_frame(),
        vector("response to 1, payload `ok`")
    );
    client.send_binary(request(1, "no", b""));
    assert_eq!(client.receive_frame(), vector("error 2 of 1, text `no`"));
    client.send_binary(request(1, "half", b""));
    assert_eq!(client.receive_frame(), vector("item of 1, payload `half`"));
    assert_eq!(client.receive_frame(), response(1, b""));
    client.send_binary(vector("request 258 of `myip`, no payload"));
    assert_eq!(told.recv_timeout(DEADLINE).unwrap(), "");
    client.receive_error(258, 4);
    client.send_binary(vector("reset of 4294967295"));
    client.send_binary(request(2, "$ping", b"still there"));
    assert_eq!(client.receive_frame(), response(2, b"still there"));
    running.shutdown(STOP);
}

/// Starts a server that replies like `ours`, with the crate `web-socket-io`.
#[allow(clippy::result_large_err)] // It is tungstenite's.
async fn theirs(socket: TcpStream) {
    let choose = |_: &Request, mut response: Response| {
        let headers = response.headers_mut();
        headers.insert("Sec-WebSocket-Protocol", HeaderValue::from_static(OLD));
        Ok(response)
    };
    // The crate takes over an open WebSocket. The client sends nothing before the handshake response.
    drop(tungstenite::accept_hdr(socket.try_clone().unwrap(), choose).unwrap());
    socket.set_nonblocking(true).unwrap();
    let (reader, writer) = tokio::net::TcpStream::from_std(socket)
        .unwrap()
        .into_split();
    let mut io = SocketIo::new(reader, writer, 16);
    let notifier = io.notifier();
    while let Ok(procedure) = io.recv().await {
        match procedure {
            Procedure::Notify(notified) if notified.method() == "broadcast" => {
                notifier.notify("message", notified.data()).await.unwrap();
            }
            Procedure::Notify(_) => {}
            Procedure::Call(asked, reply, abort) => match asked.method() {
                "uppercase" | "" => {
                    let text = String::from_utf8_lossy(asked.data()).to_uppercase();
                    reply.send(text).await.unwrap();
                }
                name if name.len() == 255 => reply.send(name).await.unwrap(),
                "wait" => {
                    abort.spawn_and_abort_on_reset(async move {
                        std::future::pending::<()>().await;
                        drop(reply);
                    });
                }
                _ => {}
            },
        }
    }
}

fn ours() -> Procedures {
    Procedures::new()
        .on_notification("broadcast", |event| {
            event.stream().notify("message", event.data())
        })
        .on_call("uppercase", |call| Ok(call.text()?.to_uppercase()))
        .on_call("", |call| Ok(call.text()?.to_uppercase()))
        .on_call(&"n".repeat(255), |call| Ok(call.name().to_owned()))
        .on_call("wait", |call| {
            let reply = call.defer();
            thread::spawn(move || {
                while !reply.wait_cancelled(Duration::from_secs(3_600)) {}
                reply.ok("nobody wants it");
            });
        })
}

/// Sends these frames, and returns the frames of the server up to the reply to the last request.
fn dialogue(address: SocketAddr, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut client = connect(address, OLD);
    for frame in frames {
        client.send_binary(frame.clone());
    }
    client.send_binary(request(77, "uppercase", b"the last"));
    let mut heard = Vec::new();
    loop {
        heard.push(client.receive_frame());
        if heard.last() == Some(&response(77, b"THE LAST")) {
            return heard;
        }
    }
}

#[test]
fn older_subprotocol_matches_its_reference_server() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let their_address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        for socket in listener.incoming().map_while(Result::ok) {
            runtime.block_on(theirs(socket));
        }
    });
    let (running, our_address) = start(app(ours()));
    let dialogues: [&[Vec<u8>]; 7] = [
        &[
            request(0, "uppercase", b"zero"),
            request(u32::MAX, "uppercase", b"most"),
        ],
        &[
            request(1, "uppercase", b""),
            request(2, "uppercase", b"again"),
        ],
        &[
            request(1, "", b"no name"),
            request(2, &"n".repeat(255), b"long"),
        ],
        &[
            notification("broadcast", b"\x00\xff"),
            notification("broadcast", b""),
        ],
        // Unknown procedures.
        &[
            request(1, "nobody", b"x"),
            notification("nobody", b"x"),
            notification("", b""),
            reset(9),
        ],
        // A reset frees the id, and its call gets no reply.
        &[
            request(1, "wait", b""),
            reset(1),
            reset(1),
            request(1, "uppercase", b"after"),
        ],
        &[
            request(1, "wait", b""),
            request(2, "uppercase", b"meanwhile"),
            reset(1),
        ],
    ];
    for frames in dialogues {
        let heard = dialogue(our_address, frames);
        assert_eq!(heard, dialogue(their_address, frames), "{frames:?}");
    }
    running.shutdown(STOP);
}

#[test]
fn notification_has_the_documented_bytes() {
    for len in [0, 1, 125, 126, 65_535, 65_536] {
        let payload = vec![7; len];
        let message = Message::notification("tick", &payload);
        assert!(!message.is_text());
        assert_eq!(message.bytes(), notification("tick", &payload));
    }
}
