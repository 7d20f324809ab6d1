//! A server as a child process of its own, which ends with its handle.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddrV4;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::args::Job;

/// How long a server may take until it listens.
const PATIENCE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Floor,
    Subject,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Subject => "humphrey_ws",
        }
    }

    fn command(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Subject => "subject",
        }
    }
}

pub(super) struct Server {
    child: Child,
    pub(super) address: SocketAddrV4,
}

impl Server {
    /// Starts a build of this program as a server, on a port of the system's choice.
    pub(super) fn start(program: &Path, kind: Kind, job: Job, cpu: usize) -> io::Result<Self> {
        let mut child = Command::new(program)
            .args([
                kind.command(),
                job.name(),
                "--child",
                "--cpu",
                &cpu.to_string(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let address = child
            .stdout
            .take()
            .ok_or_else(|| io::Error::other("no pipe"))
            .and_then(ready);
        match address {
            Ok(address) => Ok(Self { child, address }),
            Err(error) => {
                end(&mut child);
                Err(io::Error::new(
                    error.kind(),
                    format!("{} did not start: {error}", kind.name()),
                ))
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // Both fail only if it has already been waited for.
    let _ = child.kill();
    let _ = child.wait();
}

/// Waits for the line that says where the server listens.
fn ready(out: ChildStdout) -> io::Result<SocketAddrV4> {
    if poll(&mut [PollFd::new(&out, PollFlags::IN)], Some(&PATIENCE))? == 0 {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "it does not say where it listens",
        ));
    }
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    line.strip_prefix("READY ")
        .and_then(|address| address.trim().parse().ok())
        .ok_or_else(|| io::Error::other(format!("it said {line:?}")))
}
