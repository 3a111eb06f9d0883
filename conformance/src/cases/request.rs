//! Client requests: C1 to C7.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use mcp_adapter_core::{Answer, Delivery, ErrorKind, NewClientRequest, OutcomeKind, RpcId};
use tokio::time::{Instant, sleep};

use super::{NOT_FOUND, TOO_SLOW, TRIES, kind, number, string};
use crate::{
    fleet::Fleet,
    instance::{Instance, Waiting},
    wait::{Failure, Verdict, claim, claim_eq, eventually, helper, never_within, within},
};

fn result(text: &str) -> Answer {
    Answer::Result(Bytes::copy_from_slice(text.as_bytes()))
}

fn ask(id: &RpcId) -> NewClientRequest {
    NewClientRequest::new(id.clone())
}

/// How it ended, and with what.
#[track_caller]
fn outcome(
    fleet: &Fleet,
    waiting: Waiting,
) -> impl Future<Output = Result<(OutcomeKind, Bytes), Failure>> {
    helper(async move {
        let outcome = within("the outcome of a request", fleet.patience(), waiting).await?;
        Ok((outcome.kind, outcome.payload))
    })
}

pub(crate) async fn an_answer_at_any_instance_arrives(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    for (n, at) in [&a, &b].into_iter().enumerate() {
        let (yes, no) = (string(&format!("yes {n}")), string(&format!("no {n}")));
        let accepted = a.ask(&id, ask(&yes)).await?;
        let declined = a.ask(&id, ask(&no)).await?;
        let answered = at.answer(&id, &yes, result("{\"a\":1}")).await?;
        claim_eq!(answered, Delivery::Delivered);
        let answered = at
            .answer(&id, &no, Answer::Error("{\"code\":1}".into()))
            .await?;
        claim_eq!(answered, Delivery::Delivered);
        claim_eq!(
            outcome(&fleet, accepted).await?,
            (OutcomeKind::Answered, Bytes::from("{\"a\":1}"))
        );
        claim_eq!(
            outcome(&fleet, declined).await?,
            (OutcomeKind::Rejected, Bytes::from("{\"code\":1}"))
        );
    }
    Ok(())
}

pub(crate) async fn it_can_be_answered_as_soon_as_create_returns(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    for n in 0..50 {
        let waiting = a.ask(&id, ask(&number(n))).await?;
        // The answer is there before anybody waits for it.
        let answered = b.answer(&id, &number(n), result(&n.to_string())).await?;
        claim_eq!(answered, Delivery::Delivered, "request {n}");
        claim_eq!(
            outcome(&fleet, waiting).await?,
            (OutcomeKind::Answered, Bytes::from(n.to_string()))
        );
    }
    Ok(())
}

pub(crate) async fn it_needs_a_session(fleet: Fleet) -> Verdict {
    let a = fleet.instance().await?;
    let missing = mcp_adapter_core::SessionId::generate();
    claim_eq!(kind(a.ask(&missing, ask(&number(1))).await), NOT_FOUND);
    let answered = a.answer(&missing, &number(1), result("x")).await?;
    claim_eq!(answered, Delivery::Unknown);
    claim_eq!(a.cancel_request(&missing, &number(1)).await?, None);
    a.create(&missing, crate::instance::record()).await?;
    let answered = a.answer(&missing, &number(1), result("x")).await?;
    claim_eq!(answered, Delivery::Unknown, "nothing was created before");
    let long = string(&"x".repeat(RpcId::MAX_BYTES + 1));
    claim_eq!(
        kind(a.ask(&missing, ask(&long)).await),
        Some(ErrorKind::InvalidArgument)
    );
    Ok(())
}

