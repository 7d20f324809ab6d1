//! Command-line parser: `--name value` and `--name` options, and one word before them.

use std::collections::BTreeMap;
use std::io;
use std::str::FromStr;

/// An option that a command accepts.
#[derive(Clone, Copy)]
pub(crate) struct OptionSpec {
    name: &'static str,
    takes_value: bool,
}

pub(crate) const fn value(name: &'static str) -> OptionSpec {
    OptionSpec {
        name,
        takes_value: true,
    }
}

pub(crate) const fn flag(name: &'static str) -> OptionSpec {
    OptionSpec {
        name,
        takes_value: false,
    }
}

/// The parsed command line.
pub(crate) struct Options {
    word: Option<String>,
    values: BTreeMap<&'static str, Vec<String>>,
    /// The words after `--`.
    command: Vec<String>,
}

impl Options {
    pub(crate) fn parse(
        mut args: impl Iterator<Item = String>,
        known: &[OptionSpec],
    ) -> io::Result<Self> {
        let mut options = Self {
            word: None,
            values: BTreeMap::new(),
            command: Vec::new(),
        };
        while let Some(arg) = args.next() {
            if arg == "--" {
                options.command = args.collect();
                break;
            }
            let Some(name) = arg.strip_prefix("--") else {
                if options.word.replace(arg.clone()).is_some() {
                    return Err(invalid(format!("unexpected argument {arg:?}")));
                }
                continue;
            };
            let Some(option) = known.iter().find(|k| k.name == name) else {
                return Err(invalid(format!("unknown option --{name}")));
            };
            let value = if option.takes_value {
                args.next()
                    .ok_or_else(|| invalid(format!("--{name} needs a value")))?
            } else {
                String::new()
            };
            options.values.entry(option.name).or_default().push(value);
        }
        Ok(options)
    }

    /// The word before the options: the job.
    pub(crate) fn word(&self) -> Option<&str> {
        self.word.as_deref()
    }

    pub(crate) fn command(&self) -> &[String] {
        &self.command
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.texts(name).last().map(String::as_str)
    }

    /// All values of an option that may be repeated.
    pub(crate) fn texts(&self, name: &str) -> &[String] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }

    /// A list of CPU numbers, separated by commas.
    pub(crate) fn cpus(&self, name: &str) -> io::Result<Option<Vec<usize>>> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        let cpus: Result<_, _> = text.split(',').map(str::parse).collect();
        cpus.map(Some).map_err(|_| bad(name, text))
    }

    pub(crate) fn number<T: FromStr>(&self, name: &str, default: T) -> io::Result<T> {
        match self.text(name) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| bad(name, text)),
        }
    }
}

/// What a server does with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Echoes it.
    Echo,
    /// Broadcasts messages of the connection at [`crate::wire::PUBLISH`] to all connections, including itself.
    Fanout,
    /// Broadcasts messages of [`crate::wire::PUBLISH`] to the room that each names. Every other connection is in the room
    /// that its path names, joins the rooms that its messages name, and receives an echo.
    Rooms,
    /// Like [`Job::Rooms`], while [`crate::subject::CHURN_PER_SECOND`] connections of [`crate::wire::VISIT`] join room 0
    /// and as many leave it.
    Churn,
    /// Echoes it; the handler blocks for [`crate::wire::BLOCK_TIME`] if the message contains [`crate::wire::BLOCK`].
    Blocked,
    /// Broadcasts each message to all other connections, but returns [`crate::wire::HELLO`] to its sender.
    Chat,
    /// Broadcasts each message of the connection at [`crate::wire::PUBLISH`] to the next of
    /// [`crate::wire::ROUND_ROBIN_ROOMS`] rooms, but returns [`crate::wire::HELLO`] to its sender. Every other connection
    /// joins the room that its path names.
    RoundRobin,
    /// Broadcasts each line of standard input from a thread outside the engine.
    Lines,
}

impl Job {
    pub(crate) fn of(options: &Options) -> io::Result<Self> {
        match options.word() {
            Some("echo") => Ok(Self::Echo),
            Some("fanout") => Ok(Self::Fanout),
            Some("rooms") => Ok(Self::Rooms),
            Some("churn") => Ok(Self::Churn),
            Some("blocked") => Ok(Self::Blocked),
            Some("lines") => Ok(Self::Lines),
            Some("chat") => Ok(Self::Chat),
            Some("round-robin") => Ok(Self::RoundRobin),
            _ => Err(invalid(
                "a job is missing: echo, fanout, rooms, churn, blocked, lines, chat or round-robin"
                    .into(),
            )),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Fanout => "fanout",
            Self::Rooms => "rooms",
            Self::Churn => "churn",
            Self::Blocked => "blocked",
            Self::Lines => "lines",
            Self::Chat => "chat",
            Self::RoundRobin => "round-robin",
        }
    }

    /// Whether each client receives its own messages only.
    pub(crate) fn is_echo(self) -> bool {
        matches!(self, Self::Echo | Self::Blocked)
    }
}

pub(crate) fn bad(name: &str, text: &str) -> io::Error {
    invalid(format!("invalid value {text:?} for --{name}"))
}

pub(crate) fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> io::Result<Options> {
        let known = [value("cpu"), flag("quick")];
        Options::parse(args.iter().map(|arg| (*arg).to_owned()), &known)
    }

    #[test]
    fn words_after_two_dashes_are_a_command() {
        let options = parse(&["--cpu", "0,3", "--quick", "--", "node", "--cpu"]).unwrap();
        assert_eq!(options.cpus("cpu").unwrap(), Some(vec![0, 3]));
        assert!(options.flag("quick"));
        assert_eq!(options.command(), ["node", "--cpu"]);
    }

    #[test]
    fn unknown_or_malformed_options_are_refused() {
        assert!(parse(&["--only", "echo"]).is_err());
        assert!(parse(&["one", "two"]).is_err());
        assert!(parse(&["--cpu"]).is_err());
        assert!(parse(&["--cpu", "first"]).unwrap().cpus("cpu").is_err());
    }
}
