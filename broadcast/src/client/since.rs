//! The position from which `listen --since` prints messages.

use std::str::FromStr;

use humphrey_ws::HistoryId;

/// A value of `--since`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// All kept messages.
    All,
    /// New messages only.
    Now,
    /// The messages after this id in the history that it is from, and all kept ones of the other history.
    After(HistoryId),
    /// The messages to rooms after the first id, and those to everyone after the second one. `None`: all kept ones.
    AfterEach {
        room: Option<HistoryId>,
        everyone: Option<HistoryId>,
    },
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let id = |text: &str| {
            text.parse::<HistoryId>().map_err(|error| {
                format!(
                    "use all, now, or an id that listen --json prints, such as 5f3a9c0b12d4e678-42 ({error})"
                )
            })
        };
        let optional_id = |text: &str| match text {
            "" => Ok(None),
            text => id(text).map(Some),
        };
        match text {
            "all" => Ok(Self::All),
            "now" => Ok(Self::Now),
            text => match text.split_once(',') {
                None => id(text).map(Self::After),
                Some((room, everyone)) => Ok(Self::AfterEach {
                    room: optional_id(room)?,
                    everyone: optional_id(everyone)?,
                }),
            },
        }
    }
}

impl Since {
    /// The ids to begin after, of everyone and of the room. The epoch of a single id says which history it is from, and only
    /// the server knows the epochs: the other history begins with all kept messages.
    pub(super) const fn ids(self) -> [Option<HistoryId>; 2] {
        match self {
            Self::All | Self::Now => [None; 2],
            Self::After(id) => [Some(id); 2],
            Self::AfterEach { room, everyone } => [everyone, room],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_a_word_an_id_or_two_ids() {
        let id = |text: &str| text.parse::<HistoryId>().unwrap();
        let since = |text: &str| text.parse::<Since>();
        assert_eq!(since("all"), Ok(Since::All));
        assert_eq!(since("now"), Ok(Since::Now));
        assert_eq!(since("a-1"), Ok(Since::After(id("a-1"))));
        let each = |room: Option<&str>, everyone: Option<&str>| {
            Ok(Since::AfterEach {
                room: room.map(id),
                everyone: everyone.map(id),
            })
        };
        assert_eq!(since("a-1,b-2"), each(Some("a-1"), Some("b-2")));
        assert_eq!(since("a-1,"), each(Some("a-1"), None));
        assert_eq!(since(",b-2"), each(None, Some("b-2")));
        for text in ["", "later", "a-1,b-2,c-3", "A-1", "a", "now,a-1", " a-1"] {
            assert!(since(text).is_err(), "{text}");
        }
    }

    #[test]
    fn two_ids_are_of_the_room_and_of_everyone() {
        let (a, b) = ("a-1".parse().ok(), "b-2".parse().ok());
        assert_eq!("a-1,b-2".parse::<Since>().unwrap().ids(), [b, a]);
        assert_eq!("a-1".parse::<Since>().unwrap().ids(), [a, a]);
    }
}
