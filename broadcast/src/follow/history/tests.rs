use super::*;

#[derive(Clone, Copy)]
enum Event {
    Created(&'static str),
    Renamed(&'static str, &'static str),
    MovedAway(&'static str),
    MovedHere(&'static str),
    Deleted(&'static str),
}
use Event::{Created, Deleted, MovedAway, MovedHere, Renamed};

fn apply(history: &mut NameHistory, events: &[Event]) {
    for (cookie, event) in (0..).zip(events) {
        let (from, to) = match *event {
            Created(name) => {
                history.apply(EntryChange::Created(name.as_ref()));
                continue;
            }
            Deleted(name) => {
                history.apply(EntryChange::Deleted(name.as_ref()));
                continue;
            }
            Renamed(from, to) => (Some(from), Some(to)),
            MovedAway(from) => (Some(from), None),
            MovedHere(to) => (None, Some(to)),
        };
        if let Some(from) = from {
            history.apply(EntryChange::MovedFrom(from.as_ref(), cookie));
        }
        if let Some(to) = to {
            history.apply(EntryChange::MovedTo(to.as_ref(), cookie));
        }
    }
}

/// A history in which the file with the name `log` has been opened.
fn opened() -> NameHistory {
    let mut history = NameHistory::new("log".into());
    history.occupant_is_opened();
    history
}

#[track_caller]
fn assert_passed(history: &NameHistory, expected: &[Option<&str>]) {
    let passed: Vec<_> = history.passed().map(|(_, name)| name).collect();
    let expected: Vec<_> = expected.iter().map(|name| name.map(OsStr::new)).collect();
    assert_eq!(passed, expected);
}

#[test]
fn opened_file_that_is_renamed_has_not_passed() {
    let mut history = opened();
    apply(&mut history, &[Renamed("log", "log.1"), Created("log")]);
    assert_passed(&history, &[]);
    assert_eq!(history.take_missed(), 0);
    assert!(history.has_changed(0));
}

#[test]
fn unopened_files_are_found_under_their_latest_names() {
    let mut history = opened();
    apply(
        &mut history,
        &[
            Renamed("log", "log.1"),
            Created("log"),
            Renamed("log.1", "log.2"),
            Renamed("log", "log.1"),
            Created("log"),
            Renamed("log.2", "log.3"),
            Renamed("log.1", "log.2"),
            Renamed("log", "log.1"),
        ],
    );
    assert_passed(&history, &[Some("log.2"), Some("log.1")]);
    assert!(history.take_passed(history.now()).is_some());
    assert!(history.take_passed(history.now()).is_some());
    assert_eq!(history.take_passed(history.now()), None);
}

#[test]
fn file_that_was_not_known_before_may_be_unopened() {
    let mut history = NameHistory::new("log".into());
    apply(&mut history, &[Renamed("log", "log.1"), Created("log")]);
    assert_passed(&history, &[Some("log.1")]);
}

#[test]
fn deleted_and_overwritten_files_are_missed() {
    let mut history = opened();
    apply(
        &mut history,
        &[
            Deleted("log"),
            Created("log"),
            Renamed("log", "old"),
            Created("log"),
            Renamed("log", "old"),
            Created("log"),
            MovedHere("log"),
            Deleted("log"),
            Deleted("old"),
        ],
    );
    assert_passed(&history, &[]);
    assert_eq!(history.take_missed(), 4);
    assert_eq!(history.take_missed(), 0);
}

#[test]
fn file_moved_to_another_directory_has_no_name() {
    let mut history = opened();
    apply(&mut history, &[Created("log"), MovedAway("log")]);
    assert!(history.has_passed());
    assert_passed(&history, &[None]);
    assert_eq!(
        history.take_missed(),
        0,
        "it counts as missed when it can't be opened"
    );
}

#[test]
fn file_that_returns_to_the_name_has_not_passed() {
    let mut history = opened();
    let events = [
        Created("log"),
        Renamed("log", "away"),
        Renamed("away", "log"),
    ];
    apply(&mut history, &events);
    assert_passed(&history, &[]);
    apply(&mut history, &[Renamed("log", "log.1")]);
    assert_passed(&history, &[Some("log.1")]);
}

#[test]
fn other_files_in_the_directory_are_no_change() {
    let mut history = opened();
    let events = [
        Created("other"),
        Renamed("other", "another"),
        MovedAway("another"),
        Deleted("other"),
        MovedHere("other"),
    ];
    apply(&mut history, &events);
    assert_eq!((history.now(), history.has_passed()), (0, false));
}

#[test]
fn passed_file_that_was_renamed_since_is_not_taken() {
    let mut history = opened();
    let events = [
        Created("log"),
        Renamed("log", "1"),
        Created("log"),
        Renamed("log", "2"),
    ];
    apply(&mut history, &events);
    let since = history.now();
    let ids: Vec<_> = history.passed().map(|(id, _)| id).collect();
    assert!(!history.has_changed(since));
    apply(&mut history, &[Renamed("2", "3")]);
    assert!(!history.has_changed(since));
    assert_eq!(history.take_passed(since), Some(ids[0]));
    assert_eq!(history.take_passed(since), None);
    assert_eq!(history.take_passed(history.now()), Some(ids[1]));
    apply(&mut history, &[Created("log")]);
    assert!(history.has_changed(since));
}
