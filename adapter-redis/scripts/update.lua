-- Replaces the record if its revision is this (S2).
-- KEYS[1] root
-- ARGV[2] revision  [3] record
-- Returns the new revision, 0: another one is stored, -1: no session.
local session = load()
if not session then return -1 end
local revision = tonumber(ARGV[2])
if session.rev == revision then
  local header = call('GETRANGE', ROOT, 0, 84)
  local rev = struct.pack('>I8', revision + 1)
  call('SET', ROOT, string.sub(header, 1, 65) .. rev .. string.sub(header, 74) .. ARGV[3], 'KEEPTTL')
  return revision + 1
end
if session.rev == revision + 1 and call('GETRANGE', ROOT, 85, -1) == ARGV[3] then
  return session.rev
end
return 0
