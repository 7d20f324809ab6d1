//! A Redis server of the bench's own, without persistence, on a free port of 127.0.0.1.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::machine;

/// The server, unless `--redis` names another.
pub(super) const PROGRAM: &str = "redis-server";

/// Maximum time for the server to start.
const PATIENCE: Duration = Duration::from_secs(10);
/// Number of ports that are tried. Another process may take a port before the server does.
const PORTS: usize = 5;

/// A running server, which is killed when its handle is dropped.
pub(super) struct Redis {
    program: String,
    bench: PathBuf,
    cpus: String,
    child: Child,
    port: u16,
    directory: PathBuf,
}

impl Redis {
    /// Starts a server on these CPUs. `program` is its name or path; `bench` is the path of the bench, which executes it.
    ///
    /// # Errors
    ///
    /// If the program cannot be executed, or does not answer.
    pub(super) fn start(program: &str, bench: &Path, cpus: &str) -> io::Result<Self> {
        let version = Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        version.map_err(|error| {
            let text = format!(
                "{program}: {error}. Install Redis, or name its server with --redis PROGRAM"
            );
            io::Error::new(error.kind(), text)
        })?;
        for _ in 0..PORTS {
            let port = free_port()?;
            let name = format!("humphrey_ws-bench-redis-{}-{port}", std::process::id());
            let directory = std::env::temp_dir().join(name);
            fs::create_dir_all(&directory)?;
            let mut redis = Self {
                child: spawn(program, bench, cpus, port, &directory)?,
                program: program.into(),
                bench: bench.into(),
                cpus: cpus.into(),
                port,
                directory,
            };
            if redis.has_started()? {
                return Ok(redis);
            }
        }
        Err(io::Error::other(format!("{program} ends at once")))
    }

    /// Kills the server, and starts it again on the same port.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = spawn(
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
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// CPU time in seconds that the server has used so far.
    pub(super) fn cpu_seconds(&self) -> io::Result<f64> {
        machine::cpu_seconds(self.child.id())
    }

    /// The version, as the server states it.
    pub(super) fn version(&self) -> io::Result<String> {
        let info = self.info()?;
        let version = info
            .lines()
            .find_map(|line| line.strip_prefix("redis_version:"));
        Ok(version.unwrap_or("unknown").trim().to_owned())
    }

    /// Waits until the server answers. Returns `false` if it has ended.
    fn has_started(&mut self) -> io::Result<bool> {
        let begun = Instant::now();
        // Another server may have taken the port.
        let sign = format!("process_id:{}\r", self.child.id());
        while self.child.try_wait()?.is_none() {
            if self.info().is_ok_and(|info| info.contains(&sign)) {
                return Ok(true);
            }
            if begun.elapsed() >= PATIENCE {
                let text = format!("the Redis server did not answer within {PATIENCE:?}");
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
        stream.write_all(b"INFO server\r\nQUIT\r\n")?;
        let mut info = String::new();
        stream.read_to_string(&mut info)?;
        Ok(info)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // They fail only if the process has already been waited for, or if there is no directory.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn spawn(
    program: &str,
    bench: &Path,
    cpus: &str,
    port: u16,
    directory: &Path,
) -> io::Result<Child> {
    Command::new(bench)
        // The server is killed with the bench.
        .args(["exec", "--cpu", cpus, "--", program])
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no", "--loglevel", "warning"])
        .arg("--dir")
        .arg(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
}

fn free_port() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}
