//! The command-line options of `listen` and `send`.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::Path;
#[cfg(any(unix, feature = "tls"))]
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Args, Subcommand};
use humphrey_ws::websocket_client::{HandshakeRequest, Header, InvalidHeader, Subprotocol};

use super::end::End;
use super::failures::{self, Failure};
use super::pacer::Rate;
use super::since::Since;
use super::target::Target;
use super::trust::Trust;
use crate::room_name::RoomName;
use crate::token::Token;

const AUTHORIZATION: &str = "Authorization";

const LISTEN_EXAMPLES: &str = "
Examples:
  Print the lines with 'error':
    humphrey-broadcast listen ws://127.0.0.1:8080/ |
      grep --line-buffered error

  Print ten new messages to the room 'news' as JSON:
    humphrey-broadcast listen --room news --json --count 10 --since now \\
      ws://127.0.0.1:8080/

  Subscribe to a channel of another server:
    humphrey-broadcast listen --first '{\"op\":\"subscribe\",\"channel\":\"news\"}' \\
      wss://stream.example/ws";

const SEND_EXAMPLES: &str = "
Examples:
  Forward a log to a server:
    tail -f access.log | humphrey-broadcast send ws://127.0.0.1:8080/

  Send to the room 'news', and fail unless the server broadcasts the line:
    echo hello | humphrey-broadcast send --room news --require-broadcast \\
      ws://127.0.0.1:8080/

  Replay a recording at 10 lines per second:
    humphrey-broadcast send --rate 10 ws://127.0.0.1:8080/ <recording.txt";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print the messages of a WebSocket server, one per line
    ///
    /// A line break inside a text message is printed as a space, so that each message is one line. A binary message is
    /// printed unchanged, followed by a line break. --json preserves everything. On a terminal, control characters are
    /// shown as '�'.
    ///
    /// When the connection ends, `listen` reconnects after a random delay of up to one second, which doubles up to --max-delay.
    /// A humphrey-broadcast with --history then replays the missed messages without duplicates, and `listen` reports those
    /// that are no longer kept. The first connection begins with all kept messages, unless --since says otherwise.
    ///
    /// On a terminal, standard error shows the progress while standard output is a file.
    ///
    /// Exit codes: 0 after --count messages, on Ctrl-C, SIGTERM or SIGHUP, on close code 1000, or when the reader closes
    /// standard output; 1 after a permanent failure (see below), after the first failure with --no-reconnect, after
    /// --give-up-after, or if standard output cannot be written; 2 if the command line is invalid, or a file that it names
    /// cannot be read; 128 plus its number after a second signal.
    #[allow(rustdoc::bare_urls)] // These docs are the help text.
    #[command(after_long_help = failures::help() + LISTEN_EXAMPLES)]
    Listen(ListenOptions),

    /// Send each line of standard input to a WebSocket server as one message
    ///
    /// A humphrey-broadcast with --on-message broadcast sends each line to all clients, or to those in the room. Messages
    /// from the server are not printed.
    ///
    /// A line that is not UTF-8 is sent as a binary message. A line of more than 16 MiB is skipped, and a line that is too
    /// long for the server is dropped; both are reported.
    ///
    /// At the end of the input, and on Ctrl-C, SIGTERM or SIGHUP, `send` sends the lines read so far, closes the connection
    /// with code 1000, and waits for the server's close frame, which confirms them.
    ///
    /// When the connection ends early, `send` reconnects and continues with the first line that was not wholly written.
    /// Lines that were written but not confirmed may be lost: they are not sent twice, but counted and reported at the end.
    ///
    /// On a terminal, standard error shows the progress unless standard input is a terminal as well.
    ///
    /// Exit codes: 0 if all lines have reached the server; 1 if some have not, or may not have, if there was no connection
    /// after a failure that ends the attempts (see below), or if the input could not be read to its end; 2 if the command line is
    /// invalid, or a file that it names cannot be read; 128 plus its number after a second signal.
    #[allow(rustdoc::bare_urls)] // These docs are the help text.
    #[command(after_long_help = failures::help() + SEND_EXAMPLES)]
    Send(SendOptions),
}

#[derive(Debug, Args)]
pub(crate) struct ListenOptions {
    #[command(flatten)]
    pub(crate) connect: ConnectOptions,

    /// Print one JSON object per line, with "text", or "base64" for a binary message. A humphrey-broadcast with --history
    /// adds "room" (null: everyone), "id" and "at" (milliseconds since 1970)
    #[arg(long)]
    pub(crate) json: bool,

    /// Exit after N messages
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<NonZeroU64>,