pub(crate) async fn of_many_answers_one_is_delivered(fleet: Fleet) -> Verdict {
    let instances: [Instance; 3] = fleet.instances().await?;
    let id = instances[0].session().await?;
    for round in 0..10 {
        let key = number(round);
        let waiting = instances[0].ask(&id, ask(&key)).await?;
        let answers = (0..12).map(|n| {
            let answer = if n % 2 == 0 {
                result(&n.to_string())
            } else {
                Answer::Error(n.to_string().into())
            };
            instances[n % 3].answer(&id, &key, answer)
        });
        let mut delivered = Vec::new();
        let mut ended = Vec::new();
        for (n, delivery) in join_all(answers).await.into_iter().enumerate() {
            match delivery? {
                Delivery::Delivered => delivered.push(n),
                Delivery::AlreadyEnded(how) => ended.push(how),
                Delivery::Unknown => return Err(Failure::new("a request that is there")),
            }
        }
        claim_eq!(delivered.len(), 1, "answers that were delivered");
        let winner = delivered[0];
        let how = [OutcomeKind::Answered, OutcomeKind::Rejected][winner % 2];
        claim!(
            ended.iter().all(|other| *other == how),
            "{how:?}: {ended:?}"
        );
        claim_eq!(
            outcome(&fleet, waiting).await?,
            (how, Bytes::from(winner.to_string())),
            "what the waiter got"
        );
    }
    Ok(())
}

pub(crate) async fn every_outcome_is_told_to_both_sides(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let create = async |name: &str| a.ask(&id, ask(&string(name))).await;
    let answered = create("answered").await?;
    let rejected = create("rejected").await?;
    let cancelled = create("cancelled").await?;
    let dropped = create("dropped").await?;
    let short = ask(&string("timed out")).with_timeout(fleet.ticks(10));
    let timed_out = a.ask(&id, short).await?;
    let of_call = ask(&string("withdrawn")).with_stream(writer.stream().clone());
    let withdrawn = a.ask(&id, of_call).await?;

    b.answer(&id, &string("answered"), result("x")).await?;
    b.answer(&id, &string("rejected"), Answer::Error("x".into()))
        .await?;
    let how = b.cancel_request(&id, &string("cancelled")).await?;
    claim_eq!(how, Some(OutcomeKind::Cancelled));
    drop(dropped);
    a.withdraw(&id, writer.stream()).await?;
    let expected = [
        ("answered", answered, OutcomeKind::Answered),
        ("rejected", rejected, OutcomeKind::Rejected),
        ("cancelled", cancelled, OutcomeKind::Cancelled),
        ("withdrawn", withdrawn, OutcomeKind::Cancelled),
        ("timed out", timed_out, OutcomeKind::TimedOut),
    ];
    let told = async |name: &str, how: OutcomeKind| {
        for instance in [&b, &a] {
            let late = instance.answer(&id, &string(name), result("late")).await?;
            claim_eq!(late, Delivery::AlreadyEnded(how), "{name}");
            let late = instance.cancel_request(&id, &string(name)).await?;
            claim_eq!(late, Some(how), "{name}");
        }
        Ok(())
    };
    for (name, waiting, how) in expected {
        claim_eq!(outcome(&fleet, waiting).await?.0, how, "{name}");
        told(name, how).await?;
    }
    // Its withdrawal is on its way: it is announced by nobody.
    let gone = || async {
        let how = b.cancel_request(&id, &string("dropped")).await?;
        Ok((how == Some(OutcomeKind::Cancelled)).then_some(()))
    };
    eventually("a dropped wait is withdrawn", fleet.patience(), gone).await?;
    told("dropped", OutcomeKind::Cancelled).await
}

pub(crate) async fn an_outcome_is_forgotten_after_its_time(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.result_ttl(fleet.ticks(60)))?;
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let mut told = false;
    for n in 0..i64::from(TRIES) {
        let waiting = a.ask(&id, ask(&number(n))).await?;
        let answering = Instant::now();
        b.answer(&id, &number(n), result("x")).await?;
        outcome(&fleet, waiting).await?;
        sleep(fleet.ticks(30)).await;
        let again = b.answer(&id, &number(n), result("y")).await?;
        if answering.elapsed() < fleet.ticks(50) {
            claim_eq!(again, Delivery::AlreadyEnded(OutcomeKind::Answered));
            told = true;
        }
        let forgotten = || async {
            let again = b.answer(&id, &number(n), result("y")).await?;
            Ok((again == Delivery::Unknown).then_some(()))
        };
        eventually("it is forgotten", fleet.patience(), forgotten).await?;
        claim!(
            answering.elapsed() >= fleet.ticks(60),
            "it was forgotten too early"
        );
        claim_eq!(a.cancel_request(&id, &number(n)).await?, None);
        if told {
            break;
        }
    }
    claim!(told, "{TOO_SLOW}");
    Ok(())
}

