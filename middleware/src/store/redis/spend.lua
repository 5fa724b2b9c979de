-- One request: take the cost from every bucket, or from none.
-- KEYS  tb:<agent>, merit:{tb:<agent>}
-- ARGV  per bucket: field prefix ('' or '<name>.'), configured capacity (tokens), configured rate
--       (micro-tokens/s), cost (tokens)
-- Reply {0 admitted | 1 denied | 2 banned, ms to wait (-1: for ever),
--        per bucket: capacity, rate, level (nano-tokens), 1 when it held too little}
-- Field <prefix>level: "<nano-tokens> <at, Unix ms> <admitted> <denied> <capacity> <rate>"
local DAY_MS, TTL_MAX_MS = 86400000, 7776000000
local buckets = #ARGV / 4
local fields = {'banned_until'}
for i = 0, buckets - 1 do
  local prefix = ARGV[i * 4 + 1]
  fields[#fields + 1] = prefix .. 'capacity'
  fields[#fields + 1] = prefix .. 'refill_rate'
  fields[#fields + 1] = prefix .. 'level'
end
local found = redis.call('HMGET', KEYS[1], unpack(fields))
local known = false
for i = 1, #fields do known = known or found[i] end
local restore = {}
if not known then
  -- Never spent, or expired: the record says what this agent's limits were.
  local kept = {'banned_until'}
  for i = 0, buckets - 1 do kept[i + 2] = ARGV[i * 4 + 1] .. 'written' end
  local record = redis.call('HMGET', KEYS[2], unpack(kept))
  if record[1] then
    found[1] = record[1]
    restore[1], restore[2] = 'banned_until', record[1]
  end
  for i = 0, buckets - 1 do
    local capacity, rate = string.match(record[i + 2] or '', '^(%S+) (%S+)$')
    if capacity then
      found[i * 3 + 2], found[i * 3 + 3] = capacity, rate
      local n = #restore
      restore[n + 1], restore[n + 2] = fields[i * 3 + 2], capacity
      restore[n + 3], restore[n + 4] = fields[i * 3 + 3], rate
    end
  end
end

local time = redis.call('TIME')
local now = time[1] * 1000 + floor(time[2] / 1000)
local banned_until = found[1] and tonumber(found[1]) or 0
if banned_until > now then return {2, banned_until - now} end

local short, wait, at = 0, 0, now
local lacking, level, capacity, rate, since, admitted, denied = {}, {}, {}, {}, {}, {}, {}
local takes = false
for b = 1, buckets do
  local a, f = (b - 1) * 4, (b - 1) * 3 + 1
  local cost = ARGV[a + 4] * NANO
  takes = takes or cost > 0
  local c, r = read_limits(found[f + 1], found[f + 2], tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3]))
  local full = c * NANO
  local l, t, yes, no, old_c, old_r =
    string.match(found[f + 3] or '', '^(%-?%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
  if l then
    t = tonumber(t)
    -- Time passed is paid at the limits it passed under; new ones clamp, never mint.
    l = refill(tonumber(l), old_c * NANO, tonumber(old_r), now - t)
    if l > full then l = full end
    at = min(at, t)
    t = max(t, now)
    yes, no = tonumber(yes), tonumber(no)
  else
    l, t, yes, no, at = full, now, 0, 0, 0
  end
  local need = min(cost, full)
  if cost > 0 and (c == 0 or l < need) then
    short, lacking[b] = 1, 1
    local w = -1
    if c > 0 then w = wait_ms(l, need, r) end
    if w < 0 or wait < 0 then wait = -1 else wait = max(wait, w) end
  else
    lacking[b] = 0
  end
  level[b], capacity[b], rate[b], since[b], admitted[b], denied[b] = l, c, r, t, yes, no
end

local reply, write, longest = {short, wait}, restore, 0
for b = 1, buckets do
  local cost = tonumber(ARGV[(b - 1) * 4 + 4])
  if short == 0 then
    level[b] = level[b] - cost * NANO
    admitted[b] = count(admitted[b], cost)
  elseif lacking[b] == 1 then
    denied[b] = count(denied[b], cost)
  end
  if takes then
    local n = #write
    write[n + 1] = fields[(b - 1) * 3 + 4]
    write[n + 2] = fmt('%.0f %.0f %.0f %.0f %.0f %.0f',
      level[b], since[b], admitted[b], denied[b], capacity[b], rate[b])
    local fill = wait_ms(level[b], capacity[b] * NANO, rate[b])
    if fill < 0 then fill = TTL_MAX_MS end
    longest = max(longest, fill)
  end
  local n = #reply
  reply[n + 1], reply[n + 2], reply[n + 3], reply[n + 4] = capacity[b], rate[b], level[b], lacking[b]
end
if #write > 0 then
  redis.call('HSET', KEYS[1], unpack(write))
  -- Kept for a day, or until full: renewed when the minute turns, or when filling takes that long.
  if longest > DAY_MS - 60000 or floor(now / 60000) ~= floor(at / 60000) then
    local ttl = min(max(DAY_MS, longest), TTL_MAX_MS)
    if redis.call('PTTL', KEYS[1]) < ttl then redis.call('PEXPIRE', KEYS[1], ttl) end
  end
end
return reply
