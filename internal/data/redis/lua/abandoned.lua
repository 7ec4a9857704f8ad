-- Take what is older than `max_age_ms`, was running at a worker that died, and was taken over by nobody since, so that
-- the caller ends it. Returns deliveries as `claim` does.
local name, lease_ms, max_age_ms, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local deliveries = {}
if not may_take_over(lease_ms) then return deliveries end
local since_ms = NOW_MS - lease_ms
for _, id in ipairs(redis.call('ZRANGEBYSCORE', base .. ':running', '-inf', since_ms, 'LIMIT', 0, limit)) do
  local created_ms = redis.call('HGET', meta_key(id), 'created')
  if not created_ms or tonumber(created_ms) < NOW_MS - max_age_ms then
    deliveries[#deliveries + 1] = take(id, name, lease_ms)
  end
end
return deliveries
