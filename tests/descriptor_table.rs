//! The table of descriptors of the process. This is a process of its own, since the table never becomes smaller.

mod support;

use std::fs;
use std::time::Duration;

use humphrey_ws::AsyncWebsocketApp;
use support::start;

/// Reads the number behind `name` in a file of `/proc/self`.
fn number(file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/self/{file}")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    // The limit may be "unlimited".
    number.unwrap().parse().unwrap_or(u64::MAX)
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "sizes come from Linux's /proc")]
fn descriptor_table_has_its_size_before_clients_come() {
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new();
    let wanted = number("limits", "Max open files").min(65_536);
    let before = number("status", "FDSize:");
    let (running, _) = start(app.with_shards(1));
    let size = number("status", "FDSize:");
    assert!(size >= wanted, "{before} before, {size} of {wanted} after");
    running.shutdown(Duration::ZERO);
}
