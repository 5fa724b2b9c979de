-- The arithmetic of bucket/level.rs in Lua. Every number is an integer below 2^53 in magnitude,
-- which a double holds exactly; the contract suite holds this file to the Rust by random vectors.
local floor, min, max = math.floor, math.min, math.max
local MAGNITUDE, COUNT_MAX, NANO = 9e15, 9e15, 1e9
local CAPACITY_MAX, RATE_MAX = 9000000, 9000000

-- Rate in micro-tokens/s times ms is nano-tokens. A product beyond MAGNITUDE may have been rounded, so
-- it goes in up to three exact steps, from the deepest debt to the largest capacity. A sum may exceed
-- 2^53 only where it exceeds the capacity as well.
local function refill(level, capacity, rate, elapsed)
  local gain = rate * elapsed
  if gain <= MAGNITUDE then
    level = level + gain
    if level > capacity then return capacity end
    return level
  end
  local most = floor(MAGNITUDE / rate)
  for _ = 1, 3 do
    if elapsed <= 0 or level >= capacity then break end
    local step = min(elapsed, most)
    level = min(capacity, level + rate * step)
    elapsed = elapsed - step
  end
  return level
end

-- Milliseconds until level reaches target, rounded up; -1 when it never will. The two magnitudes
-- are divided apart, because their sum may exceed 2^53.
local function wait_ms(level, target, rate)
  if level >= target then return 0 end
  if rate == 0 then return -1 end
  if level >= 0 then
    local missing = target - level
    local q = floor(missing / rate)
    if q * rate < missing then q = q + 1 end
    return q
  end
  local debt = -level
  local q, p = floor(target / rate), floor(debt / rate)
  local rest = (target - q * rate) + (debt - p * rate)
  local r = floor(rest / rate)
  if r * rate < rest then r = r + 1 end
  return q + p + r
end

-- Limits as an operator or the sidecar wrote them: whole tokens, and tokens per second as a decimal.
-- What is not a number in range counts as absent. `x - x % 1` is the floor of what is not negative,
-- without a call.
local function read_limits(capacity, rate, c, r)
  capacity, rate = capacity and tonumber(capacity), rate and tonumber(rate)
  if capacity and capacity >= 0 and capacity <= CAPACITY_MAX then c = capacity - capacity % 1 end
  if rate and rate >= 0 and rate <= RATE_MAX then
    r = rate * 1e6 + 0.5
    r = r - r % 1
  end
  return c, r
end

local function count(so_far, more)
  local sum = so_far + more
  if sum > COUNT_MAX then return more end
  return sum
end
