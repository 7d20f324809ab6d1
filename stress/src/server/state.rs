//! What the handlers of the server under test share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, OnceLock};

use humphrey_ws::{AsyncSender, AsyncStream, Message};

use crate::body::MessageCodec;
use crate::check::{Failure, Outcome};

/// State that the handlers of all connections share.
pub(super) struct ServerState {
    pub(super) seed: u64,
    pub(super) codec: MessageCodec,
    pub(super) opened: AtomicU64,
    pub(super) closed: AtomicU64,
    /// Violated invariants that handlers have detected.
    pub(super) violations: AtomicU64,
    /// Messages that handlers have sent.
    pub(super) sends: AtomicU64,
    /// Broadcasts of producers and handlers that were accepted, and that were refused because the app stops.
    pub(super) offered: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) producing: AtomicU64,
    /// The last message number of each producer.
    pub(super) sent: Mutex<BTreeMap<u32, u64>>,
    pub(super) late: Mutex<u64>,
    pub(super) rooms: RoomNumbers,
    /// Recipients of the broadcasts of rounds when they were made, and messages of histories that were replayed.
    pub(super) due: AtomicU64,
    pub(super) replayed: AtomicU64,
    pub(super) sender: OnceLock<AsyncSender>,
}

impl ServerState {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            codec: MessageCodec::new(seed),
            opened: AtomicU64::default(),
            closed: AtomicU64::default(),
            violations: AtomicU64::default(),
            sends: AtomicU64::default(),
            offered: AtomicU64::default(),
            refused: AtomicU64::default(),
            producing: AtomicU64::default(),
            sent: Mutex::default(),
            late: Mutex::default(),
            rooms: RoomNumbers::default(),
            due: AtomicU64::default(),
            replayed: AtomicU64::default(),
            sender: OnceLock::new(),
        }
    }

    pub(super) fn sender(&self) -> Outcome<&AsyncSender> {
        let sender = self.sender.get();
        sender.ok_or_else(|| Failure::new("the app has not started"))
    }

    #[allow(
        clippy::print_stderr,
        reason = "standard output carries the protocol with the parent"
    )]
    pub(super) fn violated(&self, what: &str) {
        if self.violations.fetch_add(1, SeqCst) < 10 {
            eprintln!("stress, server: invariant violated: {what}");
        }
    }

    pub(super) fn send(&self, stream: &AsyncStream<HandlerOrder>, message: Message) {
        self.sends.fetch_add(1, SeqCst);
        stream.send(message);
    }
}

/// Tracks the handlers of one connection, to check that they run in order and one at a time.
#[derive(Default)]
pub(super) struct HandlerOrder {
    pub(super) stage: AtomicU8,
    pub(super) is_running: AtomicBool,
    /// Number of numbered messages received so far.
    pub(super) messages: AtomicU64,
}

/// The number of the next message to each room that has ever had a member, and has not been found empty since.
#[derive(Default)]
pub(super) struct RoomNumbers(Mutex<BTreeMap<String, u64>>);

impl RoomNumbers {
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
