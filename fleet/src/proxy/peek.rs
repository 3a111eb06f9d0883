//! What kind of JSON-RPC message a request carries, from the first bytes of its body.
//!
//! The proxy routes by kind and must not hold bodies back, so it reads the keys
//! of the outermost object from a bounded prefix and lets the rest stream through.

use super::policy::Kind;

/// Keys of the outermost object seen so far.
#[derive(Debug, Default, PartialEq, Eq)]
struct Keys {
    method: Option<String>,
    id: bool,
    answer: bool,
}

/// Kind of the message that starts with `prefix`. Batches and whatever cannot be
/// told count as requests: those are routed where work is done.
pub(super) fn kind(prefix: &[u8]) -> Kind {
    let mut keys = Keys::default();
    // A prefix that ends in the middle of a token still shows the keys before it.
    let complete = Scanner {
        bytes: prefix,
        at: 0,
    }
    .object(&mut keys)
    .is_some();
    match keys {
        Keys {
            method: Some(method),
            ..
        } if method == "initialize" => Kind::Initialize,
        Keys {
            method: Some(_),
            id: false,
            ..
        } if complete => Kind::Notification,
        Keys {
            method: None,
            answer: true,
            ..
        } => Kind::Answer,
        _ => Kind::Request,
    }
}

/// Walks over JSON text; every method is `None` at the end of the prefix or at
/// text that is no JSON.
struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn object(&mut self, keys: &mut Keys) -> Option<()> {
        self.expect(b'{')?;
        if self.peek()? == b'}' {
            return Some(());
        }
        loop {
            self.peek()?;
            let key = self.string()?;
            self.expect(b':')?;
            match key {
                b"method" => {
                    keys.method = if self.peek()? == b'"' {
                        Some(String::from_utf8_lossy(self.string()?).into_owned())
                    } else {
                        self.value()?;
                        None
                    };
                }
                b"id" => {
                    self.value()?;
                    keys.id = true;
                }
                b"result" | b"error" => {
                    keys.answer = true;
                    self.value()?;
                }
                _ => self.value()?,
            }
            match self.next()? {
                b',' => {}
                b'}' => return Some(()),
                _ => return None,
            }
        }
    }

    /// Skips one value. Brackets are counted, not matched: the server judges the JSON.
    fn value(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            match self.peek()? {
                b'"' => drop(self.string()?),
                b'{' | b'[' => {
                    self.at += 1;
                    depth += 1;
                    continue;
                }
                b'}' | b']' => {
                    self.at += 1;
                    depth = depth.checked_sub(1)?;
                }
                b',' | b':' if depth > 0 => {
                    self.at += 1;
                    continue;
                }
                b',' | b':' => return None,
                _ => self.scalar(),
            }
            if depth == 0 {
                return Some(());
            }
        }
    }

    fn scalar(&mut self) {
        while let Some(byte) = self.bytes.get(self.at) {
            if matches!(byte, b',' | b':' | b'}' | b']' | b'{' | b'[' | b'"')
                || byte.is_ascii_whitespace()
            {
                return;
            }
            self.at += 1;
        }
    }

    /// The raw bytes between the quotes.
    fn string(&mut self) -> Option<&'a [u8]> {
        self.expect(b'"')?;
        let start = self.at;
        loop {
            match self.bytes.get(self.at)? {
                b'"' => {
                    self.at += 1;
                    return Some(&self.bytes[start..self.at - 1]);
                }
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
    }

    fn peek(&mut self) -> Option<u8> {
        while self.bytes.get(self.at)?.is_ascii_whitespace() {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, wanted: u8) -> Option<()> {
        (self.next()? == wanted).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart() {
        let cases = [
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#,
                Kind::Initialize,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"tools/call"}"#,
                Kind::Request,
            ),
            (
                r#"{"method":"tools/call","params":{"id":2},"id":"x"}"#,
                Kind::Request,
            ),
            (
                r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"id":3,"result":1}}"#,
                Kind::Notification,
            ),
            (
                r#" { "jsonrpc" : "2.0" , "id" : 0 , "result" : { "method" : "x" } } "#,
                Kind::Answer,
            ),
            (
                r#"{"id":0,"error":{"code":-1,"message":"\"method\":\"initialize\""}}"#,
                Kind::Answer,
            ),
            (r#"[{"method":"a"}]"#, Kind::Request),
            ("", Kind::Request),
            ("{}", Kind::Request),
            ("not json", Kind::Request),
            (r#"{"method":7,"id":1}"#, Kind::Request),
        ];
        for (body, wanted) in cases {
            assert_eq!(kind(body.as_bytes()), wanted, "{body}");
        }
    }

    #[test]
    fn a_cut_prefix_shows_what_came_before_the_cut() {
        let long = "x".repeat(100);
        let request = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"a":"{long}"}}}}"#
        );
        assert_eq!(kind(&request.as_bytes()[..80]), Kind::Request);
        let answer = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"a":"{long}"}}}}"#);
        assert_eq!(kind(&answer.as_bytes()[..80]), Kind::Answer);
        // No id yet, but one may follow the cut.
        let late = format!(r#"{{"method":"tools/call","params":{{"a":"{long}"}},"id":1}}"#);
        assert_eq!(kind(&late.as_bytes()[..80]), Kind::Request);
    }

    #[test]
    fn no_prefix_of_any_message_panics() {
        let body = r#"{"jsonrpc":"2.0","id":-1.5e3,"method":"a\"\\","params":[{"b":[1,{}]},null,"é"],"x":true}"#;
        for end in 0..=body.len() {
            kind(&body.as_bytes()[..end]);
        }
    }
}
