//! Clients that hold a connection until the server ends it, while others are served.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use tungstenite::{Message, WebSocket};

use crate::check::{DEADLINE, During, Failure, Outcome, ensure, join};
use crate::client::Transport;

const TEND_EVERY: Duration = Duration::from_millis(50);

/// A new client must be served within this time, although the others are connected.
const SERVED_WITHIN: Duration = Duration::from_secs(2);

/// A client that keeps its connection for as long as the server lets it.
pub(super) trait Holder {
    type Kind: Copy + Debug + PartialEq;

    fn kind(&self) -> Self::Kind;

    /// Sends what is due.
    fn act(&mut self, now: Instant);

    /// Returns whether the server has ended the connection. Fails if it has done so in the wrong way.
    fn has_ended(&mut self) -> Outcome<bool>;
}

/// How long each client of each kind was connected.
pub(super) struct Lives<K>(Vec<(K, Duration)>);

impl<K: Copy + PartialEq> Lives<K> {
    pub(super) fn count(&self, kinds: &[K]) -> u64 {
        self.of(kinds).count() as u64
    }

    /// The shortest and the longest life in seconds. Both are 0 if there is no client of these kinds.
    pub(super) fn range(&self, kinds: &[K]) -> (f64, f64) {
        let seconds = |lived: Option<Duration>| lived.unwrap_or_default().as_secs_f64();
        (seconds(self.of(kinds).min()), seconds(self.of(kinds).max()))
    }

    fn of(&self, kinds: &[K]) -> impl Iterator<Item = Duration> {
        let lives = self.0.iter().filter(|(kind, _)| kinds.contains(kind));
        lives.map(|(_, lived)| *lived)
    }
}

/// New clients that were served meanwhile.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Served {
    pub(super) count: u64,
    pub(super) slowest: Duration,
}

/// Connects `count` holders, and keeps them active until the server has ended all of them. Meanwhile, connects others one
/// after the other, which must be served.
pub(super) fn hold_while_serving<C: Holder, T: Transport>(
    count: u64,
    connect: impl FnMut(u64) -> Outcome<C>,
    other: impl FnMut() -> Outcome<WebSocket<T>> + Send,
) -> Outcome<(Lives<C::Kind>, Served)> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let probes = scope.spawn(|| serve_others(other, &over));
        let held = hold(count, connect);
        over.store(true, SeqCst);
        let served = join(probes);
        Ok((held?, served?))
    })
}

struct Held<C> {
    client: C,
    since: Instant,
    lived: Option<Duration>,
}

fn hold<C: Holder>(
    count: u64,
    mut connect: impl FnMut(u64) -> Outcome<C>,
) -> Outcome<Lives<C::Kind>> {
    let mut all = Vec::new();
    let mut tended = Instant::now();
    for number in 0..count {
        let since = Instant::now();
        all.push(Held {
            client: connect(number)?,
            since,
            lived: None,
        });
        if tended.elapsed() > TEND_EVERY {
            tend(&mut all)?;
            tended = Instant::now();
        }
    }
    let deadline = Instant::now() + DEADLINE;
    loop {
        tend(&mut all)?;
        let Some(held) = all.iter().find(|held| held.lived.is_none()) else {
            break;
        };
        ensure!(
            Instant::now() < deadline,
            "a peer of kind {:?} is still connected after {:?}",
            held.client.kind(),
            held.since.elapsed()
        );
        thread::sleep(TEND_EVERY);
    }
    let lives = all
        .into_iter()
        .map(|held| (held.client.kind(), held.lived.unwrap_or_default()));
    Ok(Lives(lives.collect()))
}

/// Lets each client act whose time has come.
fn tend<C: Holder>(all: &mut [Held<C>]) -> Outcome {
    let now = Instant::now();
    for held in all.iter_mut().filter(|held| held.lived.is_none()) {
        held.client.act(now);
        if held.client.has_ended()? {
            held.lived = Some(held.since.elapsed());
        }
    }
    Ok(())
}

/// Connects new clients one after the other, each of which must get an echo in time.
fn serve_others<T: Transport>(
    mut connect: impl FnMut() -> Outcome<WebSocket<T>>,
    over: &AtomicBool,
) -> Outcome<Served> {
    let mut served = Served::default();
    while !over.load(SeqCst) {
        let start = Instant::now();
        let mut client = connect().during("a new client")?;
        client
            .send(Message::text("still there?"))
            .during("a new client")?;
        let echo = client.read().during("a new client")?;
        ensure!(
            echo == Message::text("still there?"),
            "a new client received {echo:?} instead of its echo"
        );
        let took = start.elapsed();
        ensure!(
            took <= SERVED_WITHIN,
            "a new client was served after {took:?}"
        );
        served.slowest = served.slowest.max(took);
        served.count += 1;
        client.close(None).during("a new client's close")?;
        while client.read().is_ok() {}
        thread::sleep(Duration::from_millis(20));
    }
    Ok::<_, Failure>(served)
}
