//! Operating system interface: accounting from `/proc`, CPU affinity, limits.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::ops::Sub;
use std::path::Path;

use rustix::process::{
    Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// Pins this thread, and those that it starts later, to these CPUs.
pub(crate) fn pin(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            return Err(crate::args::bad("cpu", &cpu.to_string()));
        }
        set.set(cpu);
    }
    sched_setaffinity(None, &set)
        .map_err(|e| io::Error::other(format!("can't pin to the CPUs {cpus:?}: {e}")))
}

/// The CPUs this process may use.
pub(crate) fn allowed_cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|&cpu| set.is_set(cpu))
        .collect())
}

/// The numbers of CPUs, separated by commas, as `--cpu` takes them.
pub(crate) fn cpu_list(cpus: &[usize]) -> String {
    let numbers: Vec<String> = cpus.iter().map(usize::to_string).collect();
    numbers.join(",")
}

/// Has the kernel kill this process when its parent ends, so that no server outlives the bench.
pub(crate) fn die_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Whether a process has a TCP socket that listens on this port of any address.
pub(crate) fn listens(pid: u32, port: u16) -> io::Result<bool> {
    let mut wanted = Vec::new();
    // A server may listen on [::], which includes the addresses of IPv4. The file is missing where IPv6 is off.
    for table in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        wanted.extend(listening_inodes(&text, port).map(|inode| format!("socket:[{inode}]")));
    }
    for descriptor in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // It may be closed meanwhile.
        let target = fs::read_link(descriptor?.path()).unwrap_or_default();
        if wanted.iter().any(|socket| target.as_os_str() == &**socket) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The inodes of the sockets in a table of the kernel that listen on this port.
fn listening_inodes(table: &str, port: u16) -> impl Iterator<Item = &str> {
    /// The state of a socket that listens (`TCP_LISTEN`).
    const LISTENING: &str = "0A";
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, _remote, state) = (fields.next()?, fields.next()?, fields.next()?);
        let (_, hex) = local.rsplit_once(':')?;
        let is_wanted = state == LISTENING && u16::from_str_radix(hex, 16) == Ok(port);
        is_wanted.then(|| fields.nth(5)).flatten()
    })
}

/// Raises the soft limit of file descriptors to the hard limit; returns that limit.
pub(crate) fn raise_descriptor_limit() -> io::Result<u64> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )?;
    Ok(maximum.unwrap_or(u64::MAX))
}

/// CPU time in seconds, user and system apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct CpuTime {
    pub(crate) user: f64,
    pub(crate) system: f64,
}

impl CpuTime {
    pub(crate) fn total(self) -> f64 {
        self.user + self.system
    }
}

impl Sub for CpuTime {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            user: self.user - earlier.user,
            system: self.system - earlier.system,
        }
    }
}

/// CPU time that all threads of a process, including ended ones, have used so far.
pub(crate) fn cpu_time(pid: u32) -> io::Result<CpuTime> {
    parse_stat(
        &fs::read_to_string(format!("/proc/{pid}/stat"))?,
        rustix::param::clock_ticks_per_second(),
    )
    .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has an unknown format")))
}

/// CPU time of the children of this process that have ended and were waited for.
pub(crate) fn cpu_time_of_ended_children() -> io::Result<CpuTime> {
    parse_times(
        &fs::read_to_string("/proc/self/stat")?,
        16,
        rustix::param::clock_ticks_per_second(),
    )
    .ok_or_else(|| io::Error::other("/proc/self/stat has an unknown format"))
}

fn parse_stat(stat: &str, ticks_per_second: u64) -> Option<CpuTime> {
    parse_times(stat, 14, ticks_per_second)
}

/// Parses user time in this field, and system time in the next one.
fn parse_times(stat: &str, field: usize, ticks_per_second: u64) -> Option<CpuTime> {
    // The process name may contain spaces and parentheses; field 3 follows the last parenthesis.
    let mut fields = stat
        .rsplit_once(')')?
        .1
        .split_ascii_whitespace()
        .skip(field - 3);
    let mut seconds = || Some(fields.next()?.parse::<u64>().ok()? as f64 / ticks_per_second as f64);
    Some(CpuTime {
        user: seconds()?,
        system: seconds()?,
    })
}

