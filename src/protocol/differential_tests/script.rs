//! Generates the bytes of a client. Most frames are valid, so that a violation is not always in the first one.

use crate::protocol::fuzz::dice::Dice;

/// How a frame deviates from the valid encoding.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Deviation {
    Well,
    Unmasked,
    /// The length takes two bytes, or eight.
    Long,
    Longest,
}

struct ScriptWriter<'a> {
    dice: &'a mut Dice,
    bytes: Vec<u8>,
    max: usize,
}

/// Returns a client's bytes, and the message limit of the server in bytes.
pub(super) fn script(dice: &mut Dice) -> (Vec<u8>, usize) {
    let max = match dice.below(60) {
        0 => 66_000,
        n => [0, 1, 7, 20, 125, 126, 300, 1_000][n % 8],
    };
    let mut writer = ScriptWriter {
        dice,
        bytes: Vec::new(),
        max,
    };
    for _ in 0..=writer.dice.below(8) {
        match writer.dice.below(40) {
            0..27 => writer.message(),
            27..31 => writer.control(),
            31 => writer.close(),
            32 => writer.begun(),
            _ => writer.breach(),
        }
    }
    let mut bytes = writer.bytes;
    if dice.one_in(4) {
        damage(&mut bytes, dice);
    }
    (bytes, max)
}

/// Damages the bytes as a broken network or an attacker might.
fn damage(bytes: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..=dice.below(3) {
        let at = dice.below(bytes.len());
        match dice.below(5) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, dice.below(256) as u8),
            2 if at < bytes.len() => drop(bytes.remove(at)),
            3 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            _ if at < bytes.len() => bytes[at] = dice.below(256) as u8,
            _ => {}
        }
    }
    if bytes.is_empty() {
        bytes.push(dice.below(256) as u8);
    }
}

const CHARACTERS: [&str; 12] = [
    "a",
    "~",
    "\u{0}",
    "\u{80}",
    "é",
    "\u{7FF}",
    "\u{800}",
    "日",
    "\u{FFFF}",
    "\u{10000}",
    "🦀",
    "\u{10FFFF}",
];

/// Byte sequences that are invalid UTF-8, or incomplete.
const INVALID: [&[u8]; 12] = [
    b"\x80",
    b"\xC0\xAF",
    b"\xC3",
    b"\xC3(",
    b"\xE0\x9F\xBF",
    b"\xE6\x97",
    b"\xED\xA0\x80",
    b"\xF0\x8F\xBF\xBF",
    b"\xF0\x9F\xA6",
    b"\xF0\x9F\xA6a",
    b"\xF4\x90\x80\x80",
    b"\xFF",
];

const CODES: [u16; 26] = [
    0, 1, 999, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013,
    1014, 1015, 1016, 2999, 3000, 3999, 4000, 4999, 5000,
];

