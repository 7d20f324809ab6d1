//! The command line.

use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use humphrey_ws::ping::Heartbeat;
use humphrey_ws::{AllowedHosts, Limits, OptionNames, Origins, SlowConsumer, TrustedProxies};

use crate::client::Command;
use crate::diagnostics::report;
use crate::on_message::OnMessage;
use crate::publish::Token;
use crate::room_name::RoomName;
use crate::rooms::RoomSettings;
use crate::stdio::StandardOutput;

/// The end of the help text.
const EXAMPLES: &str = "\
Examples:
  Show a log in every browser at http://127.0.0.1:8080/:
    tail -f access.log | humphrey-broadcast

  Let other machines connect, and replay the last 100 lines to late joiners:
    tail -f access.log | humphrey-broadcast --listen 0.0.0.0:8080 --history 100

  Run a chat without input, in which each client's messages reach its room:
    humphrey-broadcast --on-message broadcast </dev/null

  Publish to the room 'news' from another program:
    humphrey-broadcast --publish-token-file token.txt </dev/null
    curl -H \"Authorization: Bearer $(cat token.txt)\" -d 'hello' \\
      http://127.0.0.1:8080/publish/news

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
    pub(super) const PUBLISH: &str = "Publishing over HTTP";
    pub(super) const LIMITS: &str = "Slow clients and limits";
    pub(super) const ACCESS: &str = "Network and access";
    #[cfg(feature = "tls")]
    pub(super) const TLS: &str = "TLS";
    #[cfg(feature = "cluster")]
    pub(super) const CLUSTER: &str = "Several nodes";
    pub(super) const MONITORING: &str = "Monitoring";
}

/// How long a client may take to answer a heartbeat ping.
const PONG_WAIT: Duration = Duration::from_secs(10);

/// Sends every line of standard input to every connected browser or WebSocket client.
///
/// Browsers open http://127.0.0.1:8080/ and show each line as it arrives; /#ROOM shows a room.
///
/// WebSocket clients connect to ws://127.0.0.1:8080/ to receive the messages to everyone, or to /ROOM to receive those to
/// the room too. A room's name is percent-encoded UTF-8 of up to 240 bytes. A line that is not UTF-8 is sent as a binary
/// message.
///
/// Clients without WebSocket receive the same messages as server-sent events from /events or /events/ROOM.
///
/// Ctrl-C, SIGTERM or SIGHUP closes every connection with code 1001 and ends the program; under nohup, SIGHUP is ignored.
/// With TLS, SIGHUP loads the certificate again.
///
/// Exit codes: 0 after a signal, or after --exit-on-eof once all input was sent; 1 if the server could not start, or if
/// input could not be read or was skipped; 2 if the command line is wrong.
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
    pub(crate) command: Option<Command>,

    /// Listen on this address: IP:PORT or HOST:PORT. Port 0 selects a free port; 0.0.0.0 also accepts connections from
    /// other machines
    #[arg(long, help_heading = heading::ACCESS, value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = parse_address)]
    pub(crate) listen: SocketAddr,

    /// Handle messages from clients this way
    #[arg(long, help_heading = heading::CLIENTS, value_name = "WHAT", default_value = "echo")]
    pub(crate) on_message: OnMessage,

    /// Send standard input to this room only. Default: to everyone
    #[arg(long, help_heading = heading::INPUT, value_name = "ROOM")]
    pub(crate) room: Option<RoomName>,

    /// Keep the last N messages (at most 10000, and 256 KiB) of each room and to everyone, and replay them: all of them
    /// to late joiners, the missed ones to a reconnecting page or `listen`. A client that connects to ws://.../ROOM?since=now
    /// receives no replay. Default: no messages are kept
    #[arg(long, help_heading = heading::ROOMS, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) history: Option<u16>,

    /// Allow at most N rooms; a client that requests another is disconnected with code 1013. Default: 100000, or 1000
    /// with --history, where empty rooms are evicted with their history
    #[arg(long, help_heading = heading::ROOMS, value_name = "N", value_parser = at_least_one)]
    pub(crate) max_rooms: Option<usize>,

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

    /// Handle a slow client this way once 1 MiB is queued for it
    #[arg(long, help_heading = heading::LIMITS, value_name = "POLICY", default_value = "pace")]
    pub(crate) slow_client: SlowClient,

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

    /// Trust X-Forwarded-For from this proxy, or from a network of proxies such as 10.0.0.0/8; repeatable
    #[arg(long, help_heading = heading::ACCESS, value_name = "NETWORK")]
    pub(crate) trusted_proxy: Vec<String>,

    /// Serve metrics for Prometheus under /metrics at this address, which should not be public, and the probes /health and
    /// /ready
    #[arg(long, help_heading = heading::MONITORING, value_name = "ADDR", value_parser = parse_address)]
    pub(crate) metrics: Option<SocketAddr>,

    /// Ping clients that have been silent for this long, and disconnect those that do not answer within 10 s. 0 disables
    /// pings
    #[arg(long, help_heading = heading::CLIENTS, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32))]
    pub(crate) heartbeat: u32,

    /// Send a comment to event streams that have been silent for this long, so that proxies keep them open. Use at least 1,
    /// and less than half of the shortest proxy timeout
    #[arg(long, help_heading = heading::CLIENTS, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) events_keep_alive: u32,

    /// Print only errors to standard error
    #[arg(long, help_heading = heading::MONITORING)]
    pub(crate) quiet: bool,
}

