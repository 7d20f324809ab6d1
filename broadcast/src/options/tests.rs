use super::*;
use crate::command_line::first_paragraph;
use humphrey_ws::Subscription;

fn parsed(arguments: &[&str]) -> Result<Options, String> {
    let arguments = std::iter::once(&"humphrey-broadcast").chain(arguments);
    Options::try_parse_from(arguments).map_err(|error| first_paragraph(&error.to_string()))
}

#[test]
fn command_line_definition_is_consistent() {
    Options::command().debug_assert();
}

#[test]
fn defaults_match_the_documentation() {
    let options = parsed(&[]).unwrap();
    assert!(options.listen.is_empty() && !options.names_address());
    assert_eq!(options.on_message, OnMessage::Echo);
    assert_eq!(options.slow_consumer(), SlowConsumer::SkipAhead);
    let pace = parsed(&["--slow-client", "pace"]).unwrap();
    assert_eq!(pace.slow_consumer(), SlowConsumer::pace());
    let patient = [
        "--slow-client=pace",
        "--pace-rate=80000",
        "--pace-patience=2.5",
    ];
    assert_eq!(
        parsed(&patient).unwrap().slow_consumer(),
        SlowConsumer::Pace {
            bytes_per_second_min: 80_000,
            patience: Duration::from_millis(2_500),
        }
    );
    assert_eq!(options.max_connections, Limits::default().connections_max);
    assert_eq!(options.origins(), Origins::Same);
    assert_eq!(options.trusted_proxies(), None);
    assert_eq!(options.max_connections_per_address, None);
    assert_eq!(options.max_messages_per_second, None);
    assert_eq!(options.max_bytes_per_second, None);
    assert_eq!(options.max_handshakes_per_address, None);
    assert_eq!(options.metrics, None);
    assert_eq!(options.room, None);
    let files = options.followed_files().unwrap();
    assert!(files.is_empty() && options.reads_standard_input());
    let settings = options.room_settings(&files);
    assert_eq!((settings.history, settings.rooms_max), (Some(1_000), None));
    assert!(settings.sources.is_none());
    let without = parsed(&["--history", "0"]).unwrap();
    assert_eq!(without.room_settings(&files).history, None);
    let lines = |arguments: &[&str]| parsed(arguments).unwrap().lines_at_start();
    assert_eq!(lines(&["a.log"]), 1_000);
    assert_eq!(lines(&["a.log", "--history=0"]), 0);
    assert_eq!(lines(&["a.log", "b.log", "c.log"]), 334);
    assert_eq!(lines(&["a.log", "-n5"]), 5);
    #[cfg(feature = "cluster")]
    assert_eq!(lines(&["a.log", "--cluster=redis://localhost"]), 0);
    assert!(options.publish_token().unwrap().is_none());
    assert!(options.read_token().unwrap().is_none());
    assert!(options.admin_token().unwrap().is_none());
    assert!(options.heartbeat().is_some());
    assert_eq!(
        options.events_keep_alive(),
        Subscription::KEEP_ALIVE_DEFAULT
    );
    assert!(!options.no_welcome && !options.exit_on_eof && !options.quiet);
}

#[test]
fn address_may_be_a_port_alone() {
    let address = |arguments: &[&str]| {
        let addresses = parsed(arguments).unwrap().listen_addresses();
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        addresses.join(" ")
    };
    assert_eq!(address(&[]), "127.0.0.1:8080");
    assert_eq!(address(&["--listen", "80"]), "127.0.0.1:80");
    assert_eq!(address(&["--listen", ":80"]), "0.0.0.0:80");
    assert_eq!(address(&["--listen", "[::1]:80"]), "[::1]:80");
    assert_eq!(address(&["-p", "9000"]), "127.0.0.1:9000");
    assert_eq!(address(&["--port=9000"]), "127.0.0.1:9000");
    let several = ["--listen", "80", "--listen=[::1]:81"];
    assert_eq!(address(&several), "127.0.0.1:80 [::1]:81");
}

