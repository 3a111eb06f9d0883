//! Holds of the standalone stream, and where they began (E9).

use mcp_adapter_core::{
    InstanceId, Position, SessionKey, StreamId,
    storage::{Held, Hold, HoldStart, Holder, REMEMBERED, Storage, StreamState},
};

use super::{AnyStorage, Store, steps::*};
use crate::wait::{Failure, Verdict, claim, claim_eq, helper};

/// Number, former holder, cursor and state.
type Answer = (u64, Option<InstanceId>, Position, StreamState);

/// A change of the standalone stream's holder, which must be done.
#[track_caller]
fn change(
    store: &AnyStorage,
    session: SessionKey,
    me: InstanceId,
    hold: Hold,
) -> impl Future<Output = Step<Answer>> {
    helper(async move {
        let standalone = StreamId::standalone();
        match store.hold(&session, &standalone, me, hold).await? {
            Held::Done {
                number,
                former,
                cursor,
                state,
            } => Ok((number, former, cursor, state)),
            other => Err(Failure::new(format!(
                "`hold` with {hold:?} by {me:?} answered {other:?}, not `Done`"
            ))),
        }
    })
}

/// A session whose standalone stream has `count` events; their places.
async fn filled(a: &AnyStorage, count: u64) -> Step<(SessionKey, Vec<Position>)> {
    let session = session(a).await?;
    let mut places = Vec::new();
    for tag in 1..=count {
        places.push(stored(a, &shared(session, A, tag, "x")?).await?);
    }
    Ok((session, places))
}

async fn state_of(store: &AnyStorage, session: SessionKey) -> Step<StreamState> {
    Ok(page(store, &cursor(session, "standalone")?).await?.1)
}

pub(crate) async fn the_last_ones_are_remembered(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let (session, places) = filled(&a, 12).await?;
    let mut expected = Vec::new();
    let mut began = Position::START;
    for place in &places {
        let (number, _, cursor, state) = change(&b, session, B, Hold::Take).await?;
        claim_eq!(cursor, began, "where the former one let go");
        expected.push(HoldStart { number, began });
        let last = expected.len().saturating_sub(REMEMBERED);
        claim_eq!(state.holds, expected[last..], "with the answer");
        claim_eq!(
            state_of(&a, session).await?.holds,
            expected[last..],
            "as others see it"
        );
        let release = Hold::Release {
            number,
            cursor: *place,
        };
        for _ in 0..2 {
            change(&b, session, B, release).await?;
        }
        let state = state_of(&a, session).await?;
        claim_eq!(state.holder, None);
        claim_eq!(
            state.holds,
            expected[last..],
            "it was let go of, and is remembered"
        );
        began = *place;
    }
    // One that is taken from somebody begins at the top: that one did not let go.
    change(&b, session, B, Hold::Take).await?;
    let top = state_of(&a, session).await?.top;
    let (_, former, cursor, state) = change(&a, session, A, Hold::Take).await?;
    claim_eq!((former, cursor), (Some(B), top));
    claim_eq!(state.holds.last().map(|hold| hold.began), Some(top));
    claim_eq!(state.holds.len(), REMEMBERED);
    // A stream of a call has none.
    a.enter(&session, &ME, Some(&open("s")?)).await?;
    hold(&b, session, B, Hold::Take).await?;
    let found = page(&a, &super::steps::cursor(session, "s")?).await?.1;
    claim_eq!(found.holds, []);
    Ok(())
}

pub(crate) async fn who_takes_its_own_goes_on_with_it(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let (session, places) = filled(&a, 3).await?;
    let (first, _, start, _) = change(&b, session, B, Hold::Take).await?;
    stored(&a, &shared(session, A, 4, "x")?).await?;
    let (again, _, cursor, state) = change(&b, session, B, Hold::Take).await?;
    claim!(again > first, "under a higher number: {again}");
    claim_eq!(cursor, start, "where it began");
    let one = [HoldStart {
        number: again,
        began: start,
    }];
    claim_eq!(state.holds, one, "one hold, of its last number");
    // As a repeat of a step that names another holder it keeps its number.
    let from = Hold::TakeFrom(Some(Holder {
        instance: A,
        number: 77,
    }));
    for from in [Hold::TakeFrom(None), from] {
        let (number, _, cursor, state) = change(&b, session, B, from).await?;
        claim_eq!((number, cursor), (again, start), "a repeat, of {from:?}");
        claim_eq!(state.holds, one);
    }
    let cursor = places[1];
    let release = Hold::Release {
        number: again,
        cursor,
    };
    change(&b, session, B, release).await?;
    let (next, former, began, state) = change(&a, session, A, Hold::TakeFrom(None)).await?;
    claim_eq!((former, began), (None, cursor));
    let two = [
        one[0],
        HoldStart {
            number: next,
            began: cursor,
        },
    ];
    claim_eq!(state.holds, two);
    Ok(())
}

