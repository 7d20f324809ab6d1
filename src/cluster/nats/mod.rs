//! A connection to a NATS server (the protocol of NATS clients, without JetStream), as a state machine.
//!
//! A server answers neither subscriptions nor messages. So what was sent in one turn is followed by a `PING`, and confirmed by
//! its `PONG`: a server handles the commands of a connection in their order. Errors name the subject, and arrive before that
//! `PONG`.
//!
//! This node's own messages do not come back (`echo: false`). Its heartbeats are reported nevertheless, once they are confirmed:
//! they show the node that the server is alive.
//!
//! A user of the server needs the rights to publish and to subscribe to `prefix.>`.

mod decoder;
mod info;
mod subjects;
pub(super) mod url;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;

use self::decoder::{NatsDecoder, NatsFrame};
use self::info::ServerInfo;
use self::subjects::put_subject;
use self::url::NatsUrl;
use super::broker::{Broker, BrokerError, Channel, Command, Event, Incarnation, Kind, Refused};

/// The most bytes of messages between two `PING`s.
const CONFIRMED_BYTES: usize = 64 << 10;
/// The most characters of an error that are reported.
const REPORTED_CHARS_MAX: usize = 200;

/// A connection to a server.
#[derive(Debug)]
pub(crate) struct Nats {
    decoder: NatsDecoder,
    session: NatsSession,
}

/// What is known of a connection, except received bytes.
#[derive(Debug)]
struct NatsSession {
    url: NatsUrl,
    state: State,
    /// The subscriptions of this connection. Their numbers are not used again, since messages for ended ones may still arrive.
    channels: HashMap<u64, Channel>,
    numbers: HashMap<Channel, u64>,
    subscriptions: u64,
    /// What was sent, each part with a `PING`, oldest first.
    unconfirmed: VecDeque<Part>,
    /// What was sent since the last `PING`.
    part: Part,
    /// `PING`s of the server that were not answered.
    pings: usize,
    /// The longest message that the server takes.
    payload_bytes_max: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// The server describes itself first.
    Greeting,
    /// It is described; TLS begins now, if the URL asks for it.
    Greeted(Incarnation),
    /// The credentials were sent.
    Connecting(Incarnation),
    Ready,
}

/// Commands that are confirmed together.
#[derive(Debug, Default)]
struct Part {
    subscribed: Vec<Channel>,
    published: Vec<Sent>,
    bytes: usize,
}

/// A message that is not confirmed.
#[derive(Debug)]
struct Sent {
    channel: Channel,
    /// A message to the nodes, which is reported when it is confirmed.
    echo: Option<Bytes>,
    refused: Option<Arc<str>>,
}

impl Nats {
    /// Longer envelopes than `message_bytes_max` are reported as empty.
    pub(crate) fn new(url: NatsUrl, message_bytes_max: usize) -> Self {
        Self {
            decoder: NatsDecoder::new(message_bytes_max),
            session: NatsSession::new(url),
        }
    }
}

impl Broker for Nats {
    fn connect(&mut self, _: &mut Vec<u8>) {
        self.decoder.reset();
        self.session = NatsSession::new(self.session.url.clone());
    }

    fn begins_tls(&self) -> bool {
        matches!(self.session.state, State::Greeted(_)) && self.session.url.tls
    }

    fn message_bytes_max(&self) -> usize {
        self.session.payload_bytes_max
    }

    fn command(&mut self, command: Command, out: &mut Vec<u8>) {
        self.session.command(command, out);
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        self.session.flush(out);
    }

    fn received(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), BrokerError> {
        self.decoder.push(bytes);
        while let Some(frame) = self.decoder.next().map_err(protocol)? {
            self.session.frame(frame, events)?;
        }
        if self.begins_tls() && !self.decoder.is_empty() {
            return Err(protocol("it sends something before TLS"));
        }
        Ok(())
    }
}

/// Sending.
impl NatsSession {
    fn new(url: NatsUrl) -> Self {
        Self {
            url,
            state: State::Greeting,
            channels: HashMap::new(),
            numbers: HashMap::new(),
            subscriptions: 0,
            unconfirmed: VecDeque::new(),
            part: Part::default(),
            pings: 0,
            payload_bytes_max: usize::MAX,
        }
    }

