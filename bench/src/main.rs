//! `bench`: measures the cost of a delivery on humphrey_ws, relative to a minimal server. One binary with several commands.
//! `run` is the command for people: it starts servers in turn as child processes, loads them, and prints a table. See
//! `README.md`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool: the table goes to standard output, its progress to standard error"
)]

#[cfg(not(target_os = "linux"))]
compile_error!("the bench measures through epoll and /proc: it runs on Linux only");

mod args;
mod corpus;
mod floor;
mod frames;
mod histogram;
mod load;
mod machine;
mod node;
mod poll;
mod run;
mod subject;
mod wire;

use std::io;
use std::net::SocketAddrV4;
use std::process::ExitCode;

use args::{Job, Options};

const USAGE: &str = "\
Measures humphrey_ws beside a bare epoll loop, and beside other servers.

  bench run [--quick] [--only NAME] [--list] [--peers all|none|NAMES] [--out PATH]
            [--peer NAME='PROGRAM {port}'] [--readme FILE] [--targets FILE]
            [--rounds 3] [--cpu-seconds 1] [--server-cpu N] [--client-cpu N]
            [--sleep] [--self-check] [--baseline PROGRAM]
      measures all scenarios and prints a Markdown table
      --quick      runs a few scenarios without peers in ten seconds: it checks
                   that everything arrives, but its times mean nothing
      --only       runs the scenarios whose names contain NAME, or one of several
                   names separated by commas; --list prints the names
      --peers      compares with all available peers, none, or some, separated by
                   commas; missing peers are built or installed
      --peer       adds a server that you have built: PROGRAM listens on {port} of
                   127.0.0.1, and does the job that replaces {job}, if it is there:
                   echo, fanout or blocked; may be repeated
      --out        writes PATH.json, PATH.md and PATH.svg
      --readme     inserts the table of peers between the marks of FILE
      --targets    inserts the internal targets between the marks of FILE
      --sleep      lets the client sleep while nothing arrives; otherwise it polls
      --self-check measures the floor against itself: the distance of its ratios
                   from 1 is the error of measurement
      --baseline   compares with another build of this program instead of the floor

  bench compression [--quick] [--only NAME] [--list] [--peers all|none|NAMES]
            [--out PATH] [--targets FILE] [--rounds 3] [--cpu-seconds 1.5]
            [--server-cpu N] [--client-cpu N]
      measures the CPU time and the bytes of compression, beside Bun and ws, and
      prints Markdown tables; --quick checks in a minute that everything works

  bench tls [the options of compression]
      measures the CPU time, memory and latency of TLS, beside Bun, axum and nginx,
      and prints Markdown tables

  bench costs [--quick] [--only NAME] [--list] [--redis PROGRAM|--nats PROGRAM]
            [--out PATH] [--page FILE] [--rounds 3] [--cpu-seconds 1.5]
            [--server-cpu N] [--client-cpu N]
      measures the CPU time of a million deliveries with each feature switched on,
      and prints one Markdown table
      --only       measures the rows whose names contain NAME, or one of several
                   names separated by commas; --list prints the names
      --page       inserts the table between the marks of FILE

  bench cluster [--quick] [--only NAME] [--list] [--redis PROGRAM|--nats PROGRAM]
            [--out PATH] [--targets FILE] [--rounds 3] [--cpu-seconds 1]
            [--server-cpu N] [--client-cpu N]
      measures the costs of a cluster over Redis or NATS, and prints Markdown tables
      --redis      the server to start, redis-server by default
      --nats       the same with NATS, without the scenarios of histories

  bench jitter [--clients 10000] [--rooms N] [--nodes 2] [--interval 15]
            [--offline 2] [--seconds 120] [--rate N] [--replay-p99-max MS]
            [--redis PROGRAM]
      cuts the connection of each client every --interval seconds, lets it
      reconnect to another node and resume, and accounts for every message; fails
      if one was lost, or arrived twice or out of order
      --offline    seconds between a cut and the reconnect
      --rate       messages per second to all rooms together; by default, one to
                   each room while a client is offline
      --replay-p99-max  also fails if the 99th percentile of the time of a replay is
                   longer

  bench size [--quick] [--nodes 11] [--clients 200000] [--broadcasts 11]
            [--redis PROGRAM|--nats PROGRAM] [--out PATH] [--page FILE]
      connects idle clients to the nodes of one cluster, and measures their memory
      and broadcasts to all of them; fails if a client does not receive each once
      --quick      3 nodes and 3,000 clients: its figures mean little
      --page       inserts the table between the marks of FILE

  bench join [--history 10000] [--size 100] [--clients 1000] [--at-once 50]
            [--stalled 200] [--only frames,ids,events] [--rounds 3]
            [--baseline PROGRAM] [--server-cpu N] [--client-cpu N]
      lets clients join a room with a history of so many messages, some at a time,
      and measures the server's CPU time of a join, and the memory that clients
      hold that do not read; fails if one does not receive the history in order,
      and then each live message once
      --baseline   measures another build of this program in turn, and compares

  bench keyed [--keys 1000] [--updates 100] [--size 60] [--slow 10]
            [--percent 1] [--seconds 5]
      updates all keys of a keyed room so many times a second, and measures when
      clients that read only so many percent of it have the last value of every
      key after the source has stopped, and what they cost a client that reads
      everything; fails if a value is missing or a client is cut off

  bench cores [--quick] [--share] [--rounds 3] [--seconds 2] [--out PATH]
      measures the rate of 1, 2, 4 and more shards on the first half of the CPUs,
      with clients on the other half. With fewer than four CPUs, it says so,
      measures nothing, and ends with status 0
      --share      lets server and clients share all CPUs, to test the command: its
                   figures are meaningless, and marked so

  bench start [--quick] [--rounds 5] [--connections 10000] [--rate 5000]
            [--peer NAME='PROGRAM {port}'] [--out PATH] [--server-cpu N]
            [--client-cpu N]
      measures the time from the start of a process until so many clients are
      connected, and the latency of --rate echoes per second of connected clients
      while so many others connect at once, beside the floor
      --connections  is reduced, with a note, if descriptors are missing
      --peer       as for run; may be repeated

  bench report FILE.json [--out PATH] [--readme FILE] [--targets FILE]
      renders table and plot of an earlier run

  bench floor   echo|fanout|rooms|blocked [--address 127.0.0.1:0] [--cpu N]
            [--joined|--ring|--two-threads]
  bench subject echo|fanout|rooms|churn|blocked|lines|chat|round-robin
            [--address 127.0.0.1:0]
            [--cpu N] [--shards 1] [--pool] [--borrowing] [--ring] [--micros N [--one-in N]
            [--works]] [--compress] [--tls-cert FILE --tls-key FILE] [--room]
            [--history] [--events] [--rate-limits] [--metrics 127.0.0.1:PORT]
            [--cluster URL]
      runs one server until it is killed; prints READY and its address

  bench node [--address 127.0.0.1:0] [--cpu N] [--cluster URL] [--history]
      runs a node for `cluster`, `jitter` and `size`, which takes commands on
      standard input

  bench history [--address 127.0.0.1:0] [--cpu N] [--history 10000] [--size 100]
            [--skip-ahead]
      runs the server of `join`, which takes numbers of messages on standard input

  bench members --address 127.0.0.1:PORT [--source 127.0.1.1] [--cpu N]
      runs the clients of a node for `size`, which takes commands on standard input

  bench crowd --address 127.0.0.1:PORT [--rate N] [--cpu N]
      runs the clients of `start`, which takes commands on standard input

  bench load echo|fanout|rooms|churn|blocked|lines|idle --address 127.0.0.1:PORT
            [--clients N] [--size 32] [--window 1] [--rooms N] [--members N]
            [--visitors N] [--together] [--stalled N] [--blockers N] [--feed FILE]
            [--messages N] [--rate N] [--hold SECONDS] [--cpu N] [--sleep]
      runs the load client against any server that does the same job, with
      --window messages in flight, or --rate messages per second

  bench exec [--cpu N] -- PROGRAM ...
      runs any program on some CPUs, with the highest descriptor limit";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let outcome = match command.as_str() {
        "run" => Options::parse(args, run::OPTIONS).and_then(|o| run::run(&o)),
        "compression" => {
            Options::parse(args, run::ALTERNATING_OPTIONS).and_then(|o| run::compression(&o))
        }
        "tls" => Options::parse(args, run::ALTERNATING_OPTIONS).and_then(|o| run::tls(&o)),
        "costs" => Options::parse(args, run::COSTS_OPTIONS).and_then(|o| run::costs(&o)),
        "cluster" => Options::parse(args, run::CLUSTER_OPTIONS).and_then(|o| run::cluster(&o)),
        "jitter" => Options::parse(args, run::JITTER_OPTIONS).and_then(|o| run::jitter(&o)),
        "join" => Options::parse(args, run::JOIN_OPTIONS).and_then(|o| run::join(&o)),
        "keyed" => Options::parse(args, run::KEYED_OPTIONS).and_then(|o| run::keyed(&o)),
        "size" => Options::parse(args, run::SIZE_OPTIONS).and_then(|o| run::size(&o)),
        "cores" => Options::parse(args, run::CORES_OPTIONS).and_then(|o| run::cores(&o)),
        "start" => Options::parse(args, run::START_OPTIONS).and_then(|o| run::start(&o)),
        "report" => Options::parse(args, run::REPORT_OPTIONS).and_then(|o| run::report(&o)),
        "floor" => Options::parse(args, floor::OPTIONS).and_then(|o| serve_floor(&o)),
        "subject" => Options::parse(args, subject::OPTIONS).and_then(|o| serve_subject(&o)),
        "node" => Options::parse(args, node::OPTIONS).and_then(|o| node::serve(&o, settle(&o)?)),
        "history" => Options::parse(args, run::HISTORY_OPTIONS)
            .and_then(|o| run::serve_history(&o, settle(&o)?)),
        "members" => Options::parse(args, run::MEMBERS_OPTIONS)
            .and_then(|o| run::serve_members(&o, settle(&o)?)),
        "crowd" => {
            Options::parse(args, run::CROWD_OPTIONS).and_then(|o| run::serve_crowd(&o, settle(&o)?))
        }
        "load" => Options::parse(args, load::OPTIONS).and_then(|o| load::command(&o)),
        "exec" => Options::parse(args, EXEC_OPTIONS).and_then(|o| exec(&o)),
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

