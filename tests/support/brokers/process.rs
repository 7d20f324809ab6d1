//! A server process of a test's own.

use std::env;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The maximum time that a server may take to start. It is ample even on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// How often a server is asked: nothing reports that it is ready.
const ASK_INTERVAL: Duration = Duration::from_millis(5);
/// Another process may take a port before the server does.
const ATTEMPTS: usize = 20;

/// A process that runs, unless it was killed. It is killed when this is dropped.
pub(crate) struct ServerProcess {
    command: Box<dyn Fn() -> Command + Send + Sync>,
    is_ready: Box<dyn Fn(&Child) -> bool + Send + Sync>,
    child: Option<Child>,
}

impl ServerProcess {
    /// Returns the program to start: the one that the environment variable names, or the default. `None` if the default is not
    /// installed, which it says on standard error, so that the test can pass without.
    ///
    /// # Panics
    ///
    /// If the program that the variable names can't be executed.
    pub(crate) fn program(default: &str, variable: &str) -> Option<String> {
        let required = env::var(variable).ok();
        let program = required.clone().unwrap_or_else(|| default.into());
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
                "NOT TESTED: {test} needs {default}, which is not installed ({error}). Install it, or set {variable} to its path."
            );
            return None;
        }
        Some(program)
    }

    /// Runs the process that a command starts, until `is_ready`. Returns `None` if it ends before.
    pub(crate) fn run(
        command: impl Fn() -> Command + Send + Sync + 'static,
        is_ready: impl Fn(&Child) -> bool + Send + Sync + 'static,
    ) -> Option<Self> {
        let mut process = Self {
            command: Box::new(command),
            is_ready: Box::new(is_ready),
            child: None,
        };
        process.try_run().then_some(process)
    }

    fn try_run(&mut self) -> bool {
        let child = (self.command)()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server can be executed");
        let child = self.child.insert(child);
        let mut has_ended = false;
        eventually("the server answers", || {
            has_ended = child.try_wait().expect("it is our child").is_some();
            has_ended || (self.is_ready)(child)
        });
        !has_ended
    }

    /// Kills the process with SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it is our child");
            child.wait().expect("it is our child");
        }
    }

    /// Kills the process if it runs, and starts it again, with the port and the files of before. Meanwhile another process may
    /// have taken the port for a moment.
    pub(crate) fn restart(&mut self) {
        self.kill();
        eventually("the server is running", || self.try_run());
    }

    /// Stops the process; its connections stay open.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
        // Threads may run on for a moment.
        let threads: &[&str] = if cfg!(target_os = "linux") {
            &["-L"]
        } else {
            &[]
        };
        eventually("the server has stopped", || {
            let states = Command::new("ps")
                .args(threads)
                .args(["-o", "state=", "-p", &self.id().to_string()])
                .output()
                .expect("ps can be executed");
            let states = String::from_utf8_lossy(&states.stdout);
            !states.is_empty() && states.lines().all(|state| state.trim().starts_with('T'))
        });
    }

    /// Continues the process after [`freeze`](Self::freeze).
    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    fn id(&self) -> u32 {
        self.child.as_ref().expect("the server runs").id()
    }

    pub(super) fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([signal, &self.id().to_string()])
            .status();
        assert!(status.is_ok_and(|status| status.success()), "kill {signal}");
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A test that has failed should show why.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits until a condition holds.
pub(super) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < until, "timed out waiting until {what}");
        thread::sleep(ASK_INTERVAL);
    }
}

/// Starts a server on a free port of this machine.
pub(crate) fn on_free_port<S>(start: impl Fn(u16) -> Option<S>) -> S {
    let server = (0..ATTEMPTS).find_map(|_| start(free_port()));
    server.expect("the server does not end at once")
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}