    fn put_connect(&self, out: &mut Vec<u8>) {
        let url = &self.url;
        let mut options = json!({
            "verbose": false, "pedantic": false, "echo": false, "headers": false, "no_responders": false,
            "tls_required": url.tls, "protocol": 1, "lang": "rust", "version": env!("CARGO_PKG_VERSION"), "name": url.app,
        });
        match (&url.user, &url.password) {
            (Some(user), Some(password)) => {
                options["user"] = user.as_str().into();
                options["pass"] = password.as_str().into();
            }
            (Some(token), None) => options["auth_token"] = token.as_str().into(),
            (None, Some(password)) => options["pass"] = password.as_str().into(),
            (None, None) => {}
        }
        out.extend_from_slice(format!("CONNECT {options}\r\nPING\r\n").as_bytes());
    }

    fn command(&mut self, command: Command, out: &mut Vec<u8>) {
        match command {
            Command::Subscribe(channels) => {
                for channel in channels {
                    self.subscribe(channel, out);
                }
            }
            Command::Unsubscribe(channels) => {
                for channel in channels {
                    if let Some(number) = self.numbers.remove(&channel) {
                        self.channels.remove(&number);
                        out.extend_from_slice(format!("UNSUB {number}\r\n").as_bytes());
                    }
                }
            }
            Command::Publish { channel, envelope } => self.publish(channel, envelope, out),
            // Refused at once, though an app with histories does not start with this broker.
            Command::Append(_) | Command::Read(_) => {}
        }
    }

    fn subscribe(&mut self, channel: Channel, out: &mut Vec<u8>) {
        if !self.numbers.contains_key(&channel) {
            self.subscriptions += 1;
            let number = self.subscriptions;
            out.extend_from_slice(b"SUB ");
            put_subject(out, &self.url.app, &channel);
            out.extend_from_slice(format!(" {number}\r\n").as_bytes());
            self.numbers.insert(channel.clone(), number);
            self.channels.insert(number, channel.clone());
        }
        self.part.subscribed.push(channel);
    }

    fn publish(&mut self, channel: Channel, envelope: Bytes, out: &mut Vec<u8>) {
        let mut refused = None;
        if envelope.len() > self.payload_bytes_max {
            // The server would close the connection.
            let max = self.payload_bytes_max;
            let why = format!("it takes messages of {max} bytes at most (its max_payload)");
            refused = Some(why.into());
        } else {
            out.reserve(envelope.len() + 512);
            out.extend_from_slice(b"PUB ");
            put_subject(out, &self.url.app, &channel);
            out.extend_from_slice(format!(" {}\r\n", envelope.len()).as_bytes());
            out.extend_from_slice(&envelope);
            out.extend_from_slice(b"\r\n");
            self.part.bytes += envelope.len();
        }
        let echo = (channel == Channel::Nodes).then_some(envelope);
        self.part.published.push(Sent {
            channel,
            echo,
            refused,
        });
        if self.part.bytes >= CONFIRMED_BYTES {
            self.put_ping(out);
        }
    }

    /// Asks the server to confirm what was sent.
    fn put_ping(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"PING\r\n");
        self.unconfirmed.push_back(std::mem::take(&mut self.part));
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        if let State::Greeted(incarnation) = &self.state {
            self.put_connect(out);
            self.state = State::Connecting(incarnation.clone());
        }
        for _ in 0..std::mem::take(&mut self.pings) {
            out.extend_from_slice(b"PONG\r\n");
        }
        if !self.part.subscribed.is_empty() || !self.part.published.is_empty() {
            self.put_ping(out);
        }
    }
}

/// Receiving.
impl NatsSession {
    fn frame(&mut self, frame: NatsFrame<'_>, events: &mut Vec<Event>) -> Result<(), BrokerError> {
        match (&self.state, &frame) {
            (_, NatsFrame::Info(_) | NatsFrame::Error(_))
            | (State::Connecting(_) | State::Ready, _) => {}
            _ => return Err(protocol("it does not begin with INFO")),
        }
        match frame {
            NatsFrame::Message { sid, payload } => {
                // Otherwise it was unsubscribed meanwhile.
                if let Some(channel) = self.channels.get(&sid) {
                    events.push(Event::Message {
                        channel: channel.clone(),
                        id: None,
                        envelope: Bytes::copy_from_slice(payload.unwrap_or_default()),
                    });
                }
                Ok(())
            }
            NatsFrame::Ping => {
                self.pings += 1;
                // A server sends one at a time.
                match self.pings > 100 {
                    true => Err(protocol("it sends many PINGs at once")),
                    false => Ok(()),
                }
            }
            NatsFrame::Pong => self.pong(events),
            NatsFrame::Correct => Ok(()),
            NatsFrame::Info(json) => self.is_described(json),
            NatsFrame::Error(error) => self.error(error, events),
        }
    }

