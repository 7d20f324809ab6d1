//! What tests do with a broker, whichever it is.

#![allow(dead_code)] // Each test file uses some of it.

use crate::nats_server::NatsServer;
use crate::redis_server::RedisServer;

/// A broker server of a test's own.
pub(crate) trait TestBroker: Sized {
    /// Starts a server. Returns `None` if it is not installed, and says so on standard error, so that the test can pass without.
    fn start() -> Option<Self>;

    /// Returns the URL for [`Cluster`](humphrey_ws::Cluster).
    fn url(&self) -> String;

    /// Kills the server with SIGKILL.
    fn kill(&mut self);

    /// Starts the server again, on the same port.
    fn restart(&mut self);

    /// Stops the process of the server; its connections stay open.
    fn freeze(&self);

    /// Continues the process of the server.
    fn thaw(&self);
}

impl TestBroker for RedisServer {
    fn start() -> Option<Self> {
        Self::start(&[])
    }

    fn url(&self) -> String {
        self.url()
    }

    fn kill(&mut self) {
        self.kill();
    }

    fn restart(&mut self) {
        self.restart();
    }

    fn freeze(&self) {
        self.freeze();
    }

    fn thaw(&self) {
        self.thaw();
    }
}

impl TestBroker for NatsServer {
    fn start() -> Option<Self> {
        Self::start("")
    }

    fn url(&self) -> String {
        self.url()
    }

    fn kill(&mut self) {
        self.kill();
    }

    fn restart(&mut self) {
        self.restart();
    }

    fn freeze(&self) {
        self.freeze();
    }

    fn thaw(&self) {
        self.thaw();
    }
}

/// Runs test functions, which are generic over the broker, with each kind of it.
macro_rules! with_each_broker {
    ($($test:ident),+ $(,)?) => {
        mod redis {
            $(#[test]
            fn $test() {
                super::$test::<crate::redis_server::RedisServer>();
            })+
        }

        mod nats {
            $(#[test]
            fn $test() {
                super::$test::<crate::nats_server::NatsServer>();
            })+
        }
    };
}

pub(crate) use with_each_broker;
