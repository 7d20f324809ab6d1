//! `stress`: hostile and faulty peers against humphrey_ws over real sockets, with invariants that are checked. Each
//! scenario starts the server under test as a separate process, generates a load from a seed, and fails if a promise of the
//! library does not hold.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool: results go to standard output, errors to standard error"
)]

#[cfg(not(target_os = "linux"))]
compile_error!(
    "the scenarios measure through /proc and need all of 127.0.0.0/8: they run on Linux only"
);

mod body;
mod certificates;
mod check;
mod client;
mod cluster;
mod machine;
mod random;
mod scenarios;
mod server;
mod soak;
mod text;

use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use check::{During, Failure, Outcome, ensure};
use random::Random;
use scenarios::{Context, SCENARIOS, Scenario};

const USAGE: &str = "\
Tests humphrey_ws with hostile and faulty peers, on 127.0.0.0/8 only.

  stress [--seed N] [--scale N | --long] [--quick] [NAME...]
      runs the named scenarios, or all of them, and prints one line for each; a
      name that ends with * names all that begin so; --scale multiplies the size,
      and --long is --scale 10; --quick runs scenarios of a cluster with fewer
      clients; --seed repeats the random choices of an earlier run; the exit
      status is 1 if a check failed
  stress soak [--minutes N] [--seed N]
      puts a server under a moderate load for N minutes (60 by default), or longer
      if the machine is too slow for the warm-up in its time; prints a line each
      minute and a summary, and checks that memory and descriptors stay flat and
      that each message arrives or is counted; the exit status is 1 if a check
      failed
  stress --list
      lists the scenarios";

/// A scenario of scale 1 that takes longer than this counts as hanging.
const SCENARIO_MAX: Duration = Duration::from_secs(90);

struct Options {
    seed: u64,
    scale: u64,
    quick: bool,
    chosen: Vec<&'static Scenario>,
}

/// Runs a command with its arguments.
type Execute = fn(Vec<String>) -> Outcome;

/// The soak, and the hidden commands of the processes that it and the scenarios start.
const COMMANDS: [(&str, Execute); 5] = [
    (soak::COMMAND, |args| soak::run(args.into_iter())),
    (server::COMMAND, |args| server::serve(args.into_iter())),
    (server::pair::COMMAND, |args| {
        server::pair::serve(args.into_iter())
    }),
    (cluster::node::COMMAND, |args| {
        cluster::node::serve(args.into_iter())
    }),
    (cluster::redis::COMMAND, |args| {
        cluster::redis::execute(args.into_iter())
    }),
];

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    for (command, execute) in COMMANDS {
        if args.next_if(|arg| arg == command).is_some() {
            return match execute(args.collect()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(failure) => {
                    eprintln!("stress, {command}: {failure}");
                    ExitCode::FAILURE
                }
            };
        }
    }
    match options(args) {
        Ok(Some(options)) => run(&options),
        Ok(None) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("stress: {failure}\n\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Returns `None` if there is nothing to run.
fn options(mut args: impl Iterator<Item = String>) -> Outcome<Option<Options>> {
    let mut options = Options {
        seed: random::seed_from_clock(),
        scale: 1,
        quick: false,
        chosen: Vec::new(),
    };
    while let Some(arg) = args.next() {
        let mut number = || -> Outcome<u64> {
            let value = args.next().unwrap_or_default();
            value.parse().during(format!("{arg} {value}"))
        };
        match arg.as_str() {
            "--seed" => options.seed = number()?,
            "--scale" => options.scale = number()?.clamp(1, 1_000),
            "--long" => options.scale = 10,
            "--quick" => options.quick = true,
            "--list" => {
                for scenario in SCENARIOS {
                    println!("{:<23} {}", scenario.name, scenario.what);
                }
                return Ok(None);
            }
            "--help" | "-h" => {
                println!("{USAGE}");
                return Ok(None);
            }
            name => {
                let is_meant = |scenario: &&Scenario| match name.strip_suffix('*') {
                    Some(beginning) => scenario.name.starts_with(beginning),
                    None => scenario.name == name,
                };
                let before = options.chosen.len();
                options.chosen.extend(SCENARIOS.iter().filter(is_meant));
                ensure!(
                    options.chosen.len() > before,
                    "unknown option or scenario {name} (--list names the scenarios)"
                );
            }
        }
    }
    if options.chosen.is_empty() {
        options.chosen.extend(SCENARIOS);
    }
    Ok(Some(options))
}

fn run(options: &Options) -> ExitCode {
    let descriptors = match machine::raise_descriptor_limit() {
        Ok(descriptors) => descriptors,
        Err(error) => {
            eprintln!("stress: can't raise the limit of file descriptors: {error}");
            return ExitCode::FAILURE;
        }
    };
    let Options {
        seed, scale, quick, ..
    } = *options;
    println!("seed {seed}, scale {scale}");
    let start = Instant::now();
    let mut failed = 0;
    for scenario in &options.chosen {
        let context = Context {
            seed,
            scale,
            quick,
            random: Random::new(seed).fork(scenario.name, 0),
            descriptors,
        };
        let start = Instant::now();
        let outcome = watched(scenario, context);
        let seconds = start.elapsed().as_secs_f64();
        match outcome {
            Ok(report) => println!(
                "{:<23} passed with {}; {} faults; {}; {seconds:.1} s; peak memory of the server {:.1} MiB",
                scenario.name,
                report.held,
                report.faults,
                report.figures,
                scenarios::mib(report.peak),
            ),
            Err(failure) => {
                failed += 1;
                println!(
                    "{:<23} FAILED with seed {seed}, scale {scale}, after {seconds:.1} s: {failure}",
                    scenario.name
                );
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    if failed > 0 {
        println!("{failed} FAILED in {seconds:.1} s; repeat with --seed {seed} --scale {scale}");
        return ExitCode::FAILURE;
    }
    println!("all scenarios passed in {seconds:.1} s");
    ExitCode::SUCCESS
}

/// Runs a scenario. If it hangs, the program exits, and its servers with it.
fn watched(scenario: &'static Scenario, context: Context) -> Outcome<scenarios::Report> {
    let (done, result) = channel();
    let (seed, wait) = (context.seed, SCENARIO_MAX * context.scale as u32);
    let thread = thread::spawn(move || {
        // The receiver is gone only when the program exits.
        let _ = done.send((scenario.run)(&context));
    });
    match result.recv_timeout(wait) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Disconnected) => {
            let _ = thread.join();
            Err(Failure::new("the scenario panicked"))
        }
        Err(RecvTimeoutError::Timeout) => {
            println!(
                "{:<23} HANGS with seed {seed}, after {wait:?}",
                scenario.name
            );
            std::process::exit(1);
        }
    }
}
