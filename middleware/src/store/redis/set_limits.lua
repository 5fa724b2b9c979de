-- One agent's new limits and record, together, if nobody wrote since.
-- KEYS  tb:<agent>, merit:{tb:<agent>}
-- ARGV  expected rev, capacity, refill rate (decimal), adopted capacity or '', adopted rate (micro),
--       state, ms to keep the bucket, ms to keep the record, how many named buckets, of each its name,
--       capacity and refill rate (decimal), then field and value pairs of the record
-- Reply {1 done, new rev, held field or ''} | {0 stale} | {2 operator, capacity, rate (micro); -1: absent}
local named = tonumber(ARGV[9])
local limits, records = {'capacity', 'refill_rate', 'held'}, {'rev', 'written', 'banned_until'}
for i = 1, named do
  local name = ARGV[7 + i * 3]
  limits[i * 2 + 2], limits[i * 2 + 3] = name .. '.capacity', name .. '.refill_rate'
  records[i + 3] = name .. '.written'
end
local found = redis.call('HMGET', KEYS[1], unpack(limits))
local kept = redis.call('HMGET', KEYS[2], unpack(records))
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

-- Of a named bucket the record holds '<capacity> <rate>', and behind it 'operator' where those are an
-- operator's: they stay until the fields are removed. A bucket that expired whole gets them back.
local bucket, record = {'capacity', ARGV[2], 'refill_rate', ARGV[3]}, {}
for i = 1, named do
  local own_c, own_q = found[i * 2 + 2], found[i * 2 + 3]
  local was_c, was_q, whose = string.match(kept[i + 3] or '', '^(%S+) (%S+) ?(%S*)$')
  local known_c, known_q = read_limits(was_c, was_q, -1, -1)
  local c, q = read_limits(own_c, own_q, known_c, known_q)
  local there = own_c or own_q
  local theirs = c ~= known_c or q ~= known_q or (whose == 'operator' and (there or not found[1]))
  local text_c, text_q, by = ARGV[8 + i * 3], ARGV[9 + i * 3], ''
  if theirs then
    text_c, text_q, by = string.format('%.0f', c), string.format('%.6f', q / 1e6), ' operator'
  end
  local b, r = #bucket, #record
  if not (theirs and there) then
    bucket[b + 1], bucket[b + 2], bucket[b + 3], bucket[b + 4] =
      limits[i * 2 + 2], text_c, limits[i * 2 + 3], text_q
  end
  -- A half that is nobody's cannot be kept.
  if not theirs or (c >= 0 and q >= 0) then
    record[r + 1], record[r + 2] = records[i + 3], text_c .. ' ' .. text_q .. by
  end
end

-- A server without memory refuses HSET, but not in a script that has written: the ratings that fill it may be on
-- the same server, and are removed when these limits are in force.
redis.call('PEXPIRE', KEYS[2], record_ttl)
redis.call('HSET', KEYS[2], 'rev', string.format('%.0f', rev + 1), 'written', ARGV[2] .. ' ' .. ARGV[3],
  'state', ARGV[6], unpack(ARGV, 10 + named * 3))
if rev == 0 then redis.call('PEXPIRE', KEYS[2], record_ttl) end
if #record > 0 then redis.call('HSET', KEYS[2], unpack(record)) end
redis.call('HSET', KEYS[1], unpack(bucket))
local bucket_ttl = tonumber(ARGV[7])
if redis.call('PTTL', KEYS[1]) < bucket_ttl then redis.call('PEXPIRE', KEYS[1], bucket_ttl) end
return {1, rev + 1, found[3] or ''}
