//! The ways in which clients end their connections.

use super::frames::{self, BINARY, FIN};
use super::{End, Peer, Transport, request, reset_on_drop};
use crate::check::{During, Outcome, ensure};
use crate::random::Random;

/// How a client ends an open WebSocket connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    /// A complete closing handshake.
    Close,
    /// A close frame, without waiting for the reply.
    CloseWithoutReply,
    /// The end of the stream, without a close frame, and with TLS without close_notify.
    Fin,
    Reset,
    /// A half-closed stream, read until the server closes its side.
    HalfClose,
    /// The end of the stream, or a reset, in the middle of a frame.
    MidFrame,
}

impl Ending {
    /// Ends the connection of `peer`.
    pub(crate) fn apply<T: Transport>(self, mut peer: Peer<T>, random: &mut Random) -> Outcome {
        match self {
            Self::Close => peer.close()?,
            Self::CloseWithoutReply => peer.send_close(1001)?,
            Self::Fin => {}
            Self::Reset => reset_on_drop(peer.stream.socket())?,
            Self::HalfClose => {
                peer.stream.half_close()?;
                peer.read_to_end(|_| Ok(()))?;
                ensure!(
                    peer.ended == Some(End::Eof),
                    "a half-closed stream ended with {:?}",
                    peer.ended
                );
            }
            Self::MidFrame => {
                let frame = frames::frame(FIN | BINARY, &[7; 300]);
                let len = random.between(1, frame.len() as u64 - 1) as usize;
                peer.stream.write_all(&frame[..len])?;
                reset_sometimes(&peer.stream, random)?;
            }
        }
        Ok(())
    }
}

/// Sends the first `len` bytes of the request for `path`, or all if it has fewer, and ends without reading the response.
pub(crate) fn abort_handshake<T: Transport>(
    mut stream: T,
    path: &str,
    len: usize,
    random: &mut Random,
) -> Outcome {
    let request = request(path);
    stream
        .write_all(&request.as_bytes()[..len.min(request.len())])
        .during("sending a part of a request")?;
    reset_sometimes(&stream, random)
}

fn reset_sometimes(stream: &impl Transport, random: &mut Random) -> Outcome {
    if random.below(2) == 0 {
        reset_on_drop(stream.socket())?;
    }
    Ok(())
}
