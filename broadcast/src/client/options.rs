//! The command lines of `listen` and `send`.

use std::num::{NonZeroU32, NonZeroU64};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use humphrey_ws::websocket_client::{HandshakeRequest, Header, InvalidHeader, Subprotocol};

use super::failures;
use super::target::Target;
use crate::name::RoomName;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print what a WebSocket server sends, one message a line
    ///
    /// Try: humphrey-broadcast listen ws://127.0.0.1:8080/ | grep --line-buffered error
    ///
    /// A line break inside a text is printed as a space, so that each message is one line; a binary message is printed as the
    /// bytes that it is, and a line break behind it. With --json nothing is lost. On a terminal, control characters are
    /// shown as '�'.
    ///
    /// Where the connection ends, it comes back: after a random time, at most 1 s at first and twice as much each time, up to
    /// --max-delay. From a humphrey-broadcast with --history it then gets what it has missed, nothing twice, and says if that is
    /// kept no longer. It begins with all that is kept; with ws://…/ROOM?since=now, with what comes from now on.
    ///
    /// Exit codes: 0, with --count, with Ctrl-C, SIGTERM or SIGHUP, where the server closes with 1000, or where nobody reads
    /// standard output any more; 1, what went wrong can't pass (see below), it was given up, or standard output can't be
    /// written; 2, the command line is wrong.
    #[allow(rustdoc::bare_urls)] // These docs are the help text.
    #[command(after_long_help = failures::help())]
    Listen(Listen),

    /// Send standard input to a WebSocket server, a line a message
    ///
    /// Try: tail -f access.log | humphrey-broadcast send ws://127.0.0.1:8080/
    ///
    /// A humphrey-broadcast with --on-message broadcast hands it to all who are connected, or to those in the room.
    ///
    /// A line that is not UTF-8 is sent as a binary message; one of more than 16 MiB is skipped, and one that the server closes
    /// the connection for, because it is too long, is dropped: both are said. What the server sends is not printed. At the end
    /// of the input, on Ctrl-C, SIGTERM or SIGHUP, what was read is sent, the connection closed with code 1000, and the server's
    /// answer awaited, which comes after it has got everything.
    ///
    /// Where the connection ends earlier, it comes back, and goes on with the first line that has not left this machine
    /// whole. Lines that had left it without a sign that they have reached the server may be lost: they are not sent twice,
    /// but counted, and said at the end.
    ///
    /// Exit codes: 0, all lines have reached the server; 1, some have not, or may not have, or the input could not be read to its
    /// end; 2, the command line is wrong.
    #[allow(rustdoc::bare_urls)] // These docs are the help text.
    #[command(after_long_help = failures::help())]
    Send(Send),
}

#[derive(Debug, Args)]
pub(crate) struct Listen {
    #[command(flatten)]
    pub(crate) connect: Connect,

    /// Print a JSON object a line: "text", or "base64" where the message is binary; and "room" (null: everyone), "id" and "at"
    /// (milliseconds since 1970) where the server says them, as humphrey-broadcast with --history does
    #[arg(long)]
    pub(crate) json: bool,

    /// End after so many messages
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<NonZeroU64>,

    /// Give up after so long without a connection. 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) give_up_after: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Send {
    #[command(flatten)]
    pub(crate) connect: Connect,

    /// Give up after so long without a connection. 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) give_up_after: u32,

    /// Send nothing, and fail, unless the server says that it hands messages on: a humphrey-broadcast with --on-message
    /// broadcast. Without it, one that says otherwise is warned of
    #[arg(long)]
    pub(crate) require_broadcast: bool,
}

/// How a server is reached.
#[derive(Debug, Args)]
pub(crate) struct Connect {
    /// The server: ws://HOST:PORT/PATH; without a port, it is 80. An IPv6 address may have a zone: ws://[fe80::1%25eth0]/. wss://
    /// is not supported: let a tunnel such as stunnel speak TLS
    #[arg(value_name = "URL")]
    pub(crate) url: Target,

    /// The room of a humphrey-broadcast: its name, percent-encoded, goes behind the URL's path
    #[arg(long, value_name = "ROOM")]
    pub(crate) room: Option<RoomName>,

    /// Send this with the handshake, such as 'Authorization: Bearer TOKEN'; can be given several times. 'Host: NAME' replaces
    /// the name that stands in the URL, as a tunnel may need it. Other users of this machine can see it in the list of processes
    #[arg(long, value_name = "NAME: VALUE")]
    pub(crate) header: Vec<Given>,

    /// Offer this subprotocol, for servers that demand one; can be given several times, the best first. humphrey-broadcast's
    /// own, by which `listen` gets what it has missed, are not offered then
    #[arg(long, value_name = "NAME")]
    pub(crate) subprotocol: Vec<Subprotocol>,

    /// Ping a server that has been silent for this long, and take the connection for dead if it is still silent 10 s later, or
    /// as long again if that is less. 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) heartbeat: u32,

    /// Longest time between attempts to connect. A server that closes with 1013, or answers 503 or 429, is given at least half
    /// of it
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    pub(crate) max_delay: NonZeroU32,

    /// Do not come back where a connection ends or can't be had: exit with code 1
    #[arg(long)]
    pub(crate) no_reconnect: bool,

    /// Say nothing on standard error but errors
    #[arg(long)]
    pub(crate) quiet: bool,
}

/// What stands behind `--header`.
#[derive(Debug, Clone)]
pub(crate) enum Given {
    Header(Header),
    /// `Sec-WebSocket-Protocol`: the same as `--subprotocol`.
    Subprotocols(Vec<Subprotocol>),
}

impl FromStr for Given {
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

impl Connect {
    /// The subprotocols that the user wants to be offered.
    pub(super) fn subprotocols(&self) -> Vec<Subprotocol> {
        let given = self.header.iter().filter_map(|given| match given {
            Given::Subprotocols(names) => Some(names),
            Given::Header(_) => None,
        });
        let named = self.subprotocol.iter().chain(given.flatten());
        named.cloned().collect()
    }

    /// What is asked for, with the user's subprotocols and these.
    pub(super) fn request(
        &self,
        target: &Target,
        offers: &[&str],
    ) -> Result<HandshakeRequest, InvalidHeader> {
        let mut request = HandshakeRequest::new(target.url().clone());
        for given in &self.header {
            if let Given::Header(header) = given {
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

    /// Whether the options go together.
    pub(super) fn check(&self) -> Result<(), InvalidHeader> {
        self.request(&self.url, &[]).map(drop)
    }

    /// The server, and the room there.
    pub(super) fn target(&self) -> Target {
        match &self.room {
            Some(room) => self.url.with_room(room),
            None => self.url.clone(),
        }
    }
}

/// A time in seconds, of which 0 says that there is none.
pub(super) fn seconds(n: u32) -> Option<Duration> {
    (n > 0).then(|| Duration::from_secs(n.into()))
}
