//! How many clients the operating system lets the program serve: each takes a descriptor.

/// Descriptors that are no clients: standard streams, threads' own, and those who ask for metrics.
const OTHERS: u64 = 160;

/// How many of the wanted connections there can be, and if that is less, a line that says so. Raises the limit of this
/// process as far as it may, and as is needed.
pub(crate) fn fit(wanted: usize) -> (usize, Option<String>) {
    let (descriptors, hard) = raised((wanted as u64).saturating_add(OTHERS));
    let Some(descriptors) = descriptors else {
        return (wanted, None);
    };
    fitted(wanted, descriptors, hard)
}

fn fitted(wanted: usize, descriptors: u64, hard: Option<u64>) -> (usize, Option<String>) {
    let possible = usize::try_from(descriptors.saturating_sub(OTHERS)).unwrap_or(usize::MAX);
    if wanted <= possible {
        return (wanted, None);
    }
    let served = possible.max(1);
    let how = match hard {
        Some(hard) if hard > descriptors => "ulimit -n",
        _ => "ulimit -Hn, or LimitNOFILE of systemd",
    };
    let line = format!(
        "at most {served} connections are served, not the {wanted} of --max-connections: this process may have \
         {descriptors} open files; raise that limit ({how}), or lower --max-connections"
    );
    (served, Some(line))
}

/// The limit in force once it is raised to `needed`, and what it can be raised to. `None` is no limit.
#[cfg(unix)]
fn raised(needed: u64) -> (Option<u64>, Option<u64>) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(needed, |hard| hard.min(needed));
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit {
            current: Some(wanted),
            maximum: limit.maximum,
        };
        // Where it may not be raised, what there is has to do.
        let _ = setrlimit(Resource::Nofile, raised);
    }
    let limit = getrlimit(Resource::Nofile);
    (limit.current, limit.maximum)
}

#[cfg(not(unix))]
fn raised(_: u64) -> (Option<u64>, Option<u64>) {
    (None, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_connections_than_descriptors_are_served_as_asked() {
        assert_eq!(fitted(100, 1_000, Some(1_000)), (100, None));
        assert_eq!(fitted(840, 1_000, None), (840, None));
    }

    #[test]
    fn connections_over_the_descriptors_are_lowered_and_said() {
        let (served, line) = fitted(100_000, 1_024, Some(1_024));
        assert_eq!(served, 864);
        let line = line.unwrap();
        for part in ["864", "100000", "1024", "--max-connections", "ulimit -Hn"] {
            assert!(line.contains(part), "{line}");
        }
        assert_eq!(fitted(10, 20, None).0, 1);
    }
}
