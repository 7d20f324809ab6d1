//! The faults, and what has to hold after each.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::run::{Cluster, Plain, Plan, run};
use crate::check::{Outcome, ensure};
use crate::cluster::NODES;
use crate::scenarios::{Context, Report, mib};

/// With persistence, a server that was killed has every acknowledged message again: it hands a write to the operating system before
/// it answers. The disk is not waited for, which could take seconds on a busy machine.
const AOF: &[&str] = &["--appendonly", "yes", "--appendfsync", "no"];
/// The same, and loading a key takes a millisecond. Meanwhile the server accepts connections.
const SLOW_AOF: &[&str] = &[
    "--appendonly",
    "yes",
    "--key-load-delay",
    "1000",
    "--loading-process-events-interval-bytes",
    "1024",
];

/// How long a node that was killed may be counted: three seconds of silence after its last heartbeat, one second for the
/// answers that are waited for, and two on a busy machine.
const UNCOUNTED_MAX: Duration = Duration::from_secs(6);

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn plan(name: &'static str) -> Plan {
    Plan {
        name,
        ..Plan::default()
    }
}

impl Cluster {
    /// The load goes on for this many milliseconds at full size, and for a part of it in a quick run.
    fn pause(&mut self, ms: u64) -> Outcome {
        let ms = if self.quick { ms / 5 } else { ms * self.scale };
        self.go_on(Duration::from_millis(ms))
    }

    /// Waits until messages flow everywhere again since a moment, and notes how long that took.
    fn note_recovery(&mut self, since: Instant, what: &str) -> Outcome {
        self.wait_until_flowing()?;
        self.note(format!(
            "{} from {what} to messages everywhere",
            seconds(since.elapsed())
        ));
        Ok(())
    }
}

pub(crate) fn kill_node(context: &Context) -> Outcome<Report> {
    let fault = |cluster: &mut Cluster| {
        let victim = cluster.random.below(NODES as u64) as usize;
        let killed = Instant::now();
        cluster.kill_node(victim)?;
        cluster.faults = 1;
        cluster.wait_until_live()?;
        let live = killed.elapsed();
        let others = NODES as u64 - 1;
        cluster.wait("the killed node is not counted any more", |cluster| {
            Ok(cluster.count(0)?.is_some_and(|(_, nodes)| nodes == others))
        })?;
        let uncounted = killed.elapsed();
        ensure!(
            uncounted < UNCOUNTED_MAX,
            "the killed node was counted for {uncounted:?}"
        );
        let members = cluster.count(0)?.map(|(members, _)| members);
        let expected = cluster.clients.div_ceil(u64::from(cluster.rooms));
        ensure!(
            members == Some(expected),
            "{members:?} members were counted instead of {expected}"
        );
        cluster.note(format!(
            "node {victim} killed: all clients resumed after {}, not counted after {} (target 4 s)",
            seconds(live),
            seconds(uncounted)
        ));
        cluster.pause(2_000)
    };
    run(context, plan("cluster-kill-node"), fault, |account| {
        account.is_whole()
    })
}

pub(crate) fn rolling_restart(context: &Context) -> Outcome<Report> {
    let fault = |cluster: &mut Cluster| {
        let mut slowest = Duration::ZERO;
        for at in 0..NODES {
            let begun = Instant::now();
            let setup = cluster.stop_node(at)?;
            cluster.faults += 1;
            cluster.wait_until_live()?;
            slowest = slowest.max(begun.elapsed());
            cluster.start_node(at, setup)?;
            cluster.wait_until_flowing()?;
            cluster.pause(1_000)?;
        }
        cluster.note(format!(
            "clients resumed at most {} after a stop",
            seconds(slowest)
        ));
        Ok(())
    };
    run(context, plan("cluster-rolling-restart"), fault, |account| {
        account.is_whole()
    })
}

