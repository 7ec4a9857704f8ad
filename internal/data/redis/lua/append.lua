-- Write one step of a worker. ARGV: the prefix of the nodes' channels, milliseconds to retain an ended log, and the lines
-- of the step (one argument: the client takes longer for many): for each response its id, owner, number of the first
-- entry, flags (sum of 1: the log ends here; 2: this may have been written already, the answer was lost; 4: the attempt
-- speaks for the first time), how many entries, and the entries, which have no line breaks.
-- Returns {place among them, verdict, length of the log} for those that need attention: lost, behind (entries are
-- missing before these) or cancelled (but written). One response may be here twice, as two attempts.
local channel, retain_ms = ARGV[1], ARGV[2]
local attention, mail, lines = {}, {}, {}
for line in string.gmatch(ARGV[3], '[^\n]+') do lines[#lines + 1] = line end
local i, place = 1, -1
while i < #lines do
  local id, owner, number, flags, count =
    lines[i], lines[i + 1], tonumber(lines[i + 2]), tonumber(lines[i + 3]), tonumber(lines[i + 4])
  local ends, unsure, speaks = flags % 2 == 1, flags % 4 >= 2, flags >= 4
  local first, last = i + 5, i + 4 + count
  i, place = last + 1, place + 1
  local meta, log = meta_key(id), log_key(id)
  local state = redis.call('HMGET', meta, 'owner', 'nodes', 'cancelled', 'ended')
  local written = false
  if state[1] ~= owner then
    -- Else it was this very append that ended the log.
    if not (ends and unsure and state[4] == owner) then attention[#attention + 1] = {place, 'lost', 0} end
  else
    local length = 0
    for from = first, last, 1000 do
      length = redis.call('RPUSH', log, unpack(lines, from, math.min(from + 999, last)))
    end
    written = length == number + count
    if not written then
      length = length - count
      if length > 0 then redis.call('LTRIM', log, 0, length - 1) else redis.call('DEL', log) end
      if length < number then
        attention[#attention + 1] = {place, 'behind', length}
      elseif not (unsure and length >= number + count) then
        attention[#attention + 1] = {place, 'lost', length}
      end
    end
  end
  if written then
    if speaks then redis.call('HSET', meta, 'silent', 0) end
    if state[2] ~= '' then
      local news = '["' .. id .. '",' .. number .. ',[' .. table.concat(lines, ',', first, last) .. ']]'
      for node in string.gmatch(state[2], '%S+') do
        local letters = mail[node]
        if letters then letters[#letters + 1] = news else mail[node] = {news} end
      end
    end
    if ends then
      redis.call('HDEL', meta, 'owner', 'request')
      redis.call('HSET', meta, 'ended', owner)
      redis.call('ZREM', base .. ':running', id)
      redis.call('PEXPIRE', meta, retain_ms)
      redis.call('PEXPIRE', log, retain_ms)
    elseif state[3] then
      attention[#attention + 1] = {place, 'cancelled', 0}
    end
  end
end
for node, letters in pairs(mail) do
  redis.call('PUBLISH', channel .. node, '[' .. table.concat(letters, ',') .. ']')
end
return attention
