//! Controls a load client in a child process by line commands, so that many connections to several servers need not share
//! one process's descriptors.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddrV4;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::{Load, Plan};
use crate::histogram::Summary;

/// Child side: executes the commands of standard input until it ends.
pub(crate) fn run_commands(mut load: Load) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut answer = |load: &mut Load, summary: Summary| {
        let (expected, received) = load.counts();
        let visits = load.visits();
        let [p50, p99, p999, max] = summary.nanos();
        writeln!(
            out,
            "{expected} {received} {visits} {p50} {p99} {p999} {max}"
        )?;
        out.flush()
    };
    answer(&mut load, Summary::default())?;
    for line in io::stdin().lines() {
        let line = line?;
        let mut summary = Summary::default();
        match line.split_once(' ') {
            Some(("deliver", messages)) => {
                let messages = messages.parse().map_err(io::Error::other)?;
                load.deliver(messages)?;
            }
            Some(("pace", numbers)) => {
                let (messages, rate) = numbers.split_once(' ').unwrap_or((numbers, "1"));
                let messages = messages.parse().map_err(io::Error::other)?;
                load.pace(messages, rate.parse().map_err(io::Error::other)?)?;
            }
            Some(("hold", count)) => load.hold(count.parse().map_err(io::Error::other)?)?,
            _ if line == "block" => load.block(),
            _ if line == "clear" => load.latencies().clear(),
            _ if line == "summary" => summary = load.latencies().summary(),
            _ if line == "finish" => {
                summary = load.latencies().summary();
                load.expect_nothing_more(Duration::from_millis(50))?;
            }
            _ => return Err(io::Error::other(format!("unknown command {line:?}"))),
        }
        answer(&mut load, summary)?;
    }
    Ok(())
}

/// What the child reports after each command.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LoadReport {
    pub(crate) expected: u64,
    pub(crate) received: u64,
    pub(crate) visits: u64,
    /// Filled in after the commands `summary` and `finish` only.
    pub(crate) latency: Summary,
}

/// Parent side: the handle of a load client.
pub(crate) struct LoadProcess {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    pub(crate) state: LoadReport,
}

impl LoadProcess {
    /// Starts this program as a load client and waits until it is connected. It writes lines to the file `feed`.
    pub(crate) fn connect(
        program: &Path,
        address: SocketAddrV4,
        plan: &Plan,
        cpus: &str,
        feed: Option<&Path>,
    ) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.args(["load", plan.job.name(), "--driven"]);
        let values = [
            ("--address", address.to_string()),
            ("--cpu", cpus.to_string()),
            ("--clients", plan.clients.to_string()),
            ("--window", plan.window.to_string()),
            ("--size", plan.size.to_string()),
            ("--rooms", plan.rooms.count.to_string()),
            ("--first-room", plan.rooms.first.to_string()),
            ("--earlier", plan.earlier.to_string()),
            ("--members", plan.rooms.members.to_string()),
            ("--visitors", plan.rooms.visitors.to_string()),
            ("--stalled", plan.stalled.to_string()),
            ("--blockers", plan.blockers.to_string()),
        ];
        for (name, value) in &values {
            command.args([name, value.as_str()]);
        }
        if let Some(feed) = feed {
            command.arg("--feed").arg(feed);
        }
        for (is_given, flag) in [(plan.sleep, "--sleep"), (plan.rooms.together, "--together")] {
            command.args(is_given.then_some(flag));
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (commands, answers) = pipes.ok_or_else(|| io::Error::other("no pipe"))?;
        let mut client = Self {
            child,
            commands,
            answers: BufReader::new(answers),
            state: LoadReport::default(),
        };
        client.read_report()?;
        Ok(client)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn deliver(&mut self, messages: u64) -> io::Result<()> {
        self.command(format_args!("deliver {messages}"))
    }

    /// Sends `messages` at a rate of `per_second`.
    pub(crate) fn pace(&mut self, messages: u64, per_second: f64) -> io::Result<()> {
        self.command(format_args!("pace {messages} {per_second}"))
    }

    /// Lets the clients with blocking handlers send while the others are paced.
    pub(crate) fn block(&mut self) -> io::Result<()> {
        self.command(format_args!("block"))
    }

    /// Opens further idle connections.
    pub(crate) fn hold(&mut self, count: usize) -> io::Result<()> {
        self.command(format_args!("hold {count}"))
    }

    /// Latencies since they were last cleared.
    pub(crate) fn latency(&mut self) -> io::Result<Summary> {
        self.command(format_args!("summary"))?;
        Ok(self.state.latency)
    }

    pub(crate) fn clear_latencies(&mut self) -> io::Result<()> {
        self.command(format_args!("clear"))
    }

    /// Fails if unexpected messages arrive.
    pub(crate) fn finish(&mut self) -> io::Result<LoadReport> {
        self.command(format_args!("finish"))?;
        Ok(self.state)
    }

    fn command(&mut self, order: std::fmt::Arguments<'_>) -> io::Result<()> {
        // A write error is ignored: reading the report yields the cause.
        let _ = writeln!(self.commands, "{order}");
        self.read_report()
    }

    /// The error message of a client that has exited.
    fn failure(&mut self) -> io::Error {
        let mut text = String::new();
        if let Some(mut errors) = self.child.stderr.take() {
            // Unreadable output is left out of the message.
            let _ = errors.read_to_string(&mut text);
        }
        let text = text.trim().trim_start_matches("bench load: ");
        io::Error::other(format!("the load client failed: {text}"))
    }

    fn read_report(&mut self) -> io::Result<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let numbers: Option<Vec<u64>> = line.split_whitespace().map(|n| n.parse().ok()).collect();
        let &[expected, received, visits, p50, p99, p999, max] =
            numbers.as_deref().unwrap_or_default()
        else {
            return Err(self.failure());
        };
        self.state = LoadReport {
            expected,
            received,
            visits,
            latency: Summary::of_nanos([p50, p99, p999, max]),
        };
        Ok(())
    }
}

impl Drop for LoadProcess {
    fn drop(&mut self) {
        // Both fail only if the process has already been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
