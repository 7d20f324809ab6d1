//! A NATS server of a test's own, on a free port of this machine.

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::TestBroker;
use super::process::{DEADLINE, ServerProcess, on_free_port};

/// A running server. It is killed when this is dropped.
pub(crate) struct NatsServer {
    process: ServerProcess,
    port: u16,
    /// In the configuration: a server that has it from its command line can't be reloaded.
    name: String,
    config: PathBuf,
}

impl NatsServer {
    /// Starts a server with further lines of its configuration file. Returns `None` if `nats-server` is not installed, and says so
    /// on standard error, so that the test can pass without.
    pub(crate) fn start(config: &str) -> Option<Self> {
        let program = ServerProcess::program("nats-server", "HUMPHREY_WS_NATS_SERVER")?;
        let name = new_name();
        let file = env::temp_dir().join(format!("{name}.conf"));
        write(&file, &name, config);
        Some(on_free_port(|port| {
            let (program, config) = (program.clone(), file.clone());
            let command = move || {
                let mut command = Command::new(&program);
                command
                    .args(["-a", "127.0.0.1", "-p", &port.to_string()])
                    .arg("-c")
                    .arg(&config);
                command
            };
            // Another server may have the port.
            let sign = format!("\"server_name\":\"{name}\"");
            let is_ready = move |_: &_| info(address(port)).is_ok_and(|info| info.contains(&sign));
            Some(Self {
                process: ServerProcess::run(command, is_ready)?,
                port,
                name: name.clone(),
                config: file.clone(),
            })
        }))
    }

    /// Replaces the configuration that the next start reads.
    pub(crate) fn configure(&mut self, config: &str) {
        write(&self.config, &self.name, config);
    }

    /// Makes the server read another configuration, without breaking connections.
    pub(crate) fn reload(&mut self, config: &str) {
        self.configure(config);
        self.process.signal("-HUP");
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

fn write(file: &Path, name: &str, config: &str) {
    let config = format!("server_name: \"{name}\"\n{config}\n");
    fs::write(file, config).expect("the directory for tests can be written");
}

/// What the server at an address says first.
fn info(address: SocketAddr) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut info = String::new();
    BufReader::new(stream).read_line(&mut info)?;
    Ok(info)
}

fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn new_name() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("humphrey_ws-nats-{}-{number}", std::process::id())
}
