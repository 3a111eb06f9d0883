//! HTTP by hand: what no client library would send, and all of what comes back.

use std::time::Duration;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::client::Client;

/// Sends bytes as they are; gives the answer as it comes.
pub(crate) async fn send(url: &str, request: &[u8]) -> String {
    let authority = url.strip_prefix("http://").unwrap().split('/').next();
    let mut stream = TcpStream::connect(authority.unwrap()).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .unwrap()
        .unwrap();
    String::from_utf8(answer).unwrap()
}

/// An answer that has ended.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            (key == name).then_some(value)
        })
    }

    pub(crate) fn kind(&self) -> &str {
        self.header("content-type").unwrap_or("none")
    }

    /// Code and id of a JSON-RPC error, which is all that it is.
    pub(crate) fn rpc_error(&self) -> (i64, Value) {
        assert_eq!(self.kind(), "application/json", "{self:?}");
        let error: Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(error["jsonrpc"], "2.0", "{self:?}");
        (
            error["error"]["code"].as_i64().unwrap(),
            error["id"].clone(),
        )
    }

    /// The messages of a body of events, read without any forgiveness.
    pub(crate) fn messages(&self) -> Vec<&str> {
        assert_eq!((self.status, self.kind()), (200, "text/event-stream"));
        let mut messages = Vec::new();
        let (blocks, rest) = self.body.rsplit_once("\n\n").unwrap();
        assert_eq!(rest, "", "{self:?}");
        for block in blocks.split("\n\n") {
            let (mut name, mut id, mut data) = (None, None, None);
            for line in block.lines().filter(|line| !line.starts_with(':')) {
                let (field, value) = line.split_once(": ").unwrap();
                let place = match field {
                    "event" => &mut name,
                    "id" => &mut id,
                    "data" => &mut data,
                    _ => panic!("a field that readers in use do not know: {block:?}"),
                };
                assert!(place.replace(value).is_none(), "{block:?}");
            }
            match data.unwrap() {
                "" => assert_eq!((name, id.is_some()), (None, true), "{block:?}"),
                data => {
                    assert_eq!(name, Some("message"), "{block:?}");
                    messages.push(data);
                }
            }
        }
        messages
    }
}

/// Sends one request, with the usual headers as far as they are not given, and
/// without those that are given as "-".
pub(crate) async fn ask(
    client: &Client,
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let length = body.len().to_string();
    let mut all = vec![
        ("host", "localhost"),
        ("connection", "close"),
        ("accept", "application/json, text/event-stream"),
        ("content-length", &length),
    ];
    if method == "POST" {
        all.push(("content-type", "application/json"));
    }
    if let Some(session) = &client.session {
        all.push(("mcp-session-id", session));
        all.extend(
            client
                .version
                .map(|version| ("mcp-protocol-version", version)),
        );
    }
    all.retain(|(name, _)| headers.iter().all(|(given, _)| given != name));
    all.extend(headers.iter().filter(|(_, value)| *value != "-"));
    let mut request = format!("{method} /mcp HTTP/1.1\r\n");
    for (name, value) in all {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    let answer = send(url, format!("{request}\r\n{body}").as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let (status, headers) = head.split_once("\r\n").unwrap_or((head, ""));
    let chunked = headers.contains("transfer-encoding: chunked");
    Answer {
        status: status.split(' ').nth(1).unwrap().parse().unwrap(),
        headers: headers.to_owned(),
        body: if chunked {
            joined(body)
        } else {
            body.to_owned()
        },
    }
}

/// A chunked body in one piece.
fn joined(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        whole.push_str(&rest[..length]);
        body = &rest[length + 2..];
        if length == 0 {
            break;
        }
    }
    whole
}
