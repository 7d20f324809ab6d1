//! The command line.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, Parser, ValueEnum};
use clap_complete::Shell;
use humphrey_ws::ping::Heartbeat;
use humphrey_ws::{
    AllowedHosts, Drain, Limits, OptionNames, Origins, SlowConsumer, TrustedProxies,
};

use crate::client;
use crate::files::{self, FollowedFiles};
use crate::listen_address::{ListenAddress, parse_tcp};
use crate::on_message::OnMessage;
use crate::page::PageSettings;
use crate::room_name::RoomName;
use crate::rooms::RoomSettings;
use crate::session::LIFETIME_DEFAULT;
use crate::sources::Sources;
use crate::token::Token;

/// The end of the help text.
const EXAMPLES: &str = "\
Examples:
  Show logs in every browser at http://127.0.0.1:8080/:
    humphrey-broadcast access.log error.log

  Show the output of a program:
    make 2>&1 | humphrey-broadcast

  Let other machines connect, and keep the last 5000 lines for late joiners:
    humphrey-broadcast --listen 0.0.0.0:8080 --history 5000 access.log

  Run a chat without input, in which each client's messages reach its room:
    humphrey-broadcast --on-message broadcast </dev/null

  Publish to the room 'news' from another program:
    humphrey-broadcast --publish-token-file token.txt </dev/null
    curl -H \"Authorization: Bearer $(cat token.txt)\" -d 'hello' \\
      http://127.0.0.1:8080/publish/news

  Let only readers with a token connect, and print the messages:
    openssl rand -hex 32 >token.txt
    humphrey-broadcast --read-token-file token.txt </dev/null
    humphrey-broadcast listen --token-file token.txt ws://127.0.0.1:8080/

  Speak TLS with a self-signed certificate, and print the messages from another shell:
    humphrey-broadcast --listen 0.0.0.0:8443 --tls-self-signed tls </dev/null
    humphrey-broadcast listen --ca tls/cert.pem wss://localhost:8443/

  Print the messages, or send lines, from another shell:
    humphrey-broadcast listen ws://127.0.0.1:8080/
    echo hello | humphrey-broadcast send ws://127.0.0.1:8080/

'humphrey-broadcast listen --help' and '... send --help' describe the clients.";

/// The sections of the help text, by task.
mod heading {
    pub(super) const INPUT: &str = "Input";
    pub(super) const CLIENTS: &str = "Clients";
    pub(super) const ROOMS: &str = "Rooms and history";
    pub(super) const READ: &str = "Protected reading";
    pub(super) const PUBLISH: &str = "Publishing over HTTP";
    pub(super) const LIMITS: &str = "Slow clients and limits";
    pub(super) const ACCESS: &str = "Network and access";
    #[cfg(feature = "tls")]
    pub(super) const TLS: &str = "TLS";
    #[cfg(feature = "cluster")]
    pub(super) const CLUSTER: &str = "Several nodes";
    pub(super) const OPERATION: &str = "Operation";
    pub(super) const MONITORING: &str = "Monitoring";
}

/// The port of 127.0.0.1 on which the server listens by default.
const PORT_DEFAULT: u16 = 8080;

/// The number of messages that are kept by default.
const HISTORY_DEFAULT: u16 = 1_000;

/// The most seconds of a session: browsers keep a cookie for at most 400 days (RFC 6265bis, §5.5).
const SESSION_SECONDS_MAX: i64 = 400 * 24 * 60 * 60;

/// How long a client may take to answer a heartbeat ping.
const PONG_WAIT: Duration = Duration::from_secs(10);

