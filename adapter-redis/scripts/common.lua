-- What all scripts share; it stands before each of them.
--
-- KEYS[1] is a key of the partition `{prefix:number}` that the script works on:
-- for most scripts the root of a session, `{prefix:number}:session`. All other
-- keys are built from it and have the same hash tag:
--
--   of a session                       of a partition
--   root     string, see load()        :i  zset  session -> its deadline
--   root:o   hash    open streams      :u  zset  session -> when something in it is due
--   root:z   hash    finished streams  :l  zset  sessions with a call or a request
--   root:f   zset    their deadlines   :n  hash  session -> its counts
--   root:q   hash    client requests   :c  hash  counts of the partition
--   root:d   zset    their deadlines   :b  hash  principal -> bytes (Cluster)
--   root:w   hash    shared writers    :h  heartbeats, a string each (Cluster)
--   root:e:N stream  events            :v  string, raised with every new holder
--            (root:e:C:N where a session of the creator C has come after another)
--   root:x:N string  the only event, and terminal
--   root:g   zset    creators of deleted sessions -> until when, ms
--
-- In Cluster KEYS[2] is a key that never is there: while the slot moves, the
-- servers refuse the script as a whole, and it never sees half of a session.
--
-- ARGV[1] is `s` on one server and `c` in Cluster, where nothing outside the
-- partition can be read.
--
-- A script gets those of these parts, separated by blank lines, that it names,
-- and those that they name: making all the functions for each call would cost
-- more than the calls of the server.

local call = redis.call

local MODE = ARGV[1]

local ROOT = KEYS[1]

local brace = string.find(ROOT, '}', 1, true)

local T = string.sub(ROOT, 1, brace)

local SID = string.sub(ROOT, brace + 2)

local PREFIX = string.match(T, '^{(.*):[^:]+}$')

local HB = '{' .. PREFIX .. ':beats}'

local BYTES = MODE == 's' and (PREFIX .. ':bytes') or (T .. ':b')

local VERSION = MODE == 's' and (PREFIX .. ':holds') or (T .. ':v')

local clock = call('TIME')

local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000)

local DAY = 86400000

local HEAD = '>BBI4I8I8I8I8I4I8'

local function use(sid)
  SID = sid
  ROOT = T .. ':' .. sid
end

local function id(e, s)
  return string.format('%.0f-%.0f', e, s)
end

local function of_id(text)
  local e, s = string.match(text, '^(%d+)-(%d+)$')
  return tonumber(e), tonumber(s)
end

local function before(ae, as, be, bs)
  return ae < be or (ae == be and as < bs)
end

-- A key of the partition or of the whole store lives longer than all in it: a
-- day more where it is made, and stats.lua sees to it later.
local function keep(key, until_)
  local at = call('PEXPIRETIME', key)
  if at >= -1 and at < until_ then
    call('PEXPIREAT', key, until_ + DAY)
  end
end

-- A key of a session lives exactly as long as its root.
local function bind(key)
  if call('PTTL', key) == -1 then
    call('PEXPIREAT', key, call('PEXPIRETIME', ROOT))
  end
end

-- What the keys of the session's events begin with, once it is loaded.
local EVENTS = ROOT .. ':e:'

-- What is between `root:e:` and the name of a stream. Where a deleted session has
-- had the key of this one, a native command that comes late must not meet its
-- streams.
local function life_of(again, creator)
  if again ~= 1 then return '' end
  return string.gsub(creator, '.', function(byte)
    return string.format('%02x', string.byte(byte))
  end) .. ':'
end

-- The header of the session, or all of it, nil where it does not live.
local function load(all)
  local h = all and (call('GET', ROOT) or '') or call('GETRANGE', ROOT, 0, 85)
  if #h == 0 then return nil end
  if string.byte(h, 1) ~= 1 then error({ err = 'MCPFORMAT a session of a newer format' }) end
  local idle, hard, rev, epoch, born, again = struct.unpack('>I8I8I8I4c8B', h, 50)
  local life = life_of(again, string.sub(h, 34, 49))
  EVENTS = ROOT .. ':e:' .. life
  return {
    life = life,
    principal = string.sub(h, 2, 33), creator = string.sub(h, 34, 49),
    idle = idle, hard = hard, rev = rev, epoch = epoch, born = born,
    -- After the names of the last updates.
    record = all and string.sub(h, 88 + 16 * string.byte(h, 87)),
  }
