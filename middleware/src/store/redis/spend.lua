-- Many requests in one call: each group takes its tokens from all buckets of its plan, or from none.
-- KEYS  per group: tb:<agent>, merit:{tb:<agent>}; one agent may stand in several groups
-- ARGV  1: per run of groups that ask alike, packed <BBI4I4B: kind, plan (from 1), n, more, how many
--       groups   2, 3 ...: the plans, per bucket packed <sdddB: field prefix ('' or '<name>.'),
--       configured capacity (tokens), configured rate (micro-tokens/s), cost (tokens), 1 when only watched
-- Kinds 1 take: n charges, one after the other    2 lend: one charge, then up to `more` ahead of it
--       3 give back n charges                     4 take n charges whether or not they are there
--       5 count n charges as refused by the buckets whose bit is set in `more`
-- Reply per group, flat; a number beyond ±MAGNITUDE, where no level is, is a mark
--       1  per bucket its level; when not all charges passed, or the agent has limits of its own, after
--          the mark MAGNITUDE + 1 + twice how many passed, plus 1 for limits of its own; per bucket then
--          also, of such an agent, capacity and rate, and of a bucket that is only watched always how
--          many of the charges that passed it paid     2  the mark always, how many were taken ahead,
--          then as 1     1, 2  of a banned agent: -MAGNITUDE - 1, for how many ms
--       3, 4, 5  0     of every kind, when a key of the agent is no hash: -MAGNITUDE - 2
-- Field <prefix>held, packed <dddddd: level (nano-tokens), at (Unix ms), admitted, denied, and the
--       limits it was computed with: capacity, rate
-- Of a plain group (kind 1, one bucket that was spent from before, no ban) the two redis.calls cost twice as much
-- as all else, which is written out without tables and loops for it; whatever is odd about one goes the general
-- way below. Functions are few, because making one costs a call of one group as much as a table does, and
-- more for each local that it shares.
local call, pcall, unpack, pack, read = redis.call, redis.pcall, unpack, struct.pack, struct.unpack
local TAKE, LEND, GIVE_BACK, TAKE_MORE = 1, 2, 3, 4
local PASSED, BANNED, NO_HASH, HELD_BYTES = MAGNITUDE + 1, -MAGNITUDE - 1, -MAGNITUDE - 2, 48
local DAY_MS, TTL_MAX_MS, MINUTE_MS = 86400000, 7776000000, 60000
-- A clock that was set back by more gives nothing; time counts from where it is now.
local CLOCK_SLACK_MS = 1000
local RENEW_MS = DAY_MS - MINUTE_MS

local time = call('TIME')
local now = time[1] * 1000 + floor(time[2] / 1000)
local minute = now - now % MINUTE_MS
-- Tables are made as large as one plain request needs them: growing costs more than all else here.
local keys, reply, r = KEYS, {nil, nil, nil, nil}, 0

-- Per plan: how many buckets, whether any cost is above 0, the fields to read, and per bucket four
-- rules: capacity, rate, cost, watched.
local plans = {nil}
for p = 2, #ARGV do
  local blob = ARGV[p]
  local fields, plan = {'banned_until', nil, nil, nil}, {0, false, nil, nil, nil, nil, nil}
  local at, b, size, takes = 1, 0, #blob, false
  repeat
    local prefix, c, q, cost, watched
    prefix, c, q, cost, watched, at = read('<sdddB', blob, at)
    local f, u = b * 3, b * 4
    if prefix == '' then
      fields[f + 2], fields[f + 3], fields[f + 4] = 'capacity', 'refill_rate', 'held'
    else
      fields[f + 2], fields[f + 3], fields[f + 4] =
        prefix .. 'capacity', prefix .. 'refill_rate', prefix .. 'held'
    end
    plan[u + 4], plan[u + 5], plan[u + 6], plan[u + 7] = c, q, cost, watched == 1
    takes, b = takes or cost > 0, b + 1
  until at > size
  plan[1], plan[2], plan[3] = b, takes, fields
  plans[p - 1] = plan
end

-- How many of n charges of `cost` (nano-tokens) a level pays. One above the capacity passes when the
-- bucket is full, and leaves debt.
local function payable(n, cost, l, full)
  if cost == 0 or l >= cost * n then return n end
  if cost > full then
    if full > 0 and l >= full then return 1 end
    return 0
  end
  local p = floor(l / cost)
  if p * cost > l then p = p - 1 end
  return max(0, min(n, p))
end

-- Of the group in hand, per bucket: level, capacity, rate, at, admitted, denied, charges paid.
local s

-- Asking for a whole hash costs a fifth less than for four of its fields while it holds nothing but one bucket: true until
-- this call meets one that does.
local bare = true

