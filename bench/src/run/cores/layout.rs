//! Which CPUs the server and its clients use, with how many shards.

use std::fs;
use std::num::NonZero;
use std::thread;

use crate::machine;

/// The fewest CPUs with which two numbers of shards can be compared: two for the server, and two others for the clients.
const CPUS_MIN: usize = 4;

/// The CPUs of the server and those of the clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) server: Vec<usize>,
    pub(super) clients: Vec<usize>,
    /// Whether both use the same CPUs, so that the figures mean nothing.
    pub(super) shared: bool,
}

impl Layout {
    /// Gives the first half to the server, and the rest to the clients; `None` if these are too few CPUs.
    pub(super) fn split(cpus: &[usize]) -> Option<Self> {
        (cpus.len() >= CPUS_MIN).then(|| {
            let (server, clients) = cpus.split_at(cpus.len() / 2);
            Self {
                server: server.into(),
                clients: clients.into(),
                shared: false,
            }
        })
    }

    /// Gives all of them to both.
    pub(super) fn shared(cpus: &[usize]) -> Self {
        Self {
            server: cpus.into(),
            clients: cpus.into(),
            shared: true,
        }
    }

    /// The numbers of shards: the powers of two that the server has CPUs for, and the number of its CPUs.
    pub(super) fn shard_counts(&self) -> Vec<usize> {
        let most = self.server.len();
        let powers = (0..).map(|power| 1 << power);
        powers.take_while(|&n| n < most).chain([most]).collect()
    }

    /// How many of the server's CPUs are threads of a core that another CPU of the server, or one of a client, belongs to.
    /// `siblings` are the threads of a CPU's core.
    pub(super) fn shared_cores(&self, siblings: impl Fn(usize) -> Vec<usize>) -> (usize, usize) {
        let count = |others: &[usize]| {
            let shares = |cpu: usize| {
                let siblings = siblings(cpu);
                let mut others = others.iter();
                others.any(|&other| other != cpu && siblings.contains(&other))
            };
            self.server.iter().filter(|&&cpu| shares(cpu)).count()
        };
        (count(&self.server), count(&self.clients))
    }
}

/// The CPUs that this process may use, as its affinity says, but no more than a quota of its control group is worth.
pub(super) fn usable_cpus() -> std::io::Result<Vec<usize>> {
    let mut cpus = machine::allowed_cpus()?;
    let quota = thread::available_parallelism().map_or(usize::MAX, NonZero::get);
    cpus.truncate(quota);
    Ok(cpus)
}

/// The message that nothing was measured because the process may use too few CPUs.
pub(super) fn refusal(cpus: &[usize]) -> String {
    format!(
        "NOT MEASURED: how the server scales with the number of its CPUs.\n\
         CPUs that this process may use: {} ({}). CPUs needed: at least {CPUS_MIN}, two for the server and two others for the \
         load clients.\n\
         No server was started, no figure exists, and no file was written. Run the command on a machine with more CPUs. To \
         test only the command itself here, add --share: its figures mean nothing.\n",
        cpus.len(),
        machine::cpu_list(cpus)
    )
}

/// The CPUs that are threads of the same core as this one, if the kernel says so.
pub(super) fn siblings(cpu: usize) -> Vec<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    let text = fs::read_to_string(path);
    text.map_or_else(|_| vec![cpu], |text| parse_list(text.trim()))
}

/// Parses a list such as `0-2,8`. Parts that are no numbers are left out.
fn parse_list(text: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(count: usize) -> Vec<usize> {
        (0..count).collect()
    }

    #[test]
    fn first_half_of_the_cpus_is_the_servers() {
        let layout = Layout::split(&[1, 3, 5, 7, 9]).unwrap();
        assert_eq!(layout.server, [1, 3]);
        assert_eq!(layout.clients, [5, 7, 9]);
        assert!(!layout.shared);
        for few in 0..CPUS_MIN {
            assert_eq!(Layout::split(&cpus(few)), None, "{few} CPUs");
        }
        let shared = Layout::shared(&[0, 1]);
        assert!(shared.shared && shared.server == [0, 1] && shared.clients == [0, 1]);
    }

    #[test]
    fn shard_counts_are_powers_of_two_and_the_half() {
        let counts = |cpus| {
            Layout::split(&(0..cpus).collect::<Vec<_>>())
                .unwrap()
                .shard_counts()
        };
        assert_eq!(counts(4), [1, 2]);
        assert_eq!(counts(7), [1, 2, 3]);
        assert_eq!(counts(12), [1, 2, 4, 6]);
        assert_eq!(counts(64), [1, 2, 4, 8, 16, 32]);
        assert_eq!(Layout::shared(&[5]).shard_counts(), [1]);
    }

    #[test]
    fn refusal_names_the_cpus_and_holds_no_figure() {
        let text = refusal(&[0, 5]);
        assert!(text.starts_with("NOT MEASURED"), "{text}");
        assert!(
            text.contains("use: 2 (0,5).") && text.contains("at least 4"),
            "{text}"
        );
        assert!(text.contains("--share") && !text.contains('|'), "{text}");
    }

    #[test]
    fn cpus_of_one_core_are_counted() {
        // The threads of a core are often n and n + half.
        let layout = Layout::split(&cpus(8)).unwrap();
        assert_eq!(
            layout.shared_cores(|cpu| vec![cpu % 4, cpu % 4 + 4]),
            (0, 4)
        );
        let pairs = |cpu: usize| vec![cpu & !1, cpu | 1];
        assert_eq!(layout.shared_cores(pairs), (4, 0));
        assert_eq!(layout.shared_cores(|cpu| vec![cpu]), (0, 0));
        assert_eq!(parse_list("0-2,8"), [0, 1, 2, 8]);
        assert_eq!(parse_list(""), [0; 0]);
    }
}
