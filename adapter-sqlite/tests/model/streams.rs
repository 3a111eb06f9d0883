//! Steps on streams.

use mcp_adapter_core::{
    InstanceId, Position, SessionKey, StreamId,
    storage::{Append, Appended, Cursor, Held, Hold, NewEvent, Place, Storage, StreamEnd},
};

use crate::world::*;

impl World {
    pub(crate) async fn append(&mut self) -> Append {
        let (session, stream) = (self.session(), self.stream());
        let state = self.model_state(session, &stream).await;
        let top = state.as_ref().map_or(Position::START, |state| state.top);
        let owner = state.as_ref().and_then(|state| state.owner);
        let (index, instance) = self.instance();
        let data = self.data();
        let event = NewEvent { prev: None, data };
        let mut append = Append {
            session,
            place: Place::Owned {
                owner: if self.random.u8(..10) > 0 {
                    owner.unwrap_or(instance)
                } else {
                    instance
                },
                position: match self.random.u8(..12) {
                    0 => Position::new(top.epoch.max(1), self.random.u64(..=top.seq)),
                    1 => Position::new(top.epoch.max(1) + 1, 1),
                    2 => Position::new(1, top.seq + 1),
                    _ => Position::new(top.epoch.max(1), top.seq + 1),
                },
            },
            event: Some(event),
            finish: (self.random.u8(..12) == 0).then(|| self.kept()),
            end: StreamEnd::Finished,
            keep_events: 6,
            keep_bytes: 120,
            trim: None,
            wake: None,
            stream,
        };
        if append.stream.is_standalone() {
            if self.random.u8(..5) == 0 && !self.shared.is_empty() {
                // A late repeat.
                let index = self.random.usize(..self.shared.len());
                return self.shared[index].clone();
            }
            self.tags[index] += 1;
            append.place = Place::Shared {
                writer: instance,
                tag: self.tags[index],
            };
            // It goes when the session is to shrink, and is made again.
            append.finish = (self.random.u8(..40) == 0).then(|| self.kept());
            self.shared.push(append.clone());
        } else {
            if let Place::Owned { position, .. } = append.place
                && position.epoch > top.epoch
                && let Some(event) = &mut append.event
            {
                event.prev = Some(top);
            }
            if self.random.u8(..20) == 0 {
                append.event = None;
                append.finish = Some(self.kept());
                let lost = self.random.u64(..3);
                append.place = Place::Owned {
                    owner: owner.unwrap_or(instance),
                    position: Position::new(top.epoch, top.seq + lost),
                };
            }
        }
        append
    }

    pub(crate) async fn appends(&mut self) {
        let mut batch = Vec::new();
        // What depends on the state goes alone.
        for _ in 0..self.random.usize(1..4) {
            let append = self.append().await;
            let twice =
                |other: &Append| (other.session, &other.stream) == (append.session, &append.stream);
            if !batch.iter().any(twice) {
                batch.push(append);
            } else if append.stream.is_standalone() {
                // A number that was never stored does not come later.
                self.shared.retain(|other| other.place != append.place);
            }
        }
        if self.random.u8(..6) == 0 {
            // It comes twice at once.
            let again = self.random.usize(..batch.len());
            batch.push(batch[again].clone());
        }
        let handle = self.handle();
        let mut found = handle.append(&batch).await.unwrap();
        let mut expected = self.model.append(&batch).await.unwrap();
        for (append, answer) in batch.iter().zip(&found) {
            if append.stream.is_standalone() && !matches!(answer, Appended::Stored { .. }) {
                self.shared.retain(|other| other.place != append.place);
            }
        }
        for (index, append) in batch.iter().enumerate() {
            let (found, expected) = (&mut found[index], &expected[index]);
            let earlier = batch[..index].iter();
            let twice = { earlier }.any(|other| {
                let place = (other.session, &other.stream, other.place);
                place == (append.session, &append.stream, append.place)
            });
            match *expected {
                Appended::Stored { repeat: true, .. } if twice => {
                    self.seen.insert("an append comes twice in a batch");
                }
                Appended::Stored { repeat: true, .. } => {
                    self.seen.insert("an append is a repeat");
                }
                Appended::Stored { position, .. } => {
                    self.seen.insert("an append is new");
                    if append.stream.is_standalone() && position.epoch > 1 {
                        self.seen.insert("a shared stream is made again");
                    }
                }
                _ => {}
            }
            let (Appended::Stored { position, .. }, Appended::Stored { position: told, .. }) =
                (found, expected)
            else {
                continue;
            };
            // The repeat of an event that was evicted: any place before what is
            // kept will do.
            let state = self.model_state(append.session, &append.stream).await;
            let oldest = state.and_then(|state| state.oldest);
            if append.stream.is_standalone()
                && let Some(epoch) = position.epoch.checked_sub(self.ahead)
                && oldest.is_none_or(|oldest| {
                    Position::new(epoch, position.seq) < oldest && *told < oldest
                })
            {
                *position = self.to_file(*told, &append.stream);
                self.seen.insert("the repeat of an event that was evicted");
            }
        }
        for answer in found.iter_mut().chain(&mut expected) {
            if let Appended::Stored { usage, .. } = answer {
                // Not told by the file.
                usage.principal_bytes = 0;
            }
        }
        assert_eq!(self.plain(&found), self.plain(&expected), "{batch:?}");
    }

