-- Removes what has expired in a partition (S5).
-- KEYS[1] the partition's list of sessions
-- ARGV[2] things to look at at most
-- Returns how many sessions, streams and requests are gone, and how many things are
-- due still.
local budget, gone, seen = tonumber(ARGV[2]), 0, 0
for _, sid in ipairs(call('ZRANGE', T .. ':i', '-inf', NOW, 'BYSCORE', 'LIMIT', 0, budget)) do
  use(sid)
  -- It may have been touched by a command that lost its place in the list.
  local at = call('PEXPIRETIME', ROOT)
  if at > NOW then
    call('ZADD', T .. ':i', at, sid)
  else
    uncount()
    unlist()
    gone = gone + 1
  end
  seen = seen + 1
end
if seen < budget then
  for _, sid in ipairs(call('ZRANGE', T .. ':u', '-inf', NOW, 'BYSCORE', 'LIMIT', 0, budget - seen)) do
    if seen >= budget then break end
    use(sid)
    local session = load()
    if session then
      local removed, looked = purge(session, budget - seen)
      gone, seen = gone + removed, seen + looked
      due_next()
    else
      call('ZREM', T .. ':u', sid)
    end
  end
end
local left = call('ZCOUNT', T .. ':i', '-inf', NOW) + call('ZCOUNT', T .. ':u', '-inf', NOW)
return { gone, left }
