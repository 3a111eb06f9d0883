-- Stores a client request (C1, C7).
-- KEYS[1] root
-- ARGV[2] id  [3] token  [4] owner  [5] timeout ms  [6] ms to keep the outcome
-- ARGV[7] pending requests at most
-- Returns 0: done, 1: too many, -1: no session, or the owner that was replaced.
local session = load()
if not session then return -1 end
-- Those past their deadline do not count.
purge_due(session, 1024)
local key, rid = ROOT .. ':q', ARGV[2]
local raw = call('HGET', key, rid)
local former = raw and cmsgpack.unpack(raw)
if former and (former.t == ARGV[3] or age_of(former.f, ARGV[3])) then return 0 end
local waits = former and not former.k
if pending() - (waits and 1 or 0) >= tonumber(ARGV[7]) then return 1 end
local r = { t = ARGV[3], o = ARGV[4], due = NOW + tonumber(ARGV[5]), ttl = tonumber(ARGV[6]) }
-- What comes late of the requests before it changes nothing of this one.
if former then
  r.f = remember(former.f, former.t)
  r.w = former.a and remember(former.w, former.a) or former.w
end
call('HSET', key, rid, cmsgpack.pack(r))
call('ZADD', ROOT .. ':d', r.due, rid)
if not waits then
  if call('HINCRBY', key, '#', 1) == 1 then
    bind(key)
    busy(session)
  end
  count(session, 0, 0, 0, 1)
end
bind(ROOT .. ':d')
due(session, r.due)
return waits and former.o or 0
