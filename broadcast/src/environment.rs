//! Options from the environment: `HUMPHREY_BROADCAST_LISTEN` stands for `--listen`, and so on for each option. The command line
//! wins: over the variable of the same option, and over those of options that can't be used with the given ones.

use std::ffi::OsString;

use clap::builder::FalseyValueParser;
use clap::error::Error;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

/// Before the name of each option, in capitals and with underscores.
const PREFIX: &str = "HUMPHREY_BROADCAST_";

/// The variable of an option; `None` if it has no long name.
fn variable(arg: &Arg) -> Option<String> {
    let long = arg.get_long()?;
    let is_about_the_program = matches!(
        arg.get_action(),
        ArgAction::Help | ArgAction::HelpLong | ArgAction::HelpShort | ArgAction::Version
    );
    (!is_about_the_program).then(|| format!("{PREFIX}{}", long.replace('-', "_").to_uppercase()))
}

/// Parses a command line, and takes what it leaves out from the environment.
pub(crate) fn matches(command: &Command, line: &[OsString]) -> Result<ArgMatches, Error> {
    // Only to see which options are given. Errors are those of the second parse, to which the variables belong.
    let given = command.clone().try_get_matches_from(line).ok();
    let command = with_variables(command.clone(), given.as_ref());
    command.try_get_matches_from(line)
}

/// Adds the variables of a command and its subcommands, except those of options that exclude a given one.
fn with_variables(command: Command, given: Option<&ArgMatches>) -> Command {
    let args: Vec<Arg> = command.get_arguments().cloned().collect();
    let is_given = |arg: &&Arg| {
        let source = given.and_then(|given| given.value_source(arg.get_id().as_str()));
        source == Some(ValueSource::CommandLine)
    };
    // One of two options names the other.
    let names = |one: &Arg, other: &Arg| command.get_arg_conflicts_with(one).contains(&other);
    let is_excluded = |arg: &&Arg| {
        let mut given = args.iter().filter(is_given);
        given.any(|given| names(arg, given) || names(given, arg))
    };
    let excluded = args.iter().filter(is_excluded).map(Arg::get_id).cloned();
    let excluded: Vec<_> = excluded.collect();
    let subcommand = given.and_then(ArgMatches::subcommand);
    let command = command.mut_args(|arg| match variable(&arg) {
        Some(variable) if !excluded.contains(arg.get_id()) => {
            let is_flag = matches!(arg.get_action(), ArgAction::SetTrue);
            // Tokens must not be shown by --help.
            let arg = arg.env(variable).hide_env(true).hide_env_values(true);
            match is_flag {
                true => arg.value_parser(FalseyValueParser::new()),
                false => arg,
            }
        }
        _ => arg,
    });
    let names: Vec<String> = command
        .get_subcommands()
        .map(|subcommand| subcommand.get_name().to_owned())
        .collect();
    names.into_iter().fold(command, |command, name| {
        let given = subcommand.and_then(|(chosen, given)| (chosen == name).then_some(given));
        command.mut_subcommand(name, |subcommand| with_variables(subcommand, given))
    })
}
