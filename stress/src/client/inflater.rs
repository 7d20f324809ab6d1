//! Inflates the messages of a server that keeps its compression history between them (RFC 7692 §7.2.2).

use std::fmt;

use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

use crate::check::{Failure, Outcome, ensure};

/// What the sender removes from the end of each message.
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// Longer than any message that a scenario sends compressed.
const BYTES_MAX: usize = 1 << 20;

/// The window of one connection, and the last message.
pub(crate) struct Inflater {
    state: Box<InflateState>,
    message: Vec<u8>,
}

impl fmt::Debug for Inflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflater").finish_non_exhaustive()
    }
}

impl Default for Inflater {
    fn default() -> Self {
        Self {
            state: InflateState::new_boxed(DataFormat::Raw),
            message: Vec::new(),
        }
    }
}

impl Inflater {
    /// Inflates the payload of a message.
    pub(super) fn inflate(&mut self, payload: &[u8]) -> Outcome<&[u8]> {
        self.message.clear();
        if !self.feed(payload)? {
            self.feed(&TAIL)?;
        }
        Ok(&self.message)
    }

    /// Returns whether the stream has ended, as it does where the sender has made the last block of a message final.
    fn feed(&mut self, mut input: &[u8]) -> Outcome<bool> {
        let mut part = [0; 4096];
        loop {
            let result = inflate(&mut self.state, input, &mut part, MZFlush::Sync);
            self.message
                .extend_from_slice(&part[..result.bytes_written]);
            input = &input[result.bytes_consumed..];
            ensure!(
                self.message.len() <= BYTES_MAX,
                "a message inflates to too many bytes"
            );
            match result.status {
                Ok(MZStatus::StreamEnd) => {
                    ensure!(
                        input.is_empty(),
                        "bytes follow the final block of a message"
                    );
                    self.state = InflateState::new_boxed(DataFormat::Raw);
                    return Ok(true);
                }
                Ok(_) if result.bytes_written == part.len() || !input.is_empty() => {}
                // All that came before was taken already.
                Ok(_) | Err(MZError::Buf) => return Ok(false),
                Err(error) => {
                    return Err(Failure::new(format!(
                        "a message can't be inflated: {error:?}"
                    )));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use miniz_oxide::deflate::core::{
        CompressorOxide, TDEFLFlush, compress, create_comp_flags_from_zip_params,
    };

    #[test]
    fn messages_that_share_a_history_are_inflated() {
        let flags = create_comp_flags_from_zip_params(6, -15, 0);
        let mut compressor = CompressorOxide::new(flags);
        let mut inflater = Inflater::default();
        let text = "rain and wind, wind and rain; ".repeat(40);
        for (number, len) in [200, 300, 4, 1_200, 900].into_iter().enumerate() {
            let message = &text.as_bytes()[number..number + len.min(text.len() - number)];
            let mut payload = vec![0; 4_096];
            let (_, consumed, written) =
                compress(&mut compressor, message, &mut payload, TDEFLFlush::Sync);
            assert_eq!(consumed, message.len());
            payload.truncate(written);
            let payload = payload.strip_suffix(&TAIL).unwrap();
            assert_eq!(inflater.inflate(payload).unwrap(), message);
        }
        assert!(inflater.inflate(&[0xff; 9]).is_err());
    }
}
