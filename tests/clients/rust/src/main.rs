//! Plays a run of the example `compression_server` with yawc: `compression_client HOST:PORT`.

use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use yawc::frame::OpCode;
use yawc::{Frame, Options, WebSocket};

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

const CONNECTIONS: usize = 3;
const PING_EVERY: usize = 100;
const HEADER: usize = 16;

type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    println!("yawc 0.5.0");
    let address = std::env::args()
        .nth(1)
        .ok_or("usage: compression_client HOST:PORT")?;
    let slots = (0..CONNECTIONS).map(|_| play_slot(&address));
    let messages: usize = futures::future::try_join_all(slots)
        .await?
        .into_iter()
        .sum();
    println!("{messages} messages");
    Ok(())
}

async fn play_slot(address: &str) -> Outcome<usize> {
    let mut messages = 0;
    loop {
        let (count, again) = play_connection(address).await?;
        messages += count;
        if !again {
            return Ok(messages);
        }
    }
}

/// Plays one connection. Returns the number of received messages, and whether the client must reconnect.
async fn play_connection(address: &str) -> Outcome<(usize, bool)> {
    let head = Arc::new(Mutex::new(Vec::new()));
    let stream = HeadRecorder {
        stream: TcpStream::connect(address).await?,
        head: head.clone(),
    };
    let options = Options::default()
        .with_balanced_compression()
        .with_limits(16 << 20, 32 << 20)
        .with_utf8();
    let url = format!("ws://{address}/").parse()?;
    let mut socket = WebSocket::handshake(url, stream, options).await?;
    let extensions = extensions(&head.lock().unwrap());
    socket
        .send(Frame::text(format!("hello {extensions}")))
        .await?;

    // Each ping carries its number, and the pongs must return these in order. The server replaces a queued pong with a newer one
    // only if 16 control frames are queued, and this client never has so many pings in flight.
    let mut member = Member::default();
    let (mut pings, mut pongs) = (0, 0);
    while let Some(frame) = socket.next().await {
        let text = match frame.opcode() {
            OpCode::Text => true,
            OpCode::Binary => false,
            OpCode::Pong => {
                if frame.payload() != pongs.to_string().as_str() {
                    return Err(format!("pong {:?} instead of {pongs}", frame.payload()).into());
                }
                pongs += 1;
                match member.ended {
                    Some(again) if pongs == pings => {
                        leave(socket, again).await?;
                        return Ok((member.count, again));
                    }
                    _ => continue,
                }
            }
            // yawc replies itself.
            OpCode::Ping => continue,
            opcode => return Err(format!("unexpected frame: {opcode:?}").into()),
        };
        if member.ended.is_some() {
            continue;
        }
        match member.receive(text, frame.payload()) {
            Ok(answers) => {
                for (text, payload) in answers {
                    let answer = if text {
                        Frame::text(payload)
                    } else {
                        Frame::binary(payload)
                    };
                    socket.send(answer).await?;
                }
            }
            Err(difference) => {
                socket
                    .send(Frame::text(format!("failed {difference}")))
                    .await?;
                return Err(difference.into());
            }
        }
        if member.ended.is_some() || member.count % PING_EVERY == 1 {
            socket.send(Frame::ping(pings.to_string())).await?;
            pings += 1;
        }
    }
    Err("the server closed the connection before `end`".into())
}

/// Ends the connection with a closing handshake, or drops it if `vanish` is true. The caller must have received a pong after its
/// last reply. Otherwise, a drop could lose replies that the server has not read.
async fn leave(mut socket: WebSocket<HeadRecorder>, vanish: bool) -> Outcome<()> {
    if !vanish {
        socket.close().await?;
    }
    Ok(())
}

fn extensions(head: &[u8]) -> String {
    let head = String::from_utf8_lossy(head);
    let lines = head.split("\r\n\r\n").next().unwrap_or_default().lines();
    let mut fields = lines.filter_map(|line| line.split_once(": "));
    let field = fields.find(|(name, _)| name.eq_ignore_ascii_case("Sec-WebSocket-Extensions"));
    field.map_or(String::new(), |(_, value)| value.to_owned())
}

/// The state of one connection.
#[derive(Default)]
struct Member {
    begun: bool,
    count: usize,
    hash: u32,
    last: Option<(bool, Vec<u8>)>,
    /// After `end` has arrived: whether the client must reconnect.
    ended: Option<bool>,
}

impl Member {
    /// Handles a message. Returns the replies: whether each is text, and its payload.
    fn receive(&mut self, is_text: bool, payload: &[u8]) -> Result<Vec<(bool, Vec<u8>)>, String> {
        let text = if is_text {
            std::str::from_utf8(payload).map_err(|error| error.to_string())?
        } else {
            ""
        };
        if !self.begun {
            self.begun = text == "begin";
            return Ok(Vec::new());
        }
        let ours = format!("{} {:08x}", self.count, self.hash);
        if let Some(end) = text.strip_prefix("end ") {
            let (theirs, what) = end.rsplit_once(' ').ok_or("invalid `end` message")?;
            if theirs != ours {
                return Err(format!("{ours} instead of {theirs}"));
            }
            self.ended = Some(what == "again");
            return Ok(vec![(true, format!("ended {ours}").into())]);
        }
        self.count += 1;
        self.hash = crc32(payload, crc32(if is_text { b"t" } else { b"b" }, self.hash));
        if text.starts_with("mark ") {
            let answer = format!("{text} {} {:08x}", self.count, self.hash);
            return Ok([(true, answer.into())]
                .into_iter()
                .chain(self.last.clone())
                .collect());
        }
        if let Some((header, body)) = payload.split_at_checked(HEADER)
            && header[7..15] != *format!("{:08x}", crc32(body, 0)).as_bytes()
        {
            return Err(format!(
                "the checksum of message {} differs",
                String::from_utf8_lossy(&header[..6])
            ));
        }
        self.last = Some((is_text, payload.to_vec()));
        Ok(Vec::new())
    }
}

fn crc32(bytes: &[u8], crc: u32) -> u32 {
    !bytes.iter().fold(!crc, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ ((crc & 1) * 0xedb8_8320)
        })
    })
}

/// A stream that records the first bytes from the server. They contain the negotiated extensions, which yawc does not expose.
struct HeadRecorder {
    stream: TcpStream,
    head: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for HeadRecorder {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        let mut head = self.head.lock().unwrap();
        if head.len() < 4096 {
            head.extend_from_slice(&buffer.filled()[filled..]);
        }
        result
    }
}

impl AsyncWrite for HeadRecorder {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
