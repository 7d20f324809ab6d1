//! The command lines of `listen` and `send`.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use clap::{Args, Subcommand};

use super::handshake::Header;
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
    /// It stops where the server closes with 1000 (exit code 0), or with 1008 or refuses the handshake (1); with --count;
    /// with Ctrl-C or SIGTERM, or where nobody reads its standard output any more (0). 2: the command line is wrong.
    #[allow(rustdoc::bare_urls)] // These docs are the help text.
    Listen(Listen),

    /// Send standard input to a WebSocket server, a line a message
    ///
    /// Try: tail -f access.log | humphrey-broadcast send ws://127.0.0.1:8080/
    ///
    /// A humphrey-broadcast with --on-message broadcast hands it to all who are connected, or to those in the room.
    ///
    /// A line that is not UTF-8 is sent as a binary message; one of more than 16 MiB is skipped. What the server sends is not
    /// printed. At the end of the input, on Ctrl-C or on SIGTERM, what was read is sent, the connection closed with code 1000,
    /// and the server's answer awaited, which comes after it has got everything.
    ///
    /// Where the connection ends earlier, it comes back, and goes on with the first line that has not left this machine
    /// whole. Lines that had left it without a sign that they have reached the server may be lost: they are not sent twice,
    /// but counted, and said at the end.
    ///
    /// Exit codes: 0, all lines have reached the server; 1, some have not, or may not have; 2, the command line is wrong.
    #[allow(rustdoc::bare_urls)] // These docs are the help text.
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
}

/// How a server is reached.
#[derive(Debug, Args)]
pub(crate) struct Connect {
    /// The server: ws://HOST:PORT/PATH; without a port, it is 80. wss:// is not supported: let a tunnel such as stunnel speak TLS
    #[arg(value_name = "URL")]
    pub(crate) url: Target,

    /// The room of a humphrey-broadcast: its name, percent-encoded, goes behind the URL's path
    #[arg(long, value_name = "ROOM")]
    pub(crate) room: Option<RoomName>,

    /// Send this with the handshake, such as 'Authorization: Bearer TOKEN'; can be given several times. Other users of this
    /// machine can see it in the list of processes
    #[arg(long, value_name = "NAME: VALUE")]
    pub(crate) header: Vec<Header>,

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

impl Connect {
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
