-- Removes a session with all that belongs to it (S4).
-- KEYS[1] root
-- ARGV[2] principal  [3] how long the creator is remembered, ms
-- Returns 0: no session of this principal, or the instances that own or hold
-- something of it.
local session = load()
if not session or session.principal ~= ARGV[2] then return 0 end
local parties, names = {}, {}
for part, open in pairs({ [':o'] = true, [':z'] = false }) do
  local all = call('HGETALL', ROOT .. part)
  for i = 1, #all, 2 do
    local m = cmsgpack.unpack(all[i + 1])
    names[#names + 1] = all[i]
    if open and m.o then parties[m.o] = true end
    if m.h then parties[m.h] = true end
  end
end
local requests = call('HGETALL', ROOT .. ':q')
for i = 1, #requests, 2 do
  if requests[i] ~= '#' then
    local r = cmsgpack.unpack(requests[i + 1])
    if not r.k and r.due > NOW then parties[r.o] = true end
  end
end
call('UNLINK', ROOT)
unlink_all(names)
-- The last 64 that had the key, for as long as a command can be held up.
local ttl = tonumber(ARGV[3])
call('ZREMRANGEBYSCORE', ROOT .. ':g', '-inf', NOW)
call('ZADD', ROOT .. ':g', NOW + ttl, session.creator)
call('ZREMRANGEBYRANK', ROOT .. ':g', 0, -65)
call('PEXPIRE', ROOT .. ':g', ttl)
uncount()
unlist()
local list = {}
for instance in pairs(parties) do list[#list + 1] = instance end
return list
