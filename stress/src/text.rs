//! Numbered texts that compress well, and follow from seed, origin and number, so that both sides can generate them.

use crate::random::Random;

const WORDS: [&str; 16] = [
    "rain", "wind", "cloud", "frost", "sunshine", "from", "north", "south", "later", "towards",
    "evening", "strong", "light", "degrees", "coast", "hills",
];

/// Generates a message of an origin, such as a room: the origin, the number, and words up to a length that depends on both.
pub(crate) fn numbered(seed: u64, origin: &str, number: u64, bytes_max: usize) -> String {
    let mut random = Random::new(seed).fork(origin, number);
    let len = random.below(bytes_max as u64) as usize;
    let mut text = format!("{origin} {number}");
    while text.len() < len {
        text.push(' ');
        text.push_str(random.pick(&WORDS));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_depends_on_seed_origin_and_number() {
        let text = numbered(1, "news", 7, 300);
        assert_eq!(text, numbered(1, "news", 7, 300));
        assert!(text.starts_with("news 7"));
        let words = |text: String| text.split(' ').skip(2).collect::<String>();
        let long = |seed, origin, number| words(numbered(seed, origin, number, 1 << 20));
        assert_ne!(long(1, "news", 7), long(2, "news", 7));
        assert_ne!(long(1, "news", 7), long(1, "news", 8));
        assert_ne!(long(1, "news", 7), long(1, "sports", 7));
    }
}
