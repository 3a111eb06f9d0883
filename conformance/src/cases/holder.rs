//! Holders: E9.

use mcp_adapter_core::{ErrorKind, EventId, Position, SessionId, TailEvent, TailFrom};

use super::{counted, kind};
use crate::{
    fleet::Fleet,
    instance::{Following, Instance, start_of},
    wait::{Failure, Verdict, claim, claim_eq, never_within, within},
};

pub(crate) async fn a_resume_takes_the_stream_over_wherever_it_is_held(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let patience = fleet.patience();
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let mut holder = writer.attach();
    let first = writer.append("1").await?;
    claim_eq!(holder.text(patience).await?, "1");
    // Elsewhere, there again, back here, and here again.
    for (n, instance) in [&b, &b, &a, &a].into_iter().enumerate() {
        let mut next = instance.tail(&id, TailFrom::After(first.clone())).await?;
        let ended = holder.until_end(patience).await?;
        claim_eq!(
            ended.last().map(String::as_str),
            Some("end: Superseded"),
            "resume {n}"
        );
        writer.append(format!("after {n}")).await?;
        for seen in 0..=n {
            claim_eq!(next.text(patience).await?, format!("after {seen}"));
        }
        holder = next;
    }
    // The standalone stream is taken over as well, but its former tail stays: it
    // may be another client's.
    let mut get = b.get(&id).await?;
    let event = a.append(&id, "s").await?;
    claim_eq!(get.text(patience).await?, "s");
    let mut resumed = a
        .tail(&id, TailFrom::After(start_of(&event.stream)))
        .await?;
    claim_eq!(resumed.text(patience).await?, "s");
    a.append(&id, "t").await?;
    claim_eq!(resumed.text(patience).await?, "t");
    never_within("a tail that was displaced", fleet.ticks(30), get.next()).await?;
    writer.finish(None).await?;
    claim_eq!(holder.until_end(patience).await?, ["end: Finished"]);
    Ok(())
}

pub(crate) async fn a_further_get_is_silent_until_its_turn(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let patience = fleet.patience();
    let id = a.session().await?;
    a.append(&id, "before any").await?;
    let mut first = a.get(&id).await?;
    claim_eq!(first.text(patience).await?, "before any");
    let mut elsewhere = b.get(&id).await?;
    let mut here = a.get(&id).await?;
    b.append(&id, "one").await?;
    claim_eq!(first.text(patience).await?, "one");
    let silence = fleet.ticks(30);
    let (elsewhere_is, here_is) = futures::join!(
        never_within("a GET whose turn it is not", silence, elsewhere.next()),
        never_within("a GET whose turn it is not", silence, here.next())
    );
    elsewhere_is?;
    here_is?;
    drop(first);
    drop(here);
    a.append(&id, "two").await?;
    claim_eq!(
        elsewhere.text(patience).await?,
        "two",
        "it goes on where the first let go"
    );
    let mut last = a.get(&id).await?;
    drop(elsewhere);
    b.append(&id, "three").await?;
    claim_eq!(last.text(patience).await?, "three");
    Ok(())
}

pub(crate) async fn a_get_is_told_where_it_begins(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let patience = fleet.patience();
    let id = a.session().await?;
    let mut first = a.get(&id).await?;
    // Before anything is stored.
    let (start, number) = first.begins(patience).await?;
    claim!(start.stream.is_standalone(), "{start}");
    let one = b.append(&id, "1").await?;
    claim_eq!(first.text(patience).await?, "1");
    let mut second = b.get(&id).await?;
    drop(first);
    let (began, next) = second.begins(patience).await?;
    claim_eq!(began, one);
    claim!(next > number, "{next} after {number}");
    let two = a.append(&id, "2").await?;
    claim_eq!(second.text(patience).await?, "2");
    // Where it began is where its client can come back to.
    let back = |after: &EventId, hold| TailFrom::Returning {
        after: after.position,
        hold,
    };
    let mut resumed = a.tail(&id, back(&one, Some(next))).await?;
    claim_eq!(resumed.text(patience).await?, "2");
    // That of the first one has had all, though it names the same event.
    let mut other = b.tail(&id, back(&one, None)).await?;
    let mut again = a.tail(&id, back(&two, None)).await?;
    a.append(&id, "3").await?;
    claim_eq!(again.text(patience).await?, "3");
    never_within("a GET whose turn it is not", fleet.ticks(30), other.next()).await?;
    Ok(())
}

pub(crate) async fn waiting_gets_are_bounded(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.waiting_streams(2))?;
    let a = fleet.instance().await?;
    let id = a.session().await?;
    let mut gets = Vec::new();
    for _ in 0..3 {
        gets.push(a.get(&id).await?);
    }
    for _ in 0..3 {
        claim_eq!(kind(a.get(&id).await), Some(ErrorKind::Overloaded));
    }
    // Another session is not concerned, and a place that is free can be taken.
    let other = a.session().await?;
    a.get(&other).await?;
    gets.pop();
    gets.push(a.get(&id).await?);
    Ok(())
}

