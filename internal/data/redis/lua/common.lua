-- Stands before every script. KEYS[1] is the base of one model's keys, such as {sluice:smollm2}: all of them
-- are made from it, and its braces keep them in one hash slot of a cluster.
local base = KEYS[1]
local NOW_MS
do
  local t = redis.call('TIME')
  NOW_MS = t[1] * 1000 + math.floor(t[2] / 1000)
end
-- Whatever is touched expires when nobody touches it any more.
local KEEP_S = 86400

local function log_key(id) return base .. ':log:' .. id end
local function meta_key(id) return base .. ':meta:' .. id end
local function line_key(user) return base .. ':line:' .. user end
local function last_key(conversation) return base .. ':last:' .. conversation end
local function keep(key) redis.call('EXPIRE', key, KEEP_S) end

-- The line of a user holds the ids that wait, the ring the users who have a line: whoever is first in the ring is
-- served and goes to its end.
local function enqueue(id, user, created_ms, first)
  local line = line_key(user)
  if redis.call('EXISTS', line) == 0 then
    redis.call('RPUSH', base .. ':ring', user)
  end
  redis.call(first and 'LPUSH' or 'RPUSH', line, id)
  redis.call('ZADD', base .. ':waiting', created_ms, id)
  redis.call('HSET', meta_key(id), 'waits_since', NOW_MS)
  for _, key in ipairs({line, base .. ':ring', base .. ':waiting'}) do keep(key) end
end

local function dequeue(id)
  if redis.call('ZREM', base .. ':waiting', id) == 0 then return false end
  local user = redis.call('HGET', meta_key(id), 'user')
  if user then
    redis.call('LREM', line_key(user), 1, id)
    if redis.call('EXISTS', line_key(user)) == 0 then
      redis.call('LREM', base .. ':ring', 1, user)
    end
  end
  return true
end

-- The worker that an owner's token was made for.
local function worker_of(owner) return string.match(owner, '^(.*)#') end

-- Hand a response over to `name`, for the time of a lease: nobody else may write from now on. Returns what a
-- delivery is made of, or nil when the response is gone.
local function take(id, name, lease_ms)
  local meta = meta_key(id)
  local request = redis.call('HGET', meta, 'request')
  if not request then
    redis.call('ZREM', base .. ':running', id)
    return nil
  end
  local attempt = redis.call('HINCRBY', meta, 'attempt', 1)
  -- The time makes it another one also when Redis has lost the attempt before, and counts it anew.
  local owner = name .. '#' .. attempt .. '.' .. NOW_MS
  redis.call('HSET', meta, 'owner', owner)
  redis.call('ZADD', base .. ':running', NOW_MS + lease_ms, id)
  keep(base .. ':running')
  local flags = redis.call('HMGET', meta, 'cancelled', 'silent')
  return {id, attempt, owner, request, flags[1] or '', tonumber(flags[2] or 0),
    redis.call('LRANGE', log_key(id), 0, -1)}
end

-- Whether leases that have run out may be taken over. When nobody was here for so long that they ran out although
-- they were renewed in time, it was Redis that was away or stood still: who holds them gets the time to renew them.
-- To be asked by all who come regularly.
local function may_take_over(lease_ms)
  local key = base .. ':seen'
  local seen = redis.call('HMGET', key, 'at', 'patient_until')
  local until_ms = tonumber(seen[2] or 0)
  if NOW_MS - tonumber(seen[1] or 0) > lease_ms * 2 / 3 then
    until_ms = NOW_MS + lease_ms
    redis.call('HSET', key, 'patient_until', until_ms)
  end
  redis.call('HSET', key, 'at', NOW_MS)
  keep(key)
  return NOW_MS >= until_ms
end

local function living_workers()
  return redis.call('ZRANGEBYSCORE', base .. ':workers', NOW_MS, '+inf')
end

-- How many more requests a worker takes at once; none when it does not live.
local function room_of(name)
  local lives_until_ms = redis.call('ZSCORE', base .. ':workers', name)
  if not lives_until_ms or tonumber(lives_until_ms) < NOW_MS then return 0 end
  return tonumber(redis.call('HGET', base .. ':rooms', name) or 0)
end

-- How many requests the living workers take at once: as many do not have to wait.
local function free_room(workers)
  local room = 0
  for _, name in ipairs(workers) do
    room = room + tonumber(redis.call('HGET', base .. ':rooms', name) or 0)
  end
  return room
end

-- A worker tells that it lives, and how much room it has.
local function report(name, room, lease_ms)
  for _, dead in ipairs(redis.call('ZRANGEBYSCORE', base .. ':workers', '-inf', NOW_MS - lease_ms)) do
    redis.call('ZREM', base .. ':workers', dead)
    redis.call('HDEL', base .. ':rooms', dead)
  end
  redis.call('ZADD', base .. ':workers', NOW_MS + lease_ms, name)
  redis.call('HSET', base .. ':rooms', name, room)
  redis.call('ZREM', base .. ':resting', name)
  keep(base .. ':workers')
  keep(base .. ':rooms')
end

-- A worker takes nothing now.
local function close(name)
  redis.call('ZREM', base .. ':workers', name)
  redis.call('HDEL', base .. ':rooms', name)
end

-- It is gone.
local function depart(name)
  close(name)
  redis.call('ZREM', base .. ':resting', name)
  redis.call('DEL', base .. ':worker:' .. name)
end

-- How many requests go before one that has `rounds` of its user's before it.
local function ahead_of(user, rounds)
  local ring = redis.call('LRANGE', base .. ':ring', 0, -1)
  local ahead, before, own = 0, 1, false
  for _, other in ipairs(ring) do
    if other == user then
      ahead, before, own = ahead + rounds, 0, true
    else
      ahead = ahead + math.min(redis.call('LLEN', line_key(other)), rounds + (own and 0 or before))
    end
  end
  return ahead
end
