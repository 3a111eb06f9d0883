//! The adapter as users have it.
#![allow(clippy::unwrap_used, reason = "tests")]

use futures::StreamExt as _;
use mcp_adapter_core::{
    Adapter, Answer, ClientRequestAdapter, Delivery, EndReason, EventId, NewClientRequest,
    OutcomeKind, RpcId, SessionAdapter, SessionId, SessionRecord, TailEvent, TailFrom,
};
use mcp_adapter_memory::MemoryAdapter;

#[tokio::test]
async fn a_call_at_one_instance_is_followed_and_answered_at_another() {
    let a = MemoryAdapter::default();
    let b = a.instance();
    assert_ne!(a.id(), b.id());
    assert_eq!(a.clone().id(), a.id());

    let session = SessionId::generate();
    let record = SessionRecord::default();
    SessionAdapter::create(&a, &session, record).await.unwrap();
    let call = RpcId::Number(1);
    let entered = a.enter(&session, None, Some(&call)).await.unwrap();
    let writer = entered.writer.unwrap();
    let first = writer.append("first".into()).await.unwrap();

    let mut tail = b.tail(&session, TailFrom::After(first)).await.unwrap();
    let question = NewClientRequest::new(RpcId::String("question".into()));
    let id = question.id.clone();
    let asked = ClientRequestAdapter::create(&a, &session, question);
    let asked = asked.await.unwrap();
    let answer = Answer::Result("yes".into());
    assert_eq!(
        b.answer(&session, &id, answer).await.unwrap(),
        Delivery::Delivered
    );
    let outcome = asked.await;
    assert_eq!(
        (outcome.kind, &*outcome.payload),
        (OutcomeKind::Answered, &b"yes"[..])
    );

    let last = writer.finish(Some("last".into())).await.unwrap().unwrap();
    let event = |id: EventId, data: &'static str| TailEvent::Event {
        id,
        data: data.into(),
        last: true,
    };
    assert_eq!(tail.next().await, Some(event(last, "last")));
    assert_eq!(tail.next().await, Some(TailEvent::End(EndReason::Finished)));

    assert!(b.delete(&session, None).await.unwrap());
    assert!(a.enter(&session, None, None).await.is_err());
    // Another store knows nothing of this one.
    let other = MemoryAdapter::default();
    assert!(!other.delete(&session, None).await.unwrap());
}

#[test]
fn nothing_shows_in_debug_output() {
    let adapter = MemoryAdapter::default();
    assert_eq!(format!("{adapter:?}"), "MemoryAdapter { .. }");
}
