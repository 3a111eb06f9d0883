//! Sessions: S1, S2, S4, S6.

use std::collections::BTreeSet;

use futures::future::join_all;
use mcp_adapter_core::{
    Answer, Delivery, ErrorKind, NewClientRequest, OutcomeKind, Principal, Revocation, SessionId,
    SessionRecord, TailFrom,
};
use serde_json::{Value, json};

use super::{NOT_FOUND, fresh_stats, kind, number, record_of, string};
use crate::{
    fleet::Fleet,
    instance::{Instance, record, start_of},
    wait::{Failure, Verdict, claim, claim_eq, eventually, within},
};

pub(crate) async fn a_live_id_is_created_once(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = SessionId::generate();
    a.create(&id, record()).await?;
    for instance in [&a, &b] {
        let other = SessionRecord {
            protocol: "another".into(),
            ..record()
        };
        claim_eq!(
            kind(instance.create(&id, other).await),
            Some(ErrorKind::AlreadyExists)
        );
    }
    claim_eq!(
        *b.look(&id, None).await?.record,
        record(),
        "the first stays"
    );
    a.delete(&id, None).await?;
    b.create(&id, record()).await?;
    Ok(())
}

pub(crate) async fn of_concurrent_creates_one_wins(fleet: Fleet) -> Verdict {
    let instances: [Instance; 3] = fleet.instances().await?;
    for _ in 0..10 {
        let id = SessionId::generate();
        let creates = (0..9).map(|n| {
            let mut own = record();
            own.extra.insert("creator".into(), n.into());
            let (instance, id) = (&instances[n % 3], &id);
            async move { (n, instance.create(id, own).await) }
        });
        let mut winners = Vec::new();
        for (n, created) in join_all(creates).await {
            match created {
                Ok(_) => winners.push(n),
                Err(error) => claim_eq!(error.kind(), ErrorKind::AlreadyExists),
            }
        }
        claim_eq!(winners.len(), 1, "sessions created under one id");
        let stored = instances[0].look(&id, None).await?.record;
        claim_eq!(stored.extra.get("creator"), Some(&Value::from(winners[0])));
    }
    Ok(())
}

pub(crate) async fn ids_that_look_alike_are_different_sessions(fleet: Fleet) -> Verdict {
    let a = fleet.instance().await?;
    let longest = "x".repeat(SessionId::MAX_BYTES);
    let ids = [
        "a",
        "A",
        "a*",
        "a%",
        "a_",
        "a'",
        "a\"",
        "a\\",
        "a;--",
        "a:b",
        "a{b}",
        "a{c}",
        "a/../b",
        "$1",
        "?",
        "[a-z]",
        &longest,
        &longest[1..],
    ];
    for (n, id) in ids.iter().enumerate() {
        let mut own = record();
        own.extra.insert("n".into(), n.into());
        a.create(&id.parse()?, own).await?;
    }
    for (n, id) in ids.iter().enumerate() {
        let found = a.look(&id.parse()?, None).await?.record;
        claim_eq!(found.extra.get("n"), Some(&Value::from(n)), "session {id}");
    }
    a.delete(&"a*".parse()?, None).await?;
    a.delete(&"a%".parse()?, None).await?;
    for id in ids.iter().filter(|id| !["a*", "a%"].contains(*id)) {
        a.look(&id.parse()?, None).await?;
    }
    for bad in ["", "a b", "a\n", "ä", "\u{7f}", "\0", &"x".repeat(129)] {
        claim!(
            bad.parse::<SessionId>().is_err(),
            "{bad:?} is no session id"
        );
    }
    let ids: BTreeSet<_> = (0..1000)
        .map(|_| SessionId::generate().as_str().to_owned())
        .collect();
    claim_eq!(ids.len(), 1000, "generated ids");
    // 128 bits in an alphabet of 64 are 22 characters.
    claim!(ids.iter().all(|id| id.len() >= 22), "ids are long enough");
    Ok(())
}

