use futures::{StreamExt, stream};
use http_body_util::BodyExt;

use super::*;

const READER: Reader = Reader {
    primed: true,
    warned: true,
    resumes: true,
    keep_alive: None,
    retry: Some(Duration::from_millis(1500)),
};
const OLD: Reader = Reader {
    primed: false,
    warned: false,
    ..READER
};
const BATCH: Reader = Reader {
    resumes: false,
    ..READER
};

fn id(position: Position) -> EventId {
    EventId::new("s".parse().unwrap(), position)
}

fn event(seq: u64, data: &'static str) -> TailEvent {
    TailEvent::Event {
        id: id(Position::new(1, seq)),
        data: Bytes::from_static(data.as_bytes()),
        last: false,
    }
}

/// The one that ends its stream.
fn outcome(seq: u64) -> [TailEvent; 2] {
    let mut event = event(seq, "{}");
    if let TailEvent::Event { last, .. } = &mut event {
        *last = true;
    }
    [event, TailEvent::End(EndReason::Finished)]
}

fn tail(events: impl IntoIterator<Item = TailEvent>) -> Tail {
    let events: Vec<_> = events.into_iter().collect();
    Tail::new(stream::iter(events).boxed())
}

fn of_call(tail: Tail, reader: Reader) -> EventBody {
    EventBody::new(tail, reader).of_call(&"s".parse().unwrap(), RpcId::Number(7))
}

