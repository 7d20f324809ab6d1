//! A connection to a NATS server (the protocol of NATS clients, without JetStream), as a state machine.
//!
//! A server confirms neither subscriptions nor messages. So a `PING` follows the commands of a turn, and its `PONG` confirms them:
//! a server executes the commands of a connection in their order. Errors arrive before that `PONG`, and name a subject.
//!
//! The server does not send this node's own messages back (`echo: false`). The node's heartbeats are reported nevertheless, once
//! they are confirmed: they show that the server is alive.
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
use self::subjects::{channel_of, put_subject};
use self::url::NatsUrl;
use super::broker::{
    Broker, BrokerError, Channel, Command, Event, Incarnation, Kind, Refused, reported,
};

/// The most bytes of messages between two `PING`s, so that confirmations do not wait for the end of a long turn.
const BATCH_BYTES_MAX: usize = 64 << 10;
/// Stands for an error that contains a secret.
const NOT_REPORTED: &str = "an error that is not shown, since it contains a secret of the URL";

/// A connection to a server.
#[derive(Debug)]
pub(crate) struct Nats {
    decoder: NatsDecoder,
    session: NatsSession,
}

/// The state of a connection, without the received bytes that are not decoded.
#[derive(Debug)]
struct NatsSession {
    url: NatsUrl,
    state: State,
    /// The subscriptions by their number (sid). Numbers are not used again, since messages for ended subscriptions may still
    /// arrive.
    subscriptions: HashMap<u64, Subscription>,
    sids: HashMap<Channel, u64>,
    last_sid: u64,
    /// The commands in front of each `PING` that has no `PONG`, oldest first.
    unconfirmed: VecDeque<Batch>,
    /// The commands since the last `PING`.
    batch: Batch,
    /// Whether a `PING` of the server is not answered.
    has_ping: bool,
    /// The longest message that the server takes.
    payload_bytes_max: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// The server has not sent its `INFO`.
    Greeting,
    /// The server has sent its `INFO`. TLS begins now, if the URL asks for it.
    Greeted(Incarnation),
    /// `CONNECT` was sent.
    Connecting(Incarnation),
    Ready,
}

#[derive(Debug)]
struct Subscription {
    channel: Channel,
    is_confirmed: bool,
}

/// Commands that one `PONG` confirms.
#[derive(Debug, Default)]
struct Batch {
    /// The sids.
    subscribed: Vec<u64>,
    published: Vec<Publish>,
    /// Of the messages.
    bytes: usize,
    /// The first message that the next error can be about: errors arrive in the order of the messages.
    next_error: usize,
    /// Why a subscription was refused.
    subscription_error: Option<Arc<str>>,
    /// How many subscriptions exceed the limit of the server. They are the last ones.
    subscriptions_exceeding: usize,
}

/// A message that is not confirmed.
#[derive(Debug)]
struct Publish {
    channel: Channel,
    /// The envelope of a message to all nodes.
    echo: Option<Bytes>,
    error: Option<Arc<str>>,
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
            self.session.on_frame(frame, events)?;
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
            subscriptions: HashMap::new(),
            sids: HashMap::new(),
            last_sid: 0,
            unconfirmed: VecDeque::new(),
            batch: Batch::default(),
            has_ping: false,
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
                    if let Some(sid) = self.sids.remove(&channel) {
                        self.subscriptions.remove(&sid);
                        out.extend_from_slice(format!("UNSUB {sid}\r\n").as_bytes());
                    }
                }
            }
            Command::Publish { channel, envelope } => self.publish(channel, envelope, out),
            // An app with histories does not start with this broker.
            Command::Append(_) | Command::Read(_) => debug_assert!(false, "NATS keeps nothing"),
        }
    }

    fn subscribe(&mut self, channel: Channel, out: &mut Vec<u8>) {
        let sid = self.sids.get(&channel).copied().unwrap_or_else(|| {
            self.last_sid += 1;
            let sid = self.last_sid;
            out.extend_from_slice(b"SUB ");
            put_subject(out, &self.url.app, &channel);
            out.extend_from_slice(format!(" {sid}\r\n").as_bytes());
            self.sids.insert(channel.clone(), sid);
            let subscription = Subscription {
                channel,
                is_confirmed: false,
            };
            self.subscriptions.insert(sid, subscription);
            sid
        });
        self.batch.subscribed.push(sid);
    }

    fn publish(&mut self, channel: Channel, envelope: Bytes, out: &mut Vec<u8>) {
        let max = self.payload_bytes_max;
        let is_too_long = envelope.len() > max;
        // The server would close the connection.
        if !is_too_long {
            out.reserve(envelope.len() + 512);
            out.extend_from_slice(b"PUB ");
            put_subject(out, &self.url.app, &channel);
            out.extend_from_slice(format!(" {}\r\n", envelope.len()).as_bytes());
            out.extend_from_slice(&envelope);
            out.extend_from_slice(b"\r\n");
            self.batch.bytes += envelope.len();
        }
        let why = || format!("it takes messages of {max} bytes at most (its max_payload)").into();
        self.batch.published.push(Publish {
            echo: (channel == Channel::Nodes && !is_too_long).then_some(envelope),
            channel,
            error: is_too_long.then(why),
        });
        if self.batch.bytes >= BATCH_BYTES_MAX {
            self.put_ping(out);
        }
    }

    /// Asks the server to confirm the batch.
    fn put_ping(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"PING\r\n");
        self.unconfirmed.push_back(std::mem::take(&mut self.batch));
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        if let State::Greeted(incarnation) = &self.state {
            self.put_connect(out);
            self.state = State::Connecting(incarnation.clone());
        }
        // Servers send one PING at a time.
        if std::mem::take(&mut self.has_ping) {
            out.extend_from_slice(b"PONG\r\n");
        }
        if !self.batch.subscribed.is_empty() || !self.batch.published.is_empty() {
            self.put_ping(out);
        }
    }
}

