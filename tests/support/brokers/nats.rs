//! A NATS server of a test's own, on a free port of this machine.

use std::env;
use std::fs;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::TestBroker;
use super::process::{DEADLINE, ServerProcess, on_free_port};

/// A running server. It is killed when this is dropped.
pub(crate) struct NatsServer {
    process: ServerProcess,
    port: u16,
    config: PathBuf,
}

impl NatsServer {
    /// Starts a server with further lines of its configuration file. Returns `None` if `nats-server` is not installed, and says so
    /// on standard error, so that the test can pass without.
    pub(crate) fn start(config: &str) -> Option<Self> {
        let program = ServerProcess::program("nats-server", "HUMPHREY_WS_NATS_SERVER")?;
        let file = new_file();
        fs::write(&file, config).expect("the directory for tests can be written");
        Some(on_free_port(|port| {
            let (program, config) = (program.clone(), file.clone());
            let command = move || {
                let mut command = Command::new(&program);
                command
                    .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-c"])
                    .arg(&config);
                command
            };
            let is_ready = move |_: &_| greets(address(port)).is_ok_and(|greets| greets);
            Some(Self {
                process: ServerProcess::run(command, is_ready)?,
                port,
                config: file.clone(),
            })
        }))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        address(self.port)
    }

    /// Returns the URL for [`Cluster`](humphrey_ws::Cluster).
    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address())
    }
}

impl TestBroker for NatsServer {
    fn start() -> Option<Self> {
        Self::start("")
    }

    fn url(&self) -> String {
        self.url()
    }
}

impl Deref for NatsServer {
    type Target = ServerProcess;

    fn deref(&self) -> &ServerProcess {
        &self.process
    }
}

impl DerefMut for NatsServer {
    fn deref_mut(&mut self) -> &mut ServerProcess {
        &mut self.process
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.config);
    }
}

/// Whether a NATS server listens at an address: it speaks first.
fn greets(address: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut first = [0; 5];
    stream.read_exact(&mut first)?;
    Ok(&first == b"INFO ")
}

fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn new_file() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("humphrey_ws-nats-{}-{number}.conf", std::process::id());
    env::temp_dir().join(name)
}
