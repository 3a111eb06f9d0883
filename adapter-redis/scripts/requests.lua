-- Reads a client request (C5).
-- KEYS[1] root
-- ARGV[2] id  [3] token or ''
-- Returns -1: no session, -2: not stored, {'', owner}: it waits, or outcome and
-- payload.
if not load() then return -1 end
local raw = call('HGET', ROOT .. ':q', ARGV[2])
if not raw then return -2 end
local r = cmsgpack.unpack(raw)
local kind, last = r.k, r.due
if not kind and r.due <= NOW then
  kind, last = 't', r.due + r.ttl
end
if kind and last <= NOW then return -2 end
if ARGV[3] ~= '' and ARGV[3] ~= r.t then return { 'p', '' } end
if not kind then return { '', r.o } end
return { kind, r.p or '' }
