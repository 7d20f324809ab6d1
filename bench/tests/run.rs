//! One small run of the program itself: real servers, a real client, and all three files.

use std::fs;
#[cfg(feature = "cluster")]
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Runs the program with `args`, which must succeed, and with `--out`. Returns the path that `--out` names without its
/// extension, and the program's output.
fn run_with_out(name: &str, args: &[&str]) -> (PathBuf, Output) {
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let run = bench(args).arg("--out").arg(&out).output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
    (out, run)
}

/// Reads the JSON that a run has written.
fn json(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.with_extension("json")).unwrap()).unwrap()
}

fn bench(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command.args(args);
    command
}

#[test]
fn run_counts_deliveries_and_writes_json_table_and_plot() {
    let picked = "fan-out-100-w16,echo-1-w1,outside-1000-w1";
    let (out, run) = run_with_out(
        "run",
        &["run", "--quick", "--cpu-seconds", "0.05", "--only", picked],
    );
    let results = json(&out);
    let outcomes = results["outcomes"].as_array().unwrap();
    // `--only` accepts parts of names: `echo-1-w1` and `outside-1000-w1` each pick two scenarios.
    assert_eq!(outcomes.len(), 5, "{results}");
    for outcome in outcomes {
        let servers = outcome["servers"].as_array().unwrap();
        assert!(servers.len() >= 2);
        for sample in servers.iter().map(|server| &server["rounds"][0]) {
            assert!(sample["received"].as_u64().unwrap() > 0);
            assert_eq!(sample["received"], sample["expected"]);
            assert!(sample["value"].as_f64().unwrap() > 0.0);
        }
    }
    let table = fs::read_to_string(out.with_extension("md")).unwrap();
    assert_eq!(table, String::from_utf8_lossy(&run.stdout));
    let plot = fs::read_to_string(out.with_extension("svg")).unwrap();
    assert!(plot.contains("humphrey_ws") && plot.contains("</svg>"));

    let json = out.with_extension("json");
    let again = bench(&["report"]).arg(&json).output().unwrap();
    assert!(again.status.success());
    assert_eq!(String::from_utf8_lossy(&again.stdout), table);
}

#[test]
#[cfg(feature = "deflate")]
fn compression_scenarios_receive_what_was_sent() {
    let (out, _) = run_with_out("compression", &["compression", "--quick"]);
    let report = json(&out);
    let ticks = report["scenarios"].as_array().unwrap();
    let ticks = ticks.iter().find(|s| s["id"] == "ticks-w1").unwrap();
    let of = |server: usize, figure: &str| {
        let round = &ticks["servers"][server]["rounds"][0];
        round[figure].as_f64().unwrap()
    };
    assert!((of(0, "bytes") - 106.0).abs() < 1e-9, "{ticks}");
    assert!(of(1, "compressed") > 0.99, "{ticks}");
    assert!(of(1, "bytes") < 53.0 && of(1, "compared") > 0.0, "{ticks}");
}

#[test]
#[cfg(feature = "tls")]
fn tls_scenarios_receive_what_was_sent() {
    let (out, _) = run_with_out("tls", &["tls", "--quick"]);
    let report = json(&out);
    let scenario = |id: &str| {
        let mut scenarios = report["scenarios"].as_array().unwrap().iter();
        scenarios.find(|scenario| scenario["id"] == id).unwrap()
    };
    let of = |id: &str, server: usize, figure: &str| {
        let figure = &scenario(id)["servers"][server]["rounds"][0][figure];
        figure.as_f64().unwrap()
    };
    for server in [0, 1] {
        assert!((of("fan-out-w16", server, "bytes") - 34.0).abs() < 1e-9);
        assert!(of("fan-out-w16", server, "compared") > 0.0);
    }
    for server in 0..5 {
        assert!(of("handshakes", server, "connections") > 0.0);
    }
    assert!(of("storm", 0, "p99") > 0.0 && of("storm", 0, "joins_per_second") > 0.0);
}

