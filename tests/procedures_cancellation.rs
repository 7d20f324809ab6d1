//! Cancellation of calls by their client, and by the end of its connection or of the app.

use crate::frames;
use crate::support;

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use frames::{Frames, OLD, STOP, V1, app, calls, connect, request, reset, response};
use humphrey_ws::procedures::{CallError, CallErrorReason, Procedures, Reply};
use support::{DEADLINE, eventually, start};

#[test]
fn reset_reaches_the_running_handler_and_its_callback() {
    let (events, told) = mpsc::channel();
    let procedures = Procedures::new().on_call("wait", move |call| {
        let by_waker = events.clone();
        call.on_cancel(move || by_waker.send("waker").unwrap());
        events.send("began").unwrap();
        assert!(
            call.wait_cancelled(DEADLINE),
            "the call was never cancelled"
        );
        assert!(call.cancelled());
        // After the cancellation, `on_cancel` runs its closure at once.
        let (at_once, now) = mpsc::channel();
        call.on_cancel(move || at_once.send(()).unwrap());
        now.try_recv().expect("the closure runs at once");
        Err(call.abort_error())
    });
    let (running, address) = start(app(procedures));
    for subprotocol in [V1, OLD] {
        let mut client = connect(address, subprotocol);
        client.send_binary(request(1, "wait", b""));
        assert_eq!(told.recv_timeout(DEADLINE), Ok("began"));
        client.send_binary(reset(1));
        assert_eq!(told.recv_timeout(DEADLINE), Ok("waker"));
        if subprotocol == V1 {
            client.receive_error(1, 3);
        }
    }
    assert_eq!(calls(&running).cancelled, 2);
    assert_eq!(calls(&running).unanswered, 0);
    running.shutdown(STOP);
}

#[test]
fn reset_reaches_a_deferred_call() {
    let (replies, waiting) = mpsc::channel::<Reply>();
    let procedures =
        Procedures::new().on_call("later", move |call| replies.send(call.defer()).unwrap());
    let (running, address) = start(app(procedures));
    let mut client = connect(address, V1);
    client.send_binary(request(1, "later", b""));
    let reply = waiting.recv_timeout(DEADLINE).unwrap();
    assert!(!reply.cancelled());
    client.send_binary(reset(1));
    assert!(reply.wait_cancelled(DEADLINE));
    assert_eq!(
        reply.item("part").unwrap_err().reason,
        CallErrorReason::Aborted
    );
    // The reply of a cancelled call is not sent.
    reply.ok("a long answer");
    client.receive_error(1, 3);
    running.shutdown(STOP);
}

