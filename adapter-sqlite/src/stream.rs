//! Streams: who holds them, what they may keep, how they end.

use mcp_adapter_core::{
    Cancelled, InstanceId, Position, RpcId, SessionKey, StreamId,
    storage::{Beat, Claim, Dead, Held, Hold, HoldStart, Holder, REMEMBERED, StreamEnd, Target},
};
use rusqlite::{OptionalExtension as _, params};

use crate::{
    clock::{Time, after},
    error::Done,
    log, record,
    rows::{Session, Stream, end_code, instance, readable},
    writer::Writer,
};

impl Writer {
    pub(crate) fn hold(
        &mut self,
        key: &SessionKey,
        name: &StreamId,
        me: InstanceId,
        hold: Hold,
    ) -> Done<Held> {
        let conn = self.conn()?;
        let Some(session) = Session::live(&conn, &self.tail, key, self.now)? else {
            return Ok(Held::NoSession);
        };
        let stream = if name.is_standalone() {
            Some(self.make_shared(&session, name)?)
        } else {
            Stream::live(&conn, &self.tail, session.id, name, self.now)?
        };
        let Some(mut stream) = stream else {
            return Ok(Held::NoStream);
        };
        match hold {
            Hold::Take => self.take(stream, me),
            Hold::TakeFrom(from) => match stream.held_by() {
                Some(holder) if Some(holder) != from => {
                    if holder.instance == me {
                        let began = stream.began;
                        Ok(held(&stream, holder.number, None, began))
                    } else {
                        Ok(Held::Busy(holder))
                    }
                }
                _ => self.take(stream, me),
            },
            Hold::Continue { number } if number == stream.number && number > 0 => {
                let former = stream.holder;
                self.hold_as(&mut stream, me, true)?;
                Ok(held(&stream, stream.number, former, stream.began))
            }
            Hold::Continue { .. } => Ok(if stream.holder == Some(me) {
                held(&stream, stream.number, None, stream.began)
            } else {
                Held::Past
            }),
            Hold::Release { number, cursor } => {
                let mine = Holder {
                    instance: me,
                    number,
                };
                if stream.held_by() == Some(mine) {
                    stream.holder = None;
                    stream.released = Some(cursor.min(stream.head.top));
                    self.write_hold(&stream)?;
                }
                Ok(held(&stream, number, None, cursor))
            }
        }
    }

    fn take(&mut self, mut stream: Stream, me: InstanceId) -> Done<Held> {
        let former = stream.holder;
        // Who takes again may not have got the answer to the first time.
        let again = former == Some(me);
        if !again {
            stream.began = if stream.number == 0 {
                Position::START
            } else {
                stream.released.unwrap_or(stream.head.top)
            };
        }
        self.hold_as(&mut stream, me, again)?;
        Ok(held(&stream, stream.number, former, stream.began))
    }

    /// Makes `me` the holder under the next number, of the last hold or of a new one.
    fn hold_as(&mut self, stream: &mut Stream, me: InstanceId, same: bool) -> Done<()> {
        stream.released = None;
        stream.number += 1;
        stream.holder = Some(me);
        if stream.owner.is_none() {
            let mut holds = stream.holds.to_vec();
            let (number, began) = (stream.number, stream.began);
            match holds.last_mut() {
                Some(last) if same => last.number = number,
                _ => holds.push(HoldStart { number, began }),
            }
            let forgotten = holds.len().saturating_sub(REMEMBERED);
            stream.holds = holds[forgotten..].into();
        }
        self.write_hold(stream)
    }

    fn write_hold(&mut self, stream: &Stream) -> Done<()> {
        let conn = self.conn()?;
        let sql = "UPDATE mcp_stream SET holder = ?, number = ?, began = ?, released = ?,
            holds = ? WHERE id = ?";
        conn.prepare_cached(sql)?.execute(params![
            stream.holder.map(|holder| holder.0.to_be_bytes()),
            stream.number.cast_signed(),
            record::position(stream.began),
            stream.released.map(record::position),
            record::holds(&stream.holds),
            stream.id
        ])?;
        self.change(stream.session)
    }

