-- Counts of a partition (S6), and how many things in it are due to be swept.
-- KEYS[1] the partition's list of sessions
-- Returns due, busy, sessions, streams, events, bytes, pending requests.
local last = call('ZRANGE', T .. ':i', -1, -1, 'WITHSCORES')[2]
if last then
  for _, part in ipairs({ ':i', ':u', ':l', ':n', ':c' }) do keep(T .. part, tonumber(last)) end
  keep(BYTES, tonumber(last))
  keep(VERSION, tonumber(last))
end
local c = call('HMGET', T .. ':c', 's', 'e', 'b', 'p')
local n = function(text) return math.max(tonumber(text or 0) or 0, 0) end
return {
  call('ZCOUNT', T .. ':i', '-inf', NOW) + call('ZCOUNT', T .. ':u', '-inf', NOW),
  call('ZCARD', T .. ':l'),
  call('ZCOUNT', T .. ':i', '(' .. string.format('%.0f', NOW), '+inf'),
  n(c[1]), n(c[2]), n(c[3]), n(c[4]),
}