pub(crate) async fn another_session_knows_nothing_of_it(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let (mine, theirs) = (a.session().await?, a.session().await?);
    let waiting = a.ask(&mine, ask(&string("q"))).await?;
    for at in [&a, &b] {
        let foreign = at.answer(&theirs, &string("q"), result("forged")).await?;
        claim_eq!(foreign, Delivery::Unknown);
        claim_eq!(at.cancel_request(&theirs, &string("q")).await?, None);
        let never = at
            .answer(&mine, &string("never asked"), result("x"))
            .await?;
        claim_eq!(never, Delivery::Unknown);
    }
    b.answer(&mine, &string("q"), result("true")).await?;
    claim_eq!(outcome(&fleet, waiting).await?.1, Bytes::from("true"));
    Ok(())
}

pub(crate) async fn a_deadline_and_an_answer_never_both_win(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let timeout = fleet.ticks(20);
    let race = |n: i64, delay: Duration| {
        let (a, b, id, fleet) = (&a, &b, &id, &fleet);
        async move {
            let waiting = a.ask(id, ask(&number(n)).with_timeout(timeout)).await?;
            let answer = async {
                sleep(delay).await;
                b.answer(id, &number(n), result("x")).await
            };
            let (delivery, outcome) = futures::join!(answer, outcome(fleet, waiting));
            match delivery? {
                Delivery::Delivered => claim_eq!(outcome?.0, OutcomeKind::Answered),
                Delivery::AlreadyEnded(how) => {
                    claim_eq!(
                        (how, outcome?.0),
                        (OutcomeKind::TimedOut, OutcomeKind::TimedOut)
                    );
                }
                Delivery::Unknown => return Err(Failure::new("it ended just now")),
            }
            Ok(())
        }
    };
    let races = (0_u32..40).map(|n| {
        let spread = timeout / 10 * (n % 8) / 4;
        race(i64::from(n), timeout * 9 / 10 + spread)
    });
    for verdict in join_all(races).await {
        verdict?;
    }
    Ok(())
}

pub(crate) async fn numbers_and_strings_differ(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let ids = [
        number(1),
        string("1"),
        string("01"),
        string("1.0"),
        string("\"1\""),
        number(-1),
        string("-1"),
        number(i64::MAX),
        number(i64::MIN),
        string(""),
        string("null"),
        string("ä\u{0}'\"*:"),
        string(&"x".repeat(RpcId::MAX_BYTES)),
    ];
    let mut waiting = Vec::new();
    for (n, key) in ids.iter().enumerate() {
        waiting.push((n, a.ask(&id, ask(key)).await?));
    }
    for (n, key) in ids.iter().enumerate().rev() {
        let delivery = b.answer(&id, key, result(&n.to_string())).await?;
        claim_eq!(delivery, Delivery::Delivered, "{key:?}");
    }
    for (n, waiting) in waiting {
        let (_, payload) = outcome(&fleet, waiting).await?;
        claim_eq!(
            payload,
            Bytes::from(n.to_string()),
            "the answer to {:?}",
            ids[n]
        );
    }
    Ok(())
}