#[test]
fn start_connects_all_clients_and_counts_echoes_during_the_storm() {
    let (out, run) = run_with_out("start", &["start", "--quick", "--connections", "60"]);
    let report = json(&out);
    let servers = report["servers"].as_array().unwrap();
    assert_eq!(servers.len(), 2, "{report}");
    for server in servers {
        let (cold, storm) = (&server["cold"][0], &server["storms"][0]);
        let of = |sample: &Value, figure: &str| sample[figure].as_f64().unwrap();
        assert!(of(cold, "first") > 0.0 && of(cold, "first") <= of(cold, "last"));
        assert!(of(storm, "took") > 0.0 && of(storm, "p99_before") > 0.0);
        assert!(of(storm, "p99") <= of(storm, "max"), "{storm}");
    }
    let table = fs::read_to_string(out.with_extension("md")).unwrap();
    assert_eq!(table, String::from_utf8_lossy(&run.stdout));
}

#[test]
fn cores_with_shared_cpus_marks_every_figure() {
    let (out, _) = run_with_out("cores", &["cores", "--quick", "--share"]);
    let report = json(&out);
    assert_eq!(report["meaningless"], true);
    let scenarios = report["scenarios"].as_array().unwrap();
    assert_eq!(scenarios.len(), 4, "{report}");
    for scenario in scenarios {
        for server in scenario["servers"].as_array().unwrap() {
            assert!(
                server["rounds"][0]["rate"].as_f64().unwrap() > 0.0,
                "{server}"
            );
        }
    }
    let table = fs::read_to_string(out.with_extension("md")).unwrap();
    let mut lines = table.lines().filter(|line| line.starts_with("| 1 "));
    assert!(lines.all(|line| line.contains("meaningless")), "{table}");
}

#[test]
fn cores_on_one_cpu_measures_nothing_and_succeeds() {
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("no-cores");
    let program = env!("CARGO_BIN_EXE_bench");
    let run = bench(&[
        "exec",
        "--cpu",
        &first_cpu(),
        "--",
        program,
        "cores",
        "--quick",
        "--out",
    ])
    .arg(&out)
    .output()
    .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{run:?}");
    assert!(
        said.starts_with("NOT MEASURED") && !said.contains('|'),
        "{said}"
    );
    assert!(!out.with_extension("json").exists());
}

/// Returns the number of a CPU that this process may use.
fn first_cpu() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mut lines = status.lines();
    let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let first = list.unwrap().trim().split([',', '-']).next();
    first.unwrap().to_owned()
}

/// Returns the number in the line of `jitter` that begins with this name.
fn fact(run: &Output, name: &str) -> u64 {
    let text = String::from_utf8_lossy(&run.stdout);
    let mut lines = text.lines();
    let rest = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let rest = rest.unwrap_or_else(|| panic!("no {name:?} in {text}"));
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
    digits.unwrap_or_default().parse().unwrap()
}

#[test]
fn jitter_on_one_node_accounts_for_every_message() {
    let schedule = ["--seconds", "3", "--interval", "1", "--offline", "0.3"];
    let run = bench(&["jitter", "--nodes", "1", "--clients", "20"])
        .args(schedule)
        .output()
        .unwrap();
    assert!(run.status.success(), "{run:?}");
    assert!(fact(&run, "cuts") > 0 && fact(&run, "resumed") > 0);
    assert!(fact(&run, "replayed") > 0 && fact(&run, "due") > 0);
    assert_eq!(fact(&run, "received"), fact(&run, "due"));
    let bad = ["lost", "received twice", "out of order", "gaps told"];
    assert_eq!(bad.map(|name| fact(&run, name)), [0; 4]);
}

#[test]
fn jitter_beyond_the_history_reports_gaps_and_fails() {
    // A client misses 2,400 messages at each cut, and the room keeps 1,000.
    let schedule = ["--seconds", "2", "--interval", "1.5", "--offline", "0.8"];
    let run = bench(&["jitter", "--nodes", "1", "--clients", "4", "--rate", "3000"])
        .args(schedule)
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    assert!(fact(&run, "gaps told") > 0);
    assert!(fact(&run, "lost") > 0);
    assert_eq!(
        fact(&run, "received") + fact(&run, "lost"),
        fact(&run, "due")
    );
}