/// Receiving.
impl NatsSession {
    fn on_frame(
        &mut self,
        frame: NatsFrame<'_>,
        events: &mut Vec<Event>,
    ) -> Result<(), BrokerError> {
        match (&self.state, &frame) {
            (_, NatsFrame::Info(_) | NatsFrame::Error(_))
            | (State::Connecting(_) | State::Ready, _) => {}
            _ => return Err(protocol("it does not begin with INFO")),
        }
        match frame {
            NatsFrame::Message { sid, payload } => {
                // Otherwise the subscription has ended meanwhile.
                if let Some(subscription) = self.subscriptions.get(&sid) {
                    events.push(Event::Message {
                        channel: subscription.channel.clone(),
                        id: None,
                        envelope: Bytes::copy_from_slice(payload.unwrap_or_default()),
                    });
                }
                Ok(())
            }
            NatsFrame::Ping => {
                self.has_ping = true;
                Ok(())
            }
            NatsFrame::Pong => self.on_pong(events),
            NatsFrame::Ok => Ok(()),
            NatsFrame::Info(json) => self.on_info(json),
            NatsFrame::Error(error) => self.on_error(&String::from_utf8_lossy(error)),
        }
    }

    fn on_info(&mut self, json: &[u8]) -> Result<(), BrokerError> {
        let info = ServerInfo::parse(json).ok_or_else(|| protocol("its INFO is malformed"))?;
        self.payload_bytes_max = info.payload_bytes_max;
        // Later ones report changes, such as further servers.
        if self.state == State::Greeting {
            info.check(self.url.tls)?;
            self.state = State::Greeted(Incarnation(info.server_id));
        }
        Ok(())
    }

    fn on_pong(&mut self, events: &mut Vec<Event>) -> Result<(), BrokerError> {
        if let State::Connecting(incarnation) = &self.state {
            events.push(Event::Ready(incarnation.clone()));
            self.state = State::Ready;
            return Ok(());
        }
        let batch = self.unconfirmed.pop_front();
        let batch = batch.ok_or_else(|| protocol("it sends a PONG without a PING"))?;
        self.confirm_subscriptions(&batch, events);
        // To the node, its own heartbeat is the proof that it hears the others. Without a subscription it hears none.
        let hears_nodes = self.sids.contains_key(&Channel::Nodes);
        for publish in batch.published {
            events.push(match publish.error {
                None => Event::Published { receivers: 0 },
                Some(error) => refused(Kind::Publish, error),
            });
            let echo = publish.echo.filter(|_| hears_nodes);
            events.extend(echo.map(|envelope| Event::Message {
                channel: Channel::Nodes,
                id: None,
                envelope,
            }));
        }
        Ok(())
    }

