-- Returns how many partitions the log has; a larger wish is granted. KEYS: meta. ARGV: the wish.
local partitions = tonumber(redis.call('HGET', KEYS[1], 'partitions') or '0')
if partitions < tonumber(ARGV[1]) then
  redis.call('HSET', KEYS[1], 'partitions', ARGV[1])
  return tonumber(ARGV[1])
end
return partitions
