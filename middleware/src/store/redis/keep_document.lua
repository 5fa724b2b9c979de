-- Replaces the document of buckets if nobody wrote since.
-- KEYS  merit:buckets
-- ARGV  the revision that is replaced, the text ('': none any more)
-- Reply {1, the new revision}, or {0, the revision that is there}
-- The text stays as an empty field when it is removed, so that no revision comes twice.
local rev = tonumber(redis.call('HMGET', KEYS[1], 'rev')[1] or '0')
if not rev then return redis.error_reply('ERR merit:buckets holds no revision') end
if rev ~= tonumber(ARGV[1]) then return {0, rev} end
redis.call('HSET', KEYS[1], 'rev', string.format('%.0f', rev + 1), 'text', ARGV[2])
return {1, rev + 1}
