-- Makes a stream give only ids above one, after it lost its newest entries. KEYS: stream. ARGV: that id, and the first
-- millisecond whose ids are surely above it.
-- Ids come from the server's clock. While that is behind, entries may have come since with ids of those that were lost: 0, and
-- nothing is done; as where the user may not.
local time = redis.call('TIME')
if time[1] * 1000 + math.floor(time[2] / 1000) < tonumber(ARGV[2]) then return 0 end
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('XDEL', KEYS[1], redis.call('XADD', KEYS[1], ARGV[1], 'lost', ''))
  return 1
end
local set = redis.pcall('XSETID', KEYS[1], ARGV[1])
return set.err and 0 or 1
