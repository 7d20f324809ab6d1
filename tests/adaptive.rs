//! Tests that all guarantees hold for inline handlers, which run on reactor threads, and while handlers move between
//! reactor threads and the pool.

mod support;

use std::collections::HashSet;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use humphrey_ws::{AsyncStream, AsyncWebsocketApp, Message, RunningApp};
use support::{Client, DEADLINE, client_frame, eventually, raw_websocket, read_frame};

const STOP: Duration = Duration::from_millis(100);
const HERE: &str = "humphrey_ws shard 0";
const POOL: &str = "humphrey_ws handler";

fn thread_name() -> String {
    thread::current().name().unwrap_or_default().to_owned()
}

/// Starts an app with inline handlers, which `support::start` may disable.
fn start<S, T>(app: AsyncWebsocketApp<S, T>) -> (RunningApp, SocketAddr)
where
    S: Send + Sync + 'static,
    T: Send + Sync + Default + 'static,
{
    let running = app
        .with_adaptive_handlers(true)
        .with_address("127.0.0.1:0")
        .start()
        .unwrap();
    let address = running.local_addr().unwrap();
    (running, address)
}

/// A gate that blocks handlers until it is opened.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.opened.wait(open).unwrap();
        }
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn close(&self) {
        *self.open.lock().unwrap() = false;
    }
}

/// Creates an app whose handler replies with the name of its thread. The message `block` then waits at the gate, and
/// `sleep` sleeps for 5 ms.
fn thread_name_app(threads: usize) -> AsyncWebsocketApp<Gate> {
    AsyncWebsocketApp::new_with_config(Gate::default(), threads, 1)
        .with_shards(1)
        .with_message_handler(|stream, message, gate: Arc<Gate>| {
            stream.send(Message::new(thread_name()));
            match message.text() {
                Some("block") => {
                    gate.pass();
                    stream.send(Message::new("after"));
                }
                Some("sleep") => thread::sleep(Duration::from_millis(5)),
                _ => {}
            }
        })
}

/// Sends messages until the handler replies from a thread of this kind.
fn send_until_on(client: &mut Client, place: &str, message: &str) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        client.send(message);
        if client.receive_text() == place {
            return;
        }
        assert!(Instant::now() < deadline, "no handler ran on {place}");
    }
}

#[test]
fn fast_handlers_run_inline_only_if_allowed() {
    let (running, address) = start(thread_name_app(4));
    send_until_on(&mut Client::connect(address), HERE, "quick");
    running.shutdown(STOP);

    let running = thread_name_app(4)
        .with_adaptive_handlers(false)
        .with_address("127.0.0.1:0")
        .start()
        .unwrap();
    let mut client = Client::connect(running.local_addr().unwrap());
    for _ in 0..100 {
        client.send("quick");
        assert_eq!(client.receive_text(), POOL);
    }
    running.shutdown(STOP);
}

#[test]
fn single_handler_thread_runs_all_handlers() {
    let (running, address) = start(thread_name_app(1));
    let mut client = Client::connect(address);
    for _ in 0..100 {
        client.send("quick");
        assert_eq!(client.receive_text(), POOL);
    }
    running.shutdown(STOP);
}

#[test]
fn handlers_move_to_the_pool_while_slow() {
    let (running, address) = start(thread_name_app(4));
    let mut client = Client::connect(address);
    for _ in 0..2 {
        send_until_on(&mut client, HERE, "quick");
        send_until_on(&mut client, POOL, "sleep");
    }
    running.shutdown(STOP);
}

/// Makes a handler block on a reactor thread.
fn block_reactor(client: &mut Client, gate: &Gate) {
    loop {
        send_until_on(client, HERE, "quick");
        client.send("block");
        if client.receive_text() == HERE {
            return;
        }
        // If the machine pauses, a fast handler looks slow and the next one runs in the pool. So this may take several
        // attempts.
        gate.open();
        assert_eq!(client.receive_text(), "after");
        gate.close();
    }
}

