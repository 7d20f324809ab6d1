//! `humphrey-broadcast`: sends every line of its standard input to every connected browser.
//! With the command `listen` or `send` it is a client instead: see [`client`].
//!
//! Three threads of its own: this one waits for the end, one reads standard input, one waits for signals. The two
//! others end the program by asking the engine to stop; what is first asked for in a friendly way (at the end of the
//! input) can be hastened (by a signal).

mod client;
mod clients;
mod descriptors;
mod events;
mod json;
mod lines;
mod metrics;
mod name;
mod on_message;
mod options;
mod page;
mod publish;
mod rooms;
mod say;
mod signals;
mod stdio;

use std::io::{self, BufReader, IsTerminal};
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use humphrey_ws::{AsyncWebsocketApp, Limits, Message, Metrics, Procedures, RunningApp};

use crate::clients::{Client, Door};
use crate::lines::Line;
use crate::name::RoomName;
use crate::on_message::OnMessage;
use crate::options::Options;
use crate::rooms::{Channel, Rooms};
use crate::say::say;

/// Read from standard input at once: what a pipe holds on Linux.
const INPUT_BUFFER_BYTES: usize = 64 << 10;

/// How long clients may take to go when a signal ends the program.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// How long the last lines may take to be delivered with `--exit-on-eof`: as long as it takes. Whoever reads nothing
/// is cut off long before ([`Limits::write_timeout`], and the policy for slow clients), and a signal hastens it.
const FLUSH_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

fn main() -> ExitCode {
    let options = match options::parse() {
        Ok(options) => options,
        Err(code) => return code,
    };
    if let Some(command) = &options.command {
        return client::run(command);
    }
    say::init(options.quiet);
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say!("{error}");
            // What an option says can't be meant.
            ExitCode::from(match error.kind() {
                io::ErrorKind::InvalidInput => 2,
                _ => 1,
            })
        }
    }
}

/// Serves to the end. Returns whether all of the input was read and sent.
fn run(options: &Options) -> io::Result<bool> {
    let (connections_max, fewer) = descriptors::fit(options.max_connections);
    let (mut app, rooms) = app(options, connections_max)?;
    let address = app.bind()?;
    let sender = app.sender();
    let stopping = Arc::new(AtomicBool::new(false));
    {
        let sender = sender.clone();
        signals::on_stop(stopping.clone(), move || sender.shutdown(STOP_WAIT))?;
    }
    let metrics = match options.metrics {
        Some(address) => {
            let hosts = options.hosts(address);
            Some(metrics::serve(
                address,
                hosts,
                options.origins(),
                sender.clone(),
            )?)
        }
        None => None,
    };
    let running = app.start()?;
    if !options.quiet {
        say!("{}", whereabouts(address));
        if let Some(fewer) = fewer {
            say!("{fewer}");
        }
        if let Some(address) = metrics.as_ref().and_then(RunningApp::local_addr) {
            say!("metrics for Prometheus at http://{address}/metrics");
        }
        if io::stdin().is_terminal() {
            let whom = match &options.room {
                Some(room) => format!("room {:?}", room.as_str()),
                None => "everyone".to_owned(),
            };
            say!("what you type here goes to {whom}, line by line; Ctrl-C ends");
        }
    }
    // Set by the thread that reads the input, before it asks for the end.
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
                if !broadcast_input(&channel, &stopping) {
                    input_failed.store(true, Ordering::SeqCst);
                }
                if exit_on_eof {
                    sender.shutdown(FLUSH_WAIT);
                } else if !quiet && !stopping.load(Ordering::Relaxed) {
                    say!("end of input; clients stay connected until this program is ended");
                }
            })?;
    }
    running.join();
    if let Some(metrics) = metrics {
        metrics.shutdown(Duration::ZERO);
    }
    if !options.quiet {
        let mut metrics = sender.metrics();
        if rooms.keeps() {
            // Each form of an announcement counts for itself, and often nobody is there for one of them.
            metrics.dropped.no_recipient = 0;
        }
        say!("{}", summary(&metrics));
    }
    Ok(!input_failed.load(Ordering::SeqCst))
}

