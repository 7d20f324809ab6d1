//! One connection of the load client: its expected messages, and its sends.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::DeliveryStats;
use super::connect;
use super::plan::{Plan, Role};
use super::receiver::{FrameShape, Receiver};
use crate::args::Job;
use crate::wire;

pub(super) struct ClientConnection {
    socket: OwnedFd,
    receiver: Receiver,
    /// The expected number of its next message, and the step to the one after.
    next: u64,
    stride: u64,
    /// Whether it is in the room temporarily, and may miss messages.
    visitor: bool,
    /// Whether its handlers block, so that its latencies are not counted.
    pub(super) blocks: bool,
    /// Echo: messages sent so far, and the total that it may send.
    pub(super) sent: u64,
    pub(super) quota: u64,
    /// Output that the socket did not accept.
    unsent: Vec<u8>,
}

impl ClientConnection {
    pub(super) fn new(socket: OwnedFd, plan: &Plan, at: usize) -> Self {
        Self {
            socket,
            receiver: Receiver::default(),
            next: plan.first_number(at),
            stride: match plan.has_rooms() {
                true => plan.rooms.count as u64,
                false => 1,
            },
            visitor: plan.part(at) == Role::Visitor,
            blocks: plan.blocks(at),
            sent: 0,
            quota: 0,
            unsent: Vec::new(),
        }
    }

    /// Reads all available messages, whose numbers must be below `owed`; returns how many arrived.
    pub(super) fn read(
        &mut self,
        input: &mut [u8],
        shape: &FrameShape,
        stats: &mut DeliveryStats,
        owed: u64,
    ) -> io::Result<u64> {
        let mut count = 0;
        while let Some(read) = connect::receive_once(&self.socket, input)? {
            let now = stats.now();
            let mut bytes = &input[..read];
            while let Some(message) = self.receiver.next(shape, &mut bytes)? {
                let missed = self.visitor && message.number > self.next;
                if message.number != self.next && !missed || message.number >= owed {
                    let (number, next) = (message.number, self.next);
                    return Err(io::Error::other(format!(
                        "message {number} where {next} of {owed} was due"
                    )));
                }
                self.next = message.number + self.stride;
                count += 1;
                if self.visitor {
                    stats.count_visitor(missed);
                } else if self.blocks {
                    stats.count_blocker();
                } else {
                    stats.count(message.number, now.saturating_sub(message.stamp));
                }
            }
            if read < input.len() {
                break;
            }
        }
        Ok(count)
    }

    /// Sends `count` messages in one write.
    pub(super) fn send(
        &mut self,
        frame: &FrameTemplate,
        output: &mut Vec<u8>,
        count: u64,
        stamp: u64,
        room: impl Fn(u64) -> Option<wire::RoomName>,
    ) -> io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        output.clear();
        for _ in 0..count {
            frame.put(output, self.sent, stamp, room(self.sent));
            self.sent += 1;
        }
        let sent = if self.unsent.is_empty() {
            self.write(output)?
        } else {
            0
        };
        self.unsent.extend_from_slice(&output[sent..]);
        Ok(())
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        let sent = self.write(&self.unsent)?;
        self.unsent.drain(..sent);
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut sent = 0;
        while sent < bytes.len() {
            match send(&self.socket, &bytes[sent..], SendFlags::NOSIGNAL) {
                Ok(n) => sent += n,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(sent)
    }
}

/// A client's frame, built once; number and timestamp are filled in per message.
pub(super) struct FrameTemplate {
    bytes: Vec<u8>,
    payload: usize,
    /// Whether it is a line of text instead of a frame.
    line: bool,
}

const MASK: [u8; 4] = [0x5a, 0xc3, 0x1e, 0x97];

impl FrameTemplate {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut bytes = Vec::new();
        let line = plan.job == Job::Lines;
        if line {
            bytes.resize(plan.size, b'.');
            bytes.push(b'\n');
            return Self {
                bytes,
                payload: 0,
                line,
            };
        }
        wire::put_client_head(&mut bytes, wire::BINARY, plan.size, MASK);
        let payload = bytes.len();
        bytes.extend((0..plan.size).map(|at| at as u8));
        wire::mask(&mut bytes[payload..], MASK);
        Self {
            bytes,
            payload,
            line,
        }
    }

    pub(super) fn put(
        &self,
        output: &mut Vec<u8>,
        number: u64,
        stamp: u64,
        room: Option<wire::RoomName>,
    ) {
        let payload = output.len() + self.payload;
        output.extend_from_slice(&self.bytes);
        if self.line {
            output[payload..payload + 16].copy_from_slice(&wire::hex(number));
            output[payload + 16..payload + 32].copy_from_slice(&wire::hex(stamp));
            return;
        }
        let mask = wire::wide_mask(MASK);
        output[payload..payload + 8].copy_from_slice(&(number ^ mask).to_ne_bytes());
        output[payload + 8..payload + 16].copy_from_slice(&(stamp ^ mask).to_ne_bytes());
        if let Some(room) = room {
            let room = u64::from_ne_bytes(room) ^ mask;
            output[payload + 16..payload + 24].copy_from_slice(&room.to_ne_bytes());
        }
    }
}
