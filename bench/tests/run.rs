//! One small run of the program itself: real servers, a real client, and all three files.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

fn bench(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command.args(args);
    command
}

#[test]
fn run_counts_deliveries_and_writes_json_table_and_plot() {
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("run");
    let picked = "fan-out-100-w16,echo-1-w1,outside-1000-w1";
    let run = bench(&[
        "run",
        "--quick",
        "--cpu-seconds",
        "0.05",
        "--only",
        picked,
        "--out",
    ])
    .arg(&out)
    .output()
    .unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");

    let json = fs::read(out.with_extension("json")).unwrap();
    let results: Value = serde_json::from_slice(&json).unwrap();
    let outcomes = results["outcomes"].as_array().unwrap();
    // Two of the echoes have names that begin so.
    assert_eq!(outcomes.len(), 5, "{said}");
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
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("compression");
    let run = bench(&["compression", "--quick", "--out"])
        .arg(&out)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");

    let json = fs::read(out.with_extension("json")).unwrap();
    let report: Value = serde_json::from_slice(&json).unwrap();
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
fn unknown_scenario_name_is_an_error() {
    for args in [["--only", "nothing"], ["--peers", "nobody"]] {
        let run = bench(&["run", args[0], args[1]]).output().unwrap();
        assert!(!run.status.success());
    }
}
