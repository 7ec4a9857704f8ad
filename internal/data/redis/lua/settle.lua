-- Responses have ended: give their places back, and take their tokens from what `admit` said that pays for them. What
-- was settled already, or never admitted, is left alone. KEYS[1]: the limits' base. ARGV: for each its id and tokens.
for i = 1, #ARGV, 2 do
  local id, tokens = ARGV[i], tonumber(ARGV[i + 1])
  local admitted = base .. ':admitted:' .. id
  local pays = redis.call('HGETALL', admitted)
  redis.call('DEL', admitted)
  for n = 1, #pays, 2 do
    if pays[n] == 'user' then
      redis.call('ZREM', base .. ':in_flight:' .. pays[n + 1], id)
    elseif tokens > 0 then
      local key = base .. ':full_at:' .. pays[n]
      local debt_ms = math.max(0, tonumber(redis.call('GET', key) or NOW_MS) - NOW_MS) + tokens * tonumber(pays[n + 1])
      redis.call('SET', key, string.format('%.4f', NOW_MS + debt_ms), 'PX', math.ceil(debt_ms))
    end
  end
end
