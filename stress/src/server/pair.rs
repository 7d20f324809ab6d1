//! One process with two apps that have the same handlers: one for plain connections, one for TLS.

use std::io;
use std::net::SocketAddrV4;

use super::setup::next;
use super::{Served, Server, Setup, figures, program, rooms, say};
use crate::check::{Failure, Outcome};
use crate::machine;

/// The hidden command that starts the process.
pub(crate) const COMMAND: &str = "serve-pair";

/// Starts the process. The second word of each command to it is the index of an app in `setups`. Returns the addresses of the
/// apps, too.
pub(crate) fn start(setups: &[Setup; 2]) -> Outcome<(Server, [SocketAddrV4; 2])> {
    let args: Vec<_> = setups.iter().flat_map(Setup::to_args).collect();
    let [first, second] = setups;
    let mut server = Server::start_as(COMMAND, &args, first.address)?;
    let port = server.ask("port 1")?.get("port") as u16;
    let addresses = [
        server.address,
        SocketAddrV4::new(*second.address.ip(), port),
    ];
    Ok((server, addresses))
}

/// Runs both apps until standard input ends.
pub(crate) fn serve(mut args: impl Iterator<Item = String>) -> Outcome {
    machine::die_with_parent()?;
    machine::raise_descriptor_limit()?;
    let setups = [Setup::from_args(&mut args)?, Setup::from_args(&mut args)?];
    let apps = [Served::start(&setups[0])?, Served::start(&setups[1])?];
    program::watch_panics(apps[0].shared.clone());
    say(&apps[0].address.to_string())?;
    for line in io::stdin().lines() {
        let line = line?;
        let mut words = line.split(' ');
        let command = words.next().unwrap_or_default();
        let index: usize = next(&mut words)?;
        let app = apps.get(index);
        let app = app.ok_or_else(|| Failure::new(format!("there is no app {index}")))?;
        let answer = match command {
            "port" => format!("port={}", app.address.port()),
            "figures" => figures(&app.shared)?,
            "round" => rooms::broadcast_round(&app.shared, next(&mut words)?)?,
            other => return Err(Failure::new(format!("unknown command {other:?}"))),
        };
        say(&answer)?;
    }
    Ok(())
}
