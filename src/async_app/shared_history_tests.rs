//! Tests of this node's copy of a history, without a broker.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use super::*;
use crate::async_app::{AsyncSender, AsyncWebsocketApp, RunningApp};
use crate::limits::{HistoryLimits, Limits};
use crate::request::Accept;

const DEADLINE: Duration = Duration::from_secs(20);
const MAILBOX: usize = 1 << 16;

/// An app with a rendered client in the room `kept`.
struct Scene {
    running: RunningApp,
    sender: AsyncSender,
    _client: TcpStream,
    /// When the messages were sent that the renderer was called with.
    rendered: Arc<Mutex<Vec<SystemTime>>>,
    gaps: Arc<AtomicUsize>,
}

impl Scene {
    fn new() -> Self {
        let (opened, open) = mpsc::channel();
        let (rendered, gaps) = (
            Arc::<Mutex<Vec<_>>>::default(),
            Arc::<AtomicUsize>::default(),
        );
        let (calls, gap_calls) = (rendered.clone(), gaps.clone());
        let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_with_config((), 1, 1);
        let running = app
            .with_address("127.0.0.1:0")
            .with_shards(1)
            .with_limits(Limits::default().mailbox_bytes_max(MAILBOX))
            .with_history("kept", HistoryLimits::messages(10).bytes(1 << 20))
            .with_renderer(move |kept| {
                lock(&calls).push(kept.sent_at());
                kept.message().clone()
            })
            .with_gap_handler(move |_| {
                gap_calls.fetch_add(1, SeqCst);
                panic!("as it should");
            })
            .with_handshake_handler(|_, _| Ok(Accept::new().rendered()))
            .with_connect_handler(move |stream, _| {
                stream.join("kept");
                opened.send(()).unwrap();
            })
            .start()
            .unwrap();
        let mut client = TcpStream::connect(running.local_addr().unwrap()).unwrap();
        client
            .write_all(
                b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                  Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
            )
            .unwrap();
        open.recv_timeout(DEADLINE).unwrap();
        Self {
            sender: running.sender(),
            running,
            _client: client,
            rendered,
            gaps,
        }
    }

    fn hub(&self) -> &Hub {
        &self.running.engine.hub
    }

    /// Delivers a message that was sent at this time, and returns the outcome.
    fn keep(&self, sequence: u64, sent_at: u64) -> Delivered {
        let room = self.sender.0.rooms.find("kept").unwrap();
        let epoch = room.history().unwrap().position().epoch();
        let sent = SentMessage {
            message: Message::new("x"),
            sent_at,
        };
        let id = HistoryId::new(epoch, sequence);
        self.sender.0.keep_copy(self.hub(), "kept", id, &sent, None)
    }

    /// Keeps the mailbox full during a closure.
    fn with_full_mailbox(&self, act: impl FnOnce()) {
        let mailbox = &self.hub().shards[0].mailbox;
        while mailbox.try_reserve(MAILBOX).is_err() {
            thread::yield_now();
        }
        act();
        mailbox.unreserve(MAILBOX);
    }
}

#[test]
fn message_that_waits_for_a_mailbox_is_rendered_once() {
    let scene = Scene::new();
    scene.with_full_mailbox(|| {
        for _ in 0..3 {
            assert_eq!(scene.keep(1, 5), Delivered::Full);
        }
    });
    assert_eq!(scene.keep(1, 5), Delivered::Done);
    assert_eq!(lock(&scene.rendered).len(), 1);
    assert_eq!(scene.keep(2, 5), Delivered::Done);
    assert_eq!(lock(&scene.rendered).len(), 2);
    assert_eq!(scene.sender.room("kept").since(None).unwrap().len(), 2);
    scene.running.shutdown(Duration::ZERO);
}

#[test]
fn message_of_unknown_time_counts_as_sent_when_received() {
    let scene = Scene::new();
    let before = SystemTime::now() - Duration::from_millis(1);
    assert_eq!(scene.keep(1, 5), Delivered::Done);
    assert_eq!(scene.keep(2, 0), Delivered::Done);
    let rendered = lock(&scene.rendered);
    assert_eq!(
        rendered[0],
        SystemTime::UNIX_EPOCH + Duration::from_millis(5)
    );
    assert!((before..=SystemTime::now()).contains(&rendered[1]));
    drop(rendered);
    scene.running.shutdown(Duration::ZERO);
}

#[test]
fn gap_handler_that_panics_is_called_once_and_counted() {
    let scene = Scene::new();
    let copy = CopyBeginning {
        position: HistoryId::new(7, 3),
        messages: vec![Message::new("x").into()],
        has_gap: true,
    };
    let begin = || scene.sender.0.begin_copy(scene.hub(), "kept", &copy);
    scene.with_full_mailbox(|| assert_eq!(begin(), Delivered::Full));
    assert_eq!(begin(), Delivered::Done);
    assert_eq!(scene.gaps.load(SeqCst), 1);
    assert_eq!(scene.sender.metrics().handler_panics, 1);
    assert_eq!(scene.sender.room("kept").last_id(), Some(copy.position));
    scene.running.shutdown(Duration::ZERO);
}

#[test]
fn message_that_reaches_a_stopping_engine_is_kept_and_not_counted_as_lost() {
    let scene = Scene::new();
    assert_eq!(scene.keep(1, 5), Delivered::Done);
    // From here on the shards take nothing, and still have the client.
    let mailbox = &scene.hub().shards[0].mailbox;
    mailbox.close();
    assert_eq!(scene.keep(2, 5), Delivered::Done);
    assert_eq!(scene.sender.room("kept").since(None).unwrap().len(), 2);
    let gap = CopyBeginning {
        position: HistoryId::new(7, 3),
        messages: Vec::new(),
        has_gap: true,
    };
    let (shared, hub) = (&scene.sender.0, scene.hub());
    assert_eq!(shared.tell_silence(hub, "kept", true), Delivered::Done);
    assert_eq!(shared.begin_copy(hub, "kept", &gap), Delivered::Done);
    assert_eq!(scene.sender.metrics().dropped.not_running, 0);
    scene.running.shutdown(Duration::ZERO);
}