#[test]
fn blocked_inline_handler_hands_its_reactor_over() {
    let app = thread_name_app(4);
    let gate = app.get_state();
    let (running, address) = start(app);
    let mut blocker = Client::connect(address);
    block_reactor(&mut blocker, &gate);
    blocker.send("behind");
    let sender = running.sender();
    eventually("the handler counts as blocked", || {
        sender.metrics().handlers_blocked == 1
    });
    // The reactor continues to accept, read and write.
    let mut other = Client::connect(address);
    for _ in 0..100 {
        other.send("quick");
        assert_eq!(
            other.receive_text(),
            POOL,
            "a handler ran inline without a spare thread"
        );
    }
    assert_still_serves(&running, address);
    assert_eq!(blocker.receive_text(), "to all");
    assert_eq!(other.receive_text(), "to all");
    // After the gate opens, the blocked handler continues, and later messages follow in order.
    gate.open();
    assert_eq!(blocker.receive_text(), "after");
    let place = blocker.receive_text();
    assert!(place == HERE || place == POOL, "{place}");
    eventually("no handler is blocked", || {
        sender.metrics().handlers_blocked == 0
    });
    send_until_on(&mut other, HERE, "quick");
    running.shutdown(STOP);
}

/// Asserts that handshakes, pings and broadcasts are served.
fn assert_still_serves(running: &RunningApp, address: SocketAddr) {
    let mut newcomer = raw_websocket(address);
    newcomer.write_all(&client_frame(0x89, b"ping")).unwrap();
    assert_eq!(read_frame(&mut newcomer).unwrap(), (0x8a, b"ping".to_vec()));
    running.sender().broadcast(Message::new("to all"));
    let broadcast = read_frame(&mut newcomer).unwrap();
    assert_eq!(broadcast, (0x81, b"to all".to_vec()));
}

/// The number of running handlers, and its maximum so far.
#[derive(Default)]
struct Gauge {
    gate: Gate,
    running: AtomicUsize,
    most: AtomicUsize,
}

#[test]
fn reactors_serve_while_handlers_block_every_thread() {
    const THREADS: usize = 3;
    const SHARDS: usize = 2;
    // Each reactor may run one handler in addition to the handler threads.
    const HANDLERS_MAX: usize = THREADS + SHARDS;
    let app = AsyncWebsocketApp::new_with_config(Gauge::default(), THREADS, 1)
        .with_shards(SHARDS)
        .with_message_handler(|stream: AsyncStream, message, gauge: Arc<Gauge>| {
            let running = gauge.running.fetch_add(1, SeqCst) + 1;
            gauge.most.fetch_max(running, SeqCst);
            if message.text() == Some("block") {
                gauge.gate.pass();
            }
            gauge.running.fetch_sub(1, SeqCst);
            stream.send(message);
        });
    let gauge = app.get_state();
    let (running, address) = start(app);
    let mut clients: Vec<Client> = (0..12).map(|_| Client::connect(address)).collect();
    // Both reactors run handlers inline at first.
    for client in &mut clients {
        client.send("quick");
        assert_eq!(client.receive_text(), "quick");
    }
    for client in &mut clients {
        client.send("block");
    }
    let sender = running.sender();
    eventually("all threads are counted as blocked", || {
        let metrics = sender.metrics();
        metrics.handlers_blocked == HANDLERS_MAX as u64 && metrics.handlers_exhausted > 0
    });
    assert_eq!(gauge.running.load(SeqCst), HANDLERS_MAX);
    // A new connection goes to the reactor with the fewest connections, so each reactor gets one of these two.
    let mut newcomers: Vec<TcpStream> = (0..SHARDS).map(|_| raw_websocket(address)).collect();
    for newcomer in &mut newcomers {
        newcomer.write_all(&client_frame(0x89, b"ping")).unwrap();
        assert_eq!(read_frame(newcomer).unwrap(), (0x8a, b"ping".to_vec()));
    }
    sender.broadcast(Message::new("to all"));
    for newcomer in &mut newcomers {
        let broadcast = read_frame(newcomer).unwrap();
        assert_eq!(broadcast, (0x81, b"to all".to_vec()));
    }
    gauge.gate.open();
    for client in &mut clients {
        let mut received = [client.receive_text(), client.receive_text()];
        received.sort();
        assert_eq!(received, ["block", "to all"]);
    }
    assert!(gauge.most.load(SeqCst) <= HANDLERS_MAX);
    running.shutdown(STOP);
}

