//! Tests that code of the program may block and send, wherever the library calls it, without delaying other clients.

use crate::frames;
use crate::support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use frames::{Frames, STOP, V1, app, connect, request, reset, response};
use humphrey_ws::procedures::Procedures;
use humphrey_ws::{AsyncWebsocketApp, Limits, Message};
use support::{Client, DEADLINE, eventually, start};

/// Asserts that an existing client and a new one are served.
fn assert_serves(other: &mut Client, address: SocketAddr) {
    other.send("still there?");
    assert_eq!(other.receive_text(), "still there?");
    let mut new = Client::connect(address);
    new.send("and for me?");
    assert_eq!(new.receive_text(), "and for me?");
}

/// A gate that blocks code until it is opened.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, std::sync::Condvar)>);

impl Gate {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) {
        let open = self.lock();
        drop(self.0.1.wait_timeout_while(open, DEADLINE, |open| !*open));
    }

    fn open(&self) {
        *self.lock() = true;
        self.0.1.notify_all();
    }
}

#[test]
fn on_cancel_that_sends_many_messages_delays_nobody() {
    const NOTIFICATIONS: usize = 60;
    const BYTES: usize = 100_000;
    for adaptive in [true, false] {
        let procedures = Procedures::new().on_call("wait", |call| {
            let cancellation = call.cancellation();
            let reply = call.defer();
            // From now on a reset cancels a call that has begun.
            call.stream().send(Message::new("begun"));
            cancellation.on_cancel(move || {
                for _ in 0..NOTIFICATIONS {
                    call.stream().notify("more", vec![7; BYTES]);
                }
                drop(reply);
            });
        });
        let app = app(procedures)
            .with_message_handler(|stream, message, _| stream.send(message))
            .with_shards(1)
            .with_adaptive_handlers(adaptive)
            .with_limits(
                Limits::default()
                    .mailbox_bytes_max(256 << 10)
                    .outbox_bytes_max(16 << 20),
            );
        let (running, address) = start(app);
        let mut other = Client::connect(address);
        let mut client = connect(address, V1);
        client.send_binary(request(1, "wait", b""));
        assert_eq!(client.receive_text(), "begun");
        client.send_binary(reset(1));
        assert_serves(&mut other, address);
        for n in 0..NOTIFICATIONS {
            let frame = client.receive_frame();
            assert!(
                frame[0] == 1 && frame.len() > BYTES,
                "{n}: {:?}",
                &frame[..9]
            );
        }
        client.receive_error(1, 3);
        client.send_binary(request(3, "$ping", b""));
        assert_eq!(client.receive_frame(), response(3, b""));
        running.shutdown(STOP);
    }
}

#[test]
fn blocking_on_cancel_delays_nobody() {
    let (gate, cancelled) = (Gate::default(), Arc::new(AtomicUsize::new(0)));
    let (at_gate, count) = (gate.clone(), cancelled.clone());
    let procedures = Procedures::new().on_call("wait", move |call| {
        let (gate, count) = (at_gate.clone(), count.clone());
        let reply = call.defer();
        reply.cancellation().on_cancel(move || {
            gate.wait();
            count.fetch_add(1, Ordering::SeqCst);
            drop(reply);
        });
        call.stream().send(Message::new("begun"));
    });
    let app = app(procedures)
        .with_message_handler(|stream, message, _| stream.send(message))
        .with_shards(1);
    let (running, address) = start(app);
    let mut other = Client::connect(address);
    let mut client = connect(address, V1);
    for id in 0..40 {
        client.send_binary(request(id, "wait", b""));
    }
    for _ in 0..40 {
        assert_eq!(client.receive_text(), "begun");
    }
    for id in 0..20 {
        client.send_binary(reset(id));
    }
    // The end of the connection cancels the other calls.
    client.send_binary(request(99, "$ping", b""));
    assert_eq!(client.receive_frame(), response(99, b""));
    drop(client);
    assert_serves(&mut other, address);
    assert_eq!(cancelled.load(Ordering::SeqCst), 0);
    gate.open();
    eventually("all closures have run", || {
        cancelled.load(Ordering::SeqCst) == 40
    });
    running.shutdown(STOP);
}

