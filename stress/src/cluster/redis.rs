//! The Redis server of a scenario, on a free port of this machine.

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::check::{DEADLINE, During, Failure, Outcome, ensure};
use crate::machine;

/// The hidden command that executes a program which is killed when this one ends.
pub(crate) const COMMAND: &str = "execute";

/// The variable with the path of the server. If it is set, scenarios fail if the server can't be started.
const VARIABLE: &str = "HUMPHREY_WS_REDIS_SERVER";
/// Number of ports that are tried. Another process may take a port before the server does.
const PORTS: usize = 20;
/// The time for replies to commands; the server may be busy with the load.
const REPLY_MAX: Duration = Duration::from_secs(10);

/// Replaces this process by a program. Returns only if that failed.
pub(crate) fn execute(mut args: impl Iterator<Item = String>) -> Outcome {
    machine::die_with_parent()?;
    let program = args.next().unwrap_or_default();
    let error = Command::new(&program).args(args).exec();
    Err(error).during(program)
}

/// A running server without persistence, unless options say otherwise. It is killed, and its files are removed, when this is
/// dropped.
#[derive(Debug)]
pub(crate) struct Redis {
    program: String,
    child: Option<Child>,
    port: u16,
    directory: PathBuf,
    options: Vec<&'static str>,
}

impl Redis {
    /// Starts a server with further options. Returns `None` if `redis-server` is not installed, and says so on standard
    /// error.
    pub(crate) fn start(scenario: &str, options: &[&'static str]) -> Outcome<Option<Self>> {
        let required = env::var(VARIABLE).ok();
        let program = required.clone().unwrap_or_else(|| "redis-server".into());
        let version = Command::new(&program)
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        if let Err(error) = version {
            ensure!(required.is_none(), "{program} can't be started: {error}");
            eprintln!(
                "NOT TESTED: {scenario} needs redis-server, which is not installed ({error}). Install it, or set {VARIABLE} \
                 to its path."
            );
            return Ok(None);
        }
        for _ in 0..PORTS {
            let port = free_port()?;
            let name = format!("humphrey_ws-stress-redis-{}-{port}", std::process::id());
            let directory = env::temp_dir().join(name);
            fs::create_dir_all(&directory)?;
            let mut server = Self {
                program: program.clone(),
                child: None,
                port,
                directory,
                options: options.to_vec(),
            };
            if server.run()? {
                return Ok(Some(server));
            }
        }
        Err(Failure::new(format!("{program} ends at once")))
    }

    /// Runs the server. Returns whether it has started.
    fn run(&mut self) -> Outcome<bool> {
        let this = env::current_exe().during("finding this program")?;
        let child = Command::new(this)
            .args([COMMAND, &self.program])
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--loglevel", "warning"])
            .arg("--dir")
            .arg(&self.directory)
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .during("starting Redis")?;
        // Another server may have taken the port.
        let process = format!("process_id:{}\r", child.id());
        let child = self.child.insert(child);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let begun = Instant::now();
        while begun.elapsed() < DEADLINE {
            if child.try_wait()?.is_some() {
                return Ok(false);
            }
            let is_ready = |command: &str, sign: &str| {
                execute_at(address, &[command]).is_ok_and(|reply| reply.contains(sign))
            };
            // It may answer before it has loaded its data.
            if is_ready("INFO", &process) && is_ready("PING", "+PONG") {
                return Ok(true);
            }
            thread::sleep(Duration::from_millis(2));
        }
        Err(Failure::new(format!("{} does not answer", self.program)))
    }

    /// The URL for `Cluster`.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Kills the server with SIGKILL.
    pub(crate) fn kill(&mut self) -> Outcome {
        if let Some(mut child) = self.child.take() {
            child.kill().during("killing Redis")?;
            child.wait().during("waiting for Redis")?;
        }
        Ok(())
    }

    /// Starts the server again, on the same port and with the files of before. Returns when it answers.
    pub(crate) fn start_again(&mut self) -> Outcome {
        for _ in 0..PORTS {
            if self.run()? {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Err(Failure::new(format!("{} ends at once", self.program)))
    }

    /// Stops or continues the process of the server; its connections stay open.
    pub(crate) fn signal(&self, signal: Signal) -> Outcome {
        let child = self.child.as_ref();
        let child = child.ok_or_else(|| Failure::new("Redis does not run"))?;
        kill_process(Pid::from_child(child), signal).during("sending a signal to Redis")
    }

    /// Executes a command on a connection of its own, and returns the bytes of the reply as text.
    pub(crate) fn command(&self, arguments: &[&str]) -> Outcome<String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let reply = execute_at(address, arguments).during(arguments.join(" "))?;
        ensure!(
            !reply.starts_with('-'),
            "Redis refuses {}: {reply}",
            arguments.join(" ")
        );
        Ok(reply)
    }

    /// A number of the server's `INFO`.
    pub(crate) fn info(&self, name: &str) -> Outcome<u64> {
        let info = self.command(&["INFO"])?;
        let value = info
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let value = value.and_then(|value| value.trim().parse().ok());
        value.ok_or_else(|| Failure::new(format!("INFO of Redis has no number {name}")))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only if the process has already been waited for.
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn execute_at(address: SocketAddr, arguments: &[&str]) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, REPLY_MAX)?;
    stream.set_read_timeout(Some(REPLY_MAX))?;
    let mut bytes = format!("*{}\r\n", arguments.len());
    for argument in arguments {
        bytes += &format!("${}\r\n{argument}\r\n", argument.len());
    }
    stream.write_all((bytes + "QUIT\r\n").as_bytes())?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    Ok(String::from_utf8_lossy(&reply).into_owned())
}

fn free_port() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}
