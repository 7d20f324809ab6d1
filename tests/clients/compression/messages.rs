//! Generates the messages of a run from a seed.

use humphrey_ws::Message;

/// Length of the longest message, in bytes.
pub(crate) const LONGEST: usize = 300 * 1024;

/// Length of the header `<number> <checksum> `. Messages shorter than this have no header.
pub(crate) const HEADER: usize = 16;

/// SplitMix64, a small generator with a fixed sequence for each seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number from 0 to `end`, exclusively.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// Continues the CRC-32 of zlib with these bytes.
pub(crate) fn crc32(bytes: &[u8], crc: u32) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut entry = index as u32;
            let mut bit = 0;
            while bit < 8 {
                entry = (entry >> 1) ^ ((entry & 1) * 0xedb8_8320);
                bit += 1;
            }
            table[index] = entry;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(!crc, |crc, byte| {
        TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8)
    })
}

/// Generates message `number`, text or binary: `<number> <checksum of the body> <body>`, or a few bytes without header.
pub(crate) fn message(number: usize, random: &mut Random) -> Message {
    let message = match number {
        50 => Message::new_text("7"),
        100 => with_header(number, &repeated(LONGEST - HEADER, random), true),
        _ if random.chance(2) => tiny(random),
        _ => long(number, random),
    };
    if random.chance(5) {
        message.uncompressed()
    } else {
        message
    }
}

fn tiny(random: &mut Random) -> Message {
    if random.chance(50) {
        Message::new_text(random.pick(&["1", "ü", "猫", "🦀", "0,5 €", "3.1415", "{}"]))
    } else {
        let len = 1 + random.below(HEADER - 1);
        Message::new_binary(noise(len, random))
    }
}

fn long(number: usize, random: &mut Random) -> Message {
    let len = match random.below(100) {
        0..60 => 1 + random.below(300),
        60..85 => 300 + random.below(4 << 10),
        85..97 => (4 << 10) + random.below(28 << 10),
        _ => (32 << 10) + random.below(LONGEST - (32 << 10) - HEADER),
    };
    match random.below(100) {
        0..45 => with_header(number, &fill(len, random, tick), true),
        45..75 => with_header(number, &fill(len, random, chat), true),
        75..80 => with_header(number, &repeated(len, random), true),
        80..85 => with_header(number, &text_noise(len, random), true),
        85..95 => with_header(number, &fill(len, random, tick), false),
        _ => with_header(number, &noise(len.min(64 << 10), random), false),
    }
}

fn with_header(number: usize, body: &[u8], text: bool) -> Message {
    let mut payload = format!("{number:06} {:08x} ", crc32(body, 0)).into_bytes();
    payload.extend_from_slice(body);
    if text {
        Message::new_text(String::from_utf8(payload).expect("a text body"))
    } else {
        Message::new_binary(payload)
    }
}

/// Joins records and cuts the text after `len` bytes, or at the next character boundary.
fn fill(len: usize, random: &mut Random, record: impl Fn(&mut Random) -> String) -> Vec<u8> {
    let mut text = String::with_capacity(len + 256);
    while text.len() < len {
        text += &record(random);
    }
    let mut end = len;
    while !text.is_char_boundary(end) {
        end += 1;
    }
    text.truncate(end);
    text.into_bytes()
}

fn tick(random: &mut Random) -> String {
    let symbol = random.pick(&["ACME", "GLOBEX", "INITECH", "UMBRELLA"]);
    let (price, volume, time) = (random.below(90_000), random.below(900), random.next() >> 24);
    format!(
        "{{\"type\":\"tick\",\"symbol\":\"{symbol}\",\"price\":{}.{:02},\"volume\":{volume},\"time\":{time}}}\n",
        price / 100,
        price % 100,
    )
}

fn chat(random: &mut Random) -> String {
    let name = random.pick(&["Zoë", "Jürgen", "Łucja", "さくら", "Ольга", "نور"]);
    let words: Vec<_> = (0..4 + random.below(12))
        .map(|_| {
            random.pick(&[
                "Größe",
                "straße",
                "naïve",
                "今日は",
                "привет",
                "مرحبا",
                "🎉",
                "👩‍👩‍👧",
                "the",
                "and",
                "see",
                "€",
                "→",
                "𝔘𝔫𝔦",
                "ok",
            ])
        })
        .collect();
    format!("{{\"from\":\"{name}\",\"text\":\"{}\"}}\n", words.join(" "))
}

fn repeated(len: usize, random: &mut Random) -> Vec<u8> {
    let pattern = noise(1 + random.below(200), random);
    let letters = pattern.iter().map(|byte| b'a' + byte % 26);
    letters.cycle().take(len).collect()
}

/// Random characters of one to four bytes in UTF-8.
fn text_noise(len: usize, random: &mut Random) -> Vec<u8> {
    let character = |random: &mut Random| {
        let end = [0x80, 0x800, 0x1_0000, 0x11_0000][random.below(4)];
        char::from_u32(random.below(end) as u32).map_or(String::new(), String::from)
    };
    fill(len, random, character)
}

fn noise(len: usize, random: &mut Random) -> Vec<u8> {
    let words = len.div_ceil(8);
    let mut bytes: Vec<_> = (0..words)
        .flat_map(|_| random.next().to_le_bytes())
        .collect();
    bytes.truncate(len);
    bytes
}
