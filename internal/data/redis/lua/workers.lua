-- What the living workers say about themselves.
local found = {}
for _, name in ipairs(living_workers()) do
  local info = redis.call('GET', base .. ':worker:' .. name)
  if info then found[#found + 1] = info end
end
return found
