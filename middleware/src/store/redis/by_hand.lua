-- What an operator does to one agent by hand.
-- KEYS  tb:<agent>, merit:{tb:<agent>}
-- ARGV  ms to keep the bucket, ms to keep the record, then field and value pairs of the bucket: of its
--       limits, or 'banned_until' and Unix ms; 0 lifts the ban
-- Reply 1
local function keep(key, ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, string.format('%.0f', ms)) end
end
local bucket_ttl, record_ttl = tonumber(ARGV[1]), tonumber(ARGV[2])
if ARGV[3] ~= 'banned_until' then
  redis.call('HSET', KEYS[1], unpack(ARGV, 3))
  keep(KEYS[1], bucket_ttl)
  return 1
end

-- The record last: what fails because of its type must not leave half a ban.
local ends = tonumber(ARGV[4])
redis.call('HMGET', KEYS[1], 'held')
if ends > 0 then
  local time = redis.call('TIME')
  local left = ends - (time[1] * 1000 + math.floor(time[2] / 1000))
  -- Ten years are for ever: servers refuse an expiry that does not fit.
  left = math.min(left, 315360000000)
  redis.call('HSET', KEYS[2], 'banned_until', ARGV[4])
  keep(KEYS[2], math.max(record_ttl, left))
  redis.call('HSET', KEYS[1], 'banned_until', ARGV[4])
  keep(KEYS[1], bucket_ttl)
else
  redis.call('HDEL', KEYS[2], 'banned_until')
  redis.call('HDEL', KEYS[1], 'banned_until')
end
return 1