/// CPU time in seconds that the running threads of a process have used so far, user and system together. The resolution is
/// a nanosecond, compared with 10 ms of [`cpu_time`]. The time of threads that have ended is missing.
pub(crate) fn cpu_seconds(pid: u32) -> io::Result<f64> {
    cpu_seconds_where(pid, |_| true)
}

/// CPU time as [`cpu_seconds`], without one of the threads.
pub(crate) fn cpu_seconds_without(pid: u32, thread: u32) -> io::Result<f64> {
    let left_out = thread.to_string();
    cpu_seconds_where(pid, |task| task.file_name() != Some(OsStr::new(&left_out)))
}

/// CPU time as [`cpu_seconds`], of the threads with this name. The kernel shortens names to 15 bytes.
pub(crate) fn cpu_seconds_of_threads(pid: u32, name: &str) -> io::Result<f64> {
    cpu_seconds_where(pid, |task| {
        let comm = fs::read_to_string(task.join("comm"));
        comm.is_ok_and(|comm| comm.trim_end() == name)
    })
}

/// CPU time as [`cpu_seconds`], of the threads whose directories in `/proc` fulfil a condition.
fn cpu_seconds_where(pid: u32, counts: impl Fn(&Path) -> bool) -> io::Result<f64> {
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        if !counts(&task) {
            continue;
        }
        // Skip threads that have ended since the directory was read.
        let Ok(text) = fs::read_to_string(task.join("schedstat")) else {
            continue;
        };
        let time = text.split_ascii_whitespace().next();
        let time: Option<u64> = time.and_then(|time| time.parse().ok());
        nanos += time.ok_or_else(|| {
            io::Error::other(format!("/proc/{pid}/task/schedstat has an unknown format"))
        })?;
    }
    Ok(nanos as f64 / 1e9)
}

/// Resident memory of a process in bytes, counted exactly (`statm` lags behind).
pub(crate) fn resident(pid: u32) -> io::Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    rollup
        .lines()
        .find_map(|line| kib(line, "Rss:"))
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/smaps_rollup has an unknown format")))
}

/// The most resident memory of a process so far, in bytes.
pub(crate) fn peak_resident(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    status
        .lines()
        .find_map(|line| kib(line, "VmHWM:"))
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/status has an unknown format")))
}

/// Memory that the kernel has allocated for its own objects, such as sockets, in bytes: `Slab` in `/proc/meminfo`.
pub(crate) fn slab() -> io::Result<u64> {
    parse_slab(&fs::read_to_string("/proc/meminfo")?)
        .ok_or_else(|| io::Error::other("/proc/meminfo has an unknown format"))
}

fn parse_slab(meminfo: &str) -> Option<u64> {
    meminfo.lines().find_map(|line| kib(line, "Slab:"))
}

/// Parses a line like `Rss:  100 kB`; returns bytes.
fn kib(line: &str, name: &str) -> Option<u64> {
    let kib = line.strip_prefix(name)?.trim().strip_suffix("kB")?;
    Some(kib.trim().parse::<u64>().ok()? * 1024)
}

/// How often a listener's queue of connections to accept was full, so that the kernel dropped one, in all processes of this
/// network namespace. The client's kernel sends it again, at first after a second.
pub(crate) fn accept_queue_overflows() -> io::Result<u64> {
    parse_overflows(&fs::read_to_string("/proc/net/netstat")?)
        .ok_or_else(|| io::Error::other("/proc/net/netstat has an unknown format"))
}

fn parse_overflows(netstat: &str) -> Option<u64> {
    let mut lines = netstat
        .lines()
        .filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names
        .split(' ')
        .position(|name| name == "ListenOverflows")?;
    values.split(' ').nth(at)?.parse().ok()
}

/// Nanoseconds of the clock that all processes of the machine share.
pub(crate) fn monotonic_nanos() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Voluntary context switches of all threads of a process: how often they slept and were woken.
pub(crate) fn wake_ups(pid: u32) -> io::Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // Skip threads that have ended since the directory was read.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else {
            continue;
        };
        let count = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
            .and_then(|count| count.trim().parse::<u64>().ok());
        sum += count
            .ok_or_else(|| io::Error::other(format!("/proc/{pid}/task has an unknown format")))?;
    }
    Ok(sum)
}

/// Time that all CPUs together have spent since boot, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct AllCpus {
    pub(crate) busy: f64,
    pub(crate) all: f64,
}

