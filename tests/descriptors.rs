//! A shortage of file descriptors: accepting does not spin, no connection is lost, and accepting resumes.

mod support;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::TcpStream;

use humphrey_ws::AsyncWebsocketApp;
use support::{Client, DEADLINE, eventually, limit_descriptors, start, tcp};

/// The `/proc` files of the engine's threads, opened while descriptors are available.
struct Accounts(Vec<File>);

impl Accounts {
    fn open() -> Self {
        let tasks = fs::read_dir("/proc/self/task")
            .unwrap()
            .map(|task| task.unwrap().path());
        let of_engine = tasks.filter(|path| {
            fs::read_to_string(path.join("comm"))
                .unwrap()
                .starts_with("humphrey_ws")
        });
        Self(
            of_engine
                .map(|path| File::open(path.join("stat")).unwrap())
                .collect(),
        )
    }

    /// Returns the clock ticks of user and system time that the threads have used.
    fn ticks(&mut self) -> u64 {
        let ticks = |file: &mut File| {
            let mut stat = String::new();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_to_string(&mut stat).unwrap();
            // The name may contain spaces. The fields after the last parenthesis do not.
            let fields: Vec<&str> = stat
                .rsplit_once(')')
                .unwrap()
                .1
                .split_whitespace()
                .collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        };
        self.0.iter_mut().map(ticks).sum()
    }
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "counts come from Linux's /proc")]
fn descriptor_shortage_pauses_accepting_and_recovers() {
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
        .with_shards(1)
        .with_message_handler(|stream, message, _| stream.send(message));
    let (running, address) = start(app);
    let mut client = Client::connect(address);
    client.send("before");
    assert_eq!(client.receive_text(), "before");
    let mut accounts = Accounts::open();
    let in_use = fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    // Both ends of a connection belong to this process. The limit permits a few connections.
    limit_descriptors(in_use + 20);
    let mut clients: Vec<TcpStream> = Vec::new();
    while let Ok(socket) = TcpStream::connect(address) {
        clients.push(socket);
    }
    let sender = running.sender();
    eventually("accepting fails", || sender.metrics().accept_errors > 0);
    // Existing connections are unaffected.
    client.send("during");
    assert_eq!(client.receive_text(), "during");
    let before = accounts.ticks();
    std::thread::sleep(std::time::Duration::from_secs(1));
    let spent = accounts.ticks() - before;
    assert!(
        spent < 20,
        "accepting spins: {spent} of 100 ticks in a second"
    );
    assert!(
        sender.metrics().accept_errors < 100,
        "accepting was attempted too often within a second"
    );
    clients.clear();
    let mut late = Client(
        tungstenite::client(format!("ws://{address}/"), tcp(address))
            .unwrap()
            .0,
    );
    late.send("after");
    assert_eq!(late.receive_text(), "after");
    drop((client, late));
    running.shutdown(DEADLINE);
}
