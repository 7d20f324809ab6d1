//! How many connections the operating system lets this process have: each takes a descriptor.

use crate::limits::Limits;
use crate::report::{info, warning};

/// Descriptors for other uses than connections: shards, the listener, and files of the program.
const OTHERS: u64 = 64;

/// Lowers `connections_max` to what the limit of descriptors allows, and logs that. Without it, clients beyond that limit would
/// wait unanswered instead of being refused.
pub(crate) fn fit_connections(limits: &mut Limits) {
    let Some(descriptors) = descriptors_max() else {
        return;
    };
    let possible = usize::try_from(descriptors.saturating_sub(OTHERS)).unwrap_or(usize::MAX);
    let possible = possible.max(1);
    if limits.connections_max <= possible {
        return;
    }
    let wanted = limits.connections_max;
    limits.connections_max = possible;
    let served = limits.connections_max;
    let why = format!(
        "Limits::connections_max is {wanted}, and this process may have {descriptors} descriptors: at most {served} \
         connections are served; raise the limit (ulimit -n, LimitNOFILE of systemd), or lower connections_max"
    );
    // The program has not set the default, so it need not be warned.
    if wanted == Limits::default().connections_max {
        info!("{why}");
    } else {
        warning!("{why}");
    }
}

#[cfg(unix)]
fn descriptors_max() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

#[cfg(not(unix))]
fn descriptors_max() -> Option<u64> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn connections_max_over_the_descriptors_is_lowered() {
        let Some(descriptors) = descriptors_max() else {
            return;
        };
        let with = |connections_max| {
            let mut limits = Limits {
                connections_max,
                ..Limits::default()
            };
            fit_connections(&mut limits);
            limits.connections_max
        };
        assert_eq!(with(1), 1);
        let possible = descriptors.saturating_sub(OTHERS).max(1) as usize;
        assert_eq!(with(usize::MAX), possible);
        assert_eq!(with(possible), possible);
    }
}
