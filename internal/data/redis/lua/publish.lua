-- Open a log and let a request wait. Returns {position, workers}, or false when too many wait already.
local id, user, age_ms, request, head, node, max_pending = unpack(ARGV)
local created_ms = NOW_MS - age_ms -- by the clock of Redis: those of servers differ
max_pending = tonumber(max_pending)
local meta, log = meta_key(id), log_key(id)
local workers = living_workers()
local room = free_room(workers)
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
  redis.call('RPUSH', log, '["queued",' .. position .. ',' .. #workers .. ']')
  keep(meta)
  keep(log)
  enqueue(id, user, created_ms, false)
  redis.call('PUBLISH', base .. ':ready', '')
end
local told = redis.call('HMGET', meta, 'position', 'workers')
return {tonumber(told[1]), tonumber(told[2])}
