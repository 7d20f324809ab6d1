//! Where the server listens: several addresses, Unix sockets, and sockets that a service manager passes on.
#![cfg(unix)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;
#[cfg(target_os = "linux")]
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use support::shell::Shell;
use support::{Client, DEADLINE, Program, http_get, program, run, wait_for_exit};
use tungstenite::protocol::frame::coding::CloseCode;

/// A directory of its own, which is removed in the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let name = format!("humphrey-broadcast-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// The first line of the response to a GET request over a Unix socket.
fn unix_get(path: &Path, target: &str) -> String {
    let mut socket = UnixStream::connect(path).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    socket.read_to_string(&mut response).unwrap();
    response.lines().next().unwrap().to_owned()
}

#[test]
fn several_addresses_share_rooms_and_lines() {
    let directory = Directory::new("several");
    let path = directory.socket();
    let unix = format!("unix:{}", path.display());
    let more = [
        "--no-welcome",
        "--listen",
        "127.0.0.1:0",
        "--listen",
        &unix,
        "--listen-mode",
        "640",
    ];
    let mut server = Program::start(&more);
    let second = server.expect_line("connect to ws://");
    let second: SocketAddr = second
        .rsplit_once("ws://")
        .unwrap()
        .1
        .trim_end_matches('/')
        .parse()
        .unwrap();
    server.expect_line(&format!("listening on {unix}"));
    server.expect_line("see --trusted-proxy unix");
    assert_ne!(second, server.address());
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert_eq!(unix_get(&path, "/health"), "HTTP/1.1 200 OK");
    let socket = UnixStream::connect(&path).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let (mut over_unix, _) = tungstenite::client("ws://localhost/", socket).unwrap();
    let mut over_tcp =
        [server.address(), second].map(|address| Client::connect(address, "/").unwrap());
    server.write(b"a line\n");
    assert_eq!(over_unix.read().unwrap().into_text().unwrap(), "a line");
    for client in &mut over_tcp {
        assert_eq!(client.text(), "a line");
    }
    server.signal(Signal::TERM);
    for client in over_tcp {
        client.expect_close(CloseCode::Away);
    }
    drop(over_unix);
    server.expect_exit(0);
    assert!(!path.exists(), "the socket's file is removed");
}

#[test]
fn listen_and_send_use_a_unix_socket_and_wait_for_it() {
    let directory = Directory::new("clients");
    let path = directory.socket();
    let path = path.to_str().unwrap();
    let through = ["--unix-socket", path, "--max-delay", "1"];
    // The host of the URL is not looked up.
    let mut listen = Shell::listen("ws://nowhere.invalid/", &through);
    listen.expect_line(&format!("can't connect to {path}"));
    let unix = format!("unix:{path}");
    let names = [
        "--allow-host",
        "nowhere.invalid",
        "--on-message",
        "broadcast",
    ];
    let mut server = Program::start(&[&["--no-welcome", "--listen", &unix], &names[..]].concat());
    listen.expect_line("connected");
    let mut send = Shell::send("ws://nowhere.invalid/", &through);
    send.write(b"over the socket\n");
    assert_eq!(listen.line(), "over the socket");
    send.stdin = None;
    send.expect_exit(0);
    listen.signal(Signal::TERM);
    listen.expect_exit(0);
    server.signal(Signal::TERM);
    server.expect_exit(0);
}