end

local function expire_all(at)
  call('PEXPIREAT', ROOT, at)
  for _, part in ipairs({ ':o', ':z', ':f', ':q', ':d', ':w' }) do
    call('PEXPIREAT', ROOT .. part, at)
  end
  for _, stream in ipairs(call('HKEYS', ROOT .. ':o')) do
    call('PEXPIREAT', EVENTS .. stream, at)
  end
  if call('ZADD', T .. ':i', at, SID) == 1 then keep(T .. ':i', at) end
end

-- Slides the expiry. It is never early, and late by a 128th of the idle time at
-- most. Returns for how many milliseconds it need not be slid again.
local function touch(session)
  local want, room = NOW + session.idle, math.floor(session.idle / 128)
  if session.hard > 0 and want + room > session.hard then
    want, room = math.min(want, session.hard), session.hard - math.min(want, session.hard)
  end
  local at = call('PEXPIRETIME', ROOT)
  if at < want then
    at = want + room
    expire_all(at)
  end
  if session.hard > 0 and at >= session.hard then return at - NOW end
  return at - want
end

-- Counts of the session: streams, events, bytes, pending requests, principal.
local function counts()
  local raw = call('HGET', T .. ':n', SID)
  if not raw then return 0, 0, 0, 0 end
  return struct.unpack('>I4I8I8I4c32', raw)
end

local function add(hash, field, n)
  if n == 0 then return nil end
  local sum = call('HINCRBY', hash, field, n)
  if sum <= 0 then call('HDEL', hash, field) end
  return sum
end

-- Returns the bytes of the session and of the principal where they have changed.
local function count(session, ds, de, db, dp)
  if ds == 0 and de == 0 and db == 0 and dp == 0 then return end
  local s, e, b, p = counts()
  local up = function(n) return math.max(n, 0) end
  s, e, b, p = up(s + ds), up(e + de), up(b + db), up(p + dp)
  local packed = struct.pack('>I4I8I8I4c32', s, e, b, p, session.principal)
  local new = call('HSET', T .. ':n', SID, packed) == 1
  add(T .. ':c', 's', ds)
  add(T .. ':c', 'e', de)
  add(T .. ':c', 'b', db)
  add(T .. ':c', 'p', dp)
  local sum = add(BYTES, session.principal, db)
  if new then
    keep(T .. ':n', NOW + session.idle)
    keep(T .. ':c', NOW + session.idle)
  end
  if db ~= 0 and b == db then keep(BYTES, NOW + session.idle) end
  if db ~= 0 then return b, MODE == 's' and sum or 0 end
end

-- What the session counted for is given back.
local function uncount()
  local s, e, b, p, principal = counts()
  if principal then
    add(T .. ':c', 's', -s)
    add(T .. ':c', 'e', -e)
    add(T .. ':c', 'b', -b)
    add(T .. ':c', 'p', -p)
    add(BYTES, principal, -b)
    call('HDEL', T .. ':n', SID)
  end
end

local function session_bytes()
  local _, _, b = counts()
  return b
end

local function principal_bytes(session)
  if MODE ~= 's' then return 0 end
  return tonumber(call('HGET', BYTES, session.principal) or 0)
end

-- The session has something that is due at `at`.
local function due(session, at)
  if call('ZADD', T .. ':u', 'LT', at, SID) == 1 then keep(T .. ':u', NOW + session.idle) end
end

local function due_next()
  local first
  for _, part in ipairs({ ':f', ':d' }) do
    local at = tonumber(call('ZRANGE', ROOT .. part, 0, 0, 'WITHSCORES')[2])
    if at and (not first or at < first) then first = at end
  end
  if first then
    call('ZADD', T .. ':u', first, SID)
  else
    call('ZREM', T .. ':u', SID)
  end
end

