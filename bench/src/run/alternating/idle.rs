//! Measures the resident memory of idle connections.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::client::{Clients, TrafficPlan};
use super::scenario::{Scenario, Side};
use super::table::Figures;
use super::{Setup, WARM_UP};
use crate::load::connect::ConnectionSpec;
use crate::load::transport::Connection;

/// Number of clients that send echoes before the memory of idle connections is measured.
const IDLE_BASE: usize = 64;

/// Measures the memory of idle connections.
pub(super) fn measure(
    setup: &Setup,
    scenario: &Scenario,
    side: &Side,
    messages: &Arc<Vec<String>>,
) -> io::Result<Figures> {
    let settle = || std::thread::sleep(Duration::from_millis(if setup.quick { 50 } else { 1_000 }));
    let server = super::start(setup, scenario.job, side, &[])?;
    let plan = TrafficPlan {
        clients: IDLE_BASE,
        ..scenario.traffic(side, messages)?
    };
    let tls = plan.tls.clone();
    // These clients stay connected, so that the idle connections do not reuse their memory.
    let mut clients = Clients::connect(server.address, plan)?;
    clients.run(WARM_UP)?;
    settle();
    let base = server.resident()?;
    let spec = |_| ConnectionSpec {
        offers: side.offers,
        ..ConnectionSpec::default()
    };
    let held = Connection::open(server.address, scenario.clients, spec, tls.as_ref())?;
    settle();
    let full = server.resident()?;
    let compared = clients.finish()?;
    Ok(Figures {
        resident_per_connection: Some((full as f64 - base as f64) / held.len() as f64),
        compared,
        ..Figures::default()
    })
}
