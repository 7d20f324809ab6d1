//! `bench handlers`: handlers on the reactors' own threads while they are quick, beside the pool alone.
//!
//! Both servers in turn, as children of their own: what an echo costs, how long a lone message takes, and how many messages
//! per second come back where handlers sleep or work.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddrV4;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use humphrey_ws::AsyncWebsocketApp;

use crate::args::{self, Job, Known, Options};
use crate::load::{Load, Plan, Rooms};
use crate::machine;
use crate::wire::PUBLISH;

pub(crate) const OPTIONS: &[Known] = &[
    args::value("seconds"),
    args::value("rounds"),
    args::value("only"),
    args::value("server-cpu"),
    args::value("modes"),
];

pub(crate) const SERVER_OPTIONS: &[Known] = &[
    args::value("mode"),
    args::value("shards"),
    args::value("micros"),
    args::value("one-in"),
    args::value("cpu"),
    args::flag("works"),
];

const MODES: &str = "pool,adaptive";

#[derive(Clone, Copy)]
enum Measure {
    /// The server's CPU per message, in microseconds.
    Cpu,
    /// The same per delivery, where each message goes to a thousand.
    FanOut,
    /// Microseconds that half of the messages take at most.
    Lone,
    /// Messages per second.
    Rate,
}

struct Scenario {
    name: String,
    measure: Measure,
    shards: usize,
    window: usize,
    micros: u64,
    one_in: u64,
    works: bool,
}

fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    for shards in [1, 2] {
        for window in [1, 16] {
            all.push(Scenario {
                name: format!("echo, {shards} shards, W {window}: CPU us"),
                measure: Measure::Cpu,
                shards,
                window,
                micros: 0,
                one_in: 1,
                works: false,
            });
        }
    }
    for shards in [1, 2] {
        for window in [1, 16] {
            all.push(Scenario {
                name: format!("fan-out, {shards} shards, W {window}: CPU us"),
                measure: Measure::FanOut,
                shards,
                window,
                micros: 0,
                one_in: 1,
                works: false,
            });
        }
    }
    for shards in [1, 2] {
        all.push(Scenario {
            name: format!("lone message, {shards} shards: p50 us"),
            measure: Measure::Lone,
            shards,
            window: 1,
            micros: 0,
            one_in: 1,
            works: false,
        });
    }
    for works in [false, true] {
        let (what, times): (_, &[u64]) = if works {
            ("works", &[15, 50, 500])
        } else {
            ("sleeps", &[100, 1_000, 5_000, 20_000])
        };
        for &micros in times {
            for one_in in [1, 10, 100, 1_000] {
                all.push(Scenario {
                    name: format!("1 in {one_in} {what} {micros} us: per s"),
                    measure: Measure::Rate,
                    shards: 2,
                    window: 1,
                    micros,
                    one_in,
                    works,
                });
            }
        }
    }
    all
}

