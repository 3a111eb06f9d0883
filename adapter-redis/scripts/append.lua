-- Appends to one stream what the native command cannot decide: its first and
-- its last event, repeats, refusals, the standalone stream, and every event that
-- slides the expiry or brings the counts up to date (E1, E4, E6, E8).
-- KEYS[1] root
-- ARGV[2] stream  [3] `o`: has one writer, `w`: shared  [4] writer
-- ARGV[5] time of the writer, ms  [6] the knock for the holder
-- ARGV[7] number of appends, then for each:
--   position as `epoch-seq`, or the tag; `epoch-seq` that it follows, or '';
--   whether it has an event; its payload; ms to keep the finished stream, or '';
--   how it ends; events and bytes to keep; where to trim, or ''; whom to wake, or ''
-- ARGV[last] the server's generation, 8 bytes
-- Returns -1: no session, -2: no stream, or its events are gone, or
--   holder, bytes of the session, bytes of the principal, for how long the expiry
--   need not be slid, events and bytes since the stream began, whether events are
--   there to be added to, version of the holds, then for each append
--   0 and its position, or 1: fenced, 2: finished, and ''.
local session = load()
if not session then return -1 end
local name, shared, writer, generation = ARGV[2], ARGV[3] == 'w', ARGV[4], ARGV[#ARGV]
local m, finished = stream_of(name)
local events = ROOT .. ':e:' .. name
if not m then
  if not shared then return -2 end
  m = make_shared(session, name, generation)
end
-- Its writer opens it again, and writes what it has of it.
if not shared and not finished and m.o == writer and is_evicted(name, m) then return -2 end
local at = span(name, m)
local te, ts, cev, cby = at.te, at.ts, at.cev, at.cby
local new, stored, result, ends = {}, false, {}, nil
local keep_events, keep_bytes, floor, wake

local function has(e, s)
  if m.one then return m.te == e and m.ts == s end
  local entry = call('XRANGE', events, id(e, s), '+', 'COUNT', 1)[1]
  if not entry then return false end
  entry = parse(entry)
  return entry.e == e and entry.first <= s
end

-- Where the event of this number is, if it was stored.
local function tagged(tag)
  local known = call('HGET', ROOT .. ':w', writer)
  if not known then return nil end
  if tag > tonumber(known) then return nil end
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

local i = 8
for n = 1, tonumber(ARGV[7]) do
  local place, prev, event, data = ARGV[i], ARGV[i + 1], ARGV[i + 2] == '1', ARGV[i + 3]
  local finish_ttl, how = ARGV[i + 4], ARGV[i + 5]
  local code, e, s = 0, nil, nil
  if shared then
    local tag = tonumber(place)
    if event then e, s = tagged(tag) end
    if not e then
      if finished or ends then
        if event then code = 2 else e, s = te, ts end
      elseif m.o then
        code = 1
      elseif event then
        if te == 0 or m.lost or m.g ~= generation then
          -- An epoch that no other history can have used.
          local former = te
          local byte = string.byte(generation, 8)
          te = math.max(te + 1, math.floor((NOW - 1735689600000) / 250) + byte % 4)
          ts = 0
          if m.lost then former = te - 1 end
          if former > 0 then prev = string.format('%.0f-m', former) end
          m.g, m.lost = generation, nil
        end
        e, s = te, ts + 1
        te, ts = e, s
        new[#new + 1] = { e = e, s = s, data = data, prev = prev, tag = tag }
        call('HSET', ROOT .. ':w', writer, string.format('%.0f', tag))
        bind(ROOT .. ':w')
      else
        e, s = te, ts
      end
    end
  else
    local pe, ps = of_id(place)
    if m.o ~= writer then
      code = 1
    elseif not event and (finished or ends) and pe >= te then
      e, s = te, ts
    elseif event and ((pe == te and ps <= ts) or (before(pe, ps, te, ts) and has(pe, ps))) then
      e, s = pe, ps
    elseif pe < te then
      code = 1
    elseif finished or ends then
      code = ((m.e or ends.how) == 'l') and 1 or 2
    else
      if event then
        e, s = pe, ps
        new[#new + 1] = { e = e, s = s, data = data, prev = prev }
        te, ts = e, s
      else
        if before(te, ts, pe, ps) then te, ts = pe, ps end
        e, s = te, ts
      end
    end
  end
  if code == 0 and finish_ttl ~= '' and not finished and not ends then
    ends = { ttl = tonumber(finish_ttl), how = how }
  end
  if code == 0 then
    stored = true
    keep_events, keep_bytes = tonumber(ARGV[i + 6]), tonumber(ARGV[i + 7])
    if ARGV[i + 8] ~= '' then floor = ARGV[i + 8] end
    if ARGV[i + 9] ~= '' then wake = ARGV[i + 9] end
    result[2 * n - 1], result[2 * n] = 0, id(e, s)
  else
    result[2 * n - 1], result[2 * n] = code, ''
  end
  i = i + 10
end

local function blob_of(list, from, to)
  local flags, count_, size = 0, to - from + 1, 0
  local lens, datas = {}, {}
  for k = from, to do
    size = size + #list[k].data
    lens[#lens + 1] = struct.pack('>I4', #list[k].data)
    if shared then lens[#lens + 1] = struct.pack('>I8', list[k].tag) end
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
  if shared then
    flags = flags + 2
    prev = prev .. writer
  end
  local head = struct.pack(HEAD, 1, flags, count_, list[from].s, cev, cby, tonumber(ARGV[5]), m.fe, m.fs)
  return head .. prev .. table.concat(lens) .. table.concat(datas)
end

local there, bytes, total = false, nil, nil
if #new > 0 or ends then
  if floor then
    local fe, fs = of_id(floor)
    if before(m.fe, m.fs, fe, fs) then m.fe, m.fs = fe, fs end
  end
  if #new == 1 and ends and not shared and at.none and call('EXISTS', events) == 0 then
    -- The only event of its stream: a stream of one costs ten times as much.
    call('SET', ROOT .. ':x:' .. name, blob_of(new, 1, 1), 'PX', ends.ttl)
    m.one, m.te, m.ts = 1, te, ts
    at.ev, at.by = 1, #new[1].data
  else
    local from = 1
    for k = 1, #new do
      if k == #new or new[k + 1].e ~= new[k].e then
        call('XADD', events, id(new[k].e, new[k].s), 'd', blob_of(new, from, k))
        from = k + 1
      end
    end
    if before(m.te, m.ts, te, ts) then m.te, m.ts = te, ts end
    if floor then call('XTRIM', events, 'MINID', '=', id(m.fe, m.fs + 1)) end
    at = span(name, m)
    if #new > 0 then at = evict(name, m, at, keep_events, keep_bytes, false) end
  end
  bytes, total = account(session, name, m, at)
  if shared and session.epoch ~= te then
    call('SETRANGE', ROOT, 73, struct.pack('>I4', te))
  end
  if ends then
    finish(session, name, m, ends.ttl, ends.how)
    finished = true
  else
    save(name, m)
  end
elseif not finished then
  bytes, total = account(session, name, m, at)
  save(name, m)
end
local fresh = 0
if stored then
  fresh = touch(session)
  if wake then knock(wake, ARGV[6]) end
end
if not finished and call('EXISTS', events) == 1 then
  bind(events)
  there = true
end
local answer = {
  m.h or '', bytes or session_bytes(), total or principal_bytes(session), fresh, cev, cby,
  there and 1 or 0, there and holds_version() or '0',
}
for k = 1, #result do answer[8 + k] = result[k] end
return answer
