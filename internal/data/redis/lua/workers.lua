-- What the living workers say about themselves.
local found = {}
for _, names in ipairs({living_workers(), redis.call('ZRANGEBYSCORE', base .. ':resting', NOW_MS, '+inf')}) do
  for _, name in ipairs(names) do
    local info = redis.call('GET', base .. ':worker:' .. name)
    if info then found[#found + 1] = info end
  end
end
return found
