//! Resource usage of processes, and limits of this one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::{
    Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit,
};

/// Has the kernel kill this process when its parent ends, so that no server outlives its scenario.
pub(crate) fn die_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Raises the soft limit of file descriptors to the hard limit; returns that limit.
pub(crate) fn raise_descriptor_limit() -> io::Result<u64> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    set_descriptor_limit(maximum, maximum)?;
    Ok(maximum.unwrap_or(u64::MAX))
}

/// Limits the file descriptors of this process.
pub(crate) fn limit_descriptors(count: u64) -> io::Result<()> {
    set_descriptor_limit(Some(count), getrlimit(Resource::Nofile).maximum)
}

fn set_descriptor_limit(current: Option<u64>, maximum: Option<u64>) -> io::Result<()> {
    Ok(setrlimit(Resource::Nofile, Rlimit { current, maximum })?)
}

/// CPU time in seconds, user and system, that all threads of a process have used so far.
pub(crate) fn cpu_seconds(pid: u32) -> io::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The process name may contain spaces and parentheses; field 3 follows the last parenthesis.
    let ticks = stat.rsplit_once(')').and_then(|(_, rest)| {
        let mut fields = rest.split_ascii_whitespace().skip(14 - 3);
        let user: u64 = fields.next()?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        Some(user + system)
    });
    let ticks =
        ticks.ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has an unknown format")))?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// How long the threads of a process have waited for a processor so far, in sum. A busy machine makes every latency longer
/// by that, whatever the process does.
pub(crate) fn waited_for_processor(pid: u32) -> io::Result<Duration> {
    Ok(waited_by_thread(pid)?.values().sum())
}

/// How long each thread of a process has waited for a processor so far, by the thread's id.
pub(crate) fn waited_by_thread(pid: u32) -> io::Result<BTreeMap<OsString, Duration>> {
    let mut by_thread = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        // A thread may have ended meanwhile.
        if let Ok(times) = fs::read_to_string(task.path().join("schedstat")) {
            by_thread.insert(task.file_name(), waited(&times));
        }
    }
    Ok(by_thread)
}

/// How long the calling thread has waited for a processor so far.
pub(crate) fn waited_by_this_thread() -> io::Result<Duration> {
    fs::read_to_string("/proc/thread-self/schedstat").map(|times| waited(&times))
}

/// Reads the file `schedstat` of a thread: time on a processor, time of waiting for one, and time slices (the kernel's
/// sched-stats.rst).
fn waited(times: &str) -> Duration {
    let nanoseconds = times.split_whitespace().nth(1).and_then(|n| n.parse().ok());
    nanoseconds.map_or(Duration::ZERO, Duration::from_nanos)
}

/// Resident memory of a process in bytes, from `smaps_rollup`, which is exact.
pub(crate) fn resident(pid: u32) -> io::Result<u64> {
    kilobytes(&format!("/proc/{pid}/smaps_rollup"), "Rss:")
}

/// Peak resident memory of a process in bytes.
pub(crate) fn resident_peak(pid: u32) -> io::Result<u64> {
    kilobytes(&format!("/proc/{pid}/status"), "VmHWM:")
}

fn kilobytes(path: &str, name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    let value = text.lines().find_map(|line| {
        let value = line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim();
        value.parse::<u64>().ok()
    });
    let value = value.ok_or_else(|| io::Error::other(format!("{path} has no field {name}")))?;
    Ok(value * 1024)
}

/// Number of file descriptors that a process has open.
pub(crate) fn descriptors(pid: u32) -> io::Result<u64> {
    descriptors_below(pid, u64::MAX)
}

/// Number of open file descriptors below `bound`. A process may have inherited higher ones, which its limit does not cover.
pub(crate) fn descriptors_below(pid: u32, bound: u64) -> io::Result<u64> {
    let mut count = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse::<u64>().ok());
        count += u64::from(number.is_some_and(|number| number < bound));
    }
    Ok(count)
}
