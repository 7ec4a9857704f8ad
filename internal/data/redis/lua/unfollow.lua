-- A node need not be told of these responses any more. ARGV: the node, then their ids.
local node = ARGV[1]
for i = 2, #ARGV do
  local meta = meta_key(ARGV[i])
  local nodes = redis.call('HGET', meta, 'nodes')
  if nodes then
    local others = {}
    for other in string.gmatch(nodes, '%S+') do
      if other ~= node then others[#others + 1] = other end
    end
    redis.call('HSET', meta, 'nodes', table.concat(others, ' '))
  end
end