#[test]
fn unix_socket_that_cannot_be_made_ends_the_program() {
    let (code, _, said) = run(&["--listen", "unix:/nowhere/socket"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("can't listen on /nowhere/socket"), "{said}");
    for arguments in [["--listen", "unix:"], ["--listen-mode", "rw"]] {
        assert_eq!(run(&arguments).0, 2, "{arguments:?}");
    }
}

/// Starts the server as systemd does: with a socket as the first descriptor after the standard streams.
fn activated(socket: OwnedFd, arguments: &[&str], variables: &[(&str, &str)]) -> Child {
    let server = program();
    // The socket is passed as standard input, since only standard streams can be passed on by name.
    let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";
    Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(server.get_program())
        .args(server.get_args())
        .args(arguments)
        .envs(variables.iter().copied())
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[track_caller]
fn wait(child: &mut Child) -> i32 {
    wait_for_exit(child).code().unwrap()
}

/// Ends with its standard error.
fn said(mut child: Child) -> String {
    let mut said = String::new();
    let mut stderr = child.stderr.take().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    said
}

#[test]
fn inherited_sockets_take_the_place_of_the_addresses() {
    let directory = Directory::new("inherited");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    // In use, so it could not be bound.
    let own = address.to_string();
    let mut server = activated(tcp.try_clone().unwrap().into(), &["--listen", &own], &[]);
    assert_eq!(http_get(address, "/health").0, 200);
    signal(&server, Signal::TERM);
    assert_eq!(wait(&mut server), 0);
    assert!(said(server).contains("--listen has no effect"));
    let path = directory.socket();
    let unix = UnixListener::bind(&path).unwrap();
    let mut server = activated(unix.into(), &[], &[]);
    assert_eq!(unix_get(&path, "/health"), "HTTP/1.1 200 OK");
    signal(&server, Signal::TERM);
    assert_eq!(wait(&mut server), 0);
    assert!(
        path.exists(),
        "the server leaves the file of an inherited socket"
    );
}

#[test]
fn inherited_socket_of_another_kind_is_refused_in_words() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    for socket in [
        UnixDatagram::unbound().unwrap().into(),
        OwnedFd::from(connected),
    ] {
        let mut server = activated(socket, &[], &[]);
        assert_eq!(wait(&mut server), 2);
        assert!(said(server).contains("must be a listening stream socket"));
    }
}

#[test]
fn inherited_port_refuses_no_connection_across_restarts() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    thread::scope(|scope| {
        // Dropped at the end, also when an assertion fails: the scope waits for the thread.
        let (end, ended) = channel::<()>();
        let connecting = scope.spawn(move || {
            let (mut tried, mut refused) = (0, 0);
            let pause = Duration::from_millis(1);
            while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                tried += 1;
                refused += usize::from(TcpStream::connect(address).is_err());
            }
            (tried, refused)
        });
        for _ in 0..4 {
            let mut server = activated(tcp.try_clone().unwrap().into(), &["--quiet"], &[]);
            assert_eq!(http_get(address, "/health").0, 200);
            signal(&server, Signal::TERM);
            assert_eq!(wait(&mut server), 0);
        }
        drop(end);
        let (tried, refused) = connecting.join().unwrap();
        assert_eq!(refused, 0, "of {tried}");
    });
}

/// A service manager that hears what the server tells it.
#[cfg(target_os = "linux")]
struct Manager(UnixDatagram);

#[cfg(target_os = "linux")]
impl Manager {
    fn new(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self(socket)
    }

    /// Waits for a message with this line.
    fn expect(&self, line: &str) {
        self.expect_all(&[line]);
    }

    /// Waits for a message with these lines.
    fn expect_all(&self, lines: &[&str]) {
        let mut buffer = [0; 1_024];
        let deadline = Instant::now() + DEADLINE;
        loop {
            let len = self.0.recv(&mut buffer).unwrap();
            let message = std::str::from_utf8(&buffer[..len]).unwrap();
            if lines
                .iter()
                .all(|&line| message.lines().any(|said| said == line))
            {
                return;
            }
            assert!(Instant::now() < deadline, "{message} is all that is said");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn service_manager_hears_of_start_life_and_end() {
    let directory = Directory::new("notify");
    let path = directory.socket();
    let manager = Manager::new(&path);
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let variables = [
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "20000"),
    ];
    let mut server = activated(tcp.into(), &["--drain", "600"], &variables);
    manager.expect("READY=1");
    let client = Client::connect(address, "/").unwrap();
    manager.expect("WATCHDOG=1");
    manager.expect("WATCHDOG=1");
    signal(&server, Signal::TERM);
    // In one message: the drain, 5 s for the last clients, and 5 s more.
    manager.expect_all(&["STOPPING=1", "EXTEND_TIMEOUT_USEC=610000000"]);
    // While it drains, it is alive.
    manager.expect("WATCHDOG=1");
    drop(client);
    assert_eq!(wait(&mut server), 0);
}

#[cfg(all(target_os = "linux", feature = "tls"))]
#[test]
fn service_manager_hears_of_a_reloaded_certificate() {
    let directory = Directory::new("reload");
    let path = directory.socket();
    let manager = Manager::new(&path);
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let certificates = directory.0.join("tls");
    let variables = [("NOTIFY_SOCKET", path.to_str().unwrap())];
    let arguments = ["--tls-self-signed", certificates.to_str().unwrap()];
    let mut server = activated(tcp.into(), &arguments, &variables);
    manager.expect("READY=1");
    signal(&server, Signal::HUP);
    manager.expect("RELOADING=1");
    manager.expect("READY=1");
    signal(&server, Signal::TERM);
    manager.expect("STOPPING=1");
    assert_eq!(wait(&mut server), 0);
    assert!(said(server).contains("reloaded"));
}
