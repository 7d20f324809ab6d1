//! Tests of message handlers that borrow their stream, and of streams that handlers keep.

use crate::frames::STOP;
use crate::support;

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};

use humphrey_ws::{AsyncStream, AsyncWebsocketApp};
use support::{Client, DEADLINE, eventually, start};

const MESSAGES: usize = 50;

/// Sends many messages at once, so that the server reads several together.
fn send_all(client: &mut Client) {
    (0..MESSAGES).for_each(|n| client.send(&n.to_string()));
}

#[test]
fn borrowing_handler_gets_stream_message_and_both_states() {
    for adaptive in [true, false] {
        let app = AsyncWebsocketApp::<AtomicUsize, AtomicUsize>::new()
            .with_message_handler(|_, _, _| panic!("it is replaced"))
            .with_message_handler_ref(|stream, message, total| {
                let (own, total) = (
                    stream.state.fetch_add(1, SeqCst),
                    total.fetch_add(1, SeqCst),
                );
                let text = message.text().unwrap_or_default();
                stream.send(format!("{text} {own} {total} {}", stream.path()));
            })
            .with_adaptive_handlers(adaptive)
            .with_address("127.0.0.1:0");
        let (running, address) = start(app);
        let mut client = Client::connect(address);
        send_all(&mut client);
        for n in 0..MESSAGES {
            assert_eq!(client.receive_text(), format!("{n} {n} {n} /"));
        }
        let mut other = Client::connect(address);
        other.send("other");
        assert_eq!(other.receive_text(), format!("other 0 {MESSAGES} /"));
        running.shutdown(STOP);
    }
}

#[test]
fn panic_of_a_borrowing_handler_closes_its_connection_only() {
    let app = AsyncWebsocketApp::<()>::new()
        .with_message_handler_ref(|stream, message, _| {
            assert_ne!(message.text(), Some("10"), "expected in a test");
            stream.send(message);
        })
        .with_address("127.0.0.1:0");
    let (running, address) = start(app);
    let (mut client, mut other) = (Client::connect(address), Client::connect(address));
    send_all(&mut client);
    for n in 0..10 {
        assert_eq!(client.receive_text(), n.to_string());
    }
    let (rest, close) = client.receive_to_close();
    assert_eq!(
        (rest.len(), close.map(|close| close.code.into())),
        (0, Some(1011))
    );
    other.send("still there?");
    assert_eq!(other.receive_text(), "still there?");
    let sender = running.sender();
    running.shutdown(STOP);
    let metrics = sender.metrics();
    assert_eq!(metrics.handler_panics, 1);
    assert_eq!(metrics.messages_in, 1 + 11 + metrics.dropped.unhandled);
}

#[test]
fn kept_streams_of_one_batch_reach_their_own_clients() {
    type Kept = Mutex<Vec<(String, AsyncStream)>>;
    for adaptive in [true, false] {
        let app = AsyncWebsocketApp::<Kept>::new()
            .with_message_handler(|stream, message, kept| {
                let text = message.text().unwrap_or_default().to_owned();
                // Every other stream is dropped, and its link goes to the next one.
                if text.ends_with(['0', '2', '4', '6', '8']) {
                    kept.lock().unwrap().push((text, stream));
                }
            })
            .with_adaptive_handlers(adaptive)
            .with_address("127.0.0.1:0");
        let kept = app.get_state();
        let (running, address) = start(app);
        let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(address)).collect();
        for (at, client) in clients.iter_mut().enumerate() {
            (0..MESSAGES).for_each(|n| client.send(&format!("{at} {n}")));
        }
        let wanted = clients.len() * MESSAGES / 2;
        eventually("the streams are kept", || {
            kept.lock().unwrap().len() == wanted
        });
        for (text, stream) in kept.lock().unwrap().drain(..) {
            stream.send(text);
        }
        for (at, client) in clients.iter_mut().enumerate() {
            for n in (0..MESSAGES).step_by(2) {
                assert_eq!(client.receive_text(), format!("{at} {n}"));
            }
        }
        running.shutdown(STOP);
    }
}

/// A state that tells when it is dropped.
#[derive(Default)]
struct Told(Mutex<Option<mpsc::Sender<()>>>);

impl Drop for Told {
    fn drop(&mut self) {
        if let Some(sender) = self.0.get_mut().unwrap().take() {
            let _ = sender.send(());
        }
    }
}

#[test]
fn state_of_a_stream_is_dropped_with_the_connection_and_the_last_kept_stream() {
    type Kept = Mutex<Vec<AsyncStream<Told>>>;
    let (sender, dropped) = mpsc::channel();
    let app = AsyncWebsocketApp::<Kept, Told>::new()
        .with_message_handler(move |stream, message, kept| {
            *stream.state.0.lock().unwrap() = Some(sender.clone());
            if message.text() == Some("keep") {
                kept.lock().unwrap().push(stream);
            }
        })
        .with_address("127.0.0.1:0");
    let kept = app.get_state();
    let (running, address) = start(app);
    let mut keeping = Client::connect(address);
    ["a", "keep", "b"]
        .iter()
        .for_each(|text| keeping.send(text));
    eventually("a stream is kept", || kept.lock().unwrap().len() == 1);
    drop(keeping);
    let mut passing = Client::connect(address);
    ["a", "b", "c"].iter().for_each(|text| passing.send(text));
    drop(passing);
    assert_eq!(
        dropped.recv_timeout(DEADLINE),
        Ok(()),
        "of the client that kept none"
    );
    let weak: Vec<_> = kept
        .lock()
        .unwrap()
        .drain(..)
        .map(|stream| Arc::downgrade(&stream.state))
        .collect();
    assert_eq!(
        dropped.recv_timeout(DEADLINE),
        Ok(()),
        "of the other, after its last stream"
    );
    assert!(weak.iter().all(|state| state.upgrade().is_none()));
    running.shutdown(STOP);
}