/// Sends every line of standard input, or of files that it follows, to every connected browser or WebSocket client.
///
/// Browsers open http://127.0.0.1:8080/ and show each line as it arrives; /#ROOM shows a room. Each followed file has a room
/// of its name.
///
/// WebSocket clients connect to ws://127.0.0.1:8080/ to receive the messages to everyone, or to /ROOM to receive those to
/// the room too. A room's name is percent-encoded UTF-8 of up to 240 bytes. A line that is not UTF-8 is sent as a binary
/// message.
///
/// Clients without WebSocket receive the same messages as server-sent events from /events or /events/ROOM.
///
/// Ctrl-C, SIGTERM or SIGHUP closes every connection with code 1001 and ends the program, or with 1012 and evenly over the time of
/// --drain; under nohup, SIGHUP is ignored.
/// With TLS, SIGHUP loads the certificate again.
///
/// Each option may come from the environment, as HUMPHREY_BROADCAST_LISTEN for --listen; flags are on unless the value is 0,
/// false, no, off or empty. The command line wins.
///
/// Exit codes: 0 after a signal, or after --exit-on-eof once all input was sent; 1 if the server could not start, or if
/// input could not be read or was skipped; 2 if the command line is invalid, or a file that it names cannot be used; 128
/// plus its number after a second signal.
#[allow(rustdoc::bare_urls)] // These docs are the help text.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    args_conflicts_with_subcommands = true,
    after_long_help = EXAMPLES
)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) command: Option<Subcommand>,

    /// Follow these files instead of standard input, also across rotation, truncation and deletion; '-' is standard input.
    /// The lines of a file go to the room of its name, with as many of its directories as tell it from the others, and the
    /// view of everyone shows them too. A file that does not exist is waited for
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,

    /// Begin with the last N lines of each file. Default: as many as --history keeps,
    /// divided among the files; with --history 0 or several nodes, none
    #[arg(short = 'n', long, help_heading = heading::INPUT, value_name = "N")]
    pub(crate) lines: Option<u64>,

    /// Listen on this address: IP:PORT or HOST:PORT, PORT for 127.0.0.1, :PORT for all addresses, which also accepts connections
    /// from other machines, or unix:PATH for a Unix socket, which has no TLS; repeatable. Port 0 selects a free port. Sockets that
    /// systemd passes on (socket activation) take the place of all of these. Default: 127.0.0.1:8080
    #[arg(long, help_heading = heading::ACCESS, value_name = "ADDR", value_parser = ListenAddress::parse)]
    pub(crate) listen: Vec<ListenAddress>,

    #[cfg(unix)]
    /// The permissions of Unix sockets, such as 660 for the user and the group. Default: those of the umask
    #[arg(long, help_heading = heading::ACCESS, value_name = "MODE", value_parser = parse_mode)]
    pub(crate) listen_mode: Option<u32>,

    /// Listen on this port of 127.0.0.1, as --listen PORT does
    #[arg(short, long, help_heading = heading::ACCESS, value_name = "PORT", conflicts_with = "listen")]
    pub(crate) port: Option<u16>,

    /// Handle messages from clients this way
    #[arg(long, help_heading = heading::CLIENTS, value_name = "WHAT", default_value = "echo")]
    pub(crate) on_message: OnMessage,

    /// Send standard input to this room only. Default: to everyone
    #[arg(long, help_heading = heading::INPUT, value_name = "ROOM")]
    pub(crate) room: Option<RoomName>,

    /// Send each line of standard input that begins with a name, a colon and a space, such as 'web: GET /', to the room of
    /// that name, without the name; the view of everyone shows it too. Lines without a name go to --room or everyone
    #[arg(long, help_heading = heading::INPUT)]
    pub(crate) prefix_room: bool,

    /// The title of the page. Default: humphrey-broadcast
    #[arg(long, help_heading = heading::CLIENTS, value_name = "TEXT")]
    pub(crate) title: Option<String>,

    /// Keep the last N messages (at most 10000) of each room and to everyone for clients that ask for them: the page,
    /// `listen`, and clients that connect to ws://.../ROOM?since=all or /events/ROOM?since=all. Those to everyone and to the
    /// room of the input take at most 1 MiB, those to another room at most 256 KiB. 0 keeps none. Default: 1000, or 0 with NATS,
    /// which keeps no messages
    #[arg(long, help_heading = heading::ROOMS, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=10_000))]
    pub(crate) history: Option<u16>,

    /// Allow at most N rooms; a client that requests another is disconnected with code 1013. Empty rooms are
    /// evicted with their history. A room that nobody has joined counts a third, unless --no-welcome is given. Default:
    /// 1000, or 100000 with --history 0
    #[arg(long, help_heading = heading::ROOMS, value_name = "N", value_parser = at_least_one)]
    pub(crate) max_rooms: Option<usize>,

    /// Let only clients with the token in this file read: WebSocket clients (also those that only send), event streams, the
    /// page, and everything else that shows messages or counts clients. Programs send the header 'Authorization: Bearer TOKEN',
    /// as 'listen' and 'send' do with --token-file. Browsers sign in with the token at /login (--session-lifetime).
    /// An address that presents 10 different wrong tokens within a minute gets 429. Publishing over HTTP has a token of its own.
    /// Default: every client that can connect can read
    #[arg(long, help_heading = heading::READ, value_name = "FILE")]
    pub(crate) read_token_file: Option<PathBuf>,

    /// How long a browser stays signed in, in seconds, where reading needs a token (--read-token-file). While the page is open over
    /// WebSocket and the server keeps a history (--history), its session is prolonged in time, and its connection stays; otherwise
    /// the session ends after this time. Default: 2592000, which is 30 days
    #[arg(long, help_heading = heading::READ, value_name = "SECONDS", requires = "read_token_file",
        value_parser = clap::value_parser!(u32).range(1..=SESSION_SECONDS_MAX))]
    pub(crate) session_lifetime: Option<u32>,

    /// Let programs with this token publish messages of up to 1 MiB with POST /publish/ROOM, or /publish for everyone,
    /// and the header 'Authorization: Bearer TOKEN'. A body with Content-Type application/octet-stream becomes a binary
    /// message, any other a text message. The response counts the WebSocket clients that receive it: {"members": 2}. Other
    /// users of this machine can see the token in the process list: prefer --publish-token-file. Default: /publish answers
    /// 404
    #[arg(long, help_heading = heading::PUBLISH, value_name = "TOKEN", conflicts_with = "publish_token_file")]
    pub(crate) publish_token: Option<String>,

    /// Read the token for publishing from this file
    #[arg(long, help_heading = heading::PUBLISH, value_name = "FILE")]
    pub(crate) publish_token_file: Option<PathBuf>,

    /// Do not announce new clients to their room, or to everyone if they are in none
    #[arg(long, help_heading = heading::CLIENTS)]
    pub(crate) no_welcome: bool,

    /// At the end of standard input, deliver the queued lines, close every connection with code 1001, and exit. Default:
    /// the server keeps running
    #[arg(long, help_heading = heading::INPUT)]
    pub(crate) exit_on_eof: bool,

    /// Handle a slow client this way once 4 MiB are queued for it
    #[arg(long, help_heading = heading::LIMITS, value_name = "POLICY", default_value = "skip-ahead")]
    pub(crate) slow_client: SlowClient,

    /// With --slow-client pace: disconnect a client that reads fewer bytes per second than this while others wait for it
    #[arg(long, help_heading = heading::LIMITS, value_name = "BYTES", default_value_t = 1_024, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) pace_rate: u64,

    /// With --slow-client pace: wait for a client that reads nothing for this long, and then disconnect it. Fractions such as
    /// 0.5 are allowed
    #[arg(long, help_heading = heading::LIMITS, value_name = "SECONDS", default_value = "1", value_parser = parse_seconds)]
    pub(crate) pace_patience: Duration,

    /// Accept at most N connections, WebSocket and HTTP together; answer further ones with 503
    #[arg(long, help_heading = heading::LIMITS, value_name = "N", default_value_t = Limits::default().connections_max, value_parser = at_least_one)]
    pub(crate) max_connections: usize,

    /// Also accept web pages of this origin, such as https://example.com; repeatable. '*' accepts all pages; 'null' and
    /// 'file://' are the origins that some devices and apps send. Default: only this program's own page, and clients that
    /// are not browsers
    #[arg(long, help_heading = heading::ACCESS, value_name = "ORIGIN")]
    pub(crate) allow_origin: Vec<String>,

    /// Also answer requests for this host name, such as the public name that a proxy passes on; repeatable. '*' answers any
    /// name. Default: on a loopback address only localhost, IP addresses and the hosts of --allow-origin, which prevents
    /// DNS rebinding; on other addresses any name
    #[arg(long, help_heading = heading::ACCESS, value_name = "NAME")]
    pub(crate) allow_host: Vec<String>,

    /// Accept at most N connections per address; answer further ones with 429. Default: no limit
    #[arg(long, help_heading = heading::LIMITS, value_name = "N", value_parser = at_least_one)]
    pub(crate) max_connections_per_address: Option<usize>,

    /// Accept at most N WebSocket handshakes and new event streams per address and second; answer further ones with 429.
    /// Default: no limit
    #[arg(long, help_heading = heading::LIMITS, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_handshakes_per_address: Option<u32>,

    /// Handle at most N messages per second of each WebSocket client, pings included, after a burst of up to N. The server
    /// does not read from a client that sends more until it may go on. Default: no limit
    #[arg(long, help_heading = heading::LIMITS, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_messages_per_second: Option<u32>,

    /// Receive at most N bytes per second from each WebSocket client, framing included, after a burst of up to N. The server
    /// does not read from a client that sends more until it may go on. Default: no limit
    #[arg(long, help_heading = heading::LIMITS, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_bytes_per_second: Option<u64>,

    /// Compress messages for clients that offer permessage-deflate, as browsers do. Saves bandwidth and costs CPU time.
    /// A client that may publish and can observe the network can then guess other clients' messages from their lengths. Default: messages
    /// are not compressed
    #[arg(long, help_heading = heading::CLIENTS)]
    pub(crate) compress: bool,

    #[cfg(feature = "tls")]
    /// Speak TLS (https:// and wss://) with the certificate in this PEM file: the server's own first, then those of
    /// intermediate authorities. SIGHUP loads a renewed one for new connections, and no longer ends the program, except
    /// when the program's terminal closes. Default: no TLS
    #[arg(long, help_heading = heading::TLS, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,

    #[cfg(feature = "tls")]
    /// The private key of --tls-cert, in PEM format without a passphrase
    #[arg(long, help_heading = heading::TLS, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,

    #[cfg(feature = "tls")]
    /// Speak TLS with a certificate for this machine (localhost, its name, and the address of --listen) that is kept in
    /// DIR as cert.pem and key.pem, and made there if there is none. Browsers warn about it; clients trust it with
    /// 'listen --ca DIR/cert.pem' or 'curl --cacert DIR/cert.pem'
    #[arg(long, help_heading = heading::TLS, value_name = "DIR", conflicts_with_all = ["tls_cert", "tls_key"])]
    pub(crate) tls_self_signed: Option<PathBuf>,

    #[cfg(feature = "cluster")]
    /// Share rooms and lines with other processes through this Redis or Valkey server:
    /// redis://USER:PASSWORD@HOST:PORT/DB?app=PREFIX, of which only the host is needed, or rediss:// for TLS. Several URLs,
    /// separated by commas, divide the rooms among the servers. redis+sentinel://HOST,HOST/NAME for a primary that Sentinels name.
    /// Or through NATS, without a history:
    /// nats://USER:PASSWORD@HOST:PORT,HOST:PORT?app=PREFIX, or tls:// for TLS; its servers stand in for each other. Other users of
    /// this machine can see a password in the process list: prefer --cluster-url-file. Default: this process is alone
    #[arg(long, help_heading = heading::CLUSTER, value_name = "URL", conflicts_with = "cluster_url_file")]
    pub(crate) cluster: Option<String>,

    #[cfg(feature = "cluster")]
    /// Read the URL of --cluster from this file
    #[arg(long, help_heading = heading::CLUSTER, value_name = "FILE")]
    pub(crate) cluster_url_file: Option<PathBuf>,

    #[cfg(feature = "cluster-tls")]
    /// Trust the certificate authorities in this PEM file for rediss:// and tls://, instead of those that the system trusts
    #[arg(long, help_heading = heading::CLUSTER, value_name = "FILE")]
    pub(crate) cluster_ca: Option<PathBuf>,

    /// Trust X-Forwarded-For from this proxy, from a network of proxies such as 10.0.0.0/8, or from those that connect to a Unix
    /// socket ('unix'); repeatable
    #[arg(long, help_heading = heading::ACCESS, value_name = "NETWORK")]
    pub(crate) trusted_proxy: Vec<String>,

    /// Expect the PROXY protocol (version 1 or 2) from this proxy, or from a network of proxies, or from those that connect to a
    /// Unix socket ('unix'): each of their connections begins with a header that names the client; repeatable
    #[arg(long, help_heading = heading::ACCESS, value_name = "NETWORK")]
    pub(crate) proxy_protocol: Vec<String>,

    /// Serve metrics for Prometheus under /metrics at this address, which should not be public, and the probes /health and
    /// /ready
    #[arg(long, help_heading = heading::MONITORING, value_name = "ADDR", value_parser = parse_tcp)]
    pub(crate) metrics: Option<SocketAddr>,

    /// Let programs with the token in this file list the connections, the slowest first (GET /admin/connections?limit=N, as
    /// JSON), and close one of them with code 1008 (POST /admin/connections/ID/close). They send the header
    /// 'Authorization: Bearer TOKEN'. The address is that of --metrics, if it is given, and otherwise that of --listen.
    /// Default: these paths answer 404
    #[arg(long, help_heading = heading::MONITORING, value_name = "FILE")]
    pub(crate) admin_token_file: Option<PathBuf>,

    /// Ping clients that have been silent for this long, and disconnect those that do not answer within 10 s. 0 disables
    /// pings
    #[arg(long, help_heading = heading::CLIENTS, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32))]
    pub(crate) heartbeat: u32,

    /// Send a comment to event streams that have been silent for this long, so that proxies keep them open. Use at least 1,
    /// and less than half of the shortest proxy timeout
    #[arg(long, help_heading = heading::CLIENTS, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) events_keep_alive: u32,

    /// After a signal, close the connections evenly over this time instead of all at once, so that the clients do not come back
    /// all at once either. Meanwhile /ready is 503, and everything else goes on. Each client gets close code 1012 and how long to
    /// wait before it reconnects (--drain-wait), which the page, 'listen' and 'send' do. The program ends earlier if no
    /// connection is left. Fractions such as 0.5 are allowed. Default: close all with 1001
    #[arg(long, help_heading = heading::OPERATION, value_name = "SECONDS", value_parser = parse_seconds)]
    pub(crate) drain: Option<Duration>,

    /// With --drain: how long each client waits before it reconnects. Default: 1 with --cluster, because other nodes take over;
    /// otherwise a second more than --drain, because this server is started again
    #[arg(long, help_heading = heading::OPERATION, value_name = "SECONDS", value_parser = parse_wait, requires = "drain")]
    pub(crate) drain_wait: Option<Duration>,

    /// Print only errors to standard error
    #[arg(long, help_heading = heading::MONITORING)]
    pub(crate) quiet: bool,
}