pub(crate) async fn it_ends_at_its_deadline(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let timeout = fleet.ticks(50);
    let asked = Instant::now();
    let waiting = a.ask(&id, ask(&number(1)).with_timeout(timeout)).await?;
    // Its waiter does not even look.
    let unwatched = a.ask(&id, ask(&number(2)).with_timeout(timeout)).await?;
    claim_eq!(outcome(&fleet, waiting).await?.0, OutcomeKind::TimedOut);
    let took = asked.elapsed();
    claim!(
        took >= timeout * 9 / 10,
        "after {took:?}, which is too early"
    );
    sleep(fleet.ticks(10)).await;
    for n in [1, 2] {
        let late = b.answer(&id, &number(n), result("late")).await?;
        claim_eq!(
            late,
            Delivery::AlreadyEnded(OutcomeKind::TimedOut),
            "request {n}"
        );
    }
    claim_eq!(outcome(&fleet, unwatched).await?.0, OutcomeKind::TimedOut);
    Ok(())
}

pub(crate) async fn there_always_is_a_deadline(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.request_timeout(fleet.ticks(40)))?;
    let a = fleet.instance().await?;
    let id = a.session().await?;
    let none = a.ask(&id, ask(&number(1))).await?;
    let long = ask(&number(2)).with_timeout(fleet.ticks(100_000));
    let long = a.ask(&id, long).await?;
    for waiting in [none, long] {
        claim_eq!(outcome(&fleet, waiting).await?.0, OutcomeKind::TimedOut);
    }
    Ok(())
}

pub(crate) async fn the_deadline_of_a_dead_owners_request_holds(fleet: Fleet) -> Verdict {
    // Nobody can know so soon that the owner is dead.
    let fleet = fleet.with(|limits| limits.lease(fleet.ticks(3000)))?;
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let timeout = fleet.ticks(30);
    let _waiting = a.ask(&id, ask(&number(1)).with_timeout(timeout)).await?;
    a.kill().await;
    sleep(timeout + fleet.ticks(10)).await;
    let late = b.answer(&id, &number(1), result("late")).await?;
    claim_eq!(late, Delivery::AlreadyEnded(OutcomeKind::TimedOut));
    Ok(())
}

pub(crate) async fn the_end_of_a_call_withdraws_its_requests(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let (one, two) = (a.call(&id, 1).await?, a.call(&id, 2).await?);
    let of =
        |n, writer: &crate::instance::Writer| ask(&number(n)).with_stream(writer.stream().clone());
    let mine = [
        a.ask(&id, of(1, &one)).await?,
        a.ask(&id, of(2, &one)).await?,
    ];
    let others = a.ask(&id, of(3, &two)).await?;
    let nobodys = a.ask(&id, ask(&number(4))).await?;
    one.finish(Some("done")).await?;
    a.withdraw(&id, one.stream()).await?;
    for n in [1, 2] {
        let late = b.answer(&id, &number(n), result("late")).await?;
        claim_eq!(late, Delivery::AlreadyEnded(OutcomeKind::Cancelled));
    }
    for waiting in mine {
        claim_eq!(outcome(&fleet, waiting).await?.0, OutcomeKind::Cancelled);
    }
    for (n, waiting) in [(3, others), (4, nobodys)] {
        let answered = b.answer(&id, &number(n), result("x")).await?;
        claim_eq!(
            answered,
            Delivery::Delivered,
            "request {n} is of another call"
        );
        claim_eq!(outcome(&fleet, waiting).await?.0, OutcomeKind::Answered);
    }
    Ok(())
}

pub(crate) async fn an_answer_arrives_within_the_catch_up_interval(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.catch_up(fleet.ticks(50)))?;
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    for n in 0..10 {
        let waiting = a.ask(&id, ask(&number(n))).await?;
        b.answer(&id, &number(n), result("x")).await?;
        let soon = fleet.limits().catch_up() + fleet.ticks(100);
        let outcome = within("an answer, announced or not", soon, waiting).await?;
        claim_eq!(outcome.kind, OutcomeKind::Answered);
    }
    Ok(())
}

