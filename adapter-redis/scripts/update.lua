-- Replaces the record if the session is the principal's and has this revision (S2).
-- KEYS[1] root
-- ARGV[2] principal  [3] revision  [4] the name of this update  [5] record
-- Returns the revision that it made, now or by an earlier try, 0: another one is
-- stored, -1: no session of this principal.
local session = load()
if not session or session.principal ~= ARGV[2] then return -1 end
local head = call('GETRANGE', ROOT, 0, 214)
local names = string.sub(head, 88, 87 + 16 * string.byte(head, 87))
local age = age_of(names, ARGV[4])
if age then return session.rev - age end
if session.rev ~= tonumber(ARGV[3]) then return 0 end
names = remember(names, ARGV[4])
local rev = struct.pack('>I8', session.rev + 1)
head = string.sub(head, 1, 65) .. rev .. string.sub(head, 74, 86) .. string.char(#names / 16)
call('SET', ROOT, head .. names .. ARGV[5], 'KEEPTTL')
return session.rev + 1
