//! The integration tests that can share a process, as modules of one binary: linking a binary for each file would take longer than
//! compiling it. `cargo test --test integration rooms::` runs those of `rooms.rs`.
//!
//! A file is a binary of its own, listed in `Cargo.toml`, if its tests set the logger or count something of their whole process:
//! threads, descriptors, allocations or context switches.

#[cfg(feature = "cluster")]
#[path = "support/brokers/mod.rs"]
mod brokers;
#[cfg(any(feature = "tls", feature = "tls-aws-lc"))]
#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/events.rs"]
mod events;
#[path = "support/procedures.rs"]
mod frames;
#[path = "support/handshakes.rs"]
mod handshakes;
#[cfg(feature = "cluster")]
#[path = "support/kept_rooms.rs"]
mod kept_rooms;
#[cfg(feature = "cluster")]
#[path = "support/nodes.rs"]
mod nodes;
#[path = "support/presence_client.rs"]
mod presence_client;
#[path = "support/readers.rs"]
mod readers;
mod support;
#[cfg(feature = "cluster")]
#[path = "support/tcp_proxy.rs"]
mod tcp_proxy;
#[cfg(any(feature = "tls", feature = "tls-aws-lc"))]
#[path = "support/tls_clients.rs"]
mod tls_clients;
#[cfg(any(feature = "client-tls", feature = "cluster-tls"))]
#[path = "support/tls_servers.rs"]
mod tls_servers;

mod authentication;
mod blocking;
#[cfg(all(feature = "client", feature = "deflate"))]
mod blocking_compression;
mod borrowing;
#[cfg(feature = "client")]
mod client;
#[cfg(feature = "client-tls")]
mod client_tls;
#[cfg(feature = "client-tls")]
mod client_tls_cuts;
#[cfg(feature = "cluster")]
mod cluster;
#[cfg(feature = "cluster")]
mod cluster_faults;
#[cfg(feature = "cluster")]
mod cluster_histories;
#[cfg(feature = "cluster")]
mod cluster_history_faults;
#[cfg(feature = "cluster")]
mod cluster_nats;
#[cfg(feature = "cluster")]
mod cluster_presence;
#[cfg(feature = "cluster")]
mod cluster_rendering;
#[cfg(feature = "cluster-tls")]
mod cluster_tls;
#[cfg(all(feature = "client", feature = "deflate"))]
mod compression;
mod event_stream_resume;
mod event_streams;
mod files;
mod full_mailboxes;
mod handshake_handler;
mod history;
mod history_ids;
mod inspect;
mod keyed;
mod lifecycle;
mod listeners;
mod plain_subprotocol;
mod presence;
mod procedures;
mod procedures_cancellation;
mod procedures_hostile;
mod procedures_server;
mod procedures_wire;
mod promises;
mod receive_rates;
mod regressions;
mod rendering;
mod rooms;
mod routes;
mod session_refresh;
mod slow_consumers;
#[cfg(any(feature = "tls", feature = "tls-aws-lc"))]
mod tls;
#[cfg(any(feature = "tls", feature = "tls-aws-lc"))]
mod tls_certificates;
#[cfg(any(feature = "tls", feature = "tls-aws-lc"))]
mod tls_fanout;
mod upstream_api;
mod upstream_programs;
mod user_code;
