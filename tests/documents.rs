//! Tests that statements of the documents about the code are true.

use std::fs;
use std::path::Path;
use std::time::Duration;

use humphrey_ws::Limits;

/// The root folder of the repository.
const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn document(name: &str) -> String {
    fs::read_to_string(Path::new(REPOSITORY).join(name)).unwrap()
}

fn bytes(n: usize) -> String {
    match n {
        n if n % (1 << 20) == 0 => format!("{} MiB", n >> 20),
        n if n % (1 << 10) == 0 => format!("{} KiB", n >> 10),
        n => n.to_string(),
    }
}

fn count(n: usize) -> String {
    match n {
        n if n >= 1_000 => format!("{},{:03}", n / 1_000, n % 1_000),
        n => n.to_string(),
    }
}

fn time(time: Duration) -> String {
    format!("{} s", time.as_secs())
}

fn option<T: ToString>(limit: Option<T>) -> String {
    limit.map_or("none".to_owned(), |limit| limit.to_string())
}

#[test]
fn every_limit_stands_in_the_table_with_its_default() {
    let limits = Limits::default();
    let expected = [
        ("message_bytes_max", bytes(limits.message_bytes_max)),
        ("outbox_bytes_max", bytes(limits.outbox_bytes_max)),
        ("keyed_bytes_max", bytes(limits.keyed_bytes_max)),
        ("outboxes_bytes_max", bytes(limits.outboxes_bytes_max)),
        ("mailbox_bytes_max", bytes(limits.mailbox_bytes_max)),
        ("pending_bytes_max", bytes(limits.pending_bytes_max)),
        ("received_bytes_max", bytes(limits.received_bytes_max)),
        ("head_bytes_max", bytes(limits.head_bytes_max)),
        ("body_bytes_max", bytes(limits.body_bytes_max)),
        ("bodies_bytes_max", bytes(limits.bodies_bytes_max)),
        ("connection_calls_max", count(limits.connection_calls_max)),
        (
            "messages_per_second_max",
            option(limits.messages_per_second_max),
        ),
        ("bytes_per_second_max", option(limits.bytes_per_second_max)),
        ("over_rate", format!("{:?}", limits.over_rate)),
        ("connection_rooms_max", count(limits.connection_rooms_max)),
        ("rooms_max", count(limits.rooms_max)),
        ("connections_max", count(limits.connections_max)),
        ("peer_connections_max", option(limits.peer_connections_max)),
        (
            "peer_handshakes_per_second_max",
            option(limits.peer_handshakes_per_second_max),
        ),
        ("user_connections_max", option(limits.user_connections_max)),
        ("handshakes_max", count(limits.handshakes_max)),
        ("handshake_timeout", time(limits.handshake_timeout)),
        ("message_timeout", time(limits.message_timeout)),
        ("queue_timeout", time(limits.queue_timeout)),
        ("keep_alive_timeout", time(limits.keep_alive_timeout)),
        ("write_timeout", time(limits.write_timeout)),
        (
            "write_bytes_per_second_min",
            count(limits.write_bytes_per_second_min as usize),
        ),
        ("close_timeout", time(limits.close_timeout)),
    ];
    // `Limits` is non-exhaustive: its debug output names every field.
    let shown = format!("{limits:#?}");
    let fields = shown
        .lines()
        .filter_map(|line| line.strip_prefix("    ")?.split_once(": "));
    let mut fields: Vec<&str> = fields
        .map(|(field, _)| field)
        .filter(|field| !field.starts_with(' '))
        .collect();
    let mut listed: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
    fields.sort_unstable();
    listed.sort_unstable();
    assert_eq!(listed, fields, "the list of this test is incomplete");
    let document = document("SECURITY.md");
    let table: Vec<(&str, &str)> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|row| row.split_once("` | "))
        .map(|(name, rest)| (name, rest.split(" | ").next().unwrap()))
        .collect();
    let expected: Vec<(&str, &str)> = expected
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    assert_eq!(table, expected);
}

/// The targets in the README are those of the checks.
#[test]
fn readme_targets_match_the_checks() {
    let targets_of = |text: &str| -> Vec<String> {
        let names = text.split(['`', ' ', '\n', '=']);
        let is_target = |name: &&str| {
            let parts: Vec<_> = name.split('-').collect();
            (3..=4).contains(&parts.len())
                && ["x86_64", "i686", "aarch64", "s390x", "powerpc"].contains(&parts[0])
        };
        let mut targets: Vec<_> = names.filter(is_target).map(str::to_owned).collect();
        targets.sort();
        targets.dedup();
        targets
    };
    let checked = [
        // The machine that runs the checks has this target.
        "x86_64-unknown-linux-gnu",
        &document(".ci/run"),
        &document(".ci/targets"),
    ]
    .join("\n");
    assert_eq!(targets_of(&document("README.md")), targets_of(&checked));
}

#[test]
fn readme_names_the_rust_version_of_the_manifest() {
    let manifest = document("Cargo.toml");
    let version = manifest
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = "))
        .unwrap();
    let sentence = format!("\nRust {} or newer", version.trim_matches('"'));
    assert!(document("README.md").contains(&sentence), "{sentence}");
}

/// This package lists its test files explicitly, so Cargo would silently skip a file that is not listed.
#[test]
fn every_test_file_is_part_of_a_binary() {
    let manifest = document("tests/Cargo.toml");
    let modules = document("tests/integration.rs");
    let is_listed = |name: &str| {
        manifest.contains(&format!("path = \"{name}.rs\""))
            || modules.lines().any(|line| line == format!("mod {name};"))
    };
    let files = fs::read_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let left_out: Vec<String> = names
        .filter(|file| {
            file.strip_suffix(".rs")
                .is_some_and(|name| !is_listed(name))
        })
        .collect();
    assert!(
        left_out.is_empty(),
        "in neither tests/Cargo.toml nor tests/integration.rs: {left_out:?}"
    );
}
