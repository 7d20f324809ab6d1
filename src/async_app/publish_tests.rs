//! Tests of calls that wait for a full mailbox, made inside a shard's turn, where nothing may block.

use std::io::Write;
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::async_app::{AsyncSender, AsyncWebsocketApp, ConnectionId};
use crate::error::{JoinError, JoinErrorReason};
use crate::limits::{HistoryLimits, Limits};
use crate::protocol::close::CloseCode;
use crate::request::Accept;
use crate::user_threads::while_nonblocking;

const DEADLINE: Duration = Duration::from_secs(20);
const MAILBOX: usize = 1 << 16;

/// Calls every operation that waits for a mailbox. Returns the errors of the joins.
fn call_all(sender: &AsyncSender, id: ConnectionId) -> Vec<Option<JoinErrorReason>> {
    let reason = |joined: Result<(), JoinError>| joined.err().map(|error| error.reason);
    sender.room("old").leave(id);
    sender.room("new").join(id);
    let joined = vec![
        reason(sender.room("new").try_join(id)),
        reason(sender.room("new").join_since(id, None).map(drop)),
        reason(sender.room("kept").join_since(id, None).map(drop)),
    ];
    sender.close_user("ada", CloseCode::NORMAL, "");
    sender.close(id, CloseCode::NORMAL, "");
    joined
}

#[test]
fn calls_in_a_turn_do_not_wait_for_a_full_mailbox() {
    let (opened, open) = mpsc::channel();
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_with_config((), 1, 1);
    let running = app
        .with_address("127.0.0.1:0")
        .with_shards(1)
        .with_limits(Limits::default().mailbox_bytes_max(MAILBOX))
        .with_history("kept", HistoryLimits::messages(10).bytes(1 << 20))
        .with_handshake_handler(|_, _| Ok(Accept::new().user("ada")))
        .with_connect_handler(move |stream, _| {
            stream.join("old");
            opened.send(stream.id()).unwrap();
        })
        .start()
        .unwrap();
    let sender = running.sender();
    sender.room("kept").broadcast("kept");
    let mut client = TcpStream::connect(running.local_addr().unwrap()).unwrap();
    client
        .write_all(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        )
        .unwrap();
    let id = open.recv_timeout(DEADLINE).unwrap();

    // Keep the mailbox full until the test empties it.
    let mailbox = &running.engine.hub.shards[0].mailbox;
    while mailbox.try_reserve(MAILBOX).is_err() {
        thread::yield_now();
    }
    let (returned, returns) = mpsc::channel();
    let caller = sender.clone();
    thread::spawn(move || {
        let joined = while_nonblocking(|| call_all(&caller, id));
        returned.send(joined).unwrap();
    });
    let joined = returns.recv_timeout(DEADLINE).expect("the calls return");
    assert_eq!(joined, [Some(JoinErrorReason::Closed); 3]);
    assert_eq!(sender.room("old").members(), [id]);
    assert!(sender.room("new").is_empty() && sender.room("kept").is_empty());

    // Outside a turn, the calls wait for space.
    let (returned, returns) = mpsc::channel();
    let caller = sender.clone();
    thread::spawn(move || returned.send(call_all(&caller, id)).unwrap());
    mailbox.unreserve(MAILBOX);
    let joined = returns.recv_timeout(DEADLINE).expect("the calls return");
    assert_eq!(joined, [None; 3]);
    running.shutdown(Duration::ZERO);
}
