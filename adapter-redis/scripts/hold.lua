-- Changes the holder of a stream (E9).
-- KEYS[1] root
-- ARGV[2] stream  [3] instance  [4] `t`: take, `f`: take from, `c`: continue, `r`: release
-- ARGV[5] from whom, or ''  [6] its number, or the one to be continued or released
-- ARGV[7] cursor of a release  [last] the server's generation, 8 bytes
-- Returns -1: no session, -2: no stream, -3: another hold began since,
-- {'', holder, number}: busy, or number, former holder, cursor, and the state.
local session = load()
if not session then return -1 end
local name, me, how, given = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[6])
local m, finished = stream_of(name)
if not m then
  if name ~= 'standalone' then return -2 end
  m = make_shared(session, name, ARGV[#ARGV])
end
local at = span(name, m)
local text = function(n) return string.format('%.0f', n) end
local answer = function(number, former, cursor)
  local list = state(m, at)
  table.insert(list, 1, cursor)
  table.insert(list, 1, former or '')
  table.insert(list, 1, text(number))
  return list
end

local former = m.h
if how == 'r' then
  if former == me and m.n == given then
    m.h = nil
    m.re, m.rs = of_id(ARGV[7])
    -- What is not there yet has not been yielded.
    if before(at.te, at.ts, m.re, m.rs) then m.re, m.rs = at.te, at.ts end
    save(name, m, finished)
    if m.o and not finished then raise_holds() end
  end
  return answer(given, nil, ARGV[7])
end

-- Whether the caller has the last hold still, or goes on with it.
local same
if how == 'c' then
  same = m.n == given and m.n > 0
  if not same and former ~= me then return -3 end
  if not same then return answer(m.n, nil, id(m.be, m.bs)) end
else
  if how == 'f' and former and not (former == ARGV[5] and m.n == given) then
    if former == me then return answer(m.n, nil, id(m.be, m.bs)) end
    return { '', former, text(m.n) }
  end
  -- Who takes again may not have got the answer to the first time.
  same = former == me
  if not same then
    if m.n == 0 then
      m.be, m.bs = 0, 0
    elseif m.re then
      m.be, m.bs = m.re, m.rs
    else
      m.be, m.bs = at.te, at.ts
    end
  end
end
m.re, m.rs = nil, nil
m.n, m.h = m.n + 1, me
if not m.o then
  m.hs = m.hs or {}
  if same and #m.hs > 0 then
    m.hs[#m.hs][1] = m.n
  else
    m.hs[#m.hs + 1] = { m.n, m.be, m.bs }
    if #m.hs > 8 then table.remove(m.hs, 1) end
  end
end
save(name, m, finished)
if m.o and not finished then raise_holds() end
return answer(m.n, former, id(m.be, m.bs))