local function open_calls()
  local open = call('HLEN', ROOT .. ':o')
  return open > 0 and open - call('HEXISTS', ROOT .. ':o', 'standalone') or 0
end

local function busy(session)
  if call('ZADD', T .. ':l', 0, SID) == 1 then keep(T .. ':l', NOW + session.idle) end
end

local function pending()
  return tonumber(call('HGET', ROOT .. ':q', '#') or 0)
end

local function calm()
  if open_calls() == 0 and pending() == 0 then call('ZREM', T .. ':l', SID) end
end

local function holds_version()
  return call('GET', VERSION) or '0'
end

-- Writers look again at who holds their streams.
local function raise_holds()
  if call('EXISTS', VERSION) == 1 then
    call('INCR', VERSION)
    keep(VERSION, NOW + DAY)
  else
    call('SET', VERSION, string.format('%.0f', NOW), 'PX', 2 * DAY)
  end
end

local function knock(instance, payload)
  if MODE == 's' then
    call('PUBLISH', PREFIX .. ':door:' .. instance, payload)
  else
    call('SPUBLISH', T .. ':door:' .. instance, payload)
  end
end

-- Whether the instance is still dead by this counter. In Cluster the caller has
-- compared it with the one counter of all; the copy here is raised after that
-- one and before a heartbeat is acknowledged.
local function is_dead(instance, beat)
  if MODE == 's' then
    local stored = call('HGET', HB .. ':h', instance)
    local at = call('ZSCORE', HB .. ':t', instance)
    if not at or tonumber(at) <= NOW then stored = false end
    return (stored or '') == beat
  end
  local stored = call('GET', T .. ':h:' .. instance)
  return not stored or (beat ~= '' and tonumber(stored) <= tonumber(beat))
end

-- A stream's record, and whether it is finished. The third: something is there of
-- one that has expired.
local function stream_of(name)
  local raw = call('HGET', ROOT .. ':o', name)
  if raw then return cmsgpack.unpack(raw), false end
  raw = call('HGET', ROOT .. ':z', name)
  if not raw then return nil end
  local m = cmsgpack.unpack(raw)
  if m.x <= NOW then return nil, false, true end
  return m, true
end

local function save(name, m, finished)
  local key = ROOT .. (finished and ':z' or ':o')
  call('HSET', key, name, cmsgpack.pack(m))
  bind(key)
end

-- An entry of a stream: up to `seq` there are `events` and `bytes` since the
-- stream began; what is at or before the floor has been evicted.
local function parse(entry)
  local e, s = of_id(entry[1])
  local blob = entry[2][2]
  if not blob or #blob < 50 or string.byte(blob, 1) ~= 1 then
    return { e = e, s = s, first = s, n = 1, ev = 0, by = 0, fe = 0, fs = 0, lens = { 0 }, size = 0 }
  end
  local _, flags, n, first, ev, by, at, fe, fs, pos = struct.unpack(HEAD, blob)
  local writer
  if flags % 2 == 1 then pos = pos + 12 end
  if flags >= 2 then
    writer = string.sub(blob, pos, pos + 31)
    pos = pos + 32
  end
  local lens, tags, size = {}, {}, 0
  for i = 1, n do
    lens[i] = struct.unpack('>I4', blob, pos)
    size = size + lens[i]
    pos = pos + 4
    if writer then
      tags[i] = struct.unpack('>I8', blob, pos)
      pos = pos + 8
    end
  end
  return {
    e = e, s = s, first = first, n = n, ev = ev, by = by, at = at, fe = fe, fs = fs,
    lens = lens, tags = tags, writer = writer, size = size,
  }
end

-- The first entry that has an event after the floor; those before it wait to be
-- trimmed.
local function first_entry(name, fe, fs)
  local entry = call('XRANGE', EVENTS .. name, id(fe, fs + 1), '+', 'COUNT', 1)[1]
  return entry and parse(entry)
end

local function last_entry(name)
  local entry = call('XREVRANGE', EVENTS .. name, '+', '-', 'COUNT', 1)[1]
  return entry and parse(entry)
end

