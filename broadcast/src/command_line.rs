//! Parses the command line, and generates the manual page and the completions of shells from its definition.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use clap_complete::Shell;

use crate::diagnostics::report;
use crate::environment;
use crate::options::Options;
use crate::stdio::StandardOutput;

/// Parses the command line. On `--help`, `--version` or an error it prints the text and returns the exit code.
pub(crate) fn parse() -> Result<Options, ExitCode> {
    let line: Vec<_> = std::env::args_os().collect();
    let matches = environment::matches(&Options::command(), &line);
    let parsed = matches.and_then(|matches| Options::from_arg_matches(&matches));
    parsed.map_err(|error| {
        if error.use_stderr() {
            report!("{}", first_paragraph(&error.to_string()));
            ExitCode::from(2)
        } else {
            // Errors are ignored: the reader may have closed the pipe.
            let _ = StandardOutput.write_all(error.to_string().as_bytes());
            ExitCode::SUCCESS
        }
    })
}

/// A clap error as one line: the problem, and clap's suggestions.
pub(crate) fn first_paragraph(error: &str) -> String {
    let mut paragraphs = error.split("\n\n");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let what = words(
        paragraphs
            .next()
            .unwrap_or(error)
            .trim_start_matches("error: "),
    );
    let tips = paragraphs.flat_map(str::lines);
    let tips = tips.filter_map(|line| line.trim().strip_prefix("tip: "));
    let tips: String = tips.map(|tip| format!("; {}", words(tip))).collect();
    format!("{what}{tips} (try --help)")
}

/// Writes the manual page of the program, or of one of its commands.
pub(crate) fn write_manual(command: Option<&str>) -> io::Result<()> {
    let mut program = Options::command();
    program.build();
    let page = match command {
        // With the name of the program before that of the command.
        Some(name) => program.find_subcommand(name).cloned().unwrap_or(program),
        None => program,
    };
    let name = page
        .get_display_name()
        .unwrap_or("humphrey-broadcast")
        .to_owned();
    clap_mangen::Man::new(page.name(name)).render(&mut StandardOutput)
}

/// Writes the completions of a shell.
pub(crate) fn write_completions(shell: Shell) {
    let mut completions = Vec::new();
    clap_complete::generate(
        shell,
        &mut Options::command(),
        "humphrey-broadcast",
        &mut completions,
    );
    // Errors are ignored: the reader may have closed the pipe.
    let _ = StandardOutput.write_all(&completions);
}
