-- Claims or renews leases. KEYS: leases. ARGV: member, lease in ms. Returns 1 for each that is its own.
-- A server without memory refuses SET, but not in a script that has written: DEL is never refused. Without
-- leases nobody could read, commit and make room.
local mine = {}
for i, key in ipairs(KEYS) do
  local owner = redis.call('GET', key)
  mine[i] = (not owner or owner == ARGV[1]) and 1 or 0
  if mine[i] == 1 then
    redis.call('DEL', key)
    redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
  end
end
return mine
