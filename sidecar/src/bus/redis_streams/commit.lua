-- Notes what is done with, and removes it. KEYS: meta, then lease and stream of each partition.
-- ARGV: member, the log's name, then partition, offset and id of each. Only the owner may.
-- It makes room first: a server without memory refuses HSET, but not in a script that has written.
if redis.call('HGET', KEYS[1], 'source') ~= ARGV[2] then
  return 0
end
for i = 0, (#KEYS - 1) / 2 - 1 do
  if redis.call('GET', KEYS[2 + 2 * i]) == ARGV[1] then
    redis.call('XTRIM', KEYS[3 + 2 * i], 'MINID', '~', ARGV[5 + 3 * i])
    redis.call('HSET', KEYS[1], 'committed:' .. ARGV[3 + 3 * i], ARGV[4 + 3 * i])
  end
end
return 1
