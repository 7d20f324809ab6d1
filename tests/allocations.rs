//! Tests that a message causes a fixed number of allocations, which does not depend on the number of recipients.
//!
//! All threads of this process are counted, so clients here allocate nothing: they write frames that were encoded before, and
//! read into preallocated buffers. Each step waits for the previous one, so each message gets its own turns of the engine:
//! messages that arrive together need fewer allocations.

#![cfg(target_os = "linux")] // On other systems polling may allocate.

mod support;

use std::alloc::System;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use humphrey_ws::{AsyncSender, AsyncStream, AsyncWebsocketApp, Message, RunningApp};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use support::{client_frame, eventually, raise_descriptors, raw_websocket, start};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Allocations for a received message that the handler ignores.
const RECEIVED: usize = 1;
/// Allocations for a message that a handler echoes.
const ECHOED: usize = 1;
/// Allocations for a message that a thread of the program creates and sends to one connection.
const SENT: usize = 1;
/// Allocations for a message that a thread of the program creates and broadcasts, whatever the number of clients.
const BROADCAST: usize = 3;
/// Allocations for a message that a thread of the program creates and broadcasts to a room.
const ROOM_BROADCAST: usize = 4;
/// Allocations for a received message that the handler broadcasts.
const REBROADCAST: usize = 3;
/// Bytes of these allocations besides the payload. A message is copied once when it is received or created.
const BYTES: usize = 150;

/// With io_uring, a broadcast also allocates a list of the writes and a list of their recipients.
const LISTS: usize = if cfg!(feature = "io-uring") { 2 } else { 0 };
/// Bytes in these lists for each recipient.
const LISTED_BYTES: usize = if cfg!(feature = "io-uring") { 32 } else { 0 };

const MESSAGES: usize = 300;
/// Bytes that other threads, such as the test harness, may allocate in the meantime.
const STRAY: usize = MESSAGES / 10;
const FEW: usize = 10;
const MANY: usize = 100;
const SMALL: usize = 32;
const LARGE: usize = 10_000;
const HEADER_MAX: usize = 10;
const ROOM: &str = "room";

/// Serialises the tests, because they share one counter.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The allocations of each of many steps.
#[derive(Debug)]
struct Cost {
    allocations: usize,
    bytes: usize,
}

/// Runs the step a few times to warm up, then counts its allocations.
fn cost(mut step: impl FnMut()) -> Cost {
    (0..MESSAGES).for_each(|_| step());
    let region = Region::new(ALLOCATOR);
    (0..MESSAGES).for_each(|_| step());
    let stats = region.change();
    let grown = usize::try_from(stats.bytes_reallocated).unwrap_or(0);
    Cost {
        allocations: stats.allocations + stats.reallocations,
        bytes: stats.bytes_allocated + grown,
    }
}

impl Cost {
    #[track_caller]
    fn assert_within(&self, allocations: usize, bytes: usize) {
        let each = |sum: usize| sum as f64 / MESSAGES as f64;
        assert!(
            self.allocations <= allocations * MESSAGES + STRAY,
            "{} allocations for each, and not {allocations}",
            each(self.allocations)
        );
        assert!(
            self.bytes <= (bytes + 1) * MESSAGES + STRAY * 1_000,
            "{} bytes for each, and not {bytes}",
            each(self.bytes)
        );
    }
}

/// An app with clients in one room.
struct Scene {
    running: Option<RunningApp>,
    handled: Arc<AtomicUsize>,
    clients: Vec<TcpStream>,
    frame: Vec<u8>,
    buffer: Vec<u8>,
    payload: Vec<u8>,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    /// Starts the app with this handler, for messages of that many bytes.
    fn new(
        clients: usize,
        payload: usize,
        handler: impl Fn(&AsyncStream, Message) + Send + Sync + 'static,
    ) -> Self {
        let alone = alone();
        raise_descriptors(2 * MANY as u64 + 200);
        let handled = Arc::new(AtomicUsize::new(0));
        let count = handled.clone();
        let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
            .with_shards(1)
            .with_connect_handler(|stream, _| stream.join(ROOM))
            .with_message_handler(move |stream, message, _| {
                handler(&stream, message);
                count.fetch_add(1, SeqCst);
            });
        let (running, address) = start(app);
        let clients: Vec<_> = (0..clients).map(|_| raw_websocket(address)).collect();
        eventually("all clients are in the room", || {
            running.sender().room(ROOM).len() == clients.len()
        });
        let payload = vec![b'x'; payload];
        Self {
            running: Some(running),
            handled,
            clients,
            frame: client_frame(0x81, &payload),
            buffer: vec![0; HEADER_MAX + payload.len()],
            payload,
            _alone: alone,
        }
    }

    fn sender(&self) -> AsyncSender {
        self.running.as_ref().expect("the app is running").sender()
    }

    fn message(&self) -> Message {
        Message::new(&self.payload)
    }

    fn first_client_sends(&mut self) {
        self.clients[0].write_all(&self.frame).unwrap();
    }

