//! `humphrey-broadcast` sends every line of its standard input to every connected browser. The commands `listen` and
//! `send` run a client instead: see [`client`].
//!
//! Beside the library's threads, the server has three: the main thread waits for the shutdown, one reads standard input,
//! and one waits for signals. The latter two start a graceful shutdown of the library's engine; a signal shortens the
//! deadline of one that the end of input started.

mod admission;
mod client;
mod cluster;
mod descriptor_limit;
mod diagnostics;
mod event_streams;
mod json;
mod lines;
mod metrics;
mod on_message;
mod options;
mod page;
mod probes;
mod publish;
mod room_name;
mod rooms;
mod signals;
mod stdio;
mod tls;

use std::io::{self, BufReader, IsTerminal};
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use humphrey_ws::{
    AsyncWebsocketApp, Compression, Limits, Message, Metrics, Procedures, RunningApp,
};

use crate::admission::{Admission, ClientState};
use crate::diagnostics::report;
use crate::lines::Line;
use crate::on_message::OnMessage;
use crate::options::Options;
use crate::probes::Probes;
use crate::room_name::RoomName;
use crate::rooms::{Channel, Rooms};

type App = AsyncWebsocketApp<(), ClientState>;

/// Size of the read buffer: the capacity of a pipe on Linux.
const INPUT_BUFFER_BYTES: usize = 64 << 10;

/// Deadline of the closing handshakes after a signal.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Deadline for delivering the last lines with `--exit-on-eof`: practically none. Slow clients are disconnected much
/// earlier ([`Limits::write_timeout`], and the policy for slow clients), and a signal shortens it.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

fn main() -> ExitCode {
    let mut options = match options::parse() {
        Ok(options) => options,
        Err(code) => return code,
    };
    if let Some(command) = &options.command {
        return client::run(command);
    }
    diagnostics::init(options.quiet);
    match cluster::settle(&mut options).and_then(|()| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report!("{error}");
            // The value of an option is invalid.
            ExitCode::from(match error.kind() {
                io::ErrorKind::InvalidInput => 2,
                _ => 1,
            })
        }
    }
}

/// Runs the server until it is stopped. Returns whether all of the input was read and sent.
fn run(options: &Options) -> io::Result<bool> {
    let (connections_max, connections_warning) =
        descriptor_limit::limit_connections(options.max_connections);
    let (app, rooms) = build_app(options, connections_max)?;
    let stopping = Arc::new(AtomicBool::new(false));
    let probes = Probes::new(app.sender(), options.room_settings(), stopping.clone());
    let app = cluster::apply(app.with_routes(probes.routes()), options);
    let (mut app, reload) = tls::apply(app, options)?;
    let is_tls = reload.is_some();
    let address = app.bind()?;
    let sender = app.sender();
    {
        let sender = sender.clone();
        let stop = move || sender.shutdown(SHUTDOWN_TIMEOUT);
        signals::handle(stopping.clone(), stop, reload)?;
    }
    let metrics = metrics::serve(options, sender.clone(), &probes)?;
    let running = app.start()?;
    if !options.quiet {
        report!("{}", listening_message(address, is_tls));
        if let Some(connections_warning) = connections_warning {
            report!("{connections_warning}");
        }
        if let Some(address) = metrics.as_ref().and_then(RunningApp::local_addr) {
            report!("metrics for Prometheus at http://{address}/metrics");
        }
        if io::stdin().is_terminal() {
            let recipient = match &options.room {
                Some(room) => format!("room {:?}", room.as_str()),
                None => "everyone".to_owned(),
            };
            report!("type lines to send them to {recipient}; Ctrl-C exits");
        }
    }
    // Set as soon as a line is skipped: a signal may end the program before the end of the input.
    let input_failed = Arc::new(AtomicBool::new(false));
    {
        let sender = sender.clone();
        let input_failed = input_failed.clone();
        let exit_on_eof = options.exit_on_eof;
        let quiet = options.quiet;
        let room = options.room.clone().unwrap_or_else(RoomName::everyone);
        let channel = rooms.channel(&room);
        thread::Builder::new()
            .name("standard input".into())
            .spawn(move || {
                broadcast_input(&channel, &stopping, &input_failed);
                if exit_on_eof {
                    stopping.store(true, Ordering::SeqCst);
                    sender.shutdown(FLUSH_TIMEOUT);
                } else if !quiet && !stopping.load(Ordering::Relaxed) {
                    report!("end of input; the server keeps running (--exit-on-eof ends it here)");
                }
            })?;
    }
    running.join();
    if let Some(metrics) = metrics {
        metrics.shutdown(Duration::ZERO);
    }
    if !options.quiet {
        let mut metrics = sender.metrics();
        if rooms.has_history() {
            // Each form of an announcement is counted separately, and often one form has no recipient.
            metrics.dropped.no_recipient = 0;
        }
        report!("{}", summary(&metrics));
    }
    Ok(!input_failed.load(Ordering::SeqCst))
}

