-- Take what is older than `max_age_ms` (negative: everything) out of the line, the oldest first, so that the caller ends
-- it. Returns deliveries as `claim` does.
local name, lease_ms, max_age_ms, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local before_ms = max_age_ms < 0 and '+inf' or NOW_MS - max_age_ms
local deliveries = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', base .. ':waiting', '-inf', '(' .. before_ms, 'LIMIT', 0, limit)) do
  dequeue(id)
  deliveries[#deliveries + 1] = take(id, name, lease_ms)
end
return deliveries
