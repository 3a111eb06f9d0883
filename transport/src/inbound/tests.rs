use super::*;

fn of(text: &str) -> Inbound {
    Inbound::of(Bytes::copy_from_slice(text.as_bytes()))
}

fn request(id: RpcId) -> Kind {
    Kind::Request {
        id,
        initialize: false,
    }
}

#[test]
fn kinds_are_told_by_method_and_id() {
    let one = RpcId::Number(1);
    assert_eq!(
        of(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#).kind,
        request(one.clone())
    );
    assert_eq!(
        of(r#"{"method":"tools/call","params":{"id":7},"id":"1"}"#).kind,
        request(RpcId::String("1".into()))
    );
    assert_eq!(
        of(r#"{"method":"initialize","id":1}"#).kind,
        Kind::Request {
            id: one.clone(),
            initialize: true
        }
    );
    assert_eq!(
        of(r#"{"method":"notifications/x"}"#).kind,
        Kind::Notification
    );
    assert_eq!(
        of(r#"{"id":1, "result": {"a": 1.0} }"#).kind,
        Kind::Answer(Some((one.clone(), Payload::Result(r#"{"a": 1.0}"#.into()))))
    );
    assert_eq!(
        of(r#"{"id":1,"result":null}"#).kind,
        Kind::Answer(Some((one, Payload::Result("null".into()))))
    );
    assert_eq!(of(r#"{"id":null,"error":{}}"#).kind, Kind::Answer(None));
    assert_eq!(of(r#"{"error":{}}"#).kind, Kind::Answer(None));
}

#[test]
fn what_could_be_read_in_two_ways_is_invalid() {
    for text in [
        "",
        "[]",
        "{}",
        "null",
        r#"{"id":1.5,"method":"ping"}"#,
        r#"{"id":null,"method":"ping"}"#,
        r#"{"id":true,"method":"ping"}"#,
        r#"{"id":9223372036854775808,"method":"ping"}"#,
        r#"{"id":1,"id":2,"method":"ping"}"#,
        r#"{"id":1,"method":"ping","method":"tools/call"}"#,
        r#"{"id":1,"method":"ping","result":{}}"#,
        r#"{"id":1,"method":"ping","result":null}"#,
        r#"{"id":null,"result":{}}"#,
        r#"[{"id":1,"method":"ping"}]"#,
        &format!(r#"{{"id":"{}","method":"ping"}}"#, "x".repeat(257)),
    ] {
        assert_eq!(of(text).kind, Kind::Invalid, "{text}");
    }
}

#[test]
fn a_refusal_names_what_can_be_named() {
    for (text, code, id) in [
        ("{bad", -32700, "null"),
        ("", -32700, "null"),
        (r#"{"a":"\ud800"}"#, -32700, "null"),
        ("{}", -32600, "null"),
        (r#"{"id":1.5,"method":"ping"}"#, -32600, "1.5"),
        (r#"{"id":"x","params":{}}"#, -32600, r#""x""#),
        (r#"{"id":{},"method":"ping"}"#, -32600, "null"),
    ] {
        let Verdict::Rpc(body) = of(text).refusal() else {
            panic!("{text}");
        };
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["code"], code, "{text}");
        assert_eq!(body["id"].to_string(), id, "{text}");
    }
}

#[test]
fn an_integer_is_one_in_any_spelling() {
    for (raw, number) in [
        ("1", 1),
        ("1.0", 1),
        ("1e0", 1),
        ("10E-1", 1),
        ("0.01e+2", 1),
        ("-0", 0),
        ("-0.0e99999", 0),
        ("-12.50e1", -125),
        ("9223372036854775807.000", i64::MAX),
        ("-9.223372036854775808e18", i64::MIN),
    ] {
        assert_eq!(integer(raw), Some(number), "{raw}");
    }
    for raw in [
        "1.5",
        "1e-1",
        "1e19",
        "9223372036854775808",
        "1e999999999999",
        "1e99999999999999999999",
        "1e-999999999999",
        "\"1\"",
        "null",
        "-",
        &format!("1.{}", "0".repeat(MAX_NUMBER_BYTES)),
    ] {
        assert_eq!(integer(raw), None, "{raw}");
    }
}

#[test]
fn rmcp_sees_plain_integers_and_clients_their_own() {
    let sent = r#"{"id": 1.0, "method":"ping", "params":{"_meta":{"progressToken": 7e0}}}"#;
    let inbound = of(sent);
    assert_eq!(inbound.kind, request(RpcId::Number(1)));
    assert_eq!(
        inbound.body,
        r#"{"id": 1, "method":"ping", "params":{"_meta":{"progressToken": 7}}}"#
    );
    let spelling = inbound.spelling.unwrap();
    for (message, restored) in [
        (
            r#"{"jsonrpc":"2.0","id":1,"result":{"id":1}}"#,
            Some(r#"{"jsonrpc":"2.0","id":1.0,"result":{"id":1}}"#),
        ),
        (r#"{"error":{},"id":1}"#, Some(r#"{"error":{},"id":1.0}"#)),
        (r#"{"id":1,"method":"ping"}"#, None),
        (r#"{"method":"x"}"#, None),
    ] {
        let got = spelling.restore(message.as_bytes());
        assert_eq!(got.as_deref(), restored.map(str::as_bytes), "{message}");
    }
    let plain = of(r#"{"id":1,"method":"ping"}"#);
    assert_eq!(plain.spelling, None);
    let cancel = r#"{"method":"notifications/cancelled","params":{"requestId":2.0}}"#;
    assert_eq!(
        of(cancel).body,
        r#"{"method":"notifications/cancelled","params":{"requestId":2}}"#
    );
}
