-- Raises the copy of a heartbeat in a partition of a Cluster (F3).
-- KEYS[1] the copy
-- ARGV[2] the counter  [3] ms to keep it
-- A counter never falls: a late repeat must not take life away.
local stored = tonumber(call('GET', KEYS[1]) or 0)
if tonumber(ARGV[2]) >= stored then call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