#[test]
fn call_cancelled_in_the_queue_is_not_started() {
    let gate = Arc::new(Barrier::new(2));
    let begun = Arc::new(AtomicUsize::new(0));
    let (at_gate, count) = (gate.clone(), begun.clone());
    let procedures = Procedures::new()
        .on_call("first", move |_| {
            at_gate.wait();
            at_gate.wait();
            Ok(())
        })
        .on_call("second", move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
        .on_call("last", |_| Ok(()));
    let (running, address) = start(app(procedures));
    for (subprotocol, cancelled) in [(V1, 1), (OLD, 2)] {
        let mut client = connect(address, subprotocol);
        client.send_binary(request(1, "first", b""));
        gate.wait();
        client.send_binary(request(2, "second", b""));
        client.send_binary(reset(2));
        eventually("the reset has arrived", || {
            calls(&running).cancelled == cancelled
        });
        gate.wait();
        assert_eq!(client.receive_frame(), response(1, b""));
        if subprotocol == V1 {
            client.receive_error(2, 3);
        }
        client.send_binary(request(2, "last", b""));
        assert_eq!(client.receive_frame(), response(2, b""));
    }
    assert_eq!(begun.load(Ordering::SeqCst), 0);
    running.shutdown(STOP);
}

#[test]
fn disconnect_cancels_calls_while_a_handler_runs() {
    let (events, told) = mpsc::channel();
    let ended = events.clone();
    let procedures = Procedures::new()
        .on_call("wait", move |call| {
            events.send("began").unwrap();
            assert!(call.wait_cancelled(DEADLINE));
            events.send("cancelled").unwrap();
            Err(call.abort_error())
        })
        .on_call("not begun", |_| -> Result<(), CallError> {
            panic!("the cancelled call was handled")
        });
    let app = app(procedures).with_disconnect_handler(move |_, _| ended.send("ended").unwrap());
    let (running, address) = start(app);
    for way in 0..3 {
        let mut client = connect(address, V1);
        client.send_binary(request(1, "wait", b""));
        assert_eq!(told.recv_timeout(DEADLINE), Ok("began"));
        client.send_binary(request(2, "not begun", b""));
        match way {
            0 => drop(client),
            1 => client.close(),
            _ => {
                let id = running.sender().everyone().members()[0];
                running
                    .sender()
                    .close(id, humphrey_ws::CloseCode::NORMAL, "enough");
                assert_eq!(client.receive_close(), (1000, "enough".to_owned()));
            }
        }
        assert_eq!(told.recv_timeout(DEADLINE), Ok("cancelled"));
        assert_eq!(told.recv_timeout(DEADLINE), Ok("ended"));
    }
    assert_eq!(running.sender().metrics().handler_panics, 0);
    running.shutdown(STOP);
}

#[test]
fn shutdown_cancels_running_calls() {
    let (events, told) = mpsc::channel();
    let procedures = Procedures::new().on_call("wait", move |call| {
        events.send(false).unwrap();
        events.send(call.wait_cancelled(DEADLINE)).unwrap();
        Err(call.abort_error())
    });
    let (running, address) = start(app(procedures));
    let mut client = connect(address, V1);
    client.send_binary(request(1, "wait", b""));
    assert_eq!(told.recv_timeout(DEADLINE), Ok(false));
    running.sender().shutdown(DEADLINE);
    assert_eq!(told.recv_timeout(DEADLINE), Ok(true));
    assert_eq!(client.receive_close().0, 1001);
    running.join();
}

#[test]
fn call_of_a_disconnected_client_retains_no_memory() {
    let (sender, dropped) = mpsc::channel::<()>();
    let held = Mutex::new(Some(sender));
    let (replies, waiting) = mpsc::channel::<Reply>();
    let procedures = Procedures::new().on_call("later", move |call| {
        let sender = held.lock().unwrap().take();
        call.on_cancel(move || drop(sender));
        replies.send(call.defer()).unwrap();
    });
    let (running, address) = start(app(procedures));
    let mut client = connect(address, V1);
    client.send_binary(request(1, "later", b""));
    let reply = waiting.recv_timeout(DEADLINE).unwrap();
    let cancellation = reply.cancellation();
    drop(client);
    assert_eq!(
        dropped.recv_timeout(DEADLINE),
        Err(RecvTimeoutError::Disconnected)
    );
    assert!(cancellation.is_cancelled());
    assert_eq!(reply.item("").unwrap_err().reason, CallErrorReason::Closed);
    reply.ok("to nobody");
    eventually("the client has disconnected", || {
        running.sender().connections() == 0
    });
    let metrics = running.sender().metrics();
    assert_eq!(
        metrics.dropped.closed, 0,
        "a reply was sent to a disconnected client"
    );
    assert_eq!((metrics.calls.cancelled, metrics.calls.unanswered), (1, 0));
    running.shutdown(STOP);
}

#[test]
fn panicking_on_cancel_ends_nothing_else() {
    let procedures = Procedures::new()
        .on_call("on the pool", |call| {
            call.on_cancel(|| panic!("a panic on purpose"));
            assert!(call.wait_cancelled(DEADLINE));
            Err(call.abort_error())
        })
        .on_call("in the handler", |call| {
            assert!(call.wait_cancelled(DEADLINE));
            call.on_cancel(|| panic!("a panic on purpose"));
            Err(call.abort_error())
        })
        .on_call("echo", |call| Ok(call.data().clone()));
    let (running, address) = start(app(procedures));
    let mut client = connect(address, V1);
    for procedure in ["on the pool", "in the handler"] {
        client.send_binary(request(1, procedure, b""));
        client.send_binary(request(2, "$ping", b""));
        assert_eq!(client.receive_frame(), response(2, b""));
        client.send_binary(reset(1));
        client.receive_error(1, 3);
        client.send_binary(request(1, "echo", b"still there"));
        assert_eq!(client.receive_frame(), response(1, b"still there"));
    }
    running.shutdown(STOP);
}

#[test]
fn on_cancel_may_drop_the_reply() {
    let procedures = Procedures::new().on_call("later", |call| {
        let reply = call.defer();
        call.on_cancel(move || drop(reply));
    });
    let (running, address) = start(app(procedures));
    let mut client = connect(address, V1);
    for id in 0..3 {
        client.send_binary(request(id, "later", b""));
        client.send_binary(request(9, "$ping", b""));
        assert_eq!(client.receive_frame(), response(9, b""));
        client.send_binary(reset(id));
        client.receive_error(id, 3);
    }
    running.shutdown(STOP);
}

#[test]
fn each_called_and_cancelled_request_has_one_end() {
    let (replies, waiting) = mpsc::channel::<Reply>();
    let procedures = Procedures::new()
        .on_call("now", |_| Ok("now"))
        .on_call("silent", |_| ())
        .on_call("wait", |call| {
            call.wait_cancelled(Duration::from_millis(1));
            call.item("part")?;
            Ok("waited")
        })
        .on_call("later", move |call| replies.send(call.defer()).unwrap());
    let late = thread::spawn(move || {
        for (n, reply) in waiting.iter().enumerate() {
            match n % 3 {
                0 => reply.ok("late"),
                1 => reply.error("late"),
                _ => drop(reply),
            }
        }
    });
    let (running, address) = start(app(procedures).with_shards(2));
    let clients: Vec<_> = (1..4u32)
        .map(|seed| {
            thread::spawn(move || {
                let mut client = connect(address, V1);
                let mut dice = seed;
                let mut roll = |n: u32| {
                    // A linear congruential generator is random enough here.
                    dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (dice >> 16) % n
                };
                let names = ["now", "silent", "wait", "later", "nobody", "$ping"];
                let mut open = HashSet::new();
                for round in 0..60 {
                    let mut frames = Vec::new();
                    for id in 0..10 {
                        if !open.insert(id) {
                            continue;
                        }
                        let name = names[roll(names.len() as u32) as usize];
                        frames.push(request(id, name, b""));
                        if roll(2) == 0 {
                            // Resets this call, another one, or none.
                            frames.push(reset(roll(12)));
                        }
                    }
                    client.send_at_once(frames);
                    let left = if round == 59 { 0 } else { roll(10) as usize };
                    while open.len() > left {
                        let frame = client.receive_frame();
                        let id = u32::from_be_bytes(frame[1..5].try_into().unwrap());
                        assert!(open.contains(&id), "{frame:?} after its end");
                        if frame[0] != 6 {
                            open.remove(&id);
                        }
                    }
                }
                client.close();
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    // The app owns the other end of the channel.
    running.shutdown(STOP);
    late.join().unwrap();
}
