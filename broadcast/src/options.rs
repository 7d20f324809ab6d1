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
use crate::name::RoomName;
use crate::on_message::OnMessage;
use crate::publish::Token;
use crate::rooms::Setup;
use crate::say::say;
use crate::stdio::Output;

/// How much longer than the interval between pings a client may be silent: time for a ping's answer.
const PONG_WAIT: Duration = Duration::from_secs(10);

/// Sends every line of standard input to every connected browser or WebSocket client.
///
/// Try: tail -f access.log | humphrey-broadcast
///
/// Then open http://127.0.0.1:8080/. A line that is not UTF-8 is sent as a binary message. Ctrl-C, SIGTERM or SIGHUP closes
/// every connection with code 1001 and ends the program; under nohup, SIGHUP does nothing.
///
/// Who connects to ws://127.0.0.1:8080/ROOM is in that room (percent-encoded, up to 240 bytes), and gets what is sent
/// to it and to everyone. The page of a room is http://127.0.0.1:8080/#ROOM. Clients without WebSocket get the same as
/// server-sent events, from http://127.0.0.1:8080/events/ROOM or /events.
///
/// Exit codes: 0, ended by a signal, or by --exit-on-eof after all input was sent; 1, it can't serve, or some of the input
/// could not be read or was skipped; 2, the command line is wrong.
#[allow(rustdoc::bare_urls)] // These docs are the help text.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// Address to listen on: IP:PORT or HOST:PORT. Port 0 takes any free one; 0.0.0.0 lets other machines in
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = address)]
    pub(crate) listen: SocketAddr,

    /// What to do with a message that a client sends
    #[arg(long, value_name = "WHAT", default_value = "echo")]
    pub(crate) on_message: OnMessage,

    /// Send standard input to this room only. Without it, everyone gets it
    #[arg(long, value_name = "ROOM")]
    pub(crate) room: Option<RoomName>,

    /// Keep the last N messages to each room and to everyone, each up to 256 KiB in all, and send them to who connects:
    /// to a program all of them, or none with ws://…/ROOM?since=now; to the page those that it has missed. At most 10000.
    /// Without it, nothing is kept
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) history: Option<u16>,

    /// Rooms that there may be at once; who asks for a further one is disconnected with code 1013. Without it 100000,
    /// and with --history 1000: there, rooms that nobody is in give way, and what they keep
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) max_rooms: Option<usize>,

    /// Let programs that know this token send messages, of up to 1 MiB: POST /publish/ROOM, or /publish for everyone, with
    /// the header 'Authorization: Bearer TOKEN'. The answer is JSON and says how many WebSocket clients there were to get it:
    /// {"members": 2}. A body of Content-Type application/octet-stream is sent as a binary message, any other as text. Other
    /// users of this machine can see the token in the list of processes: see the next option. Without it, /publish is not
    /// found
    #[arg(long, value_name = "TOKEN", conflicts_with = "publish_token_file")]
    pub(crate) publish_token: Option<String>,

    /// The same, with the token that this file holds
    #[arg(long, value_name = "FILE")]
    pub(crate) publish_token_file: Option<PathBuf>,

    /// Do not announce new clients to their room, or to everyone
    #[arg(long)]
    pub(crate) no_welcome: bool,

    /// At the end of standard input, deliver what was read, close every connection with code 1001, and exit.
    /// Without it, the end of input leaves the server running
    #[arg(long)]
    pub(crate) exit_on_eof: bool,

    /// What to do where a client reads more slowly than lines come, and 1 MiB waits for it
    #[arg(long, value_name = "POLICY", default_value = "pace")]
    pub(crate) slow_client: SlowClient,

    /// Connections served at once, WebSocket and HTTP together; further ones are answered with 503
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections_max, value_parser = at_least_one)]
    pub(crate) max_connections: usize,

    /// Let web pages of this origin connect, too, such as https://example.com; can be given several times. Without it
    /// only this program's own page can, and programs that are no browsers. 'null' and 'file://' stand for what some
    /// devices and apps send. '*': all pages
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) allow_origin: Vec<String>,

    /// Answer to this host name, too, such as the public name that a proxy in front passes on; can be given several times.
    /// Where the program listens on a loopback address, it answers only to localhost, IP addresses, the hosts of
    /// --allow-origin and these names, so that no web page can reach it by a name of its own. '*': any name
    #[arg(long, value_name = "NAME")]
    pub(crate) allow_host: Vec<String>,

    /// Connections that one address may have at once; further ones are answered with 429. Without it, any number
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) max_connections_per_address: Option<usize>,

    /// WebSocket handshakes and event streams that one address may begin per second; further ones are answered with 429.
    /// Without it, any number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_handshakes_per_address: Option<u32>,

    /// Believe this proxy, or network of proxies such as 10.0.0.0/8, when its X-Forwarded-For says whose connection it
    /// is; can be given several times
    #[arg(long, value_name = "NETWORK")]
    pub(crate) trusted_proxy: Vec<String>,

    /// Serve metrics for Prometheus at this address, under /metrics. It should not be open to the world
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub(crate) metrics: Option<SocketAddr>,

    /// Ping clients that have been silent for this long, and disconnect those that are still silent 10 s later.
    /// 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32))]
    pub(crate) heartbeat: u32,

    /// Send a comment to event streams that have been silent for this long, so that proxies do not cut them: choose less than half
    /// of the shortest time-out of the proxies in front. At least 1
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) events_keep_alive: u32,

    /// Say nothing on standard error but errors
    #[arg(long)]
    pub(crate) quiet: bool,
}

