//! Appends: the hot path. Of a stream that is remembered, one costs one row of
//! the log.

use std::collections::VecDeque;

use mcp_adapter_core::{
    InstanceId, Position, SessionKey, StreamId,
    storage::{Append, Appended, NewEvent, Place, StreamEnd, Target, Usage},
};
use rusqlite::{OptionalExtension as _, params};

use crate::{
    cache::{Kept, KnownStream},
    clock,
    error::Done,
    log,
    record::{Entry, Head},
    rows::{Session, Stream, end_code},
    writer::Writer,
};

/// How an append is received.
enum Admission {
    /// The event is to be stored here; what it follows, for the first of an
    /// epoch.
    New(Position, Option<Position>),
    /// It is stored already.
    Repeat(Position),
    Refused(Appended),
}

impl Writer {
    pub(crate) fn append(&mut self, batch: &[Append]) -> Done<Vec<Appended>> {
        batch.iter().map(|append| self.append_one(append)).collect()
    }

    fn append_one(&mut self, append: &Append) -> Done<Appended> {
        let key = &append.session;
        if !self.know_session(key)? {
            return Ok(Appended::NoSession);
        }
        let shared = matches!(append.place, Place::Shared { .. });
        if !self.know_stream(key, &append.stream, shared)? {
            return Ok(Appended::NoStream);
        }
        let (session, stream) = self.known(key, &append.stream)?;
        let admission = match append.place {
            Place::Owned { owner, position } => {
                self.admit_owned(&stream, append, owner, position)?
            }
            Place::Shared { writer, tag } => {
                self.admit_shared(&session, &stream, append, writer, tag)?
            }
        };
        let mut repeat = false;
        let position = match admission {
            Admission::Refused(refused) => return Ok(refused),
            Admission::Repeat(position) => {
                repeat = true;
                self.touch(session.id)?;
                position
            }
            Admission::New(position, follows) => match &append.event {
                Some(event) => {
                    self.store(append, event, position, follows)?;
                    if append.finish.is_some() {
                        self.finish(append, &stream)?;
                    }
                    position
                }
                None => self.finish_alone(append, &stream, position)?,
            },
        };
        if let Some(holder) = append.wake {
            self.wake(holder, *key, Target::Stream(append.stream.clone()));
        }
        let bytes = self.cache.get(key).map_or(0, |known| known.row.bytes);
        Ok(Appended::Stored {
            position,
            holder: stream.holder,
            usage: Usage {
                session_bytes: bytes.max(0).cast_unsigned(),
                principal_bytes: 0,
            },
            repeat,
        })
    }

    /// Whether the session is there; it is remembered then.
    fn know_session(&mut self, key: &SessionKey) -> Done<bool> {
        let now = self.now;
        // Its deadline may be later than what is remembered, never earlier.
        if let Some(known) = self.cache.counted(key)
            && now < known.row.deadline()
        {
            return Ok(true);
        }
        let conn = self.conn()?;
        match Session::live(&conn, &self.tail, key, now)? {
            Some(session) => {
                self.cache.insert(*key, session);
                Ok(true)
            }
            None => {
                self.cache.remove(key);
                Ok(false)
            }
        }
    }

    /// Whether the stream is there; it is remembered then.
    fn know_stream(&mut self, key: &SessionKey, name: &StreamId, shared: bool) -> Done<bool> {
        let Some(known) = self.cache.get(key) else {
            return Ok(false);
        };
        // One that has ended may be past its time.
        known.streams.retain(|stream| stream.row.end.is_none());
        if known.stream(name).is_some() {
            return Ok(true);
        }
        let session = known.row.clone();
        let row = if shared {
            let row = self.make_shared(&session, name)?;
            self.know_session(key)?;
            Some(row)
        } else {
            let conn = self.conn()?;
            Stream::live(&conn, &self.tail, session.id, name, self.now)?
        };
        let (Some(row), Some(known)) = (row, self.cache.get(key)) else {
            return Ok(false);
        };
        known.streams.push(KnownStream {
            name: name.clone(),
            row,
            kept: None,
            last: None,
        });
        Ok(true)
    }