/// Returns the Redis server to start, or `None` if there is none.
#[cfg(feature = "cluster")]
fn redis_server() -> Option<String> {
    // If the variable is set, the test fails without the server, like those of the library.
    let required = std::env::var("HUMPHREY_WS_REDIS_SERVER").ok();
    let redis = required.as_deref().unwrap_or("redis-server");
    if required.is_none() && Command::new(redis).arg("--version").output().is_err() {
        let text = b"NOT TESTED: the commands for clusters need redis-server\n";
        std::io::stderr().write_all(text).unwrap();
        return None;
    }
    Some(redis.into())
}

#[test]
#[cfg(feature = "cluster")]
fn size_counts_each_broadcast_at_every_client() {
    let Some(redis) = redis_server() else {
        return;
    };
    let (out, run) = run_with_out("size", &["size", "--quick", "--redis", &redis]);
    let report = json(&out);
    assert_eq!(
        report["connections"],
        serde_json::json!([1_000, 1_000, 1_000])
    );
    // Twenty broadcasts to the first 64 clients of each node, and three to all.
    assert_eq!(report["expected"], 20 * 3 * 64 + 3 * 3_000);
    assert_eq!(report["received"], report["expected"]);
    for figure in report["figures"].as_array().unwrap() {
        let mut rounds = figure["rounds"].as_array().unwrap().iter();
        assert!(rounds.len() > 0 && rounds.all(Value::is_number), "{figure}");
    }
    let table = fs::read_to_string(out.with_extension("md")).unwrap();
    assert_eq!(table, String::from_utf8_lossy(&run.stdout));
}

#[test]
fn size_with_more_clients_than_descriptors_fails() {
    let run = bench(&["size", "--nodes", "1", "--clients", "2000000"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success() && said.contains("--nodes"), "{said}");
}

#[test]
#[cfg(feature = "cluster")]
fn cluster_scenarios_receive_what_was_sent() {
    let Some(redis) = redis_server() else {
        return;
    };
    let (out, _) = run_with_out("cluster", &["cluster", "--quick", "--redis", &redis]);
    let report = json(&out);
    for scenario in report["scenarios"].as_array().unwrap() {
        let figures = scenario["figures"].as_array().unwrap();
        let is_measured = figures.iter().all(|figure| figure["rounds"][0].is_number());
        assert!(is_measured != scenario["failure"].is_string(), "{scenario}");
        // Nodes with histories may refuse to start.
        assert!(is_measured || scenario["id"] == "appends", "{scenario}");
    }
}

#[test]
#[cfg(all(feature = "deflate", feature = "tls", feature = "cluster"))]
fn costs_rows_receive_what_was_sent() {
    let Some(redis) = redis_server() else {
        return;
    };
    let picked = "ids,event-streams,deflate,tls,cluster-history,metrics,echo-borrowed";
    let args = ["costs", "--quick", "--only", picked, "--redis", &redis];
    let (out, run) = run_with_out("costs", &args);
    let report = json(&out);
    let scenarios = report["scenarios"].as_array().unwrap();
    assert_eq!(scenarios.len(), 4, "{report}");
    for scenario in scenarios {
        for server in scenario["servers"].as_array().unwrap() {
            let of = |figure: &str| server["rounds"][0][figure].as_f64().unwrap_or_default();
            assert!(of("cpu") > 0.0 && of("compared") > 0.0, "{server}");
            let name = server["server"].as_str().unwrap();
            let changes_bytes = ["room and id", "event streams", "compression", "TLS"];
            let changes_bytes = changes_bytes.iter().any(|part| name.contains(part));
            let has_changed = (of("wire_bytes") - 106.0).abs() > 1e-9;
            assert_eq!(has_changed, changes_bytes, "{server}");
            assert_eq!(of("scrapes") > 0.0, name.contains("metrics"), "{server}");
            assert_eq!(of("broker_cpu") > 0.0, name.contains("cluster"), "{server}");
        }
    }
    let table = fs::read_to_string(out.with_extension("md")).unwrap();
    assert_eq!(table, String::from_utf8_lossy(&run.stdout));
}

#[test]
fn unknown_scenario_name_is_an_error() {
    for args in [
        ["run", "--only", "nothing"],
        ["run", "--peers", "nobody"],
        ["cluster", "--only", "nothing"],
        ["costs", "--only", "nothing"],
    ] {
        let run = bench(&args).output().unwrap();
        assert!(!run.status.success());
    }
}