-- What is there of a stream: top, oldest, events and bytes.
local function span(name, m)
  local at = { te = m.te, ts = m.ts, ev = 0, by = 0, fe = m.fe, fs = m.fs, cev = 0, cby = 0 }
  if m.one then
    at.ev, at.by, at.oe, at.os = 1, m.by, m.te, m.ts
    return at
  end
  local last = last_entry(name)
  if not last then
    at.none = true
    return at
  end
  if before(at.te, at.ts, last.e, last.s) then at.te, at.ts = last.e, last.s end
  if before(at.fe, at.fs, last.fe, last.fs) then at.fe, at.fs = last.fe, last.fs end
  at.cev, at.cby = last.ev, last.by
  local first = first_entry(name, at.fe, at.fs)
  if not first then return at end
  local skip, skipped = 0, 0
  while skip < first.n and not before(at.fe, at.fs, first.e, first.first + skip) do
    skip = skip + 1
    skipped = skipped + first.lens[skip]
  end
  at.ev = last.ev - first.ev + first.n - skip
  at.by = last.by - first.by + first.size - skipped
  if skip < first.n then
    at.oe, at.os, at.first, at.skip = first.e, first.first + skip, first, skip
  end
  return at
end

-- Counts of an open stream are made true.
local function account(session, name, m, at)
  local ev, by = at.ev - m.ev, at.by - m.by
  m.ev, m.by = at.ev, at.by
  return count(session, 0, ev, by, 0)
end

-- Evicts the oldest events, down to `events` and `bytes`; never the newest,
-- unless `all`.
local function evict(name, m, at, events, bytes, all)
  local over = function() return (at.ev > events or at.by > bytes) and (at.ev > 1 or all) end
  while over() and at.first do
    local first, skip = at.first, at.skip
    while skip < first.n and over() do
      skip = skip + 1
      at.ev, at.by = at.ev - 1, at.by - first.lens[skip]
    end
    m.fe, m.fs = first.e, first.first + skip - 1
    if skip >= first.n then
      if at.ev == 0 then
        m.te, m.ts = at.te, at.ts
        call('XTRIM', EVENTS .. name, 'MAXLEN', '=', 0)
      else
        call('XTRIM', EVENTS .. name, 'MINID', '=', id(first.e, first.s + 1))
      end
    end
    at = span(name, m)
  end
  return at
end

-- Whether the server has evicted the events of an open stream, which had some.
local function is_evicted(name, m)
  return not m.one and m.ev > 0 and call('EXISTS', EVENTS .. name) == 0
end

local function remove(session, name, m)
  call('HDEL', ROOT .. ':z', name)
  call('ZREM', ROOT .. ':f', name)
  call('UNLINK', EVENTS .. name, ROOT .. ':x:' .. name)
  count(session, -1, -m.ev, -m.by, 0)
end

-- What is left of a stream of this name that has expired.
local function drop_expired(session, name)
  local raw = call('HGET', ROOT .. ':z', name)
  if raw then remove(session, name, cmsgpack.unpack(raw)) end
end

-- An epoch above this one that no other history can have used: two restores of one
-- copy would otherwise issue ids again.
local function next_epoch(epoch, generation)
  local byte = string.byte(generation, 8)
  return math.max(epoch + 1, math.floor((NOW - 1735689600000) / 250) + byte % 4)
end

-- The standalone stream. One that was there before, or in another history, may
-- have been read: the new one begins in an epoch of its own, and its first event
-- follows all of the former one. How far another history has got is not known.
local function make_shared(session, name, generation)
  local m = { n = 0, be = 0, bs = 0, te = 0, ts = 0, fe = 0, fs = 0, ev = 0, by = 0, w = 1 }
  if session.epoch > 0 or session.born ~= generation then
    m.te, m.g = next_epoch(session.epoch, generation), generation
    m.pe = session.born == generation and session.epoch or m.te - 1
  end
  -- First what a full server refuses.
  save(name, m)
  drop_expired(session, name)
  call('UNLINK', EVENTS .. name)
  count(session, 1, 0, 0, 0)
  return m
end