impl Sub for AllCpus {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            busy: self.busy - earlier.busy,
            all: self.all - earlier.all,
        }
    }
}

pub(crate) fn all_cpus() -> io::Result<AllCpus> {
    parse_all_cpus(
        &fs::read_to_string("/proc/stat")?,
        rustix::param::clock_ticks_per_second(),
    )
    .ok_or_else(|| io::Error::other("/proc/stat has an unknown format"))
}

fn parse_all_cpus(stat: &str, ticks_per_second: u64) -> Option<AllCpus> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    // Fields: user nice system idle iowait irq softirq steal. Guest times are included in the first two.
    let ticks: Vec<u64> = line
        .split_ascii_whitespace()
        .take(8)
        .map_while(|f| f.parse().ok())
        .collect();
    let all: u64 = ticks.iter().sum();
    let idle = ticks.get(3)? + ticks.get(4)?;
    let per_second = ticks_per_second as f64;
    Some(AllCpus {
        busy: (all - idle) as f64 / per_second,
        all: all as f64 / per_second,
    })
}

/// Describes the machine in one line: processor, number of CPUs, kernel, load averages.
pub(crate) fn describe() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, name)| name.trim());
    let cpus = allowed_cpus().map_or(0, |cpus| cpus.len());
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load: Vec<&str> = load.split_ascii_whitespace().take(3).collect();
    format!(
        "{model}, {cpus} CPUs, Linux {}, load averages {}",
        kernel.trim(),
        load.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listener_is_found_by_its_process_and_port() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let this = std::process::id();
        assert!(listens(this, port).unwrap());
        drop(listener);
        assert!(!listens(this, port).unwrap());
    }

    #[test]
    fn stat_line_with_odd_process_name_is_parsed() {
        let line = "42 (a ) b) S 1 42 42 0 -1 4194560 1 2 3 4 150 250 6 7 20 0 33 0 999";
        assert_eq!(
            parse_stat(line, 100),
            Some(CpuTime {
                user: 1.5,
                system: 2.5
            })
        );
        assert_eq!(
            parse_times(line, 16, 100),
            Some(CpuTime {
                user: 0.06,
                system: 0.07
            })
        );
        assert_eq!(parse_stat("42 (x", 100), None);
    }

    #[test]
    fn busy_time_excludes_idle_and_iowait() {
        let stat = "cpu  100 0 100 700 100 0 0 0 50 50\ncpu0 1 2 3\n";
        assert_eq!(
            parse_all_cpus(stat, 100),
            Some(AllCpus {
                busy: 2.0,
                all: 10.0
            })
        );
    }

    #[test]
    fn slab_is_found_among_the_lines_of_meminfo() {
        let meminfo = "MemTotal: 9 kB\nSlab:           2048 kB\nSReclaimable: 7 kB\n";
        assert_eq!(parse_slab(meminfo), Some(2 << 20));
        assert_eq!(parse_slab("MemTotal: 9 kB\n"), None);
    }

    #[test]
    fn overflows_are_found_below_their_name() {
        let netstat =
            "TcpExt: SyncookiesSent ListenOverflows X\nTcpExt: 1 42 3\nIpExt: A\nIpExt: 5\n";
        assert_eq!(parse_overflows(netstat), Some(42));
        assert_eq!(parse_overflows("TcpExt: A B\nTcpExt: 1 2\n"), None);
    }

    #[test]
    fn own_process_is_found_in_proc() {
        let pid = std::process::id();
        assert!(cpu_time(pid).is_ok());
        assert!(cpu_seconds(pid).is_ok_and(|seconds| seconds > 0.0));
        // A test runs on a thread of its own.
        assert!(cpu_seconds_without(pid, pid).is_ok_and(|seconds| seconds > 0.0));
        assert_eq!(cpu_seconds_of_threads(pid, "none").ok(), Some(0.0));
        assert!(resident(pid).is_ok_and(|bytes| bytes > 100_000));
        assert!(peak_resident(pid).is_ok_and(|bytes| bytes > 100_000));
        assert!(wake_ups(pid).is_ok());
        assert!(accept_queue_overflows().is_ok());
        assert!(slab().is_ok_and(|bytes| bytes > 0));
        assert!(all_cpus().is_ok_and(|all| all.all > 0.0));
        assert!(!allowed_cpus().unwrap_or_default().is_empty());
    }
}
