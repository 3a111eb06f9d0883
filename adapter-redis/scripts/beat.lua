-- Writes a heartbeat and reads all (F3).
-- KEYS[1] `{prefix:beats}:h`
-- ARGV[2] instance  [3] its counter  [4] ms to keep it
-- Returns instance, counter...
local ttl = tonumber(ARGV[4])
local times = string.sub(KEYS[1], 1, -2) .. 't'
for _, instance in ipairs(call('ZRANGE', times, '-inf', NOW, 'BYSCORE')) do
  call('HDEL', KEYS[1], instance)
  call('ZREM', times, instance)
end
-- A counter never falls: a late repeat must not take life away.
local stored = tonumber(call('HGET', KEYS[1], ARGV[2]) or -1)
if tonumber(ARGV[3]) > stored then call('HSET', KEYS[1], ARGV[2], ARGV[3]) end
call('ZADD', times, NOW + ttl, ARGV[2])
for _, key in ipairs({ KEYS[1], times }) do
  if call('PTTL', key) < ttl then call('PEXPIRE', key, ttl) end
end
return call('HGETALL', KEYS[1])
