//! Compressed messages, over real sockets, with the library's own client.

use std::time::Duration;

use humphrey_ws::websocket_client::Client;
use humphrey_ws::{AsyncWebsocketApp, Compression, Message};

fn connect(address: std::net::SocketAddr) -> Client {
    let client = Client::builder(&format!("ws://{address}/"))
        .with_compression()
        .with_read_timeout(Some(Duration::from_secs(60)))
        .connect()
        .unwrap();
    assert!(client.header("Sec-WebSocket-Extensions").is_some());
    client
}

fn tick(n: usize) -> String {
    format!(
        r#"{{"type":"tick","symbol":"EUR/USD","bid":1.{:05},"ask":1.{:05},"time":{}}}"#,
        n * 7919 % 100_000,
        n * 104_729 % 100_000,
        1_700_000_000 + n
    )
}

#[test]
fn broadcasts_to_followers_and_late_joiners_arrive_unchanged() {
    let app = AsyncWebsocketApp::<()>::new()
        .with_address("127.0.0.1:0")
        .with_compression(Compression::new())
        .with_message_handler(|stream, message, _| {
            stream.send(message);
        });
    let running = app.start().unwrap();
    let address = running.local_addr().unwrap();
    let sender = running.sender();
    let mut clients: Vec<Client> = (0..4).map(|_| connect(address)).collect();
    while sender.metrics().connections < 4 {
        std::thread::yield_now();
    }
    for n in 0..1_000 {
        sender.broadcast(Message::new(tick(n)));
        for client in &mut clients {
            assert_eq!(
                client.receive().unwrap().text(),
                Some(tick(n).as_str()),
                "{n}"
            );
        }
        if n == 500 {
            let before = clients.len() as u64;
            clients.push(connect(address));
            while sender.metrics().connections == before {
                std::thread::yield_now();
            }
        }
    }
    let compression = sender.metrics().compression;
    assert!(
        compression.sent_bytes * 3 < compression.plain_bytes,
        "{compression:?}"
    );
    assert!(
        compression.epochs >= 2 && compression.epochs < 10,
        "{compression:?}"
    );
    assert_eq!(compression.packed, 1_000);
}
