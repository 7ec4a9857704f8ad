-- A worker lives: renew its leases. ARGV: its name, room ('' when it takes nothing), lease, what it says about itself
-- ('' when it is gone, but for what it still works on), then id and owner of each delivery. Returns {id, owner, verdict} of those that are lost or cancelled.
local name, room, lease_ms, info = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
may_take_over(lease_ms)
if info ~= '' then
  if room ~= '' then
    report(name, room, lease_ms)
  else
    close(name)
    redis.call('ZREMRANGEBYSCORE', base .. ':resting', '-inf', NOW_MS - lease_ms)
    redis.call('ZADD', base .. ':resting', NOW_MS + lease_ms, name)
    keep(base .. ':resting')
  end
  redis.call('SET', base .. ':worker:' .. name, info, 'PX', lease_ms)
end
local attention = {}
for i = 5, #ARGV, 2 do
  local id, owner = ARGV[i], ARGV[i + 1]
  local state = redis.call('HMGET', meta_key(id), 'owner', 'cancelled', 'ended')
  if state[1] ~= owner then
    if state[3] ~= owner then -- else it ended it, and does not know yet
      attention[#attention + 1] = {id, owner, 'lost'}
    end
  else
    redis.call('ZADD', base .. ':running', NOW_MS + lease_ms, id)
    keep(base .. ':running')
    keep(meta_key(id))
    keep(log_key(id))
    if state[2] then attention[#attention + 1] = {id, owner, 'cancelled'} end
  end
end
return attention
