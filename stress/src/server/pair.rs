//! One process with two apps that have the same handlers: one for plain connections, one for TLS.

use std::io;
use std::sync::Arc;

use humphrey_ws::tls::Tls;
use humphrey_ws::{AsyncSender, RunningApp};

use super::program;
use super::setup::next;
use super::state::ServerState;
use super::{Server, Setup, figures, rooms, say};
use crate::certificates;
use crate::check::{During, Failure, Outcome};
use crate::machine;

/// The hidden command that starts the process.
pub(crate) const COMMAND: &str = "serve-pair";

/// Starts the process. Commands to it name the app by its index in `setups`. Returns the addresses of the apps, too.
pub(crate) fn start(setups: &[Setup; 2]) -> Outcome<(Server, [std::net::SocketAddrV4; 2])> {
    let args: Vec<_> = setups.iter().flat_map(Setup::to_args).collect();
    let [first, second] = setups;
    let mut server = Server::start_as(COMMAND, &args, first.address)?;
    let port = server.ask("port 1")?.get("port") as u16;
    let mut addresses = [server.address, second.address];
    addresses[1].set_port(port);
    Ok((server, addresses))
}

struct Served {
    shared: Arc<ServerState>,
    sender: AsyncSender,
    port: u16,
    /// Stops the app when it is dropped.
    _running: RunningApp,
}

fn serve_one(setup: &Setup) -> Outcome<(Served, String)> {
    let mut app = program::app(setup);
    if let Some(directory) = &setup.tls {
        let (certificate, key) = certificates::files(directory);
        app =
            app.with_tls(Tls::from_pem_files(certificate, key).during("loading the certificate")?);
    }
    let shared = app.get_state();
    let address = app.bind()?;
    let running = app.start()?;
    let sender = running.sender();
    let _ = shared.sender.set(sender.clone());
    let served = Served {
        shared,
        sender,
        port: address.port(),
        _running: running,
    };
    Ok((served, address.to_string()))
}

/// Runs both apps until standard input ends.
pub(crate) fn serve(mut args: impl Iterator<Item = String>) -> Outcome {
    machine::die_with_parent()?;
    machine::raise_descriptor_limit()?;
    let setups = [Setup::from_args(&mut args)?, Setup::from_args(&mut args)?];
    let (plain, address) = serve_one(&setups[0])?;
    let (tls, _) = serve_one(&setups[1])?;
    program::watch_panics(plain.shared.clone());
    let apps = [plain, tls];
    say(&address)?;
    for line in io::stdin().lines() {
        let line = line?;
        let mut words = line.split(' ');
        let command = words.next().unwrap_or_default();
        let number: u64 = next(&mut words)?;
        match command {
            "round" => {
                for app in &apps {
                    rooms::broadcast_round(&app.shared, number);
                }
                say("")?;
            }
            _ => {
                let app = apps.get(number as usize);
                let app = app.ok_or_else(|| Failure::new(format!("there is no app {number}")))?;
                match command {
                    "port" => say(&format!("port={}", app.port))?,
                    "figures" => say(&figures(&app.shared, &app.sender.metrics()))?,
                    other => return Err(Failure::new(format!("unknown command {other:?}"))),
                }
            }
        }
    }
    Ok(())
}