    /// Send this line as a text message after each connect, before anything else, as many servers require to subscribe;
    /// repeatable, in order. Other users of this machine can see the line in the process list
    #[arg(long, value_name = "LINE")]
    pub(crate) first: Vec<String>,

    /// Print these messages of a humphrey-broadcast: 'all' that are kept and new ones, new ones from 'now' on, or those after
    /// an ID that --json has printed. The room and everyone have histories of their own: after the ID of one, all kept
    /// messages of the other are printed. ROOM_ID,EVERYONE_ID names both positions, of which one may be empty. Replaces
    /// 'since' and 'room_since' in the URL. Default: what the URL says, or all
    #[arg(long, value_name = "all|now|ID")]
    pub(crate) since: Option<Since>,

    /// Show the progress also if standard output is a pipe. Its reader should not print to the same terminal
    #[arg(long, conflicts_with = "quiet")]
    pub(crate) progress: bool,

    /// Give up after this long without a connection. 0 retries forever
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) give_up_after: u32,
}

#[derive(Debug, Args)]
pub(crate) struct SendOptions {
    #[command(flatten)]
    pub(crate) connect: ConnectOptions,

    /// Give up after this long without a connection. 0 retries forever
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) give_up_after: u32,

    /// Fail without sending anything unless the server is a humphrey-broadcast with --on-message broadcast. Default: warn if
    /// it is a humphrey-broadcast with another value
    #[arg(long)]
    pub(crate) require_broadcast: bool,

    /// Send at most N lines per second, evenly spaced, such as 100 or 0.5. Input is read no faster. Default: as fast as the
    /// server reads
    #[arg(long, value_name = "N")]
    pub(crate) rate: Option<Rate>,
}

/// Options for reaching a server.
#[derive(Debug, Args)]
pub(crate) struct ConnectOptions {
    /// The server: ws://HOST:PORT/PATH, or wss:// with TLS. The port is 80 by default, or 443 with TLS. An IPv6 address may
    /// have a zone: ws://[fe80::1%25eth0]/
    #[arg(value_name = "URL")]
    pub(crate) url: Target,

    /// Connect to this Unix socket instead of the host and port of the URL, which are still sent as 'Host'
    #[cfg(unix)]
    #[arg(long, value_name = "PATH")]
    pub(crate) unix_socket: Option<PathBuf>,

    /// Join this room of a humphrey-broadcast: its name is appended to the URL's path, percent-encoded
    #[arg(long, value_name = "ROOM")]
    pub(crate) room: Option<RoomName>,

    /// Add a header to the handshake, such as 'Authorization: Bearer TOKEN'; repeatable. 'Host: NAME' replaces the name in
    /// the URL, which a tunnel may need. Other users of this machine can see the header in the process list:
    /// for a token, prefer --token-file
    #[arg(long, value_name = "NAME: VALUE")]
    pub(crate) header: Vec<HeaderOption>,

    /// Send the token in this file with the handshake, as a humphrey-broadcast with --read-token-file requires:
    /// 'Authorization: Bearer TOKEN'. The file is read once, at the start
    #[arg(long, value_name = "FILE", value_parser = PathBufValueParser::new().try_map(|path| Token::read(&path)))]
    pub(crate) token_file: Option<Token>,

    /// With wss://, trust the certificate authorities in this PEM file, instead of those that this machine trusts. The
    /// certificate of a server with --tls-self-signed works, too
    #[cfg(feature = "tls")]
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,

    /// Offer this subprotocol, for servers that require one; repeatable, in order of preference. It replaces the
    /// subprotocols that let `listen` resume from a humphrey-broadcast
    #[arg(long, value_name = "NAME")]
    pub(crate) subprotocol: Vec<Subprotocol>,

    /// Ping a server that has been silent for this long, and reconnect if it does not answer within 10 s, or within this
    /// time if it is shorter. 0 disables pings
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) heartbeat: u32,

    /// Wait at most this long between connection attempts, and at least half of it after close code 1013 or status 429 or
    /// 503
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    pub(crate) max_delay: NonZeroU32,

    /// Exit with code 1 instead of reconnecting when a connection ends or cannot be opened
    #[arg(long)]
    pub(crate) no_reconnect: bool,

    /// Print only errors to standard error, and show no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

impl ListenOptions {
    /// Checks the options for conflicts. The error is the reason.
    pub(super) fn check(&self) -> Result<(), String> {
        self.connect.check()?;
        if self.since.is_some() && !self.connect.subprotocols().is_empty() {
            let why = "--since can't be used with --subprotocol, which replaces the subprotocol that it needs";
            return Err(why.to_owned());
        }
        Ok(())
    }
}

