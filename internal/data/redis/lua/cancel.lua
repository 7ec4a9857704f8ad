-- Stop a response. Returns unknown, ended, told (its worker was) or, when no worker has it, what a delivery is made of:
-- it is the caller's now, to be ended.
local id, name, lease_ms, channel = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local meta = meta_key(id)
if redis.call('EXISTS', meta) == 0 then return 'unknown' end
if redis.call('HEXISTS', meta, 'ended') == 1 then return 'ended' end
redis.call('HSET', meta, 'cancelled', 1)
if dequeue(id) then
  return take(id, name, lease_ms) or 'unknown'
end
local owner = redis.call('HGET', meta, 'owner')
local lease_ends = redis.call('ZSCORE', base .. ':running', id)
if lease_ends and tonumber(lease_ends) <= NOW_MS and may_take_over(lease_ms) then
  return take(id, name, lease_ms) or 'unknown' -- its worker is dead
end
if owner then
  redis.call('PUBLISH', channel .. worker_of(owner), '["revoke","' .. id .. '","' .. owner .. '"]')
end
return 'told'
