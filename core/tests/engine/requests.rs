//! Client requests across instances: exactly one outcome, whoever is first.

use std::time::Duration;

use super::support::{Fleet, number, record, session};
use bytes::Bytes;
use futures::future::join_all;
use mcp_adapter_core::{
    Answer, Channel, ClientRequestAdapter, Delivery, ErrorKind, Limits, NewClientRequest, Outcome,
    OutcomeKind, RpcId, SessionAdapter, SignalAdapter,
};

fn answer(text: &'static str) -> Answer {
    Answer::Result(Bytes::from_static(text.as_bytes()))
}

fn string(id: &str) -> RpcId {
    RpcId::String(id.into())
}

fn kind(outcome: &Outcome) -> OutcomeKind {
    outcome.kind
}

#[tokio::test(start_paused = true)]
async fn an_answer_at_another_instance_arrives_with_and_without_its_announcement() {
    let fleet = Fleet::new(Limits::default());
    for deaf in [false, true] {
        let (a, b) = (fleet.instance(), fleet.instance());
        if deaf {
            a.link.lose_knocks();
        }
        let id = a.begin().await;
        let create = |request| ClientRequestAdapter::create(&a.engine, &id, request);
        // The number 1 and the string "1" differ.
        let one = create(NewClientRequest::new(number(1))).await.unwrap();
        let text = create(NewClientRequest::new(string("1"))).await.unwrap();
        let large = vec![b'x'; 1 << 20];
        let payload = Bytes::from(large);
        let sent = tokio::time::Instant::now();
        let result = Answer::Result(payload.clone());
        let delivery = b.engine.answer(&id, &string("1"), result).await;
        assert_eq!(delivery.unwrap(), Delivery::Delivered);
        let error = Answer::Error(Bytes::from_static(b"no"));
        let delivery = b.engine.answer(&id, &number(1), error).await;
        assert_eq!(delivery.unwrap(), Delivery::Delivered);
        let outcome = text.await;
        assert_eq!(
            (outcome.kind, outcome.payload),
            (OutcomeKind::Answered, payload)
        );
        let outcome = one.await;
        assert_eq!(
            (kind(&outcome), &outcome.payload[..]),
            (OutcomeKind::Rejected, &b"no"[..])
        );
        assert!(sent.elapsed() <= fleet.limits.catch_up() * 2);
    }
}

