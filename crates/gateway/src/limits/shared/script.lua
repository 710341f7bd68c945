-- One decision over all limits of one call, or one settlement of it: the whole of it, or nothing.
--
-- The arithmetic is that of `rules::limit::cell`, figure for figure; one suite of tests runs on both. All figures are
-- whole numbers below 2^53. Writes come last, so an error leaves nothing half done. Every key that is written gets an
-- end of its own.
--
-- KEYS[1] is the call, KEYS[2] and on are the cells of its demands.
-- ARGV: what to do; the time in microseconds (0: this server's); the call's name; its lease in microseconds;
-- then nine words for each demand: shape, span, size, burst, interval, grain, amount, cost, whether cost is settled.

local DAY = 86400000000
local SECOND = 1000000
local FIRST, WIDTH = 5, 9
-- What a call's own key says: when it was taken, or that it never may be.
local GONE = 'x'
local CALL_TTL, GONE_TTL = 3600000, 600000

local act, now, name = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local lease = tonumber(ARGV[4])
if now == 0 then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * SECOND + tonumber(time[2])
end

local function up(a, b)
  local rest = a % b
  if rest == 0 then return a / b end
  return (a - rest) / b + 1
end

local function less(a, b)
  if a > b then return a - b end
  return 0
end

local function is_leap(year)
  return year % 4 == 0 and (year % 100 ~= 0 or year % 400 == 0)
end

local function month(day)
  local year, first = 1970, 0
  while true do
    local after = first + (is_leap(year) and 366 or 365)
    if day < after then break end
    first, year = after, year + 1
  end
  for _, length in ipairs({31, is_leap(year) and 29 or 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}) do
    if day < first + length then return first, first + length end
    first = first + length
  end
end

local function period(span)
  local today = (now - now % DAY) / DAY
  local first, after = today, today + 1
  if span == 'week' then
    first = less(today, (today + 3) % 7)
    after = first + 7
  elseif span == 'month' then
    first, after = month(today)
  end
  return first * DAY, after * DAY
end

local function demand(i)
  local a = FIRST + (i - 1) * WIDTH
  return {
    key = KEYS[i + 1], shape = ARGV[a], period = ARGV[a + 1], span = tonumber(ARGV[a + 1]),
    size = tonumber(ARGV[a + 2]), burst = tonumber(ARGV[a + 3]), interval = tonumber(ARGV[a + 4]),
    grain = tonumber(ARGV[a + 5]), amount = tonumber(ARGV[a + 6]), cost = tonumber(ARGV[a + 7]),
    settles = ARGV[a + 8] == '1',
  }
end

local function load(key, default)
  local text = redis.call('GET', key)
  if not text then return default end
  return cmsgpack.unpack(text)
end

local function save(key, state, ms)
  redis.call('SET', key, cmsgpack.pack(state), 'PX', string.format('%.0f', ms + 1000))
end

local function stamp(d, at)
  if d.grain <= 1 then return at end
  return up(at, d.grain) * d.grain
end

-- Each shape: `open` reads a cell and lets go of what is over; `fits` says the wait, or nil; `take`, `undo`, `settle`
-- change what was read; `stands` says what is used and when all is free; `keep` writes it.
local gcra, sliding, held, calendar = {}, {}, {}, {}
local shapes = { gcra = gcra, sliding = sliding, held = held, calendar = calendar }

function gcra.open(d)
  local state = load(d.key, {0, 0})
  d.last, d.debt = state[1], state[2]
  d.debt = less(d.debt, less(now, d.last) * 1000)
  if now > d.last or now + d.span < d.last then d.last = now end
end
function gcra.fits(d)
  local after, most = d.debt + d.amount * d.interval, d.burst * d.interval
  if after > most then return up(after - most, 1000) end
end
function gcra.take(d)
  d.last, d.debt = math.max(now, d.last), d.debt + d.amount * d.interval
end
function gcra.undo(d) d.debt = less(d.debt, d.amount * d.interval) end
function gcra.settle() end
function gcra.stands(d)
  local free = less(d.burst * d.interval, d.debt)
  return less(d.burst, (free - free % d.interval) / d.interval), up(d.debt, 1000)
end
function gcra.keep(d) save(d.key, {d.last, d.debt}, up(d.debt, 1000000)) end
function gcra.reset(d) d.debt = 0 end

function sliding.open(d)
  local state = load(d.key, {0})
  d.used, d.grains = state[1], {}
  local far = now + d.span + d.grain
  local over = true
  for i = 2, #state, 2 do
    local at, sum = state[i], state[i + 1]
    over = over and (at + d.span <= now or at > far)
    if over then
      d.used = less(d.used, sum)
    else
      d.grains[#d.grains + 1] = {at, sum}
    end
  end
end
function sliding.fits(d)
  if d.used + d.amount <= d.size then return nil end
  local left, wait = d.used, d.span
  for _, grain in ipairs(d.grains) do
    left = less(left, grain[2])
    wait = less(grain[1] + d.span, now)
    if left + d.amount <= d.size then break end
  end
  return wait
end
local function add(d, amount)
  d.used = d.used + amount
  local at, last = stamp(d, now), d.grains[#d.grains]
  if last and last[1] >= at then
    last[2] = last[2] + amount
  else
    d.grains[#d.grains + 1] = {at, amount}
  end
end
local function give_back(d, taken, amount)
  local at = stamp(d, taken)
  for i, grain in ipairs(d.grains) do
    if grain[1] == at then
      local back = math.min(amount, grain[2])
      grain[2] = grain[2] - back
      d.used = less(d.used, back)
      if grain[2] == 0 then table.remove(d.grains, i) end
      return
    end
  end
end
function sliding.take(d) add(d, d.amount) end
function sliding.undo(d, taken) give_back(d, taken, d.amount) end
function sliding.settle(d, taken)
  if not d.settles then return end
  give_back(d, taken, less(d.amount, d.cost))
  if d.cost > d.amount then add(d, d.cost - d.amount) end
end
function sliding.stands(d)
  local last = d.grains[#d.grains]
  return d.used, last and less(last[1] + d.span, now) or 0
end
function sliding.keep(d)
  local state = {d.used}
  for _, grain in ipairs(d.grains) do
    state[#state + 1] = grain[1]
    state[#state + 1] = grain[2]
  end
  save(d.key, state, up(d.span + d.grain, 1000))
end
function sliding.reset(d) d.used, d.grains = 0, {} end

-- Calls that run, by the end of their leases.
function held.open(d) d.running = redis.call('ZCOUNT', d.key, string.format('(%.0f', now), '+inf') end
function held.fits(d)
  if d.running + d.amount > d.size then return SECOND end
end
function held.take(d) d.running, d.joins = d.running + d.amount, true end
function held.undo(d) d.leaves = true end
held.settle = held.undo
function held.stands(d) return d.running, 0 end
function held.keep(d)
  if d.leaves then redis.call('ZREM', d.key, name) end
  if d.joins then
    redis.call('ZREMRANGEBYSCORE', d.key, '-inf', string.format('%.0f', now))
    redis.call('ZADD', d.key, string.format('%.0f', now + lease), name)
    redis.call('PEXPIRE', d.key, string.format('%.0f', up(lease, 1000) + 1000))
  end
end
function held.reset() end

function calendar.open(d)
  local start, after = period(d.period)
  local state = load(d.key, {start, 0, 0})
  d.ends, d.start, d.spent, d.held = after, state[1], state[2], state[3]
  if d.start ~= start then d.start, d.spent, d.held = start, 0, 0 end
end
function calendar.fits(d)
  if d.spent + d.held + d.amount <= d.size then return nil end
  if d.spent + d.amount <= d.size then return SECOND end
  return less(d.ends, now)
end
function calendar.take(d) d.held = d.held + d.amount end
-- A call belongs to the period that it was admitted in.
local function is_over(d, taken) return taken > 0 and taken < d.start end
function calendar.undo(d, taken)
  if not is_over(d, taken) then d.held = less(d.held, d.amount) end
end
function calendar.settle(d, taken)
  if is_over(d, taken) then return end
  d.held, d.spent = less(d.held, d.amount), d.spent + d.cost
end
function calendar.stands(d) return d.spent + d.held, less(d.ends, now) end
function calendar.keep(d) save(d.key, {d.start, d.spent, d.held}, up(less(d.ends, now), 1000)) end
function calendar.reset(d) d.spent = 0 end

local function opened()
  local all = {}
  for i = 1, #KEYS - 1 do
    local d = demand(i)
    d.by = shapes[d.shape]
    d.by.open(d)
    all[i] = d
  end
  return all
end

local function keep(all)
  for _, d in ipairs(all) do d.by.keep(d) end
end

local function told(reply, all)
  for _, d in ipairs(all) do
    local used, reset = d.by.stands(d)
    reply[#reply + 1] = less(d.burst, used)
    reply[#reply + 1] = reset
  end
  return reply
end

if act == 'take' then
  if redis.call('EXISTS', KEYS[1]) == 1 then return {2, now} end
  local all = opened()
  local worst, wait = 0, -1
  for i, d in ipairs(all) do
    local needs = d.by.fits(d)
    if needs and needs > wait then worst, wait = i, needs end
  end
  if worst > 0 then
    local d = all[worst]
    local used = d.by.stands(d)
    return told({0, now, worst, wait, math.min(used, d.burst)}, all)
  end
  for _, d in ipairs(all) do d.by.take(d) end
  local reply = told({1, now}, all)
  keep(all)
  redis.call('SET', KEYS[1], string.format('%.0f', now), 'PX', CALL_TTL)
  return reply
end

if act == 'settle' or act == 'cancel' then
  local taken = redis.call('GET', KEYS[1])
  if taken == GONE then return {0, now} end
  if not taken then
    -- It may still arrive: a decision that came too late to matter must not be made.
    if act == 'cancel' then redis.call('SET', KEYS[1], GONE, 'PX', GONE_TTL) end
    return {0, now}
  end
  taken = tonumber(taken)
  local all = opened()
  for _, d in ipairs(all) do
    -- Where what it reserved was lost, only its cost counts: what others reserved stays.
    if taken == 0 then d.amount = 0 end
    if act == 'settle' then d.by.settle(d, taken) else d.by.undo(d, taken) end
  end
  keep(all)
  redis.call('DEL', KEYS[1])
  return {1, now}
end

if act == 'look' then return told({1, now}, opened()) end

if act == 'reset' then
  local all = opened()
  for _, d in ipairs(all) do d.by.reset(d) end
  keep(all)
  return told({1, now}, all)
end

-- What a store of record knows to be spent of budgets: the larger figure stands.
if act == 'spent' then
  local all = opened()
  for _, d in ipairs(all) do
    if d.shape == 'calendar' then d.spent = math.max(d.spent, d.amount) end
  end
  keep(all)
  return told({1, now}, all)
end

-- A call that still runs: its leases begin again. Also where the server has lost its memory.
if act == 'renew' then
  if redis.call('GET', KEYS[1]) == GONE then return {0, now} end
  for i = 2, #KEYS do
    redis.call('ZADD', KEYS[i], string.format('%.0f', now + lease), name)
    redis.call('PEXPIRE', KEYS[i], string.format('%.0f', up(lease, 1000) + 1000))
  end
  if redis.call('PEXPIRE', KEYS[1], CALL_TTL) == 0 then
    redis.call('SET', KEYS[1], '0', 'PX', CALL_TTL)
  end
  return {1, now}
end

-- A node lives: how many do?
if act == 'beat' then
  redis.call('ZADD', KEYS[1], string.format('%.0f', now + lease), name)
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', up(lease, 1000) + 1000))
  return {1, now, redis.call('ZCARD', KEYS[1])}
end

return redis.error_reply('ERR unknown act')
