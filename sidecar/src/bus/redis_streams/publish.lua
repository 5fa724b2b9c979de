-- Puts ratings on one partition, as many as it has room for, and returns how many.
-- KEYS: stream, counter. ARGV: the most records it may hold, the most within a millisecond, the first millisecond
-- that is too late, then the ratings, each with the span it is put there in, or nothing.
-- Ids are the server's: its time, which does not go back when it restarts from an older snapshot.
local room = tonumber(ARGV[1]) - redis.call('XLEN', KEYS[1])
local taken = math.min(room, (#ARGV - 3) / 2)
local function put(id, i, number)
  local rating, trace = ARGV[2 * i + 2], ARGV[2 * i + 3]
  if trace == '' then return redis.call('XADD', KEYS[1], id, 'rating', rating, 'n', number) end
  return redis.call('XADD', KEYS[1], id, 'rating', rating, 'n', number, 'traceparent', trace)
end
for i = 1, taken do
  local number = redis.call('INCR', KEYS[2])
  local id = put('*', i, number)
  local ms, count = string.match(id, '^(%d+)%-(%d+)$')
  if tonumber(ms) >= tonumber(ARGV[3]) then
    redis.call('XDEL', KEYS[1], id)
    return redis.error_reply('BADID ' .. KEYS[1] .. ' holds an id that no server gives')
  end
  if tonumber(count) >= tonumber(ARGV[2]) then
    -- The clock was set back, and the server counts up within the last millisecond.
    redis.call('XDEL', KEYS[1], id)
    id = string.format('%.0f-0', tonumber(ms) + 1)
    put(id, i, number)
  end
end
return math.max(taken, 0)
