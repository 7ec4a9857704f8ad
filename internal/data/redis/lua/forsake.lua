-- The process of a worker is about to end: its leases end now, as if they had run out, and it is gone.
-- Nobody has them until they are taken over: whatever else the worker says of them by now counts for nothing.
-- ARGV: its name, then id and owner of each delivery.
for i = 2, #ARGV, 2 do
  local id, owner = ARGV[i], ARGV[i + 1]
  if redis.call('HGET', meta_key(id), 'owner') == owner then
    redis.call('HDEL', meta_key(id), 'owner')
    redis.call('ZADD', base .. ':running', NOW_MS - 1, id)
  end
end
depart(ARGV[1])
redis.call('PUBLISH', base .. ':ready', '')
