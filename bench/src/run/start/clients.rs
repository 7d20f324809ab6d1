//! The clients of `start` as a process of their own. `bench crowd` is the child's side, [`CrowdProcess`] the parent's.

use std::io;
use std::net::SocketAddrV4;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::crowd::{Crowd, Echoes};
use crate::args::{self, OptionSpec, Options};
use crate::histogram::Summary;
use crate::node;
use crate::run::line_process::LineProcess;

pub(crate) const OPTIONS: &[OptionSpec] = &[
    args::value("address"),
    args::value("rate"),
    args::value("cpu"),
    args::flag("child"),
];

/// Maximum time for an answer, in seconds: longer than the crowd's own patience.
const PATIENCE: u32 = 150;

/// A command on standard input, which is one line of text. The answer is one line of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CrowdCommand {
    /// Opens connections, in batches.
    Hold { count: usize, talkers: usize },
    /// Connects to a server that may not listen yet.
    Cold { count: usize },
    /// Exchanges echoes for so many milliseconds.
    Talk { millis: u64 },
    /// Connects at once, during echoes.
    Storm { count: usize },
    /// Sends an echo through each connection.
    Check,
}

impl CrowdCommand {
    fn line(self) -> String {
        match self {
            Self::Hold { count, talkers } => format!("hold {count} {talkers}\n"),
            Self::Cold { count } => format!("cold {count}\n"),
            Self::Talk { millis } => format!("talk {millis}\n"),
            Self::Storm { count } => format!("storm {count}\n"),
            Self::Check => "check\n".into(),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let name = words.next()?;
        let mut number = || words.next()?.parse().ok();
        let command = match name {
            "hold" => Self::Hold {
                count: number()?,
                talkers: number()?,
            },
            "cold" => Self::Cold { count: number()? },
            "talk" => Self::Talk {
                millis: number()? as u64,
            },
            "storm" => Self::Storm { count: number()? },
            "check" => Self::Check,
            _ => return None,
        };
        words.next().is_none().then_some(command)
    }
}

/// Child side: executes the commands of standard input until it ends. `address` is that of the server.
pub(crate) fn serve(options: &Options, address: SocketAddrV4) -> io::Result<()> {
    if address.port() == 0 {
        return Err(args::invalid("--address IP:PORT is missing".into()));
    }
    let mut crowd = Crowd::new(address, options.number("rate", 1_000.0)?)?;
    for line in io::stdin().lines() {
        let line = line?;
        let command = CrowdCommand::parse(&line)
            .ok_or_else(|| args::invalid(format!("unknown command {line:?}")))?;
        match command {
            CrowdCommand::Hold { count, talkers } => {
                crowd.hold(count, talkers)?;
                node::answer(format_args!("{count}"))?;
            }
            CrowdCommand::Cold { count } => {
                let (first, last) = crowd.cold(count)?;
                node::answer(format_args!("{first} {last}"))?;
            }
            CrowdCommand::Talk { millis } => {
                let echoes = crowd.talk(Duration::from_millis(millis))?;
                node::answer(format_args!("0 {}", line_of(&echoes)))?;
            }
            CrowdCommand::Storm { count } => {
                let (took, echoes) = crowd.storm(count)?;
                node::answer(format_args!("{} {}", took.as_nanos(), line_of(&echoes)))?;
            }
            CrowdCommand::Check => node::answer(format_args!("{}", crowd.check()?))?,
        }
    }
    Ok(())
}

fn line_of(echoes: &Echoes) -> String {
    let [p50, p99, p999, max] = echoes.latency.nanos();
    format!("{} {p50} {p99} {p999} {max}", echoes.count)
}

/// Parent side: the handle of the process.
pub(super) struct CrowdProcess(LineProcess);

impl CrowdProcess {
    /// Starts the process, and waits until it takes commands.
    pub(super) fn start(
        program: &Path,
        cpu: &str,
        address: SocketAddrV4,
        rate: f64,
    ) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.args(["crowd", "--child", "--cpu", cpu]);
        command.args(["--address", &address.to_string()]);
        command.args(["--rate", &rate.to_string()]);
        let mut process = Self(LineProcess::start(
            "the process of clients",
            &mut command,
            PATIENCE,
        )?);
        process.hold(0, 0)?;
        Ok(process)
    }

    pub(super) fn hold(&mut self, count: usize, talkers: usize) -> io::Result<()> {
        self.send(CrowdCommand::Hold { count, talkers })?;
        self.numbers::<1>().map(drop)
    }

    /// Begins to connect to a server that does not listen yet.
    pub(super) fn begin_cold(&mut self, count: usize) -> io::Result<()> {
        self.send(CrowdCommand::Cold { count })
    }

    /// Waits until all clients of [`Self::begin_cold`] are connected. Returns when the first and the last were.
    pub(super) fn end_cold(&mut self) -> io::Result<(u64, u64)> {
        let [first, last] = self.numbers()?;
        Ok((first, last))
    }

    pub(super) fn talk(&mut self, time: Duration) -> io::Result<Echoes> {
        let millis = time.as_millis() as u64;
        self.send(CrowdCommand::Talk { millis })?;
        self.echoes().map(|(_, echoes)| echoes)
    }

    pub(super) fn storm(&mut self, count: usize) -> io::Result<(Duration, Echoes)> {
        self.send(CrowdCommand::Storm { count })?;
        self.echoes()
    }

    /// Checks that each connection echoes. Returns their number.
    pub(super) fn check(&mut self) -> io::Result<usize> {
        self.send(CrowdCommand::Check)?;
        self.numbers().map(|[count]| count as usize)
    }

    fn send(&mut self, command: CrowdCommand) -> io::Result<()> {
        self.0.send(&command.line())
    }

    fn echoes(&mut self) -> io::Result<(Duration, Echoes)> {
        let [took, count, p50, p99, p999, max] = self.numbers()?;
        let latency = Summary::of_nanos([p50, p99, p999, max]);
        Ok((Duration::from_nanos(took), Echoes { count, latency }))
    }

    fn numbers<const N: usize>(&mut self) -> io::Result<[u64; N]> {
        let line = self.0.answer()?;
        let numbers: Option<Vec<u64>> = line.split(' ').map(|word| word.parse().ok()).collect();
        let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
        numbers.ok_or_else(|| io::Error::other(format!("the process of clients said {line:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_survives_its_line() {
        for command in [
            CrowdCommand::Hold {
                count: 9_900,
                talkers: 4_950,
            },
            CrowdCommand::Cold { count: 10_000 },
            CrowdCommand::Talk { millis: 300 },
            CrowdCommand::Storm { count: 10_000 },
            CrowdCommand::Check,
        ] {
            let line = command.line();
            let line = line.strip_suffix('\n').unwrap();
            assert_eq!(CrowdCommand::parse(line), Some(command));
        }
        for line in ["", "hold 1", "cold all", "check 1", "talk"] {
            assert_eq!(CrowdCommand::parse(line), None, "{line}");
        }
    }
}
