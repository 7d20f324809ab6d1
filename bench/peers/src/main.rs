//! Other WebSocket servers, each written as its own documentation shows, with the jobs that the bench gives all servers.
//!
//!     humphrey_ws_bench_peers PEER echo|fanout|blocked [none [CERTIFICATE KEY]]
//!
//! listens on a port of its own on 127.0.0.1, says `READY` and its address, and serves until it is killed. `none` means no
//! compression, as for the peers in JavaScript. With the PEM files of a certificate and its key, axum speaks TLS.

mod axum_ws;
mod fast;
mod http1;
mod plain;
mod published_ws;
mod registry;
mod yawc_ws;

use std::net::SocketAddr;
use std::process::ExitCode;

use tokio::net::TcpListener;

use axum_ws::Certificate;
use registry::{Job, Registry};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (peer, job) = (args.next().unwrap_or_default(), args.next());
    let Some(job) = job.as_deref().and_then(Job::of) else {
        eprintln!("which peer, and which job: echo, fanout or blocked?");
        return ExitCode::from(2);
    };
    if args.next().is_some_and(|mode| mode != "none") {
        eprintln!("{peer}: no compression");
        return ExitCode::from(2);
    }
    let certificate = args.next().zip(args.next());
    let certificate = certificate.map(|(certificate, key)| Certificate { certificate, key });
    let outcome = match peer.as_str() {
        "axum" => on_tokio(&peer, job, certificate),
        _ if certificate.is_some() => Err(std::io::Error::other("no TLS")),
        "humphrey_ws-0.5.1" => published_ws::serve(job),
        _ => on_tokio(&peer, job, None),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{peer}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a future as `#[tokio::main]` does, with as many threads as available CPUs, which is one here.
#[tokio::main]
async fn on_tokio(peer: &str, job: Job, certificate: Option<Certificate>) -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    ready(listener.local_addr()?);
    let registry = Registry::new(job);
    match peer {
        "tokio-tungstenite" => plain::tungstenite(listener, registry, None).await,
        "tokio-tungstenite-4k" => plain::tungstenite(listener, registry, Some(4096)).await,
        "tokio-websockets" => plain::websockets(listener, registry).await,
        "axum" => axum_ws::serve(listener, registry, certificate).await,
        "fastwebsockets" => fast::serve(listener, registry).await,
        "yawc" => yawc_ws::serve(listener, registry).await,
        _ => Err(std::io::Error::other("no such peer")),
    }
}

/// Prints the address that the server listens on.
fn ready(address: SocketAddr) {
    println!("READY {address}");
}
