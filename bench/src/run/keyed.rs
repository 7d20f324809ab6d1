//! `bench keyed`: a source updates all keys of a keyed room many times a second. One client reads everything, and others read a small
//! share of it. Measures when the slow clients have the last value of every key after the source has stopped, and what they cost the
//! quick one. Fails if a client misses a value that it must have, or if one is cut off.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use humphrey_ws::{AsyncWebsocketApp, KeyedLimits, Limits, Metrics, Room};

use super::markdown::number;
use crate::args::{self, OptionSpec, Options};
use crate::frames::MessageReader;
use crate::histogram::{Histogram, Summary};
use crate::load::connect::{self, ConnectionSpec};
use crate::machine;

pub(crate) const OPTIONS: &[OptionSpec] = &[
    args::value("keys"),
    args::value("updates"),
    args::value("size"),
    args::value("slow"),
    args::value("percent"),
    args::value("seconds"),
];

/// The name of the shards' threads, as the kernel shortens it.
const SHARD_THREADS: &str = "humphrey_ws sha";
/// The source and the slow clients act once in this time.
const TICK: Duration = Duration::from_millis(10);
/// The longest time in which a slow client must have the last value of every key.
const PATIENCE: Duration = Duration::from_secs(60);
const NO_VERSION: usize = usize::MAX;

struct Load {
    keys: usize,
    /// Updates of each key per second.
    updates: usize,
    /// Bytes of payload.
    size: usize,
    /// The share of the source's bytes that a slow client reads.
    percent: f64,
    time: Duration,
}

impl Load {
    /// The version that the source sends last.
    fn last_version(&self) -> usize {
        (self.time.as_secs_f64() * self.updates as f64) as usize
    }

    fn message(&self, key: usize, version: usize) -> String {
        let mut text = format!("{key} {version} {} ", machine::monotonic_nanos());
        text.extend(std::iter::repeat_n(
            '.',
            self.size.saturating_sub(text.len()),
        ));
        text
    }

    /// The bytes that a slow client reads in one tick.
    fn slow_bytes(&self) -> usize {
        let per_second = (self.keys * self.updates * (self.size + 2)) as f64 * self.percent / 100.0;
        (per_second * TICK.as_secs_f64()) as usize
    }
}

/// A client, and what it has received.
struct Viewer {
    socket: OwnedFd,
    reader: MessageReader,
    /// The version of each key that it has received last.
    versions: Vec<usize>,
    /// The keys of which it has the last version.
    complete: usize,
    messages: u64,
    latencies: Histogram,
    /// The nanosecond in which it had the last value of every key.
    done: Option<u64>,
}

impl Viewer {
    fn new(socket: OwnedFd, load: &Load) -> Self {
        Self {
            socket,
            reader: MessageReader::default(),
            versions: vec![NO_VERSION; load.keys],
            complete: 0,
            messages: 0,
            latencies: Histogram::new(),
            done: None,
        }
    }

    /// Reads up to the length of the buffer. Returns whether there was anything to read.
    fn read(&mut self, buffer: &mut [u8], load: &Load) -> io::Result<bool> {
        let Some(read) = connect::receive_once(&self.socket, buffer)? else {
            return Ok(false);
        };
        let now = machine::monotonic_nanos();
        let Self {
            reader,
            versions,
            complete,
            messages,
            latencies,
            ..
        } = self;
        let last = load.last_version();
        reader.read(&buffer[..read], |payload| {
            let (key, version, sent) = parse(payload)?;
            let former = std::mem::replace(&mut versions[key], version);
            if former != NO_VERSION && former > version {
                return Err(io::Error::other(format!(
                    "key {key}: version {version} after {former}"
                )));
            }
            *complete += usize::from(version == last);
            *messages += 1;
            latencies.record(now.saturating_sub(sent));
            Ok(())
        })?;
        if self.complete == load.keys && self.done.is_none() {
            self.done = Some(now);
        }
        Ok(true)
    }
}

/// Parses the key, the version and the time of a message.
fn parse(payload: &[u8]) -> io::Result<(usize, usize, u64)> {
    let text = std::str::from_utf8(payload).map_err(io::Error::other)?;
    let mut numbers = text.split(' ').map(str::parse::<u64>);
    let mut next = || numbers.next().and_then(Result::ok);
    match (next(), next(), next()) {
        (Some(key), Some(version), Some(sent)) => Ok((key as usize, version as usize, sent)),
        _ => Err(io::Error::other(format!("an unexpected message: {text}"))),
    }
}

