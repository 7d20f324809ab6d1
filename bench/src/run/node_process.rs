//! A `bench node` as a child process, which is killed when its handle is dropped.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::SocketAddrV4;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::machine;
use crate::node::NodeCommand;

/// Maximum time for an answer. A node itself gives up earlier.
const PATIENCE: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

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
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
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
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(commands), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("no pipe").into());
        };
        let mut node = Self {
            child,
            commands,
            answers: BufReader::new(answers),
            address: SocketAddrV4::new([127, 0, 0, 1].into(), 0),
            command_thread: 0,
        };
        let line = node.answer()?;
        if let Some(reason) = line.strip_prefix("REFUSED ") {
            return Err(StartError::Refused(reason.into()));
        }
        (node.address, node.command_thread) =
            ready(&line).ok_or_else(|| io::Error::other(format!("it said {line:?}")))?;
        Ok(node)
    }

    /// Sends a command that has no answer.
    pub(super) fn command(&mut self, command: &NodeCommand) -> io::Result<()> {
        self.commands.write_all(command.line().as_bytes())
    }

    /// Sends a command, and returns the number in its answer.
    pub(super) fn ask(&mut self, command: &NodeCommand) -> io::Result<u64> {
        self.command(command)?;
        let line = self.answer()?;
        let number = line.parse();
        number.map_err(|_| io::Error::other(format!("a node said {line:?}")))
    }

    fn answer(&mut self) -> io::Result<String> {
        // Nothing is left in the buffer, since each command has at most one line of answer.
        let mut waits = [PollFd::new(self.answers.get_ref(), PollFlags::IN)];
        if poll(&mut waits, Some(&PATIENCE))? == 0 {
            let text = "a node did not answer";
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        match line.strip_suffix('\n') {
            Some(line) => Ok(line.into()),
            None => Err(io::Error::other("a node has ended")),
        }
    }

    /// Returns another handle of the pipe of the commands, for another thread.
    pub(super) fn command_pipe(&self) -> io::Result<File> {
        Ok(self.commands.as_fd().try_clone_to_owned()?.into())
    }

    /// CPU time in seconds that the node has used so far, without the thread that runs the commands.
    pub(super) fn serving_cpu_seconds(&self) -> io::Result<f64> {
        machine::cpu_seconds_without(self.child.id(), self.command_thread)
    }

    /// CPU time in seconds that the node's link to Redis has used so far.
    pub(super) fn link_cpu_seconds(&self) -> io::Result<f64> {
        machine::cpu_seconds_of_threads(self.child.id(), LINK)
    }

    /// CPU time in seconds that the node has used so far.
    pub(super) fn cpu_seconds(&self) -> io::Result<f64> {
        machine::cpu_seconds(self.child.id())
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // Both fail only if the process has already been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
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