pub(crate) async fn large_answers_cross(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let sizes = [0, 1, 7_999, 8_000, 8_001, 65_536, 1 << 20, 4 << 20];
    for (n, size) in (0..).zip(sizes) {
        let payload: Bytes = (0..size)
            .map(|at: u32| at.to_le_bytes()[at as usize % 4])
            .collect();
        let waiting = a.ask(&id, ask(&number(n))).await?;
        b.answer(&id, &number(n), Answer::Result(payload.clone()))
            .await?;
        let (how, found) = outcome(&fleet, waiting).await?;
        claim_eq!(
            (how, found.len()),
            (OutcomeKind::Answered, payload.len()),
            "{size} bytes"
        );
        claim!(found == payload, "{size} bytes came as others");
    }
    Ok(())
}

pub(crate) async fn an_answer_over_its_limit_leaves_it_pending(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.answer_bytes(100))?;
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let mut waiting = a.ask(&id, ask(&number(1))).await?;
    let large = result(&"x".repeat(101));
    claim_eq!(
        kind(b.answer(&id, &number(1), large).await),
        Some(ErrorKind::TooLarge)
    );
    never_within("an outcome", fleet.ticks(20), &mut waiting).await?;
    let fits = b.answer(&id, &number(1), result(&"x".repeat(100))).await?;
    claim_eq!(fits, Delivery::Delivered);
    claim_eq!(outcome(&fleet, waiting).await?.1.len(), 100);
    Ok(())
}

pub(crate) async fn the_same_key_replaces(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    for (n, at) in [&b, &a].into_iter().enumerate() {
        let key = string(&n.to_string());
        let first = a.ask(&id, ask(&key)).await?;
        let second = at.ask(&id, ask(&key)).await?;
        claim_eq!(outcome(&fleet, first).await?.0, OutcomeKind::Replaced);
        // The end of the first wait has not ended the second.
        let answered = b.answer(&id, &key, result("x")).await?;
        claim_eq!(answered, Delivery::Delivered);
        claim_eq!(outcome(&fleet, second).await?.0, OutcomeKind::Answered);
    }
    Ok(())
}

pub(crate) async fn a_repeat_with_the_same_token_does_not(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let request = ask(&number(1));
    let first = a.ask(&id, request.clone()).await?;
    let again = a.ask(&id, request).await?;
    b.answer(&id, &number(1), result("x")).await?;
    for waiting in [first, again] {
        claim_eq!(
            outcome(&fleet, waiting).await?,
            (OutcomeKind::Answered, Bytes::from("x")),
            "both are the same wait"
        );
    }
    // A late repeat of one that was replaced does not replace back.
    let former = ask(&number(2));
    let replaced = a.ask(&id, former.clone()).await?;
    let present = b.ask(&id, ask(&number(2))).await?;
    claim_eq!(outcome(&fleet, replaced).await?.0, OutcomeKind::Replaced);
    let late = a.ask(&id, former).await?;
    claim_eq!(outcome(&fleet, late).await?.0, OutcomeKind::Replaced);
    a.answer(&id, &number(2), result("x")).await?;
    claim_eq!(outcome(&fleet, present).await?.0, OutcomeKind::Answered);
    Ok(())
}

pub(crate) async fn pending_requests_are_bounded(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.pending_requests(3))?;
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let mut waiting = Vec::new();
    for n in 0..3 {
        waiting.push(a.ask(&id, ask(&number(n))).await?);
    }
    for at in [&a, &b] {
        let full = at.ask(&id, ask(&number(9))).await;
        claim_eq!(kind(full), Some(ErrorKind::Overloaded));
    }
    // In place of one that is there, there is room.
    let replacing = b.ask(&id, ask(&number(0))).await?;
    claim_eq!(
        outcome(&fleet, waiting.remove(0)).await?.0,
        OutcomeKind::Replaced
    );
    b.answer(&id, &number(1), result("x")).await?;
    waiting.push(b.ask(&id, ask(&number(3))).await?);
    let never = b.answer(&id, &number(9), result("x")).await?;
    claim_eq!(never, Delivery::Unknown, "what was refused is not there");
    drop(replacing);
    Ok(())
}
