//! The parameters of permessage-deflate in a handshake (RFC 7692 §7.1), in the grammar of RFC 6455 §9.1.

use std::fmt;

use super::WINDOW_BITS_MAX;

/// The extension's registered name (RFC 7692 §7).
const NAME: &str = "permessage-deflate";

const SERVER_NO_CONTEXT_TAKEOVER: &str = "server_no_context_takeover";
const CLIENT_NO_CONTEXT_TAKEOVER: &str = "client_no_context_takeover";
const SERVER_MAX_WINDOW_BITS: &str = "server_max_window_bits";
const CLIENT_MAX_WINDOW_BITS: &str = "client_max_window_bits";

/// The smallest window, 256 bytes, as a power of two (RFC 7692 §7.1.2.1).
const WINDOW_BITS_MIN: u8 = 8;

/// The negotiated parameters of the messages that the server sends. The client always sends without context takeover,
/// so that the server keeps no state between its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Agreement {
    /// Whether each message is compressed independently (RFC 7692 §7.1.1.1).
    pub(crate) server_no_context_takeover: bool,
    /// The size of the client's window as a power of two (RFC 7692 §7.1.2.1), if the client limits it.
    server_max_window_bits: Option<u8>,
}

impl Agreement {
    /// Returns the size of the client's window as a power of two.
    pub(crate) fn window_bits(self) -> u8 {
        self.server_max_window_bits.unwrap_or(WINDOW_BITS_MAX)
    }
}

impl fmt::Display for Agreement {
    /// Writes the response's `Sec-WebSocket-Extensions`. It confirms the restrictions that the client has requested, and
    /// adds none for the server.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{NAME}; {CLIENT_NO_CONTEXT_TAKEOVER}")?;
        if self.server_no_context_takeover {
            write!(f, "; {SERVER_NO_CONTEXT_TAKEOVER}")?;
        }
        if let Some(bits) = self.server_max_window_bits {
            write!(f, "; {SERVER_MAX_WINDOW_BITS}={bits}")?;
        }
        Ok(())
    }
}

/// Accepts the first acceptable offer in the values of all `Sec-WebSocket-Extensions` headers, in order. Malformed offers and
/// offers with an unknown or repeated parameter, or with a value out of range, are declined (RFC 7692 §7.1).
pub(crate) fn accept<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<Agreement> {
    values
        .into_iter()
        .flat_map(|value| split_unquoted(value, ','))
        .find_map(accept_offer)
}

fn accept_offer(offer: &str) -> Option<Agreement> {
    let parameters = Parameters::of(offer)?;
    parameters
        .client_max_window_bits
        .is_none_or(|bits| bits.is_none_or(is_window))
        .then_some(())?;
    let server_max_window_bits = match parameters.server_max_window_bits {
        None => None,
        // In an offer, this parameter requires a value (RFC 7692 §7.1.2.1).
        Some(None) => return None,
        Some(Some(bits)) => Some(Some(bits).filter(|&bits| is_window(bits))?),
    };
    Some(Agreement {
        server_no_context_takeover: parameters.server_no_context_takeover,
        server_max_window_bits,
    })
}

fn is_window(bits: u8) -> bool {
    (WINDOW_BITS_MIN..=WINDOW_BITS_MAX).contains(&bits)
}

/// The parameters of an offer or a response.
#[derive(Default)]
struct Parameters {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    /// `Some(None)` if the parameter has no value.
    server_max_window_bits: Option<Option<u8>>,
    client_max_window_bits: Option<Option<u8>>,
}

impl Parameters {
    /// Parses an element of the header. `None` if it names another extension, is malformed, or has an unknown or repeated
    /// parameter.
    fn of(element: &str) -> Option<Self> {
        let mut parts = split_unquoted(element, ';');
        // RFC 6455 §9.1 does not make extension tokens case-insensitive.
        (parts.next() == Some(NAME)).then_some(())?;
        let mut parameters = Self::default();
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (
                    name.trim_matches(OWS),
                    Some(unquoted(value.trim_matches(OWS))?),
                ),
                None => (part, None),
            };
            let is_repeated = match name {
                SERVER_NO_CONTEXT_TAKEOVER if value.is_none() => {
                    std::mem::replace(&mut parameters.server_no_context_takeover, true)
                }
                CLIENT_NO_CONTEXT_TAKEOVER if value.is_none() => {
                    std::mem::replace(&mut parameters.client_no_context_takeover, true)
                }
                SERVER_MAX_WINDOW_BITS | CLIENT_MAX_WINDOW_BITS => {
                    let bits = match value {
                        Some(value) => Some(number(value)?),
                        None => None,
                    };
                    let parameter = match name {
                        SERVER_MAX_WINDOW_BITS => &mut parameters.server_max_window_bits,
                        _ => &mut parameters.client_max_window_bits,
                    };
                    parameter.replace(bits).is_some()
                }
                _ => return None,
            };
            if is_repeated {
                return None;
            }
        }
        Some(parameters)
    }
}

/// Optional white space (RFC 9110 §5.6.3).
const OWS: [char; 2] = [' ', '\t'];

/// Splits a list at a separator, except inside quotes, and trims the parts.
fn split_unquoted(list: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    let mut is_escaped = false;
    list.split(move |c: char| {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = is_quoted,
            '"' => is_quoted = !is_quoted,
            _ => return c == separator && !is_quoted,
        }
        false
    })
    .map(|part| part.trim_matches(OWS))
}

/// Removes the quotes of a value. A quoted value must be a token too (RFC 6455 §9.1). All values are numbers, which need no
/// escapes.
fn unquoted(value: &str) -> Option<&str> {
    match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"'),
        None => Some(value),
    }
}

/// Parses a decimal number without leading zeros (RFC 7692 §7.1.2).
fn number(digits: &str) -> Option<u8> {
    let is_canonical =
        digits.bytes().all(|digit| digit.is_ascii_digit()) && !digits.starts_with('0');
    is_canonical.then(|| digits.parse().ok())?
}

/// The offer of this library's client. It inflates with context takeover and any window. It sends uncompressed
/// messages, so it can accept any limit on its own window.
#[cfg(feature = "client")]
pub(crate) const OFFER: &str = "permessage-deflate; client_max_window_bits";

/// Returns whether a server that has received [`OFFER`] compresses messages. `None` if the client must fail the
/// connection, because the response contains something that the client did not offer (RFC 7692 §7.1).
#[cfg(any(test, fuzzing, feature = "client"))]
pub(crate) fn answered<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<bool> {
    let mut elements = values
        .into_iter()
        .flat_map(|value| split_unquoted(value, ','))
        .filter(|element| !element.is_empty());
    let Some(element) = elements.next() else {
        return Some(false);
    };
    let parameters = Parameters::of(element)?;
    let is_single = elements.next().is_none();
    // In a response, both window parameters require a value (RFC 7692 §7.1.2).
    let has_window = |bits: Option<Option<u8>>| bits.is_none_or(|bits| bits.is_some_and(is_window));
    let is_valid = has_window(parameters.server_max_window_bits)
        && has_window(parameters.client_max_window_bits);
    (is_single && is_valid).then_some(true)
}