/// A value of `--header`.
#[derive(Debug, Clone)]
pub(crate) enum HeaderOption {
    Header(Header),
    /// `Sec-WebSocket-Protocol`: equivalent to `--subprotocol`.
    Subprotocols(Vec<Subprotocol>),
}

impl FromStr for HeaderOption {
    type Err = InvalidHeader;

    fn from_str(line: &str) -> Result<Self, InvalidHeader> {
        match line.parse() {
            Ok(header) => Ok(Self::Header(header)),
            Err(InvalidHeader::IsSubprotocol) => {
                let (_, names) = line.split_once(':').unwrap_or_default();
                let names = names.split(',').map(|name| name.trim().parse());
                names.collect::<Result<_, _>>().map(Self::Subprotocols)
            }
            Err(error) => Err(error),
        }
    }
}

impl ConnectOptions {
    /// The Unix socket to connect to.
    #[cfg(unix)]
    pub(super) fn unix_socket(&self) -> Option<&Path> {
        self.unix_socket.as_deref()
    }

    #[cfg(not(unix))]
    #[allow(clippy::unused_self)] // As on Unix.
    pub(super) fn unix_socket(&self) -> Option<&Path> {
        None
    }

    /// The subprotocols that the user has named.
    pub(super) fn subprotocols(&self) -> Vec<Subprotocol> {
        let given = self.header.iter().filter_map(|given| match given {
            HeaderOption::Subprotocols(names) => Some(names),
            HeaderOption::Header(_) => None,
        });
        let named = self.subprotocol.iter().chain(given.flatten());
        named.cloned().collect()
    }

    /// The handshake request, with the user's subprotocols and `offers`.
    pub(super) fn request(
        &self,
        target: &Target,
        offers: &[&str],
    ) -> Result<HandshakeRequest, InvalidHeader> {
        let mut request = HandshakeRequest::new(target.url().clone()).with_compression();
        for given in &self.header {
            if let HeaderOption::Header(header) = given {
                request = request.with_header(header.clone())?;
            }
        }
        if let Some(token) = &self.token_file {
            let value = format!("Bearer {}", token.secret());
            request = request.with_header(Header::new(AUTHORIZATION, &value)?)?;
        }
        for subprotocol in self.subprotocols() {
            request = request.with_subprotocol(subprotocol)?;
        }
        for offer in offers {
            request = request.with_subprotocol(offer.parse()?)?;
        }
        Ok(request)
    }

    /// Checks the options for conflicts, and whether the file of `--ca` can be used. The error is the reason.
    pub(super) fn check(&self) -> Result<(), String> {
        let request = self.request(&self.url, &[]);
        request.map_err(|error| error.to_string())?;
        #[cfg(feature = "tls")]
        if self.ca.is_some() {
            if !self.url.url().is_tls() {
                return Err("--ca needs a URL that begins with wss://".to_owned());
            }
            let mut trust = self.trust();
            if let Err(error) = trust.load() {
                return Err(trust.describe(&error));
            }
        }
        Ok(())
    }

    /// Explains status 401 in terms of the command line.
    pub(super) fn with_advice(&self, end: End) -> End {
        let End::Failed {
            failure: Failure::Status(401),
            message,
            retry_after,
        } = end
        else {
            return end;
        };
        let is_authorization = |given: &HeaderOption| match given {
            HeaderOption::Header(header) => header.name().eq_ignore_ascii_case(AUTHORIZATION),
            HeaderOption::Subprotocols(_) => false,
        };
        let advice = if self.token_file.is_some() {
            "; the file of --token-file has another token"
        } else if self.header.iter().any(is_authorization) {
            ""
        } else {
            "; name a file with the token: --token-file FILE"
        };
        End::Failed {
            failure: Failure::Status(401),
            message: message + advice,
            retry_after,
        }
    }

    /// The authorities that may have issued the server's certificate.
    pub(super) fn trust(&self) -> Trust {
        #[cfg(feature = "tls")]
        let ca = self.ca.clone();
        #[cfg(not(feature = "tls"))]
        let ca = None;
        Trust::new(ca)
    }

    /// The server's URL, including the room.
    pub(super) fn target(&self) -> Target {
        match &self.room {
            Some(room) => self.url.with_room(room),
            None => self.url.clone(),
        }
    }
}

/// A duration in seconds; 0 means none.
pub(super) fn seconds(n: u32) -> Option<Duration> {
    (n > 0).then(|| Duration::from_secs(n.into()))
}