/// [`SlowConsumer`], as it is called here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SlowClient {
    /// Read input no faster than the slowest client; disconnect clients that take next to nothing for 1 s
    Pace,
    /// Disconnect it
    Disconnect,
    /// Drop the oldest messages that wait for it
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

    /// Which names the program answers to at an address that it listens on; `None`: any.
    pub(crate) fn hosts(&self, listen: SocketAddr) -> Option<AllowedHosts> {
        let origins = self.origins();
        let any = |list: &[String]| list.iter().any(|entry| entry == "*");
        let is_open =
            any(&self.allow_host) || (origins == Origins::Any && self.allow_host.is_empty());
        let is_asked = listen.ip().to_canonical().is_loopback() || !self.allow_host.is_empty();
        (is_asked && !is_open).then(|| {
            AllowedHosts::loopback()
                .with_origins(&origins)
                .with_names(self.allow_host.clone())
        })
    }

    pub(crate) fn rooms(&self) -> Setup {
        Setup {
            history: self.history.map(usize::from),
            rooms_max: self.max_rooms,
            announces: !self.no_welcome,
        }
    }

    /// What whoever publishes must know; `None` if nobody may.
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

/// What refusals call the options that would let a client in.
pub(crate) fn option_names() -> OptionNames {
    OptionNames::new()
        .with_allowed_origins("--allow-origin")
        .with_allowed_hosts("--allow-host")
}

/// Reads the command line. Where there is nothing to run, because help was asked for or something is wrong, it has
/// been said, and the exit code is returned.
pub(crate) fn parse() -> Result<Options, ExitCode> {
    Options::try_parse().map_err(|error| {
        if error.use_stderr() {
            say!("{}", one_line(&error.to_string()));
            ExitCode::from(2)
        } else {
            // Help and version; where nobody reads them, nothing is lost.
            let _ = Output.write_all(error.to_string().as_bytes());
            ExitCode::SUCCESS
        }
    })
}

/// What clap says about an error in several paragraphs, of which the first says what is wrong, in one line.
fn one_line(error: &str) -> String {
    let what = error.split("\n\n").next().unwrap_or(error);
    let words: Vec<&str> = what
        .trim_start_matches("error: ")
        .split_whitespace()
        .collect();
    format!("{} (try --help)", words.join(" "))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.to_socket_addrs()
        .map_err(|error| format!("not an address like 127.0.0.1:8080 ({error})"))?
        .next()
        .ok_or_else(|| "the name has no address".to_owned())
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("must be a whole number, at least 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use humphrey_ws::Subscription;

    fn parsed(arguments: &[&str]) -> Result<Options, String> {
        let arguments = std::iter::once(&"humphrey-broadcast").chain(arguments);
        Options::try_parse_from(arguments).map_err(|error| one_line(&error.to_string()))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn the_defaults_are_those_of_the_documentation() {
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
        let setup = options.rooms();
        assert_eq!((setup.history, setup.rooms_max), (None, None));
        assert!(options.publish_token().unwrap().is_none());
        assert!(options.heartbeat().is_some());
        assert_eq!(
            options.events_keep_alive(),
            Subscription::KEEP_ALIVE_DEFAULT
        );
        assert!(!options.no_welcome && !options.exit_on_eof && !options.quiet);
    }

    #[test]
    fn origins_are_those_that_were_named_beside_the_own_one() {
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
    fn a_heartbeat_of_zero_is_none() {
        assert!(parsed(&["--heartbeat", "0"]).unwrap().heartbeat().is_none());
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
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
