//! Messages as lines of standard output.

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::resume::{Content, Received};
use crate::json::quote;

/// What is written at once.
const BUFFER_BYTES: usize = 64 << 10;

/// How messages are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// As they are, but each as one line.
    Lines,
    /// The same, for people: what a message says must not be a command to their terminal.
    Terminal,
    Json,
}

pub(super) struct Output<W> {
    writer: W,
    style: Style,
    /// Lines that have not been written yet.
    lines: Vec<u8>,
}

impl<W: Write> Output<W> {
    pub(super) fn new(writer: W, style: Style) -> Self {
        Self {
            writer,
            style,
            lines: Vec::new(),
        }
    }

    /// Prints a message, sooner or later. Returns whether there was something to be printed.
    pub(super) fn print(&mut self, received: &Received) -> io::Result<bool> {
        match (self.style, &received.content) {
            (Style::Json, _) => self.lines.extend_from_slice(json(received).as_bytes()),
            (_, Content::Omitted { .. }) => return Ok(false),
            (Style::Lines, Content::Text(text)) => push_one_line(&mut self.lines, text),
            (Style::Lines, Content::Binary(bytes)) => self.lines.extend_from_slice(bytes),
            (Style::Terminal, Content::Text(text)) => push_shown(&mut self.lines, text),
            (Style::Terminal, Content::Binary(bytes)) => {
                push_shown(&mut self.lines, &String::from_utf8_lossy(bytes));
            }
        }
        self.lines.push(b'\n');
        if self.lines.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        Ok(true)
    }

    /// Writes what was printed.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let written = self.writer.write_all(&self.lines);
        self.lines.clear();
        self.lines.shrink_to(2 * BUFFER_BYTES);
        written.and_then(|()| self.writer.flush())
    }
}

/// A text, with a space for each line break: a message must not pass for several.
fn push_one_line(line: &mut Vec<u8>, text: &str) {
    // Most have none, and that is quickly seen.
    if !text.contains('\n') && !text.contains('\r') {
        line.extend_from_slice(text.as_bytes());
        return;
    }
    let mut rest = text;
    while let Some(at) = rest.find(['\r', '\n']) {
        line.extend_from_slice(&rest.as_bytes()[..at]);
        line.push(b' ');
        let is_pair = rest[at..].starts_with("\r\n");
        rest = &rest[at + 1 + usize::from(is_pair)..];
    }
    line.extend_from_slice(rest.as_bytes());
}

/// The same, without any other control character than a tabulator.
fn push_shown(line: &mut Vec<u8>, text: &str) {
    let from = line.len();
    push_one_line(line, text);
    let is_control = |c: char| c.is_control() && c != '\t';
    let added = String::from_utf8_lossy(&line[from..]);
    if added.contains(is_control) {
        let shown = added.replace(is_control, "\u{fffd}");
        line.truncate(from);
        line.extend_from_slice(shown.as_bytes());
    }
}

fn json(received: &Received) -> String {
    let mut json = "{".to_owned();
    if let Some(room) = &received.room {
        json += "\"room\":";
        match room {
            Some(room) => quote(&mut json, room),
            None => json += "null",
        }
        json += ",";
    }
    if let Some(id) = &received.id {
        json += "\"id\":";
        quote(&mut json, id);
        json += ",";
    }
    if let Some(at_ms) = received.at_ms {
        json += &format!("\"at\":{at_ms},");
    }
    match &received.content {
        Content::Text(text) => {
            json += "\"text\":";
            quote(&mut json, text);
        }
        Content::Binary(bytes) => {
            json += "\"base64\":\"";
            STANDARD.encode_string(bytes, &mut json);
            json.push('"');
        }
        Content::Omitted { bytes } => json += &format!("\"omitted_bytes\":{bytes}"),
    }
    json.push('}');
    // They are allowed in JSON, but commands to some terminals.
    let is_control = |c: char| ('\u{7f}'..='\u{9f}').contains(&c);
    if json.contains(is_control) {
        let escaped = json.chars().map(|c| match is_control(c) {
            true => format!("\\u{:04x}", u32::from(c)),
            false => c.to_string(),
        });
        return escaped.collect();
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(style: Style, messages: &[Received]) -> Vec<u8> {
        let mut output = Output::new(Vec::new(), style);
        for message in messages {
            output.print(message).unwrap();
        }
        output.flush().unwrap();
        output.writer
    }

    fn text(text: &str) -> Received {
        Received::plain(Content::Text(text.to_owned()))
    }

    #[test]
    fn each_message_is_one_line() {
        let binary = Received::plain(Content::Binary(vec![0xff, 0, b'\n']));
        let omitted = Received::plain(Content::Omitted { bytes: 7 });
        let messages = [text("a\nb\r\nc\rd\n"), text(""), binary, omitted];
        assert_eq!(
            printed(Style::Lines, &messages),
            b"a b c d \n\n\xff\x00\n\n"
        );
    }

    #[test]
    fn a_terminal_is_given_no_commands() {
        let binary = Received::plain(Content::Binary(vec![0xff, 7]));
        let messages = [text("\u{1b}[31mred\u{9b}\n\t\u{fc}"), binary];
        assert_eq!(
            String::from_utf8(printed(Style::Terminal, &messages)).unwrap(),
            "\u{fffd}[31mred\u{fffd} \t\u{fc}\n\u{fffd}\u{fffd}\n"
        );
    }

    #[test]
    fn json_says_what_is_known() {
        let known = |room: Option<&str>, content| Received {
            room: Some(room.map(str::to_owned)),
            id: Some("a-1".into()),
            at_ms: Some(5),
            content,
        };
        let messages = [
            text("a\nb\u{9b}\u{7f}\u{fc}"),
            known(Some("ne\"ws"), Content::Text("x".into())),
            known(None, Content::Binary(vec![0xff])),
            known(None, Content::Omitted { bytes: 7 }),
        ];
        let expected = [
            r#"{"text":"a\nb\u009b\u007fü"}"#,
            r#"{"room":"ne\"ws","id":"a-1","at":5,"text":"x"}"#,
            r#"{"room":null,"id":"a-1","at":5,"base64":"/w=="}"#,
            r#"{"room":null,"id":"a-1","at":5,"omitted_bytes":7}"#,
            "",
        ];
        let printed = String::from_utf8(printed(Style::Json, &messages)).unwrap();
        assert_eq!(printed, expected.join("\n"));
    }

    #[test]
    fn much_is_written_before_it_is_asked_for() {
        let mut output = Output::new(Vec::new(), Style::Lines);
        output.print(&text(&"x".repeat(BUFFER_BYTES))).unwrap();
        assert_eq!(output.writer.len(), BUFFER_BYTES + 1);
    }
}
