-- Ends the stream of a dead owner in a new epoch and wakes its holder (F3).
-- KEYS[1] root
-- ARGV[2] stream  [3] dead owner  [4] its counter or ''  [5] ms to keep the stream
-- ARGV[6] the knock without the name of the stream
-- Returns 1 where it is ended now, else 0.
local session = load()
if not session then return 0 end
local m, finished = stream_of(ARGV[2])
if not m or finished or m.o ~= ARGV[3] or not is_dead(ARGV[3], ARGV[4]) then return 0 end
lose_owner(session, ARGV[2], m, tonumber(ARGV[5]), function(name) return ARGV[6] .. name end)
return 1
