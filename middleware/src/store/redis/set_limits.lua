-- One agent's new limits and record, together, if nobody wrote since.
-- KEYS  tb:<agent>, merit:{tb:<agent>}
-- ARGV  expected rev, capacity, refill rate (decimal), adopted capacity or '', adopted rate (micro),
--       state, ms to keep the bucket, ms to keep the record, then field and value pairs of the record
-- Reply {1 done, new rev, held field or ''} | {0 stale} | {2 operator, capacity, rate (micro); -1: absent}
local found = redis.call('HMGET', KEYS[1], 'capacity', 'refill_rate', 'held')
local kept = redis.call('HMGET', KEYS[2], 'rev', 'written', 'banned_until')
local rev = kept[1] and tonumber(kept[1]) or 0
if rev ~= tonumber(ARGV[1]) then return {0} end

if found[1] or found[2] then
  local was_c, was_r = string.match(kept[2] or '', '^(%S+) (%S+)$')
  local known_c, known_r = read_limits(was_c, was_r, -1, -1)
  local c, r = read_limits(found[1], found[2], known_c, known_r)
  local ours = c == known_c and r == known_r
  -- A half that is absent (-1) is nobody's: it neither contradicts nor is adopted.
  local adopted = ARGV[4] ~= '' and (c < 0 or c == tonumber(ARGV[4])) and (r < 0 or r == tonumber(ARGV[5]))
  if not ours and not adopted then return {2, c, r} end
end

-- All that can fail comes before the first write.
local record_ttl, banned_until = tonumber(ARGV[8]), kept[3] and tonumber(kept[3])
if banned_until and banned_until > 0 then
  local time = redis.call('TIME')
  local left = banned_until - (time[1] * 1000 + floor(time[2] / 1000))
  record_ttl = max(record_ttl, min(left, MAGNITUDE))
end

redis.call('HSET', KEYS[2], 'rev', string.format('%.0f', rev + 1), 'written', ARGV[2] .. ' ' .. ARGV[3],
  'state', ARGV[6], unpack(ARGV, 9))
redis.call('PEXPIRE', KEYS[2], record_ttl)
redis.call('HSET', KEYS[1], 'capacity', ARGV[2], 'refill_rate', ARGV[3])
local bucket_ttl = tonumber(ARGV[7])
if redis.call('PTTL', KEYS[1]) < bucket_ttl then redis.call('PEXPIRE', KEYS[1], bucket_ttl) end
return {1, rev + 1, found[3] or ''}