/// Kills Redis and starts it again.
fn kill_and_restart_redis(cluster: &mut Cluster) -> Outcome {
    let (gaps, clients) = (cluster.fleet.progress.gaps.load(SeqCst), cluster.clients);
    cluster.redis.kill()?;
    cluster.faults = 1;
    cluster.pause(1_500)?;
    cluster.redis.start_again()?;
    let back = Instant::now();
    cluster.note_recovery(back, "the server's return")?;
    cluster.wait("all clients are told of a gap", |cluster| {
        Ok(cluster.fleet.progress.gaps.load(SeqCst) >= gaps + clients)
    })?;
    let told = back.elapsed();
    cluster.note(format!("{} to the last gap (target 1 s)", seconds(told)));
    cluster.pause(1_500)
}

fn kill_redis_with(context: &Context, plan: Plan) -> Outcome<Report> {
    run(context, plan, kill_and_restart_redis, |account| {
        account.is_accounted()?;
        account.has_one_gap_each()
    })
}

pub(crate) fn kill_redis(context: &Context) -> Outcome<Report> {
    kill_redis_with(context, plan("cluster-kill-redis"))
}

pub(crate) fn kill_redis_aof(context: &Context) -> Outcome<Report> {
    let plan = Plan {
        redis: AOF,
        ..plan("cluster-kill-redis-aof")
    };
    kill_redis_with(context, plan)
}

/// Redis takes seconds to load its histories after a restart. Meanwhile it accepts connections, and refuses commands; nodes wait for it.
pub(crate) fn redis_loads(context: &Context) -> Outcome<Report> {
    let plan = Plan {
        redis: SLOW_AOF,
        ..plan("cluster-redis-loads")
    };
    let fault = |cluster: &mut Cluster| {
        // Only keys of a snapshot are loaded slowly.
        cluster.redis.command(&["BGREWRITEAOF"])?;
        cluster.wait("the snapshot is complete", |cluster| {
            Ok(cluster.redis.info("aof_rewrite_in_progress")? == 0)
        })?;
        cluster.redis.kill()?;
        cluster.faults = 1;
        let begun = Instant::now();
        cluster.redis.start_again()?;
        cluster.note(format!("loaded for {}", seconds(begun.elapsed())));
        cluster.note_recovery(Instant::now(), "the end of loading")?;
        cluster.pause(3_000)
    };
    run(context, plan, fault, |account| {
        account.is_accounted()?;
        account.has_dropped_nothing()
    })
}

/// Rooms without a history beside those with one, while Redis is killed.
pub(crate) fn plain_beside(context: &Context) -> Outcome<Report> {
    let plan = Plan {
        plain: Plain::Loaded,
        ..plan("cluster-plain")
    };
    kill_redis_with(context, plan)
}

pub(crate) fn freeze_redis(context: &Context) -> Outcome<Report> {
    let fault = |cluster: &mut Cluster| {
        cluster.redis.signal(Signal::STOP)?;
        cluster.faults = 1;
        // Longer than the three seconds after which nodes connect anew.
        let ms = if cluster.quick { 3_500 } else { 5_000 };
        cluster.go_on(Duration::from_millis(ms))?;
        cluster.redis.signal(Signal::CONT)?;
        cluster.note_recovery(Instant::now(), "the thaw")?;
        cluster.pause(1_500)
    };
    run(context, plan("cluster-freeze-redis"), fault, |account| {
        account.is_whole()
    })
}

pub(crate) fn freeze_node(context: &Context) -> Outcome<Report> {
    let fault = |cluster: &mut Cluster| {
        let victim = cluster.random.below(NODES as u64) as usize;
        cluster.node(victim)?.server.signal(Signal::STOP)?;
        cluster.faults = 1;
        let ms = if cluster.quick { 3_500 } else { 6_000 };
        cluster.go_on(Duration::from_millis(ms))?;
        cluster.node(victim)?.server.signal(Signal::CONT)?;
        cluster.note_recovery(Instant::now(), "the thaw")?;
        cluster.pause(1_500)
    };
    run(context, plan("cluster-freeze-node"), fault, |account| {
        account.is_whole()
    })
}