    fn known(&mut self, key: &SessionKey, name: &StreamId) -> Done<(Session, Stream)> {
        let known = self.cache.get(key);
        let both = known.and_then(|known| {
            let session = known.row.clone();
            Some((session, known.stream(name)?.row.clone()))
        });
        crate::rows::readable(both)
    }

    fn admit_owned(
        &self,
        stream: &Stream,
        append: &Append,
        owner: InstanceId,
        position: Position,
    ) -> Done<Admission> {
        let top = stream.head.top;
        let event = append.event.is_some();
        if stream.owner != Some(owner) {
            return Ok(Admission::Refused(Appended::Fenced));
        }
        // A finish without an event has no position of its own: that the stream
        // has ended is how its repeat shows, unless others ended it, who raised
        // the epoch.
        if !event && stream.end.is_some() && position.epoch >= top.epoch {
            return Ok(Admission::Repeat(top));
        }
        let repeat = event
            && if position.epoch == top.epoch {
                position.seq <= top.seq
            } else {
                position < top && log::has(&*self.conn()?, &stream.head, position)?
            };
        if repeat {
            return Ok(Admission::Repeat(position));
        }
        if position.epoch < top.epoch {
            return Ok(Admission::Refused(Appended::Fenced));
        }
        Ok(match stream.end {
            Some(StreamEnd::OwnerLost) => Admission::Refused(Appended::Fenced),
            Some(StreamEnd::Finished) => Admission::Refused(Appended::Finished),
            None => {
                let follows = append.event.as_ref().and_then(|event| event.prev);
                Admission::New(position, follows)
            }
        })
    }

    fn admit_shared(
        &mut self,
        session: &Session,
        stream: &Stream,
        append: &Append,
        writer: InstanceId,
        tag: u64,
    ) -> Done<Admission> {
        if stream.owner.is_some() {
            return Ok(Admission::Refused(Appended::Fenced));
        }
        let event = append.event.is_some();
        if event && !self.is_next(append, writer, tag) {
            let (stored, last) = self.stored(stream, writer, tag)?;
            if let Some(position) = stored {
                return Ok(Admission::Repeat(position));
            }
            let known = self.cache.get(&append.session);
            if let Some(known) = known.and_then(|known| known.stream(&append.stream)) {
                known.last = Some((writer, last));
            }
        }
        let top = stream.head.top;
        // No id of a lost history is given out again.
        let epoch = self.epoch();
        Ok(match stream.end {
            Some(_) if !event => Admission::Repeat(top),
            Some(_) => Admission::Refused(Appended::Finished),
            None if top.epoch >= epoch && top.seq > 0 => {
                Admission::New(Position::new(top.epoch, top.seq + 1), None)
            }
            None => {
                // What came last before nobody knows: whoever has followed the
                // stream, or one that is gone, is told of a gap.
                let epoch = epoch.max(top.epoch);
                let unknown = Position::new(epoch - 1, u64::MAX);
                let follows = (session.born < epoch).then_some(unknown);
                Admission::New(Position::new(epoch, 1), follows)
            }
        })
    }

    /// Whether the writer has surely not stored it before.
    fn is_next(&mut self, append: &Append, writer: InstanceId, tag: u64) -> bool {
        let known = self.cache.get(&append.session);
        let known = known.and_then(|known| known.stream(&append.stream));
        let last = known.and_then(|known| known.last);
        last.is_some_and(|(by, last)| by == writer && tag > last)
    }

    /// Where an event of a shared stream was stored before, and the last number
    /// of its writer.
    fn stored(
        &self,
        stream: &Stream,
        writer: InstanceId,
        tag: u64,
    ) -> Done<(Option<Position>, u64)> {
        let conn = self.conn()?;
        let sql = "SELECT gone FROM mcp_writer WHERE stream = ? AND instance = ?";
        let gone = conn
            .prepare_cached(sql)?
            .query_row(params![stream.id, writer.0.to_be_bytes()], |row| {
                Ok(row.get::<_, i64>(0)?.cast_unsigned())
            })
            .optional()?;
        if gone.is_some_and(|gone| tag <= gone) {
            // Any place before what is kept stands for its own.
            let kept = stream.head.oldest.unwrap_or(stream.head.top);
            let before = Position::new(kept.epoch, kept.seq.saturating_sub(1));
            return Ok((Some(before), gone.unwrap_or(0)));
        }
        let (mut found, mut last) = (None, gone.unwrap_or(0));
        log::walk(&conn, &stream.head, |entry| {
            if let Some((_, kept)) = entry.tag.filter(|(by, _)| *by == writer) {
                last = last.max(kept);
                if kept == tag {
                    found = Some(entry.head.top);
                }
            }
            found.is_none()
        })?;
        Ok((found, last))
    }

