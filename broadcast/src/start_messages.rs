//! What the server says when it has started.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;

use crate::admin;
use crate::diagnostics::report;
use crate::exposure::{self, Exposure};
use crate::listen_address::ListenAddress;
use crate::options::Options;

/// Says where the server listens, and what to know about it.
pub(crate) fn report(
    options: &Options,
    (addresses, is_tls): (&[ListenAddress], bool),
    connections_warning: Option<String>,
    metrics: Option<SocketAddr>,
) {
    for address in addresses {
        match address {
            ListenAddress::Tcp(address) => report!("{}", listening_message(*address, is_tls)),
            #[cfg(unix)]
            ListenAddress::Unix(_) => report!("listening on {address}"),
        }
    }
    if let Some(warning) = unix_warning(options, addresses) {
        report!("{warning}");
    }
    let is_encrypted = is_tls || options.trusted_proxies().is_some();
    // One of them stands for all.
    let exposed = addresses.iter().find(|address| !address.is_local());
    if let Some(address) = exposed.and_then(ListenAddress::tcp) {
        let exposure = Exposure {
            address,
            is_encrypted,
            needs_token: options.read_token_file.is_some(),
        };
        if let Some(warning) = exposure.warning() {
            report!("{warning}");
        }
    }
    if let Some(without_effect) = options.without_effect() {
        report!("{without_effect}");
    }
    if let Some(connections_warning) = connections_warning {
        report!("{connections_warning}");
    }
    if let Some(address) = metrics {
        report!("metrics for Prometheus at http://{address}/metrics");
    }
    if options.admin_token_file.is_some() {
        report_admin((addresses, is_tls), metrics, is_encrypted);
    }
    if options.reads_standard_input() && io::stdin().is_terminal() {
        let recipient = match &options.room {
            Some(room) => format!("room {:?}", room.as_str()),
            None => "everyone".to_owned(),
        };
        report!("type lines to send them to {recipient}; Ctrl-C exits");
    }
}

/// What to know about Unix sockets: without the proxy's word, all of their clients are one address.
fn unix_warning(options: &Options, addresses: &[ListenAddress]) -> Option<&'static str> {
    let is_unix = |address: &ListenAddress| address.tcp().is_none();
    let named = options.trusted_proxy.iter().chain(&options.proxy_protocol);
    let is_named = named.into_iter().any(|network| network == "unix");
    (addresses.iter().any(is_unix) && !is_named).then_some(
        "warning: all clients of the Unix socket count as one address, which wrong tokens block for all of them, and limits per address \
         do not apply to them: see --trusted-proxy unix",
    )
}

/// Says where administrators find the connections: at the address of the metrics, if there is one.
fn report_admin(
    (addresses, is_tls): (&[ListenAddress], bool),
    metrics: Option<SocketAddr>,
    is_encrypted: bool,
) {
    let own = addresses.iter().find_map(ListenAddress::tcp);
    let Some(address) = metrics.or(own) else {
        report!("connections for administrators at {}", admin::CONNECTIONS);
        return;
    };
    let url = url_of(address, is_tls && metrics.is_none(), admin::CONNECTIONS);
    report!("connections for administrators at {url}");
    if let Some(warning) = exposure::admin_warning(address, is_encrypted && metrics.is_none()) {
        report!("{warning}");
    }
}

/// The URL of a path, for this machine if the server listens on all addresses.
fn url_of(address: SocketAddr, is_tls: bool, path: &str) -> String {
    let s = if is_tls { "s" } else { "" };
    match address.ip().is_unspecified() {
        true => format!("http{s}://localhost:{}{path}", address.port()),
        false => format!("http{s}://{address}{path}"),
    }
}

/// The message that names the URLs for browsers and WebSocket clients.
fn listening_message(address: SocketAddr, is_tls: bool) -> String {
    let s = if is_tls { "s" } else { "" };
    if address.ip().is_unspecified() {
        // An unspecified address cannot be connected to; `localhost` exists on every machine.
        let port = address.port();
        return format!(
            "open http{s}://localhost:{port}/ in a browser, or connect to ws{s}://localhost:{port}/ \
             (listening on all addresses, {address})"
        );
    }
    format!("open http{s}://{address}/ in a browser, or connect to ws{s}://{address}/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_message_names_an_address_browsers_can_open() {
        let of = |address: &str| listening_message(address.parse().unwrap(), false);
        assert_eq!(
            of("127.0.0.1:8080"),
            "open http://127.0.0.1:8080/ in a browser, or connect to ws://127.0.0.1:8080/"
        );
        assert!(of("[::1]:80").starts_with("open http://[::1]:80/ "));
        assert!(of("0.0.0.0:80").starts_with("open http://localhost:80/ "));
        assert!(of("[::]:80").starts_with("open http://localhost:80/ "));
        assert_eq!(
            listening_message("127.0.0.1:8080".parse().unwrap(), true),
            "open https://127.0.0.1:8080/ in a browser, or connect to wss://127.0.0.1:8080/"
        );
    }
}
