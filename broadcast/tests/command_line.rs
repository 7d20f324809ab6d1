//! The command line of the server.
#![cfg(unix)]

mod support;

use std::net::TcpListener;

#[test]
fn address_in_use_is_one_line_and_exit_code_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, out, err) = support::run(&["--listen", &address]);
    assert_eq!(code, 1);
    assert_eq!(out, "");
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(
        err.starts_with("humphrey-broadcast: ") && err.contains(&address) && err.contains("in use"),
        "{err}"
    );
}

#[test]
fn bad_options_are_one_line_and_exit_code_2() {
    for (arguments, said) in [
        (&["--on-message", "shout"][..], "shout"),
        (&["--slow-client", "hurry"], "hurry"),
        (&["--listen", "nowhere"], "nowhere"),
        (&["--max-connections", "0"], "at least 1"),
        (&["--heartbeat", "often"], "often"),
        (&["--no-such-option"], "--no-such-option"),
        (&["file.log"], "file.log"),
    ] {
        let (code, out, err) = support::run(arguments);
        assert_eq!(code, 2, "{arguments:?}");
        assert_eq!(out, "", "{arguments:?}");
        assert_eq!(err.lines().count(), 1, "{arguments:?}: {err}");
        assert!(err.contains(said), "{arguments:?}: {err}");
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    let (code, out, err) = support::run(&["--help"]);
    assert_eq!((code, err.as_str()), (0, ""));
    for option in [
        "--listen",
        "--on-message",
        "--room",
        "--history",
        "256 KiB",
        "--max-rooms",
        "--publish-token",
        "--publish-token-file",
        "--no-welcome",
        "--exit-on-eof",
        "--slow-client",
        "--max-connections",
        "--heartbeat",
        "--quiet",
        "127.0.0.1:8080",
        "SECONDS",
    ] {
        assert!(out.contains(option), "{option}:\n{out}");
    }
    let (code, out, _) = support::run(&["--version"]);
    assert_eq!(code, 0);
    assert_eq!(
        out.trim(),
        concat!("humphrey-broadcast ", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn options_in_readme_and_guide_are_in_the_help() {
    let readme = include_str!("../../README.md");
    let section = readme.split("## The program").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let documentation = [section, include_str!("../../docs/humphrey-broadcast.md")].concat();
    let help: String = [&["--help"][..], &["listen", "--help"], &["send", "--help"]]
        .iter()
        .map(|arguments| support::run(arguments).1)
        .collect();
    let mut seen = 0;
    for (at, _) in documentation.match_indices("--") {
        let name = documentation[at..].trim_start_matches('-');
        let name = &name[..name
            .find(|c: char| c != '-' && !c.is_ascii_lowercase())
            .unwrap()];
        // Table separators consist of hyphens too.
        if !name.is_empty() {
            assert!(help.contains(&format!(" --{name}")), "--{name}");
            seen += 1;
        }
    }
    assert!(seen > 8, "only {seen}");
}
