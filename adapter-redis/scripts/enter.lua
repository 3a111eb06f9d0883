-- Reads a session, slides its expiry, and opens a stream, or opens it again where
-- the server has evicted its events (S3, E4, E5).
-- KEYS[1] root
-- ARGV[2] principal  [3] stream or ''  [4] owner  [5] request  [6] open streams at most
-- ARGV[7] bytes of the principal at most  [8] its bytes in all partitions as of a
-- moment ago (Cluster), or 0
-- Returns 0: no session, 1: too many streams, 2: the principal's share is used up,
-- or record, revision, for how long the expiry need not be slid.
local session = load(true)
if not session or session.principal ~= ARGV[2] then return 0 end
local name = ARGV[3]
local m, finished, expired
if name ~= '' then m, finished, expired = stream_of(name) end
if m and not finished and m.o == ARGV[4] and is_evicted(name, m) then
  -- As if it had no event yet: what comes now, at whatever place, is new.
  count(session, 0, -m.ev, -m.by, 0)
  m.ev, m.by, m.te, m.ts = 0, 0, m.fe, m.fs
  save(name, m)
elseif name ~= '' and not m then
  if open_calls() >= tonumber(ARGV[6]) then return 1 end
  -- Those of this partition are known as of now.
  local bytes = tonumber(call('HGET', BYTES, session.principal) or 0)
  if math.max(bytes, tonumber(ARGV[8])) > tonumber(ARGV[7]) then return 2 end
  m = { o = ARGV[4], r = ARGV[5], h = ARGV[4], n = 1, be = 0, bs = 0, te = 0, ts = 0, fe = 0, fs = 0, ev = 0, by = 0 }
  -- First what a full server refuses.
  save(name, m)
  purge_due(session, 16)
  if expired then drop_expired(session, name) end
  call('UNLINK', EVENTS .. name, ROOT .. ':x:' .. name)
  count(session, 1, 0, 0, 0)
  busy(session)
end
local fresh = touch(session)
return { session.record, session.rev, fresh }