#[tokio::test(start_paused = true)]
async fn of_many_answers_one_is_delivered() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = a.begin().await;
    let request = NewClientRequest::new(string("q"));
    let wait = ClientRequestAdapter::create(&a.engine, &id, request)
        .await
        .unwrap();
    // A lost reply to the winner's write must not make it a loser.
    b.link.lose_replies(1);
    let key = string("q");
    let answers = ["0", "1", "2", "3"].map(|text| {
        let engine = if text < "2" { &a.engine } else { &b.engine };
        engine.answer(&id, &key, answer(text))
    });
    let deliveries: Vec<_> = join_all(answers)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let won = |delivery: &&Delivery| **delivery == Delivery::Delivered;
    assert_eq!(deliveries.iter().filter(won).count(), 1, "{deliveries:?}");
    let winner = deliveries
        .iter()
        .position(|delivery| won(&delivery))
        .unwrap();
    assert_eq!(&wait.await.payload[..], winner.to_string().as_bytes());
    let late = b.engine.answer(&id, &key, answer("late")).await.unwrap();
    assert_eq!(late, Delivery::AlreadyEnded(OutcomeKind::Answered));
    let stranger = a.begin().await;
    let foreign = b.engine.answer(&stranger, &key, answer("x")).await.unwrap();
    assert_eq!(foreign, Delivery::Unknown);
    tokio::time::sleep(fleet.limits.result_ttl() * 2).await;
    let forgotten = b.engine.answer(&id, &key, answer("x")).await.unwrap();
    assert_eq!(forgotten, Delivery::Unknown);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_and_an_answer_never_both_win() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = a.begin().await;
    let timeout = Duration::from_millis(100);
    for delay in 90..=110 {
        let key = number(delay.try_into().unwrap());
        let request = NewClientRequest::new(key.clone()).with_timeout(timeout);
        let wait = ClientRequestAdapter::create(&a.engine, &id, request)
            .await
            .unwrap();
        let wait = tokio::spawn(wait);
        tokio::time::sleep(Duration::from_millis(delay)).await;
        let delivery = b
            .engine
            .answer(&id, &key, answer("just in time"))
            .await
            .unwrap();
        let outcome = wait.await.unwrap();
        match delivery {
            Delivery::Delivered => assert_eq!(outcome.kind, OutcomeKind::Answered),
            Delivery::AlreadyEnded(OutcomeKind::TimedOut) => {
                assert_eq!(outcome.kind, OutcomeKind::TimedOut);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_key_again_replaces_and_a_repeat_does_not() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = a.begin().await;
    a.link.lose_replies(2);
    let request = NewClientRequest::new(number(1));
    let first = ClientRequestAdapter::create(&a.engine, &id, request)
        .await
        .unwrap();
    let request = NewClientRequest::new(number(1));
    let second = ClientRequestAdapter::create(&b.engine, &id, request)
        .await
        .unwrap();
    assert_eq!(first.await.kind, OutcomeKind::Replaced);
    a.engine.answer(&id, &number(1), answer("x")).await.unwrap();
    assert_eq!(second.await.kind, OutcomeKind::Answered);
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_request_and_one_whose_wait_was_dropped_cannot_be_answered() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = a.begin().await;
    let writer = a
        .engine
        .enter(&id, None, Some(&number(1)))
        .await
        .unwrap()
        .writer
        .unwrap();
    let stream = writer.stream().clone();
    let request = NewClientRequest::new(string("of the call")).with_stream(stream.clone());
    let of_call = ClientRequestAdapter::create(&a.engine, &id, request)
        .await
        .unwrap();
    let request = NewClientRequest::new(string("dropped"));
    drop(
        ClientRequestAdapter::create(&a.engine, &id, request)
            .await
            .unwrap(),
    );
    a.engine.withdraw(&id, &stream).await.unwrap();
    assert_eq!(of_call.await.kind, OutcomeKind::Cancelled);
    tokio::time::sleep(Duration::from_millis(10)).await;
    for key in ["of the call", "dropped"] {
        let late = b
            .engine
            .answer(&id, &string(key), answer("x"))
            .await
            .unwrap();
        assert_eq!(
            late,
            Delivery::AlreadyEnded(OutcomeKind::Cancelled),
            "{key}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_session_ends_its_requests_and_a_dead_owner_loses_its() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let (ended, orphaned) = (session(), session());
    for id in [&ended, &orphaned] {
        SessionAdapter::create(&a.engine, id, record())
            .await
            .unwrap();
    }
    let request = NewClientRequest::new(number(1));
    let wait = ClientRequestAdapter::create(&a.engine, &ended, request)
        .await
        .unwrap();
    b.engine.delete(&ended, None).await.unwrap();
    assert_eq!(wait.await.kind, OutcomeKind::SessionEnded);
    let gone = b
        .engine
        .answer(&ended, &number(1), answer("x"))
        .await
        .unwrap();
    assert_eq!(gone, Delivery::Unknown);

    let request = NewClientRequest::new(number(1));
    let wait = ClientRequestAdapter::create(&a.engine, &orphaned, request)
        .await
        .unwrap();
    let wait = tokio::spawn(wait);
    a.link.cut();
    tokio::time::sleep(fleet.limits.lease() * 2).await;
    let lost = b
        .engine
        .answer(&orphaned, &number(1), answer("x"))
        .await
        .unwrap();
    assert_eq!(lost, Delivery::AlreadyEnded(OutcomeKind::OwnerLost));
    a.link.mend();
    assert_eq!(wait.await.unwrap().kind, OutcomeKind::OwnerLost);
}

#[tokio::test(start_paused = true)]
async fn a_wait_rides_out_an_outage() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = a.begin().await;
    let request = NewClientRequest::new(number(1));
    let wait = ClientRequestAdapter::create(&a.engine, &id, request)
        .await
        .unwrap();
    a.link.cut();
    let delivery = b
        .engine
        .answer(&id, &number(1), answer("meanwhile"))
        .await
        .unwrap();
    assert_eq!(delivery, Delivery::Delivered);
    tokio::time::sleep(Duration::from_secs(20)).await;
    a.link.mend();
    assert_eq!(&wait.await.payload[..], b"meanwhile");
}

#[tokio::test(start_paused = true)]
async fn bounds_are_typed_errors() {
    let limits = Limits::builder()
        .pending_requests(1)
        .answer_bytes(4)
        .build()
        .unwrap();
    let fleet = Fleet::new(limits);
    let a = fleet.instance();
    let id = a.begin().await;
    let create = |id: RpcId| NewClientRequest::new(id);
    let wait = ClientRequestAdapter::create(&a.engine, &id, create(number(1)))
        .await
        .unwrap();
    let full = ClientRequestAdapter::create(&a.engine, &id, create(number(2))).await;
    assert_eq!(full.unwrap_err().kind(), ErrorKind::Overloaded);
    let long = ClientRequestAdapter::create(&a.engine, &id, create(string(&"x".repeat(257)))).await;
    assert_eq!(long.unwrap_err().kind(), ErrorKind::InvalidArgument);
    let nowhere = ClientRequestAdapter::create(&a.engine, &session(), create(number(1))).await;
    assert_eq!(nowhere.unwrap_err().kind(), ErrorKind::SessionNotFound);
    let large = a.engine.answer(&id, &number(1), answer("12345")).await;
    assert_eq!(large.unwrap_err().kind(), ErrorKind::TooLarge);
    a.engine
        .answer(&id, &number(1), answer("1234"))
        .await
        .unwrap();
    assert_eq!(&wait.await.payload[..], b"1234", "it stayed pending");
}

#[tokio::test(start_paused = true)]
async fn signals_arrive_in_order_at_every_listener_and_nowhere_else() {
    use futures::StreamExt;
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = session();
    let here = Channel::Session(id.clone());
    let topic = Channel::Topic("list_changed".into());
    let mut at_a = a.engine.listen(&here).await.unwrap();
    let mut at_b = b.engine.listen(&here).await.unwrap();
    let mut other = b.engine.listen(&topic).await.unwrap();
    for n in 0..100_u8 {
        a.engine
            .signal(&here, Bytes::copy_from_slice(&[n]))
            .await
            .unwrap();
    }
    for n in 0..100_u8 {
        assert_eq!(&at_a.next().await.unwrap().payload[..], [n]);
        assert_eq!(&at_b.next().await.unwrap().payload[..], [n]);
    }
    b.engine
        .signal(&topic, Bytes::from_static(b"t"))
        .await
        .unwrap();
    assert_eq!(&other.next().await.unwrap().payload[..], b"t");
    let large = Bytes::from(vec![0; mcp_adapter_core::MAX_SIGNAL_BYTES + 1]);
    let error = a.engine.signal(&topic, large).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    let long = Channel::Topic("x".repeat(101).into());
    let error = a.engine.signal(&long, Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

/// A deadline that a read has seen, while an answer is on its way into the store.
#[tokio::test(start_paused = true)]
async fn a_deadline_that_a_read_has_seen_ends_the_request_for_all() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = a.begin().await;
    a.link.see_deadlines_early();
    let asked = NewClientRequest::new(number(1));
    let waiting = ClientRequestAdapter::create(&a.engine, &id, asked)
        .await
        .unwrap();
    // The next round of catching up has it looked at.
    assert_eq!(kind(&waiting.await), OutcomeKind::TimedOut);
    let delivery = b.engine.answer(&id, &number(1), answer("late")).await;
    let ended = Delivery::AlreadyEnded(OutcomeKind::TimedOut);
    assert_eq!(delivery.unwrap(), ended);
}