/// The command-line names of [`SlowConsumer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SlowClient {
    /// Apply backpressure: read input no faster than the slowest client, and disconnect clients that read next to nothing
    /// for 1 s
    Pace,
    /// Disconnect the client
    Disconnect,
    /// Drop the oldest queued messages
    DropOldest,
    /// Drop the new message
    DropNewest,
}

impl SlowClient {
    pub(crate) fn policy(self) -> SlowConsumer {
        match self {
            Self::Pace => SlowConsumer::pace(),
            Self::Disconnect => SlowConsumer::Disconnect,
            Self::DropOldest => SlowConsumer::DropOldest,
            Self::DropNewest => SlowConsumer::DropNewest,
        }
    }
}

impl Options {
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
    pub(crate) fn hosts(&self, listen: SocketAddr) -> Option<AllowedHosts> {
        let origins = self.origins();
        let any = |list: &[String]| list.iter().any(|entry| entry == "*");
        let allows_any =
            any(&self.allow_host) || (origins == Origins::Any && self.allow_host.is_empty());
        let checks_hosts = listen.ip().to_canonical().is_loopback() || !self.allow_host.is_empty();
        (checks_hosts && !allows_any).then(|| {
            AllowedHosts::loopback()
                .with_origins(&origins)
                .with_names(self.allow_host.clone())
        })
    }

    pub(crate) fn room_settings(&self) -> RoomSettings {
        RoomSettings {
            history: self.history.map(usize::from),
            rooms_max: self.max_rooms,
            announces_clients: !self.no_welcome,
            is_clustered: self.is_clustered(),
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
            (Some(token), _) => Token::new(token)
                .map(Some)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error)),
            (None, Some(path)) => Token::read(path).map(Some),
            (None, None) => Ok(None),
        }
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

/// Parses the command line. On `--help`, `--version` or an error it prints the text and returns the exit code.
pub(crate) fn parse() -> Result<Options, ExitCode> {
    Options::try_parse().map_err(|error| {
        if error.use_stderr() {
            report!("{}", first_paragraph(&error.to_string()));
            ExitCode::from(2)
        } else {
            // Errors are ignored: the reader may have closed the pipe.
            let _ = StandardOutput.write_all(error.to_string().as_bytes());
            ExitCode::SUCCESS
        }
    })
}

