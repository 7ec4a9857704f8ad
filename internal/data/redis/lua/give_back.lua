-- Let a delivered request wait again, before its user's later ones. `max_attempts` 0: it is returned as it was, else it
-- has failed once more.
-- Returns what became of it: again, lost, or dead (it failed too often, and is still the worker's, to be ended).
local id, owner, max_attempts = ARGV[1], ARGV[2], tonumber(ARGV[3])
local meta = meta_key(id)
local state = redis.call('HMGET', meta, 'owner', 'silent', 'user', 'created')
if state[1] ~= owner then return 'lost' end
if max_attempts > 0 and redis.call('HINCRBY', meta, 'failures', 1) >= max_attempts then
  return 'dead'
end
redis.call('HDEL', meta, 'owner', 'last') -- nor is it left for anybody
if tonumber(state[2] or 0) > 0 then redis.call('HINCRBY', meta, 'silent', -1) end -- its worker lives
redis.call('ZREM', base .. ':running', id)
local created_ms = state[4]
if redis.call('LLEN', log_key(id)) > 1 then
  -- It was not only waiting all the time: it may wait for as long again.
  created_ms = NOW_MS
  redis.call('HSET', meta, 'created', created_ms)
end
enqueue(id, state[3], created_ms, true)
redis.call('PUBLISH', base .. ':ready', '')
return 'again'
