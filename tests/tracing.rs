//! The spans and events of the feature `tracing`, which are not logged a second time.

mod support;

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use humphrey_ws::{AsyncWebsocketApp, Message, Origins};
use support::{
    Client, client_frame, close_code, eventually, raw_websocket, read_frame, read_head, start, tcp,
};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn with(&self, what: &[&str]) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text
            .lines()
            .filter(|line| what.iter().all(|what| line.contains(what)));
        lines.map(str::to_owned).collect()
    }
}

/// The lines that reach `log`. There must be none.
struct Nothing(Mutex<Vec<String>>);

impl log::Log for Nothing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // Other crates may log.
        if record.target().starts_with("humphrey_ws") {
            self.0.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

static LOGGED: Nothing = Nothing(Mutex::new(Vec::new()));

// A single test, because a process has one subscriber.
#[test]
fn connections_are_spans_and_verdicts_events_once() {
    log::set_logger(&LOGGED).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .without_time()
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let app = AsyncWebsocketApp::<()>::new()
        .with_allowed_origins(Origins::Same)
        .with_message_handler(|stream, message: Message, _| {
            tracing::info!("the handler has {:?}", message.text());
            stream.send(message);
        });
    let (running, address) = start(app);

    let mut client = Client::connect_to(address, "/news?token=s3cret");
    let peer = format!("peer={}", client.address());
    client.send("hello");
    assert_eq!(client.receive_text(), "hello");
    // Events of the program are inside the span of their connection.
    let own = lines.with(&["the handler has", "hello"]);
    assert_eq!(own.len(), 1, "{own:?}");
    assert!(
        own[0].contains(&peer) && own[0].contains("path=\"/news\""),
        "{own:?}"
    );
    assert_eq!(lines.with(&["opened", &peer]).len(), 1);
    client.close();
    eventually("the disconnect is reported", || {
        lines.with(&["ended", &peer]).len() == 1
    });

    let mut breaker = raw_websocket(address);
    breaker
        .write_all(&client_frame(0x83, b"a reserved opcode"))
        .unwrap();
    assert_eq!(close_code(&read_frame(&mut breaker).unwrap().1), 1002);
    let peer = format!("peer={}", breaker.local_addr().unwrap());
    assert_eq!(lines.with(&["broke the protocol", &peer]).len(), 1);

    let mut foreign = tcp(address);
    let request = support::upgrade_request("/").replace("\r\n\r\n", "\r\nOrigin: null\r\n\r\n");
    foreign.write_all(request.as_bytes()).unwrap();
    assert!(read_head(&mut foreign).starts_with("HTTP/1.1 403"));
    let peer = foreign.local_addr().unwrap().to_string();
    assert_eq!(lines.with(&["was refused", "DEBUG", &peer]).len(), 1);
    assert_eq!(
        lines.with(&["may not connect", "WARN", "\"null\""]).len(),
        1
    );

    // Queries may contain tokens, which must not reach logs.
    assert_eq!(lines.with(&["s3cret"]), Vec::<String>::new());

    running.shutdown(Duration::from_secs(1));
    assert_eq!(*LOGGED.0.lock().unwrap(), Vec::<String>::new());
}
