-- Open a log and let a request wait. Returns {position, workers}, or false when too many wait already.
-- `conversation` and `previous` say what it continues ('': nothing): it is left for the worker that served that last,
-- for `left_ms`; see `claim`.
local id, user, age_ms, request, head, node, max_pending, conversation, previous, left_ms = unpack(ARGV)
local created_ms = NOW_MS - age_ms -- by the clock of Redis: those of servers differ
max_pending = tonumber(max_pending)
local meta, log = meta_key(id), log_key(id)
local workers = living_workers()
local room = free_room(workers)

-- Which worker served last what this continues, as far as that is known.
local function last_worker()
  if conversation ~= '' then return redis.call('GET', last_key(conversation)) end
  if previous == '' then return false end
  local state = redis.call('HMGET', meta_key(previous), 'ended', 'owner')
  local owner = state[1] or state[2]
  return owner and worker_of(owner)
end

if redis.call('EXISTS', meta) == 0 then -- else the answer to an earlier try was lost
  local waiting = redis.call('ZCARD', base .. ':waiting')
  if max_pending > 0 and waiting >= max_pending + room then return false end
  local position = 0
  if waiting >= room then
    local rounds = redis.call('LLEN', line_key(user))
    local ahead = rounds > 0 and ahead_of(user, rounds) or redis.call('LLEN', base .. ':ring')
    position = math.max(0, ahead - room)
  end
  redis.call('HSET', meta, 'request', request, 'head', head, 'user', user, 'created', created_ms,
    'nodes', node, 'position', position, 'workers', #workers)
  if conversation ~= '' then redis.call('HSET', meta, 'conversation', conversation) end
  local last = last_worker()
  if last then redis.call('HSET', meta, 'last', last, 'left_until', NOW_MS + left_ms) end
  redis.call('RPUSH', log, '["queued",' .. position .. ',' .. #workers .. ']')
  keep(meta)
  keep(log)
  enqueue(id, user, created_ms, false)
  redis.call('PUBLISH', base .. ':ready', '')
end
local told = redis.call('HMGET', meta, 'position', 'workers')
return {tonumber(told[1]), tonumber(told[2])}
