//! `bench costs` measures the CPU time of a server's deliveries with each feature of the library switched on.

mod report;
mod rows;

use std::io;

use self::rows::Row;
use super::alternating::scenario::Scenario;
use super::alternating::turns::TurnOrder;
use super::alternating::{self, Suite};
use crate::args::{self, OptionSpec, Options};
use crate::machine;

pub(crate) const OPTIONS: &[OptionSpec] = &[
    args::flag("quick"),
    args::flag("list"),
    args::value("only"),
    args::value("redis"),
    args::value("nats"),
    args::value("rounds"),
    args::value("cpu-seconds"),
    args::value("out"),
    args::value("page"),
    args::value("server-cpu"),
    args::value("client-cpu"),
];

/// The features of the library that the measured program needs, as the manifest of the bench names them.
const FEATURES: &str = "deflate,tls,cluster";
/// Whether this program has one of them, and whether it has all.
const HAS_ANY: bool = cfg!(any(
    feature = "deflate",
    feature = "tls",
    feature = "cluster"
));
const HAS_ALL: bool = cfg!(all(
    feature = "deflate",
    feature = "tls",
    feature = "cluster"
));

/// Number of descriptors for other files than the sockets of clients.
const DESCRIPTORS_LEFT: u64 = 256;

pub(crate) fn command(options: &Options) -> io::Result<()> {
    let rows = rows::picked(options.text("only").unwrap_or_default())?;
    if options.flag("list") {
        let names = rows.iter().map(|row| (row.id, row.side.name));
        names.for_each(|(id, name)| println!("{id:20} {name}"));
        return Ok(());
    }
    let (rows, left_out) = buildable(rows);
    let scenarios = rows::scenarios(&rows);
    check_descriptors(&scenarios)?;
    let suite = Suite {
        name: "costs",
        feature: FEATURES,
        has_feature: HAS_ALL,
        peers: "none",
        order: TurnOrder::Repeated,
        scenarios,
    };
    let mut results = alternating::measure_all(suite, options)?;
    results.left_out.extend(left_out);
    report::write(&results, options)
}

/// Removes the rows of a build without the features if this program was built with one of them. Returns a note about the
/// removed rows.
fn buildable(mut rows: Vec<Row>) -> (Vec<Row>, Option<String>) {
    let count = rows.len();
    rows.retain(|row| !(HAS_ANY && row.is_built_without()));
    let text = "the build without the features, since this program was built with some of them";
    let left_out = (rows.len() < count).then(|| text.into());
    (rows, left_out)
}

/// Checks that this process may have as many sockets as the clients of a scenario need.
fn check_descriptors(scenarios: &[Scenario]) -> io::Result<()> {
    let sockets = scenarios
        .iter()
        .map(|scenario| scenario.clients * scenario.sides.len());
    let needed = sockets.max().unwrap_or_default() as u64 + DESCRIPTORS_LEFT;
    let limit = machine::raise_descriptor_limit()?;
    match needed <= limit {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "the clients need {needed} descriptors, but this process may have {limit}: raise the limit (ulimit -Hn), or \
             measure fewer rows at once with --only"
        ))),
    }
}
