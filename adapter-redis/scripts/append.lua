-- Appends to one stream what the native command cannot decide: its first and
-- its last event, repeats, refusals, the standalone stream, and every event that
-- slides the expiry or brings the counts up to date (E1, E4, E6, E8).
-- KEYS[1] root
-- ARGV[2] stream  [3] the knock for the holder  [4] number of appends, then for each:
--   `o` and the owner, `w` and one of several writers, or '' for the same as before;
--   position as `epoch-seq`, or the tag; `epoch-seq` that it follows, or '';
--   whether it has an event; its payload; ms to keep the finished stream, or '';
--   how it ends; events and bytes to keep; where to trim, or ''; whom to wake, or ''
-- ARGV[last] the server's generation, 8 bytes
-- Returns -1: no session, -2: no stream, or its events are gone, or
--   holder, bytes of the session, bytes of the principal, for how long the expiry
--   need not be slid, events and bytes since the stream began, whether events are
--   there to be added to, version of the holds, the time in ms, what is between
--   `root:e:` and the stream in the key of the events, the top, then for each append 0: stored, or 3: stored before, and its position, or 1: fenced, 2: finished,
--   4: no stream, and ''.
local session = load()
if not session then return -1 end
local name, generation = ARGV[2], ARGV[#ARGV]
local m, finished = stream_of(name)
local events = EVENTS .. name
local shared, writer = false, ''
-- What was there before the batch has ended; what `flush` has stored of the batch.
local ended, at = finished, nil
-- The top, and events and bytes since the stream began, the batch included.
local te, ts, cev, cby
-- Events of the batch that are still to be stored, and what they may leave.
local new, keep_events, keep_bytes, floor = {}, nil, nil, nil
-- Highest numbers of writers; those of the batch are still to be stored.
local known, tags = {}, {}
local ends, wake
-- The server has evicted its events: its writer opens it again, and writes what it
-- has of it.
local lost

local function look()
  at = span(name, m)
  te, ts, cev, cby = at.te, at.ts, at.cev, at.cby
end

local function blob_of(list, from, to)
  local flags, count_, size = 0, to - from + 1, 0
  local lens, datas = {}, {}
  for k = from, to do
    size = size + #list[k].data
    lens[#lens + 1] = struct.pack('>I4', #list[k].data)
    if list[k].tag then lens[#lens + 1] = struct.pack('>I8', list[k].tag) end
    datas[#datas + 1] = list[k].data
  end
  cev, cby = cev + count_, cby + size
  local prev = ''
  if list[from].prev ~= '' then
    flags = flags + 1
    local pe, unknown = string.match(list[from].prev, '^(%d+)-(m)$')
    if unknown then
      prev = struct.pack('>I4', tonumber(pe)) .. string.rep('\255', 8)
    else
      local a, b = of_id(list[from].prev)
      prev = struct.pack('>I4I8', a, b)
    end
  end
  if list[from].tag then
    flags = flags + 2
    prev = prev .. list[from].writer
  end
  local head = struct.pack(HEAD, 1, flags, count_, list[from].s, cev, cby, NOW, m.fe, m.fs)
  return head .. prev .. table.concat(lens) .. table.concat(datas)
end

-- Whether an event is part of the entry of the one before it.
local function goes_on(one, next)
  return next.e == one.e and next.s == one.s + 1 and next.prev == '' and next.writer == one.writer
end

-- Stores the events so far, and evicts what they leave no room for.
local function flush(last)
  if #new == 0 and not floor then return end
  for who, tag in pairs(tags) do
    call('HSET', ROOT .. ':w', who, string.format('%.0f', tag))
    bind(ROOT .. ':w')
  end
  if floor and before(m.fe, m.fs, floor.e, floor.s) then m.fe, m.fs = floor.e, floor.s end
  if before(m.te, m.ts, te, ts) then m.te, m.ts = te, ts end
  if last and ends and #new == 1 and m.o and at.none and call('EXISTS', events) == 0 then
    -- The only event of its stream: a stream of one costs ten times as much.
    call('SET', ROOT .. ':x:' .. name, blob_of(new, 1, 1), 'PX', ends.ttl)
    m.one = 1
    at.ev, at.by = 1, #new[1].data
  else
    local from = 1
    for k = 1, #new do
      if k == #new or not goes_on(new[k], new[k + 1]) then
        call('XADD', events, id(new[k].e, new[k].s), 'd', blob_of(new, from, k))
        from = k + 1
      end
    end
    if floor then call('XTRIM', events, 'MINID', '=', id(m.fe, m.fs + 1)) end
    at = span(name, m)
    if #new > 0 then at = evict(name, m, at, keep_events, keep_bytes, false) end
  end
  new, floor, tags = {}, nil, {}
end

-- Whether this event is there.
local function has(e, s)
  flush()
  if m.one then return m.te == e and m.ts == s end
  if not before(at.fe, at.fs, e, s) then return false end
  local entry = call('XRANGE', events, id(e, s), '+', 'COUNT', 1)[1]
  if not entry then return false end
  entry = parse(entry)
  return entry.e == e and entry.first <= s
end

-- Where the event of this number is, if it was stored.
local function tagged(tag)
  if not known[writer] then
    known[writer] = tonumber(call('HGET', ROOT .. ':w', writer) or -1)
  end
  if tag > known[writer] then return nil end
  flush()
  local from = '+'
  while true do
    local page = call('XREVRANGE', events, from, '-', 'COUNT', 32)
    for _, raw in ipairs(page) do
      local entry = parse(raw)
      if entry.writer == writer then
        for i = 1, entry.n do
          if entry.tags[i] == tag then return entry.e, entry.first + i - 1 end
        end
      end
      from = '(' .. raw[1]
    end
    if #page < 32 then break end
  end
  -- Evicted: the place before what is left stands for it.
  if at.oe then return at.oe, at.os - 1 end
  return te, ts
end

-- The next event, of a batch that may be kept in another way than those before it.
local function push(event, events_, bytes_)
  if keep_events ~= events_ or keep_bytes ~= bytes_ then flush() end
  keep_events, keep_bytes = events_, bytes_
  te, ts = event.e, event.s
  new[#new + 1] = event
end

-- An event of the standalone stream, at its next place.
local function push_shared(tag, data, events_, bytes_)
  local event = { data = data, prev = '', tag = tag, writer = writer, e = te, s = ts + 1 }
  if te == 0 or m.g ~= generation then
    m.pe = te
    event.e, event.s = next_epoch(te, generation), 1
    m.g = generation
  end
  if m.pe and m.pe > 0 then event.prev = string.format('%.0f-m', m.pe) end
  m.pe = nil
  push(event, events_, bytes_)
  known[writer], tags[writer] = tag, tag
end

-- The answer to one append: its code, and where it is.
local function admit(place, prev, data, events_, bytes_)
  if shared then
    if m.o then return 1 end
    local tag = tonumber(place)
    if data then
      local e, s = tagged(tag)
      if e then return 3, e, s end
    end
    if ended then
      if data then return 2 end
      return 3, te, ts
    end
    if data then push_shared(tag, data, events_, bytes_) end
    return 0, te, ts
  end
  if m.o ~= writer then return 1 end
  local e, s = of_id(place)
  if not data and ended and e >= te then return 3, te, ts end
  if data then
    if e == te and s <= ts then return 3, e, s end
    if e < te and has(e, s) then return 3, e, s end
  end
  if e < te then return 1 end
  if ended then return (m.e or ends.how) == 'l' and 1 or 2 end
  if data then
    push({ data = data, prev = prev, writer = writer, e = e, s = s }, events_, bytes_)
  elseif before(te, ts, e, s) then
    te, ts = e, s
  end
  return 0, te, ts
end

local result, stored = {}, false
if m then look() end
lost = m and m.o and not finished and is_evicted(name, m)
local i = 5
for n = 1, tonumber(ARGV[4]) do
  if ARGV[i] ~= '' then shared, writer = string.byte(ARGV[i]) == 119, string.sub(ARGV[i], 2) end
  if not m and shared then
    m = make_shared(session, name, generation)
    look()
  end
  local code, e, s
  if not m or (lost and not shared and m.o == writer) then
    code = 4
  else
    local data = ARGV[i + 3] == '1' and ARGV[i + 4] or nil
    code, e, s = admit(ARGV[i + 1], ARGV[i + 2], data, tonumber(ARGV[i + 7]), tonumber(ARGV[i + 8]))
  end
  if code == 0 then
    if ARGV[i + 5] ~= '' then
      ends = { ttl = tonumber(ARGV[i + 5]), how = ARGV[i + 6] }
      ended = true
    end
    if ARGV[i + 9] ~= '' then
      local fe, fs = of_id(ARGV[i + 9])
      if not floor or before(floor.e, floor.s, fe, fs) then floor = { e = fe, s = fs } end
    end
  end
  if code == 0 or code == 3 then
    stored = true
    if ARGV[i + 10] ~= '' then wake = ARGV[i + 10] end
    result[2 * n - 1], result[2 * n] = code, id(e, s)
  else
    result[2 * n - 1], result[2 * n] = code, ''
  end
  i = i + 11
end
if not m then return -2 end

local there, bytes, total = false, nil, nil
if not finished and not lost then
  flush(true)
  if before(m.te, m.ts, te, ts) then m.te, m.ts = te, ts end
  bytes, total = account(session, name, m, at)
  if not m.o and te > session.epoch then
    call('SETRANGE', ROOT, 73, struct.pack('>I4', te))
  end
  if ends then
    finish(session, name, m, ends.ttl, ends.how)
    finished = true
  else
    save(name, m)
  end
end
local fresh = 0
if stored then
  fresh = touch(session)
  if wake then knock(wake, ARGV[3]) end
end
if not finished and call('EXISTS', events) == 1 then
  bind(events)
  there = true
end
local answer = {
  m.h or '', bytes or session_bytes(), total or principal_bytes(session), fresh, cev, cby,
  there and 1 or 0, there and holds_version() or '0', NOW, session.life,
  id(te, ts),
}
for k = 1, #result do answer[11 + k] = result[k] end
return answer
