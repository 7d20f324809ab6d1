//! Tests that a logger of the program may block, and may send log lines to clients, without delaying anybody else.
#![cfg(not(feature = "tracing"))]

mod support;

use std::io::Write;
use std::sync::{Condvar, Mutex, OnceLock, mpsc};

use humphrey_ws::{AsyncSender, AsyncWebsocketApp, Limits, Message, RunningApp};
use support::{
    Client, DEADLINE, client_frame, close_code, eventually, read_frame, read_head, start, tcp,
    upgrade_request,
};

/// A logger that waits at a gate, and then broadcasts each line followed by a large payload.
struct BlockingLogger;

static SENDER: OnceLock<AsyncSender> = OnceLock::new();
static GATE: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl log::Log for BlockingLogger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = record.args().to_string();
        let open = GATE.0.lock().unwrap();
        drop(GATE.1.wait_timeout_while(open, 3 * DEADLINE, |open| !*open));
        LINES.lock().unwrap().push(line.clone());
        if let Some(sender) = SENDER.get() {
            for _ in 0..20 {
                sender.broadcast(Message::new(format!("{line}{}", " ".repeat(100_000))));
            }
        }
    }

    fn flush(&self) {}
}

/// An app with one handler thread, whose handlers block until they are released.
struct Blocking {
    running: RunningApp,
    clients: [Client; 2],
    released: mpsc::Sender<()>,
}

impl Blocking {
    fn start() -> Self {
        let (released, release) = mpsc::channel::<()>();
        let release = Mutex::new(release);
        let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_with_config((), 1, 1)
            .with_adaptive_handlers(false)
            .with_message_handler(move |stream, message, _| {
                release.lock().unwrap().recv_timeout(DEADLINE).unwrap();
                stream.send(message);
            });
        let (running, address) = start(app);
        Self {
            running,
            clients: [Client::connect(address), Client::connect(address)],
            released,
        }
    }

    /// Blocks all handlers until the watchdog has warned of that, and then releases them.
    fn block(&mut self) {
        let before = self.running.sender().metrics().handlers_exhausted;
        for client in &mut self.clients {
            client.send("blocks");
        }
        eventually("the watchdog has noticed the blocked handlers", || {
            self.running.sender().metrics().handlers_exhausted > before
        });
        // The handler thread handles the two messages in any order, so release both before receiving.
        for _ in &self.clients {
            self.released.send(()).unwrap();
        }
        for client in &mut self.clients {
            client.receive_text();
        }
        eventually(
            "the watchdog has noticed that no handler is blocked",
            || self.running.sender().metrics().handlers_blocked == 0,
        );
    }
}

#[test]
fn blocking_and_broadcasting_logger_delays_nobody() {
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
        .with_shards(1)
        .with_message_handler(|stream, message, _| stream.send(message))
        .with_limits(
            Limits::default()
                .mailbox_bytes_max(256 << 10)
                .outbox_bytes_max(64 << 20),
        );
    let (running, address) = start(app);
    let mut blocking = Blocking::start();
    log::set_logger(&BlockingLogger).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let mut other = Client::connect(address);
    // The shard logs a line about this client.
    let mut bad = tcp(address);
    bad.write_all(upgrade_request("/").as_bytes()).unwrap();
    read_head(&mut bad);
    bad.write_all(&client_frame(0x83, b"reserved")).unwrap();
    assert_eq!(close_code(&read_frame(&mut bad).unwrap().1), 1002);
    let mut serves = |what: &str| {
        other.send(what);
        loop {
            let text = other.receive_text();
            if text == what {
                break;
            }
            let known = ["broke the protocol", "handler threads are blocked"];
            assert!(known.iter().any(|line| text.contains(line)), "{text}");
        }
    };
    serves("while the logger blocks");
    for _ in 0..2 {
        blocking.block();
    }
    let _ = SENDER.set(running.sender());
    *GATE.0.lock().unwrap() = true;
    GATE.1.notify_all();
    serves("while it sends");
    eventually("the line was logged", || {
        let lines = LINES.lock().unwrap();
        lines.iter().any(|line| line.contains("broke the protocol"))
    });
    serves("after it has sent");
    running.shutdown(std::time::Duration::from_secs(5));
}
