//! The answer to a request, until its client has it. What all answers hold counts among what is held for clients
//! (`Limits::outboxes_bytes_max`), and a client that does not take its answer gives way like one that does not read its
//! messages.

use std::io;
use std::io::IoSlice;

use crate::engine::model::request::Response;
use crate::engine::parts::drain::Drain;
use crate::engine::parts::peer_limits::counted_as;
use crate::engine::parts::timers::Tick;
use crate::engine::parts::usage_index::UsageIndex;
use crate::engine::reactor::http::{Http, Phase};
use crate::engine::reactor::{Core, Role};
use crate::transport::Transport;

/// An answer on its way.
pub(super) struct Writing {
    response: Response,
    /// So much has left.
    at: usize,
    drain: Drain,
    pub(super) keep_alive: bool,
}

impl Writing {
    pub(super) fn deadline(&self) -> Tick {
        self.drain.deadline
    }

    fn left(&self) -> usize {
        (self.response.head.len() + self.response.body.len()).saturating_sub(self.at)
    }

    /// Writes what comes next.
    fn write<T: Transport>(&self, transport: &mut T) -> io::Result<usize> {
        let Response { head, body, .. } = &self.response;
        match head.get(self.at..) {
            Some(head) if !head.is_empty() && body.is_empty() => transport.write(head),
            Some(head) if !head.is_empty() => {
                transport.write_vectored(&[IoSlice::new(head), IoSlice::new(body)])
            }
            _ => transport.write(body.get(self.at - head.len()..).unwrap_or_default()),
        }
    }
}

impl Http {
    /// Of its answer.
    pub(crate) fn waiting_bytes(&self) -> usize {
        match &self.phase {
            Phase::Writing(writing) => writing.left(),
            _ => 0,
        }
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn response_bytes(&self) -> usize {
        self.response_bytes
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn blocked_bytes(&self) -> usize {
        self.blocked_bytes
    }

    /// Sets what is indexed of its answer.
    pub(crate) fn set_blocked_bytes(&mut self, slot: u32, bytes: usize, blocked: &mut UsageIndex) {
        let before = std::mem::replace(&mut self.blocked_bytes, bytes);
        blocked.set(counted_as(self.client), slot, before, bytes);
    }

    /// Its client takes nothing at present.
    pub(crate) fn note_blocked(&mut self, slot: u32, blocked: &mut UsageIndex) {
        self.set_blocked_bytes(slot, self.response_bytes, blocked);
    }
}

impl<T: Transport> Core<T> {
    pub(super) fn http_answer(&mut self, slot: u32, bytes: Vec<u8>, keep_alive: bool) {
        let response = Response {
            keep_alive,
            ..Response::small(bytes)
        };
        self.http_write_response(slot, response);
    }

    pub(super) fn http_write_response(&mut self, slot: u32, response: Response) {
        let drain = Drain::new(self.tick, self.hub.settings.limits.write_timeout);
        self.leave_line(slot);
        let Some(http) = self.http(slot) else {
            return;
        };
        let (before, now) = (http.response_bytes, response.bytes());
        http.response_bytes = now;
        http.phase = Phase::Writing(Box::new(Writing {
            at: 0,
            drain,
            keep_alive: response.keep_alive,
            response,
        }));
        self.delivery.change_responses(before, now);
        self.count_request(slot);
        self.want_write(slot);
    }

    pub(crate) fn http_write(&mut self, slot: u32) {
        let limits = &self.hub.settings.limits;
        let idle = self.tick.after(limits.keep_alive_timeout);
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let (Role::Http(http), Some(transport)) = (&mut conn.role, &mut conn.transport) else {
            return;
        };
        let Phase::Writing(writing) = &mut http.phase else {
            return;
        };
        while writing.left() > 0 {
            match writing.write(transport) {
                Ok(n) => {
                    writing.at += n;
                    let drain = &mut writing.drain;
                    drain.took(n, self.tick, limits.write_timeout, limits);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    http.note_blocked(slot, &mut self.delivery.blocked);
                    return;
                }
                Err(_) => {
                    self.free(slot);
                    return;
                }
            }
        }
        if !writing.keep_alive || http.is_cut {
            self.linger(slot);
            return;
        }
        http.phase = Phase::Head;
        http.deadline = idle;
        http.used = true;
        self.forget_response(slot);
        self.line_up(slot);
        self.http_go_on(slot);
        self.note_request(slot);
        self.want_read(slot);
    }

    /// The answer's time is over, as far as is known.
    pub(super) fn http_expire_writing(&mut self, slot: u32) {
        // It may have room that was never reported; a client that has stopped reading has none.
        self.http_write(slot);
        let tick = self.tick;
        let is_over = |http: &mut Http| match &http.phase {
            Phase::Writing(writing) => writing.deadline() <= tick,
            _ => false,
        };
        if self.http(slot).is_some_and(is_over) {
            self.counters().slow_consumers.add(1);
            self.free(slot);
        }
    }

    /// Nothing is held of an answer any more.
    fn forget_response(&mut self, slot: u32) {
        if let Some(conn) = self.conns.get_mut(slot)
            && let Role::Http(http) = &mut conn.role
        {
            let before = std::mem::take(&mut http.response_bytes);
            http.set_blocked_bytes(slot, 0, &mut self.delivery.blocked);
            self.delivery.change_responses(before, 0);
        }
    }

    /// The same for a connection that is HTTP no longer.
    pub(super) fn release_response(&mut self, slot: u32, http: &mut Http) {
        let before = std::mem::take(&mut http.response_bytes);
        http.set_blocked_bytes(slot, 0, &mut self.delivery.blocked);
        self.delivery.change_responses(before, 0);
    }
}
