//! Tests that a stopped app leaves no thread behind, even if the program does not wait for it.

mod support;

use std::fs;
use std::time::Duration;

use humphrey_ws::AsyncWebsocketApp;
use support::{Client, eventually, start};

fn engine_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|name| name.starts_with("humphrey_ws"))
        .count()
}

#[test]
#[cfg_attr(
    not(target_os = "linux"),
    ignore = "threads are counted in Linux's /proc"
)]
fn a_stopped_app_leaves_no_thread_behind_although_its_handle_was_dropped() {
    let app: AsyncWebsocketApp<()> =
        AsyncWebsocketApp::new().with_message_handler(|stream, message, _| stream.send(message));
    let (running, address) = start(app);
    let mut client = Client::connect(address);
    client.send("hello");
    assert_eq!(client.receive_text(), "hello");
    let unlinked: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_unlinked();
    let hook = unlinked.connect_hook().unwrap();
    let unlinked = unlinked.start().unwrap();
    let senders = [running.sender(), unlinked.sender()];
    drop((running, unlinked));
    assert!(engine_threads() > 0);
    for sender in senders {
        sender.shutdown(Duration::from_millis(100));
    }
    eventually("all threads of the engines end", || engine_threads() == 0);
    drop(hook);
}
