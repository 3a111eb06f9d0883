-- Ends a client request (C2, C4).
-- KEYS[1] root
-- ARGV[2] id  [3] token or ''  [4] outcome  [5] payload  [6] dead owner or ''
-- ARGV[7] its counter or ''  [8] attempt  [9] the knock for the owner, which lacks the
-- token at its end where it begins with `O`
-- Returns 'won', 'alive', 'unknown', or the outcome that it has.
local session = load()
if not session then return 'unknown' end
local key, rid = ROOT .. ':q', ARGV[2]
local raw = call('HGET', key, rid)
if not raw then return 'unknown' end
local r = cmsgpack.unpack(raw)
local kind, last = r.k, r.due
if not kind and r.due <= NOW then
  kind, last = 't', r.due + r.ttl
end
if kind and last <= NOW then return 'unknown' end
local message = ARGV[9]
if string.byte(message) == 79 then message = message .. r.t end
if r.a == ARGV[8] then
  knock(r.o, message)
  return 'won'
end
if age_of(r.w, ARGV[8]) then return 'won' end
if ARGV[3] ~= '' and ARGV[3] ~= r.t then return 'p' end
if kind then return kind end
if ARGV[6] ~= '' and not (r.o == ARGV[6] and is_dead(ARGV[6], ARGV[7])) then return 'alive' end
-- First what a full server allows, so that an answer is taken all the same: no
-- request has an empty name.
call('HDEL', key, '')
r.k, r.p, r.a, r.due = ARGV[4], ARGV[5], ARGV[8], NOW + r.ttl
-- Its own is one of the eight.
if r.w then r.w = string.sub(r.w, -112) end
call('HSET', key, rid, cmsgpack.pack(r))
call('ZADD', ROOT .. ':d', r.due, rid)
bind(ROOT .. ':d')
call('HINCRBY', key, '#', -1)
count(session, 0, 0, 0, -1)
due(session, r.due)
calm()
knock(r.o, message)
return 'won'
