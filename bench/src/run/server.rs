//! A server as a child process, which is killed when its handle is dropped.

use std::io::{self, BufRead, BufReader, PipeReader, Read};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};

use super::Setup;
use super::workload::{ServerKind, Workload};
use crate::machine;

/// Timeout for a server to start listening.
const PATIENCE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// Where a server prints its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressOutput {
    /// Nowhere: it listens on this address, which it was told.
    Given(SocketAddrV4),
    /// As the line `READY 127.0.0.1:PORT`.
    Stdout,
    /// As a URL.
    Stderr,
}

pub(super) struct Server {
    child: Child,
    pub(super) address: SocketAddrV4,
    /// Whether it is paused while other servers are measured.
    pauses: bool,
    /// The proxy in front of it, whose CPU time and memory count, too.
    proxy: Option<Child>,
}

impl Server {
    /// Starts a server on a free port, with `feed` as its standard input.
    pub(super) fn start(
        setup: &Setup,
        kind: ServerKind,
        work: &Workload,
        cpus: &str,
        feed: Option<PipeReader>,
    ) -> io::Result<Self> {
        let mut command;
        let mut output = AddressOutput::Stdout;
        match kind {
            ServerKind::Floor(_) | ServerKind::Subject(_) => {
                command = Command::new(setup.program_of(kind));
                command.args(setup.stands_for(kind).arguments(work));
                command.args(["--child", "--cpu", cpus]);
            }
            ServerKind::Program { .. } | ServerKind::Peer(_) => {
                let words = match kind {
                    ServerKind::Peer(peer) => {
                        let address = free_address()?;
                        if peer.is_given() {
                            output = AddressOutput::Given(address);
                        }
                        setup.peers.command(peer, work.job, address.port())
                    }
                    _ => {
                        output = AddressOutput::Stderr;
                        let keeps_history = ServerKind::Program {
                            keeps_history: true,
                        };
                        program(setup, kind == keeps_history)?
                    }
                };
                command = Command::new(&setup.program);
                command.args(["exec", "--cpu", cpus, "--"]).args(words);
            }
        }
        let pauses = matches!(kind, ServerKind::Peer(_));
        Self::launch(&mut command, feed, output, pauses, &kind.name())
    }

    /// Starts a server with this command. With `pauses`, the bench pauses it while it measures other servers.
    pub(super) fn launch(
        command: &mut Command,
        feed: Option<PipeReader>,
        output: AddressOutput,
        pauses: bool,
        name: &str,
    ) -> io::Result<Self> {
        let pipe = |piped: bool, other: fn() -> Stdio| if piped { Stdio::piped() } else { other() };
        let mut child = command
            .stdin(feed.map_or(Stdio::null(), Stdio::from))
            .stdout(pipe(output == AddressOutput::Stdout, Stdio::null))
            .stderr(pipe(output == AddressOutput::Stderr, Stdio::inherit))
            .spawn()?;
        let address = match output {
            AddressOutput::Stdout => child.stdout.take().map(|out| ready(out, "READY ")),
            AddressOutput::Stderr => child.stderr.take().map(|out| ready(out, "ws://")),
            AddressOutput::Given(address) => Some(accepts(address, &mut child)),
        };
        match address.unwrap_or_else(|| Err(io::Error::other("no pipe"))) {
            Ok(address) => Ok(Self {
                child,
                address,
                pauses,
                proxy: None,
            }),
            Err(error) => {
                end(&mut child);
                let text = format!("{name} did not start: {error}");
                Err(io::Error::new(error.kind(), text))
            }
        }
    }

