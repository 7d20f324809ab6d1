//! A broker server of the bench's own, on a free port of 127.0.0.1: Redis without persistence, or NATS.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::server::free_address;
use crate::args::Options;
use crate::machine;

/// The server, unless `--redis` names another.
pub(super) const REDIS: &str = "redis-server";

/// The broker that `--redis` or `--nats` names, and its server.
pub(super) fn chosen(options: &Options) -> (BrokerKind, String) {
    match (options.text("nats"), options.text("redis")) {
        (Some(server), _) => (BrokerKind::Nats, server.into()),
        (None, server) => (BrokerKind::Redis, server.unwrap_or(REDIS).into()),
    }
}

/// The kinds of brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BrokerKind {
    Redis,
    Nats,
}

/// Maximum time for the server to start.
const PATIENCE: Duration = Duration::from_secs(10);
/// Number of ports that are tried. Another process may take a port before the server does.
const PORTS: usize = 5;

/// A running server, which is killed when its handle is dropped.
pub(super) struct Broker {
    kind: BrokerKind,
    program: String,
    bench: PathBuf,
    cpus: String,
    child: Child,
    port: u16,
    directory: PathBuf,
}

impl Broker {
    /// Starts a server on these CPUs. `program` is its name or path; `bench` is the path of the bench, which executes it.
    ///
    /// # Errors
    ///
    /// If the program cannot be executed, or does not answer.
    pub(super) fn start(
        kind: BrokerKind,
        program: &str,
        bench: &Path,
        cpus: &str,
    ) -> io::Result<Self> {
        let version = Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        version.map_err(|error| {
            let text = match kind {
                BrokerKind::Redis => "Install Redis, or name its server with --redis PROGRAM",
                BrokerKind::Nats => "Install NATS, or name its server with --nats PROGRAM",
            };
            let text = format!("{program}: {error}. {text}");
            io::Error::new(error.kind(), text)
        })?;
        for _ in 0..PORTS {
            let port = free_address()?.port();
            let name = format!("humphrey_ws-bench-broker-{}-{port}", std::process::id());
            let directory = std::env::temp_dir().join(name);
            fs::create_dir_all(&directory)?;
            let mut broker = Self {
                kind,
                child: spawn(kind, program, bench, cpus, port, &directory)?,
                program: program.into(),
                bench: bench.into(),
                cpus: cpus.into(),
                port,
                directory,
            };
            if broker.has_started()? {
                return Ok(broker);
            }
        }
        Err(io::Error::other(format!("{program} ends at once")))
    }

    /// Kills the server, and starts it again on the same port.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = spawn(
            self.kind,
            &self.program,
            &self.bench,
            &self.cpus,
            self.port,
            &self.directory,
        )?;
        match self.has_started()? {
            true => Ok(()),
            false => Err(io::Error::other(format!("{} ends at once", self.program))),
        }
    }

    /// The URL for `Cluster`.
    pub(super) fn url(&self) -> String {
        match self.kind {
            BrokerKind::Redis => format!("redis://127.0.0.1:{}", self.port),
            BrokerKind::Nats => format!("nats://127.0.0.1:{}", self.port),
        }
    }

    /// CPU time in seconds that the server has used so far.
    pub(super) fn cpu_seconds(&self) -> io::Result<f64> {
        machine::cpu_seconds(self.child.id())
    }

    /// The name and the version, as the server states it.
    pub(super) fn version(&self) -> io::Result<String> {
        let info = self.info()?;
        let (name, version) = match self.kind {
            BrokerKind::Redis => {
                let mut lines = info.lines();
                (
                    "Redis",
                    lines.find_map(|line| line.strip_prefix("redis_version:")),
                )
            }
            BrokerKind::Nats => {
                let version = info.split_once("\"version\":\"");
                let version = version.and_then(|(_, rest)| rest.split('"').next());
                ("NATS", version)
            }
        };
        Ok(format!("{name} {}", version.unwrap_or("unknown").trim()))
    }

    /// Waits until the server answers. Returns `false` if it has ended.
    fn has_started(&mut self) -> io::Result<bool> {
        let begun = Instant::now();
        // Another server may have taken the port.
        let sign = match self.kind {
            BrokerKind::Redis => format!("process_id:{}\r", self.child.id()),
            BrokerKind::Nats => format!("\"port\":{},", self.port),
        };
        while self.child.try_wait()?.is_none() {
            if self.info().is_ok_and(|info| info.contains(&sign)) {
                return Ok(true);
            }
            if begun.elapsed() >= PATIENCE {
                let text = format!("the broker server did not answer within {PATIENCE:?}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(false)
    }

    fn info(&self) -> io::Result<String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut info = String::new();
        match self.kind {
            BrokerKind::Redis => {
                stream.write_all(b"INFO server\r\nQUIT\r\n")?;
                stream.read_to_string(&mut info)?;
            }
            // It speaks first.
            BrokerKind::Nats => {
                BufReader::new(stream).read_line(&mut info)?;
            }
        }
        Ok(info)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // They fail only if the process has already been waited for, or if there is no directory.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn spawn(
    kind: BrokerKind,
    program: &str,
    bench: &Path,
    cpus: &str,
    port: u16,
    directory: &Path,
) -> io::Result<Child> {
    let mut command = Command::new(bench);
    // The server is killed with the bench.
    command.args(["exec", "--cpu", cpus, "--", program]);
    match kind {
        BrokerKind::Redis => command
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--loglevel", "warning"])
            .arg("--dir")
            .arg(directory),
        BrokerKind::Nats => command.args(["-a", "127.0.0.1", "-p", &port.to_string()]),
    };
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(match kind {
            BrokerKind::Redis => Stdio::inherit(),
            // Its log.
            BrokerKind::Nats => Stdio::null(),
        })
        .spawn()
}