    /// The streams that ended first go first, then the oldest events.
    pub(crate) fn shrink(&mut self, key: &SessionKey, max_bytes: u64) -> Done<u64> {
        self.fold()?;
        let conn = self.conn()?;
        let Some(session) = Session::live(&conn, &self.tail, key, self.now)? else {
            return Ok(0);
        };
        let mut left = session.bytes.max(0).cast_unsigned();
        let sql = "SELECT id FROM mcp_stream WHERE session = ? AND expires IS NOT NULL
            ORDER BY expires, id LIMIT 1";
        while left > max_bytes {
            let ended: Option<i64> = conn
                .prepare_cached(sql)?
                .query_row([session.id], |row| row.get(0))
                .optional()?;
            let Some(ended) = ended else { break };
            let Some(stream) = Stream::by_id(&conn, &self.tail, ended)? else {
                break;
            };
            left = left.saturating_sub(stream.head.bytes);
            self.remove_stream(&stream)?;
        }
        if left > max_bytes {
            left = self.drop_oldest(&session, left, max_bytes)?;
        }
        Ok(left)
    }

    fn drop_oldest(&mut self, session: &Session, mut left: u64, max_bytes: u64) -> Done<u64> {
        let conn = self.conn()?;
        let mut streams = Stream::of_session(&conn, &self.tail, session.id)?;
        // Ids rise with age over all streams.
        let mut events = Vec::new();
        for (index, stream) in streams.iter().enumerate() {
            let all = log::all(&conn, &stream.head)?;
            events.extend(all.into_iter().map(|entry| (entry.head.last, index, entry)));
        }
        events.sort_unstable_by_key(|(id, ..)| *id);
        let mut events = events.into_iter().peekable();
        let mut touched = vec![false; streams.len()];
        let mut lost = (0, 0);
        while let Some((id, index, entry)) = events.next_if(|_| left > max_bytes) {
            self.doomed.push(id, entry.size);
            self.evicted(entry.stream, entry.tag.as_slice())?;
            let head = &mut streams[index].head;
            head.count = head.count.saturating_sub(1);
            head.bytes = head.bytes.saturating_sub(entry.size);
            touched[index] = true;
            left = left.saturating_sub(entry.size);
            lost = (lost.0 + 1, lost.1 + entry.size.cast_signed());
        }
        let rest: Vec<_> = events.collect();
        for (index, stream) in streams
            .iter_mut()
            .enumerate()
            .filter(|(at, _)| touched[*at])
        {
            let oldest = rest.iter().find(|(_, at, _)| *at == index);
            stream.head.oldest = oldest.map(|(_, _, entry)| entry.head.top);
            self.write_head(stream.id, &stream.head)?;
        }
        self.lose(session.id, lost.0, lost.1)?;
        self.change(session.id)?;
        Ok(left)
    }