    /// Reports the subscriptions of a batch, and once if some of them were refused.
    fn confirm_subscriptions(&mut self, batch: &Batch, events: &mut Vec<Event>) {
        let mut exceeding = batch.subscriptions_exceeding;
        for sid in batch.subscribed.iter().rev() {
            if exceeding > 0
                && self
                    .subscriptions
                    .get(sid)
                    .is_some_and(|of| !of.is_confirmed)
            {
                exceeding -= 1;
                self.forget(*sid);
            }
        }
        for sid in &batch.subscribed {
            // Otherwise it was refused, or has ended meanwhile.
            if let Some(subscription) = self.subscriptions.get_mut(sid) {
                subscription.is_confirmed = true;
                events.push(Event::Subscribed(subscription.channel.clone()));
            }
        }
        let error = batch.subscription_error.clone();
        events.extend(error.map(|error| refused(Kind::Subscribe, error)));
    }

    fn forget(&mut self, sid: u64) {
        if let Some(subscription) = self.subscriptions.remove(&sid) {
            self.sids.remove(&subscription.channel);
        }
    }

    fn on_error(&mut self, text: &str) -> Result<(), BrokerError> {
        // A user is a secret only if it is a token.
        let secret = self.url.password.as_deref().or(self.url.user.as_deref());
        let error = reported(text, secret).unwrap_or_else(|| NOT_REPORTED.into());
        let is = |begin: &str| {
            let of_text = text.get(..begin.len());
            of_text.is_some_and(|of_text| of_text.eq_ignore_ascii_case(begin))
        };
        // Errors about a command arrive before the PONG of its batch.
        if is("Permissions Violation for Publish") {
            return self.on_publish_error(text, error);
        }
        if is("Permissions Violation for Subscription") {
            return self.on_subscription_error(text, error);
        }
        if is("Maximum Subscriptions Exceeded")
            && let Some(batch) = self.unconfirmed.front_mut()
        {
            batch.subscriptions_exceeding += 1;
            batch.subscription_error = Some(error);
            return Ok(());
        }
        let has_credentials = self.url.user.is_some() || self.url.password.is_some();
        if is("Authorization Violation") && !has_credentials {
            return Err(BrokerError::Authentication(
                "it requires some: write them in the URL, as in nats://user:password@host or nats://token@host".into(),
            ));
        }
        let rejects_credentials = is("Authorization Violation")
            || is("Authentication Expired")
            || is("Authentication Revoked")
            || is("User Authentication")
            || is("Account Authentication");
        Err(match rejects_credentials {
            true => BrokerError::Authentication(error),
            false => BrokerError::Unusable(error),
        })
    }

    fn on_publish_error(&mut self, text: &str, error: Arc<str>) -> Result<(), BrokerError> {
        let channel = self.channel_in(text)?;
        let Some(batch) = self.unconfirmed.front_mut() else {
            return Ok(());
        };
        let from = batch.next_error;
        let is_about = |publish: &Publish| publish.error.is_none() && publish.channel == channel;
        if let Some(at) = batch.published[from..].iter().position(is_about) {
            let publish = &mut batch.published[from + at];
            publish.error = Some(error);
            publish.echo = None;
            batch.next_error = from + at + 1;
        }
        Ok(())
    }

    fn on_subscription_error(&mut self, text: &str, error: Arc<str>) -> Result<(), BrokerError> {
        let channel = self.channel_in(text)?;
        // Otherwise it has ended meanwhile.
        if let Some(&sid) = self.sids.get(&channel) {
            if self
                .subscriptions
                .get(&sid)
                .is_some_and(|of| of.is_confirmed)
            {
                let text = format!("it has revoked a permission of the user: {error}");
                return Err(BrokerError::Unusable(text.into()));
            }
            self.forget(sid);
            if let Some(batch) = self.unconfirmed.front_mut() {
                batch.subscription_error = Some(error);
            }
        }
        Ok(())
    }

    /// The channel whose subject an error names in quotes.
    fn channel_in(&self, text: &str) -> Result<Channel, BrokerError> {
        let subject = text.split('"').nth(1);
        let channel = subject.and_then(|subject| channel_of(subject, &self.url.app));
        channel.ok_or_else(|| protocol("an error names no subject of this app"))
    }
}

/// Subscriptions are tried again.
fn refused(command: Kind, error: Arc<str>) -> Event {
    Event::Refused(Refused {
        command,
        error,
        passes: command == Kind::Subscribe,
    })
}

fn protocol(violation: &'static str) -> BrokerError {
    BrokerError::Protocol(violation.into())
}

#[cfg(all(test, not(loom)))]
mod tests;
