//! Appends and reads.

use bytes::Bytes;
use mcp_adapter_core::{
    Position, PrincipalKey, Result, WaiterToken,
    storage::{Append, Appended, Cursor, NewSession, Place, Read, Storage, StoredEvent},
};

use super::{Careless, PAUSE};
use crate::defects::{Rule, Torn};

impl<S: Storage> Careless<S> {
    /// What the backend makes of an entry.
    fn spoiled(&self, append: &Append, alone: bool) -> Append {
        let mut append = append.clone();
        if self.misses(Rule::BatchIsTrimmed) && !alone {
            append.keep_events = usize::MAX;
            append.trim = None;
        }
        match &mut append.place {
            Place::Shared { tag, .. } => {
                if self.misses(Rule::TagsAreWide) {
                    *tag &= u64::from(u32::MAX);
                }
                if self.misses(Rule::TagsOutliveRestart) {
                    *tag += self.restarts << 40;
                }
            }
            Place::Owned { position, .. } if self.misses(Rule::PlacesAreWide) => {
                position.seq &= u64::from(u32::MAX);
            }
            Place::Owned { .. } => {}
        }
        append
    }

    pub(super) async fn append_all(&self, batch: &[Append]) -> Result<Vec<Appended>> {
        let mut answers = Vec::new();
        for (n, append) in batch.iter().enumerate() {
            let mut answer = self.append_one(append, batch.len() == 1).await?;
            let again = batch[..n].iter().any(|former| {
                (former.session, &former.stream, former.place)
                    == (append.session, &append.stream, append.place)
            });
            if let (true, true, Appended::Stored { position, .. }) =
                (again, self.misses(Rule::BatchSeesItself), &mut answer)
            {
                position.seq += 1;
            }
            answers.push(answer);
        }
        if self.misses(Rule::HolesStay) {
            self.pack(batch);
        }
        Ok(answers)
    }

    /// Events of one stream with a hole between are one record, of the last.
    fn pack(&self, batch: &[Append]) {
        let mut places: Vec<_> = batch
            .iter()
            .filter_map(|append| match append.place {
                Place::Owned { position, .. } if append.event.is_some() => {
                    Some((Self::key_of(append), position))
                }
                _ => None,
            })
            .collect();
        let hole = places.windows(2).any(|two| {
            let (former, next) = (two[0].1, two[1].1);
            two[0].0 == two[1].0 && former.epoch == next.epoch && next.seq > former.seq + 1
        });
        if let (true, Some(last)) = (hole, places.pop()) {
            self.ledger.with(|book| {
                book.gone.extend(places);
                book.undecodable.insert(last);
            });
        }
    }

    async fn append_one(&self, append: &Append, alone: bool) -> Result<Appended> {
        let key = Self::key_of(append);
        let name = (key.clone(), format!("{:?}", append.place));
        if self.misses(Rule::RepeatsSlide)
            && let Some(known) = self.ledger.with(|book| book.answers.get(&name).copied())
            && self.exists(append.session).await?
        {
            return Ok(known);
        }
        let append = self.spoiled(append, alone);
        self.ledger.with(|book| book.known.insert(key.clone()));
        let mut answer = self
            .inner
            .append(std::slice::from_ref(&append))
            .await?
            .remove(0);
        if self.misses(Rule::IsAtomic(Torn::Delete)) && Self::is_stored(&answer) {
            tokio::time::sleep(PAUSE).await;
            if !self.exists(append.session).await? {
                self.write_back(&append).await?;
            }
        }
        let bytes = append
            .event
            .as_ref()
            .map_or(0, |event| event.data.len() as u64);
        match &mut answer {
            Appended::Stored {
                position,
                repeat,
                usage,
                ..
            } => {
                if !*repeat {
                    self.remember(&append, *position);
                }
                if self.misses(Rule::RefusedIsNotCounted) {
                    let refused = self
                        .ledger
                        .with(|book| book.refused.get(&append.session).copied());
                    usage.session_bytes += refused.unwrap_or(0);
                }
                if *repeat && self.misses(Rule::RepeatsFinishNothing) && append.event.is_some() {
                    self.finish_again(&append).await?;
                }
                let shared = append.stream.is_standalone();
                if *repeat && shared && self.misses(Rule::EvictedTagsNameNothing) {
                    *position = self.newest_if_evicted(&append, *position).await?;
                }
                if shared && self.misses(Rule::IdsAreIssuedOnce) {
                    position.epoch = 1;
                }
                *repeat &= !self.misses(Rule::RepeatIsTold);
                self.ledger.with(|book| book.answers.insert(name, answer));
            }
            Appended::NoSession => {}
            refused => {
                let ended = self
                    .state_of(&key)
                    .await?
                    .is_some_and(|state| state.end.is_some());
                let shared = matches!(append.place, Place::Shared { .. });
                if ended && shared && self.misses(Rule::SharedIsForNoEndedCall) {
                    *refused = Appended::Finished;
                }
                self.ledger
                    .with(|book| *book.refused.entry(append.session).or_default() += bytes);
                if self.misses(Rule::RefusedSlidesNothing) {
                    let touch = Cursor {
                        touch: true,
                        ..Cursor::state_of(append.session, append.stream.clone())
                    };
                    self.inner.read(&[touch]).await?;
                }
            }
        }
        Ok(answer)
    }

