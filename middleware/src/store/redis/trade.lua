-- One bid for the market: the rules are those of store/market.rs.
-- KEYS  merit:price
-- ARGV  who bids, term (ms; 0 gives the lease back), and of a quote: price, use share (decimals)
-- Reply {1 when the bidder leads, or 0, price, use share; nil: none was posted}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = redis.call('HMGET', KEYS[1], 'holder', 'until', 'price', 'use_share')
local holder, ends, term = found[1] or '', tonumber(found[2] or '') or 0, tonumber(ARGV[2])
local mine, leads = holder == ARGV[1], 0

if mine and ARGV[3] then
  found[3], found[4] = ARGV[3], ARGV[4]
  redis.call('HSET', KEYS[1], 'price', ARGV[3], 'use_share', ARGV[4])
end
if term > 0 and (mine or ends <= now) then
  leads = 1
  redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'until', string.format('%.0f', now + term))
elseif mine then
  redis.call('HSET', KEYS[1], 'holder', '', 'until', '0')
end
return {leads, found[3], found[4]}
