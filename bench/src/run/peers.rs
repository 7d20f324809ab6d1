//! The peers that humphrey_ws is compared with: how they are built, installed and started. Peers in Rust are the package
//! `bench/peers`, which is built on demand. Peers in JavaScript are installed by npm into the target directory, with the
//! versions of the lock file. Unavailable peers are left out, and the table says so. Any other server is a peer by its command.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::args::Job;

/// A server that is not part of this project.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Peer {
    /// Its name in `--peers`.
    pub(super) id: &'static str,
    pub(super) name: &'static str,
    from: Source,
    /// The package whose version is reported, as named in the lock file; empty for a given command.
    package: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Cargo,
    Node,
    Bun,
    /// The words of a command from the command line, with places for the port and the job.
    Given(&'static str),
}

const fn rust(id: &'static str, name: &'static str, package: &'static str) -> Peer {
    Peer {
        id,
        name,
        from: Source::Cargo,
        package,
    }
}

pub(super) const PEERS: &[Peer] = &[
    rust("humphrey_ws-0.5.1", "humphrey_ws 0.5.1", "humphrey_ws"),
    rust(
        "tokio-tungstenite-4k",
        "tokio-tungstenite, 4 KiB buffers",
        "tokio-tungstenite",
    ),
    rust(
        "tokio-tungstenite",
        "tokio-tungstenite",
        "tokio-tungstenite",
    ),
    rust("axum", "axum", "axum"),
    rust("fastwebsockets", "fastwebsockets", "fastwebsockets"),
    rust("tokio-websockets", "tokio-websockets", "tokio-websockets"),
    rust("yawc", "yawc", "yawc"),
    Peer {
        id: "ws",
        name: "ws (Node.js)",
        from: Source::Node,
        package: "ws",
    },
    Peer {
        id: "bun",
        name: "Bun",
        from: Source::Bun,
        package: "bun",
    },
];

/// The place of the port in the command of a given peer, and that of the job.
const PORT: &str = "{port}";
const JOB: &str = "{job}";

/// The source directory of this package.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers");
const SCRIPTS: [&str; 3] = ["server.mjs", "server.bun.mjs", "jobs.mjs"];
const MANIFESTS: [&str; 2] = ["package.json", "package-lock.json"];

/// The available peers, ready to be started.
#[derive(Default)]
pub(super) struct Peers {
    pub(super) picked: Vec<&'static Peer>,
    /// The peers that are left out, and why.
    pub(super) left_out: Vec<String>,
    rust: PathBuf,
    scripts: PathBuf,
    bun: PathBuf,
}

impl Peer {
    /// Whether it listens on a port that it is told, instead of printing its address.
    pub(super) fn is_given(&self) -> bool {
        matches!(self.from, Source::Given(_))
    }
}

impl Peers {
    /// Builds and installs the peers of `names`: `all`, `none`, or ids separated by commas. Adds those that are given
    /// as `NAME=COMMAND`.
    pub(super) fn get(names: &str, given: &[String], target: &Path) -> io::Result<Self> {
        let mut peers = Self {
            picked: named(names)?,
            ..Self::default()
        };
        for peer in given {
            peers.picked.push(given_peer(peer)?);
        }
        if peers.any(Source::Cargo) {
            match build_rust(target) {
                Ok(program) => peers.rust = program,
                Err(error) => peers.leave_out(Source::Cargo, &error),
            }
        }
        if peers.any(Source::Node) || peers.any(Source::Bun) {
            match install(&target.join("peers-npm")) {
                Ok(scripts) => peers.scripts = scripts,
                Err(error) => {
                    peers.leave_out(Source::Node, &error);
                    peers.leave_out(Source::Bun, &error);
                }
            }
        }
        if peers.any(Source::Bun) {
            match bun(&peers.scripts) {
                Ok(bun) => peers.bun = bun,
                Err(error) => peers.leave_out(Source::Bun, &error),
            }
        }
        Ok(peers)
    }

    fn any(&self, from: Source) -> bool {
        self.picked.iter().any(|peer| peer.from == from)
    }

    fn leave_out(&mut self, from: Source, error: &io::Error) {
        for peer in self.picked.extract_if(.., |peer| peer.from == from) {
            eprintln!("{} is left out: {error}", peer.name);
            self.left_out.push(format!("{}: {error}", peer.name));
        }
    }

    /// The command that starts a peer for a job. A given peer listens on `port`, the others choose one themselves.
    pub(super) fn command(&self, peer: &Peer, job: Job, port: u16) -> Vec<PathBuf> {
        let mut words = match peer.from {
            Source::Given(command) => {
                let port = port.to_string();
                let fill = |word: &str| word.replace(PORT, &port).replace(JOB, job.name());
                return command.split_whitespace().map(|w| fill(w).into()).collect();
            }
            Source::Cargo => vec![self.rust.clone(), peer.id.into()],
            Source::Node => vec!["node".into(), self.scripts.join(SCRIPTS[0])],
            Source::Bun => vec![self.bun.clone(), self.scripts.join(SCRIPTS[1])],
        };
        words.push(job.name().into());
        words
    }

    /// The peers with their versions.
    pub(super) fn versions(&self) -> Vec<String> {
        let version = |peer: &&Peer| match peer.from {
            Source::Given(_) => Some(peer.name.to_owned()),
            _ => Some(format!("{} {}", peer.package, version_of(peer)?)),
        };
        let mut versions: Vec<String> = self.picked.iter().filter_map(version).collect();
        versions.dedup();
        versions
    }
}

