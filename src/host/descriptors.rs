//! The limit of file descriptors, which bounds the connections of the process: each takes one descriptor.

use crate::limits::Limits;
use crate::report::{info, warning};

/// Descriptors reserved for other uses than connections: shards, the listener, and files of the program.
const RESERVED: u64 = 64;

/// Lowers `connections_max` to what the descriptor limit allows, and logs the change. Otherwise clients over the descriptor
/// limit would wait unanswered instead of being refused.
pub(crate) fn fit_connections(limits: &mut Limits) {
    let Some(descriptors) = descriptors_max() else {
        return;
    };
    let possible = usize::try_from(descriptors.saturating_sub(RESERVED)).unwrap_or(usize::MAX);
    let possible = possible.max(1);
    if limits.connections_max <= possible {
        return;
    }
    let wanted = limits.connections_max;
    limits.connections_max = possible;
    let text = format!(
        "Limits::connections_max is lowered from {wanted} to {possible}, because this process may open only {descriptors} \
         file descriptors: raise that limit (ulimit -n, LimitNOFILE of systemd), or lower connections_max"
    );
    // A program that keeps the default has not asked for a certain number, so do not warn it.
    if wanted == Limits::default().connections_max {
        info!("{text}");
    } else {
        warning!("{text}");
    }
}

/// Has the kernel enlarge the process's table of descriptors for as many connections. To be called before the app starts
/// threads: in a process with several threads, the kernel waits for all CPUs each time it doubles the table. That takes it about
/// ten milliseconds, in which the shard that accepts does nothing else.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn enlarge_table(connections_max: usize) {
    /// The table takes eight bytes of the kernel's memory for each descriptor.
    const DESCRIPTORS_MAX: u64 = 1 << 16;
    let possible = descriptors_max().unwrap_or(u64::MAX).min(DESCRIPTORS_MAX);
    let wanted = (connections_max as u64)
        .saturating_add(RESERVED)
        .min(possible);
    // If this fails, the table grows as connections come.
    if let (Ok((any, _)), Ok(last)) = (std::io::pipe(), i32::try_from(wanted.saturating_sub(1))) {
        let _ = rustix::io::fcntl_dupfd_cloexec(&any, last);
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn enlarge_table(_connections_max: usize) {}

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
        let possible = descriptors.saturating_sub(RESERVED).max(1) as usize;
        assert_eq!(with(usize::MAX), possible);
        assert_eq!(with(possible), possible);
    }
}
