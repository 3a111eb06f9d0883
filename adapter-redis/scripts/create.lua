-- Creates a session (S1).
-- KEYS[1] root
-- ARGV[2] principal  [3] creator  [4] record  [5] idle ms  [6] absolute ms or ''
-- ARGV[last] the server's generation, 8 bytes
-- Returns 1 where it is there by this creator, else 0.
local header = call('GETRANGE', ROOT, 0, 84)
if #header > 0 then
  return string.sub(header, 34, 49) == ARGV[3] and 1 or 0
end
-- A deleted session does not come back by a command that comes late.
local dead = call('ZSCORE', ROOT .. ':g', ARGV[3])
if dead and tonumber(dead) > NOW then return 0 end
-- What an expired or evicted root may have left.
local names = call('HKEYS', ROOT .. ':o')
for _, name in ipairs(call('HKEYS', ROOT .. ':z')) do names[#names + 1] = name end
local idle = tonumber(ARGV[5])
local at, hard = NOW + idle, 0
if ARGV[6] ~= '' then
  hard = NOW + tonumber(ARGV[6])
  at = math.min(at, hard)
end
local again = call('EXISTS', ROOT .. ':g')
local packed = struct.pack(
  '>Bc32c16I8I8I8I4c8BB', 1, ARGV[2], ARGV[3], idle, hard, 1, 0, ARGV[#ARGV], again, 0
)
-- First what a full server refuses.
call('SET', ROOT, packed .. ARGV[4], 'PXAT', string.format('%.0f', at))
unlink_all(names)
uncount()
unlist()
call('ZADD', T .. ':i', at, SID)
keep(T .. ':i', at)
return 1
