//! The command lines of `listen` and `send`.

use std::num::{NonZeroU32, NonZeroU64};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use humphrey_ws::websocket_client::{HandshakeRequest, Header, InvalidHeader, Subprotocol};

use super::failures;
use super::target::Target;
use crate::room_name::RoomName;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print what a WebSocket server sends, one message a line
    ///
    /// Try: humphrey-broadcast listen ws://127.0.0.1:8080/ | grep --line-buffered error
    ///
    /// A line break inside a text is printed as a space, so that each message is one line; a binary message is printed
    /// unchanged, followed by a line break. --json preserves everything. On a terminal, control characters are shown as
    /// '�'.
    ///
    /// After the connection ends, it reconnects with random delays of at most 1 s at first, doubling up to --max-delay.
    /// A humphrey-broadcast with --history then replays the missed messages, without duplicates; messages that are no
    /// longer kept are reported as missing. The first connection begins with all kept messages, or with
    /// ws://…/ROOM?since=now with new ones.
    ///
    /// Exit codes: 0, after --count messages, on Ctrl-C, SIGTERM or SIGHUP, on close code 1000, or when the reader
    /// closes standard output; 1, after a permanent failure (see below), when it gives up, or when standard output
    /// cannot be written; 2, the command line is wrong.
    #[allow(rustdoc::bare_urls)] // These docs are the help text.
    #[command(after_long_help = failures::help())]
    Listen(ListenOptions),

    /// Send standard input to a WebSocket server, one message a line
    ///
    /// Try: tail -f access.log | humphrey-broadcast send ws://127.0.0.1:8080/
    ///
    /// A humphrey-broadcast with --on-message broadcast sends each line to all clients, or to those in the room.
    ///
    /// A line that is not UTF-8 is sent as a binary message. A line of more than 16 MiB is skipped, and a line that is
    /// too long for the server is dropped; both are reported. Messages of the server are not printed. At the end of the
    /// input, on Ctrl-C, SIGTERM or SIGHUP, the lines read so far are sent, the connection is closed with code 1000,
    /// and the server's answer is awaited, which follows everything it has received.
    ///
    /// After the connection ends early, it reconnects and continues with the first line that was not wholly written.
    /// Lines that were written but not confirmed may be lost: they are not sent twice, but counted and reported at the
    /// end.
    ///
    /// Exit codes: 0, all lines have reached the server; 1, some have not, or may not have, or the input could not be
    /// read to its end; 2, the command line is wrong.
    #[allow(rustdoc::bare_urls)] // These docs are the help text.
    #[command(after_long_help = failures::help())]
    Send(SendOptions),
}

#[derive(Debug, Args)]
pub(crate) struct ListenOptions {
    #[command(flatten)]
    pub(crate) connect: ConnectOptions,

    /// Print one JSON object a line: "text", or "base64" for a binary message; and "room" (null: everyone), "id" and
    /// "at" (milliseconds since 1970) if the server sends them, as humphrey-broadcast with --history does
    #[arg(long)]
    pub(crate) json: bool,

    /// Exit after N messages
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<NonZeroU64>,

    /// Give up after this long without a connection. 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) give_up_after: u32,
}

#[derive(Debug, Args)]
pub(crate) struct SendOptions {
    #[command(flatten)]
    pub(crate) connect: ConnectOptions,

    /// Give up after this long without a connection. 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) give_up_after: u32,

    /// Send nothing, and fail, unless the server broadcasts the lines: a humphrey-broadcast with --on-message
    /// broadcast. Without it, a humphrey-broadcast with another value causes a warning
    #[arg(long)]
    pub(crate) require_broadcast: bool,
}

/// How to reach a server.
#[derive(Debug, Args)]
pub(crate) struct ConnectOptions {
    /// The server: ws://HOST:PORT/PATH; the default port is 80. An IPv6 address may have a zone:
    /// ws://[fe80::1%25eth0]/. wss:// is not supported: use a TLS tunnel such as stunnel
    #[arg(value_name = "URL")]
    pub(crate) url: Target,

    /// The room of a humphrey-broadcast: appended to the URL's path, percent-encoded
    #[arg(long, value_name = "ROOM")]
    pub(crate) room: Option<RoomName>,

    /// Add a header to the handshake, such as 'Authorization: Bearer TOKEN'; can be given several times. 'Host: NAME'
    /// replaces the name in the URL, which a tunnel may need. Other users of this machine can see it in the process
    /// list
    #[arg(long, value_name = "NAME: VALUE")]
    pub(crate) header: Vec<HeaderOption>,

    /// Offer this subprotocol, for servers that require one; can be given several times, in order of preference. The
    /// subprotocols by which `listen` resumes from a humphrey-broadcast are not offered then
    #[arg(long, value_name = "NAME")]
    pub(crate) subprotocol: Vec<Subprotocol>,

    /// Ping a server that has been silent for this long, and reconnect if it does not answer within 10 s, or within the
    /// same time if that is less. 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) heartbeat: u32,

    /// Longest delay between connection attempts. A server that closes with 1013, or answers 503 or 429, is given at
    /// least half of it
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    pub(crate) max_delay: NonZeroU32,

    /// Do not reconnect when a connection ends or cannot be opened: exit with code 1
    #[arg(long)]
    pub(crate) no_reconnect: bool,

    /// Print nothing but errors on standard error
    #[arg(long)]
    pub(crate) quiet: bool,
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
        let mut request = HandshakeRequest::new(target.url().clone());
        for given in &self.header {
            if let HeaderOption::Header(header) = given {
                request = request.with_header(header.clone())?;
            }
        }
        for subprotocol in self.subprotocols() {
            request = request.with_subprotocol(subprotocol)?;
        }
        for offer in offers {
            request = request.with_subprotocol(offer.parse()?)?;
        }
        Ok(request)
    }

    /// Checks the options for conflicts.
    pub(super) fn check(&self) -> Result<(), InvalidHeader> {
        self.request(&self.url, &[]).map(drop)
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