pub(crate) fn client_kill(context: &Context) -> Outcome<Report> {
    let fault = |cluster: &mut Cluster| {
        cluster.faults = if cluster.quick { 10 } else { 30 };
        let mut killed_any = false;
        for _ in 0..cluster.faults {
            let ms = cluster
                .random
                .between(20, if cluster.quick { 200 } else { 700 });
            cluster.go_on(Duration::from_millis(ms))?;
            let kill = ["CLIENT", "KILL", "TYPE", "pubsub"];
            let killed = cluster.redis.command(&kill)?;
            // A node may be between two connections.
            killed_any |= killed.trim() != ":0";
        }
        ensure!(killed_any, "no connection was killed");
        cluster.note_recovery(Instant::now(), "the last kill")?;
        cluster.pause(1_500)
    };
    run(context, plan("cluster-client-kill"), fault, |account| {
        account.is_whole()
    })
}

/// The 99th percentile.
fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let at = times.len() * 99 / 100;
    times.get(at).copied().unwrap_or_default()
}

pub(crate) fn outage_joins(context: &Context) -> Outcome<Report> {
    let plan = Plan {
        plain: Plain::Joined,
        ..plan("cluster-outage-joins")
    };
    let fault = |cluster: &mut Cluster| {
        // The load would make both measurements depend on chance.
        cluster.quiet()?;
        cluster.fleet.reconnect();
        cluster.wait("the clients have disconnected", |cluster| {
            Ok(cluster.fleet.progress.live.load(SeqCst) < cluster.clients)
        })?;
        cluster.wait_until_live()?;
        let up = cluster.fleet.times()?;
        cluster.redis.kill()?;
        cluster.faults = 1;
        cluster.wait_until_disconnected()?;
        cluster.fleet.hold(true);
        cluster.fleet.reconnect();
        cluster.wait("all joins are answered", |cluster| {
            Ok(cluster.fleet.progress.busy.load(SeqCst) == cluster.clients)
        })?;
        let down = cluster.fleet.times()?;
        ensure!(
            down.plain.len() as u64 == cluster.clients,
            "{} joins of rooms without a history succeeded during the outage",
            down.plain.len()
        );
        cluster.redis.start_again()?;
        let back = Instant::now();
        cluster.fleet.hold(false);
        cluster.wait_until_live()?;
        let joined = back.elapsed();
        let (up, down, plain) = (p99(up.kept), p99(down.kept), p99(down.plain));
        cluster.note(format!(
            "p99 of connect and answered join: {:.1} ms with Redis, {:.1} ms without, ratio {:.2} (target 1.5); p99 of a join \
             without a history during the outage {:.1} ms; all joined {} after the server's return",
            up.as_secs_f64() * 1e3,
            down.as_secs_f64() * 1e3,
            down.as_secs_f64() / up.as_secs_f64(),
            plain.as_secs_f64() * 1e3,
            seconds(joined)
        ));
        Ok(())
    };
    run(context, plan, fault, |account| account.is_accounted())
}

pub(crate) fn evict(context: &Context) -> Outcome<Report> {
    let fault = |cluster: &mut Cluster| {
        let used = cluster.redis.info("used_memory")?;
        let base = cluster.redis.info("used_memory_startup")?;
        let limit = base + (used - base) * 3 / 4;
        cluster
            .redis
            .command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"])?;
        cluster
            .redis
            .command(&["CONFIG", "SET", "maxmemory", &limit.to_string()])?;
        cluster.pause(5_000)?;
        cluster
            .redis
            .command(&["CONFIG", "SET", "maxmemory", "0"])?;
        let evicted = cluster.redis.info("evicted_keys")?;
        ensure!(evicted > 0, "Redis has evicted no key");
        cluster.faults = evicted;
        cluster.note(format!(
            "{evicted} keys evicted at {:.1} of {:.1} MiB",
            mib(limit),
            mib(used)
        ));
        cluster.note_recovery(Instant::now(), "the end")?;
        cluster.pause(1_500)
    };
    run(context, plan("cluster-evict"), fault, |account| {
        account.has_gaps_for_losses()
    })
}
