-- Changes the holder of a stream (E9).
-- KEYS[1] root
-- ARGV[2] stream  [3] instance  [4] `t`: take, `f`: take from, `r`: release
-- ARGV[5] from whom, or ''  [6] its number, or the number to be released
-- ARGV[7] cursor of a release  [last] the server's generation, 8 bytes
-- Returns -1: no session, -2: no stream, {'', holder, number}: busy, or
-- number, former holder, cursor, and the state.
local session = load()
if not session then return -1 end
local name, me, how = ARGV[2], ARGV[3], ARGV[4]
local m, finished = stream_of(name)
if not m then
  if name ~= 'standalone' then return -2 end
  m = make_shared(session, name, ARGV[#ARGV])
end
local at = span(name, m)
local answer = function(number, former, cursor)
  local list = state(m, at)
  table.insert(list, 1, cursor)
  table.insert(list, 1, former or '')
  table.insert(list, 1, number)
  return list
end
local text = function(n) return string.format('%.0f', n) end
if how == 'r' then
  local number = tonumber(ARGV[6])
  if m.h == me and m.n == number then
    m.h = nil
    m.re, m.rs = of_id(ARGV[7])
    save(name, m, finished)
    if m.o and not finished then raise_holds() end
  end
  return answer(text(number), nil, ARGV[7])
end
if how == 'f' and m.h and not (m.h == ARGV[5] and text(m.n) == ARGV[6]) then
  if m.h == me then return answer(text(m.n), nil, id(m.be, m.bs)) end
  return { '', m.h, text(m.n) }
end
local former = m.h
if former ~= me then
  if m.n == 0 then
    m.be, m.bs = 0, 0
  elseif m.re then
    m.be, m.bs = m.re, m.rs
  else
    m.be, m.bs = at.te, at.ts
  end
end
m.re, m.rs = nil, nil
m.n, m.h = m.n + 1, me
save(name, m, finished)
if m.o and not finished then raise_holds() end
return answer(text(m.n), former, id(m.be, m.bs))