#[test]
fn idle_reactor_keeps_no_thread_from_busy_ones() {
    const THREADS: usize = 3;
    let app = AsyncWebsocketApp::new_with_config(Barrier::new(THREADS), THREADS, 1)
        .with_shards(2)
        .with_message_handler(|stream: AsyncStream, message, barrier: Arc<Barrier>| {
            if message.text() == Some("together") {
                barrier.wait();
            }
            stream.send(Message::new(stream.id().to_string()));
        });
    let (running, address) = start(app);
    let mut by_shard = [Vec::new(), Vec::new()];
    for _ in 0..2 * THREADS {
        let mut client = Client::connect(address);
        client.send("quick");
        let shard = usize::from(!client.receive_text().starts_with("0-"));
        by_shard[shard].push(client);
    }
    let [first, second] = &mut by_shard;
    assert_eq!((first.len(), second.len()), (THREADS, THREADS));
    for clients in [first, second] {
        for client in clients.iter_mut() {
            client.send("together");
        }
        for client in clients {
            client.receive_text();
        }
    }
    running.shutdown(STOP);
}

#[test]
fn inline_panic_closes_its_connection_with_1011() {
    let app = AsyncWebsocketApp::<()>::new_with_config((), 4, 1)
        .with_shards(1)
        .with_message_handler(|stream, message, _| {
            stream.send(Message::new(thread_name()));
            if message.text() == Some("panic") {
                std::panic::resume_unwind(Box::new("quietly"));
            }
        });
    let (running, address) = start(app);
    let mut other = Client::connect(address);
    let place = loop {
        send_until_on(&mut other, HERE, "quick");
        let mut client = Client::connect(address);
        client.send("panic");
        let (texts, close) = client.receive_to_close();
        assert_eq!(u16::from(close.unwrap().code), 1011);
        if texts == [HERE] {
            break texts;
        }
    };
    assert_eq!(place, [HERE]);
    send_until_on(&mut other, HERE, "quick");
    assert!(running.sender().metrics().handler_panics > 0);
    running.shutdown(STOP);
}

#[test]
fn shutdown_during_a_blocked_inline_handler_is_complete() {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let app = thread_name_app(4).with_disconnect_handler(move |_, _| {
        tell.lock().unwrap().send(()).unwrap();
    });
    let gate = app.get_state();
    let (running, address) = start(app);
    let mut blocker = Client::connect(address);
    block_reactor(&mut blocker, &gate);
    running.sender().shutdown(Duration::from_millis(300));
    let (_, close) = blocker.receive_to_close();
    assert_eq!(u16::from(close.unwrap().code), 1001);
    // The blocked handler outlives its app.
    running.join();
    assert!(
        told.try_recv().is_err(),
        "two handlers of one connection ran at the same time"
    );
    gate.open();
    told.recv_timeout(DEADLINE).unwrap();
}

#[test]
fn jobs_left_over_by_a_turn_run_in_the_next() {
    for _ in 0..5 {
        let app = AsyncWebsocketApp::<()>::new_with_config((), 4, 1)
            .with_shards(1)
            .with_message_handler(|stream, message, _| {
                thread::sleep(Duration::from_micros(60));
                stream.send(message);
            });
        let (running, address) = start(app);
        let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(address)).collect();
        // Most messages arrive while the first one is handled.
        for client in &mut clients {
            client.send("all at once");
        }
        for client in &mut clients {
            assert_eq!(client.receive_text(), "all at once");
        }
        drop(clients);
        running.shutdown(STOP);
    }
}

