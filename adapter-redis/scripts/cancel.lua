-- Marks the one open stream of a request as cancelled and wakes its owner.
-- KEYS[1] root
-- ARGV[2] request  [3] the knock without the name of the stream
-- Returns -1: no session, 0: not running, 2: more than one, or the stream.
if not load() then return -1 end
local found, name
local all = call('HGETALL', ROOT .. ':o')
for i = 1, #all, 2 do
  local m = cmsgpack.unpack(all[i + 1])
  if m.r == ARGV[2] then
    if found then return 2 end
    found, name = m, all[i]
  end
end
if not found then return 0 end
if not found.c then
  found.c = true
  save(name, found)
end
knock(found.o, ARGV[3] .. name)
return name
