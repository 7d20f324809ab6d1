//! A `bench node` as a child process, which is killed when its handle is dropped.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::SocketAddrV4;
use std::path::Path;
use std::process::Command;

use super::line_process::LineProcess;
use crate::machine;
use crate::node::NodeCommand;

/// Maximum time for an answer, in seconds. A node itself gives up earlier.
const PATIENCE: u32 = 60;

/// The name of the library's thread for the link to Redis, as the kernel shortens it.
const LINK: &str = "humphrey_ws clu";

/// What a node is started with.
#[derive(Clone, Copy)]
pub(super) struct NodeSpec<'a> {
    /// The program. With `cluster`, it needs the feature `cluster`.
    pub(super) program: &'a Path,
    pub(super) cpus: &'a str,
    /// The URL of the Redis through which it reaches the other nodes.
    pub(super) cluster: Option<&'a str>,
    /// Whether its rooms keep a history.
    pub(super) has_history: bool,
}

pub(super) struct NodeProcess {
    process: LineProcess,
    pub(super) address: SocketAddrV4,
    /// The thread that runs the commands.
    command_thread: u32,
}

/// Why a node did not start.
#[derive(Debug)]
pub(super) enum StartError {
    /// The library refused to start the app, for this reason.
    Refused(String),
    Io(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(reason) => write!(f, "the node refused to start: {reason}"),
            Self::Io(error) => write!(f, "the node did not start: {error}"),
        }
    }
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<StartError> for io::Error {
    fn from(error: StartError) -> Self {
        Self::other(error.to_string())
    }
}

impl NodeProcess {
    pub(super) fn start(spec: NodeSpec<'_>) -> Result<Self, StartError> {
        let mut command = Command::new(spec.program);
        command.args(["node", "--child", "--cpu", spec.cpus]);
        if let Some(url) = spec.cluster {
            command.args(["--cluster", url]);
        }
        if spec.has_history {
            command.arg("--history");
        }
        let mut process = LineProcess::start("a node", &mut command, PATIENCE)?;
        let line = process.answer()?;
        if let Some(reason) = line.strip_prefix("REFUSED ") {
            return Err(StartError::Refused(reason.into()));
        }
        let (address, command_thread) =
            ready(&line).ok_or_else(|| io::Error::other(format!("it said {line:?}")))?;
        Ok(Self {
            process,
            address,
            command_thread,
        })
    }

    /// Sends a command that has no answer.
    pub(super) fn command(&mut self, command: &NodeCommand) -> io::Result<()> {
        self.process.send(&command.line())
    }

    /// Sends a command, and returns the number in its answer.
    pub(super) fn ask(&mut self, command: &NodeCommand) -> io::Result<u64> {
        self.command(command)?;
        self.process.number()
    }

    /// Returns another handle of the pipe of the commands, for another thread.
    pub(super) fn command_pipe(&self) -> io::Result<File> {
        self.process.command_pipe()
    }

    /// CPU time in seconds that the node has used so far, without the thread that runs the commands.
    pub(super) fn serving_cpu_seconds(&self) -> io::Result<f64> {
        machine::cpu_seconds_without(self.process.pid(), self.command_thread)
    }

    /// CPU time in seconds that the node's link to Redis has used so far.
    pub(super) fn link_cpu_seconds(&self) -> io::Result<f64> {
        machine::cpu_seconds_of_threads(self.process.pid(), LINK)
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// CPU time in seconds that the node has used so far.
    pub(super) fn cpu_seconds(&self) -> io::Result<f64> {
        machine::cpu_seconds(self.process.pid())
    }
}

/// Parses the line `READY 127.0.0.1:PORT THREAD`.
fn ready(line: &str) -> Option<(SocketAddrV4, u32)> {
    let (address, thread) = line.strip_prefix("READY ")?.split_once(' ')?;
    Some((address.parse().ok()?, thread.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_and_thread_are_found_in_the_first_line() {
        let expected = ("127.0.0.1:4000".parse().unwrap(), 12);
        assert_eq!(ready("READY 127.0.0.1:4000 12"), Some(expected));
        assert_eq!(ready("READY 127.0.0.1:4000"), None);
        assert_eq!(ready("REFUSED 127.0.0.1:4000 12"), None);
    }
}