static GATE: Mutex<Option<Gate>> = Mutex::new(None);

/// Stream state whose drop blocks.
#[derive(Default)]
struct Slow;

impl Drop for Slow {
    fn drop(&mut self) {
        let gate = GATE.lock().unwrap().clone();
        gate.expect("the gate is set").wait();
    }
}

#[test]
fn blocking_drop_of_a_state_delays_nobody() {
    let gate = Gate::default();
    *GATE.lock().unwrap() = Some(gate.clone());
    let app: AsyncWebsocketApp<(), Slow> = AsyncWebsocketApp::new()
        .with_shards(1)
        .with_message_handler(|stream, message, _| stream.send(message));
    let (running, address) = start(app);
    let mut other = Client::connect(address);
    for _ in 0..4 {
        let mut client = Client::connect(address);
        client.send("hello");
        assert_eq!(client.receive_text(), "hello");
    }
    eventually("both clients have disconnected", || {
        running.sender().metrics().connections == 1
    });
    assert_serves(&mut other, address);
    gate.open();
    running.shutdown(STOP);
}

#[test]
fn unused_closure_is_dropped_where_it_may_block() {
    let (gate, (dropped, told)) = (Gate::default(), mpsc::channel());
    struct Held(Gate, mpsc::Sender<()>);
    impl Drop for Held {
        fn drop(&mut self) {
            self.0.wait();
            let _ = self.1.send(());
        }
    }
    let at_gate = gate.clone();
    // The call is answered, so that its closure is dropped without being called.
    let procedures = Procedures::new().on_call("now", move |call| {
        let held = Held(at_gate.clone(), dropped.clone());
        call.on_cancel(move || drop(held));
        Ok("done")
    });
    let app = app(procedures)
        .with_message_handler(|stream, message, _| stream.send(message))
        .with_shards(1);
    let (running, address) = start(app);
    let mut other = Client::connect(address);
    let mut client = connect(address, V1);
    client.send_binary(request(1, "now", b""));
    assert_serves(&mut other, address);
    gate.open();
    told.recv_timeout(DEADLINE).unwrap();
    assert_eq!(client.receive_frame(), response(1, b"done"));
    other.send(Message::new("end").text().unwrap());
    assert_eq!(other.receive_text(), "end");
    running.shutdown(STOP);
}

#[test]
fn blocking_on_cancel_does_not_accumulate_threads() {
    /// The maximum number of waiting closures.
    const WAITING_MAX: usize = 1 << 16;
    const EACH: usize = 1_000;
    let (gate, begun) = (Gate::default(), Arc::new(AtomicUsize::new(0)));
    let (at_gate, count) = (gate.clone(), begun.clone());
    let procedures = Procedures::new().on_call("wait", move |call| {
        for _ in 0..EACH {
            let gate = at_gate.clone();
            call.on_cancel(move || gate.wait());
        }
        let reply = call.defer();
        call.on_cancel(move || drop(reply));
        count.fetch_add(1, Ordering::SeqCst);
        call.stream().send(Message::new("begun"));
    });
    let (running, address) = start(app(procedures).with_shards(1));
    let refused = || running.sender().metrics().calls.refused;
    // Clients that call and disconnect, again and again.
    let mut called = 0;
    while refused() == 0 {
        assert!(called <= 2 * WAITING_MAX / EACH, "no call is refused");
        let mut client = connect(address, V1);
        client.send_binary(request(1, "wait", b""));
        called += 1;
        eventually("the call begins or is refused", || {
            begun.load(Ordering::SeqCst) + usize::try_from(refused()).unwrap() == called
        });
        drop(client);
        eventually("the client has disconnected", || {
            running.sender().metrics().connections == 0
        });
    }
    assert!(begun.load(Ordering::SeqCst) >= WAITING_MAX / EACH);
    // Once the closures continue, calls are accepted again.
    gate.open();
    let mut client = connect(address, V1);
    let before = begun.load(Ordering::SeqCst);
    let mut id = 0;
    eventually("a call begins", || {
        id += 1;
        client.send_binary(request(id, "wait", b""));
        client.receive();
        begun.load(Ordering::SeqCst) > before
    });
    running.shutdown(STOP);
}