    pub(crate) async fn read(&mut self) {
        let (session, stream) = (self.session(), self.stream());
        let top = self.model_state(session, &stream).await;
        let top = top.map_or(Position::START, |state| state.top);
        let cursor = Cursor {
            session,
            after: match self.random.u32(..=top.epoch) {
                0 => Position::START,
                epoch => Position::new(epoch, self.random.u64(..=top.seq + 1)),
            },
            max_events: self.random.usize(..5),
            max_bytes: self.random.usize(..80),
            touch: self.random.bool(),
            stream,
        };
        let expected = self
            .model
            .read(std::slice::from_ref(&cursor))
            .await
            .unwrap();
        let handle = self.handle();
        let asked = Cursor {
            after: self.to_file(cursor.after, &cursor.stream),
            ..cursor.clone()
        };
        let found = handle.read(&[asked]).await.unwrap();
        assert_eq!(self.plain(&found), self.plain(&expected), "{cursor:?}");
    }

    pub(crate) async fn new_hold(&mut self) -> (SessionKey, StreamId, InstanceId, Hold) {
        let (session, stream) = (self.session(), self.stream());
        let (_, me) = self.instance();
        let state = self.model_state(session, &stream).await;
        let holder = state.as_ref().and_then(|state| state.holder);
        let holds = state.as_ref().map(|state| &state.holds[..]);
        let last = holds.and_then(|holds| Some(holds.last()?.number));
        let number = holder.map(|holder| holder.number).or(last).unwrap_or(1);
        let top = state.map_or(Position::START, |state| state.top);
        let hold = match self.random.u8(..6) {
            0 => Hold::Take,
            1 => Hold::TakeFrom(None),
            2 => Hold::TakeFrom(holder),
            3 => Hold::Continue {
                number: (number + 1).saturating_sub(self.random.u64(..3)),
            },
            4 => Hold::Continue { number },
            _ => Hold::Release {
                number,
                // Up to there it was yielded; or it says too much.
                cursor: match top.epoch {
                    0 => Position::START,
                    epoch => {
                        Position::new(epoch, (top.seq + 2).saturating_sub(self.random.u64(..4)))
                    }
                },
            },
        };
        let me = match (hold, holder) {
            (Hold::Release { .. }, Some(holder)) => holder.instance,
            _ => me,
        };
        (session, stream, me, hold)
    }

    pub(crate) async fn hold(&mut self) {
        let repeat = self.random.u8(..4) == 0;
        let last = self.holds.last().cloned().filter(|_| repeat);
        let one = match last {
            Some(last) => last,
            None => self.new_hold().await,
        };
        self.holds.push(one.clone());
        let (session, stream, me, hold) = one;
        let expected = self.model.hold(&session, &stream, me, hold).await.unwrap();
        let asked = match hold {
            Hold::Release { number, cursor } => Hold::Release {
                number,
                cursor: self.to_file(cursor, &stream),
            },
            hold => hold,
        };
        let handle = self.handle();
        let found = handle.hold(&session, &stream, me, asked).await.unwrap();
        if let Hold::Continue { number } = hold {
            match expected {
                Held::Done { number: new, .. } if new == number + 1 => {
                    self.seen.insert("a hold is continued");
                }
                Held::Past => {
                    self.seen.insert("a hold is past");
                }
                _ => {}
            }
        }
        assert_eq!(self.plain(&found), self.plain(&expected), "{hold:?}");
    }
}