#[test]
fn allowed_origins_extend_the_own_origin() {
    let origins = |arguments: &[&str]| parsed(arguments).unwrap().origins();
    assert_eq!(
        origins(&["--allow-origin", "https://a.example", "--allow-origin=null"]),
        Origins::SameOrList(vec!["https://a.example".into(), "null".into()])
    );
    assert_eq!(
        origins(&["--allow-origin=https://a.example", "--allow-origin=*"]),
        Origins::Any
    );
}

#[test]
fn allowed_hosts_depend_on_the_address_and_the_options() {
    let hosts = |arguments: &[&str]| {
        let options = parsed(arguments).unwrap();
        let addresses = options.listen_addresses();
        options.hosts(addresses.iter().all(ListenAddress::is_local))
    };
    let default = hosts(&[]).unwrap();
    assert!(default.allows(Some("localhost:8080")) && !default.allows(Some("a.example")));
    for arguments in [
        &["--listen", "0.0.0.0:80"][..],
        &["--listen", "[::]:80"],
        &["--listen", "192.0.2.1:80"],
        &["--allow-host", "*"],
        &["--allow-origin", "*"],
        &["--listen=0.0.0.0:80", "--allow-host=*"],
    ] {
        assert_eq!(hosts(arguments), None, "{arguments:?}");
    }
    for arguments in [
        &["--allow-host", "a.example"][..],
        &["--allow-origin", "https://a.example:8443"],
        &["--allow-origin=*", "--allow-host=a.example"],
        &["--listen", "0.0.0.0:80", "--allow-host", "a.example"],
        &["--listen", "[::1]:80", "--allow-host", "a.example:80"],
        &[
            "--listen",
            "[::ffff:127.0.0.1]:80",
            "--allow-host=A.example.",
        ],
    ] {
        let hosts = hosts(arguments).unwrap();
        assert!(hosts.allows(Some("a.example:80")), "{arguments:?}");
        assert!(!hosts.allows(Some("b.example:80")), "{arguments:?}");
    }
}

#[test]
fn heartbeat_of_zero_is_disabled() {
    assert!(parsed(&["--heartbeat", "0"]).unwrap().heartbeat().is_none());
}

#[test]
fn error_is_one_line_that_names_the_cause() {
    for (arguments, said) in [
        (&["--on-message", "shout"][..], "'shout'"),
        (&["--slow-client", "wait"], "skip-ahead"),
        (&["--listen", "80800"], "127.0.0.1:8080"),
        (&["--listen=80", "--port=80"], "cannot be used with"),
        (&["--max-connections", "0"], "at least 1"),
        (&["--max-connections-per-address", "0"], "at least 1"),
        (&["--max-handshakes-per-address", "0"], "'0'"),
        (&["--max-messages-per-second", "0"], "'0'"),
        (&["--max-bytes-per-second", "-1"], "'-1'"),
        (&["--metrics", "localhost"], "127.0.0.1:8080"),
        (&["--room", ""], "a room needs a name"),
        (&["--room", ".."], "'..'"),
        (&["--history", "-1"], "'-1'"),
        (&["--history", "10001"], "10001"),
        (&["--pace-rate", "0"], "'0'"),
        (&["--pace-patience", "0"], "above 0"),
        (&["--pace-patience", "NaN"], "above 0"),
        (&["--max-rooms", "0"], "at least 1"),
        (&["--max-rooms", "many"], "a whole number"),
        (
            &["--publish-token=a", "--publish-token-file=b"],
            "cannot be used with",
        ),
        (&["--heartbeat", "-1"], "'-1'"),
        (&["--heartbeat=soon"], "'soon'"),
        (&["--events-keep-alive", "0"], "'0'"),
        (&["--events-keep-alive=often"], "'often'"),
        (&["--loud"], "'--loud'"),
    ] {
        let error = parsed(arguments).unwrap_err();
        assert!(error.contains(said), "{arguments:?}: {error}");
        assert!(!error.contains('\n'), "{arguments:?}: {error}");
    }
}
