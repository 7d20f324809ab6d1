//! Strings of JSON (RFC 8259 §7), for the few objects that the library sends without `serde_json`.

use std::fmt::Write;

/// Appends a text as a JSON string, with its quotation marks.
pub(crate) fn push(out: &mut String, text: &str) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => {
                out.push('\\');
                out.push(char);
            }
            // Includes all line ends, so the string is a single line.
            '\0'..' ' => {
                // Writing to a string can't fail.
                let _ = write!(out, "\\u{:04x}", u32::from(char));
            }
            char => out.push(char),
        }
    }
    out.push('"');
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::push;

    #[test]
    fn every_character_below_a_thousand_is_read_again() {
        let text: String = (0..1_000).filter_map(char::from_u32).collect();
        let mut json = String::new();
        push(&mut json, &text);
        assert!(json.chars().all(|char| char >= ' '), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }
}
