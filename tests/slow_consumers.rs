//! Tests the effect of each policy for slow consumers, on the slow clients and on all others.

use crate::readers;
use crate::support;

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use humphrey_ws::{
    AsyncSender, AsyncWebsocketApp, HistoryLimits, Limits, Message, RunningApp, SlowConsumer,
};
use readers::{Reader, expect_all, read_all};
use support::{DEADLINE, close_code, eventually, raw_websocket, read_frame, start};

const MESSAGE_BYTES: usize = 1_000;
const MESSAGES: u64 = 30_000;
const STOP: Duration = Duration::from_millis(100);

fn serve(policy: SlowConsumer) -> (RunningApp, SocketAddr) {
    // A short close timeout would reset a client whose thread waits for a CPU before it reads its close frame.
    let limits = Limits::default().outbox_bytes_max(200_000);
    start(
        AsyncWebsocketApp::<()>::new()
            .with_shards(2)
            .with_limits(limits)
            .with_slow_consumer(policy),
    )
}

/// Serves clients that join the room `prices`, which keeps a history.
fn serve_prices(policy: SlowConsumer) -> (RunningApp, SocketAddr) {
    start(
        AsyncWebsocketApp::<()>::new()
            .with_limits(Limits::default().outbox_bytes_max(200_000))
            .with_slow_consumer(policy)
            .with_history("prices", HistoryLimits::messages(10))
            .with_connect_handler(|stream, _| stream.join("prices")),
    )
}

fn numbered(n: u64) -> Message {
    let mut payload = vec![b'.'; MESSAGE_BYTES];
    payload[..8].copy_from_slice(&n.to_be_bytes());
    Message::new_binary(payload)
}

/// Checks the payload of a message, and returns its number.
fn number_of(payload: &[u8]) -> u64 {
    assert_eq!(payload.len(), MESSAGE_BYTES, "a message was truncated");
    assert!(
        payload[8..].iter().all(|&byte| byte == b'.'),
        "two messages were mixed"
    );
    u64::from_be_bytes(payload[..8].try_into().unwrap())
}

/// Measures how long threads of this process wait for a processor.
struct Lag {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Lag {
    /// The duration of a sleep, which may normally take twice as long.
    const STEP: Duration = Duration::from_millis(5);

    fn measure() -> Self {
        let over = Arc::<AtomicBool>::default();
        let of_thread = over.clone();
        let thread = std::thread::spawn(move || {
            let mut lag = Duration::ZERO;
            while !of_thread.load(Ordering::Relaxed) {
                let began = Instant::now();
                std::thread::sleep(Self::STEP);
                lag += began.elapsed().saturating_sub(2 * Self::STEP);
            }
            lag
        });
        Self { over, thread }
    }