fn build_app(options: &Options, connections_max: usize) -> io::Result<(App, Rooms)> {
    let settings = options.room_settings();
    let limits = Limits::default()
        .connections_max(connections_max)
        .peer_connections_max(options.max_connections_per_address)
        .peer_handshakes_per_second_max(options.max_handshakes_per_address)
        .rooms_max(settings.library_rooms_max());
    let message_bytes_max = limits.message_bytes_max;
    let mut app: App = AsyncWebsocketApp::new()
        .with_address(options.listen)
        .with_limits(limits)
        .with_slow_consumer(options.slow_client.policy())
        .with_allowed_origins(options.origins())
        .with_option_names(options::option_names())
        // Other sites may link to the page, but to no other route.
        .with_guarded_routes(["/"]);
    if let Some(hosts) = options.hosts(options.listen) {
        app = app.with_allowed_hosts(hosts);
    }
    if let Some(proxies) = options.trusted_proxies() {
        app = app.with_trusted_proxies(proxies);
    }
    if options.compress {
        app = app.with_compression(Compression::new());
    }
    if let Some(heartbeat) = options.heartbeat() {
        app = app.with_heartbeat(heartbeat);
    }
    let input = options.room.clone().unwrap_or_else(RoomName::everyone);
    app = settings.apply(app, &input);
    if settings.history.is_some() {
        // An empty set enables the subprotocol of the library's JavaScript client, which uses its liveness checks.
        app = app.with_procedures(Procedures::new());
    }
    let rooms = Rooms::new(app.sender(), settings);
    let admission = Arc::new(Admission::new(
        rooms.clone(),
        settings.announces_clients,
        options.on_message,
    ));
    {
        let admission = admission.clone();
        app.on_handshake(move |request, _| admission.on_handshake(request));
    }
    {
        let admission = admission.clone();
        app.on_connect(move |stream, _| admission.on_connect(&stream));
    }
    match options.on_message {
        OnMessage::Echo => app.on_message(move |stream, message, _| {
            admission::echo(&stream, message, message_bytes_max);
        }),
        OnMessage::Broadcast => {
            let rooms = rooms.clone();
            app.on_message(move |stream: admission::ClientStream, message, _| {
                rooms.channel(&stream.state.room).publish(message);
            });
        }
        OnMessage::Ignore => {}
    }
    if let Some(token) = options.publish_token()? {
        app = app
            .with_routes(publish::routes(rooms.clone(), token.clone()))
            .with_route_methods("/publish", ["POST"])
            .with_route_methods("/publish/*", ["POST"])
            .with_body_guard(move |request, _| publish::guard(request, &token));
    }
    let streams = || event_streams::handler(admission.clone(), options.events_keep_alive());
    let app = app
        .with_event_stream("/events", streams())
        .with_event_stream("/events/*", streams())
        .with_routes(page::routes(rooms.clone()))
        .with_route_methods("/check", ["POST"])
        .with_route_methods("*", ["GET"]);
    Ok((app, rooms))
}

/// Sends each line to a room, or to everyone, until the input ends or the program is stopping. Sets `input_failed` if a
/// line is skipped, or the input cannot be read.
fn broadcast_input(channel: &Channel, stopping: &AtomicBool, input_failed: &AtomicBool) {
    let input = BufReader::with_capacity(INPUT_BUFFER_BYTES, stdio::StandardInput);
    let line_bytes_max = Limits::default().message_bytes_max;
    let end = lines::for_each(input, line_bytes_max, |number, line| {
        match line {
            // The room of standard input is never evicted.
            Line::Whole(line) => channel.publish(Message::new(line)),
            Line::TooLong { bytes } => {
                input_failed.store(true, Ordering::SeqCst);
                report!(
                    "line {number} is {bytes} bytes long and is skipped: the limit is {line_bytes_max} bytes"
                );
            }
        }
        if stopping.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    if let Err(error) = end
        && !stdio::is_hangup(&error, || stopping.load(Ordering::Relaxed))
    {
        input_failed.store(true, Ordering::SeqCst);
        report!("standard input can't be read: {error}");
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

/// The final line: clients and messages, followed by the kinds of loss that occurred.
fn summary(metrics: &Metrics) -> String {
    let plural = |n: u64| if n == 1 { "" } else { "s" };
    let (clients, streams) = (metrics.connections_opened, metrics.event_streams_opened);
    let mut summary = format!("{clients} client{}", plural(clients));
    if streams > 0 {
        summary += &format!(", {streams} event stream{}", plural(streams));
    }
    let sent = metrics.messages_out;
    summary += &format!(", {sent} message{} sent", plural(sent));
    let dropped = &metrics.dropped;
    let losses = [
        (dropped.slow_consumer, "dropped (slow clients)"),
        (dropped.closed, "dropped (clients that left)"),
        (dropped.not_running, "dropped (during shutdown)"),
        (
            dropped.no_recipient,
            "without a recipient (no client connected)",
        ),
    ];
    for (n, what) in losses {
        if n > 0 {
            summary += &format!(", {n} {what}");
        }
    }
    summary
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

    #[test]
    fn summary_without_losses_or_event_streams_omits_them() {
        let mut metrics = Metrics::default();
        metrics.connections_opened = 1;
        metrics.messages_out = 2;
        assert_eq!(summary(&metrics), "1 client, 2 messages sent");
        metrics.event_streams_opened = 1;
        assert_eq!(
            summary(&metrics),
            "1 client, 1 event stream, 2 messages sent"
        );
        metrics.event_streams_opened = 0;
        metrics.connections_opened = 12;
        metrics.dropped.slow_consumer = 78;
        metrics.dropped.no_recipient = 3;
        assert_eq!(
            summary(&metrics),
            "12 clients, 2 messages sent, 78 dropped (slow clients), 3 without a recipient (no client connected)"
        );
    }
}
