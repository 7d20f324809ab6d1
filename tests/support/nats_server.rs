//! A NATS server of a test's own, on a free port of this machine.

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
const VARIABLE: &str = "HUMPHREY_WS_NATS_SERVER";

/// A running server. It is killed when this is dropped.
pub(crate) struct NatsServer {
    program: String,
    child: Option<Child>,
    port: u16,
    config: PathBuf,
}

impl NatsServer {
    /// Starts a server with further lines of its configuration file. Returns `None` if `nats-server` is not installed, and says so
    /// on standard error, so that the test can pass without.
    pub(crate) fn start(config: &str) -> Option<Self> {
        let required = env::var(VARIABLE).ok();
        let program = required.clone().unwrap_or_else(|| "nats-server".into());
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
                "NOT TESTED: {test} needs nats-server, which is not installed ({error}). Install it, or set {VARIABLE} to its path."
            );
            return None;
        }
        let path = new_file();
        fs::write(&path, config).expect("the directory for tests can be written");
        // Another process may take the port before the server does.
        for _ in 0..20 {
            let mut server = Self {
                program: program.clone(),
                child: None,
                port: free_port(),
                config: path.clone(),
            };
            if server.run() {
                return Some(server);
            }
        }
        panic!("{program} ends at once");
    }

    /// Runs the server. Returns whether it has started.
    fn run(&mut self) -> bool {
        let child = Command::new(&self.program)
            .args(["-a", "127.0.0.1", "-p", &self.port.to_string(), "-c"])
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server can be executed");
        self.child = Some(child);
        let until = Instant::now() + DEADLINE;
        while Instant::now() < until {
            let child = self.child.as_mut().expect("it was just set");
            if child.try_wait().expect("it is our child").is_some() {
                return false;
            }
            if self.greets().is_ok_and(|greets| greets) {
                return true;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("{} does not answer", self.program);
    }

    fn greets(&self) -> io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&self.address(), DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut first = [0; 5];
        stream.read_exact(&mut first)?;
        Ok(&first == b"INFO ")
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Returns the URL for [`Cluster`](humphrey_ws::Cluster).
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Kills the server with SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it is our child");
            child.wait().expect("it is our child");
        }
    }

    /// Starts the server again, on the same port.
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
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A test that has failed should show why.
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_file(&self.config);
    }
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}

fn new_file() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("humphrey_ws-nats-{}-{number}.conf", std::process::id());
    env::temp_dir().join(name)
}
