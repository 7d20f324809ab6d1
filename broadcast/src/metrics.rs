//! The metrics server: on an address of its own, so that clients cannot reach it.

use std::io;

use humphrey::SubApp;
use humphrey::http::StatusCode;
use humphrey_ws::{AsyncSender, AsyncWebsocketApp, CloseCode, Limits, RunningApp};

use crate::admin::{self, Admin};
use crate::listen_address::ListenAddress;
use crate::options::{Options, option_names};
use crate::probes::Probes;
use crate::responses::uncached;

/// Enough for several monitoring systems.
const CONNECTIONS_MAX: usize = 64;

/// Serves `/metrics` for Prometheus, the probes, and what administrators need, if an option names an address for them. Here,
/// they are answered also while the server has as many clients as it may have, and while it stops.
pub(crate) fn serve(
    options: &Options,
    of: AsyncSender,
    probes: &Probes,
    admin: Option<Admin>,
) -> io::Result<Option<RunningApp>> {
    let Some(address) = options.metrics else {
        return Ok(None);
    };
    let mut app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_with_config((), 1, 1);
    if let Some(hosts) = options.hosts(ListenAddress::Tcp(address).is_local()) {
        app = app.with_allowed_hosts(hosts);
    }
    for routes in routes(of, probes, admin.as_ref()) {
        app = app.with_routes(routes);
    }
    app.with_address(address)
        .with_allowed_origins(options.origins())
        .with_option_names(option_names())
        .with_guarded_routes(["/metrics", "/health", "/ready"])
        .with_route_methods(admin::ONE_CONNECTION, ["POST"])
        .with_route_methods("*", ["GET"])
        .with_body_guard(move |request, _| {
            let access = admin.as_ref().map(|admin| &admin.access);
            access.map_or(Ok(()), |access| access.check_body(request))
        })
        .with_shards(1)
        .with_limits(Limits::default().connections_max(CONNECTIONS_MAX))
        .with_connect_handler(|stream, _| {
            stream.close(
                CloseCode::POLICY_VIOLATION,
                "this address serves no WebSockets: see /metrics, /health and /ready",
            );
        })
        .start()
        .map(Some)
}

/// All routes of the metrics server. Those of administrators need their token.
pub(crate) fn routes(of: AsyncSender, probes: &Probes, admin: Option<&Admin>) -> Vec<SubApp<()>> {
    let metrics = SubApp::new().with_stateless_route("/metrics", move |_| {
        let media_type = "text/plain; version=0.0.4; charset=utf-8";
        uncached(StatusCode::OK, of.prometheus(), media_type)
    });
    let admin = admin.map(|admin| admin::routes(admin.clone()));
    [metrics, probes.routes()]
        .into_iter()
        .chain(admin)
        .collect()
}