struct Server {
    child: Child,
    address: SocketAddrV4,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(scenario: &Scenario, mode: &str, cpu: Option<&str>) -> io::Result<Server> {
    let mut command = Command::new(std::env::current_exe()?);
    if mode == "floor" {
        let job = match scenario.measure {
            Measure::FanOut => "fanout",
            _ => "echo",
        };
        command.args(["floor", job, "--child"]);
    } else {
        command.args(["handlers-server", "--mode", mode]);
        command.args(["--shards", &scenario.shards.to_string()]);
        command.args(["--micros", &scenario.micros.to_string()]);
        command.args(["--one-in", &scenario.one_in.to_string()]);
        if scenario.works {
            command.arg("--works");
        }
    }
    if let Some(cpu) = cpu {
        command.args(["--cpu", cpu]);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    let address = line.strip_prefix("READY ").unwrap_or_default().trim();
    match address.parse() {
        Ok(address) => Ok(Server { child, address }),
        Err(_) => Err(io::Error::other(format!("the server said {line:?}"))),
    }
}

pub(crate) fn serve(options: &Options) -> io::Result<()> {
    machine::die_with_parent()?;
    if let Some(cpu) = options.text("cpu") {
        machine::pin(cpu.parse().map_err(|_| args::bad("cpu", cpu))?)?;
    }
    machine::raise_descriptor_limit()?;
    let takes = Duration::from_micros(options.number("micros", 0)?);
    let one_in: u64 = options.number("one-in", 1)?;
    let works = options.flag("works");
    let count = AtomicU64::new(0);
    let mut app = AsyncWebsocketApp::<()>::new_with_config((), 32, 1)
        .with_address("127.0.0.1:0")
        .with_shards(options.number("shards", 1)?)
        .with_adaptive_handlers(options.text("mode") == Some("adaptive"));
    app = if takes.is_zero() {
        app.with_message_handler(|stream, message, _| match stream.path() {
            PUBLISH => stream.broadcast(message),
            _ => stream.send(message),
        })
    } else {
        app.with_message_handler(move |stream, message, _| {
            if count.fetch_add(1, Relaxed).is_multiple_of(one_in) {
                let begun = Instant::now();
                if !works {
                    thread::sleep(takes);
                }
                while works && begun.elapsed() < takes {}
            }
            stream.send(message);
        })
    };
    crate::ready(app.bind()?)?;
    app.run();
    Err(io::Error::other("the server came to an end by itself"))
}

pub(crate) fn command(options: &Options) -> io::Result<()> {
    let seconds: f64 = options.number("seconds", 1.5)?;
    let rounds: usize = options.number("rounds", 3)?;
    let only = options.text("only").unwrap_or_default();
    let modes: Vec<&str> = options.text("modes").unwrap_or(MODES).split(',').collect();
    println!("{}", machine::describe());
    println!("| | {} | ratio to the first |", modes.join(" | "));
    println!("|---|{}---|", "---|".repeat(modes.len()));
    for scenario in scenarios() {
        if !scenario.name.contains(only) {
            continue;
        }
        let mut figures = vec![Vec::new(); modes.len()];
        for _ in 0..rounds {
            for (mode, figures) in modes.iter().zip(&mut figures) {
                let server = start(&scenario, mode, options.text("server-cpu"))?;
                figures.push(measure(&scenario, &server, seconds)?);
            }
        }
        let median = |figures: &mut Vec<f64>| {
            figures.sort_by(f64::total_cmp);
            figures[figures.len() / 2]
        };
        let medians: Vec<f64> = figures.iter_mut().map(median).collect();
        let shown: Vec<String> = medians
            .iter()
            .map(|figure| format!("{figure:.2}"))
            .collect();
        let ratios: Vec<String> = medians[1..]
            .iter()
            .map(|figure| format!("{:.2}", figure / medians[0]))
            .collect();
        println!(
            "| {} | {} | {} |",
            scenario.name,
            shown.join(" | "),
            ratios.join(" ")
        );
    }
    Ok(())
}

fn measure(scenario: &Scenario, server: &Server, seconds: f64) -> io::Result<f64> {
    let clients = match scenario.measure {
        Measure::Lone => 1,
        Measure::Cpu | Measure::Rate => 100,
        Measure::FanOut => 1_000,
    };
    let (job, deliveries) = match scenario.measure {
        Measure::FanOut => (Job::Fanout, clients as f64),
        _ => (Job::Echo, 1.0),
    };
    let plan = Plan {
        job,
        clients,
        rooms: Rooms::default(),
        window: scenario.window,
        size: 32,
        sleep: true,
    };
    let mut load = Load::connect(server.address, plan)?;
    if let Measure::Lone = scenario.measure {
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
            load.deliver(1)?;
        }
        return Ok(load.latencies().summary().p50.as_secs_f64() * 1e6);
    }
    // As many as it takes; those before are for warming up.
    let mut messages = 200;
    loop {
        let pid = server.child.id();
        let (begun, before) = (Instant::now(), machine::cpu_time(pid)?);
        load.deliver(messages)?;
        let took = begun.elapsed().as_secs_f64();
        if took >= seconds {
            let cpu = (machine::cpu_time(pid)? - before).total();
            return Ok(match scenario.measure {
                Measure::Cpu | Measure::FanOut => cpu / messages as f64 / deliveries * 1e6,
                Measure::Rate | Measure::Lone => messages as f64 / took,
            });
        }
        messages = (messages as f64 * (1.2 * seconds / took).clamp(1.2, 10.0)) as u64;
    }
}
