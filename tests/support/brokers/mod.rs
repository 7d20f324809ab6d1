//! Broker servers of a test's own, and what tests do with any of them.

#![allow(dead_code, unused_imports, unused_macros)] // Each binary with tests uses some of it.

mod nats;
mod process;
mod redis;
mod sentinels;

use std::ops::DerefMut;

pub(crate) use self::nats::NatsServer;
pub(crate) use self::process::{ServerProcess, free_port};
pub(crate) use self::redis::{PERSISTENT, RedisServer};
pub(crate) use self::sentinels::Sentinels;

/// A broker server, which can be killed, restarted, frozen and thawed.
pub(crate) trait TestBroker: DerefMut<Target = ServerProcess> + Sized {
    /// Starts a server. Returns `None` if it is not installed, and says so on standard error, so that the test can pass without.
    fn start() -> Option<Self>;

    /// Returns the URL for [`Cluster`](humphrey_ws::Cluster).
    fn url(&self) -> String;
}

/// Runs test functions, which are generic over the broker, with each kind of it.
macro_rules! with_each_broker {
    ($($test:ident),+ $(,)?) => {
        mod redis {
            $(#[test]
            fn $test() {
                super::$test::<crate::brokers::RedisServer>();
            })+
        }

        mod nats {
            $(#[test]
            fn $test() {
                super::$test::<crate::brokers::NatsServer>();
            })+
        }
    };
}

pub(crate) use with_each_broker;