    fn is_described(&mut self, json: &[u8]) -> Result<(), BrokerError> {
        let info = ServerInfo::parse(json).ok_or_else(|| protocol("its INFO is malformed"))?;
        self.payload_bytes_max = info.payload_bytes_max;
        // Later ones report changes, such as further servers.
        if self.state == State::Greeting {
            info.check(self.url.tls)?;
            self.state = State::Greeted(Incarnation(info.server_id));
        }
        Ok(())
    }

    fn pong(&mut self, events: &mut Vec<Event>) -> Result<(), BrokerError> {
        if let State::Connecting(incarnation) = &self.state {
            events.push(Event::Ready(incarnation.clone()));
            self.state = State::Ready;
            return Ok(());
        }
        let part = self.unconfirmed.pop_front();
        let part = part.ok_or_else(|| protocol("it sends a PONG without a PING"))?;
        events.extend(part.subscribed.into_iter().map(Event::Subscribed));
        for sent in part.published {
            events.push(match sent.refused {
                None => Event::Published { receivers: 0 },
                Some(error) => Event::Refused(Refused {
                    command: Kind::Publish,
                    error,
                    passes: false,
                }),
            });
            events.extend(sent.echo.map(|envelope| Event::Message {
                channel: Channel::Nodes,
                id: None,
                envelope,
            }));
        }
        Ok(())
    }

    fn error(&mut self, error: &[u8], events: &mut Vec<Event>) -> Result<(), BrokerError> {
        let text = self.reported(error);
        let is = |begins: &str| {
            let begin = text.get(..begins.len()).unwrap_or_default();
            begin.eq_ignore_ascii_case(begins)
        };
        if is("Permissions Violation for Publish") {
            self.publish_is_refused(&text);
            return Ok(());
        }
        if is("Permissions Violation for Subscription") || is("Maximum Subscriptions Exceeded") {
            self.subscription_is_refused(&text, events);
            return Ok(());
        }
        if is("Invalid Subject") {
            return Ok(());
        }
        Err(
            match is("Authorization Violation")
                || is("Authentication")
                || is("User Authentication")
                || is("Account Authentication")
            {
                true => BrokerError::Authentication(text),
                false => BrokerError::Unusable(text),
            },
        )
    }

    /// An error as it may be reported.
    fn reported(&self, error: &[u8]) -> Arc<str> {
        let text = String::from_utf8_lossy(error);
        let secrets = [&self.url.password, &self.url.user];
        let has_secret = secrets
            .into_iter()
            .flatten()
            .any(|secret| text.contains(secret.as_str()));
        let text: String = match has_secret {
            true => text.split('"').next().unwrap_or_default().to_owned(),
            false => text.into(),
        };
        let text = text.chars().take(REPORTED_CHARS_MAX);
        let text: String = text
            .map(|char| if char.is_control() { ' ' } else { char })
            .collect();
        text.into()
    }

    /// Marks the oldest message that an error can be about. Errors name the subject in quotes.
    fn publish_is_refused(&mut self, text: &Arc<str>) {
        let app = &self.url.app;
        let parts = self.unconfirmed.iter_mut();
        let sent = parts.flat_map(|part| &mut part.published);
        let refused = sent
            .filter(|sent| sent.refused.is_none())
            .find(|sent| names(text, app, &sent.channel));
        if let Some(sent) = refused {
            sent.refused = Some(text.clone());
            sent.echo = None;
        }
    }

    fn subscription_is_refused(&mut self, text: &Arc<str>, events: &mut Vec<Event>) {
        let app = &self.url.app;
        for part in &mut self.unconfirmed {
            if let Some(at) = part
                .subscribed
                .iter()
                .position(|channel| names(text, app, channel))
            {
                let channel = part.subscribed.swap_remove(at);
                if let Some(number) = self.numbers.remove(&channel) {
                    self.channels.remove(&number);
                }
                break;
            }
        }
        events.push(Event::Refused(Refused {
            command: Kind::Subscribe,
            error: text.clone(),
            passes: true,
        }));
    }
}

/// Whether an error names the subject of a channel.
fn names(error: &str, app: &str, channel: &Channel) -> bool {
    let mut subject = vec![b'"'];
    put_subject(&mut subject, app, channel);
    subject.push(b'"');
    let error = error.as_bytes();
    error
        .windows(subject.len())
        .any(|part| part.eq_ignore_ascii_case(&subject))
}

fn protocol(violation: &'static str) -> BrokerError {
    BrokerError::Protocol(violation.into())
}

#[cfg(all(test, not(loom)))]
mod tests;
