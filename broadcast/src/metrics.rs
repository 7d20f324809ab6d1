//! The metrics server: on an address of its own, so that clients cannot reach it.

use std::io;
use std::net::SocketAddr;

use humphrey::SubApp;
use humphrey::http::{Response, StatusCode};
use humphrey_ws::{
    AllowedHosts, AsyncSender, AsyncWebsocketApp, CloseCode, Limits, Origins, RunningApp,
};

use crate::options::option_names;
use crate::page::with_security_headers;

/// Enough for several monitoring systems.
const CONNECTIONS_MAX: usize = 64;

/// Serves `/metrics` for Prometheus.
pub(crate) fn serve(
    address: SocketAddr,
    hosts: Option<AllowedHosts>,
    origins: Origins,
    of: AsyncSender,
) -> io::Result<RunningApp> {
    let routes = SubApp::new().with_stateless_route("/metrics", move |_| {
        with_security_headers(Response::new(StatusCode::OK, of.prometheus()))
            .with_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            .with_header("Cache-Control", "no-store")
    });
    let mut app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_with_config((), 1, 1);
    if let Some(hosts) = hosts {
        app = app.with_allowed_hosts(hosts);
    }
    app.with_address(address)
        .with_allowed_origins(origins)
        .with_option_names(option_names())
        .with_guarded_routes(["/metrics"])
        .with_route_methods("*", ["GET"])
        .with_shards(1)
        .with_limits(Limits::default().connections_max(CONNECTIONS_MAX))
        .with_connect_handler(|stream, _| {
            stream.close(
                CloseCode::POLICY_VIOLATION,
                "this address serves only /metrics",
            );
        })
        .with_routes(routes)
        .start()
}