/// What the program does instead of serving.
#[derive(Debug, clap::Subcommand)]
#[allow(clippy::large_enum_variant)] // There is one of them, at the start.
pub(crate) enum Subcommand {
    #[command(flatten)]
    Client(client::Command),

    /// Print the manual page of the program, or of one of its commands, for man(1)
    ///
    /// humphrey-broadcast man >humphrey-broadcast.1
    Man {
        /// The command that the page is about
        #[arg(value_parser = ["listen", "send"])]
        command: Option<String>,
    },

    /// Print the completions of a shell
    ///
    /// humphrey-broadcast completions bash >~/.local/share/bash-completion/completions/humphrey-broadcast
    Completions { shell: Shell },
}

/// How the connections are closed after a signal.
#[derive(Clone, Copy)]
pub(crate) struct DrainOptions {
    pub(crate) over: Duration,
    pub(crate) settings: Drain,
}

/// The command-line names of [`SlowConsumer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SlowClient {
    /// Drop all that is queued for the client, and go on with the newest message. The page and `listen` say how many
    /// messages were skipped
    SkipAhead,
    /// Apply backpressure, so that nothing is lost: read input no faster than the slowest client, and disconnect clients that
    /// are slower than --pace-rate
    Pace,
    /// Disconnect the client
    Disconnect,
    /// Drop the oldest queued messages
    DropOldest,
    /// Drop the new message
    DropNewest,
}

