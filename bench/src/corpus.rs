//! Generates the messages of the commands `compression` and `tls` from a fixed seed, so that every run sends the same messages. The
//! sequence repeats only after more than 1 MB, so a window of 32 KiB never contains a message of the previous repetition.

use std::fmt::Write as _;

use crate::wire;

/// Number of ticks, and of chat messages.
const SHORT_COUNT: usize = 16_384;
/// Number of documents.
const LONG_COUNT: usize = 128;
const SEED: u64 = 0x6875_6d70_6872_6579;
/// The first timestamp, in milliseconds.
const START: u64 = 1_767_225_600_000;

/// A kind of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Corpus {
    /// Price changes of 50 symbols as JSON, 104 bytes.
    Ticks,
    /// Chat messages as JSON, 190 bytes, whose words have frequencies as in natural language.
    Chat,
    /// JSON lists of records, 16 KiB.
    Documents,
    /// A number and a filler, of this size in bytes; at least 16.
    Numbered(usize),
}

impl Corpus {
    /// Length of each message in bytes.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::Ticks => 104,
            Self::Chat => 190,
            Self::Documents => 16 << 10,
            Self::Numbered(size) => size,
        }
    }

    /// The opcode of the frames.
    pub(crate) fn opcode(self) -> u8 {
        match self {
            Self::Numbered(_) => wire::BINARY,
            _ => wire::TEXT,
        }
    }

    /// Generates all messages, in the order in which they are sent.
    pub(crate) fn messages(self) -> Vec<String> {
        let mut random = Random(SEED);
        match self {
            Self::Ticks => ticks(&mut random),
            Self::Chat => {
                let mut time = START;
                let mut next = || {
                    time += 20 + random.below(4_000);
                    chat(&mut random, time)
                };
                (0..SHORT_COUNT).map(|_| next()).collect()
            }
            Self::Documents => (0..LONG_COUNT).map(|_| document(&mut random)).collect(),
            Self::Numbered(size) => {
                let filler = ".".repeat(size - 16);
                let numbers = 0..SHORT_COUNT;
                numbers.map(|at| format!("{at:016x}{filler}")).collect()
            }
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Picks a word. The frequency of a word is inversely proportional to its rank (Zipf's law).
    fn word(&mut self, words: &[&'static str]) -> &'static str {
        // The exponential of a uniform number has the density 1/rank.
        let uniform = self.below(1 << 32) as f64 / (1u64 << 32) as f64;
        let rank = (words.len() as f64 + 1.0).powf(uniform) - 1.0;
        words[(rank as usize).min(words.len() - 1)]
    }
}

struct Symbol {
    name: String,
    /// In ten-thousandths, from 100.0000 to 999.0000.
    price: u64,
    trades: u64,
}

fn ticks(random: &mut Random) -> Vec<String> {
    let mut symbols: Vec<Symbol> = (0..50)
        .map(|_| Symbol {
            name: (0..4)
                .map(|_| char::from(b'A' + random.below(26) as u8))
                .collect(),
            price: 1_500_000 + random.below(7_000_000),
            trades: 10_000 + random.below(40_000),
        })
        .collect();
    let mut time = START;
    let mut next = || {
        let at = random.below(50) as usize;
        let symbol = &mut symbols[at];
        let price = symbol.price + random.below(2_001) - 1_000;
        symbol.price = price.clamp(1_000_000, 9_990_000);
        symbol.trades += 1 + random.below(9);
        time += 1 + random.below(40);
        let (bid, ask) = (symbol.price, symbol.price + 1 + random.below(99));
        format!(
            r#"{{"type":"tick","symbol":"{}","bid":{}.{:04},"ask":{}.{:04},"size":{},"time":{time},"n":{}}}"#,
            symbol.name,
            bid / 10_000,
            bid % 10_000,
            ask / 10_000,
            ask % 10_000,
            1_000 + random.below(9_000),
            symbol.trades
        )
    };
    (0..SHORT_COUNT).map(|_| next()).collect()
}

fn chat(random: &mut Random, time: u64) -> String {
    let user = random.word(NAMES);
    let id = random.next() as u32;
    let mut message = format!(
        r#"{{"type":"message","room":"lobby","user":"{user}","id":"{id:08x}","time":{time},"text":""#
    );
    put_text(&mut message, Corpus::Chat.size() - 2, random);
    message.push_str("\"}");
    message
}

fn document(random: &mut Random) -> String {
    let end = Corpus::Documents.size() - 3;
    let mut text = String::from("[");
    // 400 bytes are enough for the longest record and the last one.
    while text.len() < end - 400 {
        let number = random.below(1_000_000);
        let _ = write!(
            text,
            r#"{{"id":{number},"name":"{} {}","price":{}.{:02},"stock":{},"updated":{},"text":""#,
            random.word(WORDS),
            random.word(NAMES),
            random.below(500),
            random.below(100),
            random.below(5_000),
            START + random.below(1 << 34),
        );
        let until = text.len() + 40 + random.below(120) as usize;
        put_text(&mut text, until, random);
        text.push_str("\"},");
    }
    text.push_str(r#"{"text":""#);
    put_text(&mut text, end, random);
    text.push_str("\"}]");
    text
}

/// Appends words until the text is exactly `end` bytes long. The last word may be cut.
fn put_text(text: &mut String, end: usize, random: &mut Random) {
    let start = text.len();
    while text.len() < end {
        if text.len() > start {
            text.push_str(match random.below(12) {
                0 => ", ",
                1 => ". ",
                _ => " ",
            });
        }
        match random.below(25) {
            0 => {
                let _ = write!(text, "{}", random.below(1_000));
            }
            _ => text.push_str(random.word(WORDS)),
        }
    }
    // Every word is ASCII.
    text.truncate(end);
}

const NAMES: &[&str] = &[
    "anna", "ben42", "carla", "dmitri", "eva.m", "farid", "grace", "hiro", "ines", "jonas", "kofi",
    "lena", "marek", "nadia", "oskar", "priya", "quentin", "rosa", "sven", "tomoko", "ulla",
    "viktor", "wanjiru", "xavier", "yusuf", "zoe", "alice_b", "bruno", "chen", "deniz",
];

const WORDS: &[&str] = &[
    "the",
    "to",
    "I",
    "and",
    "a",
    "you",
    "it",
    "of",
    "is",
    "that",
    "in",
    "for",
    "on",
    "we",
    "this",
    "not",
    "be",
    "have",
    "with",
    "but",
    "so",
    "are",
    "can",
    "just",
    "at",
    "if",
    "was",
    "do",
    "my",
    "they",
    "or",
    "what",
    "as",
    "there",
    "all",
    "will",
    "like",
    "me",
    "get",
    "your",
    "one",
    "now",
    "no",
    "from",
    "about",
    "when",
    "up",
    "how",
    "out",
    "think",
    "yes",
    "an",
    "know",
    "then",
    "some",
    "time",
    "them",
    "would",
    "by",
    "good",
    "here",
    "who",
    "more",
    "go",
    "see",
    "need",
    "work",
    "because",
    "right",
    "could",
    "than",
    "really",
    "too",
    "should",
    "back",
    "want",
    "today",
    "well",
    "make",
    "people",
    "still",
    "new",
    "first",
    "other",
    "only",
    "way",
    "thanks",
    "already",
    "over",
    "why",
    "where",
    "after",
    "take",
    "something",
    "maybe",
    "again",
    "day",
    "look",
    "same",
    "much",
    "before",
    "sure",
    "thing",
    "our",
    "also",
    "these",
    "help",
    "last",
    "show",
    "tomorrow",
    "nothing",
    "though",
    "problem",
    "great",
    "anyone",
    "every",
    "week",
    "better",
    "server",
    "found",
    "start",
    "never",
    "someone",
    "always",
    "old",
    "does",
    "point",
    "question",
    "find",
    "long",
    "sorry",
    "morning",
    "page",
    "game",
    "idea",
    "team",
    "file",
    "wait",
    "using",
    "version",
    "probably",
    "message",
    "later",
    "around",
    "change",
    "music",
    "working",
    "tried",
    "second",
    "wrong",
    "happened",
    "minutes",
    "meeting",
    "little",
    "link",
    "actually",
    "network",
    "evening",
    "without",
    "laptop",
    "code",
    "together",
    "photo",
    "coffee",
    "between",
    "update",
    "release",
    "exactly",
    "weekend",
    "however",
    "train",
    "running",
    "number",
    "friend",
    "believe",
    "answer",
    "enough",
    "weather",
    "password",
    "company",
    "started",
    "remember",
    "window",
    "database",
    "interesting",
    "completely",
    "tonight",
    "agree",
    "different",
    "reading",
    "language",
    "garden",
    "market",
    "station",
    "yesterday",
    "computer",
    "football",
    "kitchen",
    "customer",
    "holiday",
    "battery",
    "screen",
    "document",
    "project",
    "mountain",
    "holding",
    "bicycle",
    "keyboard",
    "afternoon",
    "restaurant",
    "umbrella",
    "breakfast",
    "doctor",
    "library",
    "birthday",
    "hospital",
    "orange",
    "bridge",
    "river",
    "camera",
    "ticket",
    "budget",
    "winter",
    "summer",
    "deadline",
    "invoice",
    "airport",
    "concert",
    "painting",
    "thunder",
    "chocolate",
    "elephant",
    "furniture",
    "gasoline",
    "horizon",
    "insurance",
    "jacket",
    "lantern",
    "magazine",
    "notebook",
    "ocean",
    "pepper",
    "quarter",
    "rabbit",
    "saddle",
    "theatre",
    "universe",
    "valley",
    "whistle",
    "yellow",
    "zebra",
    "anchor",
    "basket",
    "candle",
    "diamond",
    "engine",
    "feather",
    "glacier",
    "hammer",
    "island",
    "jungle",
    "kettle",
    "ladder",
    "mirror",
    "needle",
    "oxygen",
    "pillow",
    "quiver",
    "ribbon",
    "silver",
    "temple",
    "unicorn",
    "velvet",
    "walnut",
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn messages_have_their_size_and_are_distinct_json() {
        for (corpus, count) in [
            (Corpus::Ticks, 10_000),
            (Corpus::Chat, 10_000),
            (Corpus::Documents, 100),
        ] {
            let messages = corpus.messages();
            let distinct: HashSet<&String> = messages.iter().collect();
            assert!(distinct.len() >= count, "{corpus:?}");
            for message in &messages {
                assert_eq!(message.len(), corpus.size(), "{message}");
                serde_json::from_str::<serde_json::Value>(message).unwrap();
            }
        }
    }

    #[test]
    fn messages_are_the_same_in_every_run() {
        for corpus in [Corpus::Ticks, Corpus::Chat, Corpus::Documents] {
            assert_eq!(corpus.messages()[..100], corpus.messages()[..100]);
        }
    }
}
