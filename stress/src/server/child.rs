//! Controls the server under test: a child process that is killed when its handle is dropped.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddrV4;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};

use super::{COMMAND, ProducerPlan, Setup};
use crate::check::{During, Failure, Outcome, ensure, eventually};
use crate::machine;

/// Timeout for a response of the server; longer than the deadline of any shutdown.
const PATIENCE: Timespec = Timespec {
    tv_sec: 30,
    tv_nsec: 0,
};

#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    pub(crate) address: SocketAddrV4,
}

/// Counters that the server reports.
#[derive(Debug, Default)]
pub(crate) struct Figures(BTreeMap<String, u64>);

impl Figures {
    /// Parses pairs of a name and a number, such as `opened=3`, with spaces between them.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let pairs = line.split_ascii_whitespace().map(|pair| {
            let (name, value) = pair.split_once('=')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        pairs.collect::<Option<_>>().map(Self)
    }

    /// Panics for an unknown name: a counter that is always missing would satisfy any check.
    pub(crate) fn get(&self, name: &str) -> u64 {
        match self.find(name) {
            Some(value) => value,
            None => panic!("the server reports no counter {name}"),
        }
    }

    /// Returns a counter that the server reports only sometimes.
    pub(crate) fn find(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// Checks the values of counters.
    pub(crate) fn expect(&self, expected: &[(&str, u64)]) -> Outcome {
        for &(name, expected) in expected {
            ensure!(
                self.get(name) == expected,
                "{name} is {} instead of {expected}; {self:?}",
                self.get(name)
            );
        }
        Ok(())
    }

    /// Messages that were delivered or counted as dropped, each once for each recipient.
    pub(crate) fn accounted(&self) -> u64 {
        let dropped = ["slow_consumer", "closed", "no_recipient", "not_running"];
        let dropped = dropped.map(|cause| self.get(&format!("dropped_{cause}")));
        self.get("messages_out") + dropped.iter().sum::<u64>()
    }
}

impl Server {
    /// Starts this program as the server.
    pub(crate) fn start(setup: &Setup) -> Outcome<Self> {
        Self::start_as(COMMAND, &setup.to_args(), setup.address)
    }

    /// Starts this program with a command that serves. It must be called by the scenario's own thread: the kernel kills the
    /// process when the thread that started it ends.
    pub(crate) fn start_as(command: &str, args: &[String], address: SocketAddrV4) -> Outcome<Self> {
        let program = std::env::current_exe().during("finding this program")?;
        let mut child = Command::new(program)
            .arg(command)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .during("starting the server")?;
        let (Some(commands), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::new("the server has no pipes"));
        };
        let mut server = Self {
            child,
            commands,
            answers: BufReader::new(answers),
            address,
        };
        let line = server.answer().during("the server did not start")?;
        server.address = line.parse().during("the server's address")?;
        Ok(server)
    }

    /// Waits until the server has as many open descriptors as at an earlier time.
    pub(crate) fn wait_for_descriptors(&self, descriptors: u64) -> Outcome {
        eventually("the server has closed its descriptors", || {
            Ok(machine::descriptors(self.pid())? == descriptors)
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn answer(&mut self) -> Outcome<String> {
        let mut pipe = [PollFd::new(self.answers.get_ref(), PollFlags::IN)];
        let ready = poll(&mut pipe, Some(&PATIENCE)).during("waiting for the server")?;
        ensure!(ready > 0, "the server does not answer");
        let mut line = String::new();
        self.answers
            .read_line(&mut line)
            .during("reading the server's answer")?;
        ensure!(line.ends_with('\n'), "the server has ended");
        Ok(line.trim_end().to_owned())
    }

    /// Sends a command, and returns the counters of the answer.
    pub(crate) fn ask(&mut self, command: &str) -> Outcome<Figures> {
        writeln!(self.commands, "{command}").during("sending a command to the server")?;
        let answer = self.answer()?;
        Figures::parse(&answer)
            .ok_or_else(|| Failure::new(format!("the server answered {command:?} with {answer:?}")))
    }

    pub(crate) fn figures(&mut self) -> Outcome<Figures> {
        self.ask("figures")
    }

    /// Starts a producer thread.
    pub(crate) fn produce(&mut self, plan: ProducerPlan) -> Outcome {
        self.ask(&plan.line()).map(drop)
    }

    /// Makes the server load its certificate again. New connections get it as soon as this returns.
    pub(crate) fn reload(&mut self) -> Outcome {
        self.ask("reload").map(drop)
    }

    /// Waits until the server's counters satisfy `holds`.
    pub(crate) fn eventually(
        &mut self,
        what: &str,
        holds: impl FnMut(&Figures) -> bool,
    ) -> Outcome<Figures> {
        self.ask_until("figures", what, holds)
    }

    /// Repeats a command until the answer satisfies `holds`.
    pub(crate) fn ask_until(
        &mut self,
        command: &str,
        what: &str,
        mut holds: impl FnMut(&Figures) -> bool,
    ) -> Outcome<Figures> {
        let mut last = Figures::default();
        let outcome = eventually(what, || {
            last = self.ask(command)?;
            Ok(holds(&last))
        });
        match outcome {
            Ok(()) => Ok(last),
            Err(failure) => Err(Failure::new(format!("{failure}; {last:?}"))),
        }
    }

    /// Shuts the app down with a deadline in milliseconds. Returns how many milliseconds it took.
    pub(crate) fn shutdown(&mut self, ms: u64) -> Outcome<u64> {
        Ok(self.ask(&format!("shutdown {ms}"))?.get("stopped_after"))
    }

    pub(crate) fn peak(&self) -> Outcome<u64> {
        machine::resident_peak(self.pid()).during("reading the server's memory")
    }

    pub(crate) fn resident(&self) -> Outcome<u64> {
        machine::resident(self.pid()).during("reading the server's memory")
    }

    /// Sends a signal to the server.
    pub(crate) fn signal(&self, signal: Signal) -> Outcome {
        kill_process(Pid::from_child(&self.child), signal).during("sending a signal to the server")
    }

    /// Kills the server without warning, as the kernel does when memory runs out.
    pub(crate) fn kill(mut self) -> Outcome {
        self.child.kill().during("killing the server")?;
        self.child.wait().during("waiting for the server").map(drop)
    }

    /// Ends a scenario. Fails if a handler has detected a violation; returns the server's peak memory in bytes.
    pub(crate) fn finish(mut self) -> Outcome<u64> {
        let violations = self.figures()?.get("violations");
        ensure!(
            violations == 0,
            "the server's handlers detected {violations} violated invariants"
        );
        self.peak()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if the process has already been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