    /// Events of a shared stream are evicted: their writers' numbers up to
    /// theirs are repeats from now on.
    pub(crate) fn evicted(&self, stream: i64, tags: &[(InstanceId, u64)]) -> Done<()> {
        let conn = self.conn()?;
        let sql = "INSERT INTO mcp_writer(stream, instance, gone) VALUES (?, ?, ?)
            ON CONFLICT (stream, instance) DO UPDATE SET gone = max(gone, excluded.gone)";
        for (writer, tag) in tags {
            conn.prepare_cached(sql)?.execute(params![
                stream,
                writer.0.to_be_bytes(),
                tag.cast_signed()
            ])?;
        }
        Ok(())
    }

    /// Drops the oldest events that the stream may no longer keep with one of
    /// `size` bytes more. Returns how many and of how many bytes, and the
    /// stream without them.
    fn trim(&mut self, append: &Append, size: u64) -> Done<((u64, u64), Head)> {
        let (_, stream) = self.known(&append.session, &append.stream)?;
        let mut head = stream.head;
        let (max_events, max_bytes) = (append.keep_events as u64, append.keep_bytes as u64);
        let over = |head: &Head| {
            head.count > 0 && (head.count + 1 > max_events || head.bytes + size > max_bytes)
        };
        if !over(&head) {
            return Ok(((0, 0), head));
        }
        self.know_kept(append, &head)?;
        let Self { cache, doomed, .. } = self;
        let known = cache.get(&append.session);
        let known = known.and_then(|known| known.stream(&append.stream));
        let Some(kept) = known.and_then(|known| known.kept.as_mut()) else {
            return Ok(((0, 0), head));
        };
        let (mut cut, mut gone) = ((0, 0), Vec::new());
        while over(&head) {
            let Some(oldest) = kept.pop_front() else {
                // What is linked to an event that cannot be read is not found.
                cut = (cut.0 + head.count, cut.1 + head.bytes);
                (head.count, head.bytes) = (0, 0);
                break;
            };
            doomed.push(oldest.id, oldest.size);
            gone.extend(oldest.tag);
            head.count = head.count.saturating_sub(1);
            head.bytes = head.bytes.saturating_sub(oldest.size);
            cut = (cut.0 + 1, cut.1 + oldest.size);
        }
        head.oldest = kept.front().map(|kept| kept.position);
        self.evicted(stream.id, &gone)?;
        Ok((cut, head))
    }

    /// Reads what the stream keeps, once.
    fn know_kept(&mut self, append: &Append, head: &Head) -> Done<()> {
        let conn = self.conn()?;
        let known = self.cache.get(&append.session);
        let known = known.and_then(|known| known.stream(&append.stream));
        if known.is_none_or(|known| known.kept.is_some()) {
            return Ok(());
        }
        let mut kept = VecDeque::new();
        log::linked(&conn, head, |entry| {
            if (kept.len() as u64) < head.count {
                kept.push_front(Kept::new(entry));
            } else {
                // Whoever evicted it has ended since, or is about to remove it.
                self.doomed.push(entry.head.last, entry.size);
            }
            true
        })?;
        self.cache.keep(kept.len());
        let known = self.cache.get(&append.session);
        if let Some(known) = known.and_then(|known| known.stream(&append.stream)) {
            known.kept = Some(kept);
        }
        Ok(())
    }

