-- Reads a page and the state of one stream at one instant (E2).
-- KEYS[1] root
-- ARGV[2] stream  [3] after, `epoch-seq`  [4] entries at most  [5] bytes at most
-- ARGV[6] whether to slide the expiry
-- Returns -1: no session, -2: no stream, or the state and entries: id, record...
local session = load()
if not session then return -1 end
if ARGV[6] == '1' then touch(session) end
local name = ARGV[2]
local m = stream_of(name)
if not m then return -2 end
local at = span(name, m)
local answer = state(m, at)
local max, bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
if max == 0 then return answer end
local e, s = of_id(ARGV[3])
if m.one then
  local blob = before(e, s, m.te, m.ts) and call('GET', ROOT .. ':x:' .. name)
  if blob then
    answer[#answer + 1] = id(m.te, m.ts)
    answer[#answer + 1] = blob
  end
  return answer
end
-- Bytes of the events in an entry; at least one for each.
local function payload(blob)
  if #blob < 50 then return 1 end
  local n = struct.unpack('>I4', blob, 3)
  return math.max(#blob - 50 - 4 * n, n)
end

-- What is at or before the floor may be there still, and is no event any more.
local after = before(e, s, at.fe, at.fs) and id(at.fe, at.fs) or ARGV[3]
local from, chunk = '(' .. after, 4
while max > 0 and bytes > 0 do
  local page = call('XRANGE', EVENTS .. name, from, '+', 'COUNT', math.min(chunk, max))
  for _, entry in ipairs(page) do
    answer[#answer + 1] = entry[1]
    answer[#answer + 1] = entry[2][2] or ''
    bytes = bytes - payload(answer[#answer])
    from = '(' .. entry[1]
  end
  if #page < math.min(chunk, max) then break end
  max = max - #page
  chunk = chunk * 2
end
return answer