#[test]
fn handlers_are_counted_and_timed_on_every_thread() {
    let (running, address) = start(thread_name_app(4));
    let mut client = Client::connect(address);
    for n in 0..300 {
        client.send(if n % 10 == 9 { "sleep" } else { "quick" });
        client.receive_text();
    }
    let sender = running.sender();
    // Each text is one job. The last one is counted when it has ended.
    eventually("all jobs are counted", || {
        sender.metrics().handler_runs == 300
    });
    let metrics = sender.metrics();
    assert!(metrics.handler_time >= Duration::from_millis(30 * 5));
    // As long as the text says, or longer on a busy machine.
    let durations = metrics.handler_durations;
    assert_eq!(durations.count(), 300);
    assert_eq!(durations.sum(), metrics.handler_time);
    let quick = durations.buckets().take_while(|&(bound, _)| bound < 0.005);
    assert!(quick.last().unwrap().1 <= 270, "{durations:?}");
    running.shutdown(STOP);
}

/// The messages that the handlers of one connection got, and the threads that they ran on.
#[derive(Default)]
struct Seen {
    next: AtomicUsize,
    running: AtomicUsize,
}

#[test]
fn switch_between_inline_and_pool_keeps_order() {
    const CLIENTS: usize = 8;
    const MESSAGES: usize = 3_000;
    let places = Arc::new(Mutex::new(HashSet::new()));
    let noted = places.clone();
    let app = AsyncWebsocketApp::<(), Seen>::new_with_config((), 4, 1)
        .with_shards(2)
        .with_message_handler(move |stream: AsyncStream<Seen>, message, _| {
            let n: usize = message.text().unwrap().parse().unwrap();
            assert_eq!(stream.state.running.fetch_add(1, SeqCst), 0);
            assert_eq!(stream.state.next.fetch_add(1, SeqCst), n);
            // Phases of fast handlers, so that reactors run them inline again, followed by slow and very slow ones.
            match n % 1_000 {
                500..550 => thread::sleep(Duration::from_micros(200)),
                900 => thread::sleep(Duration::from_millis(8)),
                _ => {}
            }
            noted.lock().unwrap().insert(thread_name());
            assert_eq!(stream.state.running.fetch_sub(1, SeqCst), 1);
            stream.send(message);
        });
    let (running, address) = start(app);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            thread::spawn(move || {
                let mut client = Client::connect(address);
                let mut received = 0;
                for n in 0..MESSAGES {
                    client.send(&n.to_string());
                    // Pauses let several messages gather in one batch.
                    if n % 7 == 0 || n + 1 == MESSAGES {
                        while received <= n {
                            assert_eq!(client.receive_text(), received.to_string());
                            received += 1;
                        }
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    let metrics = running.sender().metrics();
    assert_eq!(metrics.messages_in, (CLIENTS * MESSAGES) as u64);
    assert_eq!((metrics.handler_panics, metrics.dropped.total()), (0, 0));
    let places = places.lock().unwrap();
    assert!(places.contains(HERE) && places.contains(POOL), "{places:?}");
    running.shutdown(STOP);
}

/// A panic payload whose drop panics with another such payload, a few times.
struct Loud(u8);

impl Drop for Loud {
    fn drop(&mut self) {
        if self.0 > 0 {
            std::panic::resume_unwind(Box::new(Loud(self.0 - 1)));
        }
    }
}

#[test]
fn panicking_panic_payload_ends_no_thread() {
    let app = AsyncWebsocketApp::<()>::new_with_config((), 4, 1)
        .with_shards(1)
        .with_message_handler(|stream, message, _| {
            stream.send(Message::new(thread_name()));
            match message.text() {
                Some("panic") => std::panic::resume_unwind(Box::new(Loud(3))),
                Some("sleep") => thread::sleep(Duration::from_millis(5)),
                _ => {}
            }
        });
    let (running, address) = start(app);
    let mut other = Client::connect(address);
    for (place, message) in [(HERE, "quick"), (POOL, "sleep")] {
        loop {
            send_until_on(&mut other, place, message);
            let mut client = Client::connect(address);
            client.send("panic");
            let (texts, close) = client.receive_to_close();
            assert_eq!(u16::from(close.unwrap().code), 1011);
            if texts == [place] {
                break;
            }
        }
    }
    send_until_on(&mut other, HERE, "quick");
    running.shutdown(STOP);
}
