//! A child process that takes commands and answers with one line each. It is killed when its handle is dropped.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub(super) struct LineProcess {
    /// Its name in errors, such as "a node".
    name: &'static str,
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Maximum time for an answer.
    patience: Timespec,
}

impl LineProcess {
    /// Starts the process, which has `patience` seconds for each answer.
    pub(super) fn start(
        name: &'static str,
        command: &mut Command,
        patience: u32,
    ) -> io::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (commands, answers) = pipes.ok_or_else(|| io::Error::other("no pipe"))?;
        Ok(Self {
            name,
            child,
            commands,
            answers: BufReader::new(answers),
            patience: Timespec {
                tv_sec: patience.into(),
                tv_nsec: 0,
            },
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a command, which ends with its line end.
    pub(super) fn send(&mut self, line: &str) -> io::Result<()> {
        self.commands.write_all(line.as_bytes())
    }

    /// Waits for the answer to a command.
    pub(super) fn answer(&mut self) -> io::Result<String> {
        // Nothing is left in the buffer, since each command has at most one line of answer.
        let mut waits = [PollFd::new(self.answers.get_ref(), PollFlags::IN)];
        if poll(&mut waits, Some(&self.patience))? == 0 {
            let text = format!("{} did not answer", self.name);
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        match line.strip_suffix('\n') {
            Some(line) => Ok(line.into()),
            None => Err(io::Error::other(format!("{} has ended", self.name))),
        }
    }

    /// Waits for an answer that is a number.
    pub(super) fn number(&mut self) -> io::Result<u64> {
        let line = self.answer()?;
        let number = line.parse();
        number.map_err(|_| io::Error::other(format!("{} said {line:?}", self.name)))
    }

    /// Returns another handle of the pipe of the commands, for another thread.
    pub(super) fn command_pipe(&self) -> io::Result<File> {
        Ok(self.commands.as_fd().try_clone_to_owned()?.into())
    }
}

impl Drop for LineProcess {
    fn drop(&mut self) {
        // Both fail only if the process has already been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
