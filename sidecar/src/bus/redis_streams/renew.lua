-- Gives the log another name, unless it has one already. KEYS: meta. ARGV: the name that it must have, the new
-- one, then partitions of which nothing is committed any more.
if redis.call('HGET', KEYS[1], 'source') == ARGV[1] then
  for i = 3, #ARGV do
    redis.call('HDEL', KEYS[1], 'committed:' .. ARGV[i])
  end
  redis.call('HSET', KEYS[1], 'source', ARGV[2])
end
return 1
