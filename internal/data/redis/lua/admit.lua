-- Take from budgets, and places among a user's responses: all of it, or nothing. KEYS[1]: the limits' base. ARGV: the
-- responses, with commas ('': none, and no place, but one is taken), their user, how many of the user's may be in flight (0: any), for how long a place
-- is held (ms), how long a budget takes to fill (ms), then for each budget its key, how long one takes to come in
-- (ms), and '1' when one for each response is taken now; '0' when they pay at their ends, and there only has to be one.
-- A budget is kept as when it is full again, in ms; one that is full is not kept.
-- Returns {verdict, debt, debt, ...}: 0 when admitted, -1 when too many are in flight, else which of the budgets is
-- spent for longest; and of each budget how long it needs to be full again (ms, as a string), now that it was taken from.
local user, max_in_flight, ids = ARGV[2], tonumber(ARGV[3]), {}
for id in string.gmatch(ARGV[1], '[^,]+') do ids[#ids + 1] = id end
local count = math.max(1, #ids)
local place_ms, window_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local ROUNDING_MS = 0.01
local places = base .. ':in_flight:' .. user
local budgets, verdict, longest_ms = {}, 0, ROUNDING_MS

for i = 6, #ARGV, 3 do
  local key, unit_ms = base .. ':full_at:' .. ARGV[i], tonumber(ARGV[i + 1])
  local debt_ms = math.max(0, tonumber(redis.call('GET', key) or NOW_MS) - NOW_MS)
  local take = ARGV[i + 2] == '1' and count or 0
  budgets[#budgets + 1] = {key = key, name = ARGV[i], unit_ms = unit_ms, debt_ms = debt_ms, take = take}
  local short_ms = debt_ms + unit_ms * math.max(1, take) - window_ms
  if short_ms > longest_ms then verdict, longest_ms = #budgets, short_ms end
end
if verdict == 0 and max_in_flight > 0 then
  redis.call('ZREMRANGEBYSCORE', places, '-inf', NOW_MS)
  if redis.call('ZCARD', places) + count > max_in_flight then verdict = -1 end
end

local reply, pays = {verdict}, {'user', user}
for n, budget in ipairs(budgets) do
  if verdict == 0 and budget.take > 0 then
    budget.debt_ms = budget.debt_ms + budget.unit_ms * budget.take
    redis.call('SET', budget.key, string.format('%.4f', NOW_MS + budget.debt_ms), 'PX', math.ceil(budget.debt_ms))
  elseif budget.take == 0 then
    pays[#pays + 1] = budget.name
    pays[#pays + 1] = string.format('%.17g', budget.unit_ms)
  end
  reply[n + 1] = string.format('%.4f', budget.debt_ms)
end
if verdict == 0 and (max_in_flight > 0 or #pays > 2) then
  for _, id in ipairs(ids) do
    local admitted = base .. ':admitted:' .. id
    redis.call('HSET', admitted, unpack(pays))
    redis.call('PEXPIRE', admitted, place_ms)
    if max_in_flight > 0 then
      redis.call('ZADD', places, NOW_MS + place_ms, id)
      redis.call('PEXPIRE', places, place_ms)
    end
  end
end
return reply