impl ScriptWriter<'_> {
    fn len(&mut self) -> usize {
        match self.dice.below(24) {
            0 => self.max + self.dice.below(3),
            1 => self.max,
            2 => 124 + self.dice.below(4),
            3 if self.max > 60_000 => 0xFFFE + self.dice.below(4),
            _ => self.dice.below(self.max.min(60) + 1),
        }
    }

    fn text(&mut self) -> Vec<u8> {
        let (len, mut text) = (self.len(), String::new());
        // Long texts are mostly ASCII, which is realistic and fast to generate.
        if len > 200 {
            text = "x".repeat(len - self.dice.below(100));
        }
        while text.len() < len {
            let next = CHARACTERS[self.dice.below(CHARACTERS.len())];
            if text.len() + next.len() > len && self.dice.one_in(2) {
                text.push('.');
            } else {
                text.push_str(next);
            }
        }
        // The last character may exceed the limit, but usually does not.
        if text.len() > self.max && len <= self.max {
            while text.len() > self.max {
                text.pop();
            }
        }
        text.into_bytes()
    }

    fn binary(&mut self) -> Vec<u8> {
        let len = self.len();
        let first = self.dice.below(256);
        (0..len).map(|n| (first + n * 7) as u8).collect()
    }

    fn frame(&mut self, first: u8, payload: &[u8]) {
        self.write(first, payload, Deviation::Well);
    }

    fn write(&mut self, first: u8, payload: &[u8], deviation: Deviation) {
        let mask = if deviation == Deviation::Unmasked {
            0
        } else {
            0x80
        };
        self.bytes.push(first);
        let len = payload.len();
        if len > 0xFFFF || deviation == Deviation::Longest {
            self.bytes.push(mask | 127);
            self.bytes.extend((len as u64).to_be_bytes());
        } else if len > 125 || deviation == Deviation::Long {
            self.bytes.push(mask | 126);
            self.bytes.extend((len as u16).to_be_bytes());
        } else {
            self.bytes.push(mask | len as u8);
        }
        let mut key = [0; 4];
        if mask != 0 {
            key = [(); 4].map(|()| self.dice.below(256) as u8);
            self.bytes.extend(key);
        }
        let masked = payload.iter().zip(key.iter().cycle());
        self.bytes.extend(masked.map(|(byte, key)| byte ^ key));
    }

    fn message(&mut self) {
        let (opcode, payload) = if self.dice.one_in(2) {
            (1, self.text())
        } else {
            (2, self.binary())
        };
        if self.dice.one_in(2) {
            self.frame(0x80 | opcode, &payload);
        } else {
            self.fragments(opcode, &payload);
        }
    }

    /// Writes a message in fragments split anywhere, with control frames between them.
    fn fragments(&mut self, opcode: u8, payload: &[u8]) {
        let mut first = opcode;
        let mut rest = payload;
        for _ in 0..self.dice.below(5) {
            let (part, after) = rest.split_at(self.dice.below(rest.len() + 1));
            self.frame(first, part);
            (first, rest) = (0, after);
            if self.dice.one_in(4) {
                self.control();
            }
        }
        self.frame(0x80 | first, rest);
    }

    fn control(&mut self) {
        let len = match self.dice.below(6) {
            0 => 125,
            _ => self.dice.below(20),
        };
        let payload = vec![self.dice.below(256) as u8; len];
        let first = 0x89 + self.dice.below(2) as u8;
        self.frame(first, &payload);
    }

    fn close(&mut self) {
        let mut payload = match self.dice.below(8) {
            0 => Vec::new(),
            1 => vec![3],
            2 => (self.dice.below(65_536) as u16).to_be_bytes().to_vec(),
            _ => CODES[self.dice.below(CODES.len())].to_be_bytes().to_vec(),
        };
        if payload.len() == 2 && self.dice.one_in(2) {
            let reason = "tschüß ".repeat(self.dice.below(15));
            payload.extend_from_slice(reason.as_bytes());
        }
        if payload.len() >= 2 && self.dice.one_in(5) {
            payload.extend_from_slice(INVALID[self.dice.below(INVALID.len())]);
        }
        payload.truncate(125);
        self.frame(0x88, &payload);
    }

    /// Writes a message without its last fragment.
    fn begun(&mut self) {
        let text = self.text();
        let opcode = 1 + self.dice.below(2) as u8;
        self.frame(opcode, &text);
    }

    /// Writes a frame that violates a rule, or nearly does.
    fn breach(&mut self) {
        let short = self.dice.below(self.max.min(20) + 1);
        let payload = vec![b'b'; short];
        match self.dice.below(9) {
            0 => {
                let bits = (1 + self.dice.below(7) as u8) << 4;
                self.frame(0x81 | bits, &payload);
            }
            1 => {
                let opcode = [3, 4, 5, 6, 7, 11, 12, 13, 14, 15][self.dice.below(10)];
                self.frame(0x80 | opcode, &payload);
            }
            2 => {
                let opcode = self.dice.below(11) as u8;
                self.write(0x80 | opcode, &payload, Deviation::Unmasked);
            }
            3 => {
                let deviation = [Deviation::Long, Deviation::Longest][self.dice.below(2)];
                let first = [0x01, 0x81, 0x82, 0x89][self.dice.below(4)];
                // This includes the maximum of the shorter form.
                let len = match self.dice.below(3) {
                    0 if self.max > 60_000 => 0xFFFF,
                    0 | 1 => self.max.min(125),
                    _ => short,
                };
                self.write(first, &vec![b'l'; len], deviation);
            }
            4 => {
                let first = 0x08 + self.dice.below(3) as u8;
                self.frame(first, &payload);
            }
            5 => {
                let first = 0x88 + self.dice.below(3) as u8;
                let len = 126 + self.dice.below(300);
                self.frame(first, &vec![b'c'; len]);
            }
            6 => self.frame(0x80, &payload),
            7 => self.not_utf8(),
            _ => {
                let len = match self.dice.below(3) {
                    0 => 1 << 63 | self.dice.below(usize::MAX) as u64,
                    1 => 1 << 62,
                    _ => self.max as u64 + 1,
                };
                let first = 0x80 + self.dice.below(3) as u8;
                self.bytes.extend([first, 0xFF]);
                self.bytes.extend(len.to_be_bytes());
                self.bytes.extend([1, 2, 3, 4]);
            }
        }
    }

    fn not_utf8(&mut self) {
        let mut payload = self.text();
        payload.truncate(self.max);
        payload.extend_from_slice(INVALID[self.dice.below(INVALID.len())]);
        if self.dice.one_in(3) {
            payload.extend_from_slice(b"and on");
        }
        if self.dice.one_in(2) {
            self.frame(0x81, &payload);
        } else {
            self.fragments(1, &payload);
        }
    }
}
