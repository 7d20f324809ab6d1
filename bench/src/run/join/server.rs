//! `bench history`: a server with one room that keeps a history, which clients join. `bench join` starts it.

use std::io;
use std::net::SocketAddrV4;

use humphrey_ws::{AsyncWebsocketApp, HistoryLimits, Limits, SlowConsumer, Subscription};

use crate::args::{self, OptionSpec, Options};
use crate::node::answer;

pub(crate) const OPTIONS: &[OptionSpec] = &[
    args::value("address"),
    args::value("cpu"),
    args::value("history"),
    args::value("size"),
    args::flag("skip-ahead"),
    args::flag("child"),
];

const ROOM: &str = "news";
/// The path of the event stream.
pub(super) const EVENTS: &str = "/events";

/// Serves until standard input ends. Prints `READY` and the address. Each line of standard input is a number of messages to
/// be broadcast; the answer is the number of all messages so far.
pub(crate) fn serve(options: &Options, address: SocketAddrV4) -> io::Result<()> {
    let kept: usize = options.number("history", 10_000)?;
    let size = options.number("size", 100)?;
    let limits = Limits::default().write_timeout(super::PATIENCE);
    let policy = match options.flag("skip-ahead") {
        true => SlowConsumer::SkipAhead,
        false => SlowConsumer::default(),
    };
    let running = AsyncWebsocketApp::<()>::new()
        .with_address(address)
        .with_shards(1)
        .with_limits(limits)
        .with_slow_consumer(policy)
        .with_history(ROOM, HistoryLimits::messages(kept).bytes(kept * size))
        .with_join_handler(|_, _| true)
        .with_connect_handler(|stream, _| {
            // It fails only if the client has gone.
            let _ = stream.join_since(ROOM, None);
        })
        .with_event_stream(EVENTS, |_, _| Ok(Subscription::room(ROOM).with_history()))
        .start()?;
    let bound = running.local_addr();
    let bound = bound.ok_or_else(|| io::Error::other("the server has no address"))?;
    answer(format_args!("READY {bound}"))?;
    let sender = running.sender();
    let room = sender.room(ROOM);
    let mut published = 0;
    for line in io::stdin().lines() {
        let line = line?;
        let count: u64 = line
            .parse()
            .map_err(|_| args::invalid(format!("{line:?} is no number of messages")))?;
        for number in published..published + count {
            room.broadcast(text(number, size));
        }
        published += count;
        answer(format_args!("{published}"))?;
    }
    Ok(())
}

/// The message with this number.
pub(super) fn text(number: u64, size: usize) -> String {
    let mut text = format!("{number} ");
    text.extend(std::iter::repeat_n('.', size.saturating_sub(text.len())));
    text
}

/// Parses the number of a message, which must have its size.
pub(super) fn number_of(message: &[u8], size: usize) -> io::Result<u64> {
    let digits = message.split(|byte| *byte == b' ').next();
    let number = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    number
        .filter(|&number| message == text(number, size).as_bytes())
        .ok_or_else(|| {
            let message = String::from_utf8_lossy(message);
            io::Error::other(format!("an unexpected message: {message}"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_has_its_size_and_parses_back() {
        for number in [0, 7, 12_345] {
            let message = text(number, 40);
            assert_eq!(message.len(), 40);
            assert_eq!(number_of(message.as_bytes(), 40).unwrap(), number);
            assert!(number_of(message.as_bytes(), 41).is_err());
        }
        assert!(number_of(b"news", 4).is_err());
    }
}