pub(crate) async fn one_can_be_continued_until_another_begins(store: Store) -> Verdict {
    let [a, b, c] = store.handles().await?;
    let (session, places) = filled(&a, 3).await?;
    let (first, ..) = change(&b, session, B, Hold::Take).await?;
    let cursor = places[0];
    let release = Hold::Release {
        number: first,
        cursor,
    };
    change(&b, session, B, release).await?;
    let (second, _, began, _) = change(&b, session, B, Hold::Take).await?;
    claim_eq!(began, cursor);
    // While it goes on: at another instance, and at its own.
    let past = Hold::Continue { number: first };
    let held = c.hold(&session, &StreamId::standalone(), C, past).await?;
    claim_eq!(
        held_is_past(&held),
        true,
        "another hold began since: {held:?}"
    );
    let going = Hold::Continue { number: second };
    let (third, former, began, state) = change(&c, session, C, going).await?;
    claim!(third > second, "under the next number: {third}");
    claim_eq!((former, began), (Some(B), cursor), "where it began stays");
    let holds = [
        HoldStart {
            number: first,
            began: Position::START,
        },
        HoldStart {
            number: third,
            began: cursor,
        },
    ];
    claim_eq!(state.holds, holds, "no further hold");
    claim_eq!(
        state.holder,
        Some(Holder {
            instance: C,
            number: third
        })
    );
    // Its repeat, and a late one of who held it before.
    let (number, _, again, _) = change(&c, session, C, going).await?;
    claim_eq!((number, again), (third, cursor), "its repeat");
    let late = b.hold(&session, &StreamId::standalone(), B, going).await?;
    claim!(held_is_past(&late), "its number is over: {late:?}");
    claim_eq!(
        state_of(&a, session).await?.holds,
        holds,
        "nothing was changed"
    );
    // After it was let go of: where is forgotten, and where it began is not.
    let release = Hold::Release {
        number: third,
        cursor: places[2],
    };
    change(&c, session, C, release).await?;
    let back = Hold::Continue { number: third };
    let (fourth, former, began, state) = change(&b, session, B, back).await?;
    claim_eq!((former, began), (None, cursor));
    claim_eq!(state.holds.len(), 2, "the same hold");
    claim_eq!(state.holds[1].number, fourth);
    // Another begins.
    let (_, former, began, _) = change(&a, session, A, Hold::Take).await?;
    claim_eq!((former, began), (Some(B), places[2]), "at the top");
    let over = Hold::Continue { number: fourth };
    let held = c.hold(&session, &StreamId::standalone(), C, over).await?;
    claim!(held_is_past(&held), "another hold began since: {held:?}");
    let holder = state_of(&b, session).await?.holder;
    claim_eq!(
        holder.map(|holder| holder.instance),
        Some(A),
        "it holds it still"
    );
    Ok(())
}

fn held_is_past(held: &Held) -> bool {
    matches!(held, Held::Past)
}

pub(crate) async fn a_release_lets_go_no_further_than_the_top(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let (session, places) = filled(&a, 3).await?;
    for beyond in [at(places[2].epoch, 1 << 40), at(places[2].epoch + 5, 1)] {
        let (number, ..) = change(&b, session, B, Hold::Take).await?;
        let release = Hold::Release {
            number,
            cursor: beyond,
        };
        change(&b, session, B, release).await?;
        let (number, _, began, state) = change(&b, session, B, Hold::Take).await?;
        claim_eq!(began, places[2], "`Release` named {beyond:?}");
        claim_eq!(state.holds.last().map(|hold| hold.began), Some(places[2]));
        let cursor = places[1];
        change(&b, session, B, Hold::Release { number, cursor }).await?;
    }
    // What comes next is of the next holder.
    let (_, _, began, _) = change(&b, session, B, Hold::Take).await?;
    claim_eq!(began, places[1]);
    Ok(())
}
