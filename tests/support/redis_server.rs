//! A Redis server of a test's own, on a free port of this machine.

#![allow(dead_code)] // Each test file uses some of it.

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The maximum time that a server may take to start. It is ample even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);
/// The variable with the path of the server. If it is set, tests fail if the server can't be started.
const VARIABLE: &str = "HUMPHREY_WS_REDIS_SERVER";

/// A running server without persistence, unless options say otherwise. It is killed, and its files are removed, when this
/// is dropped.
pub(crate) struct RedisServer {
    program: String,
    child: Option<Child>,
    port: u16,
    /// A further port, for connections with TLS.
    tls_port: Option<u16>,
    directory: PathBuf,
    options: Vec<String>,
}

impl RedisServer {
    /// Starts a server with further options, such as `["--appendonly", "yes"]`; none may demand a password. Returns `None`
    /// if `redis-server` is not installed, and says so on standard error, so that the test can pass without.
    pub(crate) fn start(options: &[&str]) -> Option<Self> {
        Self::start_on(options, false)
    }

    /// Starts a server that also has a port for TLS. Its options name the files of its certificate.
    pub(crate) fn start_tls(options: &[&str]) -> Option<Self> {
        Self::start_on(options, true)
    }

    fn start_on(options: &[&str], has_tls: bool) -> Option<Self> {
        let required = env::var(VARIABLE).ok();
        let program = required.clone().unwrap_or_else(|| "redis-server".into());
        let version = Command::new(&program)
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        if let Err(error) = version {
            assert!(required.is_none(), "{program} can't be started: {error}");
            let test = thread::current().name().unwrap_or("?").to_owned();
            // Written directly, since the output of tests that pass is not shown.
            let _ = writeln!(
                io::stderr(),
                "NOT TESTED: {test} needs redis-server, which is not installed ({error}). Install it, or set {VARIABLE} to its path."
            );
            return None;
        }
        let options: Vec<String> = options.iter().map(|option| (*option).into()).collect();
        // Another process may take the port before the server does. With `--cluster-enabled yes`, a port that is higher
        // by 10,000 must be free, too.
        for _ in 0..20 {
            let mut server = Self {
                program: program.clone(),
                child: None,
                port: free_port(),
                tls_port: has_tls.then(free_port),
                directory: new_directory(),
                options: options.clone(),
            };
            if server.run() {
                return Some(server);
            }
        }
        panic!("{program} ends at once");
    }

    /// Runs the server. Returns whether it has started.
    fn run(&mut self) -> bool {
        let tls_port = self.tls_port.unwrap_or(0).to_string();
        let tls: &[&str] = match self.tls_port {
            Some(_) => &["--tls-port", &tls_port],
            // A server that was built without TLS does not know the option.
            None => &[],
        };
        let child = Command::new(&self.program)
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--loglevel", "warning"])
            .arg("--dir")
            .arg(&self.directory)
            .args(tls)
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the server can be executed");
        let process = format!("process_id:{}\r", child.id());
        self.child = Some(child);
        let until = Instant::now() + DEADLINE;
        while Instant::now() < until {
            let child = self.child.as_mut().expect("it was just set");
            if child.try_wait().expect("it is our child").is_some() {
                return false;
            }
            let is_ready = |command: &str, sign: &str| {
                self.try_command(&[command])
                    .is_ok_and(|reply| reply.contains(sign))
            };
            // It may answer before it has loaded its data.
            if is_ready("INFO", &process) && is_ready("PING", "+PONG") {
                return true;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("{} does not answer", self.program);
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Returns the URL for [`Cluster`](humphrey_ws::Cluster).
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Returns the URL for a connection with TLS, with this host and these credentials (`user:password@`, or nothing).
    pub(crate) fn tls_url(&self, credentials: &str, host: &str) -> String {
        let port = self.tls_port.expect("the server has TLS");
        format!("rediss://{credentials}{host}:{port}")
    }

    /// Kills the server with SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it is our child");
            child.wait().expect("it is our child");
        }
    }

    /// Starts the server again, on the same port and with the files of before.
    pub(crate) fn restart(&mut self) {
        self.kill();
        // Meanwhile another process may have taken the port for a moment.
        for _ in 0..20 {
            if self.run() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("{} ends at once", self.program);
    }

    /// Stops the process of the server; its connections stay open.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Continues the process of the server after [`freeze`](Self::freeze).
    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let child = self.child.as_ref().expect("the server runs");
        let status = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(status.is_ok_and(|status| status.success()), "kill {signal}");
    }

    /// Executes a command on a connection of its own, and returns the bytes of the reply as text.
    pub(crate) fn command(&self, arguments: &[&str]) -> String {
        self.try_command(arguments).expect("the server answers")
    }

    fn try_command(&self, arguments: &[&str]) -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.address(), DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut bytes = format!("*{}\r\n", arguments.len());
        for argument in arguments {
            bytes += &format!("${}\r\n{argument}\r\n", argument.len());
        }
        stream.write_all((bytes + "QUIT\r\n").as_bytes())?;
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply)?;
        let reply = String::from_utf8_lossy(&reply).into_owned();
        Ok(reply.strip_suffix("+OK\r\n").unwrap_or(&reply).to_owned())
    }
}

impl RedisServer {
    /// The program that is started.
    pub(crate) fn program() -> String {
        env::var(VARIABLE).unwrap_or_else(|_| "redis-server".into())
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A test that has failed should show why.
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}

fn new_directory() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("humphrey_ws-redis-{}-{number}", std::process::id());
    let directory = env::temp_dir().join(name);
    fs::create_dir_all(&directory).expect("the directory for tests can be written");
    directory
}
