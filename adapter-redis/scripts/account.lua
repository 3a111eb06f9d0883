-- Brings the counts of streams up to date that were added to natively (S6).
-- KEYS[1] root
-- ARGV[2..] streams
local session = load()
if not session then return 0 end
for k = 2, #ARGV do
  local m, finished = stream_of(ARGV[k])
  if m and not finished then
    account(session, ARGV[k], m, span(ARGV[k], m))
    save(ARGV[k], m)
  end
end
return 1
