//! Fuzzing of TLS connections. The bytes of a live client arrive in any pieces, and some of them are changed, doubled,
//! left out or swapped. Keys are random, so a case is not repeated byte for byte.

use std::sync::{Arc, OnceLock};

use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ServerConfig};

use super::testing::{Link, client_config, server_config, until};
use crate::crypto::provider;
use crate::protocol::fuzz::dice::Dice;
use crate::transport::ShardTransport;

/// The maximum number of steps: a client's key updates without data between them stay below the limit for a flood.
const STEPS: usize = 24;

fn configs(version: usize) -> &'static (Arc<ServerConfig>, Arc<ClientConfig>) {
    static CONFIGS: [OnceLock<(Arc<ServerConfig>, Arc<ClientConfig>)>; 2] =
        [const { OnceLock::new() }; 2];
    CONFIGS[version].get_or_init(|| {
        let versions = &[[&TLS12, &TLS13][version]];
        let provider = || Arc::unwrap_or_clone(provider());
        (
            Arc::new(server_config(provider(), versions)),
            Arc::new(client_config(provider(), versions)),
        )
    })
}

/// Changes the client's bytes.
fn change(output: &mut Vec<u8>, dice: &mut Dice) {
    let at = dice.below(output.len());
    let end = (at + 1 + dice.below(300)).min(output.len());
    match dice.below(5) {
        0 => output[at] ^= 1 << dice.below(8),
        1 => drop(output.drain(at..end)),
        2 => {
            let again = output[at..end].to_vec();
            output.splice(at..at, again);
        }
        3 => output.rotate_left(at),
        _ => {
            let other = dice.bytes(300);
            output.splice(at..end, other);
        }
    }
}

/// Runs one case.
///
/// # Panics
/// If bytes that the client has not sent are received, if received or pending bytes take more memory than they may, and
/// if unchanged bytes do not arrive.
pub(crate) fn run(data: &[u8]) {
    let mut dice = Dice::from_bytes(data);
    let (server, client) = configs(dice.below(2));
    let mut link = Link::new(server, client);
    let (mut sent, mut is_changed) = (Vec::new(), false);
    for _ in 0..STEPS {
        if dice.is_used_up() {
            break;
        }
        match dice.below(4) {
            // A client that has failed sends nothing more.
            0 if link.client_ended.is_none() => {
                let bytes = vec![dice.below(256) as u8; dice.below(40_000)];
                link.client_write(&bytes);
                sent.extend(bytes);
            }
            // It fails within the handshake, and with TLS 1.2.
            1 => drop(link.client.as_mut().map(|it| it.refresh_traffic_keys())),
            2 => drop(link.server.write(&vec![7; dice.below(40_000)])),
            _ => {}
        }
        let mut output = link.client_output();
        if !output.is_empty() && dice.one_in(6) {
            is_changed = true;
            change(&mut output, &mut dice);
        }
        let mut rest = &output[..];
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(1 + dice.below(rest.len()));
            link.send(piece);
            link.serve();
            rest = behind;
        }
        link.server.flush();
        link.check_memory();
        link.client_read(usize::MAX);
        assert!(sent.starts_with(&link.received), "bytes were made up");
    }
    if is_changed {
        link.server.finish();
        link.check_memory();
        return;
    }
    until("the client's stream has ended", || {
        link.server.flush();
        link.exchange();
        let client = link.client.as_mut().expect("rustls is the client");
        // In the handshake it would be an alert without authentication.
        if !client.is_handshaking() {
            client.send_close_notify();
        }
        link.ended.is_some()
    });
    assert_eq!(link.ended, Some(Ok(())));
    assert!(link.received == sent, "bytes are missing");
}
