//! Promise 8: idle connections cause no wake-ups.

mod support;

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use humphrey_ws::AsyncWebsocketApp;
use support::{eventually, raise_descriptors, raw_websocket, start};

const CONNECTIONS: usize = 1_000;

/// Reads the `/proc` status of each thread of the engine.
fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let read = |path: PathBuf| fs::read_to_string(path).unwrap();
    tasks
        .map(|task| task.unwrap().path())
        .filter(|path| read(path.join("comm")).starts_with("humphrey_ws"))
        .map(|path| read(path.join("status")))
        .collect()
}

/// Returns the voluntary and involuntary context switches of all threads of the engine.
fn switches() -> u64 {
    let counts = |status: String| {
        status
            .lines()
            .filter_map(|line| line.split_once("ctxt_switches:"))
            .map(|(_, count)| count.trim().parse::<u64>().unwrap())
            .sum::<u64>()
    };
    threads().into_iter().map(counts).sum()
}

/// Returns whether no thread of the engine waits for a processor, which can last while other processes use all of them.
fn all_sleep() -> bool {
    let sleeps = |status: &String| {
        let mut lines = status.lines();
        lines.any(|line| line.starts_with("State:") && line.contains("(sleeping)"))
    };
    threads().iter().all(sleeps)
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "counts come from Linux's /proc")]
fn promise_8_thousand_idle_connections_wake_no_thread() {
    raise_descriptors(2 * CONNECTIONS as u64 + 200);
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
        .with_shards(2)
        .with_connect_handler(|_, _| {})
        .with_message_handler(|stream, message, _| stream.send(message));
    let (running, address) = start(app);
    let clients: Vec<TcpStream> = (0..CONNECTIONS).map(|_| raw_websocket(address)).collect();
    eventually("all clients are connected", || {
        running.sender().connections() == CONNECTIONS
    });
    // Work in progress must end first.
    let mut before = switches();
    eventually("the engine is idle", || {
        thread::sleep(Duration::from_millis(100));
        let slept = all_sleep();
        before == std::mem::replace(&mut before, switches()) && slept
    });
    thread::sleep(Duration::from_secs(2));
    assert_eq!(
        switches() - before,
        0,
        "wake-ups in two seconds in which nothing happened"
    );
    drop(clients);
    running.shutdown(Duration::from_secs(1));
}
