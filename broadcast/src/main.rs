//! `humphrey-broadcast` sends every line of its standard input, or of files that it follows, to every connected browser. The
//! commands `listen` and `send` run a client instead: see [`client`].
//!
//! Beside the library's threads, the server has up to five: the main thread waits for the shutdown, one reads standard input,
//! one follows files, one waits for signals, and on a terminal one shows the progress. The end of standard input and signals
//! start a graceful shutdown of the library's engine; a signal shortens the deadline of one that the end of input started.

mod admin;
mod admission;
mod attempt_limiter;
mod attempts;
mod client;
mod cluster;
mod command_line;
mod cookies;
mod descriptor_limit;
mod diagnostics;
mod environment;
mod event_streams;
mod exposure;
mod files;
mod follow;
mod history;
mod input;
mod json;
mod lines;
mod listen_address;
mod listening;
mod login;
mod metrics;
mod on_message;
mod option_file;
mod options;
mod page;
mod probes;
mod progress;
mod protection;
mod publish;
mod read_access;
mod responses;
mod room_name;
mod rooms;
mod server_progress;
mod service_manager;
mod session;
mod signals;
mod sources;
mod start_messages;
mod stdio;
mod tls;
mod token;
mod token_access;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::thread;
use std::time::Duration;

use humphrey::SubApp;
use humphrey_ws::{
    AsyncSender, AsyncWebsocketApp, Compression, Limits, Metrics, Procedures, RunningApp,
};

use crate::admin::Admin;
use crate::admission::{Admission, ClientState};
use crate::attempt_limiter::AttemptLimiter;
use crate::diagnostics::report;
use crate::input::{InputAccount, InputRooms};
use crate::listening::Listening;
use crate::on_message::OnMessage;
use crate::options::{Options, Subcommand};
use crate::page::PageSettings;
use crate::probes::Probes;
use crate::protection::Protection;
use crate::room_name::RoomName;
use crate::rooms::{RoomSettings, Rooms};
use crate::server_progress::ServerProgress;
use crate::token_access::TokenAccess;

type App = AsyncWebsocketApp<(), ClientState>;

/// Cargo.toml has the reason.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Deadline of the closing handshakes after a signal.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Deadline for delivering the last lines with `--exit-on-eof`: practically none. Slow clients are disconnected much
/// earlier ([`Limits::write_timeout`], and the policy for slow clients), and a signal shortens it.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// How many bytes may wait for a client before it counts as slow: a burst, such as a whole log at once, is not lost.
const OUTBOX_BYTES_MAX: usize = 4 << 20;

fn main() -> ExitCode {
    let mut options = match command_line::parse() {
        Ok(options) => options,
        Err(code) => return code,
    };
    match &options.command {
        None => {}
        Some(Subcommand::Client(command)) => return client::run(command),
        Some(Subcommand::Man { command }) => {
            // Errors are ignored: the reader may have closed the pipe.
            let _ = command_line::write_manual(command.as_deref());
            return ExitCode::SUCCESS;
        }
        Some(Subcommand::Completions { shell }) => {
            command_line::write_completions(*shell);
            return ExitCode::SUCCESS;
        }
    }
    diagnostics::init(options.quiet);
    let settled = cluster::settle(&mut options).map_err(invalid_option);
    match settled.and_then(|()| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report!("{error}");
            // The value of an option is invalid, or a file that it names cannot be used.
            ExitCode::from(match error.kind() {
                io::ErrorKind::InvalidInput => 2,
                _ => 1,
            })
        }
    }
}