-- Ends a stream: nothing is ever added to its events, not even by a command
-- that comes late.
local function finish(session, name, m, ttl, how)
  local at = NOW + ttl
  m.x, m.e = at, how
  call('HDEL', ROOT .. ':o', name)
  save(name, m, true)
  call('ZADD', ROOT .. ':f', at, name)
  bind(ROOT .. ':f')
  local events = EVENTS .. name
  if not m.one and call('EXISTS', events) == 1 then
    call('XSETID', events, '9007199254740991-0')
    call('PEXPIREAT', events, at)
  end
  due(session, at)
  calm()
end

local function lose_owner(session, name, m, ttl, payload)
  local at = span(name, m)
  account(session, name, m, at)
  m.te, m.ts = math.max(at.te, 1) + 1, 0
  finish(session, name, m, ttl, 'l')
  if m.h then knock(m.h, payload(name)) end
end

-- Removes finished streams and ends or forgets requests that are due, `budget`
-- together at most; returns how many streams and requests are gone, and how many
-- things were looked at.
local function purge(session, budget)
  local gone, seen = 0, 0
  for _, name in ipairs(call('ZRANGE', ROOT .. ':f', '-inf', NOW, 'BYSCORE', 'LIMIT', 0, budget)) do
    local raw = call('HGET', ROOT .. ':z', name)
    if raw then
      remove(session, name, cmsgpack.unpack(raw))
      gone = gone + 1
    else
      call('ZREM', ROOT .. ':f', name)
    end
    seen = seen + 1
  end
  for _, rid in ipairs(call('ZRANGE', ROOT .. ':d', '-inf', NOW, 'BYSCORE', 'LIMIT', 0, budget - seen)) do
    local raw = call('HGET', ROOT .. ':q', rid)
    local r = raw and cmsgpack.unpack(raw)
    if r and not r.k then
      r.k, r.due = 't', r.due + r.ttl
      call('HINCRBY', ROOT .. ':q', '#', -1)
      count(session, 0, 0, 0, -1)
      call('HSET', ROOT .. ':q', rid, cmsgpack.pack(r))
      call('ZADD', ROOT .. ':d', r.due, rid)
    end
    if not r or r.due <= NOW then
      call('HDEL', ROOT .. ':q', rid)
      call('ZREM', ROOT .. ':d', rid)
      if r then gone = gone + 1 end
    end
    seen = seen + 1
  end
  if seen > 0 then calm() end
  return gone, seen
end

-- What is due in the session goes, up to `budget`. One call where nothing is.
local function purge_due(session, budget)
  local first = call('ZSCORE', T .. ':u', SID)
  if first and tonumber(first) <= NOW then
    purge(session, budget)
    due_next()
  end
end

local function unlink_all(names)
  for _, name in ipairs(names) do
    call('UNLINK', EVENTS .. name, ROOT .. ':x:' .. name)
  end
  call('UNLINK', ROOT .. ':o', ROOT .. ':z', ROOT .. ':f', ROOT .. ':q', ROOT .. ':d', ROOT .. ':w')
end

local function unlist()
  call('ZREM', T .. ':i', SID)
  call('ZREM', T .. ':u', SID)
  call('ZREM', T .. ':l', SID)
end

-- Names of 16 bytes each, the last eight of them: of updates that won, of waiters
-- that were replaced, and of tries that ended a request.
local function remember(names, name)
  return string.sub((names or '') .. name, -128)
end

-- How many names were remembered after this one; nil where it is none of them.
local function age_of(names, name)
  for at = 1, names and #names or 0, 16 do
    if string.sub(names, at, at + 15) == name then return (#names - at - 15) / 16 end
  end
end

-- The state of a stream: top, oldest, end, owner, holder, number, cancelled, floor,
-- and the holds of the standalone one, each as its number and where it began.
local function state(m, at)
  local holds = {}
  for k, hold in ipairs(m.hs or {}) do
    holds[k] = string.format('%.0f %s', hold[1], id(hold[2], hold[3]))
  end
  return {
    id(at.te, at.ts), at.oe and id(at.oe, at.os) or '', m.e or '', m.o or '', m.h or '',
    string.format('%.0f', m.n), m.c and 1 or 0, id(at.fe, at.fs), table.concat(holds, ','),
  }
end
