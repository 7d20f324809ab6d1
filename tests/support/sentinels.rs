//! A primary and a replica that three Sentinels watch.

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::redis_server::{RedisServer, free_port};
use crate::support::eventually;

const SENTINELS: usize = 3;
const NAME: &str = "tests";

/// Two servers, of which one is the primary, and their Sentinels. All are killed when this is dropped.
pub(crate) struct Sentinels {
    pub(crate) servers: [RedisServer; 2],
    sentinels: Vec<(Child, u16)>,
    directory: PathBuf,
}

impl Sentinels {
    /// Starts them with further options of the servers. Returns `None` if `redis-server` is not installed, and says so on standard
    /// error.
    pub(crate) fn start() -> Option<Self> {
        let primary = RedisServer::start(&[])?;
        let port = primary.port().to_string();
        // The replica gets what the primary receives without the delay of a fork.
        let replica = RedisServer::start(&["--replicaof", "127.0.0.1", &port])?;
        let directory = env::temp_dir().join(format!("humphrey_ws-sentinels-{port}"));
        fs::create_dir_all(&directory).expect("the directory for tests can be written");
        let mut all = Self {
            servers: [primary, replica],
            sentinels: Vec::new(),
            directory,
        };
        for number in 0..SENTINELS {
            all.start_sentinel(number, &port);
        }
        eventually("the Sentinels know each other and the replica", || {
            all.sentinels.iter().all(|&(_, port)| {
                let ask = |arguments: &[&str]| ask(port, arguments).unwrap_or_default();
                let replicas = ask(&["SENTINEL", "REPLICAS", NAME]);
                ask(&["SENTINEL", "CKQUORUM", NAME]).starts_with("+OK 3 ")
                    && replicas.contains("master-link-status\r\n$2\r\nok")
            })
        });
        Some(all)
    }

    fn start_sentinel(&mut self, number: usize, primary: &str) {
        for _ in 0..20 {
            let port = free_port();
            let config = format!(
                "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {NAME} 127.0.0.1 {primary} 2\n\
                 sentinel down-after-milliseconds {NAME} 500\nsentinel failover-timeout {NAME} 3000\n",
                self.directory.display()
            );
            let file = self.directory.join(format!("sentinel{number}.conf"));
            fs::write(&file, config).expect("the directory for tests can be written");
            let child = Command::new(RedisServer::program())
                .arg(&file)
                .arg("--sentinel")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("the server can be executed");
            self.sentinels.push((child, port));
            let (child, _) = self.sentinels.last_mut().expect("it was just added");
            let mut has_ended = false;
            eventually("a Sentinel answers or ends", || {
                has_ended = child.try_wait().expect("it is our child").is_some();
                has_ended || ask(port, &["PING"]).is_ok()
            });
            if !has_ended {
                return;
            }
            self.sentinels.pop();
        }
        panic!("a Sentinel ends at once");
    }

    /// Returns the URL for [`Cluster`](humphrey_ws::Cluster).
    pub(crate) fn url(&self) -> String {
        let ports = self.sentinels.iter();
        let addresses: Vec<_> = ports.map(|(_, port)| address(*port).to_string()).collect();
        format!("redis+sentinel://{}/{NAME}", addresses.join(","))
    }

    /// The index of the server that all running Sentinels call the primary.
    pub(crate) fn primary(&self) -> Option<usize> {
        let answers = self.sentinels.iter().filter_map(|&(_, port)| {
            let question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME];
            ask(port, &question).ok()
        });
        let mut answers: Vec<String> = answers.collect();
        answers.dedup();
        let [answer] = &answers[..] else {
            return None;
        };
        let is_at = |server: &RedisServer| answer.contains(&format!("\r\n{}\r\n", server.port()));
        self.servers.iter().position(is_at)
    }

    /// Makes the replica the primary, as a person does who wants to restart a server.
    pub(crate) fn fail_over(&self) {
        let (_, port) = self.sentinels[0];
        let answer = ask(port, &["SENTINEL", "FAILOVER", NAME]).unwrap();
        assert!(answer.starts_with("+OK"), "{answer}");
    }

    /// Kills a Sentinel.
    pub(crate) fn kill_sentinel(&mut self, number: usize) {
        let (child, _) = &mut self.sentinels[number];
        child.kill().expect("it is our child");
        child.wait().expect("it is our child");
    }
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        for (child, _) in &mut self.sentinels {
            // A test that has failed should show why.
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Executes a command at a Sentinel, which does not know `QUIT`. Returns the bytes of the reply as text.
fn ask(port: u16, arguments: &[&str]) -> io::Result<String> {
    let mut stream = TcpStream::connect(address(port))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut bytes = format!("*{}\r\n", arguments.len());
    for argument in arguments {
        bytes += &format!("${}\r\n{argument}\r\n", argument.len());
    }
    stream.write_all(bytes.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    Ok(String::from_utf8_lossy(&reply).into_owned())
}

fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
