//! Parser of `text/event-stream` that keeps ids and order, which client libraries hide.

use bytes::Bytes;

use crate::error::Failure;

/// Longest line or event that is taken in.
const MAX_EVENT: usize = 16 * 1024 * 1024;

/// One event with at least an id, data or a retry time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SseEvent {
    /// The event's own id; `None` when it has none.
    pub(super) id: Option<String>,
    /// Event type.
    pub(super) event: Option<String>,
    /// Data lines, joined by line feeds.
    pub(super) data: String,
    /// Reconnection time in milliseconds.
    pub(super) retry_ms: Option<u64>,
}

/// Incremental parser; bytes may be cut anywhere.
#[derive(Debug, Default)]
pub(super) struct SseParser {
    line: Vec<u8>,
    event: SseEvent,
    has_data: bool,
    after_cr: bool,
    started: bool,
}

impl SseParser {
    /// Takes in bytes and appends the events that they complete.
    pub(super) fn feed(
        &mut self,
        bytes: &Bytes,
        events: &mut Vec<SseEvent>,
    ) -> Result<(), Failure> {
        for &byte in bytes {
            // CR, LF and CR LF each end one line.
            let follows_cr = std::mem::take(&mut self.after_cr);
            match byte {
                b'\n' if follows_cr => {}
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    self.end_line(&line, events);
                }
                _ => self.line.push(byte),
            }
            if self.line.len() + self.event.data.len() > MAX_EVENT {
                return Err(Failure::new("the server sent an event of more than 16 MiB"));
            }
        }
        Ok(())
    }

    fn end_line(&mut self, line: &[u8], events: &mut Vec<SseEvent>) {
        let mut line = line;
        if !std::mem::replace(&mut self.started, true) {
            line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line);
        }
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            self.has_data = false;
            if event != SseEvent::default() {
                events.push(event);
            }
            return;
        }
        let line = String::from_utf8_lossy(line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            "id" if !value.contains('\0') => self.event.id = Some(value.to_owned()),
            "event" => self.event.event = Some(value.to_owned()),
            "retry" => self.event.retry_ms = value.parse().ok(),
            // Comments (an empty field name) and unknown fields.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(chunks: &[&[u8]]) -> Vec<SseEvent> {
        let mut parser = SseParser::default();
        let mut events = Vec::new();
        for chunk in chunks {
            parser
                .feed(&Bytes::copy_from_slice(chunk), &mut events)
                .unwrap();
        }
        events
    }

    fn event(id: Option<&str>, data: &str) -> SseEvent {
        SseEvent {
            id: id.map(Into::into),
            data: data.into(),
            ..SseEvent::default()
        }
    }

    #[test]
    fn all_line_ends_and_any_cut() {
        let text = b"\xef\xbb\xbfid: 1\r\ndata: a\r\ndata:b\r\n\r\n: ping\n\nid:2\rdata: c\r\rdata: unfinished\n";
        let whole = parse(&[text]);
        assert_eq!(whole, [event(Some("1"), "a\nb"), event(Some("2"), "c")]);
        for cut in 0..text.len() {
            assert_eq!(parse(&[&text[..cut], &text[cut..]]), whole, "cut at {cut}");
        }
    }

    #[test]
    fn a_priming_event_has_an_id_and_no_data() {
        let events = parse(&[b"id: s-0\nretry: 250\ndata:\n\n"]);
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].id.as_deref(), Some("s-0"));
        assert_eq!(events[0].retry_ms, Some(250));
        assert!(events[0].data.is_empty());
    }

    #[test]
    fn ids_are_not_inherited_and_nul_is_refused() {
        let events = parse(&[b"id: 1\ndata: a\n\ndata: b\n\nid: x\0y\ndata: c\n\n"]);
        assert_eq!(
            events,
            [event(Some("1"), "a"), event(None, "b"), event(None, "c")]
        );
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = SseParser::default();
        let chunk = Bytes::from(vec![b'x'; MAX_EVENT + 1]);
        assert!(parser.feed(&chunk, &mut Vec::new()).is_err());
    }
}