fn app(
    options: &Options,
    connections_max: usize,
) -> io::Result<(AsyncWebsocketApp<(), Client>, Rooms)> {
    let setup = options.rooms();
    let limits = Limits {
        connections_max,
        peer_connections_max: options.max_connections_per_address,
        peer_handshakes_per_second_max: options.max_handshakes_per_address,
        rooms_max: setup.library_rooms_max(),
        ..Limits::default()
    };
    let message_bytes_max = limits.message_bytes_max;
    let mut app: AsyncWebsocketApp<(), Client> = AsyncWebsocketApp::new()
        .with_address(options.listen)
        .with_limits(limits)
        .with_slow_consumer(options.slow_client.policy())
        .with_allowed_origins(options.origins())
        .with_option_names(options::option_names())
        // Links may lead to the page, and only there.
        .with_guarded_routes(["/"]);
    if let Some(hosts) = options.hosts(options.listen) {
        app = app.with_allowed_hosts(hosts);
    }
    if let Some(proxies) = options.trusted_proxies() {
        app = app.with_trusted_proxies(proxies);
    }
    if let Some(heartbeat) = options.heartbeat() {
        app = app.with_heartbeat(heartbeat);
    }
    let input = options.room.clone().unwrap_or_else(RoomName::everyone);
    app = setup.apply(app, &input);
    if setup.history.is_some() {
        // None of its own, but those that the library's client asks for, to know whether anybody is there.
        app = app.with_procedures(Procedures::new());
    }
    let rooms = Rooms::new(app.sender(), setup);
    let door = Arc::new(Door::new(
        rooms.clone(),
        setup.announces,
        options.on_message,
    ));
    {
        let door = door.clone();
        app.on_handshake(move |request, _| door.handshake(request));
    }
    {
        let door = door.clone();
        app.on_connect(move |stream, _| door.enter(&stream));
    }
    match options.on_message {
        OnMessage::Echo => app.on_message(move |stream, message, _| {
            clients::echo(&stream, message, message_bytes_max);
        }),
        OnMessage::Broadcast => {
            let rooms = rooms.clone();
            app.on_message(move |stream: clients::Stream, message, _| {
                // Where its room can't keep it, the library counts it.
                let _ = rooms.channel(&stream.state.room).publish(message);
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
    let streams = || events::handler(door.clone(), options.events_keep_alive());
    let app = app
        .with_event_stream("/events", streams())
        .with_event_stream("/events/*", streams())
        .with_routes(page::routes(rooms.clone()))
        .with_route_methods("/check", ["POST"])
        .with_route_methods("*", ["GET"]);
    Ok((app, rooms))
}

/// Sends each line to a room, or to everyone, until the input ends or the program is to stop. Returns whether every line was
/// sent that was to be.
fn broadcast_input(channel: &Channel, stopping: &AtomicBool) -> bool {
    let input = BufReader::with_capacity(INPUT_BUFFER_BYTES, stdio::Input);
    let line_bytes_max = Limits::default().message_bytes_max;
    let mut is_complete = true;
    let end = lines::for_each(input, line_bytes_max, |number, line| {
        match line {
            // Its room is always there to keep it.
            Line::Whole(line) => drop(channel.publish(Message::new(line))),
            Line::TooLong { bytes } => {
                is_complete = false;
                say!(
                    "line {number} is {bytes} bytes long and is skipped: a message may have {line_bytes_max}"
                );
            }
        }
        if stopping.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    match end {
        Ok(()) => is_complete,
        Err(error) if stdio::hangs_up(&error, || stopping.load(Ordering::Relaxed)) => is_complete,
        Err(error) => {
            say!("standard input can't be read: {error}");
            false
        }
    }
}

/// Where to point a browser and a WebSocket client.
fn whereabouts(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        // No address to connect to: a name that is one on every machine, and a hint that there are others.
        let port = address.port();
        return format!(
            "open http://localhost:{port}/ in a browser, or connect to ws://localhost:{port}/ \
             (listening on all addresses, {address})"
        );
    }
    format!("open http://{address}/ in a browser, or connect to ws://{address}/")
}

/// What was done, in one line: what went as it should first, losses only where there were any.
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
        (dropped.not_running, "dropped (at the end)"),
        (dropped.no_recipient, "for nobody (none connected)"),
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
    fn a_browser_is_pointed_to_an_address_that_it_can_open() {
        let of = |address: &str| whereabouts(address.parse().unwrap());
        assert_eq!(
            of("127.0.0.1:8080"),
            "open http://127.0.0.1:8080/ in a browser, or connect to ws://127.0.0.1:8080/"
        );
        assert!(of("[::1]:80").starts_with("open http://[::1]:80/ "));
        assert!(of("0.0.0.0:80").starts_with("open http://localhost:80/ "));
        assert!(of("[::]:80").starts_with("open http://localhost:80/ "));
    }

    #[test]
    fn the_summary_names_event_streams_and_losses_only_where_there_were_any() {
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
            "12 clients, 2 messages sent, 78 dropped (slow clients), 3 for nobody (none connected)"
        );
    }
}
