//! `bench`: what a delivery costs on humphrey_ws, as a ratio to the least a server can do.
//!
//! One binary with five commands. `run` is the one for people: it starts the servers `floor` and
//! `subject` in turn as its own children, loads them, and prints a table. See `README.md`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool: the table goes to standard output, its progress to standard error"
)]

#[cfg(not(target_os = "linux"))]
compile_error!("the bench measures through epoll and /proc: it runs on Linux only");

mod args;
mod blocked;
mod floor;
mod handlers;
mod histogram;
mod load;
mod machine;
mod run;
mod subject;
mod wire;

use std::io;
use std::net::SocketAddrV4;
use std::process::ExitCode;

use args::{Job, Options};

const USAGE: &str = "\
Measures humphrey_ws against a bare epoll loop.

  bench run [--quick] [--rounds 3] [--cpu-seconds 2] [--out FILE] [--only NAME]
            [--server-cpu N] [--client-cpu N] [--server-threads pool] [--sleep]
            [--self-check] [--baseline PROGRAM]
      all scenarios, servers in turn, as a Markdown table; --quick asserts exact
      counts only, in about ten seconds; --only keeps the scenarios whose name
      contains NAME, or one of several with commas between; --sleep lets the client sleep while nothing arrives, where
      it otherwise looks again at once; --self-check measures the floor against
      itself: how far its ratios are from 1 is how far to trust the others;
      --baseline puts another build of this program in the floor's place

  bench blocked [--clients 100] [--sleepers 20] [--seconds 5]
      how long clients wait for their echo while the handlers of others sleep

  bench handlers [--seconds 1.5] [--rounds 3] [--only NAME] [--server-cpu N]
            [--modes pool,adaptive]
      handlers on the reactors' own threads while they are quick, beside the pool
      alone; `floor` is a mode, too, where handlers do nothing

  bench floor   echo|fanout|rooms [--address 127.0.0.1:0] [--cpu N] [--ring]
  bench subject echo|fanout|rooms|churn [--address 127.0.0.1:0] [--cpu N]
            [--server-threads pool]
      one server, until it is killed; says READY and its address when it listens;
      --ring sends through an io_uring ring, one system call for all sends of a turn

  bench load echo|fanout|rooms|churn|idle --address 127.0.0.1:PORT [--clients N]
            [--size 32] [--window 1] [--rooms N] [--members N] [--visitors N]
            [--together] [--messages N] [--hold SECONDS] [--cpu N] [--sleep]
      the load client against any server that does the same job";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let outcome = match command.as_str() {
        "run" => Options::parse(args, run::OPTIONS).and_then(|o| run::run(&o)),
        "floor" | "subject" => {
            Options::parse(args, SERVER_OPTIONS).and_then(|o| serve(&command, &o))
        }
        "blocked" => Options::parse(args, blocked::OPTIONS).and_then(|o| blocked::command(&o)),
        "handlers" => Options::parse(args, handlers::OPTIONS).and_then(|o| handlers::command(&o)),
        "handlers-server" => {
            Options::parse(args, handlers::SERVER_OPTIONS).and_then(|o| handlers::serve(&o))
        }
        "load" => Options::parse(args, load::OPTIONS).and_then(|o| load::command(&o)),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench {command}: {error}");
            ExitCode::FAILURE
        }
    }
}

const SERVER_OPTIONS: &[args::Known] = &[
    args::value("address"),
    args::value("cpu"),
    args::value("server-threads"),
    args::flag("child"),
    args::flag("ring"),
];

/// Becomes one of the two servers; returns only on a failure.
fn serve(which: &str, options: &Options) -> io::Result<()> {
    let job = Job::of(options)?;
    let address: SocketAddrV4 =
        options.number("address", SocketAddrV4::new([127, 0, 0, 1].into(), 0))?;
    args::check_server_threads(options)?;
    if options.flag("child") {
        machine::die_with_parent()?;
    }
    // Before any other thread exists, so that all of them inherit it.
    if let Some(cpu) = options.text("cpu") {
        machine::pin(cpu.parse().map_err(|_| args::bad("cpu", cpu))?)?;
    }
    machine::raise_descriptor_limit()?;
    match which {
        "floor" => floor::serve(job, address, options.flag("ring")),
        _ => subject::serve(job, address),
    }
}

/// Tells whoever started this server where it listens.
fn ready(address: std::net::SocketAddr) -> io::Result<()> {
    use io::Write;
    let mut out = io::stdout().lock();
    writeln!(out, "READY {address}")?;
    out.flush()
}