/// Reads everything at once, until the client has the last value of every key.
fn read_all(mut viewer: Viewer, load: &Load) -> io::Result<Viewer> {
    let mut buffer = vec![0; 256 << 10];
    let since = Instant::now();
    while viewer.done.is_none() && since.elapsed() < load.time + PATIENCE {
        if !viewer.read(&mut buffer, load)? {
            thread::sleep(Duration::from_micros(200));
        }
    }
    Ok(viewer)
}

/// Reads so many bytes of each client in each tick, until all have the last value of every key.
fn read_slowly(mut viewers: Vec<Viewer>, load: &Load) -> io::Result<Vec<Viewer>> {
    let mut buffer = vec![0; load.slow_bytes()];
    let since = Instant::now();
    let mut due = since;
    while viewers.iter().any(|viewer| viewer.done.is_none())
        && since.elapsed() < load.time + PATIENCE
    {
        for viewer in &mut viewers {
            viewer.read(&mut buffer, load)?;
        }
        due += TICK;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(viewers)
}

/// Sends all versions of all keys. Returns the nanosecond of the end.
fn publish(room: &Room, load: &Load) -> u64 {
    let begun = Instant::now();
    let interval = Duration::from_secs(1) / load.updates as u32;
    let keys: Vec<String> = (0..load.keys).map(|key| key.to_string()).collect();
    for version in 0..=load.last_version() {
        let due = begun + interval * version as u32;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        for (key, name) in keys.iter().enumerate() {
            room.broadcast_keyed(name, load.message(key, version));
        }
    }
    machine::monotonic_nanos()
}

/// The figures of one measurement.
struct Outcome {
    slow: usize,
    /// Updates per second that the source has sent.
    rate: f64,
    quick: Summary,
    /// The share of the messages that the quick client has received. If a thread waits for a CPU for long, it falls behind, too.
    quick_share: f64,
    /// Seconds from the end of the source until each slow client had the last value of every key.
    behind: Vec<f64>,
    /// Messages that a slow client has received, on average.
    received: f64,
    metrics: Metrics,
    /// CPU time of the shards, in seconds.
    cpu: f64,
}

fn measure(load: &Load, slow: usize) -> io::Result<Outcome> {
    let bytes = load.keys * (load.size + 400);
    let running = AsyncWebsocketApp::<()>::new()
        .with_address("127.0.0.1:0")
        .with_shards(1)
        .with_limits(Limits::default().keyed_bytes_max(bytes.max(4 << 20)))
        .with_keyed_rooms("board", KeyedLimits::keys(load.keys).bytes(bytes))
        .with_connect_handler(|stream, _| stream.join("board"))
        .start()?;
    let Some(SocketAddr::V4(address)) = running.local_addr() else {
        return Err(io::Error::other("the app has no IPv4 address"));
    };
    let sender = running.sender();
    let room = sender.room("board");
    let connect = |small| -> io::Result<Viewer> {
        let spec = |_| ConnectionSpec {
            small,
            ..ConnectionSpec::default()
        };
        let address: SocketAddrV4 = address;
        let socket = connect::open(address, 0, 1, spec)?.pop();
        let socket = socket.ok_or_else(|| io::Error::other("no connection"))?;
        Ok(Viewer::new(socket, load))
    };
    let quick = connect(false)?;
    let viewers: Vec<Viewer> = (0..slow)
        .map(|_| connect(true))
        .collect::<io::Result<_>>()?;
    while room.len() < 1 + slow {
        thread::yield_now();
    }
    let pid = std::process::id();
    let cpu = machine::cpu_seconds_of_threads(pid, SHARD_THREADS)?;
    let begun = machine::monotonic_nanos();
    let (stopped, cpu, quick, viewers) = thread::scope(|scope| {
        let quick = scope.spawn(|| read_all(quick, load));
        let viewers = scope.spawn(|| read_slowly(viewers, load));
        let stopped = publish(&room, load);
        let cpu = machine::cpu_seconds_of_threads(pid, SHARD_THREADS).map(|now| now - cpu);
        let panicked = |_| io::Error::other("a client's thread panicked");
        let quick = quick.join().map_err(panicked).and_then(|outcome| outcome);
        let viewers = viewers.join().map_err(panicked).and_then(|outcome| outcome);
        (stopped, cpu, quick, viewers)
    });
    let (cpu, quick, viewers) = (cpu?, quick?, viewers?);
    let metrics = sender.metrics();
    running.shutdown(Duration::from_secs(1));
    let sent = load.keys * (load.last_version() + 1);
    if quick.done.is_none() {
        return Err(io::Error::other(
            "the quick client does not have the last value of every key",
        ));
    }
    let behind: Option<Vec<f64>> = viewers
        .iter()
        .map(|viewer| Some(viewer.done?.saturating_sub(stopped) as f64 / 1e9))
        .collect();
    let behind = behind.ok_or_else(|| {
        io::Error::other("a slow client does not have the last value of every key")
    })?;
    let received: u64 = viewers.iter().map(|viewer| viewer.messages).sum();
    if metrics.slow_consumers > 0 || metrics.dropped.total() > 0 {
        let text = format!(
            "{} clients are cut off, {} messages dropped",
            metrics.slow_consumers,
            metrics.dropped.total()
        );
        return Err(io::Error::other(text));
    }
    Ok(Outcome {
        slow,
        rate: sent as f64 / (stopped - begun) as f64 * 1e9,
        quick: quick.latencies.summary(),
        quick_share: quick.messages as f64 / sent as f64,
        received: received as f64 / slow.max(1) as f64,
        behind,
        metrics,
        cpu,
    })
}

pub(crate) fn command(options: &Options) -> io::Result<()> {
    let load = Load {
        keys: options.number("keys", 1_000)?,
        updates: options.number("updates", 100)?,
        size: options.number("size", 60)?,
        percent: options.number("percent", 1.0)?,
        time: Duration::from_secs_f64(options.number("seconds", 5.0)?),
    };
    let slow = options.number("slow", 10)?;
    println!("{}", machine::describe());
    println!(
        "\n{} keys, {} updates of each a second, {} bytes; slow clients read {} % of that\n",
        load.keys, load.updates, load.size, load.percent
    );
    println!(
        "| slow clients | updates per second | quick client: share, p50, p99, max | CPU of the shard | last value of every key after the stop: median, max | \
         messages of a slow client | conflated | most bytes that waited for a client |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for slow in [0, slow] {
        println!("{}", measure(&load, slow)?.row(&load));
    }
    Ok(())
}

impl Outcome {
    fn row(mut self, load: &Load) -> String {
        let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
        self.behind.sort_by(f64::total_cmp);
        let behind = match self.behind.last() {
            Some(max) => {
                let median = self.behind[self.behind.len() / 2];
                format!("{median:.2} s, {max:.2} s")
            }
            None => "–".into(),
        };
        let Summary { p50, p99, max, .. } = self.quick;
        format!(
            "| {} | {} | {:.2} %, {}, {}, {} | {:.0} % | {behind} | {} | {} | {} |",
            self.slow,
            number(self.rate),
            self.quick_share * 100.0,
            ms(p50),
            ms(p99),
            ms(max),
            self.cpu / load.time.as_secs_f64() * 100.0,
            number(self.received),
            number(self.metrics.conflated as f64),
            number(self.metrics.outbox_bytes_peak as f64),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_clients_end_with_the_last_value_of_every_key() {
        let load = Load {
            keys: 50,
            updates: 100,
            size: 60,
            percent: 20.0,
            time: Duration::from_millis(300),
        };
        let outcome = measure(&load, 3).unwrap();
        assert_eq!(outcome.behind.len(), 3);
    }

    #[test]
    fn message_has_its_size_and_parses_back() {
        let load = Load {
            keys: 1,
            updates: 1,
            size: 60,
            percent: 1.0,
            time: Duration::ZERO,
        };
        let message = load.message(12, 345);
        assert_eq!(message.len(), 60);
        let (key, version, sent) = parse(message.as_bytes()).unwrap();
        assert_eq!((key, version), (12, 345));
        assert!(sent <= machine::monotonic_nanos());
        assert!(parse(b"news").is_err());
    }
}
