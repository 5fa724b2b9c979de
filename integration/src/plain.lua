local b = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local t = redis.call('TIME')
local now = t[1] + t[2] / 1e6
local capacity, rate = tonumber(ARGV[1]), tonumber(ARGV[2])
local tokens = tonumber(b[1] or capacity)
local at = tonumber(b[2] or now)
tokens = math.min(capacity, tokens + (now - at) * rate)
local ok = tokens >= 1
if ok then tokens = tokens - 1 end
redis.call('HSET', KEYS[1], 'tokens', tokens, 'at', now)
redis.call('PEXPIRE', KEYS[1], 86400000)
return {ok and 1 or 0, math.floor(tokens)}