/// The first paragraph of a clap error, which names the problem, as one line.
fn first_paragraph(error: &str) -> String {
    let what = error.split("\n\n").next().unwrap_or(error);
    let words: Vec<&str> = what
        .trim_start_matches("error: ")
        .split_whitespace()
        .collect();
    format!("{} (try --help)", words.join(" "))
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.to_socket_addrs()
        .map_err(|error| format!("use IP:PORT or HOST:PORT, such as 127.0.0.1:8080 ({error})"))?
        .next()
        .ok_or_else(|| "the host name has no address".to_owned())
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("must be a whole number of at least 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use humphrey_ws::Subscription;

    fn parsed(arguments: &[&str]) -> Result<Options, String> {
        let arguments = std::iter::once(&"humphrey-broadcast").chain(arguments);
        Options::try_parse_from(arguments).map_err(|error| first_paragraph(&error.to_string()))
    }

    #[test]
    fn command_line_definition_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn defaults_match_the_documentation() {
        let options = parsed(&[]).unwrap();
        assert_eq!(options.listen, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(options.on_message, OnMessage::Echo);
        assert_eq!(options.slow_client.policy(), SlowConsumer::pace());
        assert_eq!(options.max_connections, Limits::default().connections_max);
        assert_eq!(options.origins(), Origins::Same);
        assert_eq!(options.trusted_proxies(), None);
        assert_eq!(options.max_connections_per_address, None);
        assert_eq!(options.max_handshakes_per_address, None);
        assert_eq!(options.metrics, None);
        assert_eq!(options.room, None);
        let settings = options.room_settings();
        assert_eq!((settings.history, settings.rooms_max), (None, None));
        assert!(options.publish_token().unwrap().is_none());
        assert!(options.heartbeat().is_some());
        assert_eq!(
            options.events_keep_alive(),
            Subscription::KEEP_ALIVE_DEFAULT
        );
        assert!(!options.no_welcome && !options.exit_on_eof && !options.quiet);
    }

    #[test]
    fn allowed_origins_extend_the_own_origin() {
        let origins = |arguments: &[&str]| parsed(arguments).unwrap().origins();
        assert_eq!(
            origins(&["--allow-origin", "https://a.example", "--allow-origin=null"]),
            Origins::SameOrList(vec!["https://a.example".into(), "null".into()])
        );
        assert_eq!(
            origins(&["--allow-origin=https://a.example", "--allow-origin=*"]),
            Origins::Any
        );
    }

    #[test]
    fn allowed_hosts_depend_on_the_address_and_the_options() {
        let hosts = |arguments: &[&str]| {
            let options = parsed(arguments).unwrap();
            options.hosts(options.listen)
        };
        let default = hosts(&[]).unwrap();
        assert!(default.allows(Some("localhost:8080")) && !default.allows(Some("a.example")));
        for arguments in [
            &["--listen", "0.0.0.0:80"][..],
            &["--listen", "[::]:80"],
            &["--listen", "192.0.2.1:80"],
            &["--allow-host", "*"],
            &["--allow-origin", "*"],
            &["--listen=0.0.0.0:80", "--allow-host=*"],
        ] {
            assert_eq!(hosts(arguments), None, "{arguments:?}");
        }
        for arguments in [
            &["--allow-host", "a.example"][..],
            &["--allow-origin", "https://a.example:8443"],
            &["--allow-origin=*", "--allow-host=a.example"],
            &["--listen", "0.0.0.0:80", "--allow-host", "a.example"],
            &["--listen", "[::1]:80", "--allow-host", "a.example:80"],
            &[
                "--listen",
                "[::ffff:127.0.0.1]:80",
                "--allow-host=A.example.",
            ],
        ] {
            let hosts = hosts(arguments).unwrap();
            assert!(hosts.allows(Some("a.example:80")), "{arguments:?}");
            assert!(!hosts.allows(Some("b.example:80")), "{arguments:?}");
        }
    }

    #[test]
    fn heartbeat_of_zero_is_disabled() {
        assert!(parsed(&["--heartbeat", "0"]).unwrap().heartbeat().is_none());
    }

    #[test]
    fn error_is_one_line_that_names_the_cause() {
        for (arguments, said) in [
            (&["--on-message", "shout"][..], "'shout'"),
            (&["--slow-client", "wait"], "drop-oldest"),
            (&["--listen", "8080"], "127.0.0.1:8080"),
            (&["--max-connections", "0"], "at least 1"),
            (&["--max-connections-per-address", "0"], "at least 1"),
            (&["--max-handshakes-per-address", "0"], "'0'"),
            (&["--metrics", "9100"], "127.0.0.1:8080"),
            (&["--room", ""], "a room needs a name"),
            (&["--room", ".."], "'..'"),
            (&["--history", "0"], "'0'"),
            (&["--history", "10001"], "10001"),
            (&["--max-rooms", "0"], "at least 1"),
            (&["--max-rooms", "many"], "a whole number"),
            (
                &["--publish-token=a", "--publish-token-file=b"],
                "cannot be used with",
            ),
            (&["--heartbeat", "-1"], "'-1'"),
            (&["--heartbeat=soon"], "'soon'"),
            (&["--events-keep-alive", "0"], "'0'"),
            (&["--events-keep-alive=often"], "'often'"),
            (&["--loud"], "'--loud'"),
            (&["extra"], "'extra'"),
        ] {
            let error = parsed(arguments).unwrap_err();
            assert!(error.contains(said), "{arguments:?}: {error}");
            assert!(!error.contains('\n'), "{arguments:?}: {error}");
        }
    }
}