fn named(names: &str) -> io::Result<Vec<&'static Peer>> {
    match names {
        "all" => Ok(PEERS.iter().collect()),
        "none" => Ok(Vec::new()),
        names => names
            .split(',')
            .map(|id| {
                let peer = PEERS.iter().find(|peer| peer.id == id);
                peer.ok_or_else(|| crate::args::bad("peers", id))
            })
            .collect(),
    }
}

/// Parses `NAME=COMMAND`.
fn given_peer(text: &str) -> io::Result<&'static Peer> {
    let given = text.split_once('=');
    let Some((name, command)) =
        given.filter(|(name, command)| !name.is_empty() && command.contains(PORT))
    else {
        return Err(crate::args::invalid(format!(
            "--peer {text:?} is not NAME='PROGRAM {PORT}': it needs a name, and the place of the port to listen on"
        )));
    };
    // Peers live as long as the program, like those that it knows.
    let leak = |text: &str| -> &'static str { text.to_owned().leak() };
    Ok(Box::leak(Box::new(Peer {
        id: leak(name),
        name: leak(name),
        from: Source::Given(leak(command)),
        package: "",
    })))
}

/// The contents of the lock files.
fn version_of(peer: &Peer) -> Option<String> {
    let read = |file: &str| fs::read_to_string(Path::new(SOURCES).join(file)).ok();
    if peer.from != Source::Cargo {
        let lock: serde_json::Value = serde_json::from_str(&read(MANIFESTS[1])?).ok()?;
        let version = &lock["packages"][format!("node_modules/{}", peer.package)]["version"];
        return version.as_str().map(str::to_owned);
    }
    let lock = read("Cargo.lock")?;
    // The last of several versions is the newest, which the manifest names.
    let (_, rest) = lock.rsplit_once(&format!("name = \"{}\"\nversion = \"", peer.package))?;
    rest.split_once('"').map(|(version, _)| version.to_owned())
}

fn build_rust(target: &Path) -> io::Result<PathBuf> {
    let target = target.join("peers");
    let manifest = Path::new(SOURCES).join("Cargo.toml");
    eprintln!("building the peers in Rust");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--quiet", "--locked"]);
    cargo.arg("--manifest-path").arg(manifest);
    cargo.arg("--target-dir").arg(&target);
    succeed(&mut cargo)?;
    Ok(target.join("release/humphrey_ws_bench_peers"))
}

/// Installs the scripts and their packages into the target directory.
fn install(into: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(into)?;
    let copy = |file: &str| fs::copy(Path::new(SOURCES).join(file), into.join(file));
    for file in SCRIPTS {
        copy(file)?;
    }
    let is_there = MANIFESTS.iter().all(|file| {
        let read = |directory: &Path| fs::read(directory.join(file)).ok();
        read(into).is_some_and(|bytes| read(Path::new(SOURCES)) == Some(bytes))
    });
    if !is_there || !into.join("node_modules/ws").exists() {
        eprintln!("installing the peers in JavaScript");
        for file in MANIFESTS {
            copy(file)?;
        }
        let mut npm = Command::new("npm");
        npm.args([
            "ci",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--silent",
        ]);
        succeed(npm.current_dir(into))?;
    }
    Ok(into.to_owned())
}

/// The bun binary that works on this machine.
fn bun(scripts: &Path) -> io::Result<PathBuf> {
    for package in fs::read_dir(scripts.join("node_modules/@oven"))? {
        let bun = package?.path().join("bin/bun");
        let mut try_it = Command::new(&bun);
        if succeed(try_it.arg("--version")).is_ok() {
            return Ok(bun);
        }
    }
    Err(io::Error::other("npm has no Bun for this machine"))
}

fn succeed(command: &mut Command) -> io::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| io::Error::new(e.kind(), format!("{name}: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.lines().rev().find(|line| !line.trim().is_empty());
    Err(io::Error::other(format!(
        "{name}: {}",
        last.unwrap_or("it failed")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_is_in_a_lock_file() {
        for peer in PEERS {
            let version = version_of(peer);
            assert!(version.is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit())));
        }
        assert_eq!(version_of(&PEERS[0]).as_deref(), Some("0.5.1"));
    }

    #[test]
    fn peers_are_picked_by_name() {
        assert_eq!(named("all").unwrap().len(), PEERS.len());
        assert!(named("none").unwrap().is_empty());
        let picked = named("bun,axum").unwrap();
        assert_eq!(
            picked.iter().map(|p| p.id).collect::<Vec<_>>(),
            ["bun", "axum"]
        );
        assert!(named("apache").is_err());
    }

    #[test]
    fn given_peer_is_started_with_its_port_and_job() {
        let given = ["mine=./server --port={port} {job}".to_owned()];
        let peers = Peers::get("none", &given, Path::new("target")).unwrap();
        let [peer] = peers.picked[..] else {
            panic!("one peer is given");
        };
        assert_eq!((peer.name, peer.is_given()), ("mine", true));
        let words = peers.command(peer, Job::Fanout, 4000);
        assert_eq!(
            words,
            ["./server", "--port=4000", "fanout"].map(PathBuf::from)
        );
        assert_eq!(peers.versions(), ["mine"]);
        for wrong in ["mine", "mine=./server", "=./server {port}"] {
            assert!(given_peer(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn lock_files_name_no_registry() {
        for (file, usual) in [
            ("package-lock.json", "https://registry.npmjs.org/"),
            (
                "Cargo.lock",
                "registry+https://github.com/rust-lang/crates.io-index",
            ),
        ] {
            let lock = fs::read_to_string(Path::new(SOURCES).join(file)).unwrap();
            assert!(!lock.replace(usual, "").contains("://"), "{file}");
        }
    }
}