/// Marks an error as one of the command line, whatever the reason why a file cannot be used.
fn invalid_option(error: io::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

/// Runs the server until it is stopped. Returns whether all of the input was read and sent.
fn run(options: &Options) -> io::Result<bool> {
    // Set by the first signal, before anything else happens.
    let stopping = Arc::new(AtomicBool::new(false));
    let files = options.followed_files()?;
    let (connections_max, connections_warning) =
        descriptor_limit::limit_connections(options.max_connections, files.descriptors());
    let settings = options.room_settings(&files);
    let listening = Listening::open(options)?;
    let Built {
        app,
        rooms,
        probes,
        admin,
    } = build_app(options, &listening, &settings, connections_max, &stopping)?;
    let files = files.open(options.lines_at_start())?;
    let app = cluster::apply(app, options);
    let (mut app, reload) = tls::apply(app, options, &listening).map_err(invalid_option)?;
    let is_tls = reload.is_some();
    let Listening {
        listeners,
        addresses,
    } = listening;
    for listener in listeners {
        app = app.with_listener(listener);
    }
    let sender = app.sender();
    let stop = Arc::new(stop(options, sender.clone()));
    {
        let stop = stop.clone();
        signals::handle(stopping.clone(), move || stop(), reload)?;
    }
    let metrics = metrics::serve(options, sender.clone(), &probes, admin)?;
    let running = app.start()?;
    if !options.quiet {
        let metrics = metrics.as_ref().and_then(RunningApp::local_addr);
        start_messages::report(options, (&addresses, is_tls), connections_warning, metrics);
    }
    service_manager::ready(&sender)?;
    if stopping.load(Ordering::SeqCst) {
        // The signal came before there was anything to stop.
        stop();
    }
    let is_typed = options.reads_standard_input() && io::stdin().is_terminal();
    let shown = ServerProgress::start(options.quiet || is_typed, sender.clone())?;
    let progress = shown.as_ref().map(|shown| shown.progress.clone());
    let input = Arc::new(InputAccount::new(progress));
    let following = files
        .zip(rooms.sources())
        .map(|(files, sources)| files.follow(&rooms, sources, input.clone(), options.quiet))
        .transpose()?;
    if options.reads_standard_input() {
        start_input(
            options,
            input.clone(),
            rooms.clone(),
            sender.clone(),
            stopping,
        )?;
    }
    running.join();
    // Its thread has ended then, so all of its lines are counted.
    drop(following);
    drop(shown);
    if let Some(metrics) = metrics {
        metrics.shutdown(Duration::ZERO);
    }
    if !options.quiet {
        let mut metrics = sender.metrics();
        if rooms.has_history() {
            // Each form of an announcement is counted separately, and often one form has no recipient.
            metrics.dropped.no_recipient = 0;
        }
        report!("{}", summary(input.lines(), &metrics));
    }
    Ok(!input.has_failed())
}

/// Returns what a signal does.
fn stop(options: &Options, sender: AsyncSender) -> impl Fn() + Send + Sync + 'static {
    let (drain, quiet) = (options.drain(), options.quiet);
    let announced = Once::new();
    move || {
        let Some(drain) = drain else {
            service_manager::stopping();
            return sender.shutdown(SHUTDOWN_TIMEOUT);
        };
        announced.call_once(|| {
            service_manager::draining(drain.over, SHUTDOWN_TIMEOUT);
            let clients = sender.connections();
            if !quiet && clients > 0 {
                report!(
                    "closing the connections ({clients}) over {} s (--drain); a second signal ends the program at once",
                    drain.over.as_secs_f64()
                );
            }
        });
        sender.shutdown_over(drain.settings);
    }
}

