-- Read logs from where a node has them, and have it told of what comes. ARGV: the node, then for each response its id,
-- how many entries the node has, and whether it also wants what is not in the log ('1').
-- Returns for each: false when it is unknown, else {head, 1 when it has ended, entries}. The head is only sent to who
-- has nothing yet.
local node = ARGV[1]
local found = {}
for i = 2, #ARGV, 3 do
  local id, have, updates = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2]
  local meta = meta_key(id)
  local state = redis.call('HMGET', meta, 'nodes', 'ended')
  if not state[1] then
    found[#found + 1] = false
  else
    local head = have == 0 and redis.call('HGET', meta, 'head') or ''
    if not state[2] then
      if not string.find(' ' .. state[1] .. ' ', ' ' .. node .. ' ', 1, true) then
        redis.call('HSET', meta, 'nodes', state[1] == '' and node or state[1] .. ' ' .. node)
      end
      if updates == '1' then redis.call('HSET', meta, 'updates', 1) end
    end
    found[#found + 1] = {head, state[2] and 1 or 0, redis.call('LRANGE', log_key(id), have, -1)}
  end
end
return found
