//! Data flows one way: which module may use which. ARCHITECTURE.md draws these arrows; here they are held to.

use std::fs;
use std::path::{Path, PathBuf};

/// Types that know nothing but themselves: everything above `protocol` may use them.
const LEAVES: [&str; 15] = [
    "atomic",
    "aside",
    "message",
    "error",
    "history_id",
    "restion",
    "ping",
    "limits",
    "metrics",
    "hosts",
    "option_names",
    "origins",
    "proxies",
    "report",
    "request",
];

/// The arrows: who, and what it may use beside the leaves. `a::b` allows that part of `a` only.
const ARROWS: [(&str, &[&str]); 26] = [
    ("atomic", &[]),
    ("aside", &[]),
    ("protocol", &[]),
    ("transport", &[]),
    // A message is made of a received payload, and is its own frame.
    ("message", &["protocol::encode", "protocol::connection"]),
    ("error", &["message"]),
    ("history_id", &[]),
    ("restion", &[]),
    ("ping", &[]),
    ("limits", &[]),
    ("metrics", &["atomic"]),
    // Each knows the other's names: hosts of origins, and origins of hosts.
    ("hosts", &["origins"]),
    ("option_names", &[]),
    ("origins", &["hosts"]),
    ("proxies", &[]),
    ("report", &["aside", "atomic"]),
    ("request", &["protocol::http", "report"]),
    ("engine", &["protocol", "transport"]),
    ("stream", &["protocol", "transport"]),
    ("websocket_client", &["protocol"]),
    ("handler", &["host", "stream"]),
    ("host", &["protocol", "transport", "engine", "stream"]),
    // The connect hook of 0.5.1 carries blocking streams; close codes are the protocol's own type; a message is rendered as an
    // event, or with its id, once, where it is published; procedures are called in frames of their own.
    (
        "async_app",
        &[
            "engine",
            "host",
            "stream",
            "protocol::close",
            "protocol::event_stream",
            "protocol::procedures",
        ],
    ),
    // What a program of axum's sees of its host.
    ("axum", &["async_app", "host"]),
    // Ways in for fuzzers; not built otherwise.
    ("fuzzing", &["protocol::fuzz", "engine::sim_tests"]),
    (
        "lib",
        &[
            "async_app",
            "engine",
            "host",
            "stream",
            "handler",
            "protocol::close",
        ],
    ),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// What a file uses of this crate, as `a::b`. Names in doc comments draw no arrow.
fn uses(text: &str) -> Vec<String> {
    let code = text
        .lines()
        .map(str::trim_start)
        .filter(|line| !line.starts_with("//"));
    let mut found = Vec::new();
    for line in code {
        for after in line.split("crate::").skip(1) {
            let path: String = after
                .chars()
                .take_while(|&c| c.is_alphanumeric() || c == '_' || c == ':')
                .collect();
            let parts: Vec<&str> = path
                .split("::")
                .filter(|part| !part.is_empty())
                .take(2)
                .collect();
            found.push(parts.join("::"));
        }
    }
    found
}

#[test]
fn modules_use_only_what_the_arrows_allow() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 30, "the sources are there");
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&src).unwrap();
        let module = relative
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs");
        let (_, allowed) = ARROWS
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| {
                panic!(
                    "{} belongs to no module that the arrows know",
                    relative.display()
                )
            });
        for used in uses(&fs::read_to_string(&file).unwrap()) {
            let top = used.split("::").next().unwrap();
            let is_leaf = LEAVES.contains(&top) && module != "protocol" && module != "transport";
            let is_allowed = allowed.iter().any(|arrow| *arrow == top || *arrow == used);
            // A leaf may use another only by an arrow of its own.
            let by_leaf = LEAVES.contains(&module);
            if top != module && !is_allowed && (by_leaf || !is_leaf) {
                wrong.push(format!("{}: crate::{used}", relative.display()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "arrows that ARCHITECTURE.md does not have:\n{}",
        wrong.join("\n")
    );
}