/// Starts the thread that sends the lines of standard input. At their end, it stops the server with `--exit-on-eof`.
fn start_input(
    options: &Options,
    input: Arc<InputAccount>,
    rooms: Rooms,
    sender: AsyncSender,
    stopping: Arc<AtomicBool>,
) -> io::Result<()> {
    let (exit_on_eof, quiet) = (options.exit_on_eof, options.quiet);
    let goes_on_draining = options.drain().is_some();
    let room = options.room.clone().unwrap_or_else(RoomName::everyone);
    let by_prefix = options.prefix_room;
    let thread = thread::Builder::new().name("standard input".into());
    thread.spawn(move || {
        let to = InputRooms::new(&rooms, &room, by_prefix);
        let never = AtomicBool::new(false);
        // Clients that are still connected get the lines that come while the others are closed.
        input.broadcast(to, if goes_on_draining { &never } else { &stopping });
        if exit_on_eof {
            // A drain that a signal has started goes on to its end.
            let is_draining = goes_on_draining && stopping.load(Ordering::SeqCst);
            if !is_draining {
                stopping.store(true, Ordering::SeqCst);
                service_manager::stopping();
                sender.shutdown(FLUSH_TIMEOUT);
            }
        } else if !quiet && !stopping.load(Ordering::Relaxed) {
            report!("end of input; the server keeps running (--exit-on-eof ends it here)");
        }
    })?;
    Ok(())
}

/// The app, and what its surroundings share with it.
struct Built {
    app: App,
    rooms: Rooms,
    probes: Probes,
    /// What administrators may do.
    admin: Option<Admin>,
}

fn build_app(
    options: &Options,
    listening: &Listening,
    settings: &RoomSettings,
    connections_max: usize,
    stopping: &Arc<AtomicBool>,
) -> io::Result<Built> {
    let mut app = guarded_app(options, listening.is_local(), settings, connections_max);
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
    let limiter = Arc::new(AttemptLimiter::default());
    let read_token = options.read_token().map_err(invalid_option)?;
    let protection = Protection::new(
        (read_token, options.session_lifetime()),
        options.speaks_tls(),
        &limiter,
        app.sender(),
    );
    handle_clients(
        &mut app,
        options.on_message,
        &admission,
        &protection,
        &rooms,
    );
    // Without a history, no client has the subprotocol that the handler needs.
    let refreshes = settings.history.is_some();
    if let Some(handler) = protection.refresh_handler().filter(|_| refreshes) {
        app = app.with_refresh_handler(handler);
    }
    let probes = Probes::new(app.sender(), settings, stopping.clone());
    let publish = options.publish_token().map_err(invalid_option)?;
    let publish = publish.map(|token| TokenAccess::new(token, &limiter, &publish::PUBLISHING));
    let admin = options.admin_token().map_err(invalid_option)?;
    let admin = admin.map(|token| Admin {
        access: TokenAccess::new(token, &limiter, &admin::ADMINISTRATION),
        sender: app.sender(),
    });
    let page = options.page_settings();
    // With an address for metrics, administrators use that one, which clients can't reach.
    let mounted_admin = admin.as_ref().filter(|_| options.metrics.is_none());
    let tokens = Tokens {
        publish: publish.as_ref(),
        admin: mounted_admin,
    };
    for routes in routes(&rooms, &page, &probes, &protection, tokens) {
        app = app.with_routes(routes);
    }
    let streams = || {
        let handler = event_streams::handler(admission.clone(), options.events_keep_alive());
        protection.event_stream(handler)
    };
    let admin_access = mounted_admin.map(|admin| admin.access.clone());
    let of_bodies: Vec<TokenAccess> = publish.into_iter().chain(admin_access).collect();
    let app = app
        .with_event_stream("/events", streams())
        .with_event_stream("/events/*", streams())
        .with_route_methods(admin::ONE_CONNECTION, ["POST"])
        .with_route_methods("/publish", ["POST"])
        .with_route_methods("/publish/*", ["POST"])
        .with_route_methods("/login", ["GET", "POST"])
        .with_route_methods("/logout", ["POST"])
        .with_route_methods("/session", ["POST"])
        .with_route_methods("/check", ["POST"])
        .with_route_methods("*", ["GET"])
        .with_body_guard(move |request, _| {
            protection.check_body(request)?;
            of_bodies
                .iter()
                .try_for_each(|access| access.check_body(request))
        });
    Ok(Built {
        app,
        rooms,
        probes,
        admin,
    })
}

