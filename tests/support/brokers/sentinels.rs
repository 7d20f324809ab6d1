//! A primary and a replica that three Sentinels watch.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::{ServerProcess, eventually, on_free_port};
use super::redis::{RedisServer, address, execute, new_directory};

const SENTINELS: usize = 3;
const NAME: &str = "tests";

/// Two servers, of which the first one is the primary at first, and their Sentinels. All are killed when this is dropped.
pub(crate) struct Sentinels {
    pub(crate) servers: [RedisServer; 2],
    sentinels: Vec<Sentinel>,
    directory: PathBuf,
}

struct Sentinel {
    process: ServerProcess,
    port: u16,
}

impl Sentinel {
    fn start(program: &str, directory: &Path, number: usize, primary: u16) -> Self {
        let file = directory.join(format!("sentinel{number}.conf"));
        on_free_port(|port| {
            let config = format!(
                "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {NAME} 127.0.0.1 {primary} 2\n\
                 sentinel down-after-milliseconds {NAME} 500\nsentinel failover-timeout {NAME} 3000\n",
                directory.display()
            );
            fs::write(&file, config).expect("the directory for tests can be written");
            let (program, file) = (program.to_owned(), file.clone());
            let command = move || {
                let mut command = Command::new(&program);
                command.arg(&file).arg("--sentinel");
                command
            };
            let is_ready = move |_: &_| execute(address(port), &["PING"]).is_ok();
            Some(Self {
                process: ServerProcess::run(command, is_ready)?,
                port,
            })
        })
    }

    /// The bytes of the reply as text; empty if the Sentinel was killed.
    fn ask(&self, arguments: &[&str]) -> String {
        let question = [&["SENTINEL"], arguments].concat();
        execute(address(self.port), &question).unwrap_or_default()
    }
}

impl Sentinels {
    /// Starts them. Returns `None` if `redis-server` is not installed, and says so on standard error.
    pub(crate) fn start() -> Option<Self> {
        let program = RedisServer::program()?;
        let primary = RedisServer::start(&[])?;
        let port = primary.port();
        let replica = RedisServer::start(&["--replicaof", "127.0.0.1", &port.to_string()])?;
        let directory = new_directory();
        let start = |number| Sentinel::start(&program, &directory, number, port);
        let sentinels: Vec<_> = (0..SENTINELS).map(start).collect();
        eventually("the Sentinels know each other and the replica", || {
            sentinels.iter().all(|sentinel| {
                sentinel.ask(&["CKQUORUM", NAME]).starts_with("+OK 3 ")
                    && sentinel
                        .ask(&["REPLICAS", NAME])
                        .contains("master-link-status\r\n$2\r\nok")
            })
        });
        Some(Self {
            servers: [primary, replica],
            sentinels,
            directory,
        })
    }

    /// Returns the URL for [`Cluster`](humphrey_ws::Cluster).
    pub(crate) fn url(&self) -> String {
        let sentinels = self.sentinels.iter();
        let addresses: Vec<_> = sentinels
            .map(|sentinel| address(sentinel.port).to_string())
            .collect();
        format!("redis+sentinel://{}/{NAME}", addresses.join(","))
    }

    /// The index of the server that all running Sentinels call the primary.
    pub(crate) fn primary(&self) -> Option<usize> {
        let answers = self.sentinels.iter();
        let mut answers: Vec<_> = answers
            .map(|sentinel| sentinel.ask(&["GET-MASTER-ADDR-BY-NAME", NAME]))
            .filter(|answer| !answer.is_empty())
            .collect();
        answers.dedup();
        let [answer] = &answers[..] else {
            return None;
        };
        let is_at = |server: &RedisServer| answer.contains(&format!("\r\n{}\r\n", server.port()));
        self.servers.iter().position(is_at)
    }

    /// Makes the replica the primary, as a person does who wants to restart a server.
    pub(crate) fn fail_over(&self) {
        let answer = self.sentinels[0].ask(&["FAILOVER", NAME]);
        assert!(answer.starts_with("+OK"), "{answer}");
    }

    pub(crate) fn kill_sentinel(&mut self, number: usize) {
        self.sentinels[number].process.kill();
    }
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        self.sentinels.clear();
        let _ = fs::remove_dir_all(&self.directory);
    }
}