    /// Stores an event where it was admitted.
    fn store(
        &mut self,
        append: &Append,
        event: &NewEvent,
        at: Position,
        follows: Option<Position>,
    ) -> Done<()> {
        let conn = self.conn()?;
        let size = event.data.len() as u64;
        let (cut, mut head) = self.trim(append, size)?;
        let tag = match append.place {
            Place::Owned { .. } => None,
            Place::Shared { writer, tag } => Some((writer, tag)),
        };
        let (id, prev) = (self.tail.next(), head.last);
        head = Head {
            top: at,
            last: id,
            count: head.count + 1,
            bytes: head.bytes + size,
            oldest: head.oldest.or(Some(at)),
        };
        let now = self.now;
        let Some(known) = self.cache.get(&append.session) else {
            return Ok(());
        };
        let (session, principal) = (known.row.id, known.row.principal);
        let Some(stream) = known.stream(&append.stream) else {
            return Ok(());
        };
        let entry = Entry {
            session,
            principal,
            stream: stream.row.id,
            prev,
            at: now,
            size,
            cut,
            head,
            follows,
            tag,
        };
        conn.prepare_cached("INSERT INTO mcp_event(id, entry, data) VALUES (?, ?, ?)")?
            .execute(params![id, entry.encode(), &event.data[..]])?;
        stream.appended(&entry);
        known.appended(&entry);
        self.tail.push(&entry);
        Ok(())
    }

    /// Ends a stream with the event that was just stored.
    fn finish(&mut self, append: &Append, stream: &Stream) -> Done<()> {
        let conn = self.conn()?;
        let kept = append.finish.unwrap_or_default();
        let expires = clock::after(self.now, kept);
        conn.prepare_cached("UPDATE mcp_stream SET ended = ?, expires = ? WHERE id = ?")?
            .execute(params![end_code(append.end), expires, stream.id])?;
        if let Some(known) = self.cache.get(&append.session) {
            known.streams.retain(|known| known.row.id != stream.id);
        }
        self.tell(stream.session)
    }

    /// The end, and no event: what was lost before it shows by the top.
    fn finish_alone(
        &mut self,
        append: &Append,
        stream: &Stream,
        position: Position,
    ) -> Done<Position> {
        self.fold()?;
        let mut head = stream.head;
        if matches!(append.place, Place::Owned { .. }) && position > head.top {
            head.top = position;
            self.write_head(stream.id, &head)?;
        }
        if append.finish.is_some() {
            self.finish(append, stream)?;
        }
        self.touch(stream.session)?;
        let bytes = self.cache.get(&append.session);
        if let Some(stream) = bytes.and_then(|known| known.stream(&append.stream)) {
            stream.row.head = head;
        }
        self.tell(stream.session)?;
        Ok(head.top)
    }

    pub(crate) fn write_head(&self, stream: i64, head: &Head) -> Done<()> {
        let conn = self.conn()?;
        let sql = "INSERT INTO mcp_head(stream, head) VALUES (?, ?)
            ON CONFLICT (stream) DO UPDATE SET head = excluded.head";
        conn.prepare_cached(sql)?
            .execute(params![stream, head.encode()])?;
        Ok(())
    }

    /// The session is used now.
    pub(crate) fn touch(&mut self, session: i64) -> Done<()> {
        let conn = self.conn()?;
        conn.prepare_cached("UPDATE mcp_used SET at = ?2 WHERE session = ?1 AND at < ?2")?
            .execute(params![session, self.now])?;
        Ok(())
    }

    /// The stream of a shared place, made where there is none.
    pub(crate) fn make_shared(&mut self, session: &Session, name: &StreamId) -> Done<Stream> {
        let conn = self.conn()?;
        let mut gone = session.gone;
        if let Some(stream) = Stream::find(&conn, &self.tail, session.id, name)? {
            if stream.expires.is_none_or(|expires| self.now < expires) {
                return Ok(stream);
            }
            self.fold()?;
            self.remove_stream(&stream)?;
            gone = gone.max(stream.head.top.epoch);
        }
        conn.prepare_cached("INSERT INTO mcp_stream(session, name, number) VALUES (?, ?, 0)")?
            .execute(params![session.id, name.as_str()])?;
        self.total.streams += 1;
        let id = conn.last_insert_rowid();
        if gone > 0 {
            // No id of one that is gone is given out again.
            let top = Position::new(gone.saturating_add(1), 0);
            self.write_head(
                id,
                &Head {
                    top,
                    ..Head::default()
                },
            )?;
        }
        let made = Stream::by_id(&conn, &self.tail, id)?;
        crate::rows::readable(made)
    }
}
