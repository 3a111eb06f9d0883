-- Brings a session's events under a number of bytes (E4).
-- KEYS[1] root
-- ARGV[2] bytes
-- Returns the bytes that are left.
local session = load()
if not session then return 0 end
local max = tonumber(ARGV[2])
local open = {}
for _, name in ipairs(call('HKEYS', ROOT .. ':o')) do
  local m = stream_of(name)
  local at = span(name, m)
  account(session, name, m, at)
  open[name] = { m = m, at = at }
end
while session_bytes() > max do
  local name = call('ZRANGE', ROOT .. ':f', 0, 0)[1]
  if not name then break end
  local raw = call('HGET', ROOT .. ':z', name)
  if raw then remove(session, name, cmsgpack.unpack(raw)) else call('ZREM', ROOT .. ':f', name) end
end
while session_bytes() > max do
  local oldest
  for name, stream in pairs(open) do
    local first = stream.at.first
    if first and (not oldest or first.at < open[oldest].at.first.at) then oldest = name end
  end
  if not oldest then break end
  local stream = open[oldest]
  stream.at = evict(oldest, stream.m, stream.at, stream.at.ev - 1, stream.at.by, true)
  account(session, oldest, stream.m, stream.at)
end
for name, stream in pairs(open) do save(name, stream.m) end
due_next()
return session_bytes()
