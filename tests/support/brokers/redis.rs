//! A Redis server of a test's own, on a free port of this machine.

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::TestBroker;
use super::process::{DEADLINE, ServerProcess, free_port, on_free_port};

/// A running server without persistence, unless options say otherwise. It is killed, and its files are removed, when this
/// is dropped.
pub(crate) struct RedisServer {
    process: ServerProcess,
    port: u16,
    /// A further port, for connections with TLS.
    tls_port: Option<u16>,
    directory: PathBuf,
}

/// The options of a server that has each acknowledged write again after it was killed: it hands a write to the operating system
/// before it answers. The disk is not waited for, which could take seconds on a busy machine: only a crash of the machine would
/// need it.
pub(crate) const PERSISTENT: &[&str] = &["--appendonly", "yes", "--appendfsync", "no"];

impl RedisServer {
    /// Starts a server with further options, such as [`PERSISTENT`]; none may demand a password. Returns `None`
    /// if `redis-server` is not installed, and says so on standard error, so that the test can pass without.
    pub(crate) fn start(options: &[&str]) -> Option<Self> {
        Self::start_on(options, false)
    }

    /// Starts a server that also has a port for TLS. Its options name the files of its certificate.
    pub(crate) fn start_tls(options: &[&str]) -> Option<Self> {
        Self::start_on(options, true)
    }

    /// The program to start; see [`ServerProcess::program`].
    pub(super) fn program() -> Option<String> {
        ServerProcess::program("redis-server", "HUMPHREY_WS_REDIS_SERVER")
    }

    fn start_on(options: &[&str], has_tls: bool) -> Option<Self> {
        let program = Self::program()?;
        let options: Vec<String> = options.iter().map(|option| (*option).into()).collect();
        // With `--cluster-enabled yes`, a port that is higher by 10,000 must be free, too.
        Some(on_free_port(|port| {
            let tls_port = has_tls.then(free_port);
            let directory = new_directory();
            let (program, options, within) = (program.clone(), options.clone(), directory.clone());
            let command = move || command(&program, port, tls_port, &within, &options);
            let process = ServerProcess::run(command, move |child| {
                let process = format!("process_id:{}\r", child.id());
                let answers = |command: &str, sign: &str| {
                    execute(address(port), &[command]).is_ok_and(|reply| reply.contains(sign))
                };
                // It may answer before it has loaded its data.
                answers("INFO", &process) && answers("PING", "+PONG")
            })?;
            Some(Self {
                process,
                port,
                tls_port,
                directory,
            })
        }))
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn address(&self) -> SocketAddr {
        address(self.port)
    }

    /// Returns the URL for [`Cluster`](humphrey_ws::Cluster).
    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// Returns the URL for a connection with TLS, with this host and these credentials (`user:password@`, or nothing).
    pub(crate) fn tls_url(&self, credentials: &str, host: &str) -> String {
        let port = self.tls_port.expect("the server has TLS");
        format!("rediss://{credentials}{host}:{port}")
    }

    /// Executes a command on a connection of its own, and returns the bytes of the reply as text.
    pub(crate) fn command(&self, arguments: &[&str]) -> String {
        execute(self.address(), arguments).expect("the server answers")
    }
}

impl TestBroker for RedisServer {
    fn start() -> Option<Self> {
        Self::start(&[])
    }

    fn url(&self) -> String {
        self.url()
    }
}

impl Deref for RedisServer {
    type Target = ServerProcess;

    fn deref(&self) -> &ServerProcess {
        &self.process
    }
}

impl DerefMut for RedisServer {
    fn deref_mut(&mut self) -> &mut ServerProcess {
        &mut self.process
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.process.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn command(
    program: &str,
    port: u16,
    tls_port: Option<u16>,
    directory: &Path,
    options: &[String],
) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no", "--loglevel", "warning"])
        .arg("--dir")
        .arg(directory);
    // A server that was built without TLS does not know the option.
    if let Some(port) = tls_port {
        command.args(["--tls-port", &port.to_string()]);
    }
    command.args(options);
    command
}

/// Executes a command at a Redis server or a Sentinel on a connection of its own, and returns the bytes of the reply as text.
pub(super) fn execute(address: SocketAddr, arguments: &[&str]) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut bytes = format!("*{}\r\n", arguments.len());
    for argument in arguments {
        bytes += &format!("${}\r\n{argument}\r\n", argument.len());
    }
    stream.write_all(bytes.as_bytes())?;
    // The server closes the connection after the reply. Sentinels do not know `QUIT`.
    stream.shutdown(Shutdown::Write)?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    Ok(String::from_utf8_lossy(&reply).into_owned())
}

pub(super) fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

pub(super) fn new_directory() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("humphrey_ws-redis-{}-{number}", std::process::id());
    let directory = env::temp_dir().join(name);
    fs::create_dir_all(&directory).expect("the directory for tests can be written");
    directory
}