impl Options {
    /// What the library does with a slow client.
    pub(crate) fn slow_consumer(&self) -> SlowConsumer {
        match self.slow_client {
            SlowClient::Pace => SlowConsumer::Pace {
                bytes_per_second_min: self.pace_rate,
                patience: self.pace_patience,
            },
            SlowClient::Disconnect => SlowConsumer::Disconnect,
            SlowClient::DropOldest => SlowConsumer::DropOldest,
            SlowClient::DropNewest => SlowConsumer::DropNewest,
            SlowClient::SkipAhead => SlowConsumer::SkipAhead,
        }
    }

    /// How the connections are closed after a signal; `None`: all at once.
    pub(crate) fn drain(&self) -> Option<DrainOptions> {
        let over = self.drain?;
        let settings = match self.drain_wait {
            Some(wait) => Drain::new(over).retry_after(wait),
            None => Drain::new(over),
        };
        Some(DrainOptions { over, settings })
    }

    pub(crate) fn origins(&self) -> Origins {
        if self.allow_origin.is_empty() {
            Origins::Same
        } else if self.allow_origin.iter().any(|origin| origin == "*") {
            Origins::Any
        } else {
            Origins::same_or_list(self.allow_origin.clone())
        }
    }

    /// The host names for which the program answers on an address; `None`: any.
    pub(crate) fn hosts(&self, is_local: bool) -> Option<AllowedHosts> {
        let origins = self.origins();
        let any = |list: &[String]| list.iter().any(|entry| entry == "*");
        let allows_any =
            any(&self.allow_host) || (origins == Origins::Any && self.allow_host.is_empty());
        let checks_hosts = is_local || !self.allow_host.is_empty();
        (checks_hosts && !allows_any).then(|| {
            AllowedHosts::loopback()
                .with_origins(&origins)
                .with_names(self.allow_host.clone())
        })
    }