    pub(crate) fn mark_cancel(&mut self, key: &SessionKey, id: &RpcId) -> Done<Option<Cancelled>> {
        let conn = self.conn()?;
        let Some(session) = Session::live(&conn, &self.tail, key, self.now)? else {
            return Ok(None);
        };
        let sql = "SELECT id, name, owner FROM mcp_stream
            WHERE session = ? AND request = ? AND ended IS NULL LIMIT 2";
        let mut statement = conn.prepare_cached(sql)?;
        let running = statement.query_map(params![session.id, record::rpc_id(id)], |row| {
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, String>(1)?,
                instance(row, 2)?,
            ))
        })?;
        let running: Vec<_> = running.collect::<rusqlite::Result<_>>()?;
        let [(stream, name, owner)] = &running[..] else {
            return Ok(Some(if running.is_empty() {
                Cancelled::NotRunning
            } else {
                Cancelled::Ambiguous
            }));
        };
        let name: StreamId = readable(name.parse().ok())?;
        conn.prepare_cached("UPDATE mcp_stream SET cancelled = 1 WHERE id = ?")?
            .execute([stream])?;
        if let Some(owner) = owner {
            self.wake(*owner, *key, Target::Stream(name.clone()));
        }
        Ok(Some(Cancelled::Marked(name)))
    }

    pub(crate) fn heartbeat(&mut self, me: Beat, ttl: std::time::Duration) -> Done<Vec<Beat>> {
        let conn = self.conn()?;
        // A counter never falls: a late repeat must not take life away.
        let sql = "INSERT INTO mcp_beat(instance, count, until) VALUES (?, ?, ?)
            ON CONFLICT (instance) DO UPDATE
            SET count = max(count, excluded.count), until = excluded.until";
        conn.prepare_cached(sql)?.execute(params![
            me.instance.0.to_be_bytes(),
            me.count.cast_signed(),
            after(self.now, ttl)
        ])?;
        let mut statement =
            conn.prepare_cached("SELECT instance, count FROM mcp_beat WHERE until > ?")?;
        let rows = statement.query_map([self.now], |row| {
            let count = row.get::<_, i64>(1)?.cast_unsigned();
            Ok(instance(row, 0)?.map(|instance| Beat { instance, count }))
        })?;
        let beats: Vec<_> = rows.collect::<rusqlite::Result<_>>()?;
        if beats.len() > 1 {
            self.courtesy.met_others();
        }
        Ok(beats.into_iter().flatten().collect())
    }

    pub(crate) fn is_dead(&self, dead: &Dead) -> Done<bool> {
        let conn = self.conn()?;
        let sql = "SELECT count FROM mcp_beat WHERE instance = ? AND until > ?";
        let beat = conn
            .prepare_cached(sql)?
            .query_row(params![dead.instance.0.to_be_bytes(), self.now], |row| {
                Ok(row.get::<_, i64>(0)?.cast_unsigned())
            })
            .optional()?;
        Ok(beat == dead.beat)
    }

    pub(crate) fn claim(&mut self, batch: &[Claim]) -> Done<usize> {
        self.fold()?;
        let conn = self.conn()?;
        let mut claimed = 0;
        for claim in batch {
            let Some(session) = Session::live(&conn, &self.tail, &claim.session, self.now)? else {
                continue;
            };
            let stream = Stream::live(&conn, &self.tail, session.id, &claim.stream, self.now)?;
            let Some(stream) = stream
                .filter(|stream| stream.end.is_none() && stream.owner == Some(claim.dead.instance))
            else {
                continue;
            };
            if self.is_dead(&claim.dead)? {
                let expires = after(self.now, claim.finished_ttl);
                self.lose_owner(&claim.session, &claim.stream, &stream, expires)?;
                claimed += 1;
            }
        }
        Ok(claimed)
    }

    /// Ends a stream, in a new epoch, so that whatever its thawed owner writes
    /// is behind it. Heads are folded before.
    pub(crate) fn lose_owner(
        &mut self,
        key: &SessionKey,
        name: &StreamId,
        stream: &Stream,
        expires: Time,
    ) -> Done<()> {
        let conn = self.conn()?;
        let mut head = stream.head;
        // Writers begin with epoch 1, whether they have written or not.
        head.top = Position::new(head.top.epoch.max(1).saturating_add(1), 0);
        self.write_head(stream.id, &head)?;
        conn.prepare_cached("UPDATE mcp_stream SET ended = ?, expires = ? WHERE id = ?")?
            .execute(params![end_code(StreamEnd::OwnerLost), expires, stream.id])?;
        if let Some(holder) = stream.holder {
            self.wake(holder, *key, Target::Stream(name.clone()));
        }
        self.change(stream.session)
    }
}

fn held(stream: &Stream, number: u64, former: Option<InstanceId>, cursor: Position) -> Held {
    Held::Done {
        number,
        former,
        cursor,
        state: stream.state(),
    }
}