fn full_record() -> SessionRecord {
    let mut full = record_of(&Principal::new(
        "https://issuer.example|Zoë \u{1F600} 'quoted' \\ ",
    ));
    full.client = json!({"name": "Клиент", "version": "1.0", "null": null, "empty": {}});
    full.capabilities = json!({"elicitation": {"form": {}}, "roots": {"listChanged": true}});
    full.initialized = true;
    full.log_level = Some("warning".into());
    full.subscriptions = ["file:///a b", "file:///ä", "x:%00"].map(Into::into).into();
    full.state = json!({"n": [1, -1, 0.1, 1e300, u64::MAX, i64::MIN], "text": "\u{0}\u{7f}\"\\\n"});
    full.extra
        .insert("from/elsewhere".into(), json!([[[]], {"a": null}]));
    // Short names that a stored format could use for itself.
    for name in ["v", "version", "format", "id", "_"] {
        full.extra.insert(name.into(), "ours".into());
    }
    full
}

pub(crate) async fn the_record_round_trips_exactly(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = SessionId::generate();
    let full = full_record();
    let principal = full.principal.as_ref();
    let created = a.create(&id, full.clone()).await?;
    let found = b.look(&id, principal).await?;
    claim_eq!(
        serde_json::to_value(&found.record).ok(),
        serde_json::to_value(&full).ok()
    );
    claim_eq!(found.revision, created.revision);

    let mut next = full.clone();
    next.log_level = None;
    next.subscriptions.clear();
    next.state = Value::String("x".repeat(mcp_adapter_core::MAX_STATE_BYTES - 2));
    let revision = b.update(&id, found.revision, next.clone()).await?;
    let found = a.look(&id, principal).await?;
    claim!(*found.record == next, "the updated record is another one");
    claim_eq!(found.revision, revision);
    Ok(())
}

pub(crate) async fn an_update_is_a_compare_and_set(fleet: Fleet) -> Verdict {
    let instances: [Instance; 3] = fleet.instances().await?;
    let id = instances[0].session().await?;
    let mut revision = instances[0].look(&id, None).await?.revision;
    for round in 0..10 {
        let updates = (0..6).map(|n| {
            let mut own = record();
            own.state = json!([round, n]);
            let (instance, id) = (&instances[n % 3], &id);
            async move { (n, instance.update(id, revision, own).await) }
        });
        let mut won = Vec::new();
        for (n, updated) in join_all(updates).await {
            match updated {
                Ok(next) => won.push((n, next)),
                Err(error) => claim_eq!(error.kind(), ErrorKind::Conflict),
            }
        }
        claim_eq!(won.len(), 1, "updates of one revision that were done");
        let (winner, next) = won[0];
        claim!(next > revision, "the revision rises: {revision}, {next}");
        let found = instances[round % 3].look(&id, None).await?;
        claim_eq!(found.record.state, json!([round, winner]));
        claim_eq!(found.revision, next);
        let stale = instances[0].update(&id, revision, record()).await;
        claim_eq!(kind(stale), Some(ErrorKind::Conflict));
        revision = next;
    }
    Ok(())
}

