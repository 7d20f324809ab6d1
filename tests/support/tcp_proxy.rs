//! A TCP proxy between nodes and their broker, whose connections break, stall in one direction, or lead elsewhere.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// A direction of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    ToServer,
    ToClient,
}

/// What all connections share.
struct State {
    upstream: Mutex<SocketAddr>,
    /// The sockets of both ends of all connections.
    sockets: Mutex<Vec<TcpStream>>,
    /// Directions in which nothing passes.
    stalled: Mutex<Vec<Direction>>,
    changed: Condvar,
    is_closed: AtomicBool,
}

/// A proxy on a port of its own.
pub(crate) struct TcpProxy {
    address: SocketAddr,
    state: Arc<State>,
}

impl TcpProxy {
    pub(crate) fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::new(State {
            upstream: Mutex::new(upstream),
            sockets: Mutex::default(),
            stalled: Mutex::default(),
            changed: Condvar::new(),
            is_closed: AtomicBool::new(false),
        });
        let of_thread = state.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if of_thread.is_closed.load(SeqCst) {
                    return;
                }
                // A server that does not listen ends the client's connection, as without a proxy.
                let _ = of_thread.connect(&client);
            }
        });
        Self { address, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The number of connections since the last [`cut`](Self::cut).
    pub(crate) fn connections(&self) -> usize {
        self.state.sockets.lock().unwrap().len() / 2
    }

    /// Breaks all connections. New ones lead to this server.
    pub(crate) fn switch(&self, upstream: SocketAddr) {
        *self.state.upstream.lock().unwrap() = upstream;
        self.cut();
    }

    /// Breaks all connections.
    pub(crate) fn cut(&self) {
        for socket in self.state.sockets.lock().unwrap().drain(..) {
            // It may have ended by itself.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Lets nothing pass in a direction; connections stay open, and new ones stall, too.
    pub(crate) fn stall(&self, direction: Direction) {
        self.state.stalled.lock().unwrap().push(direction);
    }

    /// Lets everything pass again, also what has been held back.
    pub(crate) fn resume(&self) {
        self.state.stalled.lock().unwrap().clear();
        self.state.changed.notify_all();
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.state.is_closed.store(true, SeqCst);
        self.cut();
        self.resume();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn connect(self: &Arc<Self>, client: &TcpStream) -> io::Result<()> {
        let server = TcpStream::connect(*self.upstream.lock().unwrap())?;
        for socket in [client, &server] {
            socket.set_nodelay(true)?;
        }
        self.sockets
            .lock()
            .unwrap()
            .extend([client.try_clone()?, server.try_clone()?]);
        for (from, to, direction) in [
            (client, &server, Direction::ToServer),
            (&server, client, Direction::ToClient),
        ] {
            let (from, to, state) = (from.try_clone()?, to.try_clone()?, self.clone());
            thread::spawn(move || {
                // The end of one direction ends the connection.
                let _ = state.forward(&from, &to, direction);
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
        Ok(())
    }

    fn forward(
        &self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        direction: Direction,
    ) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        loop {
            let len = from.read(&mut buffer)?;
            if len == 0 {
                return Ok(());
            }
            let mut stalled = self.stalled.lock().unwrap();
            while stalled.contains(&direction) {
                stalled = self.changed.wait(stalled).unwrap();
            }
            drop(stalled);
            to.write_all(&buffer[..len])?;
        }
    }
}
