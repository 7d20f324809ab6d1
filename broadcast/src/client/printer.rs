//! Prints messages as lines of standard output.

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::resume::{Content, ReceivedMessage};
use crate::json::push_quoted;

/// The buffer is written once it has this size.
const BUFFER_BYTES: usize = 64 << 10;

/// The format of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutputFormat {
    /// Plain messages, each as one line.
    Lines,
    /// One line each, with control characters replaced: a message must not send commands to the terminal.
    Terminal,
    Json,
}

pub(super) struct Printer<W> {
    writer: W,
    style: OutputFormat,
    /// Lines that are not written yet.
    lines: Vec<u8>,
}

impl<W: Write> Printer<W> {
    pub(super) fn new(writer: W, style: OutputFormat) -> Self {
        Self {
            writer,
            style,
            lines: Vec::new(),
        }
    }

    /// Prints a message to the buffer. Returns false if the message has nothing to print.
    pub(super) fn print(&mut self, received: &ReceivedMessage) -> io::Result<bool> {
        match (self.style, &received.content) {
            (OutputFormat::Json, _) => self.lines.extend_from_slice(json(received).as_bytes()),
            (_, Content::Omitted { .. }) => return Ok(false),
            (OutputFormat::Lines, Content::Text(text)) => push_one_line(&mut self.lines, text),
            (OutputFormat::Lines, Content::Binary(bytes)) => self.lines.extend_from_slice(bytes),
            (OutputFormat::Terminal, Content::Text(text)) => {
                push_for_terminal(&mut self.lines, text)
            }
            (OutputFormat::Terminal, Content::Binary(bytes)) => {
                push_for_terminal(&mut self.lines, &String::from_utf8_lossy(bytes));
            }
        }
        self.lines.push(b'\n');
        if self.lines.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        Ok(true)
    }

    /// Writes the buffer.
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

/// Appends a text, with a space for each line break, so that a message is one line.
fn push_one_line(line: &mut Vec<u8>, text: &str) {
    // The fast path: most messages are a single line.
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

/// Appends a text as one line, with control characters other than tabs replaced.
fn push_for_terminal(line: &mut Vec<u8>, text: &str) {
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

fn json(received: &ReceivedMessage) -> String {
    let mut json = "{".to_owned();
    if let Some(room) = &received.room {
        json += "\"room\":";
        match room {
            Some(room) => push_quoted(&mut json, room),
            None => json += "null",
        }
        json += ",";
    }
    if let Some(id) = &received.id {
        json += "\"id\":";
        push_quoted(&mut json, id);
        json += ",";
    }
    if let Some(at_ms) = received.at_ms {
        json += &format!("\"at\":{at_ms},");
    }
    match &received.content {
        Content::Text(text) => {
            json += "\"text\":";
            push_quoted(&mut json, text);
        }
        Content::Binary(bytes) => {
            json += "\"base64\":\"";
            STANDARD.encode_string(bytes, &mut json);
            json.push('"');
        }
        Content::Omitted { bytes } => json += &format!("\"omitted_bytes\":{bytes}"),
    }
    json.push('}');
    // JSON allows these characters, but some terminals interpret them.
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

    fn printed(style: OutputFormat, messages: &[ReceivedMessage]) -> Vec<u8> {
        let mut output = Printer::new(Vec::new(), style);
        for message in messages {
            output.print(message).unwrap();
        }
        output.flush().unwrap();
        output.writer
    }

    fn text(text: &str) -> ReceivedMessage {
        ReceivedMessage::plain(Content::Text(text.to_owned()))
    }

    #[test]
    fn message_with_line_breaks_is_one_line() {
        let binary = ReceivedMessage::plain(Content::Binary(vec![0xff, 0, b'\n']));
        let omitted = ReceivedMessage::plain(Content::Omitted { bytes: 7 });
        let messages = [text("a\nb\r\nc\rd\n"), text(""), binary, omitted];
        assert_eq!(
            printed(OutputFormat::Lines, &messages),
            b"a b c d \n\n\xff\x00\n\n"
        );
    }

    #[test]
    fn terminal_output_has_no_control_characters() {
        let binary = ReceivedMessage::plain(Content::Binary(vec![0xff, 7]));
        let messages = [text("\u{1b}[31mred\u{9b}\n\t\u{fc}"), binary];
        assert_eq!(
            String::from_utf8(printed(OutputFormat::Terminal, &messages)).unwrap(),
            "\u{fffd}[31mred\u{fffd} \t\u{fc}\n\u{fffd}\u{fffd}\n"
        );
    }

    #[test]
    fn json_names_the_known_fields_only() {
        let known = |room: Option<&str>, content| ReceivedMessage {
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
        let printed = String::from_utf8(printed(OutputFormat::Json, &messages)).unwrap();
        assert_eq!(printed, expected.join("\n"));
    }

    #[test]
    fn full_buffer_is_written_before_a_flush() {
        let mut output = Printer::new(Vec::new(), OutputFormat::Lines);
        output.print(&text(&"x".repeat(BUFFER_BYTES))).unwrap();
        assert_eq!(output.writer.len(), BUFFER_BYTES + 1);
    }
}
