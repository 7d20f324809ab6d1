//! `humphrey-broadcast listen` and `send`: a WebSocket client for the shell.
//!
//! One thread handles the connection: it waits for the socket, for signals, and for lines that another thread reads
//! from standard input ([`event_loop`]). A connection is opened ([`dial`]; with TLS, [`trust`]), used ([`connection`]) and
//! reopened after its end ([`session`], [`backoff`]) as the table of [`failures`] says. The library implements the
//! handshake and the frames without I/O, and rustls implements TLS. A [`session::ConnectionHandler`] decides what to send
//! and uses what arrives: [`listen`] or [`send`].

mod backoff;
mod connection;
mod dial;
mod end;
mod event_loop;
mod failures;
mod in_flight;
mod line_queue;
mod listen;
mod options;
mod pacer;
mod printer;
mod resume;
mod send;
mod session;
mod since;
mod skips;
mod stream;
mod target;
#[cfg(feature = "tls")]
mod tls_stream;
mod trust;

use std::io;
use std::process::ExitCode;

pub(crate) use options::Command;

use crate::diagnostics::{self, report};

/// Runs a command to its end.
pub(crate) fn run(command: &Command) -> ExitCode {
    let (Command::Listen(options::ListenOptions { connect, .. })
    | Command::Send(options::SendOptions { connect, .. })) = command;
    diagnostics::init(connect.quiet);
    let checked = match command {
        Command::Listen(options) => options.check(),
        Command::Send(options) => options.connect.check(),
    };
    if let Err(error) = checked {
        report!("{error} (try --help)");
        return ExitCode::from(2);
    }
    let end: io::Result<ExitCode> = match command {
        Command::Listen(options) => listen::run(options),
        Command::Send(options) => send::run(options),
    };
    end.unwrap_or_else(|error| {
        report!("{error}");
        ExitCode::FAILURE
    })
}