    fn end(self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn connect_reader(address: SocketAddr) -> Reader {
    Reader::start(raw_websocket(address), number_of)
}

/// Broadcasts at a rate that the readers sustain: at most a fraction of an outbox is in flight.
fn broadcast_all(sender: &AsyncSender, readers: &[Reader]) {
    readers::broadcast_all(sender, readers, 50, (0..MESSAGES).map(numbered));
}

#[test]
fn disconnect_ends_the_slow_client_and_others_get_all() {
    let (running, address) = serve(SlowConsumer::Disconnect);
    let sender = running.sender();
    let readers = [(); 3].map(|()| connect_reader(address));
    let nonreader = raw_websocket(address);
    eventually("all clients are connected", || sender.connections() == 4);
    broadcast_all(&sender, &readers);
    eventually("the nonreader is disconnected", || {
        sender.connections() == 3
    });
    assert_eq!(sender.metrics().slow_consumers, 1);
    running.shutdown(DEADLINE);
    expect_all(readers, MESSAGES);
    // The nonreader was reset. The messages before that are complete and without a gap, perhaps with the close frame.
    let got = read_all(nonreader, number_of);
    assert!(got.has_no_gap());
    assert!(matches!(got.close, None | Some(1013)), "{:?}", got.close);
}

#[test]
fn close_frame_follows_the_last_whole_message() {
    let (running, address) = serve(SlowConsumer::Disconnect);
    let sender = running.sender();
    let late = raw_websocket(address);
    eventually("the client is connected", || sender.connections() == 1);
    let mut n = 0;
    while sender.metrics().slow_consumers == 0 {
        sender.broadcast(numbered(n));
        n += 1;
    }
    let got = read_all(late, number_of);
    assert_eq!(got.close, Some(1013));
    assert!(got.has_no_gap());
    eventually("all messages are sent or dropped", || {
        let metrics = sender.metrics();
        metrics.messages_out + metrics.dropped.total() == n
    });
    assert_eq!(sender.metrics().messages_out, got.numbers.len() as u64);
    running.shutdown(STOP);
}

#[test]
fn drop_newest_keeps_the_oldest_and_counts_exactly() {
    dropping(SlowConsumer::DropNewest);
}

#[test]
fn drop_oldest_keeps_the_newest_and_counts_exactly() {
    let numbers = dropping(SlowConsumer::DropOldest);
    assert_eq!(
        *numbers.last().unwrap(),
        MESSAGES - 1,
        "the newest message was dropped"
    );
}

/// How many messages each gap lacks. The numbers must increase.
fn gaps(numbers: &[u64]) -> Vec<u64> {
    let next = numbers.windows(2).map(|two| two[1].checked_sub(two[0] + 1));
    let lacking = next.map(|lacking| lacking.expect("the numbers increase"));
    lacking.filter(|&lacking| lacking > 0).collect()
}

#[test]
fn skip_ahead_brings_a_stopped_reader_back_to_the_newest() {
    const BEFORE: u64 = 10;
    let (running, address) = serve(SlowConsumer::SkipAhead);
    let sender = running.sender();
    let readers = [connect_reader(address)];
    let mut stops = raw_websocket(address);
    eventually("both clients are connected", || sender.connections() == 2);
    (0..BEFORE).for_each(|n| sender.broadcast(numbered(n)));
    let mut got = Vec::new();
    let mut read_to = |last: u64| {
        while got.last() != Some(&last) {
            let (opcode, payload) = read_frame(&mut stops).unwrap();
            assert_eq!(opcode, 0x82, "it received {} messages", got.len());
            got.push(number_of(&payload));
        }
    };
    read_to(BEFORE - 1);
    // It stops reading here, and then reads on.
    let meanwhile = (BEFORE..MESSAGES - 1).map(numbered);
    readers::broadcast_all(&sender, &readers, 50, meanwhile);
    read_to(MESSAGES - 2);
    // Its outbox is empty now.
    sender.broadcast(numbered(MESSAGES - 1));
    read_to(MESSAGES - 1);
    let gaps = gaps(&got);
    assert!(!gaps.is_empty());
    let dropped = sender.metrics().dropped.slow_consumer;
    assert_eq!(got.len() as u64 + dropped, MESSAGES);
    assert_eq!(gaps.iter().sum::<u64>(), dropped);
    assert_eq!(sender.metrics().slow_consumers, 0);
    running.shutdown(DEADLINE);
    assert_eq!(close_code(&read_frame(&mut stops).unwrap().1), 1001);
    expect_all(readers, MESSAGES);
}

#[test]
fn skipped_messages_show_as_jumps_of_their_ids() {
    let (running, address) = serve_prices(SlowConsumer::SkipAhead);
    let sender = running.sender();
    let room = sender.room("prices");
    let nonreader = raw_websocket(address);
    eventually("the client has joined", || room.len() == 1);
    let mut sent = 0;
    while sender.metrics().dropped.slow_consumer == 0 {
        room.broadcast_with(|id| numbered(id.expect("the room keeps a history").sequence()));
        sent += 1;
    }
    let late = std::thread::spawn(move || read_all(nonreader, number_of));
    running.shutdown(DEADLINE);
    let got = late.join().unwrap();
    assert_eq!(got.numbers.first(), Some(&1));
    assert_eq!(got.numbers.last(), Some(&sent), "the newest was dropped");
    let skipped: u64 = gaps(&got.numbers).iter().sum();
    assert_eq!(skipped, sender.metrics().dropped.slow_consumer);
    assert_eq!(got.numbers.len() as u64 + skipped, sent);
}

fn dropping(policy: SlowConsumer) -> Vec<u64> {
    let (running, address) = serve(policy);
    let sender = running.sender();
    let readers = [(); 2].map(|()| connect_reader(address));
    let nonreader = raw_websocket(address);
    eventually("all clients are connected", || sender.connections() == 3);
    broadcast_all(&sender, &readers);
    assert_eq!(sender.connections(), 3, "a client was disconnected");
    let late = std::thread::spawn(move || read_all(nonreader, number_of));
    eventually("all messages are sent or dropped", || {
        let metrics = sender.metrics();
        metrics.messages_out + metrics.dropped.slow_consumer == MESSAGES * 3
    });
    let metrics = sender.metrics();
    assert!(metrics.dropped.slow_consumer > 0);
    running.shutdown(DEADLINE);
    expect_all(readers, MESSAGES);
    let got = late.join().unwrap();
    assert_eq!(got.close, Some(1001));
    assert!(got.numbers.is_sorted(), "the messages are out of order");
    assert_eq!(
        got.numbers.len() as u64 + metrics.dropped.slow_consumer,
        MESSAGES
    );
    got.numbers
}

#[test]
fn pace_delivers_all_to_readers_and_ends_nonreaders() {
    let (running, address) = serve(SlowConsumer::Pace {
        bytes_per_second_min: 1_000,
        // Longer than a reader's thread may wait for a CPU here.
        patience: Duration::from_secs(5),
    });
    let sender = running.sender();
    // Nine clients that read at different rates, and one that never reads.
    let readers: Vec<_> = (1..=9u64)
        .map(|rate| {
            let mut socket = raw_websocket(address);
            std::thread::spawn(move || {
                let mut received = Vec::new();
                let mut buffer = vec![0; 4 << 10 << (rate / 2)];
                let began = Instant::now();
                loop {
                    match socket.read(&mut buffer) {
                        Ok(0) | Err(_) => break,
                        Ok(n) => received.extend_from_slice(&buffer[..n]),
                    }
                    // Reads at most at this rate on average, so that it may catch up after a delay.
                    let due = Duration::from_secs_f64(received.len() as f64 / (rate as f64 * 20e6));
                    if let Some(early) = due.checked_sub(began.elapsed()) {
                        std::thread::park_timeout(early);
                    }
                }
                received
            })
        })
        .collect();
    let nonreader = raw_websocket(address);
    eventually("all clients are connected", || sender.connections() == 10);
    // The producer is as fast as the clients let it be.
    for n in 0..MESSAGES {
        sender.broadcast(numbered(n));
    }
    eventually("the nonreader is disconnected", || {
        sender.connections() == 9
    });
    assert_eq!(sender.metrics().slow_consumers, 1);
    running.shutdown(DEADLINE);
    for reader in readers {
        let received = reader.join().unwrap();
        let mut frames = &received[..];
        for n in 0..MESSAGES {
            let (opcode, payload) = read_frame(&mut frames).unwrap();
            assert_eq!((opcode, &payload[..8]), (0x82, &n.to_be_bytes()[..]));
        }
        assert_eq!(close_code(&read_frame(&mut frames).unwrap().1), 1001);
    }
    drop(nonreader);
}

#[test]
fn pace_waits_once_for_all_nonreaders() {
    const NONREADERS: usize = 8;
    // Bytes that the kernel buffers late must not count as reading, which would extend each client's time by two seconds.
    const WAIT_MAX: Duration = Duration::from_millis(2_500);
    let app = AsyncWebsocketApp::<()>::new()
        .with_shards(1)
        .with_slow_consumer(SlowConsumer::pace());
    let (running, address) = start(app);
    let sender = running.sender();
    let reader = connect_reader(address);
    let nonreaders = [(); NONREADERS].map(|()| raw_websocket(address));
    eventually("all clients are connected", || {
        sender.connections() == NONREADERS + 1
    });
    let lag = Lag::measure();
    let deadline = Instant::now() + DEADLINE;
    let mut sent = 0;
    while sender.connections() > 1 {
        sender.broadcast(numbered(sent));
        sent += 1;
        assert!(
            Instant::now() < deadline,
            "the nonreaders were never disconnected"
        );
    }
    let metrics = sender.metrics();
    assert_eq!(metrics.slow_consumers, NONREADERS as u64);
    let (paced, lag) = (metrics.paced, lag.end());
    assert!(
        paced < WAIT_MAX + lag,
        "{paced:?}, of which {lag:?} without a processor"
    );
    running.shutdown(DEADLINE);
    let got = reader.join();
    assert_eq!((got.numbers.len() as u64, got.has_no_gap()), (sent, true));
    drop(nonreaders);
}

#[test]
fn full_outbox_fails_a_try_send() {
    let (running, address) = serve(SlowConsumer::DropNewest);
    let sender = running.sender();
    let nonreader = raw_websocket(address);
    eventually("the client is connected", || sender.connections() == 1);
    let to = nonreader.local_addr().unwrap();
    let deadline = Instant::now() + DEADLINE;
    let error = loop {
        if let Err(error) = sender.try_send(to, numbered(0)) {
            break error;
        }
        assert!(Instant::now() < deadline, "the outbox never became full");
    };
    assert_eq!(error.reason, humphrey_ws::SendErrorReason::Full);
    assert_eq!(error.message.bytes().len(), MESSAGE_BYTES);
    running.shutdown(STOP);
}

/// The policy can't drop what the kernel has accepted, and the client receives it before newer messages.
#[cfg(target_os = "linux")]
#[test]
fn kernel_takes_little_for_a_client_that_skips_ahead() {
    const BYTES_MAX: u64 = 1 << 20;
    let (running, address) = serve(SlowConsumer::SkipAhead);
    let sender = running.sender();
    let _nonreader = raw_websocket(address);
    eventually("it is connected", || sender.connections() == 1);
    let before = sender.metrics().bytes_out;
    // As many as the largest buffers of Linux hold by default.
    for n in 0..8_000 {
        sender.broadcast(numbered(n));
    }
    eventually("most messages are dropped", || {
        sender.metrics().dropped.slow_consumer > 6_000
    });
    let taken = sender.metrics().bytes_out - before;
    assert!(taken < BYTES_MAX, "the kernel took {taken} bytes");
    running.shutdown(STOP);
}