pub(crate) async fn the_place_of_a_dead_holder_is_taken(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let mut held = b.get(&id).await?;
    a.append(&id, "1").await?;
    claim_eq!(held.text(fleet.patience()).await?, "1");
    let mut waits = a.get(&id).await?;
    never_within("a GET whose turn it is not", fleet.ticks(20), waits.next()).await?;
    b.kill().await;
    let append = async {
        loop {
            if let Err(error) = a.append(&id, "2").await {
                return Err::<(), _>(Failure::from(error));
            }
            tokio::time::sleep(fleet.ticks(10)).await;
        }
    };
    let heard = tokio::select! {
        heard = waits.text(fleet.patience()) => heard?,
        failed = append => return failed,
    };
    claim_eq!(
        heard,
        "2",
        "the first event after the place of the dead is taken"
    );
    Ok(())
}

/// A client that listens as an `EventSource` does: it comes back with the last id that
/// it has read.
struct Listener {
    tail: Following,
    /// What has been told to it that it can come back with.
    last: Option<(Position, Option<u64>)>,
    /// How often it asked.
    gets: u32,
    seen: Vec<String>,
}

impl Listener {
    async fn start(at: &Instance, id: &SessionId) -> Result<Self, Failure> {
        Ok(Self {
            tail: at.get(id).await?,
            last: None,
            gets: 1,
            seen: Vec::new(),
        })
    }

    /// Asks again, here; the former tail, whose socket nobody reads any more.
    async fn come_back(&mut self, at: &Instance, id: &SessionId) -> Result<Following, Failure> {
        let from = match self.last {
            Some((after, hold)) => TailFrom::Returning { after, hold },
            None => TailFrom::Standalone,
        };
        self.gets += 1;
        let next = at.tail(id, from).await?;
        Ok(std::mem::replace(&mut self.tail, next))
    }

    /// Reads up to the next event; `false` at the end of the tail.
    async fn read(&mut self) -> bool {
        loop {
            match self.tail.item().await {
                Some(TailEvent::Begins { after, hold }) => {
                    self.last = Some((after.position, Some(hold)));
                }
                Some(TailEvent::Event { id, data, .. }) => {
                    self.last = Some((id.position, None));
                    self.seen.push(String::from_utf8_lossy(&data).into_owned());
                    return true;
                }
                Some(TailEvent::End(_)) | None => return false,
                Some(other) => self.seen.push(format!("{other:?}")),
            }
        }
    }
}

/// Until one of them has read one more event. Whose tail ends comes back.
async fn one_reads(
    listeners: &mut [Listener; 2],
    at: [&Instance; 2],
    id: &SessionId,
) -> Result<(), Failure> {
    loop {
        let [x, y] = listeners;
        let (who, read) = tokio::select! {
            read = x.read() => (0, read),
            read = y.read() => (1, read),
        };
        if read {
            return Ok(());
        }
        drop(listeners[who].come_back(at[who], id).await?);
    }
}

pub(crate) async fn two_listeners_that_come_back_come_to_rest(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let patience = fleet.patience();
    let id = a.session().await?;
    let mut listeners = [
        Listener::start(&a, &id).await?,
        Listener::start(&b, &id).await?,
    ];
    // Sockets that the server takes to be alive.
    let mut dead = Vec::new();
    let mut breaks = 0;
    for n in 1..=12 {
        // Whose socket breaks, while the event is under way, and whether the server
        // hears of it.
        let (breaking, heard): (&[usize], _) = match n {
            3 => (&[0], false),
            5 => (&[1], false),
            7 => (&[0, 1], false),
            9 => (&[0], true),
            11 => (&[0, 1], true),
            _ => (&[], false),
        };
        let writer = if n % 2 == 0 { &a } else { &b };
        writer.append(&id, n.to_string()).await?;
        for who in breaking {
            let at = [&a, &b][(n + who) % 2];
            let former = listeners[*who].come_back(at, &id).await?;
            breaks += 1;
            if !heard {
                dead.push(former);
            }
        }
        let reads = one_reads(&mut listeners, [&a, &b], &id);
        within("an event at one of two listeners", patience, reads).await??;
    }
    // Nobody asks any more, and nothing comes a second time.
    let gets = listeners.iter().map(|listener| listener.gets).sum::<u32>();
    let [x, y] = &mut listeners;
    let more = async {
        tokio::select! {
            read = x.read() => read,
            read = y.read() => read,
        }
    };
    never_within("an event or an end at a listener", fleet.ticks(60), more).await?;
    claim!(
        gets <= 2 + breaks + 3,
        "two listeners whose sockets broke {breaks} times asked {gets} times"
    );
    let mut seen: Vec<_> = listeners
        .iter()
        .flat_map(|listener| listener.seen.clone())
        .collect();
    seen.sort_by_key(|seen| seen.parse::<u32>().unwrap_or(0));
    claim_eq!(
        seen,
        counted(1, 12, None),
        "each event at one of them, once"
    );
    Ok(())
}