async fn text(body: EventBody) -> String {
    let bytes = body.collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn events_are_written_with_their_ids() {
    let events = || {
        tail([
            event(1, "{}"),
            event(2, "{\n}"),
            TailEvent::End(EndReason::Superseded),
        ])
    };
    assert_eq!(
        text(of_call(events(), READER)).await,
        "id: s.0.0\ndata: \n\n\
         event: message\nid: s.1.1\ndata: {}\n\n\
         event: message\nid: s.1.2\ndata: { }\n\n"
    );
    assert_eq!(
        text(of_call(events(), OLD)).await,
        "event: message\nid: s.1.1\ndata: {}\n\n\
         event: message\nid: s.1.2\ndata: { }\n\n"
    );
    assert_eq!(
        text(of_call(events(), BATCH)).await,
        "event: message\ndata: {}\n\nevent: message\ndata: { }\n\n"
    );
}

#[tokio::test]
async fn a_stream_is_primed_where_it_begins() {
    let events = || {
        let after = id(Position::new(1, 4));
        tail([
            TailEvent::Begins { after, hold: 3 },
            event(5, "{}"),
            TailEvent::Begins {
                after: id(Position::new(1, 7)),
                hold: 4,
            },
        ])
    };
    assert_eq!(
        text(EventBody::new(events(), READER)).await,
        "id: s.1.4-h3\ndata: \n\n\
         event: message\nid: s.1.5\ndata: {}\n\n\
         id: s.1.7-h4\ndata: \n\n"
    );
    assert_eq!(
        text(EventBody::new(events(), OLD)).await,
        "event: message\nid: s.1.5\ndata: {}\n\n"
    );
}

#[tokio::test]
async fn a_call_whose_owner_died_ends_with_an_error() {
    for (reason, before) in [
        (EndReason::OwnerLost, "s.0.0"),
        (EndReason::StreamGone, "s.1.1"),
        (EndReason::SessionEnded, "s.1.1"),
    ] {
        let end = TailEvent::End(reason);
        let body = if before == "s.0.0" {
            of_call(tail([end]), OLD)
        } else {
            of_call(tail([event(1, "{}"), end]), OLD)
        };
        let text = text(body).await;
        let error = text.trim_end().rsplit_once("event: message\n").unwrap().1;
        let (last, data) = error.split_once('\n').unwrap();
        assert_eq!(last, format!("id: {before}-last"), "{reason:?}");
        assert!(data.contains(r#""id":7"#), "{text}");
    }
}

#[tokio::test]
async fn nothing_is_said_of_a_call_that_was_given_up() {
    for reason in [EndReason::OwnerLost, EndReason::StreamGone] {
        let gone = || tail([TailEvent::End(reason)]);
        let after = ResumeId::from(id(Position::new(1, 3)));
        let resumed = |reader| {
            EventBody::new(gone(), reader)
                .resumed(after.clone(), Some(RpcId::Number(7)))
                .given_up(true)
        };
        // It need not come back.
        assert_eq!(text(resumed(READER)).await, "id: s.1.3-last\ndata: \n\n");
        assert_eq!(text(resumed(OLD)).await, "");
    }
}

#[tokio::test]
async fn the_outcome_says_that_nothing_follows() {
    for (reader, before) in [(READER, "id: s.0.0\ndata: \n\n"), (OLD, "")] {
        assert_eq!(
            text(of_call(tail(outcome(1)), reader)).await,
            format!("{before}event: message\nid: s.1.1-last\ndata: {{}}\n\n")
        );
    }
}

#[tokio::test]
async fn a_stream_that_ends_without_an_outcome_says_that_nothing_follows() {
    let finished = || tail([event(1, "{}"), TailEvent::End(EndReason::Cancelled)]);
    assert!(
        text(of_call(finished(), READER))
            .await
            .ends_with("id: s.1.1-last\ndata: \n\n")
    );
    let text = text(of_call(finished(), BATCH)).await;
    assert_eq!(text, "event: message\ndata: {}\n\n");
}

#[tokio::test]
async fn a_response_told_aside_comes_once() {
    let aside = Arc::new(Aside::default());
    aside.respond(Bytes::from_static(b"{}"));
    let quiet = Tail::new(stream::pending().boxed());
    let body = of_call(quiet, OLD).with_aside(Arc::clone(&aside));
    assert_eq!(
        text(body).await,
        "event: message\nid: s.0.0-last\ndata: {}\n\n"
    );

    aside.respond(Bytes::from_static(b"{}"));
    let stored = tail([event(1, "{}"), TailEvent::End(EndReason::Finished)]);
    let body = of_call(stored, OLD).with_aside(aside);
    assert_eq!(text(body).await, "event: message\nid: s.1.1\ndata: {}\n\n");
}

#[tokio::test]
async fn an_unstored_response_is_the_last_one() {
    let data = Bytes::from_static(b"{}");
    let body = of_call(tail([TailEvent::Unstored { data }]), OLD);
    assert_eq!(
        text(body).await,
        "event: message\nid: s.0.0-last\ndata: {}\n\n"
    );
}

#[tokio::test]
async fn who_is_sent_away_is_told_when_to_come_back() {
    let closed = |reader| {
        let aside = Arc::new(Aside::default());
        aside.close(Some(Duration::from_millis(7)));
        of_call(Tail::new(stream::pending().boxed()), reader).with_aside(aside)
    };
    assert_eq!(
        text(closed(READER)).await,
        "id: s.0.0\ndata: \n\nretry: 7\ndata: \n\n"
    );
    assert_eq!(text(closed(OLD)).await, "retry: 7\n");
    let token = tokio_util::sync::CancellationToken::new();
    token.cancel();
    let listening = EventBody::new(Tail::new(stream::pending().boxed()), READER);
    let body = listening.closing(token.cancelled_owned());
    assert_eq!(text(body).await, "retry: 1500\ndata: \n\n");
}

#[tokio::test]
async fn a_hole_is_shown_and_moves_no_cursor() {
    let events = || {
        tail([
            event(1, "{}"),
            TailEvent::Gap { oldest: None },
            event(9, "{}"),
        ])
    };
    let comment = ": messages are missing here\n";
    assert_eq!(
        text(of_call(events(), OLD)).await,
        format!(
            "event: message\nid: s.1.1\ndata: {{}}\n\n\
             {comment}event: message\nid: s.1.9\ndata: {{}}\n\n"
        )
    );
    let text = text(of_call(events(), READER)).await;
    let (_, shown) = text.split_once(comment).unwrap();
    let (log, rest) = shown.split_once("\n\n").unwrap();
    let log = log.strip_prefix("event: message\ndata: ").unwrap();
    let log: serde_json::Value = serde_json::from_str(log).unwrap();
    assert_eq!(log["method"], "notifications/message");
    assert_eq!(log["params"]["level"], "warning");
    assert_eq!(rest, "event: message\nid: s.1.9\ndata: {}\n\n");
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_is_kept_alive_by_comments() {
    let reader = Reader {
        keep_alive: Some(Duration::from_secs(15)),
        ..OLD
    };
    let mut body = of_call(Tail::new(stream::pending().boxed()), reader);
    for _ in 0..2 {
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), ":\n");
    }
}