pub(crate) async fn increments_at_two_instances_are_all_counted(fleet: Fleet) -> Verdict {
    const INCREMENTS: u64 = 60;
    let instances: [_; 2] = fleet.instances().await?;
    let id = SessionId::generate();
    let mut first = record();
    first.state = json!({"count": 0});
    instances[0].create(&id, first).await?;
    // Two that read the same count write the same record: one of them wins.
    let increment = |n: usize| {
        let (instance, id) = (&instances[n % 2], &id);
        async move {
            loop {
                let found = instance.look(id, None).await?;
                let mut next = (*found.record).clone();
                let count = next.state["count"].as_u64().unwrap_or(0);
                next.state = json!({"count": count + 1});
                match instance.update(id, found.revision, next).await {
                    Ok(revision) => return Ok(revision),
                    Err(error) if error.kind() == ErrorKind::Conflict => {}
                    Err(error) => return Err(Failure::from(error)),
                }
            }
        }
    };
    let increments = usize::try_from(INCREMENTS).unwrap_or(0);
    let all = futures::future::try_join_all((0..increments).map(increment));
    let revisions = within("all increments", fleet.patience() * 6, all).await??;
    let found = instances[1].look(&id, None).await?;
    claim_eq!(
        found.record.state["count"].as_u64(),
        Some(INCREMENTS),
        "increments by compare-and-set at two instances"
    );
    let distinct: BTreeSet<_> = revisions.into_iter().collect();
    claim_eq!(
        distinct.len(),
        increments,
        "each made a revision of its own"
    );
    Ok(())
}

pub(crate) async fn a_state_over_its_limit_changes_nothing(fleet: Fleet) -> Verdict {
    let a = fleet.instance().await?;
    let id = a.session().await?;
    let found = a.look(&id, None).await?;
    let mut large = record();
    large.state = Value::String("x".repeat(mcp_adapter_core::MAX_STATE_BYTES));
    let updated = a.update(&id, found.revision, large.clone()).await;
    claim_eq!(kind(updated), Some(ErrorKind::TooLarge));
    let again = a.look(&id, None).await?;
    claim_eq!(
        (again.revision, again.record),
        (found.revision, found.record)
    );
    let other = SessionId::generate();
    claim_eq!(
        kind(a.create(&other, large).await),
        Some(ErrorKind::TooLarge)
    );
    claim_eq!(kind(a.look(&other, None).await), NOT_FOUND);
    Ok(())
}

pub(crate) async fn the_principal_cannot_change(fleet: Fleet) -> Verdict {
    let a = fleet.instance().await?;
    let (alice, mallory) = (Principal::new("alice"), Principal::new("mallory"));
    let id = SessionId::generate();
    let created = a.create(&id, record_of(&alice)).await?;
    // Whether it is refused or only has no effect is the adapter's choice.
    let _ = a.update(&id, created.revision, record_of(&mallory)).await;
    claim_eq!(kind(a.look(&id, Some(&mallory)).await), NOT_FOUND);
    let found = a.look(&id, Some(&alice)).await?;
    claim_eq!(
        found.record.principal,
        Some(alice),
        "whose session it says it is"
    );
    Ok(())
}

pub(crate) async fn only_its_principal_finds_a_session(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let (alice, mallory) = (Principal::new("alice"), Principal::new("mallory"));
    let (owned, free) = (SessionId::generate(), SessionId::generate());
    a.create(&owned, record_of(&alice)).await?;
    a.create(&free, record()).await?;
    let strangers = [
        (&owned, Some(&mallory)),
        (&owned, None),
        (&free, Some(&alice)),
        (&free, Some(&mallory)),
    ];
    let missing = SessionId::generate();
    let absent = a
        .look(&missing, None)
        .await
        .err()
        .map(|error| error.to_string());
    for (id, principal) in strangers {
        for instance in [&a, &b] {
            let found = instance.look(id, principal).await;
            let text = found.as_ref().err().map(ToString::to_string);
            claim_eq!(kind(found), NOT_FOUND);
            claim_eq!(text, absent, "it reads as if it were not there");
            claim_eq!(
                kind(instance.open(id, principal, &number(1)).await),
                NOT_FOUND
            );
            claim!(
                !instance.delete(id, principal).await?,
                "a stranger deletes nothing"
            );
        }
    }
    claim_eq!(
        fresh_stats(&fleet, &a).await?.streams.value(),
        0,
        "a stranger opens no stream"
    );
    b.look(&owned, Some(&alice)).await?;
    b.look(&free, None).await?;
    Ok(())
}

