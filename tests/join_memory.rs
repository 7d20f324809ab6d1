//! Tests that a replay with ids encodes each frame only once. It runs alone in its process, because it counts the
//! allocations of all threads.

#[path = "support/procedures.rs"]
mod frames;
mod support;

use std::alloc::System;
use std::io::{Read, Write};

use frames::{STOP, V1, request};
use humphrey_ws::{AsyncWebsocketApp, HistoryLimits, Limits, Message};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use support::{client_frame, read_head, start, tcp, upgrade_request};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const MESSAGES: usize = 100;
const LEN: usize = 64 << 10;
const KEPT: usize = MESSAGES * LEN;

#[test]
fn history_frames_with_ids_are_encoded_once() {
    let app = AsyncWebsocketApp::<()>::new()
        .with_history("news", HistoryLimits::messages(MESSAGES).bytes(KEPT))
        .with_join_handler(|_, _| true)
        .with_limits(Limits::default().outbox_bytes_max(2 * KEPT));
    let (running, address) = start(app);
    let news = running.sender().room("news");
    for _ in 0..MESSAGES {
        news.broadcast(Message::new_binary(vec![9; LEN]));
    }
    let offer = format!("\r\nSec-WebSocket-Protocol: {V1}\r\n\r\n");
    let mut socket = tcp(address);
    let asks = upgrade_request("/").replace("\r\n\r\n", &offer);
    socket.write_all(asks.as_bytes()).unwrap();
    assert!(read_head(&mut socket).contains(V1));
    let join = client_frame(0x82, &request(1, "$join", b"\x04newsall"));
    let mut buffer = vec![0; LEN];
    let region = Region::new(ALLOCATOR);
    socket.write_all(&join).unwrap();
    let mut read = 0;
    while read < KEPT {
        match socket.read(&mut buffer).unwrap() {
            0 => panic!("it ends after {read} bytes"),
            n => read += n,
        }
    }
    let allocated = region.change().bytes_allocated;
    // Each message is copied into a frame of procedures, then into a WebSocket frame, and finally into the joined
    // output. That is three times its length, plus half for headers.
    let most = 7 * KEPT / 2;
    assert!(allocated < most, "{allocated} bytes for {KEPT}");
    running.shutdown(STOP);
}
