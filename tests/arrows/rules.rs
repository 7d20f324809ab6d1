//! The rules for the sources. Remove the entry of a list when you fix the violation that it names.

use super::layers::Layers;

/// The root file of each workspace member.
pub(crate) const MEMBERS: [&str; 4] = [
    "src/lib.rs",
    "broadcast/src/main.rs",
    "bench/src/main.rs",
    "stress/src/main.rs",
];

/// Known circles. Remove an entry when you fix it, and add none.
pub(crate) const CIRCLES_LEFT: &[&[&str]] = &[];

/// The layers of each folder, bottom first. Files of one layer may import each other, but not in a circle.
pub(crate) const LAYERS: [Layers; 3] = [
    Layers {
        folder: "src/cluster",
        layers: &[
            &["wire", "counters", "interest", "queries", "url"],
            // The seam to a broker server.
            &["broker"],
            &[
                "redis", "nats", "outgoing", "members", "lost", "unsent", "counts",
            ],
            &["broker_urls"],
            &["settings"],
            &["servers", "parked", "peers", "replica", "tls"],
            &["socket"],
            // What a node does, without I/O and clock.
            &["node"],
            &["handle"],
            &["link"],
            &["start"],
            &["mod.rs"],
        ],
        is_complete: true,
        upward_left: &[],
    },
    Layers {
        folder: "src/engine",
        layers: &[
            &["parts"],
            &["model"],
            &["hub"],
            &["handlers"],
            &["reactor"],
            &["threads"],
            &["mod.rs"],
        ],
        is_complete: true,
        upward_left: &[],
    },
    Layers {
        folder: "src/async_app",
        layers: &[
            &[
                "connection_id",
                "directory",
                "history",
                "keyed",
                "renderer",
                "rendering",
                "id_turns",
            ],
            &["recipients", "presence/settings", "replay_blocks"],
            &["replay_cache"],
            &[
                "room_entry",
                "procedures/cancellation",
                "procedures/payload",
                "procedures/timers",
                "presence/handle",
            ],
            &[
                "room_names",
                "replay_frames",
                "prepared_message",
                "keyed_events",
                "presence/member",
            ],
            &[
                "rooms",
                "procedures/answer",
                "procedures/peer",
                "presence/json",
            ],
            // All output passes through it.
            &["publish"],
            &["presence"],
            &["room_join", "session_expiry", "stream_link"],
            &[
                "room_broadcast",
                "keyed_broadcast",
                "cluster",
                "shared_history",
                "inspection",
            ],
            &["event_stream", "room"],
            &["sender", "stream"],
            &["running", "handler"],
            &["procedures"],
            &["program"],
            &["app"],
            &["mod.rs"],
        ],
        is_complete: true,
        upward_left: &[],
    },
];

/// The types whose `impl` blocks belong in one folder, and the files outside it that still have some.
pub(crate) const IMPLS: [(&str, &str, &[&str]); 2] = [
    ("Core", "src/engine/reactor", &[]),
    ("Hub", "src/engine/hub", &[]),
];

/// The number of places that look a connection up in the slab. It may only decrease.
pub(crate) const SLAB_LOOKUPS_MAX: usize = 5;

/// Types that depend on no other module: everything above `protocol` may use them.
pub(crate) const LEAVES: [&str; 26] = [
    "atomic",
    "authority",
    "sync",
    "user_threads",
    "message",
    "error",
    "history_id",
    "restion",
    "ping",
    "compression",
    "compressors",
    "cork",
    "crypto",
    "drain",
    "limits",
    "listener",
    "metrics",
    "hosts",
    "option_names",
    "origins",
    "proxies",
    "report",
    "request",
    "tls",
    "tls_client",
    "varint",
];

/// The arrows between top-level modules: each module, and what it may use beside the leaves. `a::b` allows that part of `a` only.
pub(crate) const ARROWS: [(&str, &[&str]); 40] = [
    ("authority", &[]),
    ("sync", &[]),
    ("atomic", &["sync"]),
    ("user_threads", &["sync"]),
    ("cork", &[]),
    ("varint", &[]),
    ("protocol", &[]),
    // Its tests and fuzzing need cryptography and chance; the code that is shipped needs neither.
    ("transport", &["crypto", "protocol::fuzz"]),
    // A message is created from a received payload, and contains its frame.
    ("message", &["protocol::encode", "protocol::connection"]),
    ("error", &["message"]),
    ("history_id", &[]),
    ("restion", &[]),
    ("ping", &[]),
    // The protocol defines the kinds of messages.
    ("compression", &["protocol::encode"]),
    // Beside the hub, the blocking API compresses single messages.
    (
        "compressors",
        &[
            "compression",
            "protocol::deflate",
            "protocol::encode",
            "protocol::error",
            "sync",
        ],
    ),
    // The provider of the cryptography of TLS.
    ("crypto", &[]),
    ("drain", &[]),
    ("limits", &[]),
    ("listener", &[]),
    ("metrics", &["atomic"]),
    // A list of hosts can be derived from a list of origins.
    ("hosts", &["authority", "origins"]),
    ("option_names", &[]),
    ("origins", &["authority"]),
    ("proxies", &[]),
    ("report", &["user_threads", "atomic"]),
    // The rejection of a handshake names the supported version.
    (
        "request",
        &[
            "protocol::handshake",
            "protocol::http",
            "protocol::percent",
            "report",
        ],
    ),
    ("tls", &["atomic", "crypto", "report", "sync"]),
    // What the TLS clients of `cluster` and `websocket_client` share.
    ("tls_client", &["crypto"]),
    // Facts about members, without connections. Its tests need chance.
    ("presence", &["protocol::fuzz"]),
    // It knows neither the engine nor the app: messages for local members leave through a trait. Its tests need chance.
    (
        "cluster",
        &["presence", "protocol::fuzz", "protocol::percent"],
    ),
    ("engine", &["protocol", "transport"]),
    ("stream", &["protocol", "transport"]),
    ("websocket_client", &["protocol"]),
    ("handler", &["host", "stream"]),
    ("host", &["protocol", "transport", "engine", "stream"]),
    // The connect hook of 0.5.1 carries blocking streams, and the protocol defines close codes. Publishing renders a message once,
    // as an event or with its id. Procedures have their own frames.
    (
        "async_app",
        &[
            "cluster",
            "engine",
            "host",
            "presence",
            "stream",
            "protocol::close",
            "protocol::encode",
            "protocol::event_stream",
            "protocol::json_string",
            "protocol::procedures",
        ],
    ),
    // Handlers for mounted routes, which pass files on to them.
    ("files", &["engine", "host", "protocol::http"]),
    // The public types for axum programs.
    ("axum", &["async_app", "host"]),
    // Entry points of fuzzers, which other builds exclude.
    (
        "fuzzing",
        &[
            "cluster::fuzz",
            "protocol::fuzz",
            "engine::sim_tests",
            "transport::tls",
        ],
    ),
    (
        "lib",
        &[
            "async_app",
            "cluster",
            "engine",
            "host",
            "stream",
            "handler",
            "protocol::close",
        ],
    ),
];
