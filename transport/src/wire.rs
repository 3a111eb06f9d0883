//! `text/event-stream` as the strictest readers want it.
//!
//! All of this is optional in the specification of server-sent events, and for
//! each of these a client in use hangs, fails or logs an error without it:
//!
//! - each message names its event: `event: message`;
//! - a comment is one line, with no empty line after it: an empty line ends an
//!   event, and some readers then report one without data, or an error;
//! - `retry` is written only where the stream is closed on purpose: some
//!   readers end a stream at a field that they do not know;
//! - a message is one line of data, and within it nothing that some readers
//!   take for the end of a line: U+0085, U+2028 and U+2029 are escaped, which in
//!   JSON says the same.

use std::{
    fmt::{Display, Write as _},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};

/// A comment, so that nobody takes a silent connection for a dead one. An event
/// would move the client's cursor.
pub(crate) const KEEP_ALIVE: &[u8] = b":\n";

/// A message, with an id to resume from.
pub(crate) fn write_event(out: &mut BytesMut, id: Option<&dyn Display>, data: &[u8]) {
    out.reserve(data.len() + 32);
    out.put_slice(b"event: message\n");
    write_id(out, id);
    out.put_slice(b"data: ");
    write_data(out, data);
    out.put_slice(b"\n\n");
}

/// An event without data: it moves the client's cursor, and no more. Clients
/// before 2025-11-25 take it for a malformed message.
pub(crate) fn write_empty(out: &mut BytesMut, id: Option<&dyn Display>, retry: Option<Duration>) {
    write_id(out, id);
    write_retry(out, retry);
    out.put_slice(b"data: \n\n");
}

/// When to come back. It belongs to the event that follows, if any does.
pub(crate) fn write_retry(out: &mut BytesMut, retry: Option<Duration>) {
    if let Some(retry) = retry {
        // Writing to a `BytesMut` does not fail.
        let _ = writeln!(out, "retry: {}", retry.as_millis());
    }
}

/// For people and logs; `text` is one line.
pub(crate) fn write_comment(out: &mut BytesMut, text: &str) {
    let _ = writeln!(out, ": {text}");
}

fn write_id(out: &mut BytesMut, id: Option<&dyn Display>) {
    if let Some(id) = id {
        let _ = writeln!(out, "id: {id}");
    }
}

/// JSON has line breaks between its tokens alone, where a space says the same.
fn write_data(out: &mut BytesMut, mut data: &[u8]) {
    let suspicious = |byte: &u8| matches!(byte, b'\n' | b'\r' | 0xc2 | 0xe2);
    while let Some(at) = data.iter().position(suspicious) {
        out.put_slice(&data[..at]);
        let (instead, taken): (&[u8], usize) = match data[at..] {
            [b'\r', b'\n', ..] => (b" ", 2),
            [b'\n' | b'\r', ..] => (b" ", 1),
            [0xc2, 0x85, ..] => (b"\\u0085", 2),
            [0xe2, 0x80, 0xa8, ..] => (b"\\u2028", 3),
            [0xe2, 0x80, 0xa9, ..] => (b"\\u2029", 3),
            _ => (&data[at..=at], 1),
        };
        out.put_slice(instead);
        data = &data[at + taken..];
    }
    out.put_slice(data);
}

/// One frame of a body that rmcp has written, in the same form; `edit` may
/// change its message.
pub(crate) fn rewrite(frame: Bytes, edit: impl FnOnce(&[u8]) -> Option<Bytes>) -> Bytes {
    if frame.as_ref() == b":\n\n" {
        return Bytes::from_static(KEEP_ALIVE);
    }
    // rmcp writes each event at once, data first, and JSON in one line.
    let data = (frame.strip_prefix(b"data: ")).and_then(|rest| rest.strip_suffix(b"\n\n"));
    match data {
        Some(data) if !data.is_empty() && !data.contains(&b'\n') => {
            let edited = edit(data);
            let mut out = BytesMut::new();
            write_event(&mut out, None, edited.as_deref().unwrap_or(data));
            out.freeze()
        }
        _ => frame,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that forgives nothing: each block has one event of the name
    /// `message` with one line of data, or is empty and has an id.
    fn strict(text: &str) -> Vec<(Option<&str>, &str)> {
        let without_comments: Vec<&str> = text
            .split('\n')
            .filter(|line| !line.starts_with(':'))
            .collect();
        let text = without_comments.join("\n");
        let mut events = Vec::new();
        let mut rest: &str = Box::leak(text.into_boxed_str());
        while let Some((block, after)) = rest.split_once("\n\n") {
            rest = after;
            let (mut name, mut id, mut data) = (None, None, None);
            for line in block.split('\n') {
                let (field, value) = line.split_once(": ").unwrap();
                let place = match field {
                    "event" => &mut name,
                    "id" => &mut id,
                    "data" => &mut data,
                    other => panic!("a field that readers do not know: {other}"),
                };
                assert!(place.replace(value).is_none(), "{block:?}");
            }
            let data = data.unwrap();
            assert_eq!(name, (!data.is_empty()).then_some("message"), "{block:?}");
            events.push((id, data));
        }
        assert_eq!(rest, "", "cut off");
        events
    }

    #[test]
    fn a_strict_reader_reads_all_that_is_written() {
        let mut out = BytesMut::new();
        write_empty(&mut out, Some(&"s.0.0"), None);
        out.put_slice(KEEP_ALIVE);
        write_event(&mut out, Some(&"s.1.1"), br#"{"a":1}"#);
        write_comment(&mut out, "events are missing");
        write_event(&mut out, None, b"{}");
        out.put_slice(KEEP_ALIVE);
        let text = String::from_utf8(out.to_vec()).unwrap();
        assert_eq!(
            strict(&text),
            [
                (Some("s.0.0"), ""),
                (Some("s.1.1"), r#"{"a":1}"#),
                (None, "{}")
            ]
        );
    }

    #[test]
    fn nothing_in_a_message_ends_its_line() {
        let odd = "{\"a\":\r\"\u{2028}x\u{2029}y\u{85}z\",\r\n\t\"b\":\n\"\u{e9}\u{20ac}\u{a0}\u{2030}\"}";
        let mut out = BytesMut::new();
        write_event(&mut out, None, odd.as_bytes());
        let text = String::from_utf8(out.to_vec()).unwrap();
        let [(None, data)] = strict(&text)[..] else {
            panic!("{text}");
        };
        assert!(
            !data.contains(['\r', '\u{85}', '\u{2028}', '\u{2029}']),
            "{data}"
        );
        let read: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(
            read,
            serde_json::from_str::<serde_json::Value>(odd).unwrap()
        );
        // Cut off within a character: as it came.
        let mut out = BytesMut::new();
        write_data(&mut out, b"\xe2\x80");
        assert_eq!(out, b"\xe2\x80"[..]);
    }

    #[test]
    fn what_rmcp_writes_gets_the_same_form() {
        let keep = |_: &[u8]| None;
        let frame = Bytes::from_static(b"data: {\"id\":1}\n\n");
        assert_eq!(
            rewrite(frame.clone(), keep),
            "event: message\ndata: {\"id\":1}\n\n"
        );
        assert_eq!(
            rewrite(frame, |_| Some("{}".into())),
            "event: message\ndata: {}\n\n"
        );
        assert_eq!(rewrite(Bytes::from_static(b":\n\n"), keep), ":\n");
        for other in ["data: \nid: 0\n\n", "data: \n\n", "id: 1\ndata: {}\n\n"] {
            assert_eq!(rewrite(Bytes::from(other), keep), other);
        }
    }
}
