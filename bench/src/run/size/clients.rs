//! The clients of a node, all of them members of one room, in a process of their own: a process may have only so many
//! descriptors. `bench members` is the child's side, [`ClientProcess`] the parent's.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::args::{self, OptionSpec, Options};
use crate::node;
use crate::run::line_process::LineProcess;
use crate::run::members::{Members, Receipts};

pub(crate) const OPTIONS: &[OptionSpec] = &[
    args::value("address"),
    args::value("source"),
    args::value("cpu"),
    args::flag("child"),
];

/// Maximum time for an answer, in seconds. Connecting takes the longest.
const PATIENCE: u32 = 300;
/// How long surplus messages may arrive at the end.
const SURPLUS_WAIT: Duration = Duration::from_millis(300);

/// A command on standard input, which is one line of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientCommand {
    /// Connects further members. Answers with the number of all.
    Join { count: usize },
    /// Waits until each member has received the next message. Answers with the times of the first and the last receipt.
    Receive,
    /// Fails if more messages arrive. Answers with the number of messages that all members together have received.
    Finish,
}

impl ClientCommand {
    fn line(self) -> String {
        match self {
            Self::Join { count } => format!("join {count}\n"),
            Self::Receive => "receive\n".into(),
            Self::Finish => "finish\n".into(),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        match line.split_once(' ') {
            Some(("join", count)) => Some(Self::Join {
                count: count.parse().ok()?,
            }),
            None if line == "receive" => Some(Self::Receive),
            None if line == "finish" => Some(Self::Finish),
            _ => None,
        }
    }
}

/// Child side: executes the commands of standard input until it ends. `address` is that of the node.
pub(crate) fn serve(options: &Options, address: SocketAddrV4) -> io::Result<()> {
    if address.port() == 0 {
        return Err(args::invalid("--address IP:PORT is missing".into()));
    }
    let source = options.number("source", Ipv4Addr::LOCALHOST)?;
    let mut members = Members::new(1)?.with_source(source);
    // The members, and the messages that they have received together.
    let (mut joined, mut received) = (0, 0);
    for line in io::stdin().lines() {
        let line = line?;
        let command = ClientCommand::parse(&line)
            .ok_or_else(|| args::invalid(format!("unknown command {line:?}")))?;
        match command {
            ClientCommand::Join { count } => {
                members.join(address, vec![vec![0]; count])?;
                joined += count as u64;
                node::answer(format_args!("{joined}"))?;
            }
            ClientCommand::Receive => {
                members.sent_before += 1;
                received += joined;
                members.receive(received)?;
                let Receipts { first, last } = members.take_receipts();
                node::answer(format_args!("{first} {last}"))?;
            }
            ClientCommand::Finish => {
                members.expect_nothing_more(SURPLUS_WAIT)?;
                node::answer(format_args!("{received}"))?;
            }
        }
    }
    Ok(())
}

/// Parent side: the handle of a process of clients.
pub(super) struct ClientProcess(LineProcess);

impl ClientProcess {
    /// Starts clients of the node at `address`, which connect from an address of their own.
    pub(super) fn start(
        program: &Path,
        cpus: &str,
        address: SocketAddrV4,
        source: Ipv4Addr,
    ) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.args(["members", "--child", "--cpu", cpus]);
        command.args(["--address", &address.to_string()]);
        command.args(["--source", &source.to_string()]);
        let process = LineProcess::start("a process of clients", &mut command, PATIENCE)?;
        Ok(Self(process))
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Sends a command, whose answer is read later, so that all processes work at the same time.
    pub(super) fn send(&mut self, command: ClientCommand) -> io::Result<()> {
        self.0.send(&command.line())
    }

    /// Waits for the answer of `Join` or `Finish`.
    pub(super) fn count(&mut self) -> io::Result<u64> {
        self.0.number()
    }

    /// Waits for the answer of `Receive`.
    pub(super) fn receipts(&mut self) -> io::Result<Receipts> {
        let line = self.0.answer()?;
        let times = line.split_once(' ');
        let times = times.and_then(|(first, last)| {
            Some(Receipts {
                first: first.parse().ok()?,
                last: last.parse().ok()?,
            })
        });
        times.ok_or_else(|| io::Error::other(format!("a process of clients said {line:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_survives_its_line() {
        let join = ClientCommand::Join { count: 19_000 };
        for command in [join, ClientCommand::Receive, ClientCommand::Finish] {
            let line = command.line();
            let line = line.strip_suffix('\n').unwrap();
            assert_eq!(ClientCommand::parse(line), Some(command));
        }
        for line in ["", "join", "join all", "receive 1"] {
            assert_eq!(ClientCommand::parse(line), None, "{line}");
        }
    }
}
