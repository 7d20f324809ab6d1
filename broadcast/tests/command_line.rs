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
    ] {
        let (code, out, err) = support::run(arguments);
        assert_eq!(code, 2, "{arguments:?}");
        assert_eq!(out, "", "{arguments:?}");
        assert_eq!(err.lines().count(), 1, "{arguments:?}: {err}");
        assert!(err.contains(said), "{arguments:?}: {err}");
    }
}

#[test]
fn misspelt_option_or_value_gets_a_suggestion() {
    for (arguments, said) in [
        (&["--lisen", "80"][..], "'--listen'"),
        (&["--on-message", "brodcast"], "'broadcast'"),
        (&["lisen", "ws://127.0.0.1:1/"], "'listen'"),
        (&["listen", "--cout", "1", "ws://127.0.0.1:1/"], "'--count'"),
    ] {
        let (code, _, err) = support::run(arguments);
        assert_eq!(code, 2, "{arguments:?}: {err}");
        assert!(
            err.contains("similar") && err.contains(said),
            "{arguments:?}: {err}"
        );
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}

#[test]
fn options_come_from_the_environment_unless_the_line_says_otherwise() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let listen = ("HUMPHREY_BROADCAST_LISTEN", &*address);
    // The address is in use, which shows that it was taken.
    let (code, _, err) = support::run_with(&[listen], &[]);
    assert!(code == 1 && err.contains(&address), "{err}");
    let eof = ("HUMPHREY_BROADCAST_EXIT_ON_EOF", "1");
    let off = ("HUMPHREY_BROADCAST_EXIT_ON_EOF", "0");
    let free = ["--listen", "127.0.0.1:0"];
    let (code, _, err) = support::run_with(&[listen, eof], &free);
    assert!(code == 0 && err.contains("0 lines"), "{err}");
    // An option that excludes the variable's.
    let port = ["--port", "0"];
    let (code, _, err) = support::run_with(&[listen, eof], &port);
    assert!(code == 0 && err.contains("http://127.0.0.1:"), "{err}");
    let quiet = ("HUMPHREY_BROADCAST_QUIET", "true");
    let (code, _, err) = support::run_with(&[quiet, eof], &free);
    assert_eq!((code, err.as_str()), (0, ""));
    let (code, _, err) = support::run_with(&[("HUMPHREY_BROADCAST_HISTORY", "many")], &free);
    assert!(code == 2 && err.contains("--history"), "{err}");
    // Of a command, and of several values.
    let count = ("HUMPHREY_BROADCAST_COUNT", "0");
    let (code, _, err) = support::run_with(&[count], &["listen", "ws://127.0.0.1:1/"]);
    assert!(code == 2 && err.contains("--count"), "{err}");
    let token = ("HUMPHREY_BROADCAST_PUBLISH_TOKEN", "s3cret");
    let (_, help, _) = support::run_with(&[token], &["--help"]);
    assert!(!help.contains("s3cret"), "{help}");
    let file = ["--publish-token-file", "/nonexistent"];
    let (code, _, err) = support::run_with(&[token, off], &[&free[..], &file].concat());
    assert!(code == 2 && err.contains("/nonexistent"), "{err}");
}

#[test]
fn manual_and_completions_name_every_option() {
    let (_, help, _) = support::run(&["--help"]);
    // The description of an option is indented further than its name, and a line of it may begin with the name of another option.
    let is_name = |line: &&str| line.starts_with("  -") || line.starts_with("      --");
    let names: Vec<&str> = help
        .lines()
        .filter(is_name)
        .map(str::trim)
        .filter_map(|line| line.split([' ', ',']).find(|word| word.starts_with("--")))
        .collect();
    assert!(names.len() > 20, "{names:?}");
    let (code, manual, err) = support::run(&["man"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(manual.contains(".TH humphrey-broadcast 1"), "{manual}");
    let (code, completions, err) = support::run(&["completions", "bash"]);
    assert_eq!((code, err.as_str()), (0, ""));
    for name in names {
        let escaped = name.replace('-', "\\-");
        assert!(manual.contains(&escaped), "{name} is not in the manual");
        assert!(
            completions.contains(name),
            "{name} is not in the completions"
        );
    }
    let (code, listen, _) = support::run(&["man", "listen"]);
    assert!(
        code == 0
            && listen.contains("humphrey\\-broadcast\\-listen")
            && listen.contains("give\\-up\\-after"),
        "{listen}"
    );
    for shell in ["zsh", "fish"] {
        let (code, completions, _) = support::run(&["completions", shell]);
        assert!(code == 0 && completions.contains("on-message"), "{shell}");
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
        "--max-messages-per-second",
        "--max-bytes-per-second",
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