    /// The addresses to listen on.
    pub(crate) fn listen_addresses(&self) -> Vec<ListenAddress> {
        match self.port {
            Some(port) => vec![ListenAddress::Tcp((Ipv4Addr::LOCALHOST, port).into())],
            None if self.listen.is_empty() => {
                vec![ListenAddress::Tcp(
                    (Ipv4Addr::LOCALHOST, PORT_DEFAULT).into(),
                )]
            }
            None => self.listen.clone(),
        }
    }

    /// Whether an option says where to listen.
    pub(crate) fn names_address(&self) -> bool {
        self.port.is_some() || !self.listen.is_empty()
    }

    /// Whether standard input is read.
    pub(crate) fn reads_standard_input(&self) -> bool {
        self.files.is_empty() || self.files.iter().any(|file| files::is_standard_input(file))
    }

    /// The files to follow, with their rooms.
    pub(crate) fn followed_files(&self) -> io::Result<FollowedFiles> {
        if self.exit_on_eof && !self.files.is_empty() {
            let what =
                "--exit-on-eof can't be used with files, which have no end while they are followed";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let program = Self::command();
        let commands: Vec<_> = program
            .get_subcommands()
            .map(clap::Command::get_name)
            .collect();
        FollowedFiles::new(&self.files, &commands)
    }

    /// A notice of input that is not read, or of an option without effect. That is no error: the option may come from an
    /// environment that other runs share.
    pub(crate) fn without_effect(&self) -> Option<String> {
        let options = [
            ("--room", self.room.is_some()),
            ("--prefix-room", self.prefix_room),
        ];
        let given = options.into_iter().find(|(_, is_given)| *is_given);
        match given {
            _ if self.reads_standard_input() => None,
            Some((option, _)) => Some(format!(
                "{option} has no effect: it is about standard input, which is not read; '-' among the files adds it"
            )),
            None if is_standard_input_piped() => {
                Some("standard input is not read; '-' among the files adds it".to_owned())
            }
            None => None,
        }
    }

    /// How many lines of each file to begin with.
    pub(crate) fn lines_at_start(&self) -> u64 {
        let kept = match self.is_clustered() {
            // The broker keeps those of an earlier run, or of another node.
            true => 0,
            false => self.kept_messages(),
        };
        // The view of everyone keeps as many of all files together.
        let files = self.files.len().max(1) as u64;
        self.lines.unwrap_or(u64::from(kept).div_ceil(files))
    }

    /// How many messages a room keeps.
    fn kept_messages(&self) -> u16 {
        self.history.unwrap_or(HISTORY_DEFAULT)
    }

    /// The settings of rooms. Call it once: the list of sources in it is shared by its clones.
    pub(crate) fn room_settings(&self, files: &FollowedFiles) -> RoomSettings {
        RoomSettings {
            history: match self.kept_messages() {
                0 => None,
                messages => Some(messages.into()),
            },
            rooms_max: self.max_rooms,
            announces_clients: !self.no_welcome,
            is_clustered: self.is_clustered(),
            // Other nodes may have sources, whose lines the view of everyone shows on all nodes.
            sources: Sources::new(
                files.rooms().cloned().collect(),
                self.reads_standard_input() && (self.prefix_room || !files.is_empty())
                    || self.is_clustered(),
            ),
        }
    }

    /// What the page is told about the program.
    pub(crate) fn page_settings(&self) -> PageSettings {
        PageSettings {
            title: self.title.as_deref().unwrap_or("humphrey-broadcast").into(),
            on_message: self.on_message,
            needs_token: self.read_token_file.is_some(),
        }
    }

    /// Whether the program is one node of several.
    #[cfg_attr(not(feature = "cluster"), allow(clippy::unused_self))]
    fn is_clustered(&self) -> bool {
        #[cfg(feature = "cluster")]
        return self.cluster.is_some() || self.cluster_url_file.is_some();
        #[cfg(not(feature = "cluster"))]
        return false;
    }

    /// The token for publishing; `None` if publishing is disabled.
    pub(crate) fn publish_token(&self) -> io::Result<Option<Token>> {
        match (&self.publish_token, &self.publish_token_file) {
            (Some(token), _) => Token::new(token).map(Some).map_err(|error| {
                let what = format!("--publish-token: {error}");
                io::Error::new(io::ErrorKind::InvalidInput, what)
            }),
            (None, Some(path)) => Token::read_for("--publish-token-file", path).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// The token for reading; `None` if everyone may read.
    pub(crate) fn read_token(&self) -> io::Result<Option<Token>> {
        let path = self.read_token_file.as_ref();
        path.map(|path| Token::read_for("--read-token-file", path))
            .transpose()
    }

    /// How long the session of a browser is valid.
    pub(crate) fn session_lifetime(&self) -> Duration {
        let chosen = self.session_lifetime;
        chosen.map_or(LIFETIME_DEFAULT, |seconds| {
            Duration::from_secs(seconds.into())
        })
    }

    /// The token for administration; `None` if it is disabled.
    pub(crate) fn admin_token(&self) -> io::Result<Option<Token>> {
        let path = self.admin_token_file.as_ref();
        path.map(|path| Token::read_for("--admin-token-file", path))
            .transpose()
    }

    /// Whether the server speaks TLS.
    #[cfg_attr(not(feature = "tls"), allow(clippy::unused_self))]
    pub(crate) fn speaks_tls(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls_cert.is_some() || self.tls_self_signed.is_some();
        #[cfg(not(feature = "tls"))]
        return false;
    }

    pub(crate) fn trusted_proxies(&self) -> Option<TrustedProxies> {
        (!self.trusted_proxy.is_empty())
            .then(|| TrustedProxies::x_forwarded_for(self.trusted_proxy.clone()))
    }

    pub(crate) fn events_keep_alive(&self) -> Duration {
        Duration::from_secs(self.events_keep_alive.into())
    }

    pub(crate) fn heartbeat(&self) -> Option<Heartbeat> {
        let interval = Duration::from_secs(self.heartbeat.into());
        (!interval.is_zero()).then(|| Heartbeat::new(interval, interval + PONG_WAIT))
    }
}

/// The option names that refusals suggest.
pub(crate) fn option_names() -> OptionNames {
    OptionNames::new()
        .with_allowed_origins("--allow-origin")
        .with_allowed_hosts("--allow-host")
}

/// Whether another program writes to standard input.
#[cfg(unix)]
fn is_standard_input_piped() -> bool {
    use rustix::fs::{FileType, fstat};
    fstat(io::stdin()).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
}

#[cfg(not(unix))]
fn is_standard_input_piped() -> bool {
    false
}

/// Parses permissions, in octal.
#[cfg(unix)]
fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("must be permissions in octal, such as 660".to_owned()),
    }
}

/// Parses a time in seconds, which may be a fraction.
fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| *seconds > 0.0);
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.ok_or_else(|| "must be a number of seconds above 0".to_owned())
}

fn parse_wait(text: &str) -> Result<Duration, String> {
    let wait = text.parse().ok().map(Duration::try_from_secs_f64);
    wait.and_then(Result::ok)
        .ok_or_else(|| "must be a number of seconds".to_owned())
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("must be a whole number of at least 1".to_owned()),
    }
}

#[cfg(test)]
mod tests;