/// Sets the handlers of WebSocket clients.
fn handle_clients(
    app: &mut App,
    on_message: OnMessage,
    admission: &Arc<Admission>,
    protection: &Protection,
    rooms: &Rooms,
) {
    {
        let (admission, protection) = (admission.clone(), protection.clone());
        app.on_handshake(move |request, _| {
            let reader = protection.check(request)?;
            Ok(reader.limit_connection(admission.on_handshake(request)?))
        });
    }
    {
        let admission = admission.clone();
        app.on_connect(move |stream, _| admission.on_connect(&stream));
    }
    match on_message {
        OnMessage::Echo => app.on_message(move |stream, message, _| {
            admission::echo(&stream, message, Limits::default().message_bytes_max);
        }),
        OnMessage::Broadcast => {
            let rooms = rooms.clone();
            app.on_message(move |stream: admission::ClientStream, message, _| {
                rooms.channel(&stream.state.room).publish(message);
            });
        }
        OnMessage::Ignore => {}
    }
}

/// Creates the app with the options that concern the network: addresses, limits, and which clients may connect.
fn guarded_app(
    options: &Options,
    is_local: bool,
    settings: &RoomSettings,
    connections_max: usize,
) -> App {
    let limits = Limits::default()
        .outbox_bytes_max(OUTBOX_BYTES_MAX)
        .connections_max(connections_max)
        .peer_connections_max(options.max_connections_per_address)
        .peer_handshakes_per_second_max(options.max_handshakes_per_address)
        .messages_per_second_max(options.max_messages_per_second)
        .bytes_per_second_max(options.max_bytes_per_second)
        .rooms_max(settings.library_rooms_max());
    let mut app: App = AsyncWebsocketApp::new()
        .with_limits(limits)
        .with_slow_consumer(options.slow_consumer())
        .with_allowed_origins(options.origins())
        .with_option_names(options::option_names())
        // Other sites may link to the page, and so to the login, but to no other route.
        .with_guarded_routes(["/", "/login"]);
    if let Some(hosts) = options.hosts(is_local) {
        app = app.with_allowed_hosts(hosts);
    }
    if let Some(proxies) = options.trusted_proxies() {
        app = app.with_trusted_proxies(proxies);
    }
    if !options.proxy_protocol.is_empty() {
        app = app.with_proxy_protocol(options.proxy_protocol.clone());
    }
    if options.compress {
        app = app.with_compression(Compression::new());
    }
    if let Some(heartbeat) = options.heartbeat() {
        app = app.with_heartbeat(heartbeat);
    }
    app
}

/// The tokens of the server's routes, beside that for reading.
#[derive(Clone, Copy)]
struct Tokens<'a> {
    publish: Option<&'a TokenAccess>,
    admin: Option<&'a Admin>,
}

/// All routes of the server. Those that show anything are protected.
fn routes(
    rooms: &Rooms,
    page: &PageSettings,
    probes: &Probes,
    protection: &Protection,
    tokens: Tokens<'_>,
) -> Vec<SubApp<()>> {
    let publish = tokens
        .publish
        .map(|access| publish::routes(rooms.clone(), access.clone()));
    let admin = tokens.admin.map(|admin| admin::routes(admin.clone()));
    let all = [
        page::routes(rooms.clone(), page),
        history::routes(rooms.clone()),
        probes.routes(),
    ];
    all.into_iter()
        .chain(publish)
        .chain(admin)
        .chain(protection.login_routes())
        .map(|routes| protection.routes(routes))
        .collect()
}

/// The final line: the lines that were read, the clients, the messages, and each kind of loss that occurred.
fn summary(lines: u64, metrics: &Metrics) -> String {
    let plural = |n: u64| if n == 1 { "" } else { "s" };
    let (clients, streams) = (metrics.connections_opened, metrics.event_streams_opened);
    let mut summary = format!(
        "{lines} line{}, {clients} client{}",
        plural(lines),
        plural(clients)
    );
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
mod tests;
