-- Takes part for another lease; names the log and notes its partitions when nobody has.
-- KEYS: meta, members. ARGV: member, lease in ms, a name for a new log, partitions wanted.
-- Returns the log's name, its number of partitions and the members.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now))
redis.call('ZADD', KEYS[2], string.format('%.0f', now + tonumber(ARGV[2])), ARGV[1])
redis.call('HSETNX', KEYS[1], 'source', ARGV[3])
local partitions = tonumber(redis.call('HGET', KEYS[1], 'partitions') or '0')
if partitions < tonumber(ARGV[4]) then
  partitions = tonumber(ARGV[4])
  redis.call('HSET', KEYS[1], 'partitions', ARGV[4])
end
return {redis.call('HGET', KEYS[1], 'source'), partitions, redis.call('ZRANGE', KEYS[2], 0, -1)}
