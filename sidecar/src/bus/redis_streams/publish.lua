-- Puts ratings on one partition, as many as it has room for, and returns how many.
-- KEYS: stream, counter. ARGV: the most records it may hold, then the ratings.
-- Ids are the server's: its time, which does not go back when it restarts from an older snapshot.
local room = tonumber(ARGV[1]) - redis.call('XLEN', KEYS[1])
local taken = math.min(room, #ARGV - 1)
for i = 2, taken + 1 do
  redis.call('XADD', KEYS[1], '*', 'rating', ARGV[i], 'n', redis.call('INCR', KEYS[2]))
end
return math.max(taken, 0)