    /// Lets every client read a message of one frame.
    fn all_receive(&mut self) {
        let header = if self.payload.len() < 126 { 2 } else { 4 };
        let frame = &mut self.buffer[..header + self.payload.len()];
        for client in &mut self.clients {
            frame.fill(0);
            client.read_exact(frame).unwrap();
            assert_eq!(frame[header..], self.payload);
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Closed first, so that the shutdown waits for no client.
        self.clients.clear();
        if let Some(running) = self.running.take() {
            running.shutdown(Duration::from_secs(1));
        }
    }
}

#[test]
fn received_message_has_a_fixed_number_of_allocations() {
    let mut scene = Scene::new(1, SMALL, |_, _| {});
    let mut sent = 0;
    let cost = cost(|| {
        scene.first_client_sends();
        sent += 1;
        eventually("the message is handled", || {
            scene.handled.load(SeqCst) == sent
        });
    });
    cost.assert_within(RECEIVED, SMALL + BYTES);
}

#[test]
fn echo_has_fixed_allocations_and_copies_nothing() {
    for size in [SMALL, LARGE] {
        let mut scene = Scene::new(1, size, |stream, message| stream.send(message));
        let cost = cost(|| {
            scene.first_client_sends();
            scene.all_receive();
        });
        cost.assert_within(ECHOED, size + BYTES);
    }
}

#[test]
fn sender_message_has_a_fixed_number_of_allocations() {
    for size in [SMALL, LARGE] {
        let mut scene = Scene::new(1, size, |_, _| {});
        let sender = scene.sender();
        let id = sender.room(ROOM).members()[0];
        let cost = cost(|| {
            sender.send_to(id, scene.message());
            scene.all_receive();
        });
        cost.assert_within(SENT, size + BYTES);
    }
}

#[test]
fn broadcast_allocates_nothing_per_recipient() {
    for size in [SMALL, LARGE] {
        for clients in [FEW, MANY] {
            let mut scene = Scene::new(clients, size, |_, _| {});
            let sender = scene.sender();
            let cost = cost(|| {
                sender.broadcast(scene.message());
                scene.all_receive();
            });
            cost.assert_within(BROADCAST + LISTS, size + BYTES + clients * LISTED_BYTES);
        }
    }
}

#[test]
fn room_broadcast_allocates_nothing_per_member() {
    for size in [SMALL, LARGE] {
        for clients in [FEW, MANY] {
            let mut scene = Scene::new(clients, size, |_, _| {});
            let room = scene.sender().room(ROOM);
            let cost = cost(|| {
                room.broadcast(scene.message());
                scene.all_receive();
            });
            cost.assert_within(
                ROOM_BROADCAST + LISTS,
                size + BYTES + clients * LISTED_BYTES,
            );
        }
    }
}

#[test]
fn broadcast_of_a_received_message_copies_it_once() {
    for size in [SMALL, LARGE] {
        for clients in [FEW, MANY] {
            let mut scene = Scene::new(clients, size, |stream, message| stream.broadcast(message));
            let cost = cost(|| {
                scene.first_client_sends();
                scene.all_receive();
            });
            cost.assert_within(REBROADCAST + LISTS, size + BYTES + clients * LISTED_BYTES);
        }
    }
}

/// Sends a frame, and returns the bytes that were allocated until the echo arrived. It must be compressed.
#[cfg(feature = "deflate")]
fn bytes_for_compressed_echo(client: &mut TcpStream, frame: &[u8]) -> usize {
    let region = Region::new(ALLOCATOR);
    client.write_all(frame).unwrap();
    let (first, _) = support::read_frame(client).unwrap();
    assert_eq!(first, 0xC1, "the echo is compressed");
    region.change().bytes_allocated
}

/// The sizes are those of SECURITY.md, `Compression` and `websocket_handler_with_compression`.
#[cfg(feature = "deflate")]
#[test]
fn compressor_and_inflater_have_the_documented_sizes() {
    /// "Hello", as RFC 7692 §7.2.3.1 compresses it.
    const HELLO: [u8; 7] = [0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00];
    let _alone = alone();
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
        .with_shards(1)
        .with_compression(humphrey_ws::Compression::new().replies_from(1))
        .with_message_handler(|stream, message, _| {
            stream.send(message.text().unwrap().repeat(100))
        });
    let (running, address) = start(app);
    let mut client = support::tcp(address);
    let request = support::upgrade_request("/").replace(
        "\r\n\r\n",
        "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
    );
    client.write_all(request.as_bytes()).unwrap();
    let head = support::read_head(&mut client);
    assert!(head.contains("permessage-deflate"), "{head}");

    let plain = client_frame(0x81, b"Hello");
    let first = bytes_for_compressed_echo(&mut client, &plain);
    let second = bytes_for_compressed_echo(&mut client, &plain);
    let compressor = first - second;
    assert!(
        (360_000..=400_000).contains(&compressor),
        "{compressor} bytes"
    );

    let compressed = client_frame(0xC1, &HELLO);
    let first = bytes_for_compressed_echo(&mut client, &compressed);
    let third = bytes_for_compressed_echo(&mut client, &compressed);
    let inflater = first - third;
    assert!((100_000..=125_000).contains(&inflater), "{inflater} bytes");
    running.shutdown(Duration::from_secs(1));
}