pub(crate) async fn delete_takes_everything_everywhere(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let alice = Principal::new("alice");
    let id = SessionId::generate();
    a.create(&id, record_of(&alice)).await?;
    let writer = a.open(&id, Some(&alice), &number(1)).await?;
    let event = writer.append("1").await?;
    a.append(&id, "shared").await?;
    let waiting = a.ask(&id, NewClientRequest::new(number(1))).await?;
    claim!(b.delete(&id, Some(&alice)).await?, "there was a session");
    // From its answer on nobody finds anything, here or there.
    for instance in [&a, &b] {
        claim_eq!(kind(instance.look(&id, Some(&alice)).await), NOT_FOUND);
        claim_eq!(
            kind(instance.open(&id, Some(&alice), &number(2)).await),
            NOT_FOUND
        );
        claim_eq!(kind(instance.append(&id, "x").await), NOT_FOUND);
        claim_eq!(
            kind(instance.update(&id, 1, record_of(&alice)).await),
            NOT_FOUND
        );
        claim_eq!(kind(instance.get(&id).await), NOT_FOUND);
        let after = TailFrom::After(event.clone());
        claim_eq!(kind(instance.tail(&id, after).await), NOT_FOUND);
        claim_eq!(kind(instance.replay(&id, &event, 10).await), NOT_FOUND);
        claim_eq!(kind(instance.cancel_call(&id, &number(1)).await), NOT_FOUND);
        let asked = instance.ask(&id, NewClientRequest::new(number(2))).await;
        claim_eq!(kind(asked), NOT_FOUND);
        let answered = instance
            .answer(&id, &number(1), Answer::Result("x".into()))
            .await?;
        claim_eq!(answered, Delivery::Unknown);
        claim!(
            !instance.delete(&id, Some(&alice)).await?,
            "deleting twice is nothing"
        );
    }
    let outcome = within("the outcome", fleet.patience(), waiting).await?;
    claim_eq!(outcome.kind, OutcomeKind::SessionEnded);
    Ok(())
}

pub(crate) async fn delete_ends_what_runs_and_waits(fleet: Fleet) -> Verdict {
    let [a, b, c] = fleet.instances().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let mut own = writer.attach();
    let followed = a.call(&id, 2).await?;
    let first = followed.append("1").await?;
    let mut tail = b.tail(&id, TailFrom::After(first)).await?;
    let mut get = c.get(&id).await?;
    let waiting = b.ask(&id, NewClientRequest::new(string("q"))).await?;
    claim!(c.delete(&id, None).await?, "there was a session");
    let patience = fleet.patience();
    for tail in [&mut own, &mut tail, &mut get] {
        claim_eq!(tail.until_end(patience).await?, ["end: SessionEnded"]);
    }
    for writer in [&writer, &followed] {
        let why = within("the writer is told", patience, writer.revoked()).await?;
        claim_eq!(why, Revocation::SessionEnded);
    }
    let outcome = within("the outcome", patience, waiting).await?;
    claim_eq!(outcome.kind, OutcomeKind::SessionEnded);
    Ok(())
}

pub(crate) async fn no_write_brings_a_session_back(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let abandoned = a.call(&id, 2).await?;
    let event = writer.append("1").await?;
    let waiting = a.ask(&id, NewClientRequest::new(number(1))).await?;
    let mut tail = b.get(&id).await?;
    b.delete(&id, None).await?;
    claim_eq!(kind(writer.append("2").await), NOT_FOUND);
    claim_eq!(kind(writer.finish(Some("3")).await), NOT_FOUND);
    claim_eq!(kind(b.append(&id, "4").await), NOT_FOUND);
    claim_eq!(kind(a.update(&id, 1, record()).await), NOT_FOUND);
    // What others let go of late must not write either.
    drop(abandoned);
    drop(waiting);
    tail.until_end(fleet.patience()).await?;
    drop(tail);
    // The same id again is another session, with nothing of the former one.
    claim_eq!(kind(a.look(&id, None).await), NOT_FOUND);
    b.create(&id, record()).await?;
    claim_eq!(
        b.replay_all(&id, &event.stream)
            .await
            .err()
            .map(|e| e.kind()),
        Some(ErrorKind::StreamGone)
    );
    claim_eq!(b.cancel_request(&id, &number(1)).await?, None);
    b.append(&id, "new").await?;
    let mut tail = a.get(&id).await?;
    claim_eq!(tail.text(fleet.patience()).await?, "new");
    Ok(())
}