    /// Starts a server that is told to listen on `address`, and does not wait until it does.
    pub(super) fn spawn(command: &mut Command, address: SocketAddrV4) -> io::Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()?;
        Ok(Self {
            child,
            address,
            pauses: false,
            proxy: None,
        })
    }

    /// Puts a proxy in front of this server. Its clients then connect to the proxy's address.
    pub(super) fn behind(self, proxy: Child, address: SocketAddrV4) -> Self {
        let mut server = self;
        server.proxy = Some(proxy);
        server.address = address;
        server
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn pids(&self) -> impl Iterator<Item = u32> {
        let proxy = self.proxy.as_ref().map(Child::id);
        [self.pid()].into_iter().chain(proxy)
    }

    /// CPU time that it has used so far, as [`machine::cpu_seconds`], with its proxy.
    pub(super) fn cpu_seconds(&self) -> io::Result<f64> {
        self.pids().map(machine::cpu_seconds).sum()
    }

    /// Resident memory in bytes, with its proxy.
    pub(super) fn resident(&self) -> io::Result<u64> {
        self.pids().map(machine::resident).sum()
    }

    /// Pauses a peer, which might poll or collect garbage while others are measured.
    pub(super) fn pause(&self) -> io::Result<()> {
        self.signal(Signal::STOP)
    }

    pub(super) fn go_on(&self) -> io::Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match i32::try_from(self.pid()).ok().and_then(Pid::from_raw) {
            Some(pid) if self.pauses => Ok(kill_process(pid, signal)?),
            _ => Ok(()),
        }
    }
}

/// The command of `humphrey-broadcast`, which `run` has built next to this program.
fn program(setup: &Setup, keeps_history: bool) -> io::Result<Vec<PathBuf>> {
    let path = setup.program.with_file_name("humphrey-broadcast");
    if !path.exists() {
        return Err(io::Error::other(format!("there is no {}", path.display())));
    }
    // A welcome message would be unexpected, and so would pings, which begin after some seconds. Like the other servers of
    // the table, it loses nothing.
    let words = [
        "--listen=127.0.0.1:0",
        "--no-welcome",
        "--heartbeat=0",
        "--slow-client=pace",
    ];
    let history = (!keeps_history).then_some("--history=0");
    let words = words.into_iter().chain(history).map(PathBuf::from);
    Ok([path].into_iter().chain(words).collect())
}

impl Drop for Server {
    fn drop(&mut self) {
        self.proxy.iter_mut().for_each(end);
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // Both fail only if the process has already been waited for.
    let _ = child.kill();
    let _ = child.wait();
}

/// Waits for the line that contains `word` and then the server's address.
fn ready(out: impl Read + std::os::fd::AsFd, word: &str) -> io::Result<SocketAddrV4> {
    if poll(&mut [PollFd::new(&out, PollFlags::IN)], Some(&PATIENCE))? == 0 {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "it did not print its address",
        ));
    }
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    address_in(&line, word).ok_or_else(|| io::Error::other(format!("it said {line:?}")))
}

/// An address of this machine that nothing listens on, for servers that can't report a port that the kernel chose.
pub(super) fn free_address() -> io::Result<SocketAddrV4> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}

/// Waits until the server accepts connections at its address. Fails if another process does, since the bench measures only
/// the one that it has started.
fn accepts(address: SocketAddrV4, child: &mut Child) -> io::Result<SocketAddrV4> {
    let end = Instant::now() + Duration::from_secs(PATIENCE.tv_sec as u64);
    loop {
        match TcpStream::connect(address) {
            Ok(_) if machine::listens(child.id(), address.port())? => return Ok(address),
            Ok(_) => {
                let text = format!(
                    "another process than the one that the bench has started listens at {address}, and only the CPU time of \
                     the latter is measured; if it is a script, start the server in it with exec"
                );
                return Err(io::Error::other(text));
            }
            Err(error) if Instant::now() >= end => return Err(error),
            Err(_) => {}
        }
        if let Some(status) = child.try_wait()? {
            return Err(io::Error::other(format!("it ended: {status}")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn address_in(line: &str, word: &str) -> Option<SocketAddrV4> {
    let (_, rest) = line.split_once(word)?;
    let address = rest.trim().trim_end_matches('/');
    address.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn address_is_found_in_server_output() {
        let ours = address_in("READY 127.0.0.1:4000\n", "READY ");
        assert_eq!(ours, "127.0.0.1:4000".parse().ok());
        let line = "open http://127.0.0.1:80/ in a browser, or connect to ws://127.0.0.1:80/\n";
        assert_eq!(address_in(line, "ws://"), "127.0.0.1:80".parse().ok());
        assert_eq!(address_in("listen EADDRINUSE", "READY "), None);
    }
    #[test]
    fn server_of_another_process_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let Ok(SocketAddr::V4(address)) = listener.local_addr() else {
            panic!("no address of IPv4");
        };
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let outcome = accepts(address, &mut child);
        end(&mut child);
        let text = outcome.unwrap_err().to_string();
        assert!(text.contains("another process"), "{text}");
    }
}
