//! Models of one connection's events on several handler threads. Core, mailbox and pool are the real ones.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{self, Ordering::Relaxed};
use std::time::Instant;

use loom::thread;

use super::{Reactor, check, hub, hub_with_handlers_max};
use crate::engine::handlers::inline::run_inline;
use crate::engine::handlers::run_queued;
use crate::engine::hub::Hub;
use crate::engine::model::command::Upgraded;
use crate::engine::model::job::MessageRun;
use crate::engine::model::program::{HandshakeAccept, Program, Subscriptions};
use crate::engine::model::request::{Request, Response};
use crate::engine::model::room::{Presence, SharedRoom};
use crate::engine::model::session::Session;
use crate::engine::parts::lease::Lease;
use crate::engine::parts::sync::{AtomicBool, Mutex, Ordering, lock};
use crate::engine::reactor::{Core, Readiness};
use crate::message::Message;
use crate::request::{Reject, RequestHead};
use crate::transport::{OneByOne, ShardTransport};

const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

/// A transport that returns one of these pieces a read, then the end of the stream.
struct Script {
    reads: VecDeque<Vec<u8>>,
    has_ended: Arc<atomic::AtomicBool>,
}

impl ShardTransport for Script {
    type Registry = ();
    type Writer = OneByOne;

    fn register(&mut self, (): &(), _: usize) -> io::Result<()> {
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.reads.pop_front().unwrap_or_default();
        if bytes.is_empty() {
            self.has_ended.store(true, Relaxed);
        }
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn write_vectored(&mut self, _: &[IoSlice<'_>]) -> io::Result<usize> {
        Err(ErrorKind::BrokenPipe.into())
    }

    fn finish(&mut self) {}
}

/// Records the calls, and checks that no two overlap.
struct CallLog {
    is_in_handler: AtomicBool,
    calls: Mutex<String>,
}

impl CallLog {
    fn note(&self, what: &str) {
        let overlaps = self.is_in_handler.swap(true, Ordering::SeqCst);
        assert!(!overlaps, "two handlers of one connection at a time");
        lock(&self.calls).push_str(what);
        self.is_in_handler.store(false, Ordering::SeqCst);
    }
}

impl Program for CallLog {
    fn subscriptions(&self) -> Subscriptions {
        Subscriptions {
            open: true,
            message: true,
            close: true,
            ..Subscriptions::default()
        }
    }

    fn entered(&self, _: &Arc<Session>) {}
    fn left(&self, _: &Session) {}
    fn emptied(&self, _: &SharedRoom) {}
    fn room(&self, _: &Arc<Session>, _: &Arc<SharedRoom>, _: Presence) {}

    fn handshake(&self, _: &RequestHead) -> Result<HandshakeAccept, Reject> {
        panic!("the model has no handshakes")
    }

    fn open(&self, _: &Arc<Session>, _: Option<&Arc<RequestHead>>) {
        self.note("open ");
    }

    fn messages(&self, _: &Arc<Session>, messages: &mut MessageRun<'_, '_>) {
        messages.for_each(|message| self.note(message.text().unwrap()));
    }

    fn close(&self, _: &Arc<Session>) {
        self.note("close");
    }

    fn request(&self, _: Request) -> Response {
        panic!("the model has no routes")
    }
}

/// The main loop of a handler thread, as in `handlers::pool`.
fn work(hub: &Arc<Hub>, log: &CallLog, now: Instant) {
    let handover = &hub.jobs.queue;
    handover.started();
    while let Some((job, start)) = handover.take(now, true).or_else(|| {
        hub.wake_deferred();
        handover.take_or_wait(|| now, true)
    }) {
        assert_eq!(start, 0, "all threads exist already");
        run_queued(hub, log, job);
    }
}

/// A client that sends these pieces and disconnects. Its handshake was answered by a host.
fn client(reads: &[[u8; 2]], has_ended: &Arc<atomic::AtomicBool>) -> (Script, Upgraded) {
    // Masked with zeros: two bytes of text, and two more in another read.
    let frame = |text: &[u8; 2]| vec![0x81, 0x82, 0, 0, 0, 0, text[0], text[1]];
    let script = Script {
        reads: reads.iter().map(frame).collect(),
        has_ended: has_ended.clone(),
    };
    let upgraded = Upgraded {
        is_answered: true,
        ..Upgraded::default()
    };
    (script, upgraded)
}

fn log() -> Arc<CallLog> {
    Arc::new(CallLog {
        is_in_handler: AtomicBool::new(false),
        calls: Mutex::new(String::new()),
    })
}

/// Reports readiness to read, as a poll would.
fn report(core: &mut Core<Script>) {
    for key in core.conns.keys() {
        let readiness = Readiness {
            readable: true,
            ..Readiness::default()
        };
        core.ready(key.token().unwrap(), readiness);
    }
}

#[test]
fn loom_events_are_handled_in_order_without_overlap() {
    check(Some(2), || {
        let log = log();
        let (hub, alarms) = hub(1, 2, log.clone());
        let mut shard = Reactor::new(0, &hub, log.clone(), (), &alarms);
        let now = shard.now;
        let handlers: Vec<_> = (0..2)
            .map(|_| {
                let (hub, log) = (hub.clone(), log.clone());
                thread::spawn(move || work(&hub, &log, now))
            })
            .collect();
        let has_ended = Arc::new(atomic::AtomicBool::new(false));
        hub.shards[0].load.fetch_add(1, Relaxed);
        let mut arrival = Some(client(&[*b"1 ", *b"2 "], &has_ended));
        loop {
            shard.turn(|core| {
                if let Some((script, upgraded)) = arrival.take() {
                    core.insert(script, PEER, None, Some(upgraded));
                }
                report(core);
            });
            if shard.core.conns.len() == 0 {
                break;
            }
            if has_ended.load(Relaxed) {
                shard.sleep();
            }
        }
        hub.jobs.close();
        for handler in handlers {
            handler.join().unwrap();
        }
        assert_eq!(*lock(&log.calls), "open 1 2 close");
    });
}

/// A shard that is lent out.
struct Lent {
    reactor: Reactor<Script>,
    has_ended: Arc<atomic::AtomicBool>,
}

/// The main loop of a shard's thread, as in `Shard::work`.
fn turn_and_handle(
    hub: &Arc<Hub>,
    log: &CallLog,
    lease: &Lease<Box<Lent>>,
    mut next: Option<Box<Lent>>,
) {
    let run = hub.jobs.add_shard_thread();
    while let Some(mut shard) = next {
        let now = shard.reactor.now;
        loop {
            shard.reactor.turn(report);
            if shard.reactor.core.has_jobs() {
                match run_inline(
                    hub,
                    log,
                    lease,
                    &run,
                    shard,
                    |shard| &mut shard.reactor.core,
                    || now,
                ) {
                    Some(back) => shard = back,
                    None => break,
                }
                shard.reactor.turn(report);
            }
            if shard.reactor.core.conns.len() == 0 && !shard.reactor.core.has_jobs() {
                hub.jobs.close();
                lease.close();
                return;
            }
            if shard.has_ended.load(Relaxed) {
                shard.reactor.sleep();
            }
        }
        next = lease.wait().map(|mut shard| {
            shard.reactor.core.was_handed_on(now);
            shard
        });
    }
}

#[test]
fn loom_inline_events_are_handled_in_order_when_handed_on() {
    // Two threads of the shard, one of the pool, and the watchdog, which hands the shard on while a handler runs.
    check(Some(2), || {
        let log = log();
        let (hub, alarms) = hub_with_handlers_max(1, 2, 1, log.clone());
        let lease = Arc::new(Lease::new(true));
        let mut reactor = Reactor::new(0, &hub, log.clone(), (), &alarms);
        let now = reactor.now;
        let has_ended = Arc::new(atomic::AtomicBool::new(false));
        hub.shards[0].load.fetch_add(1, Relaxed);
        let (script, upgraded) = client(&[*b"1 ", *b"2 "], &has_ended);
        reactor.turn(|core| core.insert(script, PEER, None, Some(upgraded)));
        let shard = Box::new(Lent { reactor, has_ended });
        let handler = {
            let (hub, log) = (hub.clone(), log.clone());
            thread::spawn(move || work(&hub, &log, now))
        };
        let spare = {
            let (hub, log, lease) = (hub.clone(), log.clone(), lease.clone());
            thread::spawn(move || {
                let shard = lease.wait().map(|mut shard: Box<Lent>| {
                    shard.reactor.core.was_handed_on(now);
                    shard
                });
                turn_and_handle(&hub, &log, &lease, shard);
            })
        };
        let watch = {
            let lease = lease.clone();
            thread::spawn(move || {
                let mut seen = 0;
                lease.look(&mut seen);
                lease.look(&mut seen);
            })
        };
        turn_and_handle(&hub, &log, &lease, Some(shard));
        for thread in [handler, spare, watch] {
            thread.join().unwrap();
        }
        assert_eq!(*lock(&log.calls), "open 1 2 close");
    });
}
