-- Ends streams and requests of dead owners in a partition (F3).
-- KEYS[1] the partition's list of busy sessions
-- ARGV[2] the session after which to go on, or ''  [3] sessions to look at
-- ARGV[4] things to end at most  [5] ms to keep a stream
-- ARGV[6..] dead owner, its counter or ''
-- Returns how many were ended and where to go on, '' at the end.
local from = ARGV[2] == '' and '-' or '(' .. ARGV[2]
local visits, budget, ttl = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local dead, any = {}, false
for k = 6, #ARGV, 2 do
  if is_dead(ARGV[k], ARGV[k + 1]) then
    dead[ARGV[k]] = true
    any = true
  end
end
if not any then return { 0, '' } end
local ended, on = 0, ''
local sessions = call('ZRANGE', T .. ':l', from, '+', 'BYLEX', 'LIMIT', 0, visits)
for _, sid in ipairs(sessions) do
  use(sid)
  local session = load()
  if session then
    local payload = function(name) return 'w' .. sid .. 's' .. name end
    local all = call('HGETALL', ROOT .. ':o')
    for i = 1, #all, 2 do
      local m = cmsgpack.unpack(all[i + 1])
      if ended < budget and m.o and dead[m.o] then
        lose_owner(session, all[i], m, ttl, payload)
        ended = ended + 1
      end
    end
    local requests = call('HGETALL', ROOT .. ':q')
    for i = 1, #requests, 2 do
      if requests[i] ~= '#' and ended < budget then
        local r = cmsgpack.unpack(requests[i + 1])
        if not r.k and r.due > NOW and dead[r.o] then
          r.k, r.due = 'o', NOW + r.ttl
          call('HSET', ROOT .. ':q', requests[i], cmsgpack.pack(r))
          call('ZADD', ROOT .. ':d', r.due, requests[i])
          call('HINCRBY', ROOT .. ':q', '#', -1)
          count(session, 0, 0, 0, -1)
          due(session, r.due)
          ended = ended + 1
        end
      end
    end
    calm()
  else
    call('ZREM', T .. ':l', sid)
  end
  -- A session that took the rest of the budget may have more.
  if ended >= budget then return { ended, on == '' and ARGV[2] or on, 1 } end
  on = sid
end
if #sessions < visits then on = '' end
return { ended, on }
