//! The limit of open files, which bounds the number of connections.

/// Descriptors that are not connections: standard streams, those of the threads, and connections of the metrics server.
const RESERVED_DESCRIPTORS: u64 = 160;

/// The number of connections that can be served beside so many followed files, and a warning if that is less than `wanted`.
/// Raises the soft limit of open files as far as needed and allowed.
pub(crate) fn limit_connections(wanted: usize, of_files: u64) -> (usize, Option<String>) {
    let reserved = RESERVED_DESCRIPTORS.saturating_add(of_files);
    let (descriptors, hard) = raise_limit((wanted as u64).saturating_add(reserved));
    let Some(descriptors) = descriptors else {
        return (wanted, None);
    };
    connections_for(wanted, descriptors, reserved, hard)
}

fn connections_for(
    wanted: usize,
    descriptors: u64,
    reserved: u64,
    hard: Option<u64>,
) -> (usize, Option<String>) {
    let possible = usize::try_from(descriptors.saturating_sub(reserved)).unwrap_or(usize::MAX);
    if wanted <= possible {
        return (wanted, None);
    }
    let served = possible.max(1);
    let how = match hard {
        Some(hard) if hard > descriptors => "ulimit -n",
        _ => "ulimit -Hn, or LimitNOFILE of systemd",
    };
    let line = format!(
        "warning: at most {served} connections are served, not the {wanted} of --max-connections: this process may have \
         {descriptors} open files; raise the limit ({how}), or lower --max-connections"
    );
    (served, Some(line))
}

/// Raises the soft limit to `needed` if possible. Returns the soft and the hard limit; `None` is unlimited.
#[cfg(unix)]
fn raise_limit(needed: u64) -> (Option<u64>, Option<u64>) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(needed, |hard| hard.min(needed));
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit {
            current: Some(wanted),
            maximum: limit.maximum,
        };
        // On failure the existing limit applies.
        let _ = setrlimit(Resource::Nofile, raised);
    }
    let limit = getrlimit(Resource::Nofile);
    (limit.current, limit.maximum)
}

#[cfg(not(unix))]
fn raise_limit(_: u64) -> (Option<u64>, Option<u64>) {
    (None, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_limit_within_descriptors_is_kept() {
        assert_eq!(
            connections_for(100, 1_000, RESERVED_DESCRIPTORS, Some(1_000)),
            (100, None)
        );
        assert_eq!(
            connections_for(840, 1_000, RESERVED_DESCRIPTORS, None),
            (840, None)
        );
    }

    #[test]
    fn connection_limit_over_descriptors_is_lowered() {
        let (served, line) = connections_for(100_000, 1_024, RESERVED_DESCRIPTORS, Some(1_024));
        assert_eq!(served, 864);
        let line = line.unwrap();
        for part in ["864", "100000", "1024", "--max-connections", "ulimit -Hn"] {
            assert!(line.contains(part), "{line}");
        }
        assert_eq!(connections_for(10, 20, RESERVED_DESCRIPTORS, None).0, 1);
        assert_eq!(connections_for(1_000, 1_000, 200, None).0, 800);
    }
}
