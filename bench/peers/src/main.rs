//! Other WebSocket servers, each written as its own documentation shows, with the jobs that the bench gives all servers.
//!
//!     humphrey_ws_bench_peers PEER echo|fanout|blocked
//!
//! listens on a port of its own on 127.0.0.1, says `READY` and its address, and serves until it is killed.

mod axum_ws;
mod fast;
mod hall;
mod http1;
mod plain;
mod published_ws;
mod yawc_ws;

use std::net::SocketAddr;
use std::process::ExitCode;

use tokio::net::TcpListener;

use hall::{Hall, Job};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (peer, job) = (args.next().unwrap_or_default(), args.next());
    let Some(job) = job.as_deref().and_then(Job::of) else {
        eprintln!("which peer, and which job: echo, fanout or blocked?");
        return ExitCode::from(2);
    };
    let outcome = match peer.as_str() {
        "humphrey_ws-0.5.1" => published_ws::serve(job),
        _ => on_tokio(&peer, job),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{peer}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// As `#[tokio::main]` does it: as many threads as there are CPUs to use, which is one here.
#[tokio::main]
async fn on_tokio(peer: &str, job: Job) -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    ready(listener.local_addr()?);
    let hall = Hall::new(job);
    match peer {
        "tokio-tungstenite" => plain::tungstenite(listener, hall, None).await,
        "tokio-tungstenite-4k" => plain::tungstenite(listener, hall, Some(4096)).await,
        "tokio-websockets" => plain::websockets(listener, hall).await,
        "axum" => axum_ws::serve(listener, hall).await,
        "fastwebsockets" => fast::serve(listener, hall).await,
        "yawc" => yawc_ws::serve(listener, hall).await,
        _ => Err(std::io::Error::other("no such peer")),
    }
}

/// Tells whoever started this server where it listens.
fn ready(address: SocketAddr) {
    println!("READY {address}");
}
