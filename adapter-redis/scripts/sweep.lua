-- Removes what has expired in a partition (S5).
-- KEYS[1] the partition's list of sessions
-- ARGV[2] things to remove at most
-- Returns how many went, and how many are left.
local budget, gone = tonumber(ARGV[2]), 0
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
end
if gone < budget then
  for _, sid in ipairs(call('ZRANGE', T .. ':u', '-inf', NOW, 'BYSCORE', 'LIMIT', 0, budget - gone)) do
    if gone >= budget then break end
    use(sid)
    local session = load()
    if session then
      gone = gone + purge(session, budget - gone)
      due_next()
    else
      call('ZREM', T .. ':u', sid)
    end
  end
end
local left = call('ZCOUNT', T .. ':i', '-inf', NOW) + call('ZCOUNT', T .. ':u', '-inf', NOW)
return { gone, left }