local ops, at, first = ARGV[1], 1, 1
repeat
  local kind, number, n, more, groups
  kind, number, n, more, groups, at = read('<BBI4I4B', ops, at)
  local plan = plans[number]
  local buckets, takes, fields, cost = plan[1], plan[2], plan[3], plan[6]
  local banned_f, c_f, q_f, held_f = fields[1], fields[2], fields[3], fields[4]
  local plan_c, plan_q = plan[4], plan[5]
  local spends, owed = kind <= LEND, cost * NANO * n
  local plain = kind == TAKE and buckets == 1 and takes and not plan[7]
  local last = first + groups * 2 - 2
  -- The inner loop runs once: a break goes on with the next group.
  for g = first, last, 2 do repeat
    local key, found, lost = keys[g]
    if plain then
      local own_c, own_q, held
      if bare then
        found = pcall('HGETALL', key)
        if #found == 2 and found[1] == held_f then
          held = found[2]
        else
          bare = #found == 0 and not found.err
        end
      end
      if not bare then
        found = pcall('HMGET', key, banned_f, c_f, q_f, held_f)
        own_c, own_q, held = found[2], found[3], not found[1] and found[4]
      end
      if held and #held == HELD_BYTES then
        local l, t, yes, no, old_c, old_q = read('<dddddd', held)
        local old_full = old_c * NANO
        -- What is no level counts as absent; a NaN, which no comparison finds, would be spent for ever.
        if l <= old_full and l >= -MAGNITUDE and t >= 0 then
          local own, c, q, due = own_c or own_q, plan_c, plan_q, t < minute
          if own then c, q = read_limits(own_c, own_q, c, q) end
          -- Time passed is paid at the limits it passed under; new ones clamp, never mint.
          if t < now then
            -- The common case of `refill`, without a call.
            local gain = old_q * (now - t)
            if gain <= MAGNITUDE then
              l = l + gain
              if l > old_full then l = old_full end
            else
              l = refill(l, old_full, old_q, now - t)
            end
            t = now
          elseif t - now > CLOCK_SLACK_MS then
            t = now
          end
          local full, k = c * NANO, n
          if l > full then l = full end
          if l < owed then
            k = payable(n, cost * NANO, l, full)
            if k < n then no = count(no, (n - k) * cost) end
          end
          local taken = k * cost
          l, yes = l - taken * NANO, yes + taken
          if yes > COUNT_MAX then yes = taken end
          if own then
            reply[r + 1], reply[r + 2], reply[r + 3], reply[r + 4] = PASSED + k * 2 + 1, l, c, q
            r = r + 4
          elseif k < n then
            reply[r + 1], reply[r + 2] = PASSED + k * 2, l
            r = r + 2
          else
            r = r + 1
            reply[r] = l
          end
          call('HSET', key, held_f, pack('<dddddd', l, t, yes, no, c, q))
          -- Kept for a day, or until full, but not for ever: renewed when the minute turns, or when filling
          -- takes that long.
          if due or full - l > q * RENEW_MS then
            local fill = wait_ms(l, full, q)
            local ttl = fill < 0 and TTL_MAX_MS or min(max(DAY_MS, fill), TTL_MAX_MS)
            if call('PTTL', key) < ttl then call('PEXPIRE', key, ttl) end
          end
          break
        end
      end
    end
    found = pcall('HMGET', key, unpack(fields))
    local fresh, known = not found[4], found[4]
    for f = 7, buckets * 3 + 1, 3 do
      fresh, known = fresh or not found[f], known or found[f]
    end
    if fresh and not found.err then
      -- A bucket was never spent from, or expired: the record says what this agent's limits were,
      -- unless an operator has set some since. They go among what was found, and back into the bucket.
      lost = {}
      local wanted = {'banned_until'}
      for f = 2, #fields, 3 do
        wanted[#wanted + 1] = string.sub(fields[f], 1, -1 - #'capacity') .. 'written'
      end
      local kept = pcall('HMGET', keys[g + 1], unpack(wanted))
      if kept[1] and not (found[1] or known) then
        found[1], lost[1], lost[2] = kept[1], 'banned_until', kept[1]
      end
      for b = 2, #wanted do
        local f, w = b * 3 - 4, #lost
        local c, q = string.match(kept[b] or '', '^(%S+) (%S+)')
        if c and not (found[f] or found[f + 1] or found[f + 2]) then
          found[f], found[f + 1] = c, q
          lost[w + 1], lost[w + 2], lost[w + 3], lost[w + 4] = fields[f], c, fields[f + 1], q
        end
      end
      found.err = kept.err
    end
    if found.err then
      -- A key of another type is one agent's fault; anything else (rights, memory) is everybody's.
      if not string.find(found.err, 'WRONGTYPE', 1, true) then error(found.err, 0) end
      r = r + 1
      reply[r] = NO_HASH
      break
    end
    local banned = spends and found[1] and tonumber(found[1])
    if banned and banned > now then
      local left = min(math.ceil(banned - now), MAGNITUDE)
      reply[r + 1], reply[r + 2] = BANNED, left
      r = r + 2
      -- A ban that an operator put on an expired bucket must not keep it for ever.
      if call('PTTL', key) == -1 then
        call('PEXPIRE', key, min(max(DAY_MS, left), TTL_MAX_MS))
      end
      break
    end
    s = s or {nil, nil, nil, nil, nil, nil, nil}

    -- Time passed is paid at the limits it passed under; new ones clamp, never mint.
    local k, oldest, own = n, now, false
    local l, t, yes, no, c, q, full, p
    for b = 0, buckets - 1 do
      local f, u = b * 3, b * 4
      local own_c, own_q, held = found[f + 2], found[f + 3], found[f + 4]
      l, c, q, p = nil, plan[u + 4], plan[u + 5], n
      if own_c or own_q then
        c, q = read_limits(own_c, own_q, c, q)
        own = true
      end
      full = c * NANO
      local old_full, old_q
      if held and #held == HELD_BYTES then
        l, t, yes, no, old_full, old_q = read('<dddddd', held)
        old_full = old_full * NANO
      end
      -- What is no level counts as absent; a NaN, which no comparison finds, would be spent for ever.
      if l and l <= old_full and l >= -MAGNITUDE and t >= 0 then
        if t < oldest then oldest = t end
        if t < now then
          -- The common case of `refill`, without a call.
          local gain = old_q * (now - t)
          if gain <= MAGNITUDE then
            l = l + gain
            if l > old_full then l = old_full end
          else
            l = refill(l, old_full, old_q, now - t)
          end
          t = now
        elseif t - now > CLOCK_SLACK_MS then
          t = now
        end
        if l > full then l = full end
      else
        l, t, yes, no, oldest = full, now, 0, 0, 0
      end
      if spends then
        local each = plan[u + 6] * NANO
        if l < each * n then p = payable(n, each, l, full) end
        if p < k and not plan[u + 7] then k = p end
      end
      local i = b * 7
      s[i + 1], s[i + 2], s[i + 3], s[i + 4], s[i + 5], s[i + 6], s[i + 7] = l, c, q, t, yes, no, p
    end

    local due, ahead = oldest < minute, 0
    if kind == LEND then
      if k == 1 and takes then
        -- Half of what is left after the charge stays for others, in every bucket.
        ahead = more
        for b = 0, buckets - 1 do
          local each = plan[b * 4 + 6] * NANO
          ahead = payable(ahead, each * 2, s[b * 7 + 1] - each, math.huge)
        end
      end
      reply[r + 1], reply[r + 2] = PASSED + k * 2 + (own and 1 or 0), ahead
      r = r + 2
    elseif not spends then
      r = r + 1
      reply[r] = 0
    elseif own or k < n then
      r = r + 1
      reply[r] = PASSED + k * 2 + (own and 1 or 0)
    end

    -- What was found is no longer needed: its table holds what to write.
    local write, w = lost or found, lost and #lost or 0
    for b = 0, buckets - 1 do
      local i, each = b * 7, plan[b * 4 + 6]
      l, c, q, yes, no, p = s[i + 1], s[i + 2], s[i + 3], s[i + 5], s[i + 6], s[i + 7]
      if spends then
        if p < n and p <= k then no = count(no, (n - p) * each) end
        if p > k then p = k end
        local taken = (p + ahead) * each
        l, yes = l - taken * NANO, yes + taken
        if yes > COUNT_MAX then yes = taken end
        r = r + 1
        reply[r] = l
        if own then
          reply[r + 1], reply[r + 2] = c, q
          r = r + 2
        end
        if plan[b * 4 + 7] then
          r = r + 1
          reply[r] = p
        end
      else
        local amount = n * each
        if kind == GIVE_BACK then
          l, yes = min(c * NANO, l + amount * NANO), max(0, yes - amount)
        elseif kind == TAKE_MORE then
          l, yes = max(-MAGNITUDE, l - amount * NANO), count(yes, amount)
        elseif floor(more / 2 ^ b) % 2 == 1 then
          no = count(no, amount)
        end
      end
      if takes then
        if c * NANO - l > q * RENEW_MS then due = true end
        s[i + 1] = l
        write[w + 1], write[w + 2] = fields[b * 3 + 4], pack('<dddddd', l, s[i + 4], yes, no, c, q)
        w = w + 2
      end
    end
    -- A look at a bucket writes nothing but what the record restored.
    if w == 0 then break end
    call('HSET', key, unpack(write, 1, w))
    if due then
      local fill = 0
      for i = 0, (buckets - 1) * 7, 7 do
        local wait = wait_ms(s[i + 1], s[i + 2] * NANO, s[i + 3])
        if wait < 0 then wait = TTL_MAX_MS end
        fill = max(fill, wait)
      end
      local ttl = min(max(DAY_MS, fill), TTL_MAX_MS)
      if call('PTTL', key) < ttl then call('PEXPIRE', key, ttl) end
    end
  until true end
  first = last + 2
until at > #ops
return reply