pub(crate) async fn appends_that_race_a_delete_leave_nothing(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    for _ in 0..10 {
        let id = a.session().await?;
        let writer = a.call(&id, 1).await?;
        let owned = (0..20).map(|n| writer.append(n.to_string()));
        let owned = join_all(owned);
        let shared = join_all((0..20).map(|n| b.append(&id, n.to_string())));
        let (owned, shared, deleted) = futures::join!(owned, shared, b.delete(&id, None));
        claim!(deleted?, "there was a session");
        for appended in owned.into_iter().chain(shared) {
            // Each came before or after it; none came in between.
            if let Err(error) = appended {
                claim_eq!(error.kind(), ErrorKind::SessionNotFound);
            }
        }
        claim_eq!(kind(a.look(&id, None).await), NOT_FOUND);
        claim_eq!(kind(b.look(&id, None).await), NOT_FOUND);
    }
    let empty = || async {
        let stats = a.stats().await?;
        let left = [stats.sessions, stats.streams, stats.events, stats.bytes];
        Ok(left.iter().all(|count| count.value() == 0).then_some(()))
    };
    eventually("nothing is stored", fleet.patience(), empty).await
}

pub(crate) async fn stats_count_what_is_stored(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let counts = |instance: &Instance| {
        let (instance, fleet) = (instance.clone(), fleet.clone());
        async move {
            let stats = fresh_stats(&fleet, &instance).await?;
            let counts = [
                stats.sessions,
                stats.streams,
                stats.events,
                stats.bytes,
                stats.pending_requests,
            ];
            Ok::<_, Failure>(counts.map(mcp_adapter_core::Count::value))
        }
    };
    claim_eq!(counts(&a).await?, [0; 5], "an empty store");
    let [one, two, three] = [a.session().await?, a.session().await?, b.session().await?];
    let writer = a.call(&one, 1).await?;
    writer.append("12345").await?;
    writer.finish(Some("678")).await?;
    let open = b.call(&one, 2).await?;
    b.append(&two, "90").await?;
    let waiting = a.ask(&three, NewClientRequest::new(number(1))).await?;
    let answered = a.ask(&three, NewClientRequest::new(number(2))).await?;
    b.answer(&three, &number(2), Answer::Result("x".into()))
        .await?;
    within("the answer", fleet.patience(), answered).await?;
    let expect = async |expected: [u64; 5], when: &str| {
        let (a, counts) = (&a, &counts);
        let probe = || async {
            let found = counts(a).await?;
            Ok((found == expected).then_some(()))
        };
        match eventually(when, fleet.patience() / 3, probe).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Failure::new(format!(
                "{when}: found {:?}, expected {expected:?}",
                counts(a).await?
            ))),
        }
    };
    // Sessions, streams with finished and standalone ones, events, bytes, waits.
    expect([3, 3, 3, 10, 1], "with all of it").await?;
    let replay = b.replay(&one, &start_of(open.stream()), 1).await?;
    claim!(replay.events.is_empty(), "reading counts nothing");
    a.delete(&one, None).await?;
    expect([2, 1, 1, 2, 1], "without the first").await?;
    a.delete(&two, None).await?;
    a.delete(&three, None).await?;
    expect([0; 5], "without any").await?;
    within("the outcome", fleet.patience(), waiting).await?;
    Ok(())
}
