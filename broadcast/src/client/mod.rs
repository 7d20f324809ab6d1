//! `humphrey-broadcast listen` and `send`: a WebSocket client for the shell.
//!
//! One thread does the talking: it waits for the socket, for signals, and for what is read from standard input by a thread of its own
//! ([`world`]). A connection is had ([`dial`]), spoken on ([`link`]), and had again after its end ([`session`], [`retry`]), as
//! far as the table of [`failures`] says so. The handshake and the frames are the library's, which does no I/O there. What is said on it is the business of a [`session::Peer`]: [`listen`] or [`send`].

mod dial;
mod end;
mod failures;
mod in_flight;
mod input;
mod link;
mod listen;
mod options;
mod output;
mod resume;
mod retry;
mod send;
mod session;
mod target;
mod world;

use std::io;
use std::process::ExitCode;

pub(crate) use options::Command;

use crate::say::{self, say};

/// Runs a command to its end.
pub(crate) fn run(command: &Command) -> ExitCode {
    let (Command::Listen(options::Listen { connect, .. })
    | Command::Send(options::Send { connect, .. })) = command;
    say::init(connect.quiet);
    if let Err(error) = connect.check() {
        say!("{error} (try --help)");
        return ExitCode::from(2);
    }
    let end: io::Result<ExitCode> = match command {
        Command::Listen(options) => listen::run(options),
        Command::Send(options) => send::run(options),
    };
    end.unwrap_or_else(|error| {
        say!("{error}");
        ExitCode::FAILURE
    })
}
