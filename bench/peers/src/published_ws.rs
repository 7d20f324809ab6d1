//! The last published humphrey_ws, with its defaults. Its handlers know no path; only the publisher of a fan-out sends.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use published::async_app::AsyncWebsocketApp;

use crate::registry::{self, Job};

/// Timeout for the server to start listening.
const PATIENCE: Duration = Duration::from_secs(5);

pub fn serve(job: Job) -> io::Result<()> {
    let address = free_address()?;
    thread::spawn(move || match listening(address) {
        Ok(()) => crate::ready(address),
        Err(error) => eprintln!("{address}: {error}"),
    });
    let app = AsyncWebsocketApp::<()>::new().with_address(address);
    let app = match job {
        Job::FanOut => app.with_message_handler(|stream, message, _| stream.broadcast(message)),
        Job::Echo | Job::Blocked => app.with_message_handler(move |stream, message, _| {
            registry::handle(job, message.bytes());
            stream.send(message);
        }),
    };
    app.run();
    Err(io::Error::other("it came to an end by itself"))
}

/// The server does not report its port, so it gets one that was free a moment ago.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

fn listening(address: SocketAddr) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(_) => return Ok(()),
            Err(error) if begun.elapsed() > PATIENCE => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}
