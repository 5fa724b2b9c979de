-- Says where one partition begins and ends. KEYS: stream, counter, meta. ARGV: partition.
-- Returns the id and the number of the first record it holds ('' when none), the last id ever given
-- ('' when none), the count of records ever put there and of those it holds, and what was committed
-- ('' when nothing was).
local count = redis.call('GET', KEYS[2]) or '0'
local committed = redis.call('HGET', KEYS[3], 'committed:' .. ARGV[1]) or ''
if redis.call('EXISTS', KEYS[1]) == 0 then
  return {'', '', '', count, 0, committed}
end
local info, last, id, number = redis.call('XINFO', 'STREAM', KEYS[1]), '', '', ''
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then
    last = info[i + 1]
  end
end
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if first then
  id = first[1]
  for i = 1, #first[2], 2 do
    if first[2][i] == 'n' then
      number = first[2][i + 1]
    end
  end
end
return {id, number, last, count, redis.call('XLEN', KEYS[1]), committed}