/// Runs the floor; returns only on failure.
fn serve_floor(options: &Options) -> io::Result<()> {
    let mode = if options.flag("ring") {
        floor::FloorMode::Ring
    } else if options.flag("joined") {
        floor::FloorMode::Joined
    } else if options.flag("two-threads") {
        floor::FloorMode::TwoThreads
    } else {
        floor::FloorMode::Single
    };
    let job = Job::of(options)?;
    floor::serve(job, settle(options)?, mode)
}

/// Runs humphrey_ws; returns only on failure.
fn serve_subject(options: &Options) -> io::Result<()> {
    let settings = subject::Settings::of(options)?;
    if options.flag("ring") {
        // Otherwise the library would silently work without a ring.
        floor::check_ring()?;
    }
    if options.flag("ring") != cfg!(feature = "io-uring") {
        let text = "--ring needs a build with --features io-uring, and such a build needs --ring";
        return Err(args::invalid(text.into()));
    }
    let job = Job::of(options)?;
    subject::serve(job, settle(options)?, &settings)
}

/// Applies the options that all servers and `members` share; returns the address to listen on, or to connect to.
fn settle(options: &Options) -> io::Result<SocketAddrV4> {
    let address = options.number("address", SocketAddrV4::new([127, 0, 0, 1].into(), 0))?;
    if options.flag("child") {
        machine::die_with_parent()?;
    }
    // Before other threads are started, so that they inherit it.
    if let Some(cpus) = options.cpus("cpu")? {
        machine::pin(&cpus)?;
    }
    machine::raise_descriptor_limit()?;
    Ok(address)
}

const EXEC_OPTIONS: &[args::OptionSpec] = &[args::value("cpu")];

/// Replaces this process by another program, which is killed when its parent ends.
fn exec(options: &Options) -> io::Result<()> {
    use std::os::unix::process::CommandExt as _;
    let [program, rest @ ..] = options.command() else {
        return Err(args::invalid(
            "the program is missing: bench exec [--cpu N] -- PROGRAM ...".into(),
        ));
    };
    machine::die_with_parent()?;
    if let Some(cpus) = options.cpus("cpu")? {
        machine::pin(&cpus)?;
    }
    machine::raise_descriptor_limit()?;
    let error = std::process::Command::new(program).args(rest).exec();
    Err(io::Error::new(error.kind(), format!("{program}: {error}")))
}

/// Prints the address that the server listens on.
fn ready(address: std::net::SocketAddr) -> io::Result<()> {
    use io::Write;
    let mut out = io::stdout().lock();
    writeln!(out, "READY {address}")?;
    out.flush()
}