    /// The session as it was read before, with its event.
    async fn write_back(&self, append: &Append) -> Result<()> {
        let again = NewSession {
            session: append.session,
            principal: PrincipalKey::ANONYMOUS,
            record: Bytes::from_static(b"{\"v\":1,\"protocol\":\"\"}"),
            idle_ttl: std::time::Duration::from_secs(60),
            absolute_ttl: None,
            creator: WaiterToken::generate(),
        };
        self.inner.create(&again).await.map(drop)
    }

    fn remember(&self, append: &Append, position: Position) {
        let key = Self::key_of(append);
        self.ledger.with(|book| {
            if append.finish.is_some() {
                book.finished.insert(key.clone());
            }
            if let Some(event) = &append.event {
                book.lives.entry(key).or_default().push(StoredEvent {
                    position,
                    prev: event.prev,
                    data: Some(event.data.clone()),
                });
            }
        });
    }

    async fn finish_again(&self, append: &Append) -> Result<()> {
        let state = self.state_of(&Self::key_of(append)).await?;
        if let (Some(state), Place::Owned { owner, .. }, true) =
            (state, append.place, append.finish.is_some())
        {
            let finish = Append {
                event: None,
                place: Place::Owned {
                    owner,
                    position: state.top,
                },
                ..append.clone()
            };
            self.inner.append(&[finish]).await?;
        }
        Ok(())
    }

    async fn newest_if_evicted(&self, append: &Append, position: Position) -> Result<Position> {
        let read = self.page(&Self::key_of(append), Position::START).await?;
        let Read::Page { events, state } = read else {
            return Ok(position);
        };
        let kept = events.iter().any(|event| event.position == position);
        Ok(if kept { position } else { state.top })
    }

    pub(super) fn spoil_page(&self, cursor: &Cursor, read: &mut Read) {
        let key = (cursor.session, cursor.stream.clone());
        let Read::Page { events, state } = read else {
            return;
        };
        self.ledger.with(|book| {
            events.retain(|event| !book.gone.contains(&(key.clone(), event.position)));
            for event in &mut *events {
                if book.undecodable.contains(&(key.clone(), event.position)) {
                    event.data = None;
                }
            }
            if self.misses(Rule::EventsGoWithTheirSession) && cursor.max_events > 0 {
                let lives = book.lives.get(&key).cloned().unwrap_or_default();
                let old = lives.into_iter().filter(|old| {
                    old.position > cursor.after && events.iter().all(|event| event.data != old.data)
                });
                events.extend(old.collect::<Vec<_>>());
                events.sort_by_key(|event| event.position);
            }
            if book.unmarked.contains(&key) {
                state.cancelled = false;
            }
        });
        if self.misses(Rule::MarksOutliveTheEnd) && state.end.is_some() {
            state.cancelled = false;
        }
        if self.misses(Rule::HoldsAreRemembered) {
            forget(state);
        }
        if self.misses(Rule::IdsAreIssuedOnce) && cursor.stream.is_standalone() {
            for event in events {
                event.position.epoch = 1;
                event.prev = None;
            }
            state.top.epoch = state.top.epoch.min(1);
        }
    }
}

pub(super) fn forget(state: &mut mcp_adapter_core::storage::StreamState) {
    state.holds.clear();
}
