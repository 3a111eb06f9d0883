//! A backend that misses a rule of the seam.

mod append;
mod ledger;
mod steps;

use std::time::Duration;

use mcp_adapter_core::{
    Position, Result, SessionKey, WaiterToken,
    storage::{Append, Appended, Cursor, Read, Storage, StreamState},
};

pub(crate) use ledger::{Key, Ledger};

use crate::defects::{Defect, Rule, Torn};

/// In time for others to run in between.
const PAUSE: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub(crate) struct Careless<S> {
    inner: S,
    ledger: Ledger,
    rule: Option<Rule>,
    /// How often the store was opened again before this handle.
    restarts: u64,
}

impl<S> Drop for Careless<S> {
    fn drop(&mut self) {
        self.ledger.with(|book| book.handles -= 1);
    }
}

impl<S> Careless<S> {
    pub(crate) fn new(inner: S, ledger: Ledger, defect: Option<Defect>) -> Self {
        let rule = match defect {
            Some(Defect::Miss(rule)) => Some(rule),
            _ => None,
        };
        let restarts = ledger.with(|book| {
            if book.handles == 0 {
                book.restarts += 1;
            }
            book.handles += 1;
            book.restarts
        });
        Self {
            inner,
            ledger,
            rule,
            restarts,
        }
    }

    fn misses(&self, rule: Rule) -> bool {
        self.rule == Some(rule)
    }
}

impl<S: Storage> Careless<S> {
    async fn page(&self, (session, stream): &Key, after: Position) -> Result<Read> {
        let cursor = Cursor {
            after,
            max_events: 100_000,
            max_bytes: usize::MAX,
            ..Cursor::state_of(*session, stream.clone())
        };
        Ok(self.inner.read(&[cursor]).await?.remove(0))
    }

    async fn state_of(&self, key: &Key) -> Result<Option<StreamState>> {
        Ok(
            match self.page(key, Position::new(u32::MAX, u64::MAX)).await? {
                Read::Page { state, .. } => Some(state),
                _ => None,
            },
        )
    }

    /// A step that reads rows, pauses, and writes them back with what others have
    /// changed in between: events that were appended meanwhile are gone.
    async fn torn<T>(&self, what: Torn, step: impl Future<Output = Result<T>>) -> Result<T> {
        if !self.misses(Rule::IsAtomic(what)) {
            return step.await;
        }
        let known = self.ledger.with(|book| book.known.clone());
        let mut tops = Vec::new();
        for key in known {
            if let Some(state) = self.state_of(&key).await? {
                tops.push((key, state.top));
            }
        }
        tokio::time::sleep(PAUSE).await;
        let answer = step.await?;
        for (key, top) in tops {
            if let Read::Page { events, .. } = self.page(&key, top).await? {
                self.ledger.with(|book| {
                    let gone = events.iter().map(|event| (key.clone(), event.position));
                    book.gone.extend(gone);
                });
            }
        }
        Ok(answer)
    }

    /// A name that is no longer remembered: as if it were a new one.
    fn only_the_last(&self, names: &[WaiterToken], name: WaiterToken) -> WaiterToken {
        let last = names.len().saturating_sub(2);
        match names[..last].contains(&name) {
            true => WaiterToken::generate(),
            false => name,
        }
    }

    fn key_of(append: &Append) -> Key {
        (append.session, append.stream.clone())
    }

    async fn exists(&self, session: SessionKey) -> Result<bool> {
        let standalone = mcp_adapter_core::StreamId::standalone();
        let read = self.page(&(session, standalone), Position::START).await?;
        Ok(!matches!(read, Read::NoSession))
    }

    fn is_stored(answer: &Appended) -> bool {
        matches!(answer, Appended::Stored { .. })
    }
}
